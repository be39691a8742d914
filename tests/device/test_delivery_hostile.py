"""What a hub can do to a board with files, when it means no good: the real modules of the device on
a whole board, called as the loop calls them, without a hub in between."""

from __future__ import annotations

import bundles
import pytest

LEGS_HERE = ("outpost32", "stock32")

HEAD = """
import binascii, gc, hashlib, json, machine, os, sys
from outpost import delivery, log, orders, pieces, plan, pull, rtcmem, staging
from outpost.errors import DeliveryError

delivery.retry_s = (30, 3600)
PIECE = binascii.b2a_base64(bytes(1024)).decode().strip()

def sha(data):
    return binascii.hexlify(hashlib.sha256(data).digest()).decode()

class Incoming:
    # The hub's side of a Delivery: commands and tasks are itself.
    def __init__(self):
        self.commands = self.tasks = self
        self.told = []
    def method(self, name, handler, raw):
        pass
    def follow(self, wishes):
        pass
    def tell(self, patch):
        self.told.append(json.loads(json.dumps(patch["outpost"]["delivery"])))
    def call(self, handler, args, done):
        done(0, handler(*args))

incoming = Incoming()
d = delivery.opened(incoming)
clock = [0]
log.uptime_ms = lambda: clock[0]

def kind(name="parcel", most=8192, begin=lambda size, sha256, args: None,
         handler=lambda path: (200, None), stage=None):
    delivery.register(name, most, begin, handler, stage)
    return delivery._kinds[name]

def call(op, **more):
    data = more.pop("data", None)
    body = json.dumps(dict(more, kind=more.get("kind", "parcel"), op=op))
    if data is not None:
        body = body[:-1] + ', "data":"%s"}' % data
    answer = d.deliver(bytearray(body.encode()))
    return answer

def order(data, url="https://files.example/f.bin", version=5):
    return {"version": version, "url": url, "size": len(data), "sha256": sha(data)}

def look(wish):
    # One turn of the loop: the Pull that there is then.
    d.desired(wish)
    d.due()
    return d._pull

def fails():
    # What was to be fetched cannot be.
    d._pull.close()
    d._pull._failed("it is away")
"""

END = """
print("THE END")
"""


@pytest.fixture
def board(world):
    def run(script: str):
        bundle = bundles.data(roots=world.ca.roots_der(), hosts=("files.example",))
        files = {"/main.py": (HEAD + script + END).encode(), "/trust/factory.bin": bundle}
        board = world.board(world.image(1, "127.0.0.1:9", files=files), restarts=True)
        board.wait_for("THE END|Traceback", 30)
        board.stop()
        assert "Traceback" not in board.text, board.text
        return [line.text[5:] for line in board.lines if line.text.startswith("SAID")]

    return run


def test_pieces_of_one_byte_wear_no_more_than_long_ones(board):
    said = board(
        """
kind()
call("begin", size=8192, sha256="0" * 64)
n = 0
while call("write", sha256="0" * 64, at=n, data="AA==")[0] == 200:
    n += 1
print("SAID", n)
"""
    )
    assert 56 <= int(said[0]) <= 64, "each makes littlefs erase a block"


def test_restarts_give_nothing_of_what_may_be_written(board):
    said = board(
        """
kind()
count = rtcmem.get(9) or bytes(1)
name = "%064d" % count[0]
for n in range(20 if not count[0] else 99):
    if call("begin", size=8192, sha256=name)[0] == 429:
        break
    if call("write", sha256=name, at=0, data=PIECE)[0] == 429:
        break
    call("abort")
print("SAID", n)
if count[0] < 3:
    rtcmem.put(9, bytes([count[0] + 1]))
    machine.reset()
"""
    )
    assert said[0] == "19" and said[2:] == ["0", "0"]
    # 1,024 for each piece and 512 for each beginning, of 65,536
    assert 36 <= sum(map(int, said)) <= 43


def test_beginning_that_writes_before_it_is_judged_counts_for_what_it_writes(board):
    said = board(
        """
written = []
def begin(size, sha256, args):
    written.append(1)
    return 409, {"error": "nobody has signed that"}
kind("parcel", 65536, begin, stage=staging.Staging)
while call("begin", size=100, sha256="0" * 64)[0] != 429:
    pass
print("SAID", len(written))
for n in range(100):
    # Nor by a wish that is another each time.
    clock[0] += 31000
    look({"parcel": order(b"%d" % n)})
print("SAID", len(written))
"""
    )
    assert said[0] == "32" and int(said[1]) <= 32 + 4


def test_calls_of_wrong_types_are_answered_with_a_sentence(board):
    said = board(
        """
kind()
for more in ({"op": []}, {"op": {}}, {"op": None}, {"op": 5}):
    body = json.dumps(dict(more, kind="parcel")).encode()
    print("SAID", d.deliver(bytearray(body))[0])
print("SAID", d.deliver(bytearray(b'{"kind":"parcel","op":"begin","size":1e99,"sha256":7}'))[0])
print("SAID", d.deliver(bytearray(b"[" * 2000))[0])
print("SAID", d.deliver(bytearray(b"\\xff\\x00" * 200))[0])
"""
    )
    assert set(said) == {"400"}


def test_file_stays_as_it_is_while_its_handler_is_at_work(board):
    said = board(
        """
def slow(path):
    yield
    with open(path, "rb") as f:
        found = f.read()
    return 422, {"error": sha(found) == sha(A)}
A, B = bytes(1024), b"b" * 1024
k = kind(handler=slow)
def push(data):
    yield call("begin", size=len(data), sha256=sha(data))
    text = binascii.b2a_base64(data).decode().strip()
    yield call("write", sha256=sha(data), at=0, data=text)
    yield call("commit", sha256=sha(data))
steps = list(push(A))[-1]
next(steps)
# The same operator again, another one with another file, and a wish.
print("SAID", [call("commit", sha256=sha(A))[0]] + [a[0] for a in push(B)] + [call("abort")[0]])
print("SAID", call("status")[0], look({"parcel": order(B)}), k.left)
before = k.left
try:
    while True:
        next(steps)
except StopIteration as e:
    print("SAID", e.value, k.busy)
again = call("commit", sha256=sha(A))  # refused, it lies there still
for result in again:
    pass
print("SAID", call("status")[1]["last"]["status"], call("begin", size=1024, sha256=sha(B))[0])
"""
    )
    assert said[0] == "[429, 429, 429, 429, 429]"
    assert said[1].startswith("200 None")
    assert said[2] == "(422, {'error': True}) False"
    assert said[3] == "422 200"


def test_flash_that_is_full_takes_no_beginning_and_keeps_no_part(board):
    said = board(
        """
kind(most=100000)
def free():
    fs = os.statvfs("/")
    return fs[0] * fs[3]
def fill(leave):
    with open("/filler", "ab") as f:
        while free() > leave:
            f.write(bytes(4096))
            f.flush()
call("begin", size=60000, sha256="0" * 64)
fill(12000)
at = 0
while True:
    status, said = call("write", sha256="0" * 64, at=at, data=PIECE)
    if status != 200:
        break
    at += 1024
print("SAID", status, said["have"], "no room" in said["error"], os.listdir("/stage"))
print("SAID", call("begin", size=60000, sha256="1" * 64)[0], os.listdir("/stage"))
os.remove("/filler")
print("SAID", call("begin", size=60000, sha256="1" * 64))
"""
    )
    assert said == ["507 0 True []", "507 []", "(200, {'have': 0})"]


def test_kind_that_cannot_be_fetched_keeps_no_other_from_coming(board):
    said = board(
        """
names = ["a", "b", "c", "trust"]
kinds = [kind(name) for name in names]
wish = {name: order(name.encode(), version=n) for n, name in enumerate(names)}
seen = []
for _ in range(40):
    clock[0] += 1000
    found = look(wish)
    if found:
        seen.append(found._kind.name)
        if found._kind.name == "trust":
            found.close()
            found._staged.put(0, b"trust")
            found.connected()
        else:
            fails()
print("SAID", sorted(set(seen)), kinds[3].settled, seen.count("trust"))
print("SAID", sorted(set([name for told in incoming.told for name in told])))
"""
    )
    assert said[0] == "['a', 'b', 'c', 'trust'] True 1"
    assert said[1] == "['a', 'b', 'c', 'trust']"


def test_order_that_was_mended_is_looked_at_again(board):
    said = board(
        """
k = kind()
good = order(b"data")
print("SAID", look({"parcel": dict(good, url="https://elsewhere.example/f")}), k.settled)
print("SAID", look({"parcel": dict(good, size=0)}), k.settled)
print("SAID", look({"parcel": {"version": 5}}), k.settled, incoming.told[-1]["parcel"]["status"])
print("SAID", look({"parcel": good}) is not None)
"""
    )
    assert said == ["None True", "None True", "None True 400", "True"]


def test_wish_that_changes_each_second_does_not_have_the_device_connect_each_second(board):
    said = board(
        """
kind()
fetches = 0
for n in range(600):
    clock[0] += 1000
    if look({"parcel": order(b"data", url="https://files.example/%d" % n)}):
        fetches += 1
        fails()
print("SAID", fetches)
"""
    )
    assert int(said[0]) <= 60, "of 600 changes, with 1 to 30 s in between"


def test_what_was_wished_is_said_again_only_as_a_number(board):
    said = board(
        """
kind()
for version in ("x" * 500, [1] * 50, {"a": 1}, 1e30, None, 7):
    look({"parcel": dict(order(b"data", version=version), size=0)})
    d.due()
    print("SAID", incoming.told[-1]["parcel"]["version"])
"""
    )
    assert said == ["None"] * 5 + ["7"]


def test_outcome_is_told_on_the_next_connection_where_this_one_ended_at_once(board):
    said = board(
        """
kind()
look({"parcel": dict(order(b"data"), size=0)})
d.due()
d.due()
print("SAID", len(incoming.told))
d.detached()
d.due()
print("SAID", len(incoming.told), incoming.told[0] == incoming.told[1])
clock[0] += 6000
d.due()
d.detached()
d.due()
print("SAID", len(incoming.told))
"""
    )
    assert said == ["1", "2 True", "2"]


def test_wish_waits_for_a_push_that_is_under_way_and_not_for_one_that_was_given_up(board):
    said = board(
        """
kind()
call("begin", size=4096, sha256="0" * 64)
call("write", sha256="0" * 64, at=0, data=PIECE)
clock[0] += 20000
print("SAID", look({"parcel": order(b"data")}), staging.Staging("parcel").have)
clock[0] += 20000
print("SAID", look({"parcel": order(b"data")}) is not None)
"""
    )
    assert said == ["None 1024", "True"]


def test_slow_server_does_not_keep_the_device_from_its_hub(board):
    said = board(
        """
class Slow:
    def read(self, at, view):
        clock[0] += 19000
        return 16
    def close(self):
        print("SAID closed")
kind()
look({"parcel": order(bytes(8192))})
d._pull._source = lambda way: Slow()
while d.fetching():
    d.fetch(None)
soon = delivery._kinds["parcel"].again_ms - clock[0] <= 31000
print("SAID", clock[0] // 1000, staging.Staging("parcel").have > 300, soon)
clock[0] += 32000
print("SAID", look({"parcel": order(bytes(8192))}).fetching)
"""
    )
    assert said[0] == "closed" and said[2] == "True"
    seconds, have, soon = said[1].split()
    assert 600 <= int(seconds) < 640 and have == soon == "True"
