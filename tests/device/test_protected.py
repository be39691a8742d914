"""Protected payloads: what the gateway and the hub carry can be read with the key alone, by a JOSE
library that is not ours, and nothing goes out in the clear where it should not."""

from __future__ import annotations

import json
import secrets

import pytest
from jwcrypto import jwe, jwk
from jwcrypto.common import base64url_encode
from outpost_tools.nvsimage import Identity

MAIN = b"""
from outpost import Device
d = Device()
for n in range(3):
    d.send({"secret": "wine %d" % n})
d.send(b"raw bytes \\x00\\xff")
d.send("not kept", durable=False)
d.run()
"""


def opened(body: bytes, key: bytes) -> bytes:
    token = jwe.JWE(algs=["dir", "A128CBC-HS256"])
    token.deserialize(body.decode(), jwk.JWK(kty="oct", k=base64url_encode(key)))
    return token.payload


def start(world, key: bytes | None, main: bytes = MAIN, **config):
    hub = world.hub()
    identity = Identity(
        world.device.device_id, world.device.primary_key, payload=key if key else b""
    )
    flash = world.image(
        hub.port,
        device=identity,
        config={"protect": "jwe", **config},
        files={"/main.py": main},
    )
    return hub, world.board(flash)


@pytest.mark.parametrize("batch", [0, 500])
def test_bodies_are_read_with_the_key_alone(world, batch):
    key = secrets.token_bytes(32)
    hub, board = start(world, key, batch_bytes=batch)
    board.wait_for(r"acked id=r1", 60)
    assert hub.wait_until(lambda: len(hub.telemetry) >= (3 if batch else 5), 30)
    plain = [opened(t.body, key) for t in hub.telemetry]
    wine = [{"secret": f"wine {n}"} for n in range(3)]
    if not batch:
        assert [json.loads(p) for p in plain[:3]] == wine
    assert plain[-2:] == [b"raw bytes \x00\xff", b'"not kept"']
    assert all(b"wine" not in t.body for t in hub.telemetry)
    assert len({t.body for t in hub.telemetry}) == len(hub.telemetry)
    assert {t.properties["$.ct"] for t in hub.telemetry} == {"application/jose"}
    with pytest.raises(jwe.InvalidJWEData):
        opened(hub.telemetry[0].body, secrets.token_bytes(32))
    spoilt = hub.telemetry[0].body[:-4] + b"AAAA"
    with pytest.raises(jwe.InvalidJWEData):
        opened(spoilt, key)


LARGE = b"""
from outpost import Device
d = Device()
d.send(bytes(20000), durable=False)      # before the configuration is known
for n in range(150):
    d.send({"secret": "wine %d" % n, "more": "x" * 60})
d.send("behind", durable=False)
@d.every(seconds=1)
def later():
    if d.online:
        try:
            d.send(bytes(5000), durable=False)
        except ValueError as e:
            print("REFUSED", e)
d.run()
"""


@pytest.mark.parametrize("batch", [0, 16384])
def test_what_is_too_long_to_be_sealed_holds_up_nothing_behind_it(world, batch):
    """With batches as long as the configuration takes, in the heap that the device has."""
    key = secrets.token_bytes(32)
    hub, board = start(world, key, main=LARGE, batch_bytes=batch)
    board.wait_for(r"send +id=r1 is too long to be sealed: dropped", 60)
    board.wait_for(r"REFUSED a message of 5000 bytes is too long to be sealed", 90)
    board.wait_for(r"acked id=r2", 120)
    assert " error " not in board.text
    plain = b"".join(opened(t.body, key) for t in hub.telemetry)
    assert all(b'"wine %d"' % n in plain for n in range(150)) and b'"behind"' in plain
    assert hub.telemetry[-1].properties["dropped"] == "1"


def test_board_without_the_key_says_so_and_sends_nothing_in_the_clear(world):
    hub, board = start(world, None)
    board.wait_for(r'error +config: .*protect "jwe".*no payload key.*--payload-key', 60)
    assert not hub.telemetry and "acked" not in board.text
