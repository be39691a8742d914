"""A device says when its keys are due, and `outpost rotate --due` rotates those and no others."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from identities import edit
from outpost_tools import agreed
from outpost_tools.hub.running import Running, announced
from outpost_tools.nvsimage import Identity
from rotations import DEVICE_ID, WORDS, RotationWorld

LEGS_HERE = ("outpost64",)
DAY_S = 86400


@pytest.fixture
def rotation(world):
    with RotationWorld(world) as made:
        yield made


def due(rotation, flash) -> str | None:
    rotation.start(flash)
    rotation.ready()
    return rotation.rotator().due(DEVICE_ID, 20)


def since(days: int) -> int:
    return int(time.time()) - agreed.UNIX_2000 - days * DAY_S


def test_a_key_is_due_when_it_is_as_old_as_the_configuration_says(rotation):
    flash = rotation.image(config={"rotation_days": 90})
    rotation.remember(flash)
    assert due(rotation, flash) is None  # it is new, and the device notes so
    rotation.board.stop()
    for days, seq, said in ((89, 0, None), (91, 0, "age"), (91, 7, None)):
        edit(flash, idsince=since(days), idseq=seq)
        assert due(rotation, flash) == said, (days, seq)
        rotation.board.stop()
    edit(flash, idsince=since(91), idseq=0)
    assert due(rotation, flash) == "age"
    rotation.rotator().rotate(DEVICE_ID)
    assert rotation.rotator().due(DEVICE_ID, 20) is None


@pytest.mark.parametrize(("days", "said"), [(29, "expiry"), (32, None)])
def test_a_certificate_is_due_ahead_of_its_end(rotation, days, said):
    flash = rotation.image(device=Identity(DEVICE_ID))
    rotation.provision(flash, days=days)
    assert due(rotation, flash) == said
    if said:
        rotation.rotator().rotate(DEVICE_ID)
        assert rotation.rotator().due(DEVICE_ID, 20) is None


def test_the_command_rotates_what_is_due_and_names_what_it_could_not_ask(rotation):
    flash = rotation.image(config={"rotation_days": 30})
    rotation.remember(flash)
    edit(flash, idsince=since(31), idseq=0)
    rotation.world.registry.add("press-8")
    rotation.fleet.remember("press-8", born=rotation.signer.point)
    rotation.start(flash)
    rotation.ready()
    words = rotation.data / "words"
    words.write_text(WORDS)
    hub, rest = rotation.hub, rotation.rest
    command = [str(Path(sys.executable).with_name("outpost")), "rotate", "--due", "--json"]
    command += ["--data", str(rotation.data), "--signer-passphrase-file", str(words)]
    with announced(rotation.data, Running(rest.host, hub.port, rest.host, rest.port, hub.names)):
        first, second = (
            subprocess.run(command, capture_output=True, text=True, timeout=120) for _ in range(2)
        )
    assert first.returncode == 0, first.stderr
    assert [row["device"] for row in json.loads(first.stdout)] == [DEVICE_ID]
    assert "press-8 was not asked" in first.stderr
    assert second.returncode == 0 and json.loads(second.stdout) == []
