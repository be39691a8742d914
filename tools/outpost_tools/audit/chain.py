"""What a device would make of a chain: mbedtls's way of looking for issuers, and its profile.

Not any other library's judgement: mbedtls takes an issuer from the roots first, then from the
certificates that were sent after the one in question, wants SHA-256 or better and keys of 2,048
bits or the three NIST curves, and judges the dates of the root too. It owns nothing and asks
nobody; each thing that stops a device is one sentence.
"""

import datetime as dt
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HASHES = ("sha256", "sha384", "sha512")
CURVES = ("secp256r1", "secp384r1", "secp521r1")
RSA_MIN_BITS, RSA_MAX_BITS = 2048, 8192
PSS = "rsassaPss"
MAX_INTERMEDIATES = 8
MAX_MESSAGE_BYTES = 16384


@dataclass(frozen=True)
class Seen:
    """One certificate, in the words that are printed."""

    der: bytes
    x509: x509.Certificate

    @property
    def name(self) -> str:
        return name_of(self.x509.subject)

    @property
    def issuer(self) -> str:
        return name_of(self.x509.issuer)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.der).hexdigest()

    @property
    def key(self) -> str:
        try:
            key = self.x509.public_key()
        except (ValueError, UnsupportedAlgorithm):
            return "unknown key"
        if isinstance(key, rsa.RSAPublicKey):
            return f"RSA {key.key_size}"
        if isinstance(key, ec.EllipticCurvePublicKey):
            return f"EC {key.curve.name}"
        return type(key).__name__.removeprefix("_").removesuffix("PublicKey")

    @property
    def signature(self) -> str:
        return self.x509.signature_algorithm_oid._name

    def about(self) -> dict[str, object]:
        return {
            "subject": self.name,
            "issuer": self.issuer,
            "sha256": self.sha256,
            "key": self.key,
            "signature": self.signature,
            "not_before": self.x509.not_valid_before_utc.isoformat(),
            "not_after": self.x509.not_valid_after_utc.isoformat(),
        }


@dataclass
class Judgement:
    """The path that a device finds, its root (None: it finds none), and what stops it."""

    path: list[Seen] = field(default_factory=list)
    root: Seen | None = None
    stops: list[str] = field(default_factory=list)


def name_of(name: x509.Name) -> str:
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(common[0].value) if common else name.rfc4514_string()


def read(der: bytes) -> Seen:
    return Seen(der, x509.load_der_x509_certificate(der))


def judge(
    sent: Sequence[bytes], roots: Sequence[Seen], host: str, now: dt.datetime, dated: bool = True
) -> Judgement:
    """Walks from the server's certificate to a root, as mbedtls does.

    dated  whether dates count: at a recovery endpoint they do not
    """
    found = Judgement()
    chain: list[Seen] = []
    for number, der in enumerate(sent, 1):
        try:
            chain.append(read(der))
            chain[-1].x509.extensions  # noqa: B018  (read late by the library)
        except (ValueError, UnsupportedAlgorithm):
            found.stops.append(
                f"Certificate {number} of the chain cannot be read: the server must send "
                "another one."
            )
            return found
    if not chain:
        found.stops.append("The server sends no certificate.")
        return found
    found.stops += [stop for one in chain if (stop := _unreadable(one))]
    found.stops += _server_certificate(chain, host)
    child, index, trusted = chain[0], 0, False
    while True:
        found.path.append(child)
        found.stops += _dates(child, now, trusted) if dated else []
        if trusted:
            found.root = child
            return found
        found.stops += _strength(child)
        if child is chain[0] and _is_one_of(child, roots):
            found.root = child
            return found
        parent, index, trusted = _parent(child, index, chain, roots, len(found.path) - 1, now)
        if parent is None:
            found.stops.append(_why_no_parent(child, chain, roots))
            return found
        if parent in found.path or len(found.path) > MAX_INTERMEDIATES:
            found.stops.append(
                "The chain does not end: shorten what the server sends to its own certificate and "
                "the intermediates up to the root."
            )
            return found
        child = parent


def _is_one_of(leaf: Seen, roots: Sequence[Seen]) -> bool:
    """A server's own certificate, signed by itself, that devices were given: a recovery's pin."""
    return leaf.x509.issuer == leaf.x509.subject and any(one.der == leaf.der for one in roots)


def _dates(one: Seen, now: dt.datetime, trusted: bool) -> list[str]:
    what = f"The root {one.name!r} of the bundle" if trusted else f"The certificate {one.name!r}"
    cure = "bring devices another root" if trusted else "renew it on the server"
    if one.x509.not_valid_after_utc < now:
        return [f"{what} expired on {one.x509.not_valid_after_utc:%Y-%m-%d}: {cure}."]
    if one.x509.not_valid_before_utc > now:
        return [f"{what} is not valid before {one.x509.not_valid_before_utc:%Y-%m-%d %H:%M} UTC."]
    return []


def _unreadable(one: Seen) -> str | None:
    """mbedtls in the firmware cannot even parse these, and gives the whole chain up."""
    if one.signature == PSS:
        return (
            f"The certificate {one.name!r} is signed with RSA-PSS, which the device's TLS does not "
            "read: have it issued with PKCS#1 v1.5 or ECDSA."
        )
    kind = one.key.split()[0]
    curve_unknown = kind == "EC" and not one.key.startswith("EC secp")
    if kind not in ("RSA", "EC") or curve_unknown:
        return (
            f"The certificate {one.name!r} has a key of a kind that devices do not know "
            f"({one.key}): use RSA from {RSA_MIN_BITS} bits or P-256, P-384, P-521."
        )
    return None


def _strength(child: Seen) -> list[str]:
    hash_ = child.x509.signature_hash_algorithm
    if child.signature != PSS and (hash_ is None or hash_.name not in HASHES):
        return [
            f"The certificate {child.name!r} is signed with {child.signature}: devices take "
            "SHA-256, SHA-384 and SHA-512 only."
        ]
    return []


def _weak_key(one: Seen) -> str | None:
    kind, _, size = one.key.partition(" ")
    if kind == "RSA" and not RSA_MIN_BITS <= int(size) <= RSA_MAX_BITS:
        return (
            f"The key of {one.name!r} is {one.key}: devices take RSA keys from {RSA_MIN_BITS} to "
            f"{RSA_MAX_BITS} bits."
        )
    if kind == "EC" and size.startswith("secp") and size not in CURVES:
        return f"The key of {one.name!r} is on {size}: devices take P-256, P-384 and P-521."
    return None


def _server_certificate(chain: Sequence[Seen], host: str) -> list[str]:
    """Name, key and permitted use of the first certificate."""
    leaf, stops = chain[0], []
    if not names_host(leaf, host):
        if any(names_host(other, host) for other in chain[1:]):
            stops.append(
                "The chain is in the wrong order: the server's own certificate must come first."
            )
        else:
            said = ", ".join(_names(leaf)[:6]) or "nothing"
            stops.append(
                f"The certificate names {said}, not {host}: give devices a name that it has, or "
                "the server a certificate with this one."
            )
    usage = _extension(leaf, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        stops.append(f"The certificate {leaf.name!r} may not be used for signatures (key usage).")
    purposes = _extension(leaf, x509.ExtendedKeyUsage)
    wanted = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    if purposes is not None and not any(oid in purposes for oid in wanted):
        stops.append(f"The certificate {leaf.name!r} is not for servers (extended key usage).")
    weak = _weak_key(leaf)
    return stops + ([weak] if weak else [])


def _names(leaf: Seen) -> list[str]:
    alternative = _extension(leaf, x509.SubjectAlternativeName)
    if alternative is None:
        found = leaf.x509.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return [str(one.value) for one in found]
    names = alternative.get_values_for_type(x509.DNSName)
    return names + [str(one) for one in alternative.get_values_for_type(x509.IPAddress)]


def names_host(leaf: Seen, host: str) -> bool:
    """By the alternative names, by the common name only where there are none; one `*.` label."""
    try:
        address = str(ipaddress.ip_address(host))
    except ValueError:
        address = None
    if address is not None and _extension(leaf, x509.SubjectAlternativeName) is not None:
        return address in _names(leaf)
    lower = host.lower()
    rest = lower.partition(".")[2]
    return any(n.lower() == lower or (rest and n.lower() == f"*.{rest}") for n in _names(leaf))


def _extension(one: Seen, kind: type[x509.ExtensionType]):  # type: ignore[no-untyped-def]
    try:
        return one.x509.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _parent(
    child: Seen,
    index: int,
    chain: Sequence[Seen],
    roots: Sequence[Seen],
    below: int,
    now: dt.datetime,
) -> tuple[Seen | None, int, bool]:
    """(issuer, its place in the chain, whether it is a root): roots first, then what follows."""
    late: tuple[Seen, int, bool] | None = None
    places = [(root, index, True) for root in roots]
    places += [(chain[at], at, False) for at in range(index + 1, len(chain))]
    for place in places:
        one, _, trusted = place
        # An expired issuer is taken only where its side has no other.
        if late is not None and late[2] != trusted:
            break
        if not _may_issue(one, child, below) or not signed_by(child, one):
            continue
        if one.x509.not_valid_before_utc <= now <= one.x509.not_valid_after_utc:
            return place if _weak_key(one) is None else (None, index, False)
        late = late or place
    return late or (None, index, False)


def _may_issue(one: Seen, child: Seen, below: int) -> bool:
    constraints = _extension(one, x509.BasicConstraints)
    if one.x509.subject != child.x509.issuer or constraints is None or not constraints.ca:
        return False
    usage = _extension(one, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        return False
    return constraints.path_length is None or constraints.path_length >= below


def signed_by(child: Seen, issuer: Seen) -> bool:
    key, hash_ = issuer.x509.public_key(), child.x509.signature_hash_algorithm
    if hash_ is None:
        return False
    signature, signed = child.x509.signature, child.x509.tbs_certificate_bytes
    try:
        if isinstance(key, rsa.RSAPublicKey):
            parameters = child.x509.signature_algorithm_parameters
            scheme = parameters if isinstance(parameters, padding.PSS) else padding.PKCS1v15()
            key.verify(signature, signed, scheme, hash_)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, signed, ec.ECDSA(hash_))
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def _why_no_parent(child: Seen, chain: Sequence[Seen], roots: Sequence[Seen]) -> str:
    """The likeliest reason in a sentence; the exact one is that no issuer was found."""
    named = [root for root in roots if root.x509.subject == child.x509.issuer]
    earlier = [one for one in chain if one.x509.subject == child.x509.issuer and one is not child]
    for one in (*named, *earlier):
        if signed_by(child, one):
            if weak := _weak_key(one):
                return weak
            if one in earlier and _may_issue(one, child, 0):
                return (
                    f"The chain is in the wrong order: {one.name!r} issued {child.name!r} and must "
                    "come after it."
                )
            return f"{one.name!r} issued {child.name!r} and may not: it is no authority for it."
    if named:
        return (
            f"{child.name!r} was issued by a {child.issuer!r} with another key than the root of "
            "that name among the device's."
        )
    if child.x509.issuer == child.x509.subject:
        return (
            f"The chain ends in {child.name!r} (self-signed), which is not among the device's "
            "roots."
        )
    return (
        f"{child.name!r} was issued by {child.issuer!r}, which the server does not send and which "
        "is not among the device's roots: send the missing intermediate, or bring devices that "
        "root."
    )
