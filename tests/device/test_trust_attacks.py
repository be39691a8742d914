"""Attacks on a device's trust, at the device: whoever lacks the signing keys achieves nothing,
though he may be the hub itself."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import time
from dataclasses import replace
from typing import Any

import bundles
import pytest
from commands import Signer, signers_json
from hubs import eventually
from outpost_tools import agreed
from outpost_tools.envelope import Envelope
from trustworld import BACK, IN_USE, TrustWorld
from world import DEVICE_ID

import certs

LEGS_HERE = ("outpost32", "stock32")


@pytest.fixture
def trust(world):
    return TrustWorld(world)


def raw(trust, body: bytes, **fields: Any) -> bytes:
    settings = {
        "role": agreed.ROLE_TRUST,
        "fleet": bundles.FLEET,
        "version": 2,
        "floor": 0,
        "issued": int(time.time()),
        "expires": int(time.time()) + 1000,
        "keys": bundles.keys(),
    }
    return bundles.signed(Envelope.around(body, **(settings | fields))).encode()


def attacks(trust) -> dict[str, bytes]:
    good = trust.bundle(2, "ab")
    head = bundles.signed(bundles.make(2, [trust.a]))
    leaf = certs.holder("localhost").der
    middle = len(good) // 2
    return {
        "the version in use with other roots": trust.bundle(1, "b"),
        "no signature": bundles.make(2, [trust.a]).unsigned().encode(),
        "a stranger's signature": trust.bundle(2, "ab", "z"),
        "one key twice": replace(head, signatures=head.signatures * 2).encode(),
        "a stranger's keys to come": trust.bundle(2, "ab", "z", keys=bundles.keys("z")),
        "another role": raw(trust, b"", role=agreed.ROLE_SOFTWARE, keys=None),
        "another fleet": trust.bundle(2, "ab", fleet="dock"),
        "cut off": good[:-1],
        "longer": good + b"\0",
        "a bit flipped": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        "a root that is no authority": raw(trust, b"\1" + len(leaf).to_bytes(2, "big") + leaf),
        "no root": raw(trust, b""),
        "an unknown section": raw(trust, b"\x80\0\0"),
        "links without end": bundles.signed(trust.present).encode_link() * 60,
        "nothing that is known": os.urandom(3000),
    }


def test_what_is_not_signed_as_it_must_be_is_refused_and_changes_nothing(trust):
    board = trust.start()
    before = trust.board
    for name, data in attacks(trust).items():
        lives = board.boots
        done = trust.push(data)
        if done.result == {"state": "later"}:  # a stock board that has no memory for it now
            assert trust.world.leg == "stock32"
            assert eventually(lambda lives=lives: board.boots > lives, 30)
            continue
        assert done.status in (409, 413), (name, done)
    done = trust.push(trust.bundle(2, "ab") + bytes(16384))
    assert done.status == 413
    assert board is before and "on trial" not in board.text and "Traceback" not in board.text
    assert trust.nvs("tr-try") is None and trust.nvs("tr-slot") is None
    assert trust.alive()
    # The device takes the right one after all of that.
    trust.push(trust.bundle(2, "ab"))
    board.wait_for(IN_USE, 60)


def test_too_few_of_three_signers_and_one_for_two_are_refused(trust):
    trust.present = bundles.make(1, [trust.a], keys=bundles.keys("abc", 2))
    trust.start(factory=bundles.signed(trust.present, "ab").encode())
    more = {"keys": trust.present.keys}
    for names in ("a", "c", "az"):
        assert trust.push(trust.bundle(2, "ab", names, **more)).status == 409
    once = bundles.signed(bundles.make(2, [trust.a], **more))
    assert trust.push(replace(once, signatures=once.signatures * 2).encode()).status == 409
    assert trust.push(trust.bundle(2, "ab", "ca", **more)).status == 202


def test_an_old_bundle_is_refused_after_a_newer_one_even_with_a_stolen_root(trust):
    board = trust.start()
    two, three = trust.bundle(2, "a"), trust.bundle(3, "b", hosts=("x.example",))
    assert trust.push(trust.bundle(4, "ab")).status == 202
    board.wait_for(IN_USE, 60)
    for old in (two, three, bundles.signed(trust.present).encode()):
        assert trust.connected()
        done = trust.push(old)
        assert done.status == 409 and "not newer" in done.why
    # A bad certificate, again and again, is no reason to believe in an older bundle.
    assert trust.push(trust.bundle(5, "b")).status == 202
    board.wait_for(BACK, 60)  # the hub is under A still
    trust.move("b")
    assert trust.connected() and trust.push(trust.bundle(5, "b")).status == 202
    board.wait_for(r"version=5 works", 60)
    trust.move("a")
    at = len(board.lines)
    for _ in range(5):
        board.wait_for("not trusted", 30, at)
        at = len(board.lines)
    assert not trust.hub.connected
    trust.restart().wait_for("not trusted", 30)
    assert not trust.hub.connected
    trust.move("b")
    assert trust.connected()


def test_a_hub_without_the_signing_keys_achieves_nothing_with_all_that_it_can_call(trust):
    """Everything a hub can say of trust, in any order: the device goes on as it was."""
    board = trust.start()
    assert trust.connected()
    operator = trust.operator
    choose = random.Random(trust.world.leg)
    good, bad = trust.bundle(2, "b", "z"), os.urandom(900)
    kept = trust.bundle(1, "ab")
    ops = ["begin", "write", "commit", "status", "abort", "begin", "write", "commit", "explode"]
    for _ in range(60):
        data = choose.choice([good, bad, kept, b""])
        at = choose.choice([0, 0, 100, 512, len(data), 99999, -1])
        piece = data[max(0, at) :][: choose.choice([1, 512, 2048])]
        payload = {
            "kind": choose.choice(["trust", "trust", "trust", "software", "../trust"]),
            "op": choose.choice(ops),
            "size": choose.choice([len(data), len(data), 1, 0, 1 << 31]),
            "sha256": hashlib.sha256(data).hexdigest(),
            "at": at,
            "data": base64.b64encode(piece).decode(),
            "version": choose.randrange(9),
        }
        status, _ = operator.invoke(agreed.DELIVERY_METHOD, payload)
        assert status != 202, payload
    # Commands, unsigned, or signed with a key of its own.
    stranger = Signer()
    for payload in (
        None,
        {"role": "trust", "op": "revoke", "args": {"floor": 9}},
        stranger.command(role="trust", op="revoke", args={"floor": 9}, device=DEVICE_ID),
    ):
        status, _ = operator.invoke(agreed.COMMAND_METHOD, payload)
        assert status in (403, 404), payload
    url = "https://127.0.0.1:1/trust.bin"
    wish = {"version": 9, "sha256": hashlib.sha256(good).hexdigest(), "url": url, "size": len(good)}
    operator.desire({"outpost": {"trust": wish}})
    operator.desire({"outpost": "junk", "trust": {"slot": 1}})
    operator.send(b"revoke", properties={"floor": "9"})
    assert trust.alive() and board.reboots == 0 and "Traceback" not in board.text
    for name in ("tr-slot", "tr-try", "tr-floor", "tr-high"):
        assert trust.nvs(name) is None, name
    trust.restart()
    assert trust.connected() and trust.alive()


# Revoking


def commanded(trust) -> tuple[Signer, bytes]:
    """Who may command a device of this world, and the section of its bundle that says so."""
    signer = Signer("trust")
    known = signers_json(signer)
    trust.present = bundles.make(1, [trust.a], signers=known)
    return signer, known


def revoke(trust, signer: Signer, floor: Any, ctr: int) -> tuple[int, Any]:
    token = signer.command(
        fleet=bundles.FLEET,
        device=DEVICE_ID,
        role="trust",
        op="revoke",
        args={"floor": floor},
        ctr=ctr,
        exp=int(time.time()) + 600,
    )
    assert trust.connected()
    return trust.operator.invoke(agreed.COMMAND_METHOD, token)


def test_a_signed_command_revokes_older_bundles_and_never_the_one_in_use(trust):
    signer, known = commanded(trust)
    board = trust.start()
    status, said = revoke(trust, signer, 2, 1)
    assert status == 409 and "version 1 is in use" in said["error"]
    for ctr, wrong in enumerate((True, "1", -1, None), 2):
        assert revoke(trust, signer, wrong, ctr)[0] == 409
    assert trust.push(trust.bundle(2, "ab", signers=known)).status == 202
    board.wait_for(IN_USE, 60)
    assert revoke(trust, signer, 2, 5000) == (200, {"floor": 2, "version": 2})
    assert revoke(trust, signer, 1, 5001) == (200, {"floor": 2, "version": 2})
    assert revoke(trust, signer, 2, 5001)[0] == 403  # taken before
    assert trust.nvs("tr-floor") == 2
    board = trust.restart()
    assert trust.connected() and trust.alive()


def test_signers_of_the_bundle_in_use_go_before_those_of_the_image(trust):
    """One of the image whom the bundle does not name any more can do nothing."""
    signer, _ = commanded(trust)
    former = Signer("trust")
    trust.start(files={"/trust/signers.json": signers_json(former)})
    status, said = revoke(trust, former, 0, 1)
    assert status == 403 and "does not know" in said["error"]
    assert revoke(trust, signer, 0, 2)[0] == 200
