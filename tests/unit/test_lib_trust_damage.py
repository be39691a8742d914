"""What becomes of trust where flash, NVS or a trial go wrong: a device keeps a way to the next
bundle, and none to an older one. The device's own modules, run by CPython."""

from __future__ import annotations

import contextlib
import time
import types
from pathlib import Path
from typing import Any

import bundles
import pytest
from outpost_tools import bundle, envelope
from test_lib_trusting import NOW, Board, asked, places


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path)


def away(board) -> None:
    """The hub is not there for as long as the trial may take."""
    board.now_ms += 600_000
    assert board.trusting.failed(board.lib.errors.TlsError("cannot be reached"), board.way)


def give_up(board) -> None:
    assert [board.untrusted() for _ in range(3)] == [False, False, True]


def lose(board, name: str) -> None:
    """What a bit of the NVS that is another does to an entry."""
    board.nvs.erase_key(name)


# The bundle in use is damaged


def history() -> list[Any]:
    """Keys a up to 2, keys b from 3 on."""
    return [
        bundles.signed(bundles.make(1)),
        bundles.signed(bundles.make(3, keys=bundles.keys("b")), "ab"),
        bundles.signed(bundles.make(5, keys=bundles.keys("b")), "b"),
        bundles.signed(bundles.make(6, keys=bundles.keys("b")), "b"),
    ]


@pytest.mark.parametrize("newest", [3, 4])
def test_chain_of_keys_leads_from_the_factory_where_newer_bundles_are_damaged(board, newest):
    made = history()
    for version in (2, 3):
        board.deliver(bundle.deliverable(made[:version]))
        board.commit()
    for path in board.lib.agreed.TRUST_SLOTS:
        Path(path).write_bytes(b"OPTB")
    for old in (made[:2], [bundles.signed(bundles.make(4, keys=bundles.keys("b")), "b")]):
        with pytest.raises(board.lib.errors.TrustError):
            board.deliver(bundle.deliverable(old))
    assert board.deliver(bundle.deliverable(made[:newest]))[0] == 202
    board.commit()
    assert board.in_use() == made[newest - 1].version


def test_a_flipped_bit_at_every_byte_of_the_head_in_use_leaves_a_way_to_the_next(board):
    made = [
        bundles.signed(bundles.make(1)),
        bundles.signed(bundles.make(2, keys=bundles.keys("bc")), "abc"),
        bundles.signed(bundles.make(3, keys=bundles.keys("bc")), "b"),
    ]
    board.deliver(bundle.deliverable(made[:2]))
    board.commit()
    path = Path(board.trust.in_use())
    good = path.read_bytes()
    head = len(made[1].encode_link()) - 1
    for at in range(head):
        path.write_bytes(good[:at] + bytes((good[at] ^ 1 << at % 8,)) + good[at + 1 :])
        assert board.deliver(bundle.deliverable(made))[0] == 202, at
        with pytest.raises(board.lib.errors.TrustError):
            board.deliver(made[0].encode())


def test_a_bundle_that_the_flash_did_not_keep_is_not_tried(board):
    def short(path, mode):
        f = open(path, mode)
        if mode == "wb":
            whole = f.write
            f = types.SimpleNamespace(write=lambda data: whole(data[:-1]), close=f.close)
            f = contextlib.closing(f)
        return f

    board.install.open = short
    with pytest.raises(board.lib.errors.TrustError, match="did not keep"):
        board.deliver(bundles.data(2))
    del board.install.open
    assert board.trust.trial is None and board.entry("tr-try") is None
    assert board.deliver(bundles.data(2))[0] == 202


def test_a_device_whose_bundle_in_use_is_lost_can_still_be_given_one(board):
    board.deliver(bundles.data(2))
    board.commit()
    (board.folder / "factory.bin").write_bytes(bundle.factory([bundles.root().der], NOW))
    Path(board.trust.in_use()).write_bytes(b"")
    assert board.trust.changeable()


def test_of_those_who_may_command_only_the_signers_of_trust_sign_the_first_bundle(board):
    (board.folder / "factory.bin").write_bytes(bundle.factory([bundles.root().der], NOW))
    roles = {"a": ("keys", "software"), "b": ("trust", "keys")}
    keys = {
        name: (b"\x04" + envelope.point_of(bundles.key(name)), role) for name, role in roles.items()
    }
    found = types.SimpleNamespace(fleet=bundles.FLEET, keys=keys)
    board.lib.signed.signers = lambda: found
    with pytest.raises(board.lib.errors.TrustError, match="of its keys signed"):
        board.deliver(bundles.data(1, "a", keys=bundles.keys("a")))
    assert board.deliver(bundles.data(1, "b", keys=bundles.keys("b")))[0] == 202


# NVS


@pytest.mark.parametrize("slots", [1, 2])
def test_a_lost_mark_of_the_slot_in_use_is_found_again_and_brings_no_older_bundle(board, slots):
    for version in range(2, 2 + slots):
        board.deliver(bundles.data(version))
        board.commit()
    lose(board, "tr-slot")
    board.restart()
    assert board.in_use() == 1 + slots
    # Also in the middle of a trial of the next one.
    board.deliver(bundles.data(9))
    lose(board, "tr-slot")
    board.restart()
    assert board.in_use() == 1 + slots and board.trust.trial.version == 9


def test_an_image_with_a_newer_bundle_is_used_though_nvs_names_a_slot(board):
    """Somebody has written the file system anew, and kept the NVS."""
    board.deliver(bundles.data(2))
    board.commit()
    for path in board.folder.glob("?.bin"):
        path.unlink()
    factory = board.folder / "factory.bin"
    factory.write_bytes(bundles.data(1, recovery=places("old")))
    board.restart()
    board.lib.emergency._fetched = lambda found, way: False
    assert not board.lib.emergency.run(board.way) and board.entry("tr-slot") == 0
    assert asked(board) == ["old.example"]
    factory.write_bytes(bundles.data(7))
    board.restart()
    assert board.lib.emergency.run(board.way)
    assert board.trust.in_use() == str(factory) and board.entry("tr-high") == 7
    board.restart()
    assert board.in_use() == 7
    with pytest.raises(board.lib.errors.TrustError):
        board.deliver(bundles.data(6))
    assert board.deliver(bundles.data(8))[0] == 202


def test_nvs_that_is_full_at_any_moment_leaves_the_old_bundle_or_the_new(board, tmp_path):
    board.deliver(bundles.data(2))
    board.commit()
    files = {path: path.read_bytes() for path in tmp_path.glob("?.bin")}
    before, store = board.chip.nvs_bytes, type(board.nvs)
    write, left = store.set_i32, [0]

    def full(self, name, value):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(-0x1105)
        write(self, name, value)

    store.set_i32 = full
    try:
        for count in range(12):
            for path, content in files.items():
                path.write_bytes(content)
            board.chip.nvs_bytes = before
            left[0] = 100
            board.restart()
            left[0] = count
            try:
                board.deliver(bundles.data(3, floor=3))
                board.commit()
            except board.lib.errors.TrustError:
                pass
            held = board.in_use()
            if board.trust.trial:
                away_is = board.lib.errors.TlsError("cannot be reached")
                board.now_ms += 600_000
                try:
                    board.trusting.failed(away_is, board.way)
                except board.lib.errors.TrustError:
                    pass
                assert board.trust.trial is None and board.in_use() == held == 2
            left[0] = 100
            board.restart()
            assert board.in_use() == held or board.trust.trial
            if board.trust.trial:
                board.commit()
            if board.in_use() == 2:
                board.deliver(bundles.data(3, floor=3))
                board.commit()
            assert (board.in_use(), board.entry("tr-high"), board.entry("tr-floor")) == (3, 3, 3)
    finally:
        store.set_i32 = write


# What is tried in an emergency


def test_a_bundle_that_came_too_early_is_tried_when_no_hub_is_trusted_any_more(board):
    """The hub had not moved yet: the trial failed for want of trust. Now it has moved."""
    board.deliver(bundles.data(2))
    give_up(board)
    assert board.lib.emergency.run(board.way) is True and board.trust.trial.version == 2
    board.commit()
    assert board.in_use() == 2


@pytest.mark.parametrize("end", [give_up, away])
def test_a_bundle_that_never_works_and_the_recovery_endpoints_take_turns(board, end):
    board.deliver(bundles.data(2))
    end(board)
    fetched = []
    board.lib.emergency._fetched = lambda found, way: fetched.append(found[0])
    (board.folder / "factory.bin").write_bytes(bundles.data(1, recovery=places("first")))
    for turn in range(4):
        assert board.lib.emergency.run(board.way) is (turn % 2 == 0)
        if turn % 2 == 0:
            end(board)
        assert len(fetched) == (turn + 1) // 2
        while not board.lib.emergency._due(0):
            pass


def test_of_two_newer_bundles_the_newest_is_tried(board):
    """NVS was lost, or written anew, and both slots hold what was once in use."""
    for version in (2, 3):
        board.deliver(bundles.data(version))
        board.commit()
    for name in ("tr-slot", "tr-high", "tr-floor"):
        try:
            lose(board, name)
        except OSError:
            pass
    board.restart()
    assert board.in_use() == 1
    assert board.lib.emergency.run(board.way) and board.trust.trial.version == 3
    board.commit()
    assert board.in_use() == 3


# What is reported


def test_a_trial_that_is_no_more_is_not_reported_as_one(board):
    board.deliver(bundles.data(2))
    assert board.lib.trustfacts.facts(board.way, None)["change"]["outcome"] == "on trial"
    lose(board, "tr-try")  # as a power cut leaves it between two steps of another delivery
    board.restart()
    assert board.lib.trustfacts.facts(board.way, None)["change"] is None


@pytest.mark.parametrize("why", [MemoryError, None])
def test_a_file_that_was_judged_late_and_refused_is_reported(board, why):
    path = board.folder / "new.bin"
    path.write_bytes(b"junk")
    if why:
        board.lib.bundle.accepted = lambda *args, **more: (_ for _ in ()).throw(why())
    with pytest.raises(why or board.lib.errors.TrustError):
        board.install.late(str(path), board.way)
    change = board.lib.trustfacts.facts(board.way, None)["change"]
    assert change == {"version": 0, "outcome": "it was refused"}


def test_a_connection_that_was_resumed_does_not_take_back_which_root_carried_the_last(board):
    told: list[str] = []
    session = types.SimpleNamespace(publish=lambda topic, body, qos: told.append(body.decode()))
    board.way.profile = types.SimpleNamespace(twin_report=lambda *names: "t", REPORT_QOS=0)
    board.way.who = types.SimpleNamespace(device_id="pump")
    facts = board.lib.trustfacts

    def report(anchor: bytes | None) -> str | None:
        done = facts.report(board.way, anchor, session)
        if done is False:
            return None
        facts.told(done)
        return told.pop()

    assert '"anchor": "0101' in report(b"\1" * 32)
    assert report(b"\1" * 32) is None and report(None) is None and report(b"\1" * 32) is None
    assert '"anchor": "0202' in report(b"\2" * 32) and report(None) is None
    board.deliver(bundles.data(2))
    board.commit()
    said = report(None)
    assert '"version": 2' in said and "anchor" not in said
    assert '"anchor": "0202' in report(b"\2" * 32)  # no news of it, and once more does no harm


def test_a_file_judged_before_there_is_a_clock_is_judged_by_the_floor_of_time(board):
    floor = NOW - 10 * 86400
    board.way.at_least = board.way.date = lambda: None
    board.lib.clock.Clock = lambda servers: types.SimpleNamespace(floor=floor)
    with pytest.raises(board.lib.errors.TrustError, match="expired"):
        board.deliver(bundles.data(2, issued=floor - 5, expires=floor))
    assert board.deliver(bundles.data(2, issued=floor - 5, expires=floor + 1))[0] == 202


def test_the_second_failure_of_the_same_kind_is_news_and_has_all_its_lives(board):
    for _ in range(2):
        board.deliver(bundles.data(2))
        assert board.entry("tr-rep") is None and board.entry("tr-lives") is None
        board.restart()
        board.restart()
        give_up(board)
        board.nvs.set_i32("tr-rep", 7)  # it was reported
    board.deliver(bundles.data(2))
    board.restart()
    assert board.entry("tr-lives") == 1
    board.deliver(bundles.data(3))
    assert board.entry("tr-lives") is None


def test_a_signers_clock_that_is_hours_fast_does_not_put_the_floor_of_time_ahead(board):
    board.deliver(bundles.data(2, issued=NOW + 80000, expires=NOW + 10**7))
    board.commit()
    assert board.way.clock.floor <= time.time()


# TLS sessions


def test_no_session_outlives_the_beginning_or_the_end_of_a_trial(board):
    dropped = []
    board.lib.resumption.forget = lambda: dropped.append(board.trust.trial is not None)
    board.deliver(bundles.data(2))
    assert dropped.pop()
    give_up(board)
    assert not dropped.pop()
    board.deliver(bundles.data(2))
    dropped.clear()
    board.restart()
    board.lib.resumption.forget = lambda: dropped.append(True)
    board.trusting.resumed()
    assert dropped
