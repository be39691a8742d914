"""The power goes at every flash operation of first boot, provisioning and a change of key: the old
identity or the new one is there, whole, and the device connects with no help, as itself.

The key store alone runs over the virtual board's flash, against what it may hold; the whole device
runs on its board, with the local hub and its provisioning service. A store that is broken on
purpose must be caught by the same loop.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import storekeys
from authority import Authority, thumbprint
from boardcalls import Calls
from chip import CLEAN, ODD, TORN, Chip
from dpsworld import DpsWorld
from identities import edit, entries, symmetric
from outpost_tools.board import EXIT_POWER_CUT, EXIT_RESET
from outpost_tools.registry import new_key
from world import DEVICE_ID, World, line_number

MODES = (CLEAN, TORN, ODD)
OLD = bytes(range(32))
NEW = bytes(range(100, 132))
CHAIN = b"\x30\x82" + bytes(random.Random(3).randbytes(898))

# ---- the key store alone


def old_form(nvs, store) -> None:
    nvs.set_blob("sas1", b"old form")


def in_use(nvs, store) -> None:
    change = store.Store(nvs)
    change.candidate(store.Record(1, primary=OLD))
    change.commit()


def in_use_for_long(nvs, store) -> None:
    """So often changed that the next writes move a page."""
    in_use(nvs, store)
    for n in range(9):
        change = store.Store(nvs)
        change.candidate(store.Record(2, slot=1 + n % 2, chain=CHAIN + bytes([n])))
        change.commit()
    change.candidate(store.Record(1, primary=OLD))
    change.commit()


def with_a_candidate(nvs, store) -> None:
    in_use(nvs, store)
    store.Store(nvs).candidate(store.Record(1, primary=bytes(32)))


STARTS = (old_form, in_use, in_use_for_long, with_a_candidate)


def change_key(nvs, store, kind: int) -> None:
    change = store.Store(nvs)
    fields = {"primary": NEW} if kind == 1 else {"slot": 2, "chain": CHAIN}
    change.candidate(store.Record(kind, **fields))
    change.commit()


def identity_of(record) -> str:
    if record is None:
        return "none"
    if record.primary == OLD:
        return "old"
    good = record.primary == NEW if record.kind == 1 else record.chain == CHAIN
    return "new" if good else "other"


def check(nvs, store, start: Callable) -> None:
    """Old or new, whole; and the store goes on from there."""
    now = store.Store(nvs)
    held = identity_of(now.current())
    if held != "new":
        if start is old_form:
            assert held == "none" and nvs.get_blob("sas1", bytearray(99)) == 8, held
        else:
            assert held == "old", held
        assert identity_of(now.trial()) in ("none", "new", "other")
        if start is not with_a_candidate:
            assert identity_of(now.trial()) != "other"
    else:
        assert now.trial() is None
        gone(nvs, "sas1", "idtry", "idb" if now.nvs.get_i32("idcur") == 0 else "ida")
    change_key(nvs, store, 1)
    again = store.Store(nvs)
    assert identity_of(again.current()) == "new" and again.trial() is None
    gone(nvs, "sas1", "idtry")


def gone(nvs, *names: str) -> None:
    for name in names:
        for read in (nvs.get_i32, lambda name: nvs.get_blob(name, bytearray(4096))):
            with pytest.raises(OSError):
                read(name)


def cut_everywhere(folder: Path, store, starts=STARTS, sample: int | None = None) -> int:
    cases = 0
    for start in starts:
        for kind in (1, 2):
            chip = Chip(folder / "flash.bin")
            assert chip.start() == 0
            start(storekeys.Nvs(chip), store)
            before = chip.nvs_bytes
            chip.restart()
            first = operations(chip)
            change_key(storekeys.Nvs(chip), store, kind)
            total = operations(chip) - first
            points = [(n, mode) for n in range(1, total + 1) for mode in MODES]
            if sample:
                points = random.Random(7).sample(points, min(sample, len(points)))
            for n, mode in points:
                chip.nvs_bytes = before
                assert chip.restart() == 0
                chip.cut_after(n, mode, seed=n)
                try:
                    change_key(storekeys.Nvs(chip), store, kind)
                except storekeys.PowerGone:
                    pass
                chip.cut_after(0)
                assert chip.restart() == 0
                check(storekeys.Nvs(chip), store, start)
                cases += 1
            chip.close()
            (folder / "flash.bin").unlink()
    return cases


def operations(chip: Chip) -> int:
    counts = chip.counts()
    return counts.erases + counts.programs


def test_power_cut_in_a_change_of_key_leaves_the_old_key_or_the_new(tmp_path):
    assert cut_everywhere(tmp_path, storekeys.load(), sample=40) >= 200


@pytest.mark.exhaustive
def test_power_cut_at_every_operation_of_a_change_of_key_leaves_the_old_or_the_new(tmp_path):
    assert cut_everywhere(tmp_path, storekeys.load()) > 400


WRITE = "write(lambda: (nvs.set_blob(agreed.NVS_RECORDS[at], data), nvs.commit()))"
COMMIT = "write(lambda: (nvs.set_i32(agreed.NVS_CURRENT, at), nvs.commit()))"
BROKEN = {
    "commits before it writes": (WRITE, f"nvs.set_i32(agreed.NVS_CURRENT, at); {WRITE}"),
    "writes over the one in use": (
        "at = 1 if store._at == 0 else 0",
        "at = store._at or 0; nvs_at = nvs = store.nvs; nvs.set_i32(agreed.NVS_CURRENT, at)",
    ),
    "erases the old before it commits": (
        COMMIT,
        f"_erase(nvs, agreed.NVS_RECORDS[1 - at]); _erase(nvs, 'sas1'); {COMMIT}",
    ),
    "forgets to tidy up after a cut": ("            self.tidy()\n\n    def", "\n    def"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_key_store_that_is_broken_on_purpose_is_caught(tmp_path, name):
    broken = storekeys.load(BROKEN[name])
    with pytest.raises((AssertionError, OSError, pytest.fail.Exception)):
        cut_everywhere(tmp_path, broken, sample=80)


# ---- the whole device

MAIN = b"""
import machine
from outpost import Device
d = Device()
d.send(b"one")
@d.every(seconds=0.1)
def end():
    if d.acked:
        machine.reset()
d.run()
"""

TORN_OR_CLEAN = ("torn", "clean")


def sample_of(total: int, count: int | None, seed: int) -> list[tuple[int, str]]:
    points = [(n, mode) for n in range(1, total + 1) for mode in TORN_OR_CLEAN]
    return points if count is None else random.Random(seed).sample(points, min(count, total))


class Case:
    """A world, an image before the change, and who may connect after it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.flash = world.folder / "flash.bin"

    def boot(self, cut: str | None = None):
        board = self.world.board(self.flash, cut=cut, restarts=False)
        code = board.wait_exit(90)
        board.stop()
        assert code in (EXIT_RESET, EXIT_POWER_CUT), board.text
        return board

    def run(self, count: int | None, seed: int) -> None:
        before = self.flash.read_bytes()
        total = self.boot().report["flash"]["operations"]
        assert total >= 8
        for n, mode in sample_of(total, count, seed):
            self.flash.write_bytes(before)
            self.boot(f"{n}:{mode}")
            whole = self.boot()
            line_number(whole, rf"hub +connected device={DEVICE_ID} ")
            assert "Traceback" not in whole.text, (n, mode, whole.text)
            assert "a fault in" not in whole.text, (n, mode, whole.text)


class FirstBoot(Case):
    """The born key is made while the symmetric key connects."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        world.image(world.hub().port, files={"/main.py": MAIN})


class KeyChange(Case):
    """A candidate is tried and committed."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        new = new_key()
        world.registry.update(DEVICE_ID, secondary_key=new)
        world.image(world.hub().port, files={"/main.py": MAIN})
        primary = symmetric(base64.b64decode(world.device.primary_key))
        candidate = symmetric(base64.b64decode(new), seq=2)
        edit(self.flash, sas1=None, sas2=None, ida=primary, idcur=0, idb=candidate, idtry=1)


class Provisioned(Case):
    """First connection through the provisioning service; with a request for a certificate too."""

    def __init__(self, world: World, csr: bool) -> None:
        super().__init__(world)
        service = DpsWorld(world)
        made = service.enrol(**({"credentialPolicyName": "default"} if csr else {}))
        service.image(*made.keys, csr=csr, files={"/main.py": MAIN})


class Renewed(Case):
    """An issued certificate is renewed ahead of its end: beside the one in use, and tried."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        service = DpsWorld(world)
        service.enrolments.put_credential_policy("month", 30)
        made = service.enrol(credentialPolicyName="month")
        sntp = world.sntp()
        service.image(*made.keys, csr=True, sntp=sntp, files={"/main.py": MAIN})
        self.boot()
        sntp.offset_s = 22 * 86400


SCENES: dict[str, Callable[[World], Case]] = {
    "first boot": FirstBoot,
    "key change": KeyChange,
    "provisioning service": lambda world: Provisioned(world, False),
    "issued certificate": lambda world: Provisioned(world, True),
    "renewed certificate": Renewed,
}


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
@pytest.mark.parametrize("scene", SCENES)
def test_device_connects_as_itself_after_a_power_cut(world, scene):
    SCENES[scene](world).run(4, len(scene))


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
@pytest.mark.parametrize("scene", SCENES)
def test_device_connects_as_itself_after_a_power_cut_at_every_operation(world, scene):
    SCENES[scene](world).run(None, 0)


def provisioned_over_the_console(world: World, count: int | None) -> None:
    """csr() and install() of a board, cut: asking again, or nothing at all, brings it through."""
    hub = world.hub()
    flash = world.image(hub.port, files={"/main.py": MAIN})
    edit(flash, sas1=None, sas2=None)
    calls = Calls(flash, world.leg)
    authority = Authority()
    fresh = flash.read_bytes()
    calls.csr()
    for n, mode in sample_of(12, count, 5):
        flash.write_bytes(fresh)
        calls.run("from outpost import provision\nprovision.csr()", "--cut", f"{n}:{mode}")
        born, csr = calls.born(), calls.csr()
        chain = authority.sign(csr)
        before = flash.read_bytes()
        leaf = chain[: 4 + int.from_bytes(chain[2:4], "big")]
        world.registry.update(
            DEVICE_ID,
            auth="selfSigned",
            primary_key="",
            secondary_key="",
            primary_thumbprint=thumbprint(born),
            secondary_thumbprint=thumbprint(leaf),
        )
        flash.write_bytes(before)
        calls.install(chain, None, "--cut", f"{n}:{mode}")
        board = world.board(flash, restarts=False)
        line_number(board, rf"hub +connected device={DEVICE_ID} ")
        assert board.wait_exit(60) == EXIT_RESET
        board.stop()
        assert entries(flash, "born")["born"] == born


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_power_cut_while_it_is_provisioned_leaves_a_device_that_connects(world):
    provisioned_over_the_console(world, 4)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_power_cut_at_every_operation_while_it_is_provisioned(world):
    provisioned_over_the_console(world, None)
