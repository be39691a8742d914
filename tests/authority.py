"""A fleet's authority for tests: signs the request that a device made, well or in a wrong way.

It owns nothing on disk. Keys are P-256 unless a test wants another.
"""

from __future__ import annotations

import datetime as dt

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from certs import DAY, holder


class Authority:
    """Root and intermediate; `sign()` gives the chain in DER, leaf first, the root left out."""

    def __init__(self) -> None:
        self.root = holder("fleet root", authority=True)
        self.middle = holder("fleet issuer", self.root, authority=True)

    @property
    def pem(self) -> str:
        return self.root.pem

    def sign(self, csr: bytes | None, **change) -> bytes:
        """change: name, key, starts, ends, extra (bytes of weight), order, authority."""
        request = x509.load_der_x509_csr(csr) if csr else None
        key = change.get("key") or request.public_key()
        name = (
            change.get("name")
            or request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        )
        now = dt.datetime.now(dt.UTC).replace(microsecond=0)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self.middle.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + change.get("starts", -DAY))
            .not_valid_after(now + change.get("ends", 30 * DAY))
            .add_extension(
                x509.BasicConstraints(ca=change.get("authority", False), path_length=None), True
            )
        )
        if change.get("extra"):
            weight = x509.UnrecognizedExtension(
                x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"),
                b"\x04\x82" + change["extra"].to_bytes(2, "big") + bytes(change["extra"]),
            )
            builder = builder.add_extension(weight, False)
        leaf = builder.sign(self.middle.key, hashes.SHA256())
        chain = [leaf.public_bytes(Encoding.DER), self.middle.der]
        return b"".join(reversed(chain) if change.get("order") == "wrong" else chain)


def thumbprint(der: bytes) -> str:
    return x509.load_der_x509_certificate(der).fingerprint(hashes.SHA256()).hex().upper()
