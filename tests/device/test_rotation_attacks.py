"""Rotations that somebody or something stands in the way of: each is refused or comes to nothing,
and the device keeps a key that works."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID
from outpost_tools import agreed
from outpost_tools.errors import OutpostError
from outpost_tools.nvsimage import Identity
from outpost_tools.registry import new_key
from outpost_tools.rotation import _Run
from outpost_tools.rotationhub import OperatorHub, key_id
from outpost_tools.signing import b64, sealed_key
from rotations import DEVICE_ID, WORDS, RotationWorld

LEGS_HERE = ("outpost64",)


@pytest.fixture
def rotation(world):
    with RotationWorld(world) as made:
        yield made


@pytest.fixture
def symmetric(rotation):
    """A connected device with symmetric keys, its born key remembered."""
    flash = rotation.image(limit=10_000)
    rotation.remember(flash)
    rotation.start(flash)
    rotation.ready()
    return rotation


@pytest.fixture
def certified(rotation):
    """A connected device with a certificate."""
    flash = rotation.image(device=Identity(DEVICE_ID))
    rotation.provision(flash)
    rotation.start(flash)
    rotation.ready()
    return rotation


def invoke(rotation, token: Any) -> tuple[int, Any]:
    return rotation.operator.invoke(DEVICE_ID, agreed.COMMAND_METHOD, token, 20, 20)


def facts(rotation) -> dict[str, Any]:
    status, said = rotation.operator.invoke(DEVICE_ID, agreed.IDENTITY_METHOD, None, 20, 20)
    assert status == 200
    return said


def sealed(rotation, **keys: str) -> str:
    run = _Run(rotation.rotator(), rotation.fleet.find(DEVICE_ID), False)
    return run._seal(**keys)


def command(rotation, op: str, **args: Any) -> str:
    return rotation.pen.command(rotation.fleet, DEVICE_ID, "keys", op, args)


def test_a_key_that_the_hub_never_takes_is_dropped_and_the_old_one_stays(symmetric):
    wrong = new_key()
    before = facts(symmetric)
    token = command(symmetric, "symmetric", jwe=sealed(symmetric, primary=wrong), wait=2)
    status, said = invoke(symmetric, token)
    assert (status, said["state"], said["key"]) == (200, "on trial", key_id(wrong))
    board = symmetric.board
    board.wait_for("new primary: .*; trying primary", 30)
    board.wait_for("did not work and is dropped", 30)
    after = facts(symmetric)
    assert after["dropped"] == key_id(wrong) and after["trial"] is None
    assert after["key"] == before["key"] and after["credential"] == "primary"
    count = len(symmetric.hub.telemetry)
    assert symmetric.hub.wait_until(lambda: len(symmetric.hub.telemetry) > count + 5, 30)
    assert board.reboots == 0 and "Traceback" not in board.text
    # It is free for the next one.
    symmetric.rotator().rotate(DEVICE_ID)


def test_a_hub_that_is_slow_to_know_the_new_key_is_waited_for(symmetric):
    new = new_key()
    token = command(symmetric, "symmetric", jwe=sealed(symmetric, primary=new), wait=600)
    assert invoke(symmetric, token)[0] == 200
    symmetric.board.wait_for("new primary: .*; trying primary", 30)
    assert facts(symmetric)["refused"] is True
    symmetric.world.registry.update(DEVICE_ID, secondary_key=new)
    symmetric.board.wait_for("credential=new primary", 40)
    assert facts(symmetric)["key"] == key_id(new)


def test_a_command_is_run_once_and_only_for_who_may(symmetric):
    token = command(symmetric, "drop")
    assert invoke(symmetric, token) == (200, {"state": "dropped"})
    status, said = invoke(symmetric, token)
    assert status == 403 and "taken before" in said["error"]
    before = facts(symmetric)
    other = symmetric.signers.add("other", ["keys"], lambda: WORDS)
    with symmetric.signers.unlocked(other, lambda: WORDS) as pen:
        stranger = pen.command(symmetric.fleet, DEVICE_ID, "keys", "drop", {})
    for bad, status, words in (
        (stranger, 403, "does not know"),
        (command(symmetric, "explode"), 404, "no command keys.explode"),
        (token[:-4] + "AAAA", 403, "signature is wrong"),
        (None, 403, "is a text"),
        ({"jws": token}, 403, "is a text"),
        ("A" * 1024, 403, "three parts"),
    ):
        got, said = invoke(symmetric, bad)
        assert got == status and words in said["error"], (bad, got, said)
    assert facts(symmetric) == before
    assert "Traceback" not in symmetric.board.text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "holds no sealed keys"),
        ({"jwe": 7}, "holds no sealed keys"),
        ({"jwe": "a.b.c"}, "not a JWE"),
        ({"jwe": {"primary": ""}}, "holds no sealed keys"),
    ],
)
def test_a_command_with_nothing_sealed_in_it_changes_nothing(symmetric, args, words):
    before = facts(symmetric)
    status, said = invoke(symmetric, command(symmetric, "symmetric", **args))
    assert status == 409 and words in said["error"]
    assert facts(symmetric) == before


def test_keys_sealed_to_another_board_or_for_another_device_are_refused(symmetric):
    before = facts(symmetric)
    _, other = sealed_key(Identity(DEVICE_ID))
    run = _Run(symmetric.rotator(), symmetric.fleet.find(DEVICE_ID), False)
    run._born = other
    wrong_board = run._seal(primary=new_key())
    run._born, run._id = symmetric.fleet.born(DEVICE_ID), "press-8"
    wrong_device = run._seal(primary=new_key())
    for jwe, words in ((wrong_board, "sealed for another key"), (wrong_device, "another device")):
        status, said = invoke(symmetric, command(symmetric, "symmetric", jwe=jwe))
        assert status == 409 and words in said["error"]
    assert facts(symmetric) == before


class Between(OperatorHub):
    """A hub whose answers somebody in between makes."""

    def __init__(self, rotation, answer) -> None:
        super().__init__(rotation.operator)
        self._answer = answer

    def ask(self, device_id, method, payload, patience_s):
        op, counter = "", 0
        if method == agreed.COMMAND_METHOD:
            raw = payload.split(".")[1]
            content = json.loads(base64.urlsafe_b64decode(raw + "=="))
            op, counter = content["op"], content["ctr"]
        made = self._answer(op, counter)
        return made if made else super().ask(device_id, method, payload, patience_s)


def forged(fleet: str, counter: int, key, cn: str = DEVICE_ID, signer=None) -> dict[str, str]:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    der = csr.public_bytes(serialization.Encoding.DER)
    text = agreed.ENDORSEMENT % (fleet, DEVICE_ID, counter)
    signature = (signer or key).sign(text.encode() + der, ec.ECDSA(hashes.SHA256()))
    r, s = decode_dss_signature(signature)
    return {"csr": b64(der), "endorsement": b64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))}


def test_who_has_the_tls_key_cannot_ask_for_a_certificate(certified):
    """The thief connects as the device, and answers with a request of his own key."""
    thief = ec.generate_private_key(ec.SECP256R1())
    before, issued = certified.device(), certified.fleet.certificates(DEVICE_ID)
    fleet = certified.fleet.name

    def answers(op, counter):
        return (200, forged(fleet, counter, thief)) if op == "request" else None

    with pytest.raises(OutpostError, match="not endorsed by the key"):
        certified.rotator(hub=Between(certified, answers)).rotate(DEVICE_ID)
    assert certified.device() == before and certified.fleet.certificates(DEVICE_ID) == issued


def test_a_request_of_an_earlier_time_is_not_signed_again(certified):
    status, old = invoke(certified, command(certified, "request"))
    assert status == 200
    before = certified.device()
    with pytest.raises(OutpostError, match="not endorsed by the key"):
        hub = Between(certified, lambda op, _: (200, old) if op == "request" else None)
        certified.rotator(hub=hub).rotate(DEVICE_ID)
    assert certified.device() == before
    # The certificate in use was not touched by the request that came to nothing.
    certified.start(certified.board.flash)
    assert certified.ready() == "certificate"


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}),
        (200, {"csr": "AA", "endorsement": "AA"}),
        (200, {"csr": 5, "endorsement": []}),
        (200, "text"),
        (500, {"error": "x\x1b[2J"}),
        (409, {"error": "no"}),
        (200, None),
    ],
)
def test_a_device_that_answers_nonsense_stops_its_rotation_in_a_sentence(certified, answer):
    before = certified.device()
    hub = Between(certified, lambda op, _: answer if op == "request" else None)
    with pytest.raises(OutpostError) as why:
        certified.rotator(hub=hub).rotate(DEVICE_ID)
    assert certified.device() == before and "\x1b" not in str(why.value)


@pytest.mark.parametrize(
    "answer",
    [
        (404, {"error": "none"}),
        (200, {"device": "press-8", "key": "x", "kind": 1}),
        (200, {"device": DEVICE_ID, "kind": []}),
        (200, {"device": DEVICE_ID, "kind": 1, "key": "not the hub's"}),
        (200, {"device": DEVICE_ID, "kind": 2, "key": "A" * 64}),
        (200, {"device": DEVICE_ID, "kind": 7}),
        (200, []),
    ],
)
def test_facts_that_make_no_sense_change_nothing(symmetric, answer):
    before = symmetric.device()
    hub = Between(symmetric, lambda op, _: None if op else answer)
    with pytest.raises(OutpostError):
        symmetric.rotator(hub=hub, patience_s=1).rotate(DEVICE_ID)
    assert symmetric.device() == before


def test_a_certificate_that_does_not_fit_is_refused_by_the_device(certified):
    before = facts(certified)
    status, said = invoke(certified, command(certified, "request"))
    asked = base64.urlsafe_b64decode(said["csr"] + "==")
    with certified.ca().unlocked(lambda: WORDS) as signer:
        good = signer.request(asked, DEVICE_ID)[0]
        other = signer.device(DEVICE_ID, ec.generate_private_key(ec.SECP256R1()).public_key())[0]
        named = signer.device("press-8", x509.load_der_x509_csr(asked).public_key())[0]

    def der(one):
        return one.public_bytes(serialization.Encoding.DER)

    for chain, words in (
        (b64(der(other)), "for another key"),
        (b64(der(named)), "is for press-8"),
        (b64(der(good)[:-1]), "cut off"),
        (b64(der(good) + der(other)), "does not hold"),
        ("", "not 1 to"),
        (None, "no chain in base64url"),
        ("=!", "no chain in base64url"),
    ):
        status, said = invoke(certified, command(certified, "certificate", chain=chain))
        assert status == 409 and words in said["error"], (words, said)
    assert facts(certified) == before
    status, said = invoke(certified, command(certified, "certificate", chain=b64(der(good))))
    assert status == 200 and said["state"] == "on trial"


def test_an_answer_that_was_lost_does_not_stop_the_rotation(symmetric):
    """The hub repeats a command whose answer it never got; the device knows it already."""
    lost = []

    class Lossy(OperatorHub):
        def ask(self, device_id, method, payload, patience_s):
            answer = super().ask(device_id, method, payload, patience_s)
            if method == agreed.COMMAND_METHOD and payload not in lost and len(lost) < 2:
                lost.append(payload)
                return super().ask(device_id, method, payload, patience_s)
            return answer

    symmetric.rotator(hub=Lossy(symmetric.operator)).rotate(DEVICE_ID)
    assert len(lost) == 2


def test_no_secret_is_shown_in_a_rotation_or_in_one_that_fails(symmetric):
    secrets: set[str] = set(symmetric.device().keys)
    symmetric.rotator().rotate(DEVICE_ID)
    secrets |= set(symmetric.device().keys)
    symmetric.rotator().rotate(DEVICE_ID, emergency=True)
    secrets |= set(symmetric.device().keys)
    wrong = new_key()
    secrets.add(wrong)
    invoke(symmetric, command(symmetric, "symmetric", jwe=sealed(symmetric, primary=wrong), wait=1))
    symmetric.board.wait_for("is dropped", 40)
    book = (symmetric.data / "fleet.db").read_bytes()
    for name in ("fleet.db-wal",):
        if (symmetric.data / name).exists():
            book += (symmetric.data / name).read_bytes()
    shown = "\n".join([symmetric.board.text, *symmetric.said, json.dumps(facts(symmetric))])
    for secret in secrets:
        raw = base64.b64decode(secret)
        for form in (secret, raw.hex(), raw.hex().upper(), b64(raw), repr(raw)[2:-1]):
            assert form not in shown
        assert raw not in book and secret.encode() not in book and b64(raw).encode() not in book


def test_the_born_key_of_another_board_is_not_taken_for_this_one(rotation):
    first = rotation.image(name="first.bin")
    rotation.remember(first)
    known = rotation.fleet.find(DEVICE_ID)
    rotation.remember(first)  # the same board once more
    with pytest.raises(OutpostError, match="another born key"):
        rotation.remember(rotation.image(name="second.bin"))
    other = rotation.image(name="other.bin", device=Identity("press-8"))
    with pytest.raises(OutpostError, match="This board is 'press-8'"):
        rotation.remember(other)
    assert rotation.fleet.find(DEVICE_ID).born_point == known.born_point


@pytest.mark.parametrize("leg", ["stock32", "stock-release"], indirect=True)
def test_a_stock_board_rotates_symmetric_keys_and_says_what_it_cannot(rotation):
    identity, point = sealed_key(Identity.of(rotation.device()))
    rotation.fleet.remember(DEVICE_ID, born=point, made_on="host")
    rotation.start(rotation.image(device=identity))
    rotation.ready()
    status, said = invoke(rotation, command(rotation, "request"))
    assert status == 409 and "stock MicroPython makes no keys" in said["error"]
    before = rotation.device()
    try:
        done = rotation.rotator().rotate(DEVICE_ID)
    except OutpostError as why:
        raise AssertionError(f"{why}\n{rotation.board.text}") from None
    assert done.kind == "symmetric" and not set(before.keys) & set(rotation.device().keys)
    with pytest.raises(OutpostError, match="No born certificate is known"):
        rotation.rotator().rotate(DEVICE_ID, emergency=True)


@pytest.mark.parametrize("leg", ["stock32"], indirect=True)
def test_a_stock_board_without_a_sealing_key_says_so(rotation):
    _, point = sealed_key(Identity(DEVICE_ID))
    rotation.fleet.remember(DEVICE_ID, born=point, made_on="host")
    rotation.start(rotation.image())
    rotation.ready()
    before = facts(rotation)
    with pytest.raises(OutpostError, match="no key that secrets can be sealed to"):
        rotation.rotator().rotate(DEVICE_ID)
    assert facts(rotation) == before
