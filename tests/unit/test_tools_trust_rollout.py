"""`outpost trust push`, `rollout`, `status`: what is checked, who is sent what, what is told."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator

import pytest
from hubs import eventually
from operatorworld import PROGRAM, World, outpost
from outpost_tools import operator, vault, waves
from outpost_tools.cli import app
from outpost_tools.delivery import Delivered
from outpost_tools.errors import HubTrouble
from outpost_tools.pki import DevCA
from outpost_tools.trustcargo import Told
from trustdevices import Fleet
from typer.testing import CliRunner

import certs

WORDS = "a passphrase for tests"
THREE = ("pump-1", "pump-2", "pump-3")
QUICK = ("--patience", "1s")


@pytest.fixture
def world(tmp_path, monkeypatch) -> Iterator[World]:
    data = tmp_path / "data"
    monkeypatch.setenv("OUTPOST_DATA", str(data))
    monkeypatch.setenv("OUTPOST_SIGNER_PASSPHRASE", WORDS)
    monkeypatch.delenv("OUTPOST_CONNECTION_STRING", raising=False)
    monkeypatch.setattr(vault, "KDF_ROUNDS", 1000)
    monkeypatch.chdir(tmp_path)
    world = World(data)
    for device_id in THREE:
        outpost("device", "new", device_id)
    outpost("sign", "new", "anna", "--role", "trust")
    bundle()  # version 1, which the devices have
    yield world
    world.close()


@pytest.fixture
def fleet(world) -> Fleet:
    return Fleet(world)


def bundle(*words: object) -> None:
    """The next version, complete and kept."""
    outpost("trust", "new", "-o", "b.draft", *map(str, words))
    outpost("trust", "sign", "b.draft")


def root_file(tmp_path, name: str = "Other CA"):
    path = tmp_path / f"{name}.pem"
    path.write_text(certs.holder(name, authority=True, ends=800 * certs.DAY).pem)
    return path


def rollout(*words: str, code: int = 0) -> dict:
    said = outpost("trust", "rollout", "--json", *QUICK, *words, code=code)
    return json.loads(said.stdout)


def test_a_bundle_is_pushed_and_the_devices_own_word_is_waited_for(world, fleet, tmp_path):
    device = fleet.connect("pump-1")
    bundle("--root", root_file(tmp_path))
    said = outpost("trust", "push", "pump-1").output
    assert "pump-1 uses version 2" in said
    assert f"localhost:{world.hub.port} is verified with version 2, by Outpost" in said
    assert len(device.taken) == 1
    assert "pump-1 uses version 2" in outpost("trust", "push", "pump-1").output
    assert len(device.taken) == 1, "it has it already"


@pytest.mark.parametrize(
    ("manner", "word"),
    [
        ("bad", "it went back: the hub is not trusted with it"),
        ("silent", "not heard of"),
        ("refuses", "this device takes nothing"),
        ("old", "no such method"),
    ],
)
def test_a_push_that_came_to_nothing_says_why_and_exits_with_1(world, fleet, manner, word):
    fleet.connect("pump-1", manner)
    bundle()
    assert word in outpost("trust", "push", "pump-1", *QUICK, code=1).output


def test_a_device_that_is_away_is_said_to_be_and_exits_with_3(world):
    bundle()
    assert "not connected" in outpost("trust", "push", "pump-1", code=3).output


def test_a_bundle_that_would_strand_the_fleet_is_not_sent_to_anybody(world, fleet, tmp_path):
    for device_id in THREE:
        fleet.connect(device_id)
    outpost("trust", "new", "-o", "b.draft", "--root", str(root_file(tmp_path)))
    for kind in ("RSA", "ECDSA"):
        outpost("trust", "remove", "b.draft", "--root", f"Outpost development root {kind}")
    outpost("trust", "sign", "b.draft")
    for words in (("push", "pump-1"), ("rollout",), ("rollout", "--dry-run")):
        said = outpost("trust", *words, code=1).output
        assert "would strand the fleet" in said and "Nothing was sent" in said
    assert fleet.took() == []
    assert not (world.data / "rollouts").exists()


def test_a_root_of_the_right_name_and_the_wrong_key_would_strand_it_too(world, fleet, tmp_path):
    fleet.connect("pump-1")
    ca = DevCA(world.data)
    misspelt = root_file(tmp_path, "Outpost development root RSA")
    outpost("trust", "new", "-o", "b.draft", "--root", str(misspelt))
    for kind in ca.kinds:
        outpost("trust", "remove", "b.draft", "--root", str(ca.root_file(kind)))
    outpost("trust", "sign", "b.draft")
    assert "would strand" in outpost("trust", "push", "pump-1", code=1).output
    assert fleet.took() == []


def test_another_endpoint_that_the_devices_need_is_verified_as_well(world, fleet):
    fleet.connect("pump-1")
    bundle()
    port = world.rest.port
    assert (
        f"localhost:{port}"
        in outpost("trust", "push", "pump-1", "--endpoint", f"localhost:{port}").output
    )
    bundle()
    said = outpost("trust", "push", "pump-1", "--endpoint", "localhost:1", code=1).output
    assert "cannot be reached" in said
    assert len(fleet.devices["pump-1"].taken) == 1


def test_a_bundle_that_lacks_signatures_is_not_sent(world, fleet):
    fleet.connect("pump-1")
    outpost("trust", "new", "-o", "b.draft")
    assert "not complete" in outpost("trust", "push", "pump-1", "b.draft", code=1).output
    assert fleet.took() == []


def test_a_rollout_reaches_everyone_and_the_next_one_has_nothing_to_do(world, fleet):
    for device_id in THREE:
        fleet.connect(device_id)
    bundle()
    found = rollout()
    assert found["done"] == 3 and fleet.took() == list(THREE)
    assert rollout()["done"] == 3
    assert all(len(device.taken) == 1 for device in fleet.devices.values())


def test_a_rollout_stops_at_the_first_that_goes_back_and_goes_on_when_told(world, fleet):
    bad = fleet.connect("pump-1", "bad")
    for device_id in THREE[1:]:
        fleet.connect(device_id)
    bundle()
    found = rollout(code=1)
    assert fleet.took() == ["pump-1"] and found["waiting"] == 2
    assert "not trusted with it" in found["failures"]["pump-1"]
    assert rollout(code=1)["waiting"] == 2, "it stays stopped"
    bad.manner = "good"
    assert rollout("--retry")["done"] == 3


def test_an_old_report_of_a_failure_is_not_taken_for_this_attempt(world, fleet):
    fleet.connect("pump-1", "bad")
    bundle()
    rollout("--only", "pump-1", code=1)
    fleet.devices["pump-1"].manner = "silent"
    found = rollout("--only", "pump-1", "--retry", code=1)
    assert "not heard of" in found["failures"]["pump-1"]


def test_who_was_away_or_is_new_is_reached_by_the_same_command_again(world, fleet):
    fleet.connect("pump-1")
    bundle()
    found = rollout(code=3)
    assert found["done"] == 1 and found["missed"] == ["pump-2", "pump-3"]
    outpost("device", "new", "pump-4")
    for device_id in (*THREE[1:], "pump-4"):
        fleet.connect(device_id)
    assert rollout()["done"] == 4
    assert len(fleet.devices["pump-1"].taken) == 1


def test_after_a_ctrl_c_the_same_command_goes_on_where_it_was(world, fleet):
    device = fleet.connect("pump-1", "silent")
    bundle()
    words = [PROGRAM, "trust", "rollout", "--first", "pump-1", "--patience", "60s"]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert eventually(lambda: device.taken, 30)
    assert eventually(lambda: '"sent"' in next(world.data.glob("rollouts/*.jsonl")).read_text())
    running.send_signal(signal.SIGINT)
    said, trouble = running.communicate(timeout=30)
    assert running.returncode == 1 and "Traceback" not in trouble
    assert "the same command again goes on" in said
    device.report(2)
    assert rollout(code=3)["done"] == 1
    assert len(device.taken) == 1


def test_a_dry_run_shows_the_waves_and_sends_nothing(world, fleet):
    for device_id in THREE:
        fleet.connect(device_id)
    bundle()
    words = ("--dry-run", "--first", "pump-3", "--waves", "1")
    assert rollout(*words)["waves"] == [["pump-3"], ["pump-1", "pump-2"]]
    assert fleet.took() == [] and not (world.data / "rollouts").exists()


def test_disabled_devices_are_left_out_and_unknown_ones_get_a_sentence(world, fleet):
    fleet.connect("pump-1")
    for device_id in THREE[1:]:
        outpost("device", "disable", device_id)
    bundle()
    assert rollout()["done"] == 1
    assert (
        "no enabled device 'pump-9'"
        in outpost("trust", "rollout", "--only", "pump-9", code=1).output
    )


def test_status_tells_version_root_and_who_is_behind(world, fleet):
    bundle()
    ca = DevCA(world.data)
    anchor = certs_print(ca.roots_der()[1])[:16]
    fleet.connect("pump-1").report(2, anchor=anchor)
    fleet.connect("pump-2").report(1, {"version": 2, "outcome": "the hub is not trusted with it"})
    assert eventually(lambda: status()["versions"] == {"1": 1, "2": 1, "not told": 1})
    found = status()
    assert (found["newest"], found["behind"], found["connected"]) == (2, 2, 2)
    by_id = {row["device"]: row for row in found["rows"]}
    assert by_id["pump-1"]["root"] == "Outpost development root ECDSA"
    assert "not trusted" in by_id["pump-2"]["change"]
    assert [row["device"] for row in status("--behind")["rows"]] == ["pump-2", "pump-3"]
    shown = outpost("trust", "status").output
    assert "2 behind" in shown and "pump-3" in shown
    fleet.devices["pump-2"].report(2)
    fleet.connect("pump-3", version=2)
    assert eventually(lambda: status()["behind"] == 0)
    shown = outpost("trust", "status", "--behind").output
    assert shown.startswith("Newest: 2. 3 devices"), "no empty table"


def certs_print(der: bytes) -> str:
    import hashlib

    return hashlib.sha256(der).hexdigest()


def status(*words: str) -> dict:
    return json.loads(outpost("trust", "status", "--json", *words).output)


@pytest.mark.parametrize(
    "trust",
    [
        None,
        "x",
        [],
        {"version": "7"},
        {"version": True},
        {"version": 7.5},
        {"version": {}, "roots": "x", "anchor": 3, "change": "x", "expires_days": "1"},
        {"anchor": "\x1b[2J", "change": {"version": [], "outcome": "\x1b[2J"}},
        {"roots": [1, {}, "\x1b"], "change": {"outcome": "x" * 100000}},
    ],
)
def test_a_device_that_lies_in_its_report_breaks_nothing(trust):
    told = Told.of({"deviceId": "x", "properties": {"reported": {"outpost": {"trust": trust}}}})
    assert told.version is None and told.roots == () and told.anchor is None
    assert len(told.change) <= 200 and told.change.isprintable()


def test_words_of_a_device_that_look_like_markup_are_shown_as_they_are(world, fleet):
    bundle()
    change = {"version": 2, "outcome": "[/x] [red]all is well[/red]"}
    fleet.connect("pump-1").report(1, change)
    assert eventually(lambda: status()["versions"].get("1") == 1)
    assert "[/x]" in outpost("trust", "status").output


def test_a_version_that_nobody_has_made_is_said_to_be_unknown(world, fleet):
    fleet.connect("pump-1").report(10**9)
    assert eventually(lambda: status()["versions"].get(str(10**9)) == 1)
    [row] = [row for row in status()["rows"] if row["device"] == "pump-1"]
    assert row["unknown"] and not row["behind"]


def test_the_words_with_which_a_device_refuses_are_a_line_and_no_play_with_the_terminal():
    said = Delivered(403, {"error": "\x1b[2J\n" + "x" * 100_000}).why
    assert said.isprintable() and len(said) <= 200
    assert Delivered(403, {"error": {"a": 1}}).why == "the device answers 403"


def test_a_device_with_another_bundle_of_that_version_is_a_failure(world, fleet):
    """Half a fleet would have the one, half the other."""
    device = fleet.connect("pump-1")
    bundle()
    device.say({"outpost": {"trust": {"version": 2, "roots": ["00" * 8]}}})
    assert eventually(lambda: status()["versions"].get("2") == 1)
    found = rollout("--only", "pump-1", code=1)
    assert found["failures"] == {"pump-1": "it has another version 2, with other roots"}
    mine = [certs_print(der)[:16] for der in DevCA(world.data).roots_der()]
    device.say({"outpost": {"trust": {"version": 2, "roots": mine}}})
    assert eventually(lambda: rolled_to("pump-1")["done"] == 1)


def rolled_to(device_id: str) -> dict:
    words = ["trust", "rollout", "--json", *QUICK, "--only", device_id]
    return json.loads(CliRunner().invoke(app, words).stdout)


def test_a_device_that_was_removed_from_the_hub_meanwhile_stops_nobody(world, fleet):
    bundle()
    assert rollout(code=3)["away"] == 3
    outpost("device", "remove", "pump-2")
    for device_id in ("pump-1", "pump-3"):
        fleet.connect(device_id)
    found = rollout(code=3)
    assert found["done"] == 2 and found["missed"] == ["pump-2"]


def test_a_second_rollout_waits_for_the_end_of_the_first_whatever_its_bundle(world, fleet):
    bundle()
    with waves.alone(world.data / "rollouts" / "trust.lock", "something"):
        said = outpost("trust", "rollout", code=1)
    assert "Another program is at work" in said.output


def test_a_state_of_something_else_is_not_written_to(world, fleet, tmp_path):
    bundle()
    state = tmp_path / "other.jsonl"
    other = waves.Ledger(state)
    with other.held():
        other.begin("trust", {"version": 2, "sha256": "of another fleet"}, [["pump-9"]])
    before = state.read_bytes()
    for words in ((), ("--dry-run",)):
        said = outpost("trust", "rollout", "--state", str(state), *words, code=1)
        assert "something else" in said.output
    assert state.read_bytes() == before


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"5\n", b'{"format": 1}\n', b"[]\n"])
def test_a_damaged_state_of_a_rollout_gets_a_sentence(world, fleet, tmp_path, damage):
    bundle()
    state = tmp_path / "s.jsonl"
    state.write_bytes(damage)
    assert "is damaged" in outpost("trust", "rollout", "--state", str(state), code=1).output


def test_a_hub_that_is_lost_while_a_device_is_sent_it_fails_nobody(world, fleet, monkeypatch):
    device = fleet.connect("pump-1")
    bundle()
    lost = HubTrouble("The hub cannot be used: no connection: does it run there?")

    def gone(*_: object) -> None:
        raise lost

    with monkeypatch.context() as cut:
        cut.setattr(operator.Operator, "invoke", gone)
        said = outpost("trust", "rollout", *QUICK, code=1)
        assert "does it run there" in said.output
    assert device.taken == []
    assert rollout("--only", "pump-1", code=3)["failed"] == 0
    assert len(device.taken) == 1


def test_a_killed_rollout_is_resumed_and_the_device_that_was_being_sent_it_is_not_lost(
    world, fleet
):
    """kill -9: no word was said, no lock is left behind, the file is whole."""
    device = fleet.connect("pump-1", "silent")
    bundle()
    words = [PROGRAM, "trust", "rollout", "--first", "pump-1", "--patience", "60s"]
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert eventually(lambda: device.taken, 30)
    running.kill()
    running.wait(30)
    device.report(2)
    assert eventually(lambda: status()["versions"].get("2") == 1)
    found = rollout(code=3)
    assert found["done"] == 1 and found["missed"] == ["pump-2", "pump-3"]
    assert len(device.taken) == 1


def test_a_rollout_says_what_it_verified_what_ends_which_wave_it_is_at_and_each_trouble(
    world, fleet, tmp_path
):
    fleet.connect("pump-1")
    pin = root_file(tmp_path, "Rescue CA")
    bundle("--recovery", f"localhost:1={pin}")
    done = outpost("trust", "rollout", *QUICK, "--waves", "1", code=3)
    assert "is verified with version 2, by Outpost development root" in done.stdout
    assert "Note: its chain ends on 20" in done.stdout
    assert "Note: the recovery endpoint localhost:1 would not help now" in done.stdout
    assert "wave 1 of 2: 1 device\n" in done.stderr and "wave 2 of 2: 2 devices" in done.stderr
    assert "pump-2: away, it is not connected" in done.stderr
    assert "The same command again reaches those who were away." in done.stdout
