"""X.509 on every build: a key born on the board, one from the host, one in a secure element."""

from __future__ import annotations

import re
import subprocess

import pytest
from authority import Authority, thumbprint
from boardcalls import Calls
from cryptography.hazmat.primitives.asymmetric import ec
from identities import SIGNER, edit, entries, sec1, x509
from legs import OURS
from world import DEVICE_ID, World, line_number

from certs import DAY, holder

CONNECTED = r"hub +connected .*credential=%s$"
OURS_ONLY = pytest.mark.parametrize("leg", OURS, indirect=True)


@pytest.fixture(scope="module")
def authority():
    return Authority()


def bare(world: World, port: int, *sntp, **more):
    """An image with a device id and nothing to prove it with."""
    flash = world.image(port, *sntp, **more)
    edit(flash, sas1=None, sas2=None)
    return flash


def of_authority(world: World, authority: Authority) -> None:
    world.registry.add_authority("fleet", authority.pem)
    world.registry.update(DEVICE_ID, auth="certificateAuthority", primary_key="", secondary_key="")


def of_thumbprint(world: World, der: bytes) -> None:
    world.registry.update(
        DEVICE_ID,
        auth="selfSigned",
        primary_key="",
        secondary_key="",
        primary_thumbprint=thumbprint(der),
    )


# Born on the board


@OURS_ONLY
def test_key_born_on_the_board_is_signed_and_proves_the_device(world, authority, tmp_path):
    hub = world.hub()
    of_authority(world, authority)
    flash = bare(world, hub.port)
    calls = Calls(flash, world.leg)
    csr = calls.csr()
    assert calls.csr() == csr or x509_point(calls.csr()) == x509_point(csr)
    path = tmp_path / "csr.der"
    path.write_bytes(csr)
    done = subprocess.run(
        ["openssl", "req", "-inform", "DER", "-in", path, "-verify", "-noout", "-subject"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "OK" in done.stderr and f"CN = {DEVICE_ID}" in done.stdout
    assert calls.install(authority.sign(csr)) == ""
    board = world.board(flash)
    board.wait_for(r"identity +device=press-7 kind=x509", 60)
    board.wait_for(CONNECTED % "certificate", 60)
    board.wait_for(r"acked id=2", 60)
    assert "error" not in board.text


def x509_point(csr: bytes) -> bytes:
    from cryptography import x509 as c
    from cryptography.hazmat.primitives import serialization as s

    return (
        c.load_der_x509_csr(csr)
        .public_key()
        .public_bytes(s.Encoding.X962, s.PublicFormat.UncompressedPoint)
    )


@OURS_ONLY
def test_first_boot_makes_the_born_key_once_and_the_hub_may_know_the_device_by_it(world):
    hub = world.hub()
    flash = bare(world, hub.port)
    board = world.board(flash)
    board.wait_for(r"identity +this board has made the key that it is born with", 60)
    board.wait_for(r"identity +device=press-7 kind=born", 60)
    board.wait_for(r"error +hub: the server does not authorise", 60)
    board.stop()
    born = entries(flash, "born")["born"]
    of_thumbprint(world, born)
    board = world.board(flash)
    board.wait_for(CONNECTED % "born", 60)
    board.wait_for(r"acked id=1", 60)
    board.stop()
    assert "has made the key" not in board.text
    assert entries(flash, "born")["born"] == born


@OURS_ONLY
def test_certificate_that_the_hub_refuses_leaves_the_symmetric_key_in_use(world, authority):
    hub = world.hub()
    flash = world.image(hub.port)
    calls = Calls(flash, world.leg)
    assert calls.install(authority.sign(calls.csr())) == ""
    board = world.board(flash)
    at = line_number(board, CONNECTED % "primary")
    # Once the registry has it, the next refusal of the old key makes the device try it again.
    of_authority(world, authority)
    at = line_number(board, CONNECTED % "new certificate", at)
    line_number(board, r"identity +the new key works", at)
    board.stop()
    assert entries(flash, "sas1", "sas2") == {"sas1": None, "sas2": None}


BAD = {
    "for another key": (
        {"key": ec.generate_private_key(ec.SECP256R1()).public_key()},
        "for another key: sign the request",
    ),
    "for another device": ({"name": "press-8"}, "is for press-8: this is press-7"),
    "expired": ({"starts": -9 * DAY, "ends": -DAY}, r"a certificate ended at \d{4}-\d\d-\d\d"),
    "not yet valid": ({"starts": DAY}, r"a certificate begins at .* only, and it is "),
    "in the wrong order": ({"order": "wrong"}, "is for fleet issuer: this is press-7"),
    "of another curve": (
        {"key": ec.generate_private_key(ec.SECP384R1()).public_key()},
        "not one of the curve P-256",
    ),
    "too long": ({"extra": 3000}, "chain has .* bytes, not 1 to 3072"),
}


@OURS_ONLY
@pytest.mark.parametrize("name", BAD)
def test_bad_certificate_is_refused_in_one_sentence_and_nothing_changes(world, authority, name):
    import time

    change, words = BAD[name]
    flash = bare(world, 1, world.sntp())
    calls = Calls(flash, world.leg)
    csr = calls.csr()
    before = flash.read_bytes()
    said = calls.install(authority.sign(csr, **change), int(time.time()))
    assert re.search(words, said) and "\n" not in said and len(said) < 200, said
    assert flash.read_bytes() == before
    assert calls.install(authority.sign(csr), int(time.time())) == ""


@OURS_ONLY
def test_chain_cut_off_or_of_strangers_is_refused_and_nothing_changes(world, authority):
    flash = bare(world, 1, world.sntp())
    calls = Calls(flash, world.leg)
    csr = calls.csr()
    good = authority.sign(csr)
    before = flash.read_bytes()
    leaf = good[: 4 + int.from_bytes(good[2:4], "big")]
    for bad, words in [
        (good[:-1], "cut off"),
        (good[:100], "cut off"),
        (good + b"\0", "cut off"),
        (b"", "has 0 bytes"),
        (b"\x30\x82\x00\x05hello", "cannot be read"),
        (leaf + holder("stranger", authority=True).der, "the chain does not hold: "),
        (leaf + leaf, "the chain does not hold: "),
        (authority.sign(csr, ends=-DAY / 2, starts=-DAY), ""),
    ]:
        said = calls.install(bad)
        assert words in said and (said or not words), (words, said)
        if words:
            assert flash.read_bytes() == before
    other = bare(world, 1, name="other.bin")
    assert "made no request" in Calls(other, world.leg).install(good)


@OURS_ONLY
def test_full_nvs_refuses_the_certificate_and_the_device_stays_as_it_was(world, authority):
    hub = world.hub()
    flash = world.image(hub.port)
    calls = Calls(flash, world.leg)
    csr = calls.csr()
    calls.run("""
import esp32
nvs = esp32.NVS("outpost")
n = 0
try:
    while True:
        nvs.set_blob("fill%d" % n, bytes(500))
        n += 1
except OSError:
    tell(filled=n)
""")
    assert calls.install(authority.sign(csr, extra=800)) == "NVS is full: nothing was changed"
    assert entries(flash, "ida", "idtry") == {"ida": None, "idtry": None}
    board = world.board(flash)
    board.wait_for(CONNECTED % "primary", 60)


@OURS_ONLY
def test_board_without_an_id_gets_it_with_the_request_and_keeps_it(world):
    flash = world.image(1, world.sntp(), provisioned=False)
    calls = Calls(flash, world.leg)
    assert x509_point(calls.csr("'press-9'"))
    assert entries(flash, "id")["id"] == b"press-9"
    told = calls.run("""
from outpost import provision
from outpost.errors import IdentityError
said = []
for name in ("press-8", "a b", "p" * 65):
    try:
        provision.csr(name)
    except IdentityError as e:
        said.append(str(e))
tell(said=said)
""")
    assert told["said"][0] == "this board is press-9, not press-8"
    assert len(told["said"]) == 3


# On the wire


@pytest.mark.parametrize(("certificates", "extra"), [(1, 0), (2, 0), (2, 700), (2, 1900)])
def test_record_size_holds_the_devices_own_certificates(world, authority, certificates, extra):
    """With the key in a slot; on a stock build, in the record."""
    hub = world.hub()
    flash = bare(world, hub.port)
    if world.leg.startswith("stock"):
        key = ec.generate_private_key(ec.SECP256R1())
        chain = authority.sign(None, name=DEVICE_ID, key=key.public_key(), extra=extra)
        record = {"private": sec1(key)}
    else:
        chain = authority.sign(Calls(flash, world.leg).csr(), extra=extra)
        record = {"slot": 1}
    leaf = chain[: 4 + int.from_bytes(chain[2:4], "big")]
    if certificates == 1:
        chain = leaf
        of_thumbprint(world, leaf)
    else:
        of_authority(world, authority)
    edit(flash, ida=x509(chain, **record), idcur=0)
    board = world.board(flash)
    board.wait_for(CONNECTED % "certificate", 60)
    board.wait_for(r"acked id=1", 60)
    assert "error" not in board.text
    if not world.leg.startswith("stock"):
        line = board.wait_for(r"tls +connected .*").string
        size = next(n for n in (512, 1024, 2048, 4096) if n >= len(chain) + 16)
        assert f"mfl_asked={size} mfl_granted={size}" in line


@OURS_ONLY
def test_fixed_record_size_that_is_too_small_is_said_with_the_size_to_set(world, authority):
    hub = world.hub()
    of_authority(world, authority)
    flash = bare(world, hub.port, record_size=512)
    calls = Calls(flash, world.leg)
    assert calls.install(authority.sign(calls.csr())) == ""
    board = world.board(flash)
    board.wait_for(
        r"error +tls: this device's certificate does not fit a record of 512 bytes: "
        r'set record_size in config.json to 1024 or "auto"',
        60,
    )


def test_key_from_the_host_proves_the_device_and_a_slot_is_said_to_need_our_firmware(world):
    hub = world.hub()
    flash = bare(world, hub.port)
    made = holder(DEVICE_ID)
    of_thumbprint(world, made.der)
    if not world.leg.startswith("stock"):
        # The key in the record: the weaker way works on our firmware, too.
        edit(flash, ida=x509(made.der, private=sec1(made.key)), idcur=0)
        board = world.board(flash)
        board.wait_for(CONNECTED % "certificate", 60)
        return
    edit(flash, ida=x509(made.der, slot=1), idcur=0)
    board = world.board(flash)
    board.wait_for(
        r"error +identity: the key of this device is in slot 1, which a stock MicroPython has not",
        60,
    )


def test_revoked_certificate_slows_the_device_down_and_it_recovers(world):
    hub = world.hub()
    flash = bare(world, hub.port, config={"backoff_s": [1, 4]})
    made = holder(DEVICE_ID)
    edit(flash, ida=x509(made.der, private=sec1(made.key)), idcur=0)
    of_thumbprint(world, holder(DEVICE_ID).der)
    board = world.board(flash)
    at = line_number(board, r"error +hub: the server does not authorise") + 1
    at = line_number(board, r"error +hub: the server does not authorise", at)
    wait = float(re.search(r"next attempt in ([\d.]+) s", board.lines[at].text)[1])
    assert 2 <= wait <= 4
    of_thumbprint(world, made.der)
    at = line_number(board, CONNECTED % "certificate", at)
    line_number(board, r"acked id=1", at)


# A secure element

STAND_IN = """
import os
from outpost import Device, identity
P = 0xffffffff00000001000000000000000000000000ffffffffffffffffffffffff
N = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551
G = (0x6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296,
     0x4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5)
def add(a, b):
    if a is None: return b
    if b is None: return a
    if a[0] == b[0]:
        if a[1] != b[1]: return None
        m = (3 * a[0] * a[0] - 3) * pow(2 * a[1], P - 2, P) % P
    else:
        m = (b[1] - a[1]) * pow(b[0] - a[0], P - 2, P) % P
    x = (m * m - a[0] - b[0]) % P
    return x, (m * (a[0] - x) - a[1]) % P
def times(k):
    r, q = None, G
    while k:
        if k & 1: r = add(r, q)
        q = add(q, q)
        k >>= 1
    return r
def der(n):
    b = n.to_bytes(32, "big").lstrip(b"\\0")
    if b[0] & 128: b = b"\\0" + b
    return bytes((2, len(b))) + b
def sign(digest):
    assert len(digest) == 32
    print("ELEMENT signs")
    k = int.from_bytes(os.urandom(32), "big") % (N - 1) + 1
    r = times(k)[0] % N
    s = pow(k, N - 2, N) * (int.from_bytes(digest, "big") + r * KEY) % N
    body = der(r) + der(s)
    return bytes((0x30, len(body))) + body
identity.use_signer(SIGNER)
d = Device()
d.send(b"one")
d.run()
"""


def element(world: World, port: int, signer: str):
    made = holder(DEVICE_ID)
    of_thumbprint(world, made.der)
    key = made.key.private_numbers().private_value
    main = STAND_IN.replace("KEY", str(key)).replace("SIGNER", signer).encode()
    flash = bare(world, port, files={"/main.py": main})
    edit(flash, ida=x509(made.der, slot=0, kind=SIGNER), idcur=0)
    return world.board(flash)


def test_external_signer_proves_the_device_or_says_what_it_needs(world):
    hub = world.hub()
    board = element(world, hub.port, "sign")
    if world.leg.startswith("stock"):
        board.wait_for(r"error +identity: an external signer needs our firmware", 60)
        return
    at = line_number(board, r"ELEMENT signs")
    line_number(board, CONNECTED % "signer", at)
    board.wait_for(r"acked id=1", 60)


@OURS_ONLY
@pytest.mark.parametrize(
    ("signer", "words"),
    [
        ("None", "main.py must call outpost.identity.use_signer"),
        ("lambda d: 1 // 0", r"the secure element did not sign \(ZeroDivisionError\)"),
        ("lambda d: b'x'", "tls: "),
        ("lambda d: None", "tls: |identity: |device: "),
        ("lambda d: bytes(70)", "tls: "),
    ],
)
def test_external_signer_that_fails_is_said_and_the_device_goes_on(world, signer, words):
    hub = world.hub()
    board = element(world, hub.port, signer)
    at = line_number(board, r"identity +signer: .*" + words + r"|error .*" + words)
    line_number(board, r"error .*; next attempt in", at)
    assert board.running and "Traceback" not in board.text and not hub.telemetry
