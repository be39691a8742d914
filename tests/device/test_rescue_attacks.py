"""A board without a file system, and who would make something of that: its prompt stays closed, who
signs software is asked, and neither a full nor a bare NVS ends it."""

from __future__ import annotations

import hashlib
import random
import subprocess
from pathlib import Path

import commands
import pytest
from fromhub import Operator
from hubs import eventually
from legs import BIN, OURS
from outpost_tools import agreed
from outpost_tools.board import EXIT_CANNOT_START
from outpost_tools.partitions import PartitionTable
from test_production import quiet
from test_rescue import CONNECTED, MAIN, RESCUE, connected_once, has_blob, nvs_of, wreck
from trustworld import IN_USE, QUIET, TrustWorld
from world import DEVICE_ID, line_number

LEGS_HERE = OURS
PAGE = 4096
# The file system in RAM and the modules that judge signatures are in memory at once: a board has
# 160K; a build for 64 bits needs twice as much for the same.
ROOMY = {"outpost32": "96K", "outpost64": "192K"}


def damaged(flash: Path, how: str) -> None:
    """The file system as an accident may leave it."""
    content = bytearray(flash.read_bytes())
    vfs = PartitionTable.from_flash(flash)["vfs"]
    size = vfs.end - vfs.offset
    if how == "superblock":
        content[vfs.offset : vfs.offset + 2 * PAGE] = b"\xff" * (2 * PAGE)
    else:
        fill = {"zero": bytes(size), "random": random.Random(5).randbytes(size)}
        content[vfs.offset : vfs.end] = fill.get(how, b"\xff" * size)
    flash.write_bytes(content)


@pytest.mark.parametrize("how", ["superblock", "zero", "random"])
def test_however_the_file_system_is_lost_the_device_connects_again_and_again(how, world) -> None:
    hub = world.hub()
    flash = connected_once(world, hub)
    damaged(flash, how)
    vfs = PartitionTable.from_flash(flash)["vfs"]
    lost = flash.read_bytes()[vfs.offset : vfs.end]
    for _ in range(2):
        board = world.board(flash)
        line_number(board, "Outpost boots")  # boot.py too: slots, trials and production mode
        line_number(board, CONNECTED)
        line_number(board, RESCUE)
        board.stop()
        assert flash.read_bytes()[vfs.offset : vfs.end] == lost


def test_a_blank_partition_is_set_up_from_the_nvs_without_being_told(world) -> None:
    """There is nothing in it that anybody could want, and an empty one would connect nowhere."""
    hub = world.hub()
    flash = connected_once(world, hub)
    damaged(flash, "blank")
    board = world.board(flash)
    anew = line_number(board, r"rescue +the file system is made anew")
    boots = line_number(board, "Outpost boots", anew)
    line_number(board, CONNECTED, boots)
    assert "corrupt" not in board.text and board.reboots == 1


def test_a_closed_board_stays_closed_without_its_file_system(world) -> None:
    hub = world.hub()
    flash = connected_once(world, hub, production=True)
    wreck(flash)
    board = world.board(flash)
    said = quiet(board, 1)
    line_number(board, CONNECTED)
    said += quiet(board, 0.5)
    assert Operator(hub, DEVICE_ID).invoke("rescue", {"format": True})[0] == 202
    anew = line_number(board, "made anew")
    line_number(board, CONNECTED, anew)
    said += quiet(board, 0.5)
    for word in (">>>", "raw REPL", "KeyboardInterrupt"):
        assert word not in said


def test_a_closed_board_that_kept_nothing_shows_no_prompt(world) -> None:
    flash = world.image(1, "127.0.0.1:1", files={"/main.py": MAIN}, production=True)
    wreck(flash)
    board = world.board(flash)
    line_number(board, "starts again", line_number(board, "starts again") + 1)
    assert ">>>" not in board.text and board.boots >= 2


def test_without_an_identity_it_says_so_and_is_nobody(world) -> None:
    hub = world.hub()
    flash = connected_once(world, hub)
    wreck(flash)
    erase = (
        "import esp32\nn = esp32.NVS('outpost')\nfor k in ('id', 'sas1', 'ida', 'idb', 'idcur'):\n"
    )
    erase += "    try:\n        n.erase_key(k)\n    except OSError:\n        pass\nn.commit()\n"
    run_script(world, flash, erase)
    board = world.board(flash)
    line_number(board, RESCUE)
    line_number(board, r"identity")
    assert "Traceback" not in board.text and board.running and not hub.connected


def run_script(world, flash: Path, script: str) -> str:
    path = flash.with_name("script.py")
    path.write_text(script)
    command = [str(BIN / world.leg), "-X", "heapsize=160K", "--flash", str(flash), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_nvs_without_a_free_page_still_connects_and_takes_no_order(world) -> None:
    """Opened for reading, as espboard.c does it: the board knows who it is; nothing is erased."""
    hub = world.hub()
    flash = connected_once(world, hub)
    wreck(flash)
    nvs = PartitionTable.from_flash(flash)["nvs"]
    content = bytearray(flash.read_bytes())
    for at in range(nvs.offset, nvs.end, PAGE):
        if content[at : at + PAGE] == b"\xff" * PAGE:
            content[at : at + PAGE] = random.Random(at).randbytes(PAGE)
    flash.write_bytes(content)
    before = nvs_of(flash)
    board = world.board(flash)
    line_number(board, CONNECTED)
    line_number(board, RESCUE)
    status, answer = Operator(hub, DEVICE_ID).invoke("rescue", {"format": True})
    assert status == 503 and "the NVS takes nothing" in answer["error"]
    assert nvs_of(flash) == before and "Traceback" not in board.text


@pytest.fixture
def trust(world):
    return TrustWorld(world)


def lost(trust) -> object:
    trust.board.stop()
    wreck(trust.flash)
    board = trust.restart(heapsize=ROOMY[trust.world.leg])
    line_number(board, CONNECTED.partition(" device")[0])
    return board


def test_where_a_fleet_signs_only_its_signature_makes_the_file_system_anew(trust) -> None:
    software, keys = commands.Signer("software"), commands.Signer("keys")
    known = commands.signers_json(software, keys)
    trust.start(QUIET, files={agreed.SIGNERS_PATH: known})
    assert trust.connected()
    assert wait_kept(trust.flash)
    board = lost(trust)
    line_number(board, r"rescue +the file system is corrupt: send the signed command")
    status, answer = trust.operator.invoke("rescue", {"format": True})
    assert status == 403 and "signs" in answer["error"]

    def order(signer, role: str, number: int):
        token = signer.command(role=role, op="rescue", ctr=number)
        return trust.operator.invoke(agreed.COMMAND_METHOD, token)[0]

    assert order(keys, "software", 1) == 403
    assert order(software, "software", 2) == 202
    anew = line_number(board, "made anew")
    line_number(board, CONNECTED.partition(" device")[0], anew)
    assert order(software, "software", 2) == 403  # taken before
    assert order(software, "software", 3) == 404  # it knows its signers still, and has no such need


def wait_kept(flash: Path) -> bool:
    return eventually(lambda: has_blob(flash))


def test_the_bundle_that_is_kept_is_the_one_in_use_not_the_one_before(trust) -> None:
    """Both have the same root, and there was no other connection since."""
    board = trust.start(QUIET)
    assert trust.connected() and wait_kept(trust.flash)
    assert trust.push(trust.bundle(2, "ab")).status == 202
    line_number(board, IN_USE)
    trust.until_reported(version=2)  # what is kept is written before the report goes out
    lost(trust)
    assert trust.until_reported(version=2)["version"] == 2


def test_a_ca_that_changed_is_in_what_is_kept(trust) -> None:
    board = trust.start(QUIET)
    assert trust.connected() and trust.push(trust.bundle(2, "ab")).status == 202
    line_number(board, IN_USE)
    trust.move("b")
    assert trust.connected()
    line_number(board, CONNECTED.partition(" device")[0], len(board.lines) - 1)
    lost(trust)


def test_a_hub_that_went_to_another_known_root_meanwhile_is_reached(trust) -> None:
    """Only one root has verified it; the others are kept where there is room."""
    board = trust.start(QUIET)
    assert trust.connected() and trust.push(trust.bundle(2, "ab")).status == 202
    line_number(board, IN_USE)
    trust.until_reported(version=2)
    board.stop()
    wreck(trust.flash)
    trust.move("b")
    line_number(trust.restart(heapsize=ROOMY[trust.world.leg]), CONNECTED.partition(" device")[0])


def test_a_board_without_the_partition_connects_and_refuses(world) -> None:
    hub = world.hub()
    flash = connected_once(world, hub)
    content = bytearray(flash.read_bytes())
    table = content[0x8000:0x9000]
    at = table.index(b"vfs\0")
    table[at : at + 3] = b"xfs"
    end = table.index(b"\xeb\xeb" + b"\xff" * 14)
    table[end + 16 : end + 32] = hashlib.md5(table[:end]).digest()
    content[0x8000:0x9000] = table
    flash.write_bytes(content)
    board = world.board(flash)
    line_number(board, CONNECTED)
    assert "Traceback" not in board.text
    board.stop()
    run_script(world, flash, "import esp32\nn = esp32.NVS('outpost')\nn.set_i32('rs-do', 1)\n")
    board = world.board(flash)
    line_number(board, "could not be made anew")
    line_number(board, CONNECTED)
    assert board.running and board.exit_code != EXIT_CANNOT_START
