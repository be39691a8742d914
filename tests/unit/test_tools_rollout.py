"""Rollouts: waves, the limit of failures, what the file keeps, and how it is taken up again."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence

import pytest
from outpost_tools import fleetplan
from outpost_tools.errors import HubTrouble, OutpostError
from outpost_tools.rollout import Away, Limits, Outcome, Rollout
from outpost_tools.waves import AWAY, DONE, FAILED, SENT, WAITING, Ledger, plan

TEN = [f"pump-{n}" for n in range(10)]
QUICK = Limits(patience_s=0.2, poll_s=0.01)


class Fleet:
    """Devices that do as they are told: good, bad, silent, away, refuses, has it."""

    kind = "trust"
    what = {"version": 5}

    def __init__(self, **manners: str) -> None:
        self.manners = {name.replace("_", "-"): how for name, how in manners.items()}
        self.pushed: list[str] = []
        self._lock = threading.Lock()

    def push(self, device_id: str) -> Outcome | None:
        how = self.manners.get(device_id, "good")
        if how == "away":
            raise Away("it is not connected")
        with self._lock:
            self.pushed.append(device_id)
        if how == "refuses":
            raise OutpostError("it does not take it")
        return Outcome(True, "it had it") if how == "has it" else None

    def outcomes(self, device_ids: Sequence[str]) -> Mapping[str, Outcome]:
        told = {"good": Outcome(True), "bad": Outcome(False, "went back")}
        found = {one: told.get(self.manners.get(one, "good")) for one in device_ids}
        return {one: outcome for one, outcome in found.items() if outcome and one in self.pushed}


def rollout(tmp_path, fleet, sizes="1,30%", limits=QUICK, devices=TEN, events=None, **options):
    ledger = Ledger(tmp_path / "state" / "trust-5.jsonl")
    with ledger.held():
        if not ledger.begun:
            ledger.begin(fleet.kind, fleet.what, plan(devices, sizes))
        made = options.pop("made", {})
        made.setdefault("tell", events.append if events is not None else lambda event: None)
        good = Rollout(ledger, fleet, limits, **made).run(**options)
    return good, ledger


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ("1,10%,30%", [1, 1, 3, 5]),
        ("100%", [10]),
        ("25", [10]),
        ("4,4,4", [4, 4, 2]),
        ("1%", [1, 9]),
    ],
)
def test_waves_hold_every_device_once_and_are_as_large_as_was_said(sizes, counts):
    waves = plan(TEN, sizes)
    assert [len(wave) for wave in waves] == counts
    assert [one for wave in waves for one in wave] == TEN


@pytest.mark.parametrize("sizes", ["", "0", "x", "10%%", "101%", "1,,2", "-1", "1.5"])
def test_sizes_that_are_none_get_a_sentence(sizes):
    with pytest.raises(OutpostError, match="how large the waves are"):
        plan(TEN, sizes)


def test_a_wave_begins_when_everyone_of_the_one_before_was_heard_of(tmp_path):
    events: list[dict] = []
    good, ledger = rollout(tmp_path, Fleet(), events=events)
    assert good and ledger.counts()[DONE] == 10
    begun = [n for n, event in enumerate(events) if event["event"] == "wave"]
    assert [events[n]["devices"] for n in begun] == [1, 3, 6]
    for n in begun[1:]:
        wave_before = ledger.waves[events[n]["number"] - 2]
        done = {e["device"] for e in events[:n] if e.get("state") == DONE}
        assert set(wave_before) <= done


def test_one_failure_too_many_and_nobody_of_a_later_wave_is_sent_anything(tmp_path):
    fleet = Fleet(pump_0="bad")
    events: list[dict] = []
    good, ledger = rollout(tmp_path, fleet, events=events)
    assert not good and fleet.pushed == ["pump-0"]
    assert ledger.why("pump-0") == "went back"
    assert events[-1]["event"] == "stopped" and "1 failed" in events[-1]["why"]


def test_failures_up_to_the_limit_are_borne_and_still_are_no_success(tmp_path):
    fleet = Fleet(pump_0="bad", pump_5="refuses")
    limits = Limits(failures=2, patience_s=0.2, poll_s=0.01)
    good, ledger = rollout(tmp_path, fleet, limits=limits)
    assert not good and ledger.counts() == {WAITING: 0, SENT: 0, DONE: 8, FAILED: 2, AWAY: 0}


def test_within_a_wave_too_nobody_else_is_sent_it_after_one_failure_too_many(tmp_path):
    fleet = Fleet(pump_0="refuses")
    limits = Limits(parallel=1, patience_s=0.2, poll_s=0.01)
    rollout(tmp_path, fleet, sizes="100%", limits=limits)
    assert fleet.pushed == ["pump-0"]


def test_a_device_that_took_it_and_is_never_heard_of_again_is_a_failure(tmp_path):
    good, ledger = rollout(tmp_path, Fleet(pump_0="silent"))
    assert not good and "not heard of" in ledger.why("pump-0")


def test_devices_that_are_away_stop_nothing_and_are_taken_by_the_next_run(tmp_path):
    fleet = Fleet(pump_0="away", pump_7="away")
    good, ledger = rollout(tmp_path, fleet)
    assert good and ledger.in_state(AWAY) == ["pump-0", "pump-7"]
    fleet.manners.clear()
    fleet.pushed.clear()
    good, ledger = rollout(tmp_path, fleet)
    assert good and sorted(fleet.pushed) == ["pump-0", "pump-7"]
    assert ledger.counts()[DONE] == 10


def test_who_has_it_already_is_done_at_once(tmp_path):
    good, ledger = rollout(tmp_path, Fleet(pump_0="has it"))
    assert good and ledger.why("pump-0") == "it had it"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", range(1, 24))
def test_killed_at_any_point_the_next_run_ends_it_and_sends_nobody_done_a_second_time(
    tmp_path, after
):
    fleet = Fleet()
    left = [after]

    def tell(event: dict) -> None:
        left[0] -= 1
        if not left[0]:
            raise Killed

    limits = Limits(parallel=1, patience_s=1, poll_s=0.01)
    with pytest.raises(Killed):
        rollout(tmp_path, fleet, limits=limits, made={"tell": tell})
    done = set(Ledger(tmp_path / "state" / "trust-5.jsonl").in_state(DONE))
    fleet.pushed, before = [], fleet.pushed
    # What they were sent before, they tell of now.
    fleet.outcomes = lambda ids: {one: Outcome(True) for one in ids if one in before + fleet.pushed}  # type: ignore[method-assign]
    good, ledger = rollout(tmp_path, fleet, limits=limits)
    assert good and ledger.counts()[DONE] == 10
    assert not done & set(fleet.pushed) and len(fleet.pushed) == len(set(fleet.pushed))


def test_after_a_ctrl_c_nobody_else_is_sent_it(tmp_path):
    fleet = Fleet()

    def tell(event: dict) -> None:
        if event["event"] == "device":
            raise KeyboardInterrupt

    limits = Limits(parallel=1, patience_s=1, poll_s=0.01)
    with pytest.raises(KeyboardInterrupt):
        rollout(tmp_path, fleet, sizes="100%", limits=limits, made={"tell": tell})
    assert len(fleet.pushed) < 3


def test_a_torn_last_line_counts_for_nothing_and_is_taken_away(tmp_path):
    _, ledger = rollout(tmp_path, Fleet())
    with ledger.path.open("ab") as file:
        file.write(b'{"device": "pump-0", "state": "fai')
    again = Ledger(ledger.path)
    assert again.counts()[DONE] == 10
    with again.held():
        again.set("pump-0", FAILED, "x")
    assert Ledger(ledger.path).state("pump-0") == FAILED


@pytest.mark.parametrize("damage", [b"nonsense\n", b'{"format": 9}\n', b'{"device": 1}\n'])
def test_a_damaged_state_gets_a_sentence(tmp_path, damage):
    path = tmp_path / "s.jsonl"
    path.write_bytes(damage)
    with pytest.raises(OutpostError, match="damaged|another format"):
        Ledger(path)


def test_a_rollout_of_something_else_is_not_gone_on_with(tmp_path):
    rollout(tmp_path, Fleet())
    other = Fleet()
    other.what = {"version": 6}
    with pytest.raises(OutpostError, match="something else"):
        rollout(tmp_path, other)


def test_two_programs_do_not_work_on_one_rollout(tmp_path):
    path = tmp_path / "s.jsonl"
    with Ledger(path).held(), pytest.raises(OutpostError, match="Another program"):
        with Ledger(path).held():
            pass


def test_failed_devices_are_tried_again_when_asked_and_those_that_have_it_after_all_are_done(
    tmp_path,
):
    fleet = Fleet(pump_0="silent", pump_1="bad")
    limits = Limits(failures=2, patience_s=0.05, poll_s=0.01)
    rollout(tmp_path, fleet, limits=limits)
    fleet.manners = {"pump-1": "bad"}
    fleet.pushed.clear()
    fleet.pushed.append("pump-0")  # it tells now
    good, ledger = rollout(tmp_path, fleet, limits=limits)
    assert not good and ledger.in_state(FAILED) == ["pump-1"] and fleet.pushed == ["pump-0"]
    fleet.manners = {}
    good, ledger = rollout(tmp_path, fleet, limits=limits, retry=True)
    assert good and ledger.counts()[DONE] == 10


def test_between_waves_it_pauses_and_not_before_the_first_or_after_the_last(tmp_path):
    slept: list[float] = []
    limits = Limits(pause_s=9, patience_s=1, poll_s=0)
    rollout(tmp_path, Fleet(), limits=limits, made={"sleep": slept.append})
    assert slept.count(9) == 2


def test_the_state_is_for_its_owner_alone_and_is_lines_of_json(tmp_path):
    _, ledger = rollout(tmp_path, Fleet())
    assert os.stat(ledger.path).st_mode & 0o077 == 0
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    waves = [["pump-0"], TEN[1:4], TEN[4:]]
    assert lines[0] == {"format": 1, "kind": "trust", "what": {"version": 5}, "waves": waves}


# What a run that was cut off leaves behind


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_plan_that_was_cut_off_while_it_was_written_is_made_anew_and_keeps_its_waves(
    tmp_path, share
):
    """Half of a plan would put everyone else into one last wave."""
    path = tmp_path / "s.jsonl"
    ledger = Ledger(path)
    with ledger.held():
        ledger.begin("trust", Fleet.what, plan(TEN, "1,10%,30%"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    again = Ledger(path)
    assert not again.begun
    with again.held():
        again.begin("trust", Fleet.what, plan(TEN, "1,10%,30%"))
    assert [len(wave) for wave in Ledger(path).waves] == [1, 1, 3, 5]


def test_who_only_looks_at_a_rollout_takes_nothing_off_the_line_that_is_being_written(tmp_path):
    _, ledger = rollout(tmp_path, Fleet())
    with ledger.path.open("ab") as file:
        file.write(b'{"device": "pump-0", "state": "fai')
    before = ledger.path.read_bytes()
    assert Ledger(ledger.path).counts()[DONE] == 10
    assert ledger.path.read_bytes() == before


def test_a_full_disk_ends_the_rollout_with_a_sentence_and_the_file_stays_readable(
    tmp_path, monkeypatch
):
    ledger = Ledger(tmp_path / "s.jsonl")
    write = os.write
    with ledger.held():
        ledger.begin("trust", Fleet.what, plan(TEN, "100%"))

        def full(handle: int, data: bytes) -> int:
            if len(data) < 20:
                raise OSError(28, "No space left on device")
            return write(handle, data[:20])

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OutpostError, match="No space left"):
            for _ in range(3):
                ledger.set("pump-0", DONE)
        monkeypatch.undo()
    with Ledger(ledger.path).held() as again:
        assert again.begun
        again.set("pump-1", DONE)
    assert Ledger(ledger.path).state("pump-1") == DONE


def test_a_place_that_cannot_be_written_to_gets_a_sentence(tmp_path):
    (tmp_path / "s.lock").mkdir()
    with pytest.raises(OutpostError, match="Cannot write"), Ledger(tmp_path / "s.jsonl").held():
        pass


def test_the_file_of_another_rollout_is_left_as_it_is(tmp_path):
    rollout(tmp_path, Fleet(), devices=TEN[:3])
    other = Fleet()
    other.what = {"version": 6}
    ledger = Ledger(tmp_path / "state" / "trust-5.jsonl")
    before = ledger.path.read_bytes()
    with ledger.held(), pytest.raises(OutpostError, match="something else"):
        fleetplan.begin(ledger, other, [*ledger.waves, TEN[3:]])
    assert ledger.path.read_bytes() == before


class Registered:
    """An operator's view of a hub: its devices alone."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids

    def devices(self) -> list[dict]:
        return [{"deviceId": one} for one in self.ids]


def test_newcomers_of_a_rollout_go_out_in_waves_as_well(tmp_path):
    """`--only` one device first and then everyone: that is not all of the others at once."""
    ledger = Ledger(tmp_path / "s.jsonl")
    with ledger.held():
        ledger.begin("trust", Fleet.what, [["pump-3"]])
        found = fleetplan.plan(Registered(TEN), ledger, None, [], "1,30%")
    assert [len(wave) for wave in found] == [1, 1, 3, 5]
    assert sorted(one for wave in found for one in wave) == TEN


# Trouble between here and the hub says nothing of a device


class Cut(Fleet):
    """The hub is lost when so many calls were made, and back after `lasts` more."""

    def __init__(self, after: int, lasts: int = 1 << 30) -> None:
        super().__init__()
        self.left, self.lasts = after, lasts

    def _call(self) -> None:
        self.left -= 1
        if -self.lasts <= self.left < 0:
            raise HubTrouble("The hub cannot be used: no connection: does it run there?")

    def push(self, device_id: str) -> Outcome | None:
        self._call()
        return super().push(device_id)

    def outcomes(self, device_ids: Sequence[str]) -> Mapping[str, Outcome]:
        self._call()
        return super().outcomes(device_ids)


@pytest.mark.parametrize("after", range(8))
def test_a_lost_hub_ends_the_run_and_is_no_failure_of_any_device(tmp_path, after):
    limits = Limits(parallel=1, patience_s=0.05, poll_s=0.01)
    with pytest.raises(HubTrouble, match="does it run there"):
        rollout(tmp_path, Cut(after), limits=limits)
    counts = Ledger(tmp_path / "state" / "trust-5.jsonl").counts()
    assert counts[FAILED] == 0
    good, ledger = rollout(tmp_path, Fleet(), limits=limits)
    assert good and ledger.counts()[DONE] == 10


def test_a_hub_that_does_not_answer_for_a_moment_does_not_end_the_wait(tmp_path):
    events: list[dict] = []
    good, _ = rollout(tmp_path, Cut(1, lasts=3), sizes="100%", devices=TEN[:1], events=events)
    assert good
    assert sum(event["event"] == "trouble" for event in events) == 1, "it is said once"


def test_after_a_ctrl_c_it_is_said_who_still_gets_the_whole_of_it(tmp_path):
    events: list[dict] = []
    going = threading.Event()

    class Slow(Fleet):
        def push(self, device_id: str) -> Outcome | None:
            going.set()
            return super().push(device_id)

    def tell(event: dict) -> None:
        events.append(event)
        if event["event"] == "device":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollout(tmp_path, Slow(), sizes="100%", made={"tell": tell})
    assert "ending" in [event["event"] for event in events]


def test_a_fleet_of_five_hundred_is_no_burden_to_the_file(tmp_path):
    many = [f"pump-{n}" for n in range(500)]
    good, ledger = rollout(tmp_path, Fleet(), sizes="1,10%,30%", devices=many)
    assert good and [len(wave) for wave in ledger.waves] == [1, 50, 150, 299]
    assert ledger.path.stat().st_size < 500 * 300
    assert Ledger(ledger.path).counts()[DONE] == 500


def test_a_fleet_of_one_is_one_wave(tmp_path):
    assert plan(["pump-1"], "1,10%,30%") == [["pump-1"]]
    good, ledger = rollout(tmp_path, Fleet(), sizes="1,10%,30%", devices=["pump-1"])
    assert good and ledger.counts()[DONE] == 1
