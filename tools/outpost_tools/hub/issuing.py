"""Certificates for devices, from the requests (CSR) that they send when they register.

It owns the folder `device-ca/` in the data folder: a P-256 root and issuer of their own, apart from
the authority that signs for servers. A device's private key never comes here. Only the common name
and the public key of a request are used; whatever else it asks for is not granted.
"""

import base64
import binascii
import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from outpost_tools.pki import BACKDATE, DevCA, der

AUTHORITY_NAME = "outpost-device-ca"
REQUEST_MAX_CHARS = 16384
# What X.509 allows in a common name.
NAME_MAX = 64
RSA_MIN_BITS = 2048
CURVES = (ec.SECP256R1, ec.SECP384R1)
HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


class BadRequest(Exception):
    """The request cannot be signed. The text is a sentence that is safe to send."""


def read_request(text: object, common_name: str) -> x509.CertificateSigningRequest:
    """The base64 of a PKCS #10 request in DER, for `common_name` and no other."""
    if not isinstance(text, str) or len(text) > REQUEST_MAX_CHARS:
        raise BadRequest("The csr is not the base64 of a request.")
    if len(common_name) > NAME_MAX:
        raise BadRequest(f"A certificate's name has at most {NAME_MAX} characters: no csr fits.")
    try:
        request = x509.load_der_x509_csr(base64.b64decode(text, validate=True))
        signed = request.is_signature_valid
        names = [
            str(name.value) for name in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        ]
        key = request.public_key()
        hash_used = request.signature_hash_algorithm
    except (
        ValueError,
        binascii.Error,
        InvalidSignature,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
    ):
        raise BadRequest("The csr is not the base64 of a request in DER.") from None
    if not signed:
        raise BadRequest("The csr is not signed with its own key.")
    if names != [common_name]:
        raise BadRequest("The csr's common name is not the registration id.")
    good_ec = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, CURVES)
    good_rsa = isinstance(key, rsa.RSAPublicKey) and RSA_MIN_BITS <= key.key_size <= 4096
    if not (good_ec or good_rsa):
        raise BadRequest("The csr's key is none of P-256, P-384 and RSA of 2048 to 4096 bits.")
    if not isinstance(hash_used, HASHES):
        raise BadRequest("The csr is signed with a hash that is not SHA-2.")
    return request


class DeviceCA(DevCA):
    """The authority in `data`/device-ca that signs for devices."""

    FOLDER = "device-ca"
    TITLE = "Outpost device"

    def __init__(self, data: Path) -> None:
        super().__init__(data, ("ecdsa",))

    @property
    def root_pem(self) -> str:
        """What a hub must trust for the certificates issued here."""
        return self.root_file("ecdsa").read_text()

    def issue(self, request: x509.CertificateSigningRequest, days: int) -> list[x509.Certificate]:
        """A certificate for the request's name and key, and the issuer's after it."""
        now = dt.datetime.now(dt.UTC).replace(microsecond=0)
        issuer, issuer_key = self._load("intermediate", "ecdsa")
        public = request.public_key()
        common_name = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        usage = {
            "digital_signature": True,
            "content_commitment": False,
            "key_encipherment": False,
            "data_encipherment": False,
            "key_agreement": False,
            "key_cert_sign": False,
            "crl_sign": False,
            "encipher_only": False,
            "decipher_only": False,
        }
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(issuer.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(min(now + dt.timedelta(days=days), issuer.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
                critical=False,
            )
            .sign(issuer_key, hashes.SHA256())
        )
        return [certificate, issuer]


def chain_text(chain: list[x509.Certificate]) -> list[str]:
    """The base64 of each certificate's DER, as a registration's answer carries it."""
    return [base64.b64encode(der(certificate)).decode() for certificate in chain]


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
