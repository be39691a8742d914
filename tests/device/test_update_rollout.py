"""`outpost app push`, `rollout`, `status` with real devices: waves, a stop, who runs what."""

from __future__ import annotations

import json
from pathlib import Path

import packages
import pytest
from outpost_tools.cli import app
from outpost_tools.fleet import Fleet
from outpost_tools.hub.rest import RestServer
from outpost_tools.signing import Signers
from typer.testing import CliRunner
from world import World

LEGS_HERE = ("outpost32",)
WORDS = "a passphrase for tests"
NAMES = ("pump-1", "pump-2", "pump-3")


class FleetWorld:
    def __init__(self, world: World) -> None:
        self.world, self.data = world, world.data
        self.rest = RestServer(port=0)
        self.hub = world.hub(services=[self.rest])
        Signers(self.data).add("releases", ["software"], lambda: WORDS)
        self.boards = {}
        sntp = world.sntp()
        with Fleet(self.data) as fleet:
            signers = Signers(self.data).for_devices(fleet.name)
        for name in NAMES:
            device = world.registry.add(name)
            flash = world.image(
                self.hub.port,
                sntp,
                device=device,
                name=f"{name}.bin",
                files={"/trust/signers.json": signers, "/main.py": packages.main("image")},
            )
            self.boards[name] = world.board(flash)
        for board in self.boards.values():
            board.wait_for("acked id=1", 60)

    def outpost(self, *words: object, code: int = 0) -> str:
        held = self.world.registry.policy("iothubowner")
        text = (
            f"HostName={self.rest.host}:{self.rest.port};SharedAccessKeyName={held.name};"
            f"SharedAccessKey={held.primary_key}"
        )
        env = {"OUTPOST_SIGNER_PASSPHRASE": WORDS, "OUTPOST_CONNECTION_STRING": text}
        done = CliRunner().invoke(app, [*map(str, words), "--data", str(self.data)], env=env)
        assert done.exit_code == code, done.output
        return done.stdout

    def package(self, folder: Path, source: bytes, version: int) -> Path:
        folder.mkdir()
        (folder / "main.py").write_bytes(source)
        path = folder / "app.opk"
        self.outpost("app", "build", folder, "-o", path, "--version", version)
        self.outpost("app", "sign", path)
        return path


def test_software_goes_to_a_fleet_in_waves_and_a_bad_one_stops_at_the_first(world, tmp_path):
    fleet = FleetWorld(world)
    good = fleet.package(tmp_path / "good", packages.main("good"), 3)
    said = fleet.outpost("app", "push", NAMES[0], good, "--json")
    assert json.loads(said)["state"] == "done"
    only = [word for name in NAMES for word in ("--only", name)]
    said = json.loads(fleet.outpost("app", "rollout", good, *only, "--waves", "1,1", "--json"))
    assert said["done"] == 3
    rows = {row["device"]: row for row in json.loads(fleet.outpost("app", "status", "--json"))}
    assert [rows[name]["version"] for name in NAMES] == [3, 3, 3]
    # One that does nothing but restart: the first device goes back, and nobody else is sent it.
    bad = fleet.package(tmp_path / "bad", b"import machine\nmachine.reset()", 4)
    said = fleet.outpost("app", "rollout", bad, *only, "--waves", "1,1", "--json", code=1)
    said = json.loads(said)
    assert said["failed"] == 1 and said["waiting"] == 2
    assert "it went back" in next(iter(said["failures"].values()))
    starts = [fleet.boards[name].text.count("on trial") for name in NAMES]
    assert fleet.outpost("app", "status").count("it did not") == 1
    assert starts[1:] == [fleet.boards[name].text.count("on trial") for name in NAMES[1:]]


@pytest.mark.parametrize("what", ("unsigned", "no package"))
def test_what_is_not_signed_is_not_sent(world, tmp_path, what):
    data = world.data
    Signers(data).add("releases", ["software"], lambda: WORDS)
    path = tmp_path / "app.opk"
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "main.py").write_bytes(b"1")
    env = {"OUTPOST_SIGNER_PASSPHRASE": WORDS}
    run = CliRunner().invoke
    words = ["app", "build", str(folder), "-o", str(path), "--version", "2", "--data", str(data)]
    assert run(app, words, env=env).exit_code == 0
    if what == "no package":
        path.write_bytes(b"words")
    done = run(app, ["app", "push", "press-7", str(path), "--data", str(data)], env=env)
    assert done.exit_code == 1
    assert ("more must sign" if what == "unsigned" else "no trust bundle") in done.output
