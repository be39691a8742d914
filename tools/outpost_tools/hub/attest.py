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
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto

from outpost_tools.enrolment import Enrolment

CHAIN_MAX = 8
TOO_EARLY = "its certificate, or one above it, is not valid yet"
TOO_LATE = "its certificate, or one above it, has expired"
# OpenSSL's numbers for them.
DATE_ERRORS = {9: TOO_EARLY, 10: TOO_LATE}


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
    name: str  # the leaf's common name


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
    shown = Shown(leaf, others, dt.datetime.fromtimestamp(now_s, dt.UTC), names[0])
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
    _check_use(shown.leaf)
    found: list[tuple[int, Enrolment]] = []
    reason = "no enrolment group's certificate has signed its certificate"
    for group in groups:
        for signer in group.certificates:
            try:
                found.append((_steps(shown, signer), group))
            except crypto.X509StoreContextError as why:
                if why.errors and why.errors[0] in DATE_ERRORS:
                    reason = DATE_ERRORS[why.errors[0]]
            except (ValueError, crypto.Error):
                reason = "its chain cannot be read"
    if not found:
        raise Unproven(reason)
    return min(found, key=lambda pair: pair[0])[1], Proof(certificate=shown.leaf)


def _steps(shown: Shown, signer: x509.Certificate) -> int:
    """How many signatures lead from the leaf to `signer`, by OpenSSL's rules for a chain."""
    store = crypto.X509Store()
    store.add_cert(crypto.X509.from_cryptography(signer))
    # The group's certificate is trusted by itself: its own issuer is not asked for.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    store.set_time(shown.now)
    leaf, *others = map(crypto.X509.from_cryptography, (shown.leaf, *shown.others))
    return len(crypto.X509StoreContext(store, leaf, others).get_verified_chain()) - 1


def _check_use(leaf: x509.Certificate) -> None:
    """A certificate that says what it is for must say that it is for clients."""
    try:
        uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    except (ValueError, x509.DuplicateExtension):
        raise Unproven("its certificate cannot be read") from None
    if not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(
        uses
    ):
        raise Unproven("its certificate is not for clients")


def _check_dates(certificate: x509.Certificate, now: dt.datetime) -> None:
    if now < certificate.not_valid_before_utc:
        raise Unproven(TOO_EARLY)
    if now > certificate.not_valid_after_utc:
        raise Unproven(TOO_LATE)
