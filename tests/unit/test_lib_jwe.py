"""Sealed messages: the RFCs' own examples, a public JOSE library at the other end, and every way in
which a token can be wrong."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import random
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from devicelib import Library
from jwcrypto import jwe as theirs
from jwcrypto import jwk

lib = Library()
ours, jose, p256 = lib.jwe, lib.jose, lib.p256
SealError = lib.errors.SealError

KEY = bytes(range(32))


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def new_pair() -> tuple[bytes, bytes, jwk.JWK]:
    """(private bytes, 65 bytes of the point, the same as the other library's key)."""
    key = ec.generate_private_key(ec.SECP256R1())
    point = key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    return (
        key.private_numbers().private_value.to_bytes(32, "big"),
        point,
        jwk.JWK.from_pyca(key),
    )


def seal_by_library(plain: bytes, key: jwk.JWK, **header) -> str:
    token = theirs.JWE(plain, json.dumps({"enc": "A128CBC-HS256", **header}))
    token.add_recipient(key)
    return token.serialize(compact=True)


def open_by_library(token: str, key: jwk.JWK) -> bytes:
    opened = theirs.JWE()
    opened.deserialize(token, key)
    return opened.payload


def oct_key(raw: bytes = KEY) -> jwk.JWK:
    return jwk.JWK(kty="oct", k=b64(raw))


@cache
def cookbook() -> ModuleType:
    """RFC 7520's examples, as the JOSE library brings them along."""
    path = Path(theirs.__file__).with_name("tests-cookbook.py")
    spec = importlib.util.spec_from_file_location("jose_cookbook", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_example_5_5_of_rfc_7520_opens():
    book = cookbook()
    private = unb64(book.EC_key_5_5_1["d"])
    plain = ours.open_sealed(book.JWE_compact_5_5_5, lambda point: p256.agree(private, point))
    assert plain == book.Payload_plaintext_5


def test_encryption_of_rfc_7518_appendix_b_1():
    plain = (
        b"A cipher system must not be required to be secret, and it must be able to fall into "
        b"the hands of the enemy without inconvenience"
    )
    iv = bytes.fromhex("1af38c2dc2b96ffdd86694092341bc04")
    body = bytes.fromhex(
        "c80edfa32ddf39d5ef00c0b468834279a2e46a1b8049f792f76bfe54b903a9c9a94ac9b47ad2655c5f10f9aef7"
        "1427e2fc6f9b3f399a221489f16362c703233609d45ac69864e3321cf82935ac4096c86e133314c54019e8ca79"
        "80dfa4b9cf1b384c486f3a54c51078158ee5d79de59fbd34d848b3d69550a67646344427ade54b8851ffb598f7"
        "f80074b9473c82e2db"
    )
    tag = bytes.fromhex("652c3fa36b0a7c5b3219fab3a30bc1c4")
    assert ours._open((b"The second principle of Auguste Kerckhoffs", iv, body, tag), KEY) == plain


def test_key_agreement_of_rfc_7518_appendix_c():
    alice = unb64("0_NxaRPUMQoAJt50Gz8YiTr8gRTwyEaCumd-MToTmIo")
    bob = b"\4" + unb64("weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ")
    bob += unb64("e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck")
    z = "9e56d91d817135d372834283bf84269cfb316ea3da806a48f6daa7798cfe90c4"
    assert p256.agree(alice, bob).hex() == z


@pytest.mark.parametrize("size", [1, 15, 16, 17, 31, 32, 300, 10000])
def test_dir_goes_both_ways_with_a_public_jose_library(size):
    plain = os.urandom(size)
    assert open_by_library(ours.seal_dir(plain, KEY, "site-7"), oct_key()) == plain
    assert ours.open_dir(seal_by_library(plain, oct_key(), alg="dir"), KEY) == plain


@pytest.mark.parametrize("size", [1, 16, 77])
@pytest.mark.parametrize("parties", [{}, {"apu": b64(b"Alice"), "apv": b64(b"Bob")}])
def test_ecdh_es_goes_both_ways_with_a_public_jose_library(size, parties):
    private, point, key = new_pair()
    plain = os.urandom(size)
    assert open_by_library(ours.seal(plain, point), key) == plain
    token = seal_by_library(plain, key, alg="ECDH-ES", **parties)
    assert ours.open_sealed(token, lambda other: p256.agree(private, other)) == plain


def test_device_seals_and_opens_as_the_library_does(micropython):
    private, point, key = new_pair()
    sealed = seal_by_library(b"for the device", key, alg="ECDH-ES")
    shared = seal_by_library(b"for both", oct_key(), alg="dir")
    printed = micropython(
        "from outpost import jwe, p256\n"
        f"agree = lambda other: p256.agree({private!r}, other)\n"
        f"assert jwe.open_sealed({sealed!r}, agree) == b'for the device'\n"
        f"assert jwe.open_dir({shared!r}, {KEY!r}) == b'for both'\n"
        f"print(jwe.seal(b'from the device', {point!r}))\n"
        f"print(jwe.seal_dir(b'from the board', {KEY!r}))\n"
    ).split()
    assert open_by_library(printed[0], key) == b"from the device"
    assert open_by_library(printed[1], oct_key()) == b"from the board"


def test_an_empty_message_can_be_sealed():
    # The library takes an empty message for a failure: here we are at both ends.
    private, point, _ = new_pair()
    assert ours.open_dir(ours.seal_dir(b"", KEY), KEY) == b""
    sealed = ours.seal(b"", point)
    assert ours.open_sealed(sealed, lambda other: p256.agree(private, other)) == b""


def test_two_tokens_of_one_message_have_nothing_in_common():
    first, second = (ours.seal_dir(b"same", KEY).split(".")[2:] for _ in range(2))
    assert not set(first) & set(second)


def bomb(*_):
    raise AssertionError("decrypted before the MAC was compared")


def test_any_change_is_refused_before_anything_is_decrypted(monkeypatch):
    token = ours.seal_dir(b"pump off", KEY)
    monkeypatch.setattr(ours, "aes", bomb)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    choose = random.Random(3)
    for at, was in enumerate(token):
        for other in {choose.choice(alphabet.replace(was, "")), "."} - {was}:
            with pytest.raises(SealError):
                ours.open_dir(token[:at] + other + token[at + 1 :], KEY)
        with pytest.raises(SealError):
            ours.open_dir(token[:at], KEY)
    with pytest.raises(SealError, match="another key"):
        ours.open_dir(token, bytes(32))


def test_a_mac_that_is_compared_badly_is_caught():
    broken = Library(edits={"jose": ("different |= a[i] ^ b[i]", "different = a[i] ^ b[i]")})
    assert broken.jose.equal(b"ax", b"bx") and not jose.equal(b"ax", b"bx")
    for at in range(16):
        other = bytearray(16)
        other[at] = 1
        assert not jose.equal(bytes(16), other)
    assert jose.equal(b"same", b"same") and not jose.equal(b"", b"a")


def remade(header: dict | str, *, iv: bytes = bytes(16), body: bytes = bytes(16)) -> str:
    """A token with any header, its MAC right."""
    text = header if isinstance(header, str) else json.dumps(header)
    head = b64(text.encode())
    tag = ours._mac(KEY, head.encode(), iv, body)
    return f"{head}..{b64(iv)}.{b64(body)}.{b64(tag)}"


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"alg": "none", "enc": "A128CBC-HS256"}, "shared key"),
        ({"alg": "A128KW", "enc": "A128CBC-HS256"}, "shared key"),
        ({"alg": "dir", "enc": "A128GCM"}, "not encrypted with A128CBC-HS256"),
        ({"alg": "dir"}, "not encrypted with A128CBC-HS256"),
        ({"alg": "dir", "enc": "A128CBC-HS256", "zip": "DEF"}, "not understood"),
        ({"alg": "dir", "enc": "A128CBC-HS256", "crit": ["exp"]}, "not understood"),
        ('{"alg":"none","alg":"dir","enc":"A128CBC-HS256"}', "a name twice"),
        ('{"alg":"dir","enc":"A128CBC-HS256"', "not JSON"),
        ('["dir"]', "not a JSON object"),
        ({"alg": "dir", "enc": "A128CBC-HS256"}, "was changed"),  # its padding is wrong
    ],
)
def test_a_header_that_is_not_understood_is_refused_in_a_sentence(header, words):
    with pytest.raises(SealError, match=words):
        ours.open_dir(remade(header), KEY)


def epk(**changes) -> dict:
    _, point, _ = new_pair()
    x, y = b64(point[1:33]), b64(point[33:])
    made = {"kty": "EC", "crv": "P-256", "x": x, "y": y} | changes
    return {"alg": "ECDH-ES", "enc": "A128CBC-HS256", "epk": made}


@pytest.mark.parametrize(
    "header",
    [
        epk(y=b64(bytes(32))),  # an invalid-curve attack
        epk(crv="P-384"),
        epk(kty="OKP"),
        epk(x="AA"),
        epk(x=None),
        epk(x=7),
        epk(x="A" * 43 + "="),
        epk() | {"apu": 5},
        epk() | {"epk": "no object"},
        epk() | {"alg": "ECDH-ES+A128KW"},
    ],
)
def test_a_sealing_key_that_is_none_is_refused_in_a_sentence(header):
    private, _, _ = new_pair()
    with pytest.raises(SealError):
        ours.open_sealed(remade(header), lambda other: p256.agree(private, other))


def test_a_point_has_one_spelling():
    """The same 64 bytes, cut elsewhere: a strict reader and this one must not disagree."""
    _, point, _ = new_pair()
    header = epk(x=b64(point[1:32]), y=b64(point[32:]))
    with pytest.raises(SealError, match="not on P-256"):
        ours.open_sealed(remade(header), lambda other: pytest.fail("it was used"))


@pytest.mark.parametrize(
    "token",
    [
        "",
        "....",
        "a.b.c",
        "A" * 16385,
        b"\xff\xfe....",
        "e30.x...",
        "e30..AAAA.AAAA.AAAA",
        "e30..AAAAAAAAAAAAAAAAAAAAAA==.AAAAAAAAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAA",
        "e30..AAAAAAAAAAAAAAAAAAAAAB.AAAAAAAAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAA",
        "é..AAAA.AAAA.AAAA",
    ],
)
def test_what_is_no_token_is_refused_in_a_sentence(token):
    for opening in (lambda: ours.open_dir(token, KEY), lambda: ours.open_sealed(token, bomb)):
        with pytest.raises(SealError):
            opening()


def test_a_message_too_long_to_seal_is_refused():
    with pytest.raises(SealError, match="too many"):
        ours.seal_dir(bytes(16384), KEY)


def test_no_error_holds_a_key_or_what_was_sealed():
    secret = b"the secret itself"
    token = ours.seal_dir(secret, KEY)
    for bad in (
        token[:-2] + ("BA" if token.endswith("AA") else "AA"),
        token[:-6],
        "A" * 20000,
        token + ".",
    ):
        with pytest.raises(SealError) as why:
            ours.open_dir(bad, KEY)
        said = repr(why.value) + str(why.value)
        assert secret.decode() not in said and KEY.hex() not in said and b64(KEY) not in said


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ('{"a":1,"b":[1,{"c":"x:,{"}],"d":"\\"\\\\"}', True),
        ('{"a":{},"b":[],"c":[[],{}]}', True),
        ('{"a":1,"a":1}', False),
        ('{"a":1,"\\u0061":2}', False),
        ('{"a":{"b":1,"b":{"c":[]}}}', False),
        ('{"a":1', False),
        ('{"a" 1}', False),
        ('{"a":1 "b":2}', False),
        ('{"a":[1 2]}', False),
        ('{"a":1,}', False),
        ('{"a":1}}', False),
        ("{1:2}", False),
        ("[]", False),
        ("", False),
        ('{"a":' * 400, False),
    ],
)
def test_json_with_two_meanings_is_refused(micropython, text, good):
    printed = micropython(
        "from outpost import jose\n"
        "try:\n"
        f"    jose.parse({text.encode()!r})\n"
        "    print(True)\n"
        "except ValueError:\n"
        "    print(False)\n"
    )
    assert printed.strip() == str(good)
