"""Record sizes against real brokers: mosquitto (OpenSSL) grants them, nats-server (Go) ignores.

What must hold with both, at every size and with none: the connection works, a message of
60,000 bytes arrives whole, and what was granted is told apart from what was asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pki
import pytest
import servers
import tlsdevice

SIZES = [None, 512, 1024, 2048, 4096]

# A minimal MQTT client: it publishes a message to itself and reads it back piece by piece, so
# that the message never has to fit into the heap.
ECHO = """
def length(n):
    out = b""
    while True:
        low, n = n & 0x7f, n >> 7
        out += bytes([low | (0x80 if n else 0)])
        if not n:
            return out

def exactly(s, n):
    data = b""
    while len(data) < n:
        more = s.read(n - len(data))
        if not more:
            raise OSError("closed after %d of %d" % (len(data), n))
        data += more
    return data

def packet(s):
    kind = exactly(s, 1)[0]
    size = shift = 0
    while True:
        b = exactly(s, 1)[0]
        size |= (b & 0x7f) << shift
        shift += 7
        if not b & 0x80:
            return kind, size

def piece(at):
    return bytes((at + i * 7) & 0xff for i in range(200))

def echo(s, topic, total):
    name = topic.encode()
    s.write(b"\\x10" + length(14) + b"\\x00\\x04MQTT\\x04\\x02\\x00\\x3c\\x00\\x02id")
    kind, size = packet(s)
    connack = exactly(s, size)
    assert kind == 0x20 and connack[1] == 0, connack
    named = b"\\x00" + bytes([len(name)]) + name
    s.write(b"\\x82" + length(5 + len(name)) + b"\\x00\\x01" + named + b"\\x00")
    kind, size = packet(s)
    exactly(s, size)
    assert kind == 0x90, kind
    s.write(b"\\x30" + length(2 + len(name) + total) + named)
    for at in range(0, total, 200):
        s.write(piece(at))
    kind, size = packet(s)
    assert kind & 0xf0 == 0x30 and size == 2 + len(name) + total, (kind, size)
    exactly(s, 2 + len(name))
    for at in range(0, total, 200):
        assert exactly(s, 200) == piece(at), at
    return total

for size in sizes:
    tlspolicy.max_fragment_length(size)
    ctx = context(root)
    before = tlspolicy.heap()[0]
    tlspolicy.heap_reset()
    s = ctx.wrap_socket(tcp(port), server_hostname="localhost")
    facts = last()
    steady, peak = tlspolicy.heap()
    got = echo(s, "t%s" % size, 60000)
    report(got=got, facts=facts, steady=steady - before, peak=peak - before)
    s.close()
    del s, ctx
    gc.collect()
"""


@pytest.fixture(scope="module", params=["rsa", "ecdsa"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def chain(kind: str) -> pki.Chain:
    return pki.chain(kind)


@pytest.fixture(scope="module")
def brokers(
    chain: pki.Chain, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, int | Path]]:
    directory = tmp_path_factory.mktemp("brokers")
    certificate, key = chain.write(directory / "pki")
    root = directory / "root.der"
    root.write_bytes(chain.root.der)
    with ExitStack() as stack:
        yield {
            "root": root,
            "mosquitto": stack.enter_context(
                servers.mosquitto(directory / "mosquitto", certificate, key)
            ),
            "nats": stack.enter_context(servers.nats(directory / "nats", certificate, key)),
        }


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_mosquitto_grants_each_size_and_a_60000_byte_message_arrives(
    leg: str, brokers: dict[str, int | Path], tmp_path: Path
) -> None:
    reports = tlsdevice.run(
        leg, tmp_path, ECHO, root=brokers["root"], port=brokers["mosquitto"], sizes=SIZES
    )
    assert [r["got"] for r in reports] == [60000] * len(SIZES)
    assert [r["facts"]["asked"] for r in reports] == SIZES
    assert [r["facts"]["granted"] for r in reports] == SIZES


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_a_server_that_ignores_the_size_still_delivers_a_60000_byte_message(
    leg: str, brokers: dict[str, int | Path], tmp_path: Path
) -> None:
    reports = tlsdevice.run(
        leg, tmp_path, ECHO, root=brokers["root"], port=brokers["nats"], sizes=SIZES
    )
    assert [r["got"] for r in reports] == [60000] * len(SIZES)
    assert [r["facts"]["asked"] for r in reports] == SIZES
    assert [r["facts"]["granted"] for r in reports] == [None] * len(SIZES)
    # It must hold a buffer for 16 KiB records then: that is what it costs.
    assert all(r["steady"] > 16384 for r in reports)


@pytest.mark.parametrize("size", [512, 1024, 2048, 4096])
def test_no_record_of_either_side_is_larger_than_what_was_granted(
    size: int, brokers: dict[str, int | Path], tmp_path: Path
) -> None:
    with servers.Proxy(int(brokers["mosquitto"])) as proxy:
        tlsdevice.one(
            "outpost32", tmp_path, ECHO, root=brokers["root"], port=proxy.port, sizes=[size]
        )
    # Up to 48 bytes of nonce, padding and tag.
    assert max(length for _, length in proxy.records) <= size + 48
    assert max(length for _, length in proxy.client_records) <= size + 48


def test_memory_stays_within_the_budget_at_512(
    kind: str, brokers: dict[str, int | Path], tmp_path: Path
) -> None:
    script = """
before = tlspolicy.heap()[0]
tlspolicy.heap_reset()
tlspolicy.max_fragment_length(512)
s = context(root).wrap_socket(tcp(port), server_hostname="localhost")
steady, peak = tlspolicy.heap()
report(steady=steady - before, peak=peak - before)
"""
    found = tlsdevice.one(
        "outpost32", tmp_path, script, root=brokers["root"], port=brokers["mosquitto"]
    )
    assert found["peak"] <= 24 * 1024
    assert found["steady"] <= 6.5 * 1024


def test_two_connections_of_one_context_keep_each_its_own_size(
    brokers: dict[str, int | Path], tmp_path: Path
) -> None:
    script = (
        ECHO.split("for size in sizes:")[0]
        + """
ctx = context(root)
tlspolicy.max_fragment_length(2048)
late = ctx.wrap_socket(tcp(granting), server_hostname="localhost", do_handshake_on_connect=False)
tlspolicy.max_fragment_length(512)
a = ctx.wrap_socket(tcp(granting), server_hostname="localhost")
tlspolicy.max_fragment_length(None)
b = ctx.wrap_socket(tcp(granting), server_hostname="localhost")
tlspolicy.max_fragment_length(1024)
c = ctx.wrap_socket(tcp(ignoring), server_hostname="localhost", do_handshake_on_connect=False)
tlspolicy.max_fragment_length(4096)
got = [echo(late, "late", 60000)]
granted = last()["granted"]
for s, topic in ((a, "a"), (c, "c"), (b, "b")):
    got.append(echo(s, topic, 60000))
report(got=got, granted=granted)
"""
    )
    found = tlsdevice.one(
        "outpost64",
        tmp_path,
        script,
        root=brokers["root"],
        granting=brokers["mosquitto"],
        ignoring=brokers["nats"],
    )
    assert found["got"] == [60000] * 4
    assert found["granted"] == 2048
