"""Bundles pushed to a real board through the service side: what a rollout hears of its trial."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hubs import eventually
from outpost_tools import envelope, trustdraft
from outpost_tools.drillworld import DrillWorld
from outpost_tools.envelope import Keys
from outpost_tools.rollout import Limits, Rollout
from outpost_tools.trustplan import Shipment
from outpost_tools.waves import FAILED, Ledger

LEGS_HERE = ("outpost32", "stock32")


@pytest.fixture
def world(leg, tmp_path) -> Iterator[DrillWorld]:
    """One board under root A, with bundle 1."""
    with DrillWorld(tmp_path, 1, leg) as world:
        world.a = world.authority("A")
        world.open_hub(world.a)
        first = world.first([world.root(world.a)], [])
        world.build(first)
        world.power_on()
        assert eventually(lambda: told(world).version == 1, 60)
        yield world


def told(world):
    world.look()
    return world.members["drill-1"].told


def push(world, made, number=1) -> Ledger:
    shipment = Shipment(world.operator, world.shelf, made)
    ledger = Ledger(world.folder / f"push-{made.version}-{number}.jsonl")
    ledger.begin(shipment.kind, shipment.what, [list(world.members)])
    Rollout(ledger, shipment, Limits(patience_s=90, poll_s=0.2)).run()
    return ledger


def test_a_trial_that_fails_a_second_time_in_the_same_way_is_told_a_second_time(world):
    bad = world.next([world.root(world.authority("X"))])
    for number in (1, 2):
        ledger = push(world, bad, number)
        assert ledger.state("drill-1") == FAILED
        assert "it went back: the hub is not trusted with it" in ledger.why("drill-1")
    assert told(world).version == 1


def test_a_board_that_slept_through_changes_of_all_keys_goes_straight_to_the_newest(world):
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    for n, key in enumerate(keys):
        # All the keys go; the present ones sign for the new one, which signs too.
        new = Keys.of(1, [envelope.point_of(key)])
        draft = trustdraft.following(world.shelf.newest(), 100).edited(keys=new).signed(key)
        if n:
            draft = draft.signed(keys[n - 1])
        else:
            for pen in world._pens:
                draft = pen.endorse(draft)
        world.shelf.put(draft.envelope)
    newest = world.shelf.newest()
    assert newest.version == 4 and told(world).version == 1
    ledger = push(world, newest)
    assert ledger.counts()["done"] == 1, ledger.why("drill-1")
    assert told(world).version == 4


def test_a_rollout_stops_at_a_board_that_went_back_and_says_why(world):
    bad = world.next([world.root(world.authority("X"))])
    ledger = push(world, bad)
    assert "not trusted" in ledger.why("drill-1")
    good = world.next([world.root(world.a)])
    ledger = push(world, good)
    assert ledger.counts()["done"] == 1 and told(world).version == 3
