"""The twin against a scripted hub: order, gaps, doubles, and only what changed goes back."""

import pytest
from legs import OURS

PRELUDE = """
import json
from outpost import iothub, log
from outpost.tasks import Tasks
from outpost.twin import Twin
from outpost.errors import OutpostError

now = 1000
log.uptime_ms = lambda: now

class Session:
    def __init__(self):
        self.out = []
    def publish(self, topic, body, qos=1):
        self.out.append((topic, body))
        return len(self.out)
    def take(self):
        out, self.out = self.out, []
        return out

def later(ms):
    global now
    now += ms

def make(*names, start=True):
    global seen
    seen = []
    t = Twin(Tasks())
    for name in names:
        t.desired(name, lambda value, name=name: seen.append((name, value)))
    s = Session()
    t.attach(s, iothub, "press-7")
    if start:
        t.start()
    return t, s

def answer(t, s, desired, reported={}):
    t.service()
    topic, body = s.take()[-1]
    assert topic.startswith("$iothub/twin/GET/?$rid="), topic
    twin = json.dumps({"desired": desired, "reported": reported})
    t.on_answer(200, topic.split("=")[1], twin.encode())

def patch(t, **k):
    version = k.pop("v")
    t.on_patch(version, json.dumps(dict(k, **{"$version": version})).encode())

def reports(t, s, status=204):
    "What is reported, merged, each acknowledged with `status`."
    found = {}
    for _ in range(9):
        t.service()
        for topic, body in s.take():
            if "PATCH" in topic:
                found.update(json.loads(body))
                t.on_answer(status, topic.split("=")[1], b"")
    return found
"""


@pytest.fixture
def run(micropython):
    return lambda script: micropython(PRELUDE + script)


def test_desired_is_asked_for_whole_and_then_followed_change_by_change(run):
    run("""
t, s = make("a", "b")
answer(t, s, {"a": 1, "other": 9, "$version": 4})
assert seen == [("a", 1)], seen
patch(t, v=5, b=2)
patch(t, v=6, a=None)
patch(t, v=6, a=7)          # twice
patch(t, v=2, a=8)          # late
assert seen == [("a", 1), ("b", 2), ("a", None)] and t.version == 6, seen
assert reports(t, s) == {"a": None, "b": {"value": 2, "ac": 200, "av": 5}}
""")


def test_missed_change_is_fetched_and_applied_once(run):
    run("""
t, s = make("a", "b")
answer(t, s, {"a": 1, "b": 1, "$version": 4})
del seen[:]
patch(t, v=6, a=3)
assert seen == []
later(1000)
answer(t, s, {"a": 3, "b": 2, "$version": 6})
assert sorted(seen) == [("a", 3), ("b", 2)], seen
patch(t, v=7, b=5)
assert seen[-1] == ("b", 5)
""")


def test_change_that_overtakes_the_whole_is_not_lost(run):
    run("""
t, s = make("a")
t.service()
patch(t, v=5, a=5)
topic, _ = s.take()[0]
t.on_answer(200, topic.split("=")[1], b'{"desired": {"a": 4, "$version": 4}, "reported": {}}')
assert seen == [("a", 4)]
later(1000)
answer(t, s, {"a": 5, "$version": 5})
assert seen == [("a", 4), ("a", 5)]
""")


def test_steady_flood_of_changes_with_gaps_does_not_put_the_question_off(run):
    run("""
t, s = make("a")
answer(t, s, {"$version": 1})
for n in range(10, 200, 2):
    patch(t, v=n, a=n)
    later(100)
    t.service()
asked = [topic for topic, _ in s.take() if "GET" in topic]
assert len(asked) == 1, asked       # and one at a time, until it is answered
""")


def test_reconnection_applies_what_was_missed_and_nothing_twice(run):
    run("""
t, s = make("a", "b", "c")
answer(t, s, {"a": 1, "b": 2, "c": {"x": 1}, "$version": 4})
reports(t, s)
del seen[:]
t.detach()
s = Session()
t.attach(s, iothub, "press-7")
t.start()
answer(t, s, {"a": 1, "c": {"x": 2}, "$version": 9}, {"a": {"value": 1, "ac": 200, "av": 4}})
assert sorted(seen, key=lambda x: x[0]) == [("b", None), ("c", {"x": 2})], seen
""")


def test_objects_are_merged_and_the_handler_gets_the_whole(run):
    run("""
t, s = make("a")
answer(t, s, {"a": {"x": 1, "y": {"p": 1}}, "$version": 1})
patch(t, v=2, a={"y": {"q": 2}, "x": None})
assert seen[-1] == ("a", {"y": {"p": 1, "q": 2}}), seen
""")


def test_handler_that_raises_is_acknowledged_as_failed_without_its_words(run):
    run("""
t, s = make(start=False)
def a(value):
    raise ValueError("hunter2")
def b(value):
    raise OutpostError("the valve is stuck")
def c(value):
    return value * 2
for f in (a, b, c):
    t.desired(f.__name__, f)
t.start()
answer(t, s, {"a": 1, "b": 1, "c": 4, "$version": 3})
assert reports(t, s) == {
    "a": {"value": 1, "ac": 500, "av": 3, "ad": "ValueError"},
    "b": {"value": 1, "ac": 500, "av": 3, "ad": "the valve is stuck"},
    "c": {"value": 8, "ac": 200, "av": 3},
}
""")


def test_slow_handler_gets_the_newest_value_next_and_skips_those_between(run):
    run("""
t, s = make(start=False)
got = []
def a(value):
    got.append(value)
    yield 100
    return None
t.desired("a", a)
t.start()
answer(t, s, {"a": 1, "$version": 1})
for n in range(2, 6):
    patch(t, v=n, a=n)
assert got == []
for _ in range(6):
    t._tasks.step()
    later(200)
assert got == [1, 5], got
assert reports(t, s)["a"] == {"value": 5, "ac": 200, "av": 5}
""")


@pytest.mark.parametrize(
    "body",
    [
        "b''",
        "b'[]'",
        "b'7'",
        "b'null'",
        "b'{'",
        "b'\\xff'",
        'b\'{"a": "\\xff"}\'',
        "b'[' * 1500",
        "b'{\"a\":' * 600",
        "b'{\"desired\": 7}'",
        'b\'{"desired": {"$version": "x"}}\'',
        'b\'{"desired": {"$version": -1, "a": 1}, "reported": []}\'',
        'b\'{"desired": {"$version": true}}\'',
    ],
)
def test_twin_that_is_nonsense_or_a_bomb_is_borne(run, body):
    run(f"""
t, s = make("a")
body = {body}
t.service()
rid = s.take()[0][0].split("=")[1]
t.on_answer(200, rid, body)
t.on_patch(None, body)
t.on_patch(3, body)
t.detach()
t.attach(s, iothub, "press-7")
t.start()
answer(t, s, {{"a": 7, "$version": 12}})
assert seen[-1] == ("a", 7)
""")


# stock32 has compiled the library into its heap, and no pieces of that size are left.
@pytest.mark.parametrize("leg", OURS, indirect=True)
@pytest.mark.parametrize("body", ["b'[' * 4000", """b'{"$version": ' + b'9' * 3000 + b'}'"""])
def test_bomb_as_long_as_a_packet_is_borne(run, body):
    run(f"""
t, s = make("a")
t.service()
t.on_answer(200, s.take()[0][0].split("=")[1], {body})
t.on_patch(None, {body})
assert seen == [] and t.version is None, seen
patch(t, v=5, a=5)
assert seen == [("a", 5)], seen
""")


def test_answers_to_nobody_change_nothing(run):
    run("""
t, s = make("a")
t.report({"x": 1})
t.service()
good = s.take()[0][0].split("=")[1]
for rid in ("", "g0", "g99", "r1", "r0", "%", good + "x", "g", None):
    t.on_answer(200, rid, b'{"desired": {"a": 666, "$version": 1}, "reported": {}}')
    t.on_answer(204, rid, b"")
assert seen == []
t.on_answer(200, good, b'{"desired": {"a": 1, "$version": 1}, "reported": {}}')
t.on_answer(200, good, b'{"desired": {"a": 2, "$version": 2}, "reported": {}}')   # twice
assert seen == [("a", 1)]
""")


@pytest.mark.parametrize("status", ["429", "503", "500", "None"])
def test_busy_hub_is_asked_again_later(run, status):
    run(f"""
t, s = make("a")
t.service()
t.on_answer({status}, s.take()[0][0].split("=")[1], b"")
assert not s.take()
later(12000)
answer(t, s, {{"a": 1, "$version": 1}})
assert len(seen) == 1
reports(t, s)
t.report({{"x": 1}})
assert reports(t, s, {status}) == {{"x": 1}}
t.service()
assert not s.take()
later(12000)
assert reports(t, s) == {{"x": 1}}
assert reports(t, s) == {{}}
""")


def test_answer_that_never_comes_is_asked_for_again(run):
    run("""
t, s = make("a")
t.service()
s.take()
later(30000)
t.service()
later(12000)
answer(t, s, {"a": 1, "$version": 1})
assert seen == [("a", 1)]
""")


def test_only_what_changed_is_reported(run):
    run("""
t, s = make()
t.report({"a": 1, "b": {"x": 1, "y": 2}, "gone": None})
t.start()
answer(t, s, {"$version": 1}, {"a": 1, "b": {"x": 1}, "$version": 8})
assert reports(t, s) == {"b": {"y": 2}}
t.report({"a": 1, "b": {"x": 1, "y": 2}})
assert reports(t, s) == {}
t.report({"a": 1.0})
t.report({"b": {"y": None}})
assert reports(t, s) == {"a": 1.0, "b": {"y": None}}
t.report({"a": 5})
t.report({"a": 1.0})
assert reports(t, s) == {"a": 1.0}      # sent or not: what counts is where it ends
t.report({"a": None})
assert reports(t, s) == {"a": None}
""")


def test_report_under_way_when_the_connection_breaks_goes_again_with_what_came_since(run):
    run("""
t, s = make()
t.report({"a": 1, "b": 1})
t.start()
answer(t, s, {"$version": 1})
t.service()
assert json.loads(s.take()[0][1]) == {"a": 1, "b": 1}
t.report({"b": 2})
t.service()
assert not s.take()                     # one at a time
t.detach()
t.report({"c": 3})
s = Session()
t.attach(s, iothub, "press-7")
t.start()
answer(t, s, {"$version": 1}, {"a": 1, "b": 1})
assert reports(t, s) == {"b": 2, "c": 3}
""")


def test_twin_that_was_made_anew_gets_everything_again(run):
    run("""
t, s = make()
t.report({"a": 1, "b": {"x": 1}})
t.start()
answer(t, s, {"$version": 1})
reports(t, s)
t.detach()
s = Session()
t.attach(s, iothub, "press-7")
t.start()
answer(t, s, {"$version": 1}, {"b": {}})
assert reports(t, s) == {"a": 1, "b": {"x": 1}}
""")


def test_refused_report_is_dropped_and_the_next_one_goes(run):
    printed = run("""
t, s = make()
t.report({"a b": 1})
t.start()
answer(t, s, {"$version": 1})
assert reports(t, s, 400) == {"a b": 1}
t.report({"c": 1})
assert reports(t, s) == {"c": 1}
""")
    assert "refused a report (400)" in printed


# A heap of 64 KiB has no room for that much.
@pytest.mark.parametrize("leg", ["outpost64"], indirect=True)
def test_reported_is_never_above_32_kb(run):
    run("""
t, s = make()
for n in range(7):
    t.report({"p%d" % n: "x" * 4096})
long = {"p9": "x" * 4096}
for bad in (long, {"p9": "\\u00e9" * 2100}, {"n": float("nan")}, {1: 2}, [1], None, 7):
    try:
        t.report(bad)
    except ValueError:
        pass
    else:
        raise AssertionError(bad)
t.report({"p0": None, "p1": None})
t.report({"p9": "x" * 4096})
""")


@pytest.mark.parametrize(
    "body",
    [
        "b'[' * 50",
        "json.dumps({'desired': {'a': 1, '$version': 4}, 'x': [0] * 600}).encode()",
        "b'null'",
        "b'{\"desired\": null}'",
    ],
)
def test_whole_that_cannot_be_read_does_not_keep_changes_away(run, body):
    run(f"""
t, s = make("a")
t.service()
t.on_answer(200, s.take()[0][0].split("=")[1], {body})
patch(t, v=5, a=5)
patch(t, v=6, a=6)
assert seen == [("a", 5), ("a", 6)], seen
""")


def test_change_that_is_too_long_to_be_taken_is_asked_for_as_the_whole(run):
    run("""
t, s = make("a")
answer(t, s, {"a": 1, "$version": 1})
t.too_long(False)
later(1000)
answer(t, s, {"a": 2, "$version": 2})
assert seen == [("a", 1), ("a", 2)], seen
""")


@pytest.mark.parametrize("leg", OURS, indirect=True)
def test_object_that_grew_too_large_is_not_put_together_of_old_parts_later(run):
    run("""
t, s = make("a")
answer(t, s, {"a": {"x": "1" * 2100}, "$version": 1})
reports(t, s)
patch(t, v=2, a={"y": "2" * 2100})
assert len(seen) == 1
patch(t, v=3, a={"x": None})
assert len(seen) == 1, "put together of what it was before"
later(1000)
answer(t, s, {"a": {"y": "2" * 2100}, "$version": 3})
assert seen[-1] == ("a", {"y": "2" * 2100})
""")


@pytest.mark.parametrize(
    ("first", "then"),
    [("1", "True"), ("1", "1.0"), ("[1]", "[True]"), ("{'x': 0}", "{'x': False}")],
)
def test_values_that_are_equal_and_not_the_same_reach_the_handler(run, first, then):
    run(f"""
t, s = make("a")
answer(t, s, {{"a": {first}, "$version": 1}})
patch(t, v=2, a={then})
assert [repr(value) for _, value in seen] == [repr({first}), repr({then})], seen
patch(t, v=3, a={then})
assert len(seen) == 2
""")


def test_handler_that_registers_others_while_a_change_is_applied_misses_none(run):
    run("""
t, s = make("a", "b", "c", "d")
def more(value):
    for n in range(20):
        t.desired("n%d" % n, print)
for name in ("a", "b", "c", "d"):
    t.desired(name, lambda value, name=name: (seen.append((name, value)), more(value))[1])
answer(t, s, {"$version": 1})
patch(t, v=2, a=1, b=1, c=1, d=1)
assert sorted(seen) == [(n, 1) for n in "abcd"], seen
""")


def test_hub_that_was_restored_from_a_backup_is_followed_from_the_next_connection_on(run):
    run("""
t, s = make("a")
answer(t, s, {"a": 1, "$version": 90})
t.detach()
t.attach(s, iothub, "press-7")
t.start()
answer(t, s, {"a": 0, "$version": 7})
patch(t, v=8, a=2)
assert seen == [("a", 1), ("a", 0), ("a", 2)], seen
""")


def test_desired_handler_that_never_ends_gives_its_place_back_and_says_504(run):
    run("""
t, s = make(start=False)
def a(value):
    while True:
        yield 1000
t.desired("a", a)
t.start()
answer(t, s, {"a": 1, "$version": 3})
for _ in range(700):
    t._tasks.step()
    later(1000)
assert not len(t._tasks)
found = reports(t, s)["a"]
assert (found["ac"], found["av"]) == (504, 3) and "600 s" in found["ad"], found
""")


def test_handler_that_came_late_gets_its_value_on_a_broker_that_keeps_the_whole(run):
    run("""
from outpost import generic
t, s = make("a")
t.detach()
t.attach(s, generic, "press-7")
t.start()
t.on_whole(b'{"a": 1, "b": 2, "$version": 5}')
assert not t.unheard
t.desired("b", lambda value: seen.append(("b", value)))
assert t.unheard                         # Incoming subscribes again
t.on_whole(b'{"a": 1, "b": 2, "$version": 5}')
assert seen == [("a", 1), ("b", 2)], seen
""")


def test_property_that_the_hub_refuses_does_not_take_the_others_with_it(run):
    printed = run("""
t, s = make()
t.report({"a b": 1, "c": 2, "d": {"e": 1}})
t.start()
answer(t, s, {"$version": 1})
had = {}
for _ in range(20):
    t.service()
    for topic, body in s.take():
        new = json.loads(body)
        if "a b" in new:
            t.on_answer(400, topic.split("=")[1], b"")
        else:
            had.update(new)
            t.on_answer(204, topic.split("=")[1], b"")
    if had:
        t.report({"f": 1})
assert had == {"c": 2, "d": {"e": 1}, "f": 1}, had
assert not t.reported._waiting and not t.reported._singly
""")
    assert printed.count("refused") == 2 and "of a b: dropped" in printed


def test_late_answer_of_an_earlier_report_does_not_answer_this_one(run):
    run("""
t, s = make()
t.report({"a": 1})
t.start()
answer(t, s, {"$version": 1})
t.service()
first = s.take()[0][0].split("=")[1]
later(30000)
t.service()
second = s.take()[0][0].split("=")[1]
assert first != second
t.on_answer(400, first, b"")
assert t.reported._flying == {"a": 1}
t.on_answer(204, second, b"")
assert not t.reported._flying and not t.reported._waiting
""")
