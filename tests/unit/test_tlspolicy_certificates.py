"""Certificates as tlspolicy reads them, held against `cryptography`; chains, good and bad."""

from __future__ import annotations

import datetime as dt
import subprocess
from pathlib import Path
from typing import Any

import devicekeys
import pki
import pytest
import tlsdevice
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

READ = """
def read(text):
    try:
        facts = tlspolicy.certificate(bytes.fromhex(text))
    except Exception as e:
        return "%s: %s" % (type(e).__name__, e)
    for name in ("point", "serial"):
        facts[name] = facts[name] and facts[name].hex()
    return facts

before = tlspolicy.heap()[0]
report(read=[read(text) for text in certificates], left=tlspolicy.heap()[0] - before)
"""
UNREADABLE = "ValueError: a certificate cannot be read"


def read(leg: str, folder: Path, *certificates: bytes) -> list[Any]:
    given = [der.hex() for der in certificates]
    done = tlsdevice.one(leg, folder, READ, certificates=given, heap="2M")
    assert done["left"] == 0
    return done["read"]


def name_of(name: x509.Name) -> str | None:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else None


def expected(der: bytes) -> dict[str, Any]:
    certificate = x509.load_der_x509_certificate(der)
    key = certificate.public_key()
    p256 = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1"
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        authority = constraints.value.ca
    except x509.ExtensionNotFound:
        authority = False
    try:
        certificate.verify_directly_issued_by(certificate)
        self_signed = True
    except Exception:  # of several kinds: a bad signature, another name
        self_signed = False
    serial = certificate.serial_number
    return {
        "cn": name_of(certificate.subject),
        "issuer_cn": name_of(certificate.issuer),
        "not_before": certificate.not_valid_before_utc.strftime("%Y%m%d%H%M%S"),
        "not_after": certificate.not_valid_after_utc.strftime("%Y%m%d%H%M%S"),
        "point": devicekeys.point(key).hex() if p256 else None,  # type: ignore[arg-type]
        "ca": authority,
        "serial": serial.to_bytes(serial.bit_length() // 8 + 1, "big").hex(),
        "self_signed": self_signed,
    }


def built(
    subject: list[x509.NameAttribute[str]],
    issuer: pki.Signer | None = None,
    key: Any = None,
    serial: int = 77,
    digest: Any = None,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    last: str = "20301231235959",
) -> pki.Signer:
    key = key or pki.key("p256", 400)
    name = x509.Name(subject)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.certificate.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(dt.datetime(2020, 1, 2, 3, 4, 5))
        .not_valid_after(dt.datetime.strptime(last, "%Y%m%d%H%M%S"))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    signer = issuer.key if issuer else key
    return pki.Signer(builder.sign(signer, digest or hashes.SHA256()), key)


def cn(text: str) -> x509.NameAttribute[str]:
    return x509.NameAttribute(NameOID.COMMON_NAME, text)


def every_kind() -> list[bytes]:
    root = pki.make("Root", pki.key("p256", 401))
    rsa = pki.make("RSA root", pki.key("rsa2048", 402))
    unit = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Org")
    kinds = [
        root,
        rsa,
        pki.make("leaf of RSA", pki.key("p256", 403), rsa, hosts=["leaf"]),
        pki.make("p384", pki.key("p384", 404), root, hosts=["p384"]),
        built([], root),
        built([unit]),
        built([unit, cn("two"), cn("names")]),
        built([cn("größe ✓")], serial=2**158 - 1),
        built([cn("x" * 64)], root, serial=1),
        built([cn("Root")], root),  # named like its issuer, but by another key
        built([cn("late")], last="20500101000000"),
        built([cn("latest")], last="99991231235959"),
        built([cn("sha384")], digest=hashes.SHA384()),
        built([cn("sha512")], key=pki.key("p384", 404), digest=hashes.SHA512()),
        built([cn("ca no")], extensions=((x509.BasicConstraints(False, None), True),)),
    ]
    return [signer.der for signer in kinds]


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_every_kind_of_certificate_reads_as_cryptography_reads_it(leg: str, tmp_path: Path) -> None:
    certificates = every_kind()
    found = read(leg, tmp_path, *certificates)
    for der, facts in zip(certificates, found, strict=True):
        assert facts == expected(der)
    assert sum(facts["self_signed"] for facts in found) > 8
    assert read(leg, tmp_path, built([]).der) == [UNREADABLE]  # an issuer must have a name


def test_a_certificate_that_ends_early_or_goes_on_is_refused_at_every_length(
    tmp_path: Path,
) -> None:
    der = pki.make("Root", pki.key("p256", 401)).der
    broken = [der[:n] for n in range(len(der))] + [der + b"\0", der + der, b"\0" + der]
    assert set(read("outpost64", tmp_path, *broken)) == {UNREADABLE}


def test_a_certificate_with_any_byte_changed_is_refused_or_read_and_no_longer_self_signed(
    tmp_path: Path,
) -> None:
    der = pki.make("Root", pki.key("p256", 401)).der
    changed = [der[:at] + bytes([der[at] ^ 1 << at % 8]) + der[at + 1 :] for at in range(len(der))]
    found = read("outpost64", tmp_path, *changed)
    refused = [answer for answer in found if answer == UNREADABLE]
    assert len(refused) > 40
    assert not any(answer["self_signed"] for answer in found if answer != UNREADABLE)


# ---------------------------------------------------------------- chains

CHAINS = """
before = tlspolicy.heap()[0]
report(errors=[attempt(lambda: tlspolicy.chain_ok(bytes.fromhex(text))) for text in chains],
       left=tlspolicy.heap()[0] - before)
"""
NOT_ISSUED = (
    "ValueError: a certificate of the chain was not issued by the next one: put the device's "
    "first, then the one that signed it"
)
NO_AUTHORITY = (
    "ValueError: a certificate of the chain signed another but is no certificate authority"
)
BAD_SIGNATURE = "ValueError: a signature in the chain is not by the key of the next certificate"
TOO_LONG = "ValueError: the chain has more than 6 certificates"


def judged(leg: str, folder: Path, *chains: bytes) -> list[str]:
    given = [chain.hex() for chain in chains]
    done = tlsdevice.one(leg, folder, CHAINS, chains=given, heap="1M")
    assert done["left"] == 0
    return done["errors"]


@pytest.mark.parametrize("kind", ["p256", "p384", "rsa2048"])
@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_a_chain_is_judged_link_by_link(leg: str, kind: str, tmp_path: Path) -> None:
    root = pki.make("Root", pki.key(kind, 410))
    middle = pki.make("Middle", pki.key(kind, 411), root)
    leaf = pki.make("leaf", pki.key("p256", 412), middle, hosts=["leaf"])
    a, b, c = leaf.der, middle.der, root.der
    impostor = pki.make("Middle", pki.key(kind, 413), root)
    under_leaf = pki.make("under", pki.key("p256", 414), leaf, hosts=["under"])
    off = bytearray(a)
    off[-1] ^= 1
    cases = {
        a: "",
        a + b: "",
        a + b + c: "",
        c: "",
        b + a: NOT_ISSUED,
        a + c: NOT_ISSUED,
        a + b + b: NOT_ISSUED,
        c + b + a: NOT_ISSUED,
        a + impostor.der: BAD_SIGNATURE,
        bytes(off) + b: BAD_SIGNATURE,
        under_leaf.der + a: NO_AUTHORITY,
        c * 6: "",
        c * 7: TOO_LONG,
        b"": UNREADABLE,
        a[:-1]: UNREADABLE,
        a + b[:-1]: UNREADABLE,
        a + b + b"\0": UNREADABLE,
        a + b"\x30\x80": UNREADABLE,
        b"\x30\x84\xff\xff\xff\xff" + a: UNREADABLE,
    }
    errors = judged(leg, tmp_path, *cases)
    for expected_error, error in zip(cases.values(), errors, strict=True):
        assert error == expected_error


def test_an_authority_that_may_not_sign_certificates_is_none(tmp_path: Path) -> None:
    usage = dict.fromkeys(
        (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
            "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    usage["digital_signature"] = True
    authority = (x509.BasicConstraints(True, None), True)
    issuer = built([cn("CA")], extensions=(authority, (x509.KeyUsage(**usage), True)))
    child = built([cn("child")], issuer, key=pki.key("p256", 420))
    usage["key_cert_sign"] = True
    allowed = built([cn("CA")], extensions=(authority, (x509.KeyUsage(**usage), True)))
    fine = built([cn("child")], allowed, key=pki.key("p256", 420))
    chains = child.der + issuer.der, fine.der + allowed.der
    assert judged("outpost64", tmp_path, *chains) == [NO_AUTHORITY, ""]


def test_weak_hashes_are_not_taken_in_a_chain(tmp_path: Path) -> None:
    """SHA-1 signatures are made by OpenSSL here: `cryptography` makes none."""
    root = pki.make("Root", pki.key("p256", 410))
    (tmp_path / "ca.pem").write_bytes(root.pem)
    (tmp_path / "ca.key").write_bytes(
        root.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    for digest, expected_error in (
        ("sha1", BAD_SIGNATURE),
        ("sha224", BAD_SIGNATURE),
        ("sha256", ""),
    ):
        request = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        request += ["-nodes", "-keyout", str(tmp_path / "k"), "-subj", "/CN=a"]
        request += ["-out", str(tmp_path / "r")]
        sign = ["x509", "-req", "-in", str(tmp_path / "r"), "-CA", str(tmp_path / "ca.pem")]
        sign += ["-CAkey", str(tmp_path / "ca.key"), "-CAcreateserial", f"-{digest}"]
        sign += ["-outform", "DER", "-out", str(tmp_path / "c.der")]
        for words in (request, sign):
            subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=30)
        chain = (tmp_path / "c.der").read_bytes() + root.der
        assert judged("outpost64", tmp_path, chain) == [expected_error], digest


def test_an_authority_with_a_weak_key_is_not_taken_in_a_chain(tmp_path: Path) -> None:
    """What the handshake refuses of a server: RSA below 2048 bits, curves below 256."""
    weak = [rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP224R1())]
    good = [pki.key("rsa2048"), pki.key("p256", 413), pki.key("p384", 414)]
    chains = []
    for key in weak + good:
        root = pki.make("Root", key)
        chains.append(pki.make("leaf", pki.key("p256", 415), root, hosts=["leaf"]).der + root.der)
    said = "ValueError: a key in the chain is too weak: RSA needs 2048 bits, a curve 256"
    assert judged("outpost64", tmp_path, *chains) == [said] * 2 + [""] * 3


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_reading_needs_little_memory_and_gives_it_back(leg: str, tmp_path: Path) -> None:
    root = pki.make("Root", pki.key("rsa4096", 430))
    leaf = pki.make("leaf", pki.key("p256", 412), root, hosts=["leaf"])
    script = """
one, both = bytes.fromhex(leaf), bytes.fromhex(leaf + root)
peaks = []
for call in (lambda: tlspolicy.certificate(one), lambda: tlspolicy.chain_ok(both)):
    tlspolicy.heap_reset()
    call()
    peaks.append(tlspolicy.heap()[1])
report(peaks=peaks, left=tlspolicy.heap()[0])
"""
    done = tlsdevice.one(leg, tmp_path, script, leaf=leaf.der.hex(), root=root.der.hex())
    assert done["left"] == 0
    # Of an RSA authority of 4096 bits the arithmetic takes most.
    assert leg != "outpost32" or (done["peaks"][0] < 4096 and done["peaks"][1] < 12288), done
