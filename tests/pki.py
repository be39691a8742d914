"""Certificates for tests: any chain a test needs, good or bad, made by `cryptography`.

It owns nothing on disk but the files it is told to write. Keys are made once per run (an RSA
key of 4096 bits takes seconds). It never makes anything for use outside a test.
"""

from __future__ import annotations

import datetime as dt
import functools
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
DAY = dt.timedelta(days=1)


@functools.cache
def key(kind: str, number: int = 0) -> Key:
    """A key of a kind (rsa2048, rsa4096, p256, p384); the same number gives the same key."""
    del number
    if kind.startswith("rsa"):
        return rsa.generate_private_key(public_exponent=65537, key_size=int(kind[3:]))
    return ec.generate_private_key({"p256": ec.SECP256R1, "p384": ec.SECP384R1}[kind]())


@dataclass(frozen=True)
class Signer:
    """A certificate and the key that signs with it."""

    certificate: x509.Certificate
    key: Key

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def make(
    name: str,
    own: Key,
    issuer: Signer | None = None,
    hosts: Sequence[str] = (),
    starts: dt.timedelta = -DAY,
    ends: dt.timedelta = 365 * DAY,
    extra_bytes: int = 0,
) -> Signer:
    """One certificate: with `hosts` a server's, without an authority's."""
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
        .add_extension(x509.BasicConstraints(ca=not hosts, path_length=None), critical=True)
    )
    if hosts:
        names = [_alternative(host) for host in hosts]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if extra_bytes:
        padding = x509.UnrecognizedExtension(
            x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x04" * extra_bytes
        )
        builder = builder.add_extension(padding, critical=False)
    signed = builder.sign(issuer.key if issuer else own, hashes.SHA256())
    return Signer(signed, own)


@dataclass(frozen=True)
class Chain:
    """Root, intermediate and server certificate, as a public host has them."""

    root: Signer
    intermediate: Signer
    leaf: Signer

    def write(self, directory: Path) -> tuple[Path, Path]:
        """The chain as it is sent (leaf, intermediate) and the server's key, as PEM files."""
        directory.mkdir(parents=True, exist_ok=True)
        chain, private = directory / "chain.pem", directory / "key.pem"
        chain.write_bytes(self.leaf.pem + self.intermediate.pem)
        private.write_bytes(
            self.leaf.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        private.chmod(0o644)  # servers that drop their rights read it too
        return chain, private


KINDS = {"rsa": ("rsa4096", "rsa2048", "rsa2048"), "ecdsa": ("p256", "p256", "p256")}


def chain(
    kind: str = "rsa",
    hosts: Sequence[str] = ("localhost",),
    starts: dt.timedelta = -DAY,
    ends: dt.timedelta = 365 * DAY,
    extra_bytes: int = 0,
    root_number: int = 0,
) -> Chain:
    """A chain of RSA (root 4096, the others 2048) or ECDSA (P-256) certificates."""
    kinds = KINDS[kind]
    root = _root(kind, root_number)
    intermediate = make(
        f"Test {kind} intermediate", key(kinds[1], 100 + root_number), root, ends=3650 * DAY
    )
    leaf = make(
        hosts[0],
        key(kinds[2], 200),
        intermediate,
        hosts=hosts,
        starts=starts,
        ends=ends,
        extra_bytes=extra_bytes,
    )
    return Chain(root, intermediate, leaf)


@functools.cache
def _root(kind: str, number: int) -> Signer:
    return make(f"Test {kind} root {number}", key(KINDS[kind][0], number), ends=3650 * DAY)
