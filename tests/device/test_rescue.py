"""A board without a file system connects with nothing but its NVS, and is mended from afar."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from fromhub import Operator
from hubs import eventually
from legs import BIN, OURS, REPO
from outpost_tools.board import EXIT_CANNOT_START, EXIT_POWER_CUT
from outpost_tools.partitions import PartitionTable
from world import DEVICE_ID, line_number

LEGS_HERE = OURS
MAIN = b"from outpost import Device\nDevice().run()\n"
CONNECTED = rf"hub +connected device={DEVICE_ID} "
RESCUE = r"rescue +the file system is corrupt"


def connected_once(world, hub, **options) -> Path:
    """A device that has been online, and is off."""
    flash = world.image(hub.port, files={"/main.py": MAIN}, **options)
    board = world.board(flash)
    line_number(board, CONNECTED)
    assert eventually(lambda: has_blob(flash))
    board.stop()
    return flash


def nvs_of(flash: Path) -> bytes:
    nvs = PartitionTable.from_flash(flash)["nvs"]
    return flash.read_bytes()[nvs.offset : nvs.offset + nvs.size]


def has_blob(flash: Path) -> bool:
    return b"rs-mark" in nvs_of(flash)


def wreck(flash: Path) -> None:
    content = bytearray(flash.read_bytes())
    vfs = PartitionTable.from_flash(flash)["vfs"]
    content[vfs.offset : vfs.offset + 8192] = b"\x5a" * 8192
    flash.write_bytes(content)


def test_a_corrupt_file_system_does_not_end_a_device_that_was_once_online(world) -> None:
    hub = world.hub()
    flash = connected_once(world, hub)
    wreck(flash)
    before = flash.read_bytes()
    board = world.board(flash)
    line_number(board, CONNECTED)
    line_number(board, RESCUE)
    line_number(board, r"send +acked id=1")
    status, answer = Operator(hub, DEVICE_ID).invoke("rescue")
    assert status == 400 and "format" in answer["error"]
    # What is in the partition may be wanted: nothing was written to it.
    vfs = PartitionTable.from_flash(flash)["vfs"]
    assert flash.read_bytes()[vfs.offset : vfs.end] == before[vfs.offset : vfs.end]
    assert "Traceback" not in board.text and world.device.primary_key not in board.text


def test_told_to_it_makes_the_file_system_anew_and_is_itself(world) -> None:
    hub = world.hub()
    flash = connected_once(world, hub)
    wreck(flash)
    board = world.board(flash)
    line_number(board, RESCUE)
    at = line_number(board, CONNECTED)
    assert Operator(hub, DEVICE_ID).invoke("rescue", {"format": True})[0] == 202
    anew = line_number(board, r"rescue +the file system is made anew", at)
    line_number(board, CONNECTED, anew)
    assert board.reboots == 2  # it is made anew at a start, which has the memory for it
    board.stop()
    again = world.board(flash)
    line_number(again, CONNECTED)
    assert "rescue" not in again.text


def test_what_is_kept_is_written_once(world) -> None:
    hub = world.hub()
    flash = connected_once(world, hub)
    before = nvs_of(flash).count(b"rs-mark")
    for _ in range(2):
        board = world.board(flash)
        line_number(board, CONNECTED)
        board.stop()
    assert nvs_of(flash).count(b"rs-mark") == before == 1


def test_a_kept_part_that_is_damaged_is_not_believed(world) -> None:
    hub = world.hub()
    flash = connected_once(world, hub)
    wreck(flash)
    content = bytearray(flash.read_bytes())
    at = content.find(b'"wifi"', PartitionTable.from_flash(flash)["nvs"].offset)
    assert at > 0
    content[at + 1] ^= 1
    flash.write_bytes(content)
    board = world.board(flash)
    assert board.wait_exit(30) == EXIT_CANNOT_START and "corrupt" in board.text


@pytest.mark.parametrize("mode", ["torn", "clean"])
def test_power_cut_while_the_file_system_is_made_anew_ends_with_a_device_that_connects(
    mode: str, world
) -> None:
    """A sample of the flash operations; each start does it again until it is whole."""
    hub = world.hub()
    flash = connected_once(world, hub)
    wreck(flash)
    wanted = flash.with_name("wanted.bin")
    board = world.board(flash)
    line_number(board, CONNECTED)
    operator = Operator(hub, DEVICE_ID)
    # The NVS says from the beginning that it is being made anew: cut right after that.
    board.stop()
    script = "import esp32\nn = esp32.NVS('outpost')\nn.set_i32('rs-do', 1)\nn.commit()\n"
    path = flash.with_name("mark.py")
    path.write_text(script)
    command = [str(BIN / world.leg), "-X", "heapsize=160K", "--flash", str(flash), str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    wanted.write_bytes(flash.read_bytes())
    for number in random.Random(7).sample(range(1, 60), 4):
        flash.write_bytes(wanted.read_bytes())
        board = world.board(flash, cut=f"{number}:{mode}", restarts=False)
        code = board.wait_exit(60)
        board.stop()
        assert code == EXIT_POWER_CUT or "made anew" in board.text, (number, code, board.text)
        whole = world.board(flash)
        line_number(whole, CONNECTED)
        whole.stop()
    assert operator.device_id == DEVICE_ID


def test_the_start_and_the_library_mean_the_same_names() -> None:
    """rescuefs.py stands alone, so that no start loads the library."""
    from outpost_tools.agreed import _device as agreed

    names: dict[str, object] = {}
    for line in (REPO / "firmware/virtual/rescue/rescuefs.py").read_text().splitlines():
        name, _, value = line.partition(" = ")
        if name.isupper() and name[0] != "_" and "(" not in name:
            names[name] = eval(value.replace("const", ""))  # noqa: S307
    assert names["NAMESPACE"] == agreed.NVS_NAMESPACE
    assert names["BLOB"] == agreed.NVS_RESCUE and names["AGAIN"] == agreed.NVS_RESCUE_AGAIN
    assert names["SLOT"] == agreed.NVS_TRUST_SLOT and names["SLOTS"] == agreed.TRUST_SLOTS
    assert names["PRODUCTION"] == agreed.NVS_PRODUCTION
    assert names["SIGNERS"] == agreed.SIGNERS_PATH
    assert "\nSECTION_RECOVERY = 3\n" in (REPO / "lib/outpost/formats.py").read_text()
    assert "\n_RECOVERY = const(3)" in (REPO / "lib/outpost/kit.py").read_text()
    assert names["CONFIG"] == agreed.CONFIG_PATH and names["FACTORY"] == agreed.FACTORY_ROOTS_PATH
    assert names["MAX_BYTES"] == agreed.RESCUE_MAX_BYTES
