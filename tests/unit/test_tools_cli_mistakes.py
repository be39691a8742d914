"""What a person at the keyboard gets wrong, and what goes wrong under his hands: one sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from hubs import eventually
from operatorworld import PROGRAM, World, outpost
from outpost_tools.bulk import LINE_MAX_CHARS
from outpost_tools.registry import Registry


@pytest.fixture
def world(tmp_path, monkeypatch) -> Iterator[World]:
    data = tmp_path / "data"
    monkeypatch.setenv("OUTPOST_DATA", str(data))
    monkeypatch.delenv("OUTPOST_CONNECTION_STRING", raising=False)
    monkeypatch.chdir(tmp_path)
    world = World(data)
    yield world
    world.close()


def watching(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PROGRAM, "watch", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # no terminal
    )


def test_watching_a_device_that_is_not_there_says_so_and_ends(world):
    assert "no device 'nobody'" in outpost("watch", "--device", "nobody", code=1).output


def test_ctrl_c_ends_a_watch_that_has_no_terminal_without_a_word_of_complaint(world):
    outpost("device", "new", "pump-7")
    watch = watching("--json")
    assert eventually(lambda: bool(world.hub.core._news))
    world.device()
    assert json.loads(watch.stdout.readline())["event"] == "connected"
    watch.send_signal(signal.SIGINT)
    assert watch.wait(10) == 0 and watch.stderr.read() == ""


def test_a_hub_that_ends_under_a_watch_ends_it_with_a_sentence(world):
    outpost("device", "new", "pump-7")
    watch = watching("--json")
    assert eventually(lambda: bool(world.hub.core._news))
    world.device()
    assert watch.stdout.readline()
    world.hub.stop()
    assert watch.wait(20) == 1
    said = watch.stderr.read()
    assert said.startswith("outpost: ") and said.count("\n") == 1 and "Traceback" not in said


@pytest.mark.parametrize("device_id", [".", ".."])
def test_an_id_that_https_cannot_name_is_refused_before_it_is_made(world, device_id):
    assert "choose another id" in outpost("device", "new", device_id, code=1).output


def test_an_update_by_import_lets_no_disabled_device_in(world, tmp_path):
    outpost("device", "new", "pump-8", "--thumbprint", "AB" * 32, "--disabled")
    (tmp_path / "tags.jsonl").write_text(
        '{"id": "pump-8", "importMode": "update", "tags": {"hall": 3}}\n'
    )
    outpost("device", "import", "tags.jsonl")
    with Registry(world.data) as registry:
        after = registry.get("pump-8")
    assert (after.enabled, after.auth, after.thumbprints) == (False, "selfSigned", ("AB" * 32,))


def test_a_file_of_one_endless_line_is_not_read_whole(world, tmp_path):
    (tmp_path / "long.jsonl").write_text("x" * (LINE_MAX_CHARS * 4))
    said = outpost("device", "import", "long.jsonl", code=1).output
    assert "Line 1: it is too long" in said and len(said) < 200


def test_an_import_that_was_killed_half_way_is_finished_by_the_same_command(world, tmp_path):
    lines = [json.dumps({"id": f"many-{n}", "tags": {"n": n}}) for n in range(300)]
    (tmp_path / "many.jsonl").write_text("\n".join(lines[:150]))
    outpost("device", "import", "many.jsonl")  # as far as it had come
    with Registry(world.data) as registry:
        before = registry.get("many-7")
    (tmp_path / "many.jsonl").write_text("\n".join(lines))
    outpost("device", "import", "many.jsonl")
    with Registry(world.data) as registry:
        assert len(registry.devices()) == 300
        assert registry.get("many-7").keys == before.keys


def test_credential_policies_are_made_and_shown(world):
    outpost("enrol", "policy", "short", "--days", "7")
    shown = outpost("enrol", "policy", "--json").output
    assert json.loads(shown) == {"default": 30, "short": 7}
    assert "--days" in outpost("enrol", "policy", "short", code=1).output
    outpost("enrol", "policy", "short", "--days", "91", code=2)
