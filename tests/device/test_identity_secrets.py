"""No secret is in any byte that the device prints, logs, reports or sends in the clear, whatever
happens to it.

Each scene is a good or a bad day of an identity. Everything that came out is searched for every
form of every secret of that scene: symmetric keys, keys of the slots, tokens.
"""

from __future__ import annotations

import base64
import json

import pytest
from authority import Authority, thumbprint
from boardcalls import Calls
from chip import Chip, ChipError
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from dpsworld import DpsWorld
from identities import NVS, edit, forms, found_in, sec1, symmetric, x509
from outpost_tools.registry import new_key
from tap import Tap
from world import DEVICE_ID, World, line_number

from certs import holder

LEGS_HERE = ("outpost32", "stock32")
RETRY = r"error .*; next attempt in"


class Watch:
    """Everything that came out of the board, and everything that must not have."""

    def __init__(self, world: World) -> None:
        self.world, self.secrets, self.boards = world, {}, []
        self.taps: list[Tap] = []
        self.said = ""
        for name in ("primary_key", "secondary_key"):
            self.key(name, getattr(world.device, name))

    def key(self, name: str, key: str | bytes) -> None:
        self.secrets[name] = base64.b64decode(key) if isinstance(key, str) else key

    def tap(self, port: int) -> int:
        tap = Tap(port)
        self.taps.append(tap)
        self.world._closing.append(tap)
        return tap.port

    def board(self, flash, **more):
        board = self.world.board(flash, **more)
        self.boards.append(board)
        return board

    def slots(self, flash) -> None:
        """The private keys that the board has made, read out of its flash behind its back."""
        chip = Chip(flash)
        try:
            assert chip.start(*NVS) == 0
            ns = chip.namespace("outpost_keys", False)
            for slot in range(8):
                blob = chip.get(ns, f"k{slot}")
                if blob is None:
                    continue
                private, point = private_of(blob)
                self.secrets[f"slot {slot}"] = private
                assert point
        except ChipError:
            assert self.world.leg.startswith("stock")
        finally:
            chip.close()

    def check(self) -> None:
        for board in self.boards:
            board.stop()
        self.slots(self.boards[0].flash)
        out = self.said.encode()
        for board in self.boards:
            out += board.text.encode() + board.pending.encode() + json.dumps(board.reports).encode()
        printed = bytes(out)
        out += b"".join(bytes(tap.carried) for tap in self.taps)
        assert len(out) > 500
        assert found_in(out, self.secrets) == []
        for word in (b"SharedAccessSignature", b"sig=", b"&se=", b"PRIVATE KEY"):
            assert word not in printed
        # The secrets are real: the board's flash has the ones that belong there.
        assert found_in(self.boards[0].flash.read_bytes(), self.secrets)


def private_of(blob: bytes) -> tuple[bytes, bytes]:
    """(scalar, point) in a slot's entry, wherever in it they are."""
    for at in range(len(blob) - 31):
        scalar = blob[at : at + 32]
        number = int.from_bytes(scalar, "big")
        try:
            public = ec.derive_private_key(number, ec.SECP256R1()).public_key()
        except ValueError:
            continue
        point = public.public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        if point in blob or point[1:] in blob:
            return scalar, point
    raise AssertionError("there is no key in the slot's entry")


@pytest.fixture
def watch(world):
    return Watch(world)


def bare(world, port, **more):
    flash = world.image(port, **more)
    edit(flash, sas1=None, sas2=None)
    return flash


# The scenes


def connects(watch, world):
    hub = world.hub()
    board = watch.board(world.image(watch.tap(hub.port)))
    board.wait_for(r"acked id=2", 60)


def is_refused_with_every_key(watch, world):
    hub = world.hub()
    world.registry.rotate(DEVICE_ID)
    board = watch.board(world.image(watch.tap(hub.port)))
    at = line_number(board, RETRY)
    line_number(board, RETRY, at + 1)


def tries_a_candidate(watch, world):
    hub = world.hub()
    new = new_key()
    watch.key("candidate", new)
    flash = world.image(watch.tap(hub.port))
    edit(flash, idb=symmetric(base64.b64decode(new)), idtry=1)
    world.registry.update(DEVICE_ID, secondary_key=new)
    board = watch.board(flash)
    board.wait_for(r"the new key works", 60)


def has_damaged_entries(watch, world):
    record = symmetric(watch.secrets["primary_key"], watch.secrets["secondary_key"])
    flash = world.image(world.hub().port)
    text = world.device.primary_key.encode()
    edit(flash, ida=record[:-2] + b"\0\0", idcur=0, sas1=text[:-1], sas2=b"!" + text)
    board = watch.board(flash)
    line_number(board, r"error +identity: |hub +|error +hub: ")


def provisions_itself(watch, world):
    service = DpsWorld(world)
    ours = not world.leg.startswith("stock")
    made = service.enrol(**({"credentialPolicyName": "default"} if ours else {}))
    for name, key in zip(("enrolment 1", "enrolment 2"), made.keys, strict=True):
        watch.key(name, key)
    flash = service.image(*made.keys, csr=ours, port=watch.tap(service.hub.port))
    board = watch.board(flash)
    board.wait_for(r"acked id=1", 60)
    if ours:
        board.wait_for(r"the new key works", 60)


def is_refused_by_the_service(watch, world):
    service = DpsWorld(world)
    wrong = new_key()
    watch.key("wrong", wrong)
    board = watch.board(service.image(wrong, port=watch.tap(service.hub.port)))
    at = line_number(board, RETRY)
    line_number(board, RETRY, at + 1)


def is_signed_and_installed(watch, world):
    hub = world.hub()
    flash = bare(world, watch.tap(hub.port))
    if world.leg.startswith("stock"):
        made = holder(DEVICE_ID)
        watch.key("host's key", made.key.private_numbers().private_value.to_bytes(32, "big"))
        edit(flash, ida=x509(made.der, private=sec1(made.key)), idcur=0)
        leaf = made.der
    else:
        calls, authority = Calls(flash, world.leg), Authority()
        csr = calls.csr()
        for bad in ({"name": "other"}, {"order": "wrong"}):
            assert calls.install(authority.sign(csr, **bad))
        chain = authority.sign(csr)
        assert calls.install(chain) == ""
        leaf = chain[: 4 + int.from_bytes(chain[2:4], "big")]
        watch.said += calls.printed
    world.registry.update(
        DEVICE_ID,
        auth="selfSigned",
        primary_key="",
        secondary_key="",
        primary_thumbprint=thumbprint(leaf),
    )
    board = watch.board(flash)
    board.wait_for(r"acked id=1", 60)


def runs_out_of_memory(watch, world):
    hub = world.hub()
    heap = "38K" if world.leg == "outpost32" else "96K"
    board = watch.board(world.image(watch.tap(hub.port)), heapsize=heap)
    line_number(board, r"memory|acked id=1|MemoryError")


def is_interrupted_and_asked(watch, world):
    """At the prompt: what shows itself of the identity's objects."""
    hub = world.hub()
    board = watch.board(world.image(watch.tap(hub.port)))
    board.wait_for(r"acked id=1", 60)
    board.write(b"\x03")
    board.wait_for(r">>> ", 20)
    for line in (
        b"from outpost import identity, keystore, log",
        b"who = identity.load()",
        b"print(who, who.credentials(), keystore.Store(), keystore.Store().current())",
        b"print([str(c) for c in who.credentials()], log.lines())",
        b"print(dir(who), identity.check_device_id('a b'.encode()))",
        b"print('ASKED')",
    ):
        board.write(line + b"\r\n")
    line_number(board, r"^ASKED")


def loses_power(watch, world):
    hub = world.hub()
    flash = world.image(watch.tap(hub.port))
    for n in (3, 8, 14, 21):
        watch.board(flash, cut=f"{n}:torn", restarts=False).wait_exit(60)
    watch.board(flash).wait_for(r"acked id=1", 60)


SCENES = (
    connects,
    is_refused_with_every_key,
    tries_a_candidate,
    has_damaged_entries,
    provisions_itself,
    is_refused_by_the_service,
    is_signed_and_installed,
    runs_out_of_memory,
    is_interrupted_and_asked,
    loses_power,
)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_no_secret_comes_out_of_a_device_that(world, watch, scene):
    scene(watch, world)
    watch.check()


def test_every_form_of_a_key_would_be_found(world, watch):
    """The search itself: each form, alone and inside of something longer, is seen."""
    for secret in (bytes(range(200, 232)), bytes(range(30, 62)), bytes(range(80, 112))):
        every_form(secret)
    hub = world.hub()
    main = b"from outpost import identity\nprint(identity.load().credentials()[0]._key.hex())\n"
    board = watch.board(world.image(hub.port, files={"/main.py": main}))
    line_number(board, r"^[0-9a-f]{64}$")
    assert found_in(board.text.encode(), watch.secrets) == ["primary_key"]


def every_form(secret: bytes) -> None:
    hidden = [b"x" * n + secret + b"y" * 5 for n in range(4)]
    shown = [f for f in forms(secret)]
    shown += [base64.b64encode(h) for h in hidden] + [base64.urlsafe_b64encode(h) for h in hidden]
    shown += [repr(list(secret)).encode(), repr(bytearray(secret)).encode()]
    for text in shown:
        assert found_in(b"before " + text + b" after", {"key": secret}) == ["key"], text
    assert found_in(b"nothing of it" * 100, {"key": secret}) == []
