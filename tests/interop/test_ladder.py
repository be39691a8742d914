"""The ladder of record sizes: what worked at an endpoint is remembered in flash and asked again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import servers
from legs import OURS
from world import World

LEGS_HERE = OURS


def connect(world: World, flash: Path) -> tuple[int, int]:
    """(asked, granted) of the first connection after a power-on."""
    board = world.board(flash)
    board.wait_for(r"tls +connected .*tls_heap_steady=\d+", 60)
    # Between that line and the first message it writes what a rescue needs into the NVS.
    board.wait_for(r"send +sent id=", 60)
    line = next(line.text for line in board.lines if " tls " in line.text)
    board.stop()
    asked = re.search(r"mfl_asked=(\d+)", line)
    granted = re.search(r"mfl_granted=(\d+)", line)
    assert asked and granted
    return int(asked[1]), int(granted[1])


def test_endpoint_that_ignores_the_request_is_not_asked_again(world, tmp_path):
    leaf = world.ca.leaf("rsa", ["localhost"])
    with servers.nats(tmp_path / "nats", leaf.chain, leaf.key) as port:
        flash = world.image(port)
        assert connect(world, flash) == (512, 0)
        assert connect(world, flash) == (0, 0)


def test_endpoint_that_grants_the_request_is_asked_the_same_again(world, tmp_path):
    leaf = world.ca.leaf("rsa", ["localhost"])
    with servers.mosquitto(tmp_path / "mosquitto", leaf.chain, leaf.key) as port:
        flash = world.image(port)
        assert connect(world, flash) == (512, 512)
        before = flash.read_bytes()[0x9000:0xF000]
        assert connect(world, flash) == (512, 512)
        assert flash.read_bytes()[0x9000:0xF000] == before  # what is known is not written again


def test_size_in_the_configuration_is_kept_to(world, tmp_path):
    hub = world.hub()
    for size, granted in ((2048, 2048), ("none", 0)):
        flash = world.image(hub.port, record_size=size, name=f"{size}.bin")
        assert connect(world, flash) == (granted, granted)


def test_two_endpoints_are_remembered_apart(world, tmp_path):
    leaf = world.ca.leaf("ecdsa", ["localhost"])
    hub = world.hub()
    with servers.nats(tmp_path / "nats", leaf.chain, leaf.key) as ignoring:
        flash = world.image(hub.port)
        assert connect(world, flash) == (512, 512)
        moved = _with_port(flash, world, ignoring)
        assert connect(world, moved) == (512, 0)
        back = _with_port(moved, world, hub.port)
        assert connect(world, back) == (512, 512)
        assert connect(world, _with_port(back, world, ignoring)) == (0, 0)


def _with_port(flash: Path, world: World, port: int) -> Path:
    """The same flash, its NVS as the device left it, with another port in config.json."""
    nvs = flash.read_bytes()[0x9000:0xF000]
    new = world.image(port, name=f"{flash.stem}-{port}.bin")
    content = bytearray(new.read_bytes())
    content[0x9000:0xF000] = nvs
    new.write_bytes(content)
    assert json.dumps(port).encode() in bytes(content)
    return new
