"""A whole firmware over the air: kept where it connects; where not, the bootloader goes back."""

from __future__ import annotations

import base64
import itertools
import random
import re

import bundles
import packages
import pytest
from outpost_tools.board import EXIT_POWER_CUT, EXIT_RESET
from outpost_tools.delivery import push
from outpost_tools.errors import OutpostError
from outpost_tools.firmwarerecord import FirmwareRecord
from outpost_tools.partitions import PartitionTable
from updates import UpdateWorld

LEGS_HERE = ("outpost32",)
MODES = ("clean", "torn", "odd")
KEPT = r"update +firmware version=%d works: it is kept"


def image(size: int = 40_000, chip: int = 0, seed: int = 1) -> bytes:
    """What begins like an application of an ESP32; the virtual board runs itself all the same."""
    head = b"\xe9" + bytes(11) + chip.to_bytes(2, "little") + bytes(10)
    return head + random.Random(seed).randbytes(size - len(head))


def signed(data: bytes, version: int, names: str = "s", tmp=None, **fields) -> dict[str, str]:
    """What is said of it at the beginning: its record, signed."""
    import hashlib

    chip = data[12] | data[13] << 8
    record = FirmwareRecord("new", chip, len(data), hashlib.sha256(data).digest())
    made = packages.around(record.encode(), version, **fields)
    made = bundles.bundle.sign(made, [bundles.key(name) for name in names])
    return {"signed": base64.b64encode(made.encode()).decode()}


def part(update: UpdateWorld, name: str) -> bytes:
    place = PartitionTable.from_flash(update.flash)[name]
    return update.flash.read_bytes()[place.offset : place.end]


@pytest.fixture
def device(world):
    update = UpdateWorld(world, layout="ota")
    place = PartitionTable.from_flash(update.flash)["ota_0"]
    with update.flash.open("r+b") as file:
        file.seek(place.offset)
        file.write(image(seed=0))
    update.power_on()
    update.heard("image")
    return update


def running(update: UpdateWorld) -> str:
    """Which firmware runs, as the board says at its prompt."""
    board = update.power_on()
    board.wait_for("hub +connected", 60)
    board.write(b"\x03")
    board.wait_for(">>> ", 30)
    start = len(board.lines)
    board.write(b"import esp32; print(esp32.Partition(esp32.Partition.RUNNING).info()[4])\r")
    return board.wait_for("^(ota_[01])", 30, start)[1]


def test_new_firmware_is_written_tried_and_kept(device):
    data = image()
    answer = device.push(data, kind="firmware", **signed(data, 2))
    assert answer.status == 202 and answer.result["slot"] == "ota_1"
    device.board.wait_for(KEPT % 2, 60)
    assert part(device, "ota_1").startswith(data)
    assert part(device, "ota_0").startswith(image(seed=0))
    assert running(device) == "ota_1"
    # The next one goes into the other place, and an older one nowhere.
    assert running(device) == "ota_1"


def test_firmware_that_does_not_connect_is_gone_with_its_first_start(device):
    data = image()
    assert device.push(data, kind="firmware", **signed(data, 2)).status == 202
    device.board.wait_for("firmware version=2 is on trial", 60)
    device.power_on()
    device.board.wait_for("the new firmware did not hold", 30)
    device.board.wait_for("hub +connected", 60)
    assert running(device) == "ota_0"
    # Mended, or by better luck: the same version again.
    device.power_on()
    device.board.wait_for("hub +connected", 60)
    assert device.push(data, kind="firmware", **signed(data, 2)).status == 202
    device.board.wait_for(KEPT % 2, 60)


def test_what_nobody_signed_is_not_even_written(device):
    data, other = image(), image(seed=2)
    package = packages.signed(packages.application(), 2)
    app = {"signed": base64.b64encode(package).decode()}
    attacks = {
        "no record": ({}, "brings its signed record"),
        "no base64": ({"signed": "?"}, ""),
        "a record that is too long": ({"signed": "AAAA" * 700}, "too long"),
        "unsigned": (signed(data, 2, ""), "signed, not"),
        "nobody we know": (signed(data, 2, "x"), "nobody named"),
        "another fleet": (signed(data, 2, fleet="elsewhere"), "another fleet"),
        "another firmware's record": (signed(other, 2), "other firmware was signed"),
        "an application": (app, "no record of firmware"),
        "another chip": (signed(image(chip=9), 2), "other firmware was signed"),
    }
    for name, (about, words) in attacks.items():
        why = device.refused(data, kind="firmware", **about)
        assert words in why, (name, why)
    for_s3 = image(chip=9)
    why = device.refused(for_s3, kind="firmware", **signed(for_s3, 2))
    assert "for another chip" in why
    large = image(len(part(device, "ota_1")) + 1)
    why = device.refused(large, kind="firmware", **signed(large, 2))
    assert "more than the" in why
    record = base64.b64decode(signed(data, 2)["signed"])
    assert "no application package" in device.refused(record)
    assert device.board.boots == 1
    assert set(part(device, "ota_1")) == {0xFF}


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_a_board_with_one_place_for_firmware_takes_none(world):
    update = UpdateWorld(world)
    update.power_on()
    update.heard("image")
    data = image()
    answer = update.push(data, kind="firmware", **signed(data, 2))
    assert answer.status == 404 and "with 'make flash'" in answer.why


class Cuts:
    """A board in a phase of a firmware update: "write", nothing of it has come; "trial", all of it
    is there, named to the bootloader, and its first start is the next."""

    def __init__(self, update: UpdateWorld, phase: str) -> None:
        self.update, self.phase = update, phase
        self.data = image(9000)
        if phase == "trial":
            update.power_on(restarts=False).wait_for("hub +connected", 60)
            assert self._push().status == 202
            assert update.board.wait_exit(30) == EXIT_RESET
        update.board.stop()
        self.before = update.flash.read_bytes()

    def _push(self):
        about = {"version": 2, **signed(self.data, 2)}
        pause = self.update._pause
        return push(self._invoke, "firmware", self.data, about=about, patience_s=60, pause=pause)

    def _invoke(self, method: str, payload: object) -> tuple[int, object]:
        """Soon given up: where the power went, no answer comes."""
        try:
            return self.update.operator.invoke(method, payload, timeout_s=8)
        except Exception as why:  # what the hub raises where the device is not there
            raise OutpostError(f"{type(why).__name__} (404103)") from why

    def went(self, cut: str) -> bool:
        """Whether the power went there. Afterwards the board connects, and ends with it kept."""
        update = self.update
        update.flash.write_bytes(self.before)
        board = update.power_on(cut=cut)
        try:
            if self.phase == "write":
                board.wait_for("hub +connected", 60)
                self._push()
            board.wait_for(KEPT % 2, 60)
            return False
        except Exception:
            assert board.wait_exit(20) == EXIT_POWER_CUT, board.text
        board = update.power_on()
        board.wait_for("acked id=", 60)
        if not re.search(KEPT % 2, board.text):
            # It may be the new one that runs, about to be kept, or kept: then it is not sent.
            again = self._push()
            assert again.taken, again.why
            if again.result["state"] == "kept":
                return True
            board.wait_for(KEPT % 2, 60)
        assert part(update, "ota_1").startswith(self.data)
        return True


@pytest.mark.parametrize("phase", ["write", "trial"])
def test_power_cuts_in_a_firmware_update_leave_a_board_that_connects_and_takes_it(device, phase):
    cuts = Cuts(device, phase)
    choose = random.Random(f"firmware {phase}")
    went = 0
    for cut in sorted(choose.sample(range(4, 60) if phase == "write" else range(1, 12), 2)):
        went += cuts.went(f"{cut}:{choose.choice(MODES)}")
    assert went


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("phase", ["write", "trial"])
def test_power_cut_at_every_operation_of_a_firmware_update(device, phase, mode):
    cuts = Cuts(device, phase)
    for cut in itertools.count(1):
        if not cuts.went(f"{cut}:{mode}"):
            break
    print(f"{phase} {mode}: the power went at each of {cut - 1} operations")
    assert 8 < cut < 200
