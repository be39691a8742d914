"""One registration as a state machine: what the service may answer, and what it may not."""

import pytest

# Where the library is compiled from its source into 160 KB there are no 4 KB in one piece left.
LEGS_HERE = ("outpost64", "outpost32", "stock-release")

PRELUDE = """
import json
from outpost import dps
from outpost.errors import ProvisioningError
def reg(csr=None):
    r = dps.Registration("press-7", csr, now_ms=0)
    topic, body = r.question(0)
    assert topic == "$dps/registrations/PUT/iotdps-register/?$rid=1", topic
    assert json.loads(body)["registrationId"] == "press-7"
    return r
def say(r, status, told, rid=1, more=""):
    body = told if isinstance(told, bytes) else json.dumps(told).encode()
    r.answer(b"$dps/registrations/res/%d/?$rid=%d%s" % (status, rid, more.encode()), body)
def refused(r, status, told, words, **more):
    try:
        say(r, status, told, **more)
    except ProvisioningError as e:
        assert words in str(e), str(e)
        assert len(str(e)) < 300
        assert r.assigned is None
        return e
    raise AssertionError("taken: %r" % (told,))
WAIT = {"operationId": "4.a.b", "status": "assigning"}
def done(**state):
    full = {"registrationId": "press-7", "assignedHub": "h.example", "deviceId": "press-7",
            "status": "assigned"}
    full.update(state)
    return {"operationId": "4.a.b", "status": "assigned", "registrationState": full}
"""


@pytest.fixture
def run(micropython):
    return lambda script: micropython(PRELUDE + script)


def test_registration_is_polled_as_told_and_ends_assigned(run):
    run("""
r = reg()
assert r.question(10) is None
say(r, 202, WAIT, more="&retry-after=5")
assert r.question(4999) is None
assert r.question(5000) == (
    "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId=4.a.b", b" ")
say(r, 200, done(), rid=2)
assert (r.assigned.hub, r.assigned.device_id, r.assigned.chain) == ("h.example", "press-7", None)
""")


def test_answer_that_is_late_twice_or_of_another_question_changes_nothing(run):
    run("""
r = reg()
say(r, 200, done(), rid=9)
r.answer(b"$dps/registrations/res/200/", b"")
r.answer(b"$dps/registrations/res/200/?", b"")
r.answer(b"$dps/registrations/res/x/?$rid=1", b"")
r.answer(b"$iothub/x/200/?$rid=1", b"")
r.answer(b"\\xff\\xfe?$rid=1", b"")
assert r.assigned is None and r.question(1) is None
say(r, 202, WAIT)
say(r, 202, {"operationId": "stolen"})
say(r, 200, done())
assert r.assigned is None
r.question(3000)
say(r, 200, done(assignedHub="evil.example"), rid=1)
say(r, 200, done(), rid=2)
say(r, 200, done(assignedHub="evil.example"), rid=2)
assert r.assigned.hub == "h.example"
""")


@pytest.mark.parametrize(
    ("more", "wait_ms"),
    [
        ("", 3000),
        ("&retry-after=-1", 3000),
        ("&retry-after=", 3000),
        ("&retry-after=0", 1000),
        ("&retry-after=31536000", 30000),
        ("&retry-after=99999999999999999999", 30000),
        ("&retry-after=1.5", 3000),
        ("&retry-after=abc", 3000),
    ],
)
def test_retry_after_is_kept_within_reason(run, more, wait_ms):
    run(f"""
r = reg()
say(r, 202, WAIT, more={more!r})
assert r.question({wait_ms} - 1) is None
assert r.question({wait_ms})
""")


def test_every_deadline_ends_in_a_sentence(run):
    run("""
r = reg()
try:
    r.question(20001)
except ProvisioningError as e:
    assert "did not answer within 20 s" in str(e)
else:
    raise AssertionError
r = reg()
now = 0
try:
    for rid in range(1, 100):
        say(r, 202, WAIT, rid=rid, more="&retry-after=31536000")
        now += 30000
        assert r.question(now)
except ProvisioningError as e:
    assert "assigned no hub in 180 s" in str(e), str(e)
else:
    raise AssertionError
assert now < 240000
""")


@pytest.mark.parametrize(
    "host",
    [
        "'h' * 4000",
        "'h' * 254",
        "''",
        "None",
        "5",
        "['h']",
        "'h/x'",
        "'h:8883'",
        "'h x'",
        "'h\\n'",
        "'h\\x00'",
        "'-h'",
        "'.h'",
        "'h\\u00e9'",
        "'h/devices/other?a=b&c'",
        "'h\\x1b[2J'",
    ],
)
def test_hub_that_is_no_host_name_is_refused(run, host):
    run(f"refused(reg(), 200, done(assignedHub={host}), 'no host name')")


@pytest.mark.parametrize("name", ["''", "'a b'", "'a/b'", "'x' * 129", "None", "7", "'a\\n'"])
def test_device_id_that_is_none_is_refused(run, name):
    run(f"refused(reg(), 200, done(deviceId={name}), 'no usable device id')")


def test_answer_for_another_device_or_operation_is_refused(run):
    run("""
refused(reg(), 200, done(registrationId="press-8"), "another device")
refused(reg(), 200, done(registrationId=None), "another device")
refused(reg(), 200, done(registrationId=7), "another device")
state = done()
del state["registrationState"]["registrationId"]
refused(reg(), 200, state, "another device")
r = reg()
say(r, 202, WAIT)
r.question(3000)
refused(r, 202, {"operationId": "5.c.d"}, "not ours", rid=2)
r = reg()
say(r, 202, WAIT)
r.question(3000)
state = done()
state["operationId"] = "5.c.d"
refused(r, 200, state, "another operation", rid=2)
for bad in (None, 5, "", "x" * 257, "a b", "a\\n", "\\u00e9"):
    refused(reg(), 202, {"operationId": bad}, "not ours")
""")


@pytest.mark.parametrize(
    "body", ["b''", "b'[]'", "b'{'", "b'null'", "b'\\xff\\xfe'", "b'[' * 3000", "b'5'", "b'\"x\"'"]
)
def test_body_that_is_no_json_object_is_refused(run, body):
    run(f"refused(reg(), 202, {body}, 'no JSON object')\nrefused(reg(), 400, {body}, 'no JSON')")


def test_outcomes_other_than_assigned_say_what_to_do(run):
    run("""
e = refused(reg(), 200, {"status": "disabled", "registrationState": {}}, "is disabled")
assert e.person and e.refused
e = refused(reg(), 200, {"status": "failed", "registrationState":
    {"errorCode": 400207, "errorMessage": "m" * 2000}}, "did not assign a hub (400207: mmm")
assert e.person and not e.refused
refused(reg(), 200, {"status": "assigning"}, "did not assign")
refused(reg(), 200, {"status": ["x"], "registrationState": []}, "did not assign")
e = refused(reg(), 401, {"errorCode": 401002, "message": "no"}, "status 401, 401002: no")
assert e.person and e.refused
e = refused(reg(), 404, {"errorCode": 404204}, "status 404")
assert e.person and not e.refused
for status, more, later in ((429, "&retry-after=50", 50), (503, "", 3), (500, "&retry-after=-1", 3),
                            (429, "&retry-after=31536000", 3600)):
    e = refused(reg(), status, {}, "is busy", more=more)
    assert not e.person and e.later_s == later, e.later_s
""")


@pytest.mark.parametrize(
    "issued",
    ["None", "[]", "'AAAA'", "['!!!!']", "[5]", "['MIIB']", "['A' * 4200]", "{}", "[None]"],
)
def test_issued_chain_that_is_none_is_refused(run, issued):
    run(f"refused(reg(b'csr'), 200, done(issuedCertificateChain={issued}), 'no certificate')")


def test_request_is_sent_in_base64_and_the_chain_comes_back_as_der(run):
    run("""
import binascii
r = dps.Registration("press-7", b"\\x30\\x01\\x02", now_ms=0)
assert json.loads(r.question(0)[1])["csr"] == "MAEC"
der = b"\\x30\\x82\\x01\\x00" + bytes(256)
text = binascii.b2a_base64(der).decode().strip()
say(r, 200, done(issuedCertificateChain=[text, text]))
assert r.assigned.chain == der + der
""")
