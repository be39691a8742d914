"""`kill -9` at every step of a registration that moves a device from one hub to another.

The real assignment runs in a process that ends itself before or after the n-th write. The device
then registers again, as devices do, and everything must be as if nothing had happened.
"""

import asyncio
import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest
from outpost_tools.enrolments import Enrolments
from outpost_tools.hub import assign, attest
from outpost_tools.hub.twins import TwinStore
from outpost_tools.registry import Registry

WRITES = (
    (Registry, "add"),
    (Registry, "update"),
    (Registry, "remove"),
    (TwinStore, "change"),
    (TwinStore, "report"),
    (Enrolments, "keep_registration"),
)


def child(data, number, when, answer):
    """One registration, in a process of its own."""
    writes = 0

    def counted(real):
        def call(*values, **options):
            nonlocal writes
            writes += 1
            if writes == number and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            found = real(*values, **options)
            if writes == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return call

    for owner, name in WRITES:
        setattr(owner, name, counted(getattr(owner, name)))
    core = SimpleNamespace(
        data=data,
        names=("first.example",),
        registry=Registry(data),
        twins=TwinStore(data, time.time),
        now_s=time.time,
        check_registry=lambda: None,
    )
    with Enrolments(data) as enrolments:
        enrolment = enrolments.get("pump-7")
        order = assign.Order("pump-7", enrolment, attest.Proof(keys=enrolment.keys))
        made, _ = asyncio.run(assign.assign(core, enrolments, order))
    answer.send([made.assigned_hub, made.substatus, writes])


def register(data, number=0, when="after"):
    """What a registration gave, or None where it was killed."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(data, number, when, there))
    process.start()
    there.close()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return here.recv() if process.exitcode == 0 else None


def world(folder):
    """A device on the first hub whose enrolment now wants the second."""
    data, second = folder / "data", folder / "second"
    document = {
        "registrationId": "pump-7",
        "attestation": {"type": "symmetricKey"},
        "iotHubs": ["first.example"],
        "initialTwin": {"tags": {"first": True}},
    }
    with Enrolments(data) as enrolments:
        made = enrolments.put(document)
        Registry(second).close()
        enrolments.link_hub("second.example", second)
    assert register(data)[:2] == ["first.example", "initialAssignment"]
    twins = TwinStore(data, time.time)
    twins.change("pump-7", {"hall": 7}, {"interval": 9})
    twins.report("pump-7", {"fw": "1.2"})
    twins.close()
    with Enrolments(data) as enrolments:
        enrolments.put({**made.document, "iotHubs": ["second.example"]}, if_match="*")
    return data, second, made.keys


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", range(1, 6))
def test_a_move_that_was_cut_off_anywhere_is_finished_by_the_next(tmp_path, number, when):
    data, second, keys = world(tmp_path)
    # Five writes: the entry, its twin, what was reported, the end of the old entry, the record.
    assert register(data, number, when) is None
    hub, _, writes = register(data)
    assert hub == "second.example" and writes <= 5
    with Registry(data) as registry:
        assert registry.find("pump-7") is None
    with Registry(second) as registry:
        assert registry.get("pump-7").keys == keys
    twins = TwinStore(second, time.time)
    twin = twins.get("pump-7")
    twins.close()
    assert twin.tags == {"first": True, "hall": 7}
    assert (twin.desired, twin.reported) == ({"interval": 9}, {"fw": "1.2"})
    assert register(data)[1] == "reprovisionedToInitialAssignment"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", range(1, 4))
def test_a_first_registration_that_was_cut_off_anywhere_is_finished(tmp_path, number, when):
    data = tmp_path / "data"
    with Enrolments(data) as enrolments:
        made = enrolments.put(
            {
                "registrationId": "pump-7",
                "attestation": {"type": "symmetricKey"},
                "initialTwin": {"tags": {"first": True}},
            }
        )
    assert register(data, number, when) is None
    assert register(data)[0] == "first.example"
    with Registry(data) as registry:
        assert registry.get("pump-7").keys == made.keys
    twins = TwinStore(data, time.time)
    assert twins.get("pump-7").tags == {"first": True}
    twins.close()
