"""Whether a certificate shows that a device is who it says: DPS's X.509 attestation.

It owns the rules: the leaf's common name is the registration id, every certificate is valid now,
and the leaf is the one enrolled or was signed, through the intermediates that the device sent, by
one that a group names. It reads certificates and nothing else.
"""

import datetime as dt
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from outpost_tools.enrolments import Enrolment

CHAIN_MAX = 8


class Unproven(Exception):
    """The certificate does not open the door. The text is safe to log."""


@dataclass(frozen=True)
class Proof:
    """What a device has shown, and will show to its hub: its keys, or its certificate."""

    keys: tuple[str, str] | None = field(default=None, repr=False)
    certificate: x509.Certificate | None = None


@dataclass(frozen=True)
class Shown:
    """The client's certificates of one handshake."""

    leaf: x509.Certificate
    others: list[x509.Certificate]
    now: dt.datetime


def read(certificates: Sequence[bytes], registration_id: str, now_s: float) -> Shown:
    """The certificates of a handshake, leaf first, in DER."""
    if len(certificates) > CHAIN_MAX:
        raise Unproven(f"its chain has more than {CHAIN_MAX} certificates")
    try:
        leaf, *others = [x509.load_der_x509_certificate(der) for der in certificates]
        names = [str(n.value) for n in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except ValueError:
        raise Unproven("its certificate cannot be read") from None
    if len(names) != 1 or names[0].lower() != registration_id.lower():
        raise Unproven("its certificate's common name is not the registration id")
    shown = Shown(leaf, others, dt.datetime.fromtimestamp(now_s, dt.UTC))
    _check_dates(leaf, shown.now)
    return shown


def as_individual(shown: Shown, enrolment: Enrolment) -> Proof:
    """The leaf is one of the two that the enrolment names."""
    if enrolment.attestation != "x509":
        raise Unproven("its enrolment is for a symmetric key")
    der = shown.leaf.public_bytes(serialization.Encoding.DER)
    for enrolled in enrolment.certificates:
        if hmac.compare_digest(der, enrolled.public_bytes(serialization.Encoding.DER)):
            return Proof(certificate=shown.leaf)
    raise Unproven("its certificate is not the one enrolled")


def in_group(shown: Shown, groups: Sequence[Enrolment]) -> tuple[Enrolment, Proof]:
    """The group whose certificate is the nearest above the leaf."""
    found: list[tuple[int, Enrolment]] = []
    for group in groups:
        steps = [_steps(shown, signer) for signer in group.certificates]
        nearest = min((n for n in steps if n), default=0)
        if nearest:
            found.append((nearest, group))
    if not found:
        raise Unproven("no enrolment group's certificate has signed its certificate")
    return min(found, key=lambda pair: pair[0])[1], Proof(certificate=shown.leaf)


def _steps(shown: Shown, signer: x509.Certificate) -> int:
    """How many signatures lead from the leaf to `signer`; 0 where none do."""
    at, left = shown.leaf, list(shown.others)
    for steps in range(1, CHAIN_MAX + 1):
        if _signed(at, signer):
            _check_dates(signer, shown.now)
            return steps
        above = next((one for one in left if _signed(at, one)), None)
        if above is None:
            return 0
        _check_dates(above, shown.now)
        left.remove(above)
        at = above
    return 0


def _signed(certificate: x509.Certificate, signer: x509.Certificate) -> bool:
    try:
        basic = signer.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(signer)
    except (
        ValueError,
        TypeError,
        InvalidSignature,
        UnsupportedAlgorithm,
        x509.ExtensionNotFound,
    ):
        return False
    return basic.ca


def _check_dates(certificate: x509.Certificate, now: dt.datetime) -> None:
    if now < certificate.not_valid_before_utc:
        raise Unproven("its certificate, or one above it, is not valid yet")
    if now > certificate.not_valid_after_utc:
        raise Unproven("its certificate, or one above it, has expired")
