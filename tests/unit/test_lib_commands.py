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
assert "." not in generic.events_topic("a.b", "1-2", "2026-01-01T00:00:00.5Z", [("ids", "1.2")])
assert generic.incoming(b"outpost/a%2Eb/methods/x%2Ey/7", "a.b") == (METHOD, b"x.y", b"7")
g = lambda topic: generic.incoming(topic, "a/b")
assert g(b"outpost/a%2Fb/methods/m/1") == (METHOD, b"m", b"1")
assert g(b"outpost/a%2Fb/messages") == (MESSAGE, b"")
assert g(b"outpost/a%2Fb/messages/id=1") == (MESSAGE, b"id=1")
assert g(b"outpost/a%2Fb/state/desired") == (WHOLE, None)
for bad in (b"outpost/a/b/messages", b"outpost/a%2Fb/methods/m", b"outpost/a%2Fb/methods/m/1/2"):
    assert g(bad) == (None,), bad
assert generic.message(b"id=7&exp=5&x=y") == ({"id": "7", "exp": "5", "x": "y"}, b"7", 5)
""")


def test_same_body_twice_without_an_id_is_two_messages_also_while_the_first_is_at_work(run):
    run("""
c, s, t = make()
calls = []
def slow(body, properties):
    calls.append(bytes(body))
    yield 10
c.message(slow)
c.on_message({}, None, None, b"toggle", 1)
c.on_message({}, None, None, b"toggle", 2)
for _ in range(3):
    t.step()
    now += 100
assert calls == [b"toggle"] * 2 and sorted(s.acks) == [1, 2], (calls, s.acks)
# Over a new connection each of them is one that is known.
c.on_message({}, None, None, b"toggle", 3)
c.on_message({}, None, None, b"toggle", 4)
c.detach()
other = Session()
c.attach(other, iothub, "press-7")
c.on_message({}, None, None, b"toggle", 5)
c.on_message({}, None, None, b"toggle", 6)
for _ in range(3):
    t.step()
    now += 100
assert len(calls) == 4 and sorted(s.acks) == [1, 2] and sorted(other.acks) == [5, 6], calls
assert not c._underway
""")


def test_same_id_twice_on_one_connection_is_acknowledged_twice_and_done_once(run):
    run("""
c, s, t = make()
calls = []
def slow(body, properties):
    calls.append(1)
    yield 10
c.message(slow)
for pid in (1, 2, 3):
    c.on_message({}, b"a", None, b"x", pid)
c.on_message({}, None, None, b"a", 4)       # a body that is another message's id
c.on_message({}, b"a", None, b"x", None)    # once more at QoS 0
for _ in range(3):
    t.step()
    now += 100
assert len(calls) == 2 and sorted(s.acks) == [1, 2, 3, 4], (calls, s.acks)
""")


def test_flood_of_one_id_while_its_handler_works_keeps_memory_bounded(run):
    run("""
c, s, t = make()
def slow(body, properties):
    yield 10
c.message(slow)
for pid in range(1, 3000):
    c.on_message({}, b"a", None, b"x", pid)
assert sum([len(d) for many in c._underway.values() for d in many]) <= 16
""")


def test_board_that_becomes_another_device_takes_that_devices_messages(run):
    run("""
got = []
for device in ("press-7", "press-8", "press-7"):
    c, s, t = make()
    c.attach(s, iothub, device)
    c.message(lambda body, properties: got.append(1))
    c.on_message({}, b"1", None, b"x", 1)
    assert s.acks == [1]
assert len(got) == 2, got
""")


@pytest.mark.parametrize(
    "expiry",
    [
        "-9999999999",
        "99999999999",
        "-5",
        "0001-01-01T00:00:00Z",
        "1601-01-01T00:00:00Z",
        "9999-12-31T23:59:59.9999999Z",
        "2026-99-99T99:99:99Z",
        "9" * 400,
    ],
)
def test_expiry_that_is_no_time_of_this_world_neither_drops_nor_stops_anything(run, expiry):
    run(f"""
c, s, t = make()
c.now = lambda: 1795413600
got = []
c.message(lambda body, properties: got.append(1))
properties, mid, expires = iothub.message(b"$.exp={expiry}&$.mid=a")
c.on_message(properties, mid, expires, b"x", 1)
assert s.acks == [1] and got == [1], (s.acks, got, expires)
""")


def test_message_that_there_is_no_memory_for_is_left_with_the_hub_and_taken_later(run):
    run("""
from outpost import commands
c, s, t = make()
got = []
c.message(lambda body, properties: got.append(bytes(body)))
copy = commands._copy
def none(body):
    raise MemoryError
commands._copy = none
c.on_message({}, b"a", None, b"x", 1)
commands._copy = copy
assert s.acks == [] and got == []
c.detach()
c.attach(s, iothub, "press-7")
c.on_message({}, b"a", None, b"x", 2)
assert s.acks == [2] and got == [b"x"]
""")


def test_handler_that_ends_the_program_leaves_its_message_with_the_hub(run):
    run("""
for slow in (False, True):
    c, s, t = make()
    got = []
    def handler(body, properties):
        got.append(1)
        if len(got) == 1:
            raise KeyboardInterrupt
    def steps(body, properties):
        yield 0
        handler(body, properties)
    c.message(steps if slow else handler)
    mid = b"slow" if slow else b"not"
    try:
        c.on_message({}, mid, None, b"x", 1)
        t.step()
        t.step()
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError
    t.step()
    assert s.acks == [] and not len(t)
    c.detach()
    c.attach(s, iothub, "press-7")      # d.run() again, at the REPL
    c.on_message({}, mid, None, b"x", 2)
    t.step()
    t.step()
    assert s.acks == [2] and len(got) == 2, (s.acks, got)
""")


def test_message_handler_that_never_ends_gives_its_place_back(run):
    printed = run("""
c, s, t = make()
def stuck(body, properties):
    while True:
        yield 1000
c.message(stuck)
for n in range(PENDING_MAX):
    c.on_message({}, b"%d" % n, None, b"x", n + 1)
assert t.full()
for _ in range(700):
    t.step()
    now += 1000
assert not t.full() and s.acks == []
""")
    assert printed.count("was ended") == 4 and printed.count("left with the hub") == 4


@pytest.mark.parametrize("nonsense", ["None", "-5", "'x'", "1e39", "True", "[]", "1 << 70", "0.5"])
def test_generator_that_yields_nonsense_costs_only_itself(run, nonsense):
    run(f"""
c, s, t = make()
def odd(payload):
    for _ in range(3):
        yield {nonsense}
    return 7
c.method("odd", odd, 5)
c.on_method(b"odd", b"1", b"")
for _ in range(60):
    wait = t.step()
    assert isinstance(wait, int) and 0 <= wait <= 1000, wait
    now += 100
assert len(s.out) == 1 and not len(t)
""")


def test_generator_that_will_not_be_closed_is_ended_all_the_same(run):
    run("""
c, s, t = make()
def stubborn(payload):
    while True:
        try:
            yield 1
        except GeneratorExit:
            yield 2
c.method("stubborn", stubborn, 1)
c.on_method(b"stubborn", b"1", b"")
for _ in range(20):
    t.step()
    now += 100
assert s.out[0][0].startswith("$iothub/methods/res/504/") and not len(t)
""")


@pytest.mark.parametrize("timeout", ["'60'", "0", "-1", "float('nan')"])
def test_time_out_that_is_none_is_refused_where_it_is_written(run, timeout):
    run(f"""
c, s, t = make()
try:
    c.method("m", print, {timeout})
except (ValueError, TypeError):
    pass
else:
    raise AssertionError
""")


@pytest.mark.parametrize(
    "value",
    ["b'raw'", "bytearray(3)", "object()", "{1: 2}", "float('inf')", "(200, b'x')"],
)
@pytest.mark.parametrize("leg", ["outpost64", "stock32"], indirect=True)
def test_result_that_cannot_be_sent_as_json_is_a_500(run, value):
    run(f"""
c, s, t = make()
c.method("m", lambda payload: {value})
assert call(c, s, "m") == (500, {{"error": "the method's result has no JSON"}})
""")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (r"\ud83d\ude00", "\U0001f600"),
        (r"a\uD83D\uDE00\uD83D\uDE01b", "a\U0001f600\U0001f601b"),
        (r"\ud83d", "\ufffd"),
        (r"\ude00\ud83d", "\ufffd\ufffd"),
        (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (r"\\ud83d\\ude00", r"\ud83d\ude00"),
        (r"\u00e9\"\ud83dx", '\u00e9"\ufffdx'),
    ],
)
def test_character_that_is_escaped_in_two_halves_is_one(run, raw, text):
    run(f"""
from outpost.json_in import parse
value = parse({('["' + raw + '"]').encode()!r})
assert value[0].encode() == {text.encode()!r}, value[0].encode()
""")
