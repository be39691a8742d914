"""Methods and messages against a scripted connection: answered once, had once, known again."""

import pytest

PRELUDE = """
import json, sys
from outpost import generic, iothub, log
from outpost.commands import Commands
from outpost.errors import OutpostError
from outpost.tasks import PENDING_MAX, Tasks
from outpost import seen

now = 1000
log.uptime_ms = lambda: now

class Session:
    def __init__(self):
        self.out = []
        self.acks = []
    def publish(self, topic, body, qos=1):
        self.out.append((topic, body))
    def puback(self, pid):
        self.acks.append(pid)

class Flash:
    "NVS with one blob in it; counts what is written."
    blob = None
    writes = 0
    def __init__(self, namespace):
        pass
    def get_blob(self, name, buffer):
        if Flash.blob is None:
            raise OSError(-0x1102)
        buffer[: len(Flash.blob)] = Flash.blob
        return len(Flash.blob)
    def set_blob(self, name, blob):
        if Flash.writes is None:
            raise OSError(-0x1105)
        assert len(blob) <= 128
        Flash.blob = bytes(blob)
        Flash.writes += 1
    def commit(self):
        pass
seen.Seen._nvs = lambda self: Flash("outpost")

def make():
    t = Tasks()
    c = Commands(t)
    s = Session()
    c.attach(s, iothub, "press-7")
    return c, s, t

def call(c, s, name, body=b"", rid=b"1"):
    c.on_method(name.encode(), rid, body)
    topic, body = s.out.pop()
    return int(topic.split("/")[3]), json.loads(body)
"""


@pytest.fixture
def run(micropython):
    # The modules of a board come first on its path; the release's stand-ins are files.
    return lambda script: micropython(PRELUDE + script)


LEGS_HERE = ("outpost64", "outpost32", "stock32")


def test_answer_has_the_status_and_the_request_id_of_its_call(run):
    run("""
c, s, t = make()
c.method("m", lambda payload: payload)
c.on_method(b"m", b"a1-z", b'{"x": [1, null]}')
assert s.out == [("$iothub/methods/res/200/?$rid=a1-z", b'{"x": [1, null]}')], s.out
s.out.clear()
values = (((404, 1), 404), ((99, 1), 200), ((True, 1), 200), ((200,), 200), ([200, 2], 200))
for value, status in values:
    c.method("v", lambda payload, value=value: value)
    assert call(c, s, "v")[0] == status, value
c.method("m", None)
assert call(c, s, "m")[0] == 404
""")


@pytest.mark.parametrize("name", ["''", "None", "7", "'x' * 129"])
def test_name_that_is_none_is_refused_where_it_is_written(run, name):
    run(f"""
c, s, t = make()
try:
    c.method({name}, print)
except ValueError:
    pass
else:
    raise AssertionError
""")


def test_library_keeps_its_names_for_itself(run):
    run("""
from outpost import Device
d = Device()
try:
    d.method("outpost.rotate")
except ValueError as e:
    assert "library's own" in str(e)
else:
    raise AssertionError
d.commands.method("outpost.rotate", lambda payload: 1)
""")


def test_answer_never_goes_to_another_connection(run):
    run("""
c, s, t = make()
def slow(payload):
    yield 10
    return 1
c.method("slow", slow)
c.on_method(b"slow", b"7", b"")
t.step()
c.detach()
other = Session()
c.attach(other, iothub, "press-7")
now += 1000
t.step()
assert not s.out and not other.out and not len(t)
""")


def test_handler_that_is_not_through_in_time_is_ended_and_the_caller_told(run):
    run("""
c, s, t = make()
ended = []
def slow(payload):
    try:
        while True:
            yield 10
    finally:
        ended.append(1)
c.method("slow", slow, 5)
c.on_method(b"slow", b"7", b"")
for _ in range(30):
    t.step()
    now += 200
assert ended and s.out[0][0] == "$iothub/methods/res/504/?$rid=7", s.out
""")


def test_message_is_had_once_over_a_reset_and_acknowledged_each_time(run):
    run("""
got = []
for life in range(2):
    c, s, t = make()
    c.message(lambda body, properties: got.append(bytes(body)))
    for pid, mid in ((1, b"a"), (2, b"b"), (3, b"a")):
        c.on_message({}, mid, None, mid, pid)
    assert s.acks == [1, 2, 3], s.acks
assert got == [b"a", b"b"] and Flash.writes == 2, (got, Flash.writes)
""")


def test_flash_keeps_sixteen_ids_and_no_more(run):
    run("""
got = []
c, s, t = make()
c.message(lambda body, properties: got.append(bytes(body)))
for n in range(40):
    c.on_message({}, b"%d" % n, None, b"%d" % n, n + 1)
assert len(Flash.blob) == 128 and Flash.writes == 40
del got[:]
c, s, t = make()
c.message(lambda body, properties: got.append(bytes(body)))
for n in list(range(24, 40)) + [23]:
    c.on_message({}, b"%d" % n, None, b"%d" % n, n + 1)
assert got == [b"23"], got
""")


@pytest.mark.parametrize("blob", ["b''", "b'x' * 7", "b'x' * 13", "bytes(128)", "b'\\xff' * 128"])
def test_damaged_list_of_ids_costs_nothing(run, blob):
    run(f"""
Flash.blob = {blob}
got = []
c, s, t = make()
c.message(lambda body, properties: got.append(1))
c.on_message({{}}, b"a", None, b"", 1)
c.on_message({{}}, b"a", None, b"", 2)
assert got == [1] and s.acks == [1, 2]
""")


def test_full_flash_does_not_keep_a_message_from_being_acknowledged(run):
    printed = run("""
Flash.writes = None
got = []
c, s, t = make()
c.message(lambda body, properties: got.append(1))
c.on_message({}, b"a", None, b"", 1)
c.on_message({}, b"a", None, b"", 2)
assert got == [1] and s.acks == [1, 2]
""")
    assert "could not be kept in NVS" in printed


def test_message_redelivered_while_its_handler_works_is_acknowledged_on_the_new_connection(run):
    run("""
c, s, t = make()
calls = []
def slow(body, properties):
    calls.append(1)
    yield 10
c.message(slow)
c.on_message({}, b"a", None, b"x", 5)
c.on_message({}, None, None, b"no id", 6)
c.detach()
other = Session()
c.attach(other, iothub, "press-7")
c.on_message({}, b"a", None, b"x", 9)
t.step()
now += 1000
t.step()
assert calls == [1, 1] and s.acks == [] and other.acks == [9], (calls, s.acks, other.acks)
""")


def test_message_whose_time_is_over_is_dropped_and_one_nobody_can_judge_is_not(run):
    run("""
c, s, t = make()
got = []
c.message(lambda body, properties: got.append(bytes(body)))
c.on_message({}, b"a", 100, b"a", 1)            # no clock at all
c.now = lambda: None
c.on_message({}, b"b", 100, b"b", 2)
c.now = lambda: 100
c.on_message({}, b"c", 100, b"c", 3)
c.now = lambda: 101
c.on_message({}, b"d", 100, b"d", 4)
assert got == [b"a", b"b", b"c"] and s.acks == [1, 2, 3, 4]
""")


def test_names_in_topics_are_read_as_they_were_written(run):
    run("""
from outpost import bag
from outpost.profile import *
read = bag.parse(b"a=1&b%26%3d=%c3%a9%&&c&%zz=%4")
assert read == {"a": "1", "b&=": "\\u00e9%", "c": "", "%zz": "%4"}, read
assert bag.unquote(b"%ff") == "?"
unix = 1795413600
for text in ("2026-11-23T06:00:00.0000000Z", "2026-11-23T06:00:00Z", "1795413600"):
    assert bag.unix(text) == unix, text
for bad in ("", "x", "2026-11-23", "2026-11-23T06:00:00+02:00", "Monday the 23rd", "2026-11-23T0x"):
    assert bag.unix(bad) is None, bad
i = lambda topic: iothub.incoming(topic, "press-7")
assert i(b"$iothub/methods/POST/a/b/?$rid=1") == (METHOD, b"a/b", b"1")
assert i(b"$iothub/methods/POST/a") == (None,)
assert i(b"devices/press-7/messages/devicebound/x=1") == (MESSAGE, b"x=1")
assert i(b"devices/press-8/messages/devicebound/x=1") == (None,)
assert i(b"$iothub/twin/res/200/?$rid=g1&$version=3") == (ANSWER, 200, "g1")
assert i(b"$iothub/twin/PATCH/properties/desired/?$version=7") == (DESIRED, 7)
assert i(b"$iothub/twin/PATCH/properties/desired/") == (DESIRED, None)
g = lambda topic: generic.incoming(topic, "a/b")
assert g(b"outpost/a%2Fb/methods/m/1") == (METHOD, b"m", b"1")
assert g(b"outpost/a%2Fb/messages") == (MESSAGE, b"")
assert g(b"outpost/a%2Fb/messages/id=1") == (MESSAGE, b"id=1")
assert g(b"outpost/a%2Fb/state/desired") == (WHOLE, None)
for bad in (b"outpost/a/b/messages", b"outpost/a%2Fb/methods/m", b"outpost/a%2Fb/methods/m/1/2"):
    assert g(bad) == (None,), bad
assert generic.message(b"id=7&exp=5&x=y") == ({"id": "7", "exp": "5", "x": "y"}, b"7", 5)
""")
