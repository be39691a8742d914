"""Slots, trial, commit and back, run by CPython over the virtual board's NVS: the power goes at
every flash operation of NVS, and what is in use is the old bundle or the new one, whole. A writer
that is broken on purpose is caught by the same loop."""

from __future__ import annotations

import calendar
import sys
import time
import types
from pathlib import Path
from typing import Any

import bundles
import pytest
from chip import CLEAN, ODD, TORN, Chip
from devicelib import Library
from outpost_tools.bundle import Endpoint
from storekeys import Nvs, PowerGone
from test_lib_bundle import verify

NOW = int(time.time())
UNIX_2000 = 946684800


class Clock:
    def __init__(self, vouched: bool = True) -> None:
        self.floor, self._vouched = NOW - 10 * 86400, vouched

    def vouched(self) -> bool:
        return self._vouched

    def raise_floor(self, unix_s: int) -> None:
        self.floor = max(self.floor, unix_s)


class Way:
    """What a Walk is to those who change trust."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.config = types.SimpleNamespace(trial_s=600, recovery_after_s=3600)
        self.connection: Any = None

    def at_least(self) -> int:
        return NOW if self.clock.vouched() else self.clock.floor

    def date(self) -> int | None:
        return NOW - UNIX_2000 if self.clock.vouched() else None


class Board:
    """lib/outpost's modules over a chip's NVS and a folder; start() is a start of the device."""

    def __init__(self, folder: Path, edits: dict | None = None) -> None:
        self.folder, self.edits = folder, edits
        self.chip = Chip(folder / "flash.bin")
        assert self.chip.start() == 0
        (folder / "factory.bin").write_bytes(bundles.data(1))
        self.now_ms = 0
        self.start()

    def start(self) -> None:
        esp32 = types.SimpleNamespace(NVS=lambda name: Nvs(self.chip, name))
        machine = types.SimpleNamespace(RTC=lambda: types.SimpleNamespace(memory=lambda *a: b""))
        sys.modules["machine"] = machine  # type: ignore[assignment]
        self.lib = lib = Library(esp32, self.edits)
        lib.agreed.TRUST_SLOTS = tuple(str(self.folder / f"{one}.bin") for one in "ab")
        lib.agreed.FACTORY_ROOTS_PATH = str(self.folder / "factory.bin")
        lib.log.say = lambda *words: self.said.append(words)
        lib.log.uptime_ms = lambda: self.now_ms
        lib.clock.stamp = lambda text: calendar.timegm(time.strptime(text, "%Y%m%d%H%M%S"))
        lib.bundle.verify = verify
        self.said: list[Any] = []
        self.trust, self.trusting, self.install = lib.trust, lib.trusting, lib.install
        self.way = Way()
        self.nvs = Nvs(self.chip)
        # As guard.py does it.
        lost = self.entry("tr-high") is not None and self.entry("tr-slot") is None
        if self.entry("tr-try") is not None or lost:
            self.trust.trial = self.trusting.resumed()

    def restart(self) -> None:
        assert self.chip.restart() == 0
        self.start()

    def deliver(self, data: bytes) -> tuple[int, dict]:
        path = self.folder / "delivered.bin"
        path.write_bytes(data)
        return self.install.install(str(path), self.way)

    def entry(self, name: str) -> int | None:
        try:
            return self.nvs.get_i32(name)
        except OSError:
            return None

    def commit(self) -> None:
        assert self.trust.trial, "nothing is on trial"
        self.trust.trial.connected(object())
        self.trusting.commit(self.way)

    def untrusted(self) -> bool:
        error = self.lib.errors.TlsError("not trusted")
        error.untrusted = True
        return self.trusting.failed(error, self.way)

    def in_use(self) -> int:
        """The version in use, which must be whole."""
        h = self.install.usable(self.trust.in_use())
        assert h is not None and list(self.trust.roots(self.trust.in_use()))
        return h.version


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path)


def test_a_bundle_is_in_use_only_after_the_commit(board):
    assert board.deliver(bundles.data(2, floor=2)) == (202, {"state": "trial", "version": 2})
    assert board.in_use() == 1 and board.trust.trial.version == 2
    board.commit()
    assert board.in_use() == 2 and board.trust.trial is None
    assert (board.entry("tr-high"), board.entry("tr-floor"), board.entry("tr-try")) == (2, 2, None)
    board.deliver(bundles.data(3))
    board.commit()
    assert board.in_use() == 3 and board.entry("tr-floor") == 2
    assert board.install.usable(board.lib.agreed.TRUST_SLOTS[0]).version == 2


def test_three_refusals_or_the_time_or_three_lives_end_a_trial(board):
    board.deliver(bundles.data(2))
    assert [board.untrusted() for _ in range(3)] == [False, False, True]
    assert board.trust.trial is None and board.entry("tr-out") == board.trusting.NOT_TRUSTED
    away = board.lib.errors.TlsError("cannot be reached")
    for reached, outcome in ((False, "NOT_REACHED"), (True, "SILENT")):
        board.deliver(bundles.data(2))
        if reached:
            board.trust.trial.connected(object())
        assert not board.trusting.failed(away, board.way)
        board.now_ms += 600_000
        assert board.trusting.failed(away, board.way)
        assert board.entry("tr-out") == getattr(board.trusting, outcome)
    board.deliver(bundles.data(2))
    for _ in range(3):
        board.restart()
        assert board.trust.trial.version == 2
    board.restart()
    assert board.trust.trial is None and board.entry("tr-out") == board.trusting.RESTARTED
    assert board.in_use() == 1 and board.entry("tr-lives") is None


def test_a_newer_bundle_takes_the_place_of_one_on_trial(board):
    board.deliver(bundles.data(2))
    board.deliver(bundles.data(3))
    assert board.trust.trial.version == 3
    board.restart()
    assert board.trust.trial.version == 3 and board.in_use() == 1


def test_a_file_that_is_refused_leaves_a_trial_alone(board):
    board.deliver(bundles.data(2))
    for bad in (bundles.data(3, "b"), bundles.data(1, hosts=("x",)), b"junk"):
        with pytest.raises(board.lib.errors.TrustError):
            board.deliver(bad)
    assert board.trust.trial.version == 2


def test_a_bundle_that_the_flash_lost_may_come_again_and_no_older_one(board):
    for version in (2, 3):
        board.deliver(bundles.data(version))
        board.commit()
    Path(board.trust.in_use()).write_bytes(b"OPTB")
    with pytest.raises(board.lib.errors.TrustError):
        list(board.trust.roots())
    for version in (1, 2):
        with pytest.raises(board.lib.errors.TrustError):
            board.deliver(bundles.data(version, hosts=("other.example",)))
    assert board.deliver(bundles.data(3))[0] == 202


def test_keys_of_a_bundle_that_was_never_in_use_sign_nothing(board):
    board.deliver(bundles.data(2, "ab", keys=bundles.keys("b")))
    for _ in range(3):
        board.untrusted()
    Path(board.trust.in_use()).write_bytes(b"")  # the factory's own is gone, and only 2 is whole
    with pytest.raises(board.lib.errors.TrustError):
        board.deliver(bundles.data(3, "b", keys=bundles.keys("b")))


# Time


def floor_after(board, issued: int, vouched: bool, not_after: str | None = None) -> int:
    board.way.clock = Clock(vouched)
    if not_after:
        board.way.connection = types.SimpleNamespace(facts={"not_after": not_after})
    board.deliver(bundles.data(2, issued=issued, expires=issued + 10**7))
    before = board.way.clock.floor
    for _ in range(3):
        board.untrusted()
    assert board.way.clock.floor == before, "a bundle that does not work says nothing of the time"
    board.deliver(bundles.data(2, issued=issued, expires=issued + 10**7))
    board.commit()
    return board.way.clock.floor


def test_the_issue_date_of_a_bundle_in_use_raises_the_floor_of_time(board):
    assert floor_after(board, NOW - 5000, True) == NOW - 5000


def test_it_does_so_without_a_clock_where_the_hubs_certificate_bears_it_out(tmp_path):
    year = 365 * 86400
    late = time.strftime("%Y%m%d%H%M%S", time.gmtime(NOW + year))
    board = Board(tmp_path)
    assert floor_after(board, NOW - 5000, False, late) == NOW - 5000


def test_a_signers_wrong_clock_does_not_take_a_device_out_of_its_hubs_days(tmp_path):
    late = time.strftime("%Y%m%d%H%M%S", time.gmtime(NOW + 86400))
    board = Board(tmp_path)
    assert floor_after(board, NOW + 10**8, False, late) == NOW - 10 * 86400
    board.way.clock = Clock(True)
    with pytest.raises(board.lib.errors.TrustError, match="future"):
        board.deliver(bundles.data(3, issued=NOW + 90000, expires=NOW + 10**7))


def test_expiry_goes_by_the_floor_where_nobody_vouches_for_the_clock(board):
    board.way.clock = Clock(False)
    old = NOW - 11 * 86400
    with pytest.raises(board.lib.errors.TrustError, match="expired"):
        board.deliver(bundles.data(2, issued=old - 5, expires=old))
    assert board.deliver(bundles.data(2, issued=old, expires=NOW - 86400))[0] == 202


# Revoking, and where to turn to


def places(name: str) -> tuple[Endpoint]:
    return (Endpoint(f"{name}.example", 443, bundles.root("R").der),)


def asked(board) -> list[str]:
    store = board.trusting.nvs()
    return [found[0] for found in board.lib.emergency._endpoints(store)]


def test_older_bundles_lead_to_their_recovery_endpoints_until_they_are_revoked(board):
    (board.folder / "factory.bin").write_bytes(bundles.data(1, recovery=places("first")))
    for version in (2, 3):
        board.deliver(bundles.data(version, recovery=places(f"v{version}")))
        board.commit()
    assert asked(board) == ["v3.example", "v2.example", "first.example"]
    revoke = board.lib.revoke.revoke
    assert revoke({"floor": 2}) == {"floor": 2, "version": 3}
    assert asked(board) == ["v3.example", "v2.example"]
    assert revoke({"floor": 3})["floor"] == 3
    assert asked(board) == ["v3.example"]
    assert revoke({"floor": 1}) == {"floor": 3, "version": 3}
    for wrong in ({"floor": 4}, {}, {"floor": -1}, {"floor": True}, {"floor": "3"}):
        with pytest.raises(board.lib.errors.TrustError):
            revoke(wrong)
    Path(board.trust.in_use()).write_bytes(b"")
    assert asked(board) == []


def test_the_floor_that_a_bundle_names_revokes_too(board):
    (board.folder / "factory.bin").write_bytes(bundles.data(1, recovery=places("first")))
    board.deliver(bundles.data(2, floor=2, recovery=places("v2")))
    assert asked(board) == ["first.example", "v2.example"]
    board.commit()
    assert asked(board) == ["v2.example"]


def test_an_emergency_is_three_misses_over_a_while_and_begins_anew_after_a_look(board):
    emergency, clock = board.lib.emergency, board.lib.clock
    begun = NOW
    clock.now = lambda: begun
    assert [emergency._due(100) for _ in range(5)] == [False] * 5
    begun += 100
    assert emergency._due(100)
    assert board.lib.emergency.run(board.way) is False  # no endpoint, and nothing newer is here
    assert [emergency._due(100) for _ in range(4)] == [False] * 4
    begun -= 50  # the clock was put back
    assert not emergency._due(100)
    begun += 100
    assert [emergency._due(100) for _ in range(2)] == [False, True]
    emergency.over()
    assert board.entry("tr-miss") is None and board.entry("tr-since") is None


def test_a_newer_bundle_that_is_here_is_tried_before_anybody_is_asked(board):
    board.deliver(bundles.data(2))
    board.now_ms += 600_000
    board.trusting.failed(board.lib.errors.TlsError("cannot be reached"), board.way)
    assert board.lib.emergency.run(board.way) is True and board.trust.trial.version == 2
    for _ in range(3):
        board.untrusted()
    assert board.lib.emergency.run(board.way) is False


# Power cuts

MODES = (CLEAN, TORN, ODD)


def change(board, good: bool) -> None:
    """A bundle comes; it works, or it does not."""
    board.deliver(bundles.data(3, floor=3))
    if good:
        board.commit()
    else:
        for _ in range(3):
            board.untrusted()


def cut_everywhere(folder: Path, edits: dict | None = None, each: bool = True) -> int:
    """At every operation, in every way that power goes (`each`) or in one of them, in turn."""
    cases = 0
    for good in (True, False):
        home = folder / str(good)
        home.mkdir()
        board = Board(home, edits)
        board.deliver(bundles.data(2))
        board.commit()
        files = {path: path.read_bytes() for path in home.glob("?.bin")}
        before = board.chip.nvs_bytes
        board.chip.restart()
        first = operations(board.chip)
        change(board, good)
        total = operations(board.chip) - first
        assert total > 8
        for n in range(1, total + 1):
            for mode in MODES if each else MODES[n % 3 :][:1]:
                for path in home.glob("?.bin"):
                    path.write_bytes(files[path]) if path in files else path.unlink()
                board.chip.nvs_bytes = before
                board.restart()
                board.chip.cut_after(n, mode, seed=n)
                try:
                    change(board, good)
                except PowerGone:
                    pass
                board.chip.cut_after(0)
                board.restart()
                check(board, good)
                cases += 1
        board.chip.close()
    return cases


def check(board, good: bool) -> None:
    """The old bundle or the new one is in use; a trial goes on or is over; the next one goes in."""
    held = board.in_use()
    assert held in ((2, 3) if good else (2,))
    if board.trust.trial:
        assert held == 2 and board.trust.trial.version == 3
        board.commit()
        held = 3
    if held == 3:
        assert (board.entry("tr-high"), board.entry("tr-floor")) == (3, 3)
    assert board.entry("tr-try") is None and board.entry("tr-lives") is None
    assert board.deliver(bundles.data(4, floor=4))[0] == 202
    board.restart()
    board.commit()
    assert board.in_use() == 4
    assert (board.entry("tr-high"), board.entry("tr-floor")) == (4, 4)
    kept = [board.install.usable(path).version for path in board.lib.agreed.TRUST_SLOTS]
    assert sorted(kept)[1] == 4


def operations(chip: Chip) -> int:
    counts = chip.counts()
    return counts.erases + counts.programs


def test_a_power_cut_at_every_operation_leaves_the_old_bundle_or_the_new(tmp_path):
    assert cut_everywhere(tmp_path, each=False) > 30


@pytest.mark.exhaustive
def test_a_power_cut_of_every_kind_at_every_operation_leaves_the_old_bundle_or_the_new(tmp_path):
    assert cut_everywhere(tmp_path) > 90


BROKEN = {
    "the trial's mark goes before what follows from the commit": {
        "trusting": (
            "    write(store, agreed.NVS_TRUST_SLOT, trial.slot)\n",
            "    erase(store, formats.NVS_TRUST_TRIAL)\n"
            "    write(store, agreed.NVS_TRUST_SLOT, trial.slot)\n",
        )
    },
    "the bundle goes into the slot that is in use": {
        "install": (
            "return 1 if trust.in_use() == agreed.TRUST_SLOTS[0] else 0",
            "return 0 if trust.in_use() == agreed.TRUST_SLOTS[0] else 1",
        )
    },
    "a commit that was cut off is not finished": {
        "trusting": (
            "        _tidy(store, h.version if h else 0, h.floor if h else 0)",
            "        pass",
        )
    },
    "it is in use before it was tried": {
        "trusting": (
            "    write(store, formats.NVS_TRUST_TRIAL, slot)\n",
            "    write(store, formats.NVS_TRUST_TRIAL, slot)\n"
            "    write(store, agreed.NVS_TRUST_SLOT, slot)\n",
        )
    },
}


@pytest.mark.parametrize("fault", BROKEN)
def test_the_same_loop_catches_a_writer_that_was_broken_on_purpose(tmp_path, fault):
    with pytest.raises(AssertionError):
        cut_everywhere(tmp_path, BROKEN[fault])
