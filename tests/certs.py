"""Device certificates for tests: signed by themselves or by an authority, and requests for them.

It owns nothing on disk but the files it is told to write. All keys are P-256: quick to make.
"""

from __future__ import annotations

import base64
import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Holder:
    """A certificate, its key, and the certificates between it and a root."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    above: tuple[x509.Certificate, ...] = ()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def chain(self) -> list[bytes]:
        """As a client shows it in the handshake."""
        others = [c.public_bytes(serialization.Encoding.DER) for c in self.above]
        return [self.der, *others]

    def write(self, folder: Path, name: str) -> tuple[str, str]:
        """Files of the chain and of the key, as TLS clients take them."""
        chain, key = folder / f"{name}.pem", folder / f"{name}.key"
        above = [c.public_bytes(serialization.Encoding.PEM) for c in self.above]
        chain.write_bytes(self.pem.encode() + b"".join(above))
        key.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return str(chain), str(key)


def holder(
    name: str,
    issuer: Holder | None = None,
    authority: bool = False,
    starts: dt.timedelta = -DAY,
    ends: dt.timedelta = 30 * DAY,
) -> Holder:
    """A certificate for `name`: by itself, or by `issuer`; an authority's where that is asked."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(issuer.key if issuer else key, hashes.SHA256())
    )
    above: tuple[x509.Certificate, ...] = ()
    if issuer is not None and issuer.certificate.issuer != issuer.certificate.subject:
        above = (issuer.certificate, *issuer.above)
    return Holder(certificate, key, above)


def request(name: str, key: ec.EllipticCurvePrivateKey | None = None) -> str:
    """The base64 of a certificate request, as a registration carries it."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return base64.b64encode(made.public_bytes(serialization.Encoding.DER)).decode()
