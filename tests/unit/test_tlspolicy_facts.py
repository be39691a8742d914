"""What tlspolicy reports about a handshake is what happened on the wire; its settings and counters.

The server is OpenSSL's; a proxy in between counts the bytes and changes the shape of records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pki
import pytest
import servers
import tlsdevice


@pytest.fixture(scope="module", params=["rsa", "ecdsa"])
def chain(request: pytest.FixtureRequest) -> pki.Chain:
    return pki.chain(request.param)


@pytest.fixture(scope="module")
def port(chain: pki.Chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    directory = tmp_path_factory.mktemp("server")
    certificate, key = chain.write(directory)
    with servers.s_server(directory, certificate, key, "-tls1_2") as port:
        yield port


@pytest.fixture
def root(chain: pki.Chain, tmp_path: Path) -> Path:
    path = tmp_path / "root.der"
    path.write_bytes(chain.root.der)
    return path


CONNECT = """
tlspolicy.max_fragment_length(size)
s = context(*roots).wrap_socket(tcp(port), server_hostname="localhost")
facts = last()
report(facts=facts)
"""


@pytest.mark.parametrize("size", [None, 512, 4096])
@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_the_facts_are_those_of_the_wire(
    leg: str, size: int | None, chain: pki.Chain, port: int, root: Path, tmp_path: Path
) -> None:
    with servers.Proxy(port) as proxy:
        facts = tlsdevice.one(
            leg, tmp_path, CONNECT, port=proxy.port, roots=[str(root)], size=size
        )["facts"]
        # Nothing follows the handshake before the client speaks.
        assert (facts["rx"], facts["tx"]) == (proxy.from_server, proxy.from_client)
    leaf = chain.leaf.certificate
    assert facts["version"] == "TLSv1.2"
    assert facts["suite"].startswith("TLS-ECDHE-")
    assert (facts["asked"], facts["granted"]) == (size, size)
    assert facts["root"] == hashlib.sha256(chain.root.der).hexdigest()
    assert facts["not_before"] == leaf.not_valid_before_utc.strftime("%Y%m%d%H%M%S")
    assert facts["not_after"] == leaf.not_valid_after_utc.strftime("%Y%m%d%H%M%S")
    assert 0 < facts["ms"] < 30000
    assert (facts["error"], facts["flags"]) == (0, 0)


def test_the_root_that_is_reported_is_the_one_that_anchored_the_chain(
    chain: pki.Chain, port: int, root: Path, tmp_path: Path
) -> None:
    others = []
    for number, kind in ((1, "rsa"), (1, "ecdsa")):
        path = tmp_path / f"other-{kind}.der"
        path.write_bytes(pki.chain(kind, root_number=number).root.der)
        others.append(str(path))
    facts = tlsdevice.one(
        "outpost32", tmp_path, CONNECT, port=port, roots=[others[0], str(root), others[1]], size=512
    )["facts"]
    assert facts["root"] == hashlib.sha256(chain.root.der).hexdigest()


# Four at least: mbedtls wants the whole header of a message in one record.
RESHAPED = {
    "records_of_4_bytes": servers.in_records_of(4),
    "records_of_7_bytes": servers.in_records_of(7),
    "records_of_100_bytes": servers.in_records_of(100),
    "packets_of_1_byte": servers.byte_by_byte,
}


@pytest.mark.parametrize("size", [None, 512])
@pytest.mark.parametrize("shape", RESHAPED)
def test_the_echo_is_seen_however_the_server_hello_is_cut_up(
    shape: str, size: int | None, port: int, root: Path, tmp_path: Path
) -> None:
    """A ServerHello may be split over records, a record over packets."""
    with servers.Proxy(port, RESHAPED[shape]) as proxy:
        facts = tlsdevice.one(
            "outpost64", tmp_path, CONNECT, port=proxy.port, roots=[str(root)], size=size
        )["facts"]
    assert facts["granted"] == size
    assert facts["error"] == 0


@pytest.mark.parametrize("shape", RESHAPED)
def test_the_missing_echo_is_noticed_however_the_server_hello_is_cut_up(
    shape: str, chain: pki.Chain, root: Path, tmp_path: Path
) -> None:
    certificate, key = chain.write(tmp_path / "nats")
    with (
        servers.nats(tmp_path / "nats", certificate, key) as port,
        servers.Proxy(port, RESHAPED[shape]) as proxy,
    ):
        facts = tlsdevice.one(
            "outpost64", tmp_path, CONNECT, port=proxy.port, roots=[str(root)], size=512
        )["facts"]
    assert (facts["asked"], facts["granted"], facts["error"]) == (512, None, 0)


@pytest.mark.parametrize("full", [False, True])
def test_certificates_larger_than_the_small_buffer_still_fit(full: bool, tmp_path: Path) -> None:
    large = pki.chain("rsa", extra_bytes=8000)
    certificate, key = large.write(tmp_path / "server")
    root = tmp_path / "root.der"
    root.write_bytes(large.root.der)
    with servers.s_server(tmp_path / "server", certificate, key, "-tls1_2") as port:
        facts = tlsdevice.one(
            "outpost32",
            tmp_path,
            f"tlspolicy.full_buffers({full})\n" + CONNECT,
            port=port,
            roots=[str(root)],
            size=512,
        )["facts"]
    assert (facts["granted"], facts["error"]) == (512, 0)


def test_a_handshake_in_many_small_steps_gives_the_same_facts(
    chain: pki.Chain, port: int, root: Path, tmp_path: Path
) -> None:
    """Non-blocking: each call does what it can and comes back."""
    script = """
tlspolicy.max_fragment_length(512)
raw = tcp(port)
raw.setblocking(False)
s = context(*roots).wrap_socket(raw, server_hostname="localhost", do_handshake_on_connect=False)
calls = 0
while s.write(b"x") is None:
    calls += 1
    import time
    time.sleep_ms(1)
report(calls=calls, facts=last())
"""
    with servers.Proxy(port, servers.byte_by_byte) as proxy:
        found = tlsdevice.one("outpost64", tmp_path, script, port=proxy.port, roots=[str(root)])
    assert found["calls"] > 1
    assert found["facts"]["granted"] == 512
    assert found["facts"]["root"] == hashlib.sha256(chain.root.der).hexdigest()


def test_a_failed_handshake_leaves_its_facts(port: int, root: Path, tmp_path: Path) -> None:
    script = """
tlspolicy.max_fragment_length(512)
error = attempt(lambda: context(*roots).wrap_socket(tcp(port), server_hostname="other.example"))
report(error=error, facts=last())
"""
    found = tlsdevice.one("outpost32", tmp_path, script, port=port, roots=[str(root)])
    assert "does not match" in found["error"]
    facts = found["facts"]
    assert facts["error"] < 0 and facts["flags"] == 0x04
    assert (facts["version"], facts["suite"]) == (None, None)
    assert (facts["asked"], facts["granted"]) == (512, 512)
    assert facts["rx"] > 0 and facts["not_after"] is not None


ALERTED = """
import io
class Fake(io.IOBase):
    # A server that answers with these records alone, so many bytes at a time.
    def __init__(self):
        self.data = bytes(records)
    def readinto(self, buf):
        n = min(len(buf), len(self.data), step)
        buf[:n] = self.data[:n]
        self.data = self.data[n:]
        return n
    def write(self, buf):
        return len(buf)
    def ioctl(self, op, arg):
        return 0

def go():
    context(*roots).wrap_socket(Fake(), server_hostname="localhost")
report(error=attempt(go), facts=last())
"""

ALERT = {
    "protocol_version": ([21, 3, 3, 0, 2, 2, 70], 70),
    "handshake_failure": ([21, 3, 1, 0, 2, 2, 40], 40),
    "the_last_of_two": ([21, 3, 3, 0, 2, 1, 112, 21, 3, 3, 0, 2, 2, 80], 80),
    "after_a_change_cipher_spec": ([20, 3, 3, 0, 1, 1, 21, 3, 3, 0, 2, 2, 80], None),
    "of_one_byte": ([21, 3, 3, 0, 1, 2], None),
    "cut_off": ([21, 3, 3, 0, 2, 2], None),
    "none": ([22, 3, 3, 0, 1, 0], None),
}


@pytest.mark.parametrize("step", [1, 100])
@pytest.mark.parametrize("alert", ALERT)
@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_the_alert_of_the_server_is_told_where_it_came_in_the_clear(
    leg: str, alert: str, step: int, root: Path, tmp_path: Path
) -> None:
    records, expected = ALERT[alert]
    found = tlsdevice.one(leg, tmp_path, ALERTED, roots=[str(root)], records=records, step=step)
    assert "OSError" in found["error"]
    assert found["facts"]["alert"] == expected
    assert found["facts"]["error"] != 0


def test_a_good_handshake_tells_no_alert(port: int, root: Path, tmp_path: Path) -> None:
    found = tlsdevice.one("outpost64", tmp_path, CONNECT, port=port, roots=[str(root)], size=None)
    assert found["facts"]["alert"] is None


def test_before_the_first_handshake_there_are_no_facts(tmp_path: Path) -> None:
    assert tlsdevice.one("outpost32", tmp_path, "report(facts=last())")["facts"] is None


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_only_the_four_sizes_and_none_are_taken(leg: str, tmp_path: Path) -> None:
    script = """
taken, errors = [], []
for size in (512, 1024, 2048, 4096, None):
    taken.append(tlspolicy.max_fragment_length(size) == size == tlspolicy.max_fragment_length())
tlspolicy.max_fragment_length(1024)
for size in (0, 1, 511, 513, 8192, 16384, -512, 512 + (1 << 16), 1 << 40, "512", 512.0, b"512", []):
    errors.append(attempt(lambda: tlspolicy.max_fragment_length(size)))
report(taken=taken, errors=errors, left=tlspolicy.max_fragment_length())
"""
    found = tlsdevice.one(leg, tmp_path, script)
    assert all(found["taken"])
    expected = "ValueError: max_fragment_length must be 512, 1024, 2048, 4096 or None"
    assert set(found["errors"]) == {expected}
    assert found["left"] == 1024, "a refused size changes nothing"


def test_only_the_two_suite_lists_are_taken(tmp_path: Path) -> None:
    script = """
names = [tlspolicy.suites(), tlspolicy.suites("ecc"), tlspolicy.suites(), tlspolicy.suites("all")]
errors = [attempt(lambda: tlspolicy.suites(x)) for x in ("rsa", "", 1, None, [])]
report(names=names, errors=errors)
"""
    found = tlsdevice.one("outpost32", tmp_path, script)
    assert found["names"] == ["all", "ecc", "ecc", "all"]
    assert set(found["errors"]) == {"ValueError: suites must be 'all' or 'ecc'"}


def test_the_ecc_list_refuses_a_server_with_an_rsa_certificate(
    chain: pki.Chain, port: int, root: Path, tmp_path: Path
) -> None:
    script = """
tlspolicy.suites("ecc")
report(error=attempt(lambda: context(*roots).wrap_socket(tcp(port), server_hostname="localhost")))
"""
    found = tlsdevice.one("outpost32", tmp_path, script, port=port, roots=[str(root)])
    ecdsa = "ecdsa" in chain.leaf.certificate.issuer.rfc4514_string()
    assert (found["error"] == "") == ecdsa


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_every_byte_of_a_connection_is_given_back(
    leg: str, port: int, root: Path, tmp_path: Path
) -> None:
    """Good connections, each kind of failed one, and ones that are never started."""
    script = """
def good():
    context(*roots).wrap_socket(tcp(port), server_hostname="localhost").close()

def wrong_name():
    context(*roots).wrap_socket(tcp(port), server_hostname="other.example")

def untrusted():
    context().wrap_socket(tcp(port), server_hostname="localhost")

def unnamed():
    ctx = context(*roots)
    ctx.verify_mode = tls.CERT_NONE
    ctx.wrap_socket(tcp(port))

def lazy(raw):
    ctx = context(*roots)
    return ctx.wrap_socket(raw, server_hostname="localhost", do_handshake_on_connect=False)

def unstarted():
    lazy(tcp(port))

def half_way():
    raw = tcp(port)
    raw.setblocking(False)
    lazy(raw).write(b"x")

def not_a_client():
    tls.SSLContext(tls.PROTOCOL_TLS_SERVER)

def clear():
    x = [i for i in range(50)]
    gc.collect()
    gc.collect()

left = {}
for size in (None, 512):
    tlspolicy.max_fragment_length(size)
    for go in (good, wrong_name, untrusted, unnamed, unstarted, half_way, not_a_client):
        attempt(go)
        clear()
        before = tlspolicy.heap()[0]
        for _ in range(3):
            attempt(go)
            clear()
        left["%s %s" % (go.__name__, size)] = tlspolicy.heap()[0] - before
report(left=left)
"""
    found = tlsdevice.one(leg, tmp_path, script, port=port, roots=[str(root)])
    assert {name: n for name, n in found["left"].items() if n} == {}


def test_the_counters_show_what_is_held_now_and_at_most(
    port: int, root: Path, tmp_path: Path
) -> None:
    script = """
tlspolicy.heap_reset()
start = tlspolicy.heap()
s = context(*roots).wrap_socket(tcp(port), server_hostname="localhost")
during = tlspolicy.heap()
tlspolicy.heap_reset()
after = tlspolicy.heap()
s.close()
report(start=start, during=during, after=after, closed=tlspolicy.heap())
"""
    found = tlsdevice.one("outpost32", tmp_path, script, port=port, roots=[str(root)])
    assert found["start"][0] == found["start"][1]
    assert found["during"][0] > found["start"][0] and found["during"][1] > found["during"][0]
    assert found["after"] == [found["during"][0], found["during"][0]]
    assert found["closed"][0] < found["during"][0]
    assert found["closed"][1] == found["after"][1]


def test_the_settings_are_the_modules_not_the_importers(tmp_path: Path) -> None:
    text = """
import tlspolicy as again
again.full_buffers(True)
report(same=again is tlspolicy, full=tlspolicy.full_buffers(), off=again.full_buffers(False))
"""
    assert tlsdevice.one("outpost32", tmp_path, text) == {"same": True, "full": True, "off": False}
