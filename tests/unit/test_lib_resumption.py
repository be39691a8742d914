"""A session is offered for what it was made for, once, and to nobody else: what it is bound to, and
what becomes of it where no connection comes of it."""

from __future__ import annotations

from pathlib import Path

import pki
import pytest
import servers
import tlsdevice

SCRIPT = """
from outpost import clock, resumption, rtcmem
clock._set(NOW)

class Where:
    def __init__(self, host="localhost", port=8883, ecc_only=False):
        self.host, self.port, self.ecc_only = host, port, ecc_only

class Credential:
    def __init__(self, device_id="d", mark="current certificate 1", chain=b"chain", trial=False):
        self.device_id, self.mark, self.trial, self.chain = device_id, mark, trial, chain
    def shown(self):
        return self.chain

def certificates(*ders):
    return lambda: iter(ders)
ONE = certificates(b"root one", b"root two")

def connect():
    # A real session, made with the server at `port`.
    tlspolicy.max_fragment_length(512)
    tlspolicy.keep_session(True)
    s = context(*roots).wrap_socket(tcp(port), server_hostname="localhost")
    s.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
    s.read(100)
    s.close()
    facts = tlspolicy.last()
    if not facts["resumed"]:
        facts["not_after"] = not_after
    return facts
not_after = "20400101000000"

def kept(where=Where(), ders=ONE, credential=Credential()):
    offer = resumption.Offer(where, ders, credential)
    offer.used()
    facts = connect()
    offer.kept(facts)
    offer.done()
    return offer.made, facts["resumed"]

def offered(where=Where(), ders=ONE, credential=Credential()):
    offer = resumption.Offer(where, ders, credential)
    offer.done()
    return offer.made
assert kept() == (False, False)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    chain = pki.chain("ecdsa")
    folder: Path = tmp_path_factory.mktemp("server")
    certificate, key = chain.write(folder)
    root = folder / "root.der"
    root.write_bytes(chain.root.der)
    with servers.s_server(folder / "log", certificate, key, "-tls1_2") as port:
        yield port, str(root)


@pytest.fixture
def run(server, tmp_path):
    import time

    port, root = server

    def run(script: str) -> None:
        parameters = {"port": port, "roots": [root], "NOW": int(time.time())}
        tlsdevice.run("outpost32", tmp_path, SCRIPT + script, **parameters)

    return run


def test_session_is_offered_again_and_again_as_long_as_it_works(run):
    run("""
for n in range(3):
    assert kept() == (True, True), n
""")


@pytest.mark.parametrize(
    "other",
    [
        "where=Where(host='other')",
        "where=Where(port=8884)",
        "where=Where(ecc_only=True)",
        "ders=certificates(b'root one')",
        "ders=certificates(b'root two', b'root one')",
        "credential=Credential(device_id='e')",
        "credential=Credential(mark='current certificate 2')",
        # The board was provisioned again, with the same number: the mark alone does not tell.
        "credential=Credential(chain=b'another')",
        "credential=Credential(trial=True)",
        "credential=None",
    ],
)
def test_session_is_bound_to_all_that_it_was_made_with(run, other):
    run(f"""
assert offered({other}) is False
assert offered() is True
""")


def test_session_that_reached_the_server_and_did_not_work_is_not_offered_again(run):
    run("""
offer = resumption.Offer(Where(), ONE, Credential())
assert offer.made
assert rtcmem.get(rtcmem.SESSION) is None     # a reset in the middle of the handshake: no second
offer.used()
offer.done()
assert rtcmem.get(rtcmem.SESSION) is None and offered() is False
""")


def test_session_outlives_a_server_that_cannot_be_reached(run):
    run("""
before = rtcmem.get(rtcmem.SESSION)
for n in range(3):
    assert offered() is True                  # no connection came about: used() was not called
assert rtcmem.get(rtcmem.SESSION) == before
""")


@pytest.mark.parametrize(
    ("moved_s", "good"),
    [(0, True), (-1, False), (7 * 86400 - 5, True), (7 * 86400, False), (400 * 86400, False)],
)
def test_session_lives_a_week_by_a_clock_that_goes_forward(run, moved_s, good):
    run(f"""
clock._set(clock.now() + {moved_s})
assert offered() is {good}
""")


def test_resuming_does_not_make_the_week_longer(run):
    run("""
clock._set(clock.now() + 5 * 86400)
assert kept() == (True, True)
clock._set(clock.now() + 3 * 86400)
assert offered() is False
""")


def test_session_ends_with_the_certificate_of_its_server(run):
    run("""
resumption.forget()
t = __import__("time").gmtime(clock.now() + 3600 - clock._EPOCH)
not_after = "%04d%02d%02d%02d%02d%02d" % t[:6]
assert kept() == (False, False)
clock._set(clock.now() + 3000)
assert kept() == (True, True)                 # nor does that make the certificate's life longer
clock._set(clock.now() + 700)
assert offered() is False
""")


@pytest.mark.parametrize(
    "damage",
    [
        "data[:39]",
        "data[:40]",
        "data[:-1]",
        "data + b'x'",
        "data[:40] + bytes(len(data) - 40)",
        "bytes(len(data))",
        "data[:32]",
        "b''",
    ],
)
def test_part_of_rtc_memory_that_is_not_what_was_put_there_is_not_offered(run, damage):
    run(f"""
data = rtcmem.get(rtcmem.SESSION)
rtcmem.put(rtcmem.SESSION, {damage})
assert offered() is False
assert kept() == (False, False) and kept() == (True, True)
""")


def test_forgotten_session_is_gone_from_rtc_memory_and_from_the_tls_stack(run):
    run("""
offer = resumption.Offer(Where(), ONE, Credential())
resumption.forget()
assert connect()["resumed"] is False and rtcmem.get(rtcmem.SESSION) is None
""")


def test_connection_for_whose_session_there_is_no_memory_goes_on(run):
    run("""
true_put = rtcmem.put
def put(number, data):
    if data is not None:
        raise MemoryError
    return true_put(number, data)
rtcmem.put = put
assert kept() == (True, True)
rtcmem.put = true_put
assert not offered()  # a full handshake next
assert kept() == (False, False) and offered()
""")
