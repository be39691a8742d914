"""Rollouts: waves, the limit of failures, what the file keeps, and how it is taken up again."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence

import pytest
from outpost_tools.errors import OutpostError
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
    assert lines[0] == {"format": 1, "kind": "trust", "what": {"version": 5}}
