"""The release leg's NVS in Python: Espressif's format, read and written, and no key ever lost."""

from __future__ import annotations

import base64
import importlib.util
import io
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from esp_idf_nvs_partition_gen import nvs_partition_gen
from hypothesis import given, settings
from hypothesis import strategies as st
from legs import BIN, REPO
from outpost_tools.partitions import TABLE_OFFSET, PartitionTable

RELEASE = REPO / "firmware" / "virtual" / "release"
NVS = PartitionTable.for_size(4)["nvs"]


def stand_in(name: str) -> ModuleType:
    """One of the leg's files, run by CPython."""
    spec = importlib.util.spec_from_file_location(f"release_{name}", RELEASE / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


sys.modules["nvs_store"] = stand_in("nvs_store")  # nvs.py imports it by that name
nvs = stand_in("nvs")
vflash = stand_in("vflash")


def blank_image() -> bytearray:
    image = bytearray(b"\xff" * (4 << 20))
    table = PartitionTable.for_size(4).to_binary()
    image[TABLE_OFFSET : TABLE_OFFSET + len(table)] = table
    return image


def chip(image: bytearray | None = None):
    return vflash.Flash(io.BytesIO(image or blank_image()))


def store(flash):
    return nvs.Nvs(flash, NVS.offset, NVS.size)


def refused(code: int):
    return pytest.raises(OSError, check=lambda e: e.args[0] == -code)


def generated(entries: list[tuple[str, str, str]]) -> bytearray:
    """A flash whose NVS is Espressif's generator's: (key, encoding, value) in namespace `made`."""
    out = io.BytesIO()
    maker = nvs_partition_gen.nvs_open(out, NVS.size - 4096, nvs_partition_gen.Page.VERSION2)
    nvs_partition_gen.write_entry(maker, "made", "namespace", "", "")
    for key, encoding, value in entries:
        nvs_partition_gen.write_entry(maker, key, "data", encoding, value)
    nvs_partition_gen.nvs_close(maker)
    image = blank_image()
    image[NVS.offset : NVS.end] = out.getvalue()
    return image


def test_reads_what_espressifs_generator_writes():
    blobs = {f"blob{n}": bytes(i & 255 for i in range(n)) for n in (1, 31, 32, 33, 2000, 6000)}
    image = generated(
        [("number", "i32", "-5"), ("text", "string", "words"), ("byte", "u8", "7")]
        + [(k, "base64", base64.b64encode(v).decode()) for k, v in blobs.items()]
    )
    made = store(chip(image))
    ns = made.open(b"made")
    assert made.get_i32(ns, b"number") == -5
    for key, value in blobs.items():
        assert made.get_blob(ns, key.encode()) == value
    # Another type under that name is "not found", as on the board.
    for get in (made.get_i32, made.get_blob):
        for key in (b"text", b"byte", b"nothing"):
            with refused(nvs.NOT_FOUND):
                get(ns, key)


def test_answers_and_errors_are_the_stock_boards():
    flash = chip()
    n = store(flash)
    ns = n.open(b"probe")
    n.set_i32(ns, b"i", -5)
    n.set_blob(ns, b"e", b"")
    assert (n.get_i32(ns, b"i"), n.get_blob(ns, b"e")) == (-5, b"")
    with refused(nvs.KEY_TOO_LONG):
        n.open(b"n" * 16)
    n.set_i32(ns, b"k" * 15, 1)
    n.set_i32(ns, b"k" * 16, 1)  # ESP-IDF compares 15 characters and finds it there already
    for size in (1000, 1984, 4000, 6000, 9000):
        n.set_blob(ns, b"big", bytes(size))
        assert n.get_blob(ns, b"big") == bytes(size)
    with refused(nvs.NOT_ENOUGH_SPACE):
        n.set_blob(ns, b"big", bytes(12000))
    assert n.get_blob(ns, b"big") == bytes(9000)
    n.erase_key(ns, b"i")
    with refused(nvs.NOT_FOUND):
        n.erase_key(ns, b"i")
    n.erase_key(ns, b"big")
    kept = 0
    with refused(nvs.NOT_ENOUGH_SPACE):
        while True:
            n.set_blob(ns, b"f%d" % kept, bytes(200))
            kept += 1
    assert kept >= 68  # what a stock board keeps beside the radio's own entries
    for i in range(kept):
        n.erase_key(ns, b"f%d" % i)
    n.set_i32(ns, b"again", 1)
    assert store(flash).get_i32(ns, b"again") == 1


KEYS = st.sampled_from([b"a", b"b", b"c", b"quite-long-name"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("i32"), KEYS, st.integers(-(2**31), 2**31 - 1)),
        st.tuples(st.just("blob"), KEYS, st.integers(0, 5000).map(lambda n: bytes([n % 251]) * n)),
        st.tuples(st.just("erase"), KEYS, st.none()),
    ),
    max_size=60,
)


def apply(n, ns: int, step, model: dict) -> None:
    """One step on the store; the model follows only what was accepted."""
    kind, key, value = step
    try:
        if kind == "erase":
            n.erase_key(ns, key)
            del model[key]
        else:
            (n.set_i32 if kind == "i32" else n.set_blob)(ns, key, value)
            model[key] = value
    except OSError as e:
        assert e.args[0] in (-nvs.NOT_ENOUGH_SPACE, -nvs.NOT_FOUND)


def content(n, ns: int) -> dict:
    found = {}
    for key in (b"a", b"b", b"c", b"quite-long-name"):
        for get in (n.get_i32, n.get_blob):
            try:
                found[key] = get(ns, key)
            except OSError as e:
                assert e.args[0] == -nvs.NOT_FOUND
    return found


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_any_sequence_reads_back_at_once_and_after_a_restart(steps):
    flash = chip()
    n = store(flash)
    ns = n.open(b"x")
    model: dict = {}
    for step in steps:
        apply(n, ns, step, model)
        assert content(n, ns) == model
    again = store(flash)
    assert content(again, again.open(b"x")) == model


@pytest.mark.parametrize("torn", [False, True])
def test_power_cut_at_every_operation_keeps_the_old_or_the_new_value(torn):
    steps = [("i32", b"a", i) for i in range(3)] + [("blob", b"b", bytes(700))]
    steps += [("blob", b"c", bytes([i]) * 5000) for i in range(5)]
    steps += [("i32", b"a", 9), ("erase", b"b", None), ("blob", b"b", b"end")]
    cut = 0
    ended = False
    while not ended:
        cut += 1
        image = io.BytesIO(blank_image())
        flash = vflash.Flash(image)
        n = store(flash)
        ns = n.open(b"x")
        flash.cut_after(cut, torn)
        before: dict = {}
        after: dict = {}
        try:
            for step in steps:
                before = dict(after)
                apply(n, ns, step, after)
            ended = True
        except vflash.PowerCut:
            kind, key, value = step
            after = dict(before)
            after.pop(key, None)
            if kind != "erase":
                after[key] = value
        restarted = store(vflash.Flash(image))
        found = content(restarted, restarted.open(b"x"))
        assert found in (before, after), f"cut at operation {cut}"
        # What is there can still be changed.
        restarted.set_i32(ns, b"a", 77)
        assert restarted.get_i32(ns, b"a") == 77
    assert cut > 100


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=400), st.integers(0, NVS.size - 400), st.booleans())
def test_damage_anywhere_never_ends_in_anything_but_an_nvs_error(noise, at, zero):
    image = generated([("number", "i32", "-5"), ("blob", "base64", "QUJD" * 300)])
    start = NVS.offset + at
    image[start : start + len(noise)] = bytes(len(noise)) if zero else noise
    try:
        n = store(chip(image))
        ns = n.open(b"made")
        for get, key in ((n.get_i32, b"number"), (n.get_blob, b"blob")):
            try:
                get(ns, key)
            except OSError as e:
                assert e.args[0] == -nvs.NOT_FOUND
        n.set_i32(ns, b"new", 3)
        assert n.get_i32(ns, b"new") == 3
    except OSError as e:
        assert -0x1110 <= e.args[0] <= -0x1101


def test_unreadable_page_is_left_alone():
    image = generated([("number", "i32", "-5")])
    image[NVS.offset : NVS.offset + 4096] = bytes(4096)
    flash = chip(image)
    n = store(flash)
    assert n.unreadable == 1
    n.set_i32(n.open(b"x"), b"a", 1)
    assert flash.read(NVS.offset, 4096) == bytes(4096)


def test_partition_without_a_usable_page_is_refused():
    image = blank_image()
    image[NVS.offset : NVS.end] = bytes(NVS.size)
    with refused(nvs.NO_FREE_PAGES):
        store(chip(image))


# Against the virtual board's NVS in C: what one writes, the other reads.

VALUES = """(
    {'n%d' % i: i * 1000 - 5 for i in range(20)},
    {'b%d' % i: bytes([i]) * (i * 700) for i in range(4)},
)"""

BOARD_WRITES = f"""
import esp32
numbers, blobs = {VALUES}
n = esp32.NVS("both")
for turn in range(3):          # so that old values are erased and pages moved
    for k, v in numbers.items(): n.set_i32(k, v + turn - 2)
    for k, v in blobs.items(): n.set_blob(k, bytes(turn) + v if turn < 2 else v)
n.set_i32("gone", 1)
n.erase_key("gone")
n.commit()
"""

BOARD_READS = f"""
import esp32
numbers, blobs = {VALUES}
n = esp32.NVS("both")
room = bytearray(4000)
for k, v in numbers.items(): assert n.get_i32(k) == v, k
for k, v in blobs.items(): assert bytes(room[:n.get_blob(k, room)]) == v, k
try:
    n.get_i32("gone")
    assert False
except OSError as e:
    assert e.args[0] == -0x1102
n.set_i32("n0", 42)
assert n.get_i32("n0") == 42
print("read")
"""


def on_board(image: Path, script: str) -> str:
    path = image.with_suffix(".py")
    path.write_text(script)
    command = [BIN / "outpost64", "--flash", image, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_c_stand_in_reads_what_python_wrote(tmp_path):
    image = tmp_path / "flash.bin"
    image.write_bytes(blank_image())
    with image.open("r+b", buffering=0) as file:
        n = store(vflash.Flash(file))
        ns = n.open(b"both")
        numbers, blobs = eval(VALUES)
        for turn in range(3):
            for key, number in numbers.items():
                n.set_i32(ns, key.encode(), number + turn - 2)
            for key, blob in blobs.items():
                n.set_blob(ns, key.encode(), bytes(turn) + blob if turn < 2 else blob)
    assert on_board(image, BOARD_READS) == "read\n"


def test_python_reads_what_the_c_stand_in_wrote(tmp_path):
    image = tmp_path / "flash.bin"
    image.write_bytes(blank_image())
    on_board(image, BOARD_WRITES)
    n = store(chip(bytearray(image.read_bytes())))
    ns = n.open(b"both")
    numbers, blobs = eval(VALUES)
    assert {k: n.get_i32(ns, k.encode()) for k in numbers} == numbers
    assert {k: n.get_blob(ns, k.encode()) for k in blobs} == blobs
    with refused(nvs.NOT_FOUND):
        n.get_i32(ns, b"gone")
