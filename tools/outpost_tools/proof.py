"""What a board or another CA hands us, judged before anything is signed, written or registered.

It owns the rules for a device's certificate request and for a certificate chain that a device is to
carry. Each refusal is one sentence, and nothing has been changed by then. It keeps nothing.
"""

import datetime as dt

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from outpost_tools import agreed
from outpost_tools.errors import OutpostError
from outpost_tools.fleet import first_der
from outpost_tools.registry import check_device_id

COMMON_NAME_MAX = 64  # X.520's bound
REQUEST_MAX_BYTES = 4096
CHAIN_CERTIFICATES_MAX = 4
GOOD_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_UNREADABLE = (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm)


def check_common_name(device_id: str) -> str:
    """A device id that a certificate can carry as its common name."""
    check_device_id(device_id)
    if len(device_id) > COMMON_NAME_MAX:
        raise OutpostError(
            f"The device id {device_id} has {len(device_id)} characters: a certificate takes "
            f"{COMMON_NAME_MAX} at most, so choose a shorter one."
        )
    return device_id


def point(key: object, whose: str) -> bytes:
    """The public point of a key, which must be of P-256."""
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise OutpostError(f"{whose} key is not of the curve P-256: nothing was signed.")
    return key.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


def common_name(name: x509.Name) -> str | None:
    """The one common name, or None where there are none or several."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else None


def read_request(data: bytes, device_id: str) -> x509.CertificateSigningRequest:
    """A request in PEM or DER: whole, signed with its own P-256 key, for `device_id` and no other.

    Whatever else it asks for is passed over: a certificate gets our own profile.
    """
    check_common_name(device_id)
    if len(data) > REQUEST_MAX_BYTES:
        raise OutpostError("The request is too long to be one: nothing was signed.")
    try:
        armoured = data.lstrip().startswith(b"-----BEGIN")
        request = (x509.load_pem_x509_csr if armoured else x509.load_der_x509_csr)(data)
        key = request.public_key()
        name = common_name(request.subject)
        kind = request.signature_hash_algorithm
        signed = request.is_signature_valid
    except _UNREADABLE:
        raise OutpostError(
            "The request cannot be read: it is cut off, or no PKCS #10. Nothing was signed."
        ) from None
    if name != device_id:
        raise OutpostError(
            f"The request is for {name!r}, not for {device_id!r}: nothing was signed."
        )
    point(key, "The request's")
    if not isinstance(kind, GOOD_HASHES):
        raise OutpostError("The request is not signed with SHA-2: nothing was signed.")
    if not signed:
        raise OutpostError("The request is not signed with its own key: nothing was signed.")
    return request


def read_chain(data: bytes) -> list[x509.Certificate]:
    """Certificates in PEM, or in DER one after another, as they stand there."""
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificates(data)
        found = []
        while data:
            der = first_der(data)
            found.append(x509.load_der_x509_certificate(der))
            data = data[len(der) :]
            if len(found) > CHAIN_CERTIFICATES_MAX:
                raise OutpostError(
                    f"The chain has more than {CHAIN_CERTIFICATES_MAX} certificates: leave out "
                    "what is not between the device and its root."
                )
    except _UNREADABLE:
        found = []
    if not found:
        raise OutpostError("The certificate cannot be read: it is cut off, or none at all.")
    return found


def pack_chain(chain: list[x509.Certificate]) -> bytes:
    """DER of each, leaf first, as the key store holds it; a root at its end is left out."""
    if len(chain) > 1 and chain[-1].issuer == chain[-1].subject:
        chain = chain[:-1]
    packed = b"".join(c.public_bytes(serialization.Encoding.DER) for c in chain)
    if len(packed) > agreed.CHAIN_MAX_BYTES:
        raise OutpostError(
            f"The chain has {len(packed)} bytes; a device takes {agreed.CHAIN_MAX_BYTES}: use a "
            "shorter chain, or keys of P-256 in it."
        )
    return packed


def check_chain(
    chain: list[x509.Certificate],
    device_id: str,
    public_point: bytes | None,
    now: dt.datetime | None = None,
) -> None:
    """Whether the device can prove itself with this chain; else the sentence that says why not.

    `public_point` is of the device's own key, None where only the device can tell.
    """
    now = now or dt.datetime.now(dt.UTC)
    leaf = chain[0]
    name = common_name(leaf.subject)
    if name != device_id:
        if any(common_name(c.subject) == device_id for c in chain[1:]):
            raise OutpostError(
                "The chain is in the wrong order: the device's certificate is first."
            )
        raise OutpostError(f"The certificate is for {name!r}, not for {device_id!r}.")
    held = point(leaf.public_key(), "The certificate's")
    if public_point is not None and held != public_point:
        raise OutpostError(
            f"The certificate is for another key than the one that {device_id} holds: sign the "
            "request that the board gave."
        )
    if _is_ca(leaf):
        raise OutpostError("The certificate is a CA's: a device needs one of its own.")
    for below, above in zip(chain, chain[1:], strict=False):
        try:
            below.verify_directly_issued_by(above)
            holds = _is_ca(above)
        except _UNREADABLE:
            holds = False
        if not holds:
            raise OutpostError(
                "The chain is in the wrong order, or a certificate is missing from it: each must "
                "be signed by the next."
            )
    for certificate in chain:
        whose = "The certificate" if certificate is leaf else "A certificate above the device's"
        if now < certificate.not_valid_before_utc:
            raise OutpostError(
                f"{whose} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} "
                "UTC: wait, or set this machine's clock."
            )
        if now > certificate.not_valid_after_utc:
            raise OutpostError(
                f"{whose} ended on {certificate.not_valid_after_utc:%Y-%m-%d}: get a new one."
            )


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False
