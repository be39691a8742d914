"""What the audit says of a chain is what a device makes of it: both are given the same servers.

The servers are OpenSSL's, the device is our firmware in 32 bits with the audit's roots.
"""

from __future__ import annotations

import datetime as dt
import subprocess
from collections.abc import Callable
from pathlib import Path

import pki
import pytest
import servers
import tlsdevice
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from outpost_tools.audit import Target, survey
from outpost_tools.audit.chain import _unreadable, _weak_key, judge, names_host, read

DAY = dt.timedelta(days=1)
Made = tuple[list[bytes], object, list[bytes]]  # sent (PEM), the server's key, roots (DER)


def certificate(
    name,
    own,
    issuer=None,
    *,
    hosts=("localhost",),
    ca=False,
    path=None,
    starts=-DAY,
    ends=90 * DAY,
    usage=None,
    purpose=None,
    pss=False,
):
    """A certificate with whatever is asked for; issuer is a pki.Signer."""
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path), critical=True)
    )
    if hosts and not ca:
        names = [pki._alternative(host) for host in hosts]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usage:
        wanted = dict.fromkeys(
            "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
            "key_cert_sign crl_sign encipher_only decipher_only".split(),
            False,
        )
        builder = builder.add_extension(x509.KeyUsage(**wanted | {usage: True}), critical=True)
    if purpose:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    more = {"rsa_padding": padding.PSS(padding.MGF1(hashes.SHA256()), 32)} if pss else {}
    signer = issuer.key if issuer else own
    kind = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return pki.Signer(builder.sign(signer, kind, **more), own)


def three(
    leaf_key="p256", root_key="p256", middle_key="p256", roots=None, root=(), middle=(), **leaf
) -> Made:
    """Root, intermediate, leaf; `root`, `middle` and the rest change what each is made with."""
    top = certificate(
        "A root", pki.key(root_key, 70), ca=True, **dict({"ends": 999 * DAY}, **dict(root))
    )
    mid = certificate(
        "An issuer",
        pki.key(middle_key, 71),
        top,
        ca=True,
        **dict({"ends": 500 * DAY}, **dict(middle)),
    )
    end = certificate("localhost", pki.key(leaf_key, 72), mid, **leaf)
    return [end.pem, mid.pem], end.key, [top.der] if roots is None else roots


def wrong_order(_: Path) -> Made:
    top = certificate("A root", pki.key("p256", 70), ca=True)
    one = certificate("Issuer 1", pki.key("p256", 71), top, ca=True)
    two = certificate("Issuer 2", pki.key("p256", 73), one, ca=True)
    end = certificate("localhost", pki.key("p256", 72), two)
    return [end.pem, one.pem, two.pem], end.key, [top.der]


def gaps_are_skipped(_: Path) -> Made:
    (leaf, middle), key, roots = three()
    stranger = certificate("Nobody's", pki.key("p256", 74), ca=True)
    return [leaf, stranger.pem, middle], key, roots


def with_the_root(_: Path) -> Made:
    sent, key, roots = three()
    return [*sent, x509.load_der_x509_certificate(roots[0]).public_bytes(PEM)], key, roots


def same_name_other_key(_: Path) -> Made:
    sent, key, _roots = three()
    return sent, key, [certificate("A root", pki.key("p256", 75), ca=True).der]


def two_of_one_name(_: Path) -> Made:
    sent, key, roots = three()
    return sent, key, [certificate("A root", pki.key("p256", 75), ca=True).der, *roots]


def self_signed(_: Path) -> Made:
    own = certificate("localhost", pki.key("p256", 72))
    return [own.pem], own.key, [certificate("A root", pki.key("p256", 70), ca=True).der]


def not_an_authority(_: Path) -> Made:
    top = certificate("A root", pki.key("p256", 70), ca=True)
    mid = certificate("An issuer", pki.key("p256", 71), top, ca=False, hosts=("other",))
    end = certificate("localhost", pki.key("p256", 72), mid)
    return [end.pem, mid.pem], end.key, [top.der]


def sha1(folder: Path) -> Made:
    """By OpenSSL: `cryptography` signs nothing with SHA-1."""
    top = certificate("A root", pki.key("p256", 70), ca=True)
    own = pki.key("p256", 72)
    (folder / "ca.pem").write_bytes(top.pem)
    (folder / "ca.key").write_bytes(private(top.key))
    (folder / "own.key").write_bytes(private(own))
    (folder / "san.cnf").write_text("subjectAltName=DNS:localhost\n")
    for command in (
        "openssl req -new -key own.key -subj /CN=localhost -out asked.pem",
        "openssl x509 -req -in asked.pem -CA ca.pem -CAkey ca.key -CAcreateserial -sha1 -days 9 "
        "-extfile san.cnf -out weak.pem",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return [(folder / "weak.pem").read_bytes()], own, [top.der]


PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
GOOD: dict[str, Callable[[Path], Made]] = {
    "ecdsa": lambda folder: three(),
    "rsa": lambda folder: three("rsa2048", "rsa4096", "rsa2048"),
    "p384": lambda folder: three("p384", "p384", "p384"),
    "rsa above ecdsa": lambda folder: three(root_key="rsa2048"),
    "wildcard": lambda folder: three(hosts=("*.localhost", "localhost")),
    "capitals": lambda folder: three(hosts=("LOCALHOST",)),
    "common name alone": lambda folder: three(hosts=()),
    "a stranger between": gaps_are_skipped,
    "the root sent too": with_the_root,
    "two roots of one name": two_of_one_name,
    "path length enough": lambda folder: three(root={"path": 1}, middle={"path": 0}),
    "for servers": lambda folder: three(
        purpose=ExtendedKeyUsageOID.SERVER_AUTH, usage="digital_signature"
    ),
}
BAD: dict[str, tuple[str, Callable[[Path], Made]]] = {
    "another name": ("names elsewhere, not localhost", lambda f: three(hosts=("elsewhere",))),
    "wildcard over nothing": ("not localhost", lambda f: three(hosts=("*.localhost",))),
    "expired": ("renew it", lambda f: three(starts=-9 * DAY, ends=-DAY)),
    "not yet": ("is not valid before", lambda f: three(starts=DAY)),
    "expired issuer": (
        "'An issuer' expired",
        lambda f: three(middle={"starts": -9 * DAY, "ends": -DAY}),
    ),
    "expired root": (
        "bring devices another",
        lambda f: three(root={"starts": -9 * DAY, "ends": -DAY}),
    ),
    "unknown root": (
        "not among the device's roots",
        lambda f: three(roots=[certificate("Another", pki.key("p256", 70), ca=True).der]),
    ),
    "no intermediate": (
        "missing intermediate",
        lambda f: (lambda made: (made[0][:1], *made[1:]))(three()),
    ),
    "order": ("wrong order: 'Issuer 1' issued 'Issuer 2'", wrong_order),
    "another key": ("another key than the root", same_name_other_key),
    "self-signed": ("self-signed", self_signed),
    "no authority": ("may not: it is no authority", not_an_authority),
    "path too long": ("no authority for it", lambda f: three(root={"path": 0})),
    "may not sign": ("no authority", lambda f: three(middle={"usage": "digital_signature"})),
    "sha1": ("SHA-256, SHA-384 and SHA-512 only", sha1),
    "pss": ("RSA-PSS", lambda f: three(middle_key="rsa2048", pss=True)),
    "short key": ("is RSA 1024", lambda f: three("rsa1024")),
    "short key of an issuer": ("is RSA 1024", lambda f: three(middle_key="rsa1024")),
    "not for servers": (
        "extended key usage",
        lambda f: three(purpose=ExtendedKeyUsageOID.CLIENT_AUTH),
    ),
}


def private(key) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(PEM, form, serialization.NoEncryption())


DEVICE = """
tlspolicy.suites("all")
tlspolicy.roots(lambda: [bytes.fromhex(root) for root in roots])
report(error=attempt(lambda: context().wrap_socket(tcp(port), server_hostname="localhost")))
"""


def both(made: Made, folder: Path):
    """(the audit's verdict, what the device raised or nothing)."""
    sent, key, roots = made
    chain, own = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(sent))
    own.write_bytes(private(key))
    weak = ("-cipher", "ALL:@SECLEVEL=0")
    with servers.s_server(folder / "server", chain, own, *weak) as port:
        found = survey(Target("localhost", port, "localhost"), roots)
        given = [der.hex() for der in roots]
        device = tlsdevice.one("outpost32", folder, DEVICE, roots=given, port=port)
    return found.verdicts["all"], device["error"]


@pytest.mark.parametrize("case", GOOD)
def test_a_chain_that_the_audit_lets_pass_connects_a_device(case: str, tmp_path: Path) -> None:
    verdict, error = both(GOOD[case](tmp_path), tmp_path)
    assert (verdict.stops, error) == ([], "")
    assert verdict.judgement.root is not None and verdict.record_size == 512


@pytest.mark.parametrize("case", BAD)
def test_a_chain_that_stops_a_device_is_told_in_a_sentence(case: str, tmp_path: Path) -> None:
    sentence, make = BAD[case]
    verdict, error = both(make(tmp_path), tmp_path)
    assert error, f"a device connects; the audit says {verdict.stops}"
    assert any(sentence in stop for stop in verdict.stops), (verdict.stops, error)
    assert len(verdict.stops) == 1 and verdict.stops[0].endswith(".")


def test_ipv6_and_ipv4_addresses_are_names_too() -> None:
    leaf = read(certificate("x", pki.key("p256"), hosts=("127.0.0.1", "::1", "a.example")).der)
    assert (
        names_host(leaf, "127.0.0.1") and names_host(leaf, "::1") and names_host(leaf, "A.example")
    )
    assert not names_host(leaf, "127.0.0.2") and not names_host(leaf, "x")


def test_a_certificate_that_may_not_sign_is_told() -> None:
    """OpenSSL does not even serve with it."""
    sent, _, roots = three(usage="key_agreement")
    given = [x509.load_pem_x509_certificate(pem).public_bytes(DER) for pem in sent]
    found = judge(given, [read(der) for der in roots], "localhost", dt.datetime.now(dt.UTC))
    assert len(found.stops) == 1 and "(key usage)" in found.stops[0]


def test_kinds_of_keys_are_told_apart() -> None:
    ed = read(certificate("ed", ed25519.Ed25519PrivateKey.generate()).der)
    assert "Ed25519" in (_unreadable(ed) or "")
    brainpool = read(certificate("bp", ec.generate_private_key(ec.BrainpoolP256R1())).der)
    assert "brainpool" in (_unreadable(brainpool) or "")
    short = read(certificate("short", ec.generate_private_key(ec.SECP224R1())).der)
    assert "secp224r1" in (_weak_key(short) or "")
