"""The one kind of connection on which dates are not judged: to a server that is known by a pinned
certificate. It applies to the next connection alone, carries nothing but the question for a bundle,
and shows nothing of the device; an ordinary connection cannot be made so."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

import pki
import pytest
import tlsdevice
from cryptography.hazmat.primitives import serialization
from rawhttps import RawHttps, authority, leaf, write
from test_tlspolicy_client import demanding

DAY = dt.timedelta(days=1)
OLD = {"starts": -900 * DAY, "ends": -30 * DAY}
FUTURE = {"starts": 30 * DAY, "ends": 900 * DAY}
QUESTION = b"GET /outpost/harbour/trust.bin HTTP/1.1\r\n\r\n"

pytestmark = pytest.mark.parametrize("leg", tlsdevice.OURS)

HELPERS = """
def read(path):
    with open(path, "rb") as f:
        return f.read()

def connect(port, pin=None, say=QUESTION, name="localhost", ctx=None, roots=()):
    # What came of it: what the server said, or the exception.
    tlspolicy.pinned(pin)
    s = None
    try:
        s = (ctx or context(*roots)).wrap_socket(tcp(port), server_hostname=name)
        for part in say if isinstance(say, list) else [say]:
            s.write(part)
        return s.read(2).decode()
    except Exception as e:
        return "%s: %s" % (type(e).__name__, e)
    finally:
        if s:
            s.close()
"""


def one(leg, tmp_path, script, **values):
    return tlsdevice.one(leg, tmp_path, HELPERS + script, QUESTION=QUESTION, **values)


def serving(tmp_path, *chain):
    return RawHttps(tmp_path / "tls", chain, lambda talk: talk.say("ok"))


def pin_of(tmp_path: Path, signer: pki.Signer, name="pin.der") -> Path:
    path = tmp_path / name
    path.write_bytes(signer.der)
    return path


PINNED = """
before = tlspolicy.heap()[0]
plain = connect(port, roots=[pin])
pinned = connect(port, read(pin))
facts = last()
after = connect(port, roots=[pin])
import gc
gc.collect()
held = tlspolicy.heap()[0] - before
report(plain=plain, pinned=pinned, after=after, root=facts["root"], held=held)
"""


@pytest.mark.parametrize(
    ("root_dates", "leaf_dates"), [(OLD, OLD), (OLD, {}), ({}, OLD), (FUTURE, FUTURE), ({}, FUTURE)]
)
def test_dates_do_not_count_on_a_pinned_connection_and_on_no_other(
    leg, tmp_path, root_dates, leaf_dates
):
    root = authority(1, **root_dates)
    with serving(tmp_path, leaf(root, **leaf_dates)) as server:
        said = one(leg, tmp_path, PINNED, port=server.port, pin=pin_of(tmp_path, root))
    assert said["pinned"] == "ok"
    for words in (said["plain"], said["after"]):
        assert "expired" in words or "future" in words
    assert said["root"] and said["held"] == 0
    assert server.questions == [QUESTION.decode()]


def test_server_may_be_pinned_by_its_own_self_signed_certificate(leg, tmp_path):
    own = pki.make("localhost", pki.key("p256", 70), hosts=["localhost"], **OLD)
    other = pki.make("localhost", pki.key("p256", 71), hosts=["localhost"], **OLD)
    script = """
report(own=connect(port, read(own)), other=connect(port, read(other)),
    plain=connect(port, roots=[own]))
"""
    with serving(tmp_path, own) as server:
        said = one(
            leg,
            tmp_path,
            script,
            port=server.port,
            own=pin_of(tmp_path, own),
            other=pin_of(tmp_path, other, "other.der"),
        )
    assert said["own"] == "ok"
    assert "not correctly signed" in said["other"] and "expired" in said["plain"]
    assert len(server.questions) == 1


def test_only_the_pin_counts_and_the_name_still_does(leg, tmp_path):
    root, another = authority(1), authority(2)
    script = """
tlspolicy.roots(lambda: [read(root)])
provider = connect(port, read(another))
tlspolicy.roots(None)
report(
    provider=provider,
    context=connect(port, read(another), roots=[root]),
    name=connect(port, read(root), name="elsewhere"),
    right=connect(port, read(root), roots=[another]),
)
"""
    with serving(tmp_path, leaf(root)) as server:
        said = one(
            leg,
            tmp_path,
            script,
            port=server.port,
            root=pin_of(tmp_path, root),
            another=pin_of(tmp_path, another, "another.der"),
        )
    assert "not correctly signed" in said["provider"]
    assert "not correctly signed" in said["context"]
    assert "does not match" in said["name"]
    assert said["right"] == "ok"


def test_nothing_but_the_question_for_a_bundle_goes_over_it(leg, tmp_path):
    root = authority(1, **OLD)
    script = r"""
mqtt = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"
said = [
    connect(port, read(pin), mqtt),
    connect(port, read(pin), b"GET /other"),
    connect(port, read(pin), b"GET /outpos" + mqtt),
    connect(port, read(pin), [b"GET /out", mqtt]),
    connect(port, read(pin), [b"", b"POST /outpost/x"]),
]
parts = connect(port, read(pin), [b"G", b"ET /outpost", b"/harbour/trust.bin HTTP/1.1\r\n\r\n"])
report(said=said, parts=parts)
"""
    with serving(tmp_path, leaf(root)) as server:
        said = one(leg, tmp_path, script, port=server.port, pin=pin_of(tmp_path, root))
    assert all("OSError" in words for words in said["said"]), said
    assert said["parts"] == "ok"
    assert server.questions == [QUESTION.decode()]


def test_no_certificate_of_the_device_is_shown(leg, tmp_path):
    issuer = pki.make("Fleet", pki.key("p256", 80))
    client = pki.make("pump-7", pki.key("p256", 81), issuer, hosts=["pump-7"])
    key = tmp_path / "key.der"
    key.write_bytes(
        client.key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    script = """
def chained():
    ctx = context(root)
    ctx.load_cert_chain(read(der), read(key))
    return ctx
tlspolicy.client(read(der), lambda hash: 1 / 0)
signer = connect(port, read(root))
tlspolicy.client(None)
before = connect(port, read(root), ctx=chained())
plain = connect(port, ctx=chained())
report(signer=signer, before=before, plain=plain)
"""
    with demanding(tmp_path, issuer, optional=True) as (server, root):
        said = one(
            leg,
            tmp_path,
            script,
            port=server.port,
            root=root,
            der=pin_of(tmp_path, client),
            key=key,
        )
    # The echo's first two letters.
    assert said["signer"] == "GE" and server.certificates[0] is None
    assert "Error" in said["before"]
    assert said["plain"] == "GE" and len(server.certificates) == 2
    assert server.certificates[1] is not None


def test_no_session_is_kept_of_it_or_offered_on_it(leg, tmp_path):
    root = authority(1)
    script = """
tlspolicy.keep_session(True)
pinned = connect(port, read(pin))
kept = tlspolicy.session() is not None
plain = connect(port, roots=[pin])
session = tlspolicy.session()
tlspolicy.session(session)
again = connect(port, read(pin))
resumed = last()["resumed"]
tlspolicy.session(session)
connect(port, roots=[pin])
report(pinned=pinned, kept=kept, plain=plain, had=bool(session), again=again, resumed=resumed,
    ordinary=last()["resumed"])
"""
    with serving(tmp_path, leaf(root)) as server:
        said = one(leg, tmp_path, script, port=server.port, pin=pin_of(tmp_path, root))
    assert said["pinned"] == said["plain"] == said["again"] == "ok"
    assert said["had"] and not said["kept"] and not said["resumed"] and said["ordinary"]


def test_pin_is_used_up_by_one_connection_and_can_be_taken_back(leg, tmp_path):
    root = authority(1, **OLD)
    script = """
p = read(pin)
tlspolicy.pinned(p)
tlspolicy.pinned(None)
back = connect(port, None, roots=[pin])
first = attempt(lambda: tlspolicy.pinned(b"junk"))
second = attempt(lambda: tlspolicy.pinned(p[:-1]))
third = attempt(lambda: tlspolicy.pinned(7))
after = connect(port, None, roots=[pin])
for _ in range(50):
    tlspolicy.pinned(p)
tlspolicy.pinned(None)
import gc
gc.collect()
report(back=back, bad=[first, second, third], after=after, held=tlspolicy.heap()[0])
"""
    with serving(tmp_path, leaf(root)) as server:
        said = one(leg, tmp_path, script, port=server.port, pin=pin_of(tmp_path, root))
    assert "expired" in said["back"] and "expired" in said["after"]
    assert [words.split(":")[0] for words in said["bad"]] == ["ValueError"] * 2 + ["TypeError"]
    assert said["held"] == 0
    assert server.questions == []


def test_two_connections_of_one_context_do_not_lend_each_other_the_pin(leg, tmp_path):
    """The pinned handshake is begun, another one of the same context comes in between."""
    root = authority(1, **OLD)
    script = """
ctx = context(pin)
tlspolicy.pinned(read(pin))
a = tcp(port)
a.setblocking(False)
pinned = ctx.wrap_socket(a, server_hostname="localhost", do_handshake_on_connect=False)
plain = None
said = None
import select
poll = select.poll()
poll.register(a, select.POLLIN)
for _ in range(400):
    n = pinned.write(QUESTION)
    if said is None:
        said = attempt(lambda: ctx.wrap_socket(tcp(port), server_hostname="localhost"))
    if n:
        break
    poll.poll(50)
poll.poll(5000)
got = None
for _ in range(100):
    got = pinned.read(2)
    if got:
        break
    poll.poll(50)
pinned.close()
after = attempt(lambda: ctx.wrap_socket(tcp(port), server_hostname="localhost"))
report(between=said, got=(got or b"").decode(), after=after)
"""
    with serving(tmp_path, leaf(root)) as server:
        said = one(leg, tmp_path, script, port=server.port, pin=pin_of(tmp_path, root))
    assert "expired" in said["between"] and "expired" in said["after"]
    assert said["got"] == "ok"


def test_tls_of_a_pinned_connection_has_the_same_floor(leg, tmp_path):
    root = authority(1)
    server_leaf = leaf(root)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write(tmp_path / "tls", (server_leaf,)))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-SHA:AES128-SHA")
    with serving(tmp_path, server_leaf) as server:
        server._context = context
        said = one(
            leg,
            tmp_path,
            "report(said=connect(port, read(pin)))",
            port=server.port,
            pin=pin_of(tmp_path, root),
        )
    assert "Error" in said["said"] and server.questions == []
