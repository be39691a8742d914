"""The sender: batches, repetitions, policies in RAM and flash, and the time a message was made."""

import chip
import pytest
from legs import VIRTUAL

LEGS_HERE = VIRTUAL

TABLE = [
    (1, 2, 0x9000, 0x6000, "nvs"),
    (0, 0, 0x10000, 0x1F0000, "factory"),
    (1, 0x40, 0x200000, 0x4000, "outbox"),
]

# A session over nothing: what is published stays in a list.
PRELUDE = """
import json
from outpost import log
from outpost.errors import OutboxFull
from outpost.sender import Sender, open_outbox

class Session:
    def __init__(self, pid=0):
        self.inflight, self.out, self.pid = {}, [], pid
    def publish(self, topic, body, pid=None):
        dup = pid is not None
        if not dup:
            while True:
                self.pid = self.pid % 65535 + 1
                if self.pid not in self.inflight:
                    break
            pid = self.pid
        self.inflight[pid] = 0
        self.out.append((pid, dup, topic, bytes(body)))
        return pid
    def ack(self, pid):
        self.inflight.pop(pid)
        assert s.acknowledged(pid)

def topic(name, made, more):
    return name, made, dict(more)

NOW = 800000000
def bodies(session):
    return [body for _, _, _, body in session.out]
def opened(**fields):
    s = Sender(open_outbox("outbox"))
    s._configured = True
    for name in fields:
        setattr(s, name, fields[name])
    s.outbox.full = s.full
    return s
"""


@pytest.fixture
def run(micropython, tmp_path):
    image = bytearray(b"\xff" * (4 * chip.MIB))
    table = chip.table(TABLE)
    image[0x8000 : 0x8000 + len(table)] = table
    flash = tmp_path / "flash.bin"
    flash.write_bytes(image)
    return lambda script: micropython(PRELUDE + script, "--flash", str(flash))


def test_small_messages_go_as_one_array_and_all_are_released_by_its_acknowledgement(run):
    run("""
s = opened(batch=60)
for n in range(5):
    s.accept(json.dumps({"n": n, "t": 20}).encode(), True, NOW + 10 * n, is_json=True)
s.accept(b"not json", True, NOW)
session = Session()
s.attach(session)
s.pump(session, topic, NOW)
assert [json.loads(b) for b in bodies(session)[:2]] == [
    [{"n": 0, "t": 20}, {"n": 1, "t": 20}, {"n": 2, "t": 20}],
    [{"n": 3, "t": 20}, {"n": 4, "t": 20}]], bodies(session)
assert bodies(session)[2] == b"not json"
assert session.out[0][2] == ("1-3", NOW, {"ids": "1.2.3", "times": "0.10.20"})
assert session.out[2][2] == ("6", NOW, {})
assert s.sent == 6 and len(s) == 6
session.ack(2)
assert len(s) == 4 and s.acked == 2
assert open_outbox("outbox").read()[0] == 1         # no record went with another's PUBACK
session.ack(1)
session.ack(3)
assert len(open_outbox("outbox")) == 0 and s.acked == 6
""")


def test_array_of_one_message_is_that_message(run):
    run("""
s = opened(batch=1000)
s.accept(b"21", True, NOW, is_json=True)
session = Session()
s.pump(session, topic, NOW)
assert bodies(session) == [b"21"] and session.out[0][2] == ("1", NOW, {})
""")


def test_batch_goes_again_as_it_was_flagged_as_a_duplicate(run):
    run("""
s = opened(batch=100)
for n in range(3):
    s.accept(b"%d" % n, True, NOW, is_json=True)
first = Session(65530)
s.attach(first)
s.pump(first, topic, NOW)
for n in range(3, 6):                       # would fit into the same array
    s.accept(b"%d" % n, True, NOW, is_json=True)
again = Session()
s.attach(again)
assert list(again.inflight) == [65531]
s.pump(again, topic, NOW)
assert again.out[0][:2] == (65531, True) and again.out[0][3] == b"[0,1,2]"
assert again.out[1][1] is False and again.out[1][3] == b"[3,4,5]"
assert s.sent == 6
""")


def test_message_dropped_while_in_flight_is_waited_for_no_longer(run):
    run("""
s = opened(full=1)
for n in range(8):
    s.accept(bytes(500), True, NOW)
first = Session()
s.attach(first)
s.pump(first, topic, NOW)
while not s.dropped():
    s.accept(bytes(500), True, NOW)
again = Session(100)
s.attach(again)
s.pump(again, topic, NOW)
gone = s.dropped()
flying = sorted(s._flying)
assert sorted(again.inflight) == flying and len(flying) == 8, (flying, again.inflight)
assert [dup for _, dup, _, _ in again.out].count(True) == 8 - gone
assert again.out[-1][2][2]["dropped"] == str(gone)
before = len(s)
for pid in flying:
    again.ack(pid)
assert len(s) == before - 8
""")


def test_sender_counts_what_became_of_the_messages(run):
    run("""
s = opened(limit=2)
for n in range(2):
    s.accept(b"x", False)
try:
    s.accept(b"x", False)
except OutboxFull:
    pass
taken = 0
try:
    while True:
        s.accept(bytes(1000), True, NOW)
        taken += 1
except OutboxFull:
    pass
session = Session()
s.pump(session, topic, NOW)
session.ack(1)
assert s.counts() == {"waiting": taken + 1, "sent": 8, "acked": 1, "refused": 2,
                      "dropped": 0, "damaged": 0}, s.counts()
""")


@pytest.mark.parametrize(
    ("full", "priority", "left"),
    [(0, 3, None), (1, 0, "bcz"), (2, 0, None), (2, 1, "acz"), (2, 3, "acz")],
)
def test_policy_holds_for_messages_in_ram_as_well(run, full, priority, left):
    run(f"""
s = opened(limit=3, full={full})
for name, p in ((b"a", 2), (b"b", 1), (b"c", 2)):
    s.accept(name, False, priority=p)
try:
    s.accept(b"z", False, priority={priority})
    assert "".join(b.decode() for _, b, _ in s._ram) == {left!r}, s._ram
    assert s.counts()["dropped"] == 1
except OutboxFull:
    assert {left!r} is None and s.counts()["refused"] == 1
""")


def test_message_made_before_the_clock_was_set_is_dated_in_the_same_start(run):
    run("""
s = opened()
s.accept(b"early", True)
up = log.uptime_ms() // 1000
session = Session()
s.pump(session, topic, NOW)
assert abs(session.out[0][2][1] - NOW) <= 1
""")


def test_message_of_an_earlier_start_is_dated_if_its_start_learnt_the_time(run):
    run("""
import esp32
s = opened()
s.accept(b"early", True)                  # start 1: no clock, then one
s.accept(b"later", True, NOW)             # known now: start 1 is dated
s = opened()
s.accept(b"never", True)                  # start 2 never learns it
s = opened()
session = Session()
s.pump(session, topic, NOW + 5000)
found = {body: name for _, _, name, body in session.out}
assert abs(found[b"early"][1] - NOW) <= 1 and found[b"early"][2] == {}
assert found[b"later"][1] == NOW
assert found[b"never"][1] is None and found[b"never"][2]["boot"] == "2", found
assert int(found[b"never"][2]["uptime"]) < 100
""")


def test_start_with_a_clock_writes_nothing_about_time(run):
    run("""
import esp32
from outpost import agreed
s = opened()
s.accept(b"x", True, NOW)
s.pump(Session(), topic, NOW)
nvs = esp32.NVS(agreed.NVS_NAMESPACE)
for call in (lambda: nvs.get_i32("boot"), lambda: nvs.get_blob("moments", bytearray(64))):
    try:
        call()
    except OSError:
        continue
    raise AssertionError
""")


def test_full_nvs_costs_a_date_and_no_message(run):
    run("""
import esp32
nvs = esp32.NVS("other")
n = 0
try:
    while True:
        nvs.set_i32("k%d" % n, n)
        n += 1
except OSError:
    pass
s = opened()
s.accept(b"early", True)
session = Session()
s.pump(session, topic, NOW)
assert bodies(session) == [b"early"] and abs(session.out[0][2][1] - NOW) <= 1
""")


@pytest.mark.parametrize("priority", ["4", "-1", "True", "None", "'high'", "1.5"])
def test_priority_that_is_none_is_refused(run, priority):
    run(f"""
s = opened()
try:
    s.accept(b"x", True, NOW, priority={priority})
except ValueError as e:
    assert "0, 1, 2 or 3" in str(e)
else:
    raise AssertionError
assert len(s) == 0
""")


def test_policy_of_the_configuration_holds_before_the_first_connection(run):
    run("""
from outpost import sender
class config:
    @staticmethod
    def load():
        class c:
            queue, batch, full, protect = 32, 0, 1, False
        return c
sender.config = config
s = Sender(open_outbox("outbox"))
for n in range(40):
    s.accept(bytes(1000), True, NOW)
assert s.dropped() > 20 and s.counts()["refused"] == 0, s.counts()
""")
