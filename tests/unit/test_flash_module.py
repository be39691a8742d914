"""The `esp32` module on the board's builds: edges that the probes leave open."""

from __future__ import annotations

from pathlib import Path

import pytest
from chip import MIB, table
from legs import VIRTUAL

LEGS_HERE = VIRTUAL

TABLE = [
    (1, 2, 0x9000, 0x6000, "nvs"),
    (0, 0, 0x10000, 0x1F0000, "factory"),
    (1, 0x40, 0x200000, 0x40000, "outbox"),
]


@pytest.fixture
def flash(tmp_path: Path) -> Path:
    path = tmp_path / "flash.bin"
    image = bytearray(b"\xff" * (4 * MIB))
    image[0x8000 : 0x8000 + len(table(TABLE))] = table(TABLE)
    path.write_bytes(image)
    return path


ANSWER = """
def answer(call):
    try:
        print(repr(call()))
    except Exception as err:
        print(type(err).__name__, err.args)
"""


def test_a_block_size_of_nothing_is_refused(micropython, flash):
    script = """
import esp32
answer(lambda: esp32.Partition("outbox", 0))
answer(lambda: esp32.Partition("outbox", 65536))
answer(lambda: esp32.Partition.find(1, label="outbox", block_size=0))
"""
    shown = micropython(ANSWER + script, "--flash", str(flash))
    assert shown.splitlines() == ["ValueError ('block size',)"] * 3


def test_small_blocks_keep_what_stands_beside_them_in_the_sector(micropython, flash):
    script = """
import esp32
p = esp32.Partition.find(esp32.Partition.TYPE_DATA, label="outbox", block_size=512)[0]
for n in range(24):
    p.writeblocks(n, bytes([n + 1]) * 512)
p.writeblocks(5, b"x" * 1536)
p.writeblocks(15, b"y" * 1024)
buf = bytearray(512)
seen = []
for n in range(24):
    p.readblocks(n, buf)
    assert bytes(buf) == bytes(buf[:1]) * 512, n
    seen.append(buf[0])
print(seen)
print(p.ioctl(4, 0), p.ioctl(5, 0), p.ioctl(6, 0))
"""
    seen, numbers = micropython(script, "--flash", str(flash)).splitlines()
    want = [n + 1 for n in range(24)]
    want[5:8], want[15:17] = b"xxx", b"yy"
    assert seen == repr(want)
    assert numbers == "512 512 -22"


def test_wrong_arguments_are_refused_as_on_the_board(micropython, flash):
    script = f"""{ANSWER}
import esp32
P = esp32.Partition
answer(lambda: P("none"))
answer(lambda: P(7))
answer(lambda: P("outbox").info())
answer(lambda: P(P.BOOT).info() == P(P.RUNNING).info() == P("factory").info())
answer(lambda: P("outbox").writeblocks(0, b"x" * 100))
n = esp32.NVS("n")
answer(lambda: n.set_i32("i", 2147483647))
answer(lambda: n.set_i32("i", 2147483648))
answer(lambda: n.set_i32("i", -2147483649))
answer(lambda: n.set_i32("i", "1"))
answer(lambda: n.get_i32("i"))
answer(lambda: n.set_blob("e", b""))
answer(lambda: n.get_blob("e", bytearray()))
answer(lambda: n.set_blob("huge", bytes(20001)))
answer(lambda: n)
"""
    big = "OverflowError ('overflow converting long int to machine word',)"
    lines = micropython(script, "--flash", str(flash)).splitlines()
    assert lines.pop(8).startswith("TypeError")
    assert lines == [
        "OSError (2,)",
        "ValueError ()",
        "(1, 64, 2097152, 262144, 'outbox', False)",
        "True",
        "OSError (-260, 'ESP_ERR_INVALID_SIZE')",
        "None",
        big,
        big,
        "2147483647",
        "None",
        "0",
        "OSError (-4366, 'ESP_ERR_NVS_VALUE_TOO_LONG')",
        "<NVS namespace>",
    ]


def test_without_a_flash_image_the_nvs_says_it_is_not_there(micropython):
    calls = "answer(lambda: esp32.NVS('n'))\nanswer(esp32.Partition.find)\n"
    script = f"{ANSWER}\nimport esp32\n{calls}"
    first, second = micropython(script).splitlines()
    assert first == "OSError (-4353, 'ESP_ERR_NVS_NOT_INITIALIZED')"
    assert second == "[]"


def test_the_module_has_what_the_design_lists_and_no_more(micropython):
    printed = micropython("import esp32\nprint(sorted(x for x in dir(esp32) if x[0] != '_'))\n")
    assert printed.strip() == repr(["HEAP_DATA", "HEAP_EXEC", "NVS", "Partition", "idf_heap_info"])
