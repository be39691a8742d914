"""The power goes at every flash operation of a delivery: at the next start what is staged is a
beginning of the one file or of the other, byte for byte, and the delivery goes on from there to the
end, through a second power cut too. Nothing but the file that was announced is handed over.

The device's own pieces.py and staging.py on its own littlefs. A staging that is broken on purpose
must be caught by the same loop.
"""

from __future__ import annotations

import itertools
import random

import pytest
from legs import REPO
from outpost_tools.board import EXIT_POWER_CUT, EXIT_RESET, BoardTimeout

MODES = ("clean", "torn", "odd")
SIZES = (5000, 7000)
SAMPLE = 3
MOST = 120

# Each start goes on where the one before was cut off: first with the old file, then the new one.
MAIN = """
import binascii, hashlib, json, os, sys
from outpost import delivery, pieces, staging

def file(n, size):
    out = b""
    while len(out) < size:
        out += hashlib.sha256(b"%d %d" % (n, len(out))).digest()
    return out[:size]

SIZES = SIZES_HERE
FILES = [file(n, size) for n, size in enumerate(SIZES)]
HASHES = [binascii.hexlify(hashlib.sha256(f).digest()).decode() for f in FILES]
done = []

def handler(path):
    with open(path, "rb") as f:
        print("HANDED", HASHES.index(binascii.hexlify(hashlib.sha256(f.read()).digest()).decode()))
    done.append(path)
    return 200, None

delivery.register("parcel", 8000, lambda size, sha256, args: None, handler)

def call(op, n, **more):
    # The data last, as our own tool sends them.
    data = more.pop("data", None)
    more.update(kind="parcel", op=op, size=SIZES[n], sha256=HASHES[n])
    body = json.dumps(more)
    if data:
        body = body[:-1] + ', "data":"%s"}' % data
    return pieces.answer(bytearray(body.encode()), delivery._kinds)

def whole():
    # What is staged is a beginning of what its note says.
    s = staging.Staging("parcel")
    if s.sha256 is None:
        return "nothing"
    n = HASHES.index(s.sha256)
    with open(s.path, "rb") if s.have else open(s._note, "rb") as f:
        held = f.read() if s.have else b""
    print("STAGED", n, len(held), held == FILES[n][: len(held)] and s.size == SIZES[n])

def send(n, most):
    have = call("begin", n)[1]["have"]
    while have < most:
        data = binascii.b2a_base64(FILES[n][have : have + 2048]).decode().strip()
        status, said = call("write", n, at=have, data=data)
        assert status == 200 and said["have"] > have, (status, said)
        have = said["have"]

whole()
if "second" in os.listdir("/"):
    send(1, SIZES[1])
    assert call("commit", 1)[0] == 200 and done
    print("LEFT", os.listdir("/stage"))
else:
    send(0, 4096)
    open("/second", "w").close()
import machine
machine.reset()
"""
# The note of the new file first, then the old file goes: between the two it is the new one's.
WRONG_ORDER = (
    ("        self.drop()\n        try:\n            fs", "        try:\n            fs"),
    (
        "        self.size, self.sha256 = size, sha256\n",
        "        if self.have:\n            os.remove(self.path)\n"
        "        self.size, self.sha256, self.have = size, sha256, 0\n",
    ),
)


class Bench:
    """One flash with a part of an old file staged, put back to that for each run."""

    def __init__(self, world, breaks: tuple[tuple[str, str], ...] = ()) -> None:
        self.world = world
        # What is broken on purpose ends at the prompt, where it would be waited for.
        self.patience_s = 8 if breaks else 30
        head = ""
        files = {}
        if breaks:
            source = (REPO / "lib" / "outpost" / "staging.py").read_text()
            for old, new in breaks:
                assert old in source
                source = source.replace(old, new)
            source = source.replace("from . ", "from outpost ").replace("from .", "from outpost.")
            files["/broken.py"] = source.encode()
            head = "import broken, outpost, sys\n"
            head += "sys.modules['outpost.staging'] = outpost.staging = broken\n"
        files["/main.py"] = (head + MAIN.replace("SIZES_HERE", repr(SIZES))).encode()
        self.flash = world.image(1, "127.0.0.1:9", files=files)
        assert self.start() == EXIT_RESET, self.board.text
        self.before = self.flash.read_bytes()

    def start(self, cut: str | None = None) -> int:
        self.board = self.world.board(self.flash, cut=cut, heapsize="512K", restarts=False)
        try:
            code = self.board.wait_exit(self.patience_s)
        except BoardTimeout as e:
            raise AssertionError(self.board.text) from e
        self.board.stop()
        for line in self.board.lines:
            if line.text.startswith("STAGED"):
                assert line.text.endswith("True"), self.board.text
            if line.text.startswith("HANDED"):
                assert line.text == "HANDED 1", self.board.text
        return code

    def run(self, *cuts: str) -> int:
        """How many of the cuts came, one start after the other."""
        self.flash.write_bytes(self.before)
        for n, cut in enumerate(cuts):
            code = self.start(cut)
            if code == EXIT_RESET:
                return n
            assert code == EXIT_POWER_CUT, self.board.text
        assert self.start() == EXIT_RESET, self.board.text
        assert "HANDED 1" in self.board.text and "LEFT []" in self.board.text
        return len(cuts)


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_power_cut_during_a_delivery_leaves_a_beginning_that_goes_on(world):
    bench = Bench(world)
    assert bench.run() == 0
    choose = random.Random(5)
    went = 0
    for n in choose.sample(range(1, 60), SAMPLE):
        mode = choose.choice(MODES)
        went += bench.run(f"{n}:{mode}", f"{choose.randrange(1, 20)}:{mode}")
    assert went


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("leg", ["outpost32", "stock32"], indirect=True)
def test_power_cut_at_every_operation_of_a_delivery(world, mode):
    bench = Bench(world)
    for n in itertools.count(1):
        if not bench.run(f"{n}:{mode}", f"{1 + n % 7}:{mode}"):
            break
    assert 20 < n < MOST


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_staging_that_drops_in_the_wrong_order_is_caught(world):
    bench = Bench(world, WRONG_ORDER)
    assert bench.run() == 0
    with pytest.raises(AssertionError):
        for n in range(2, 12):
            bench.run(f"{n}:clean")
