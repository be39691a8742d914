"""Software on its way to a fleet, from the host's side: devices that the hub has no more."""

from __future__ import annotations

from collections.abc import Iterator

import packages
import pytest
from operatorworld import World, outpost
from outpost_tools.connection import need
from outpost_tools.operator import Operator
from outpost_tools.rollout import Limits, Rollout
from outpost_tools.software import Software
from outpost_tools.softwarecargo import SoftwareCargo
from outpost_tools.waves import AWAY, DONE, Ledger

THREE = ("pump-1", "pump-2", "pump-3")
VERSION = 4


@pytest.fixture
def world(tmp_path, monkeypatch) -> Iterator[World]:
    monkeypatch.setenv("OUTPOST_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("OUTPOST_CONNECTION_STRING", raising=False)
    world = World(tmp_path / "data")
    for device_id in THREE:
        outpost("device", "new", device_id)
    yield world
    world.close()


@pytest.fixture
def cargo(world) -> Iterator[SoftwareCargo]:
    with Operator(need(None, world.data)) as operator:
        yield SoftwareCargo(
            operator, Software.decode(packages.signed(packages.application(), VERSION))
        )


def has_it(world: World, device_id: str) -> None:
    twin = {"outpost": {"software": {"version": VERSION}}}
    core = world.hub.core
    core.wait(core.twin_patch_reported(device_id, twin))


def test_a_device_that_was_removed_from_the_hub_meanwhile_stops_nobody(world, cargo, tmp_path):
    for device_id in ("pump-1", "pump-3"):
        has_it(world, device_id)
    ledger = Ledger(tmp_path / "software.jsonl")
    with ledger.held():
        ledger.begin(cargo.kind, cargo.what, [list(THREE)])
        outpost("device", "remove", "pump-2")
        assert Rollout(ledger, cargo, Limits()).run()
    states = {name: ledger.state(name) for name in THREE}
    assert states == {"pump-1": DONE, "pump-2": AWAY, "pump-3": DONE}


def test_what_is_told_of_others_is_heard_though_one_of_them_was_removed(world, cargo):
    has_it(world, "pump-1")
    outpost("device", "remove", "pump-2")
    assert {name: told.good for name, told in cargo.outcomes(THREE).items()} == {"pump-1": True}
