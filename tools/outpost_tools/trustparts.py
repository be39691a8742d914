"""What goes into a trust bundle, as a person gives it: files of roots, of public keys, and pins.

Each is judged here, and what a fleet would suffer from gets a sentence before anything is signed.
It keeps nothing, and reads no private key: a file with one in it is refused.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from outpost_tools import bundle, envelope, roots
from outpost_tools.envelope import Keys
from outpost_tools.errors import OutpostError

FILE_MAX_BYTES = 1 << 20
PRIVATE = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")


@dataclass(frozen=True)
class NamedKey:
    name: str
    point: bytes  # 64 bytes

    @property
    def id(self) -> str:
        return envelope.key_id(self.point).hex()


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise OutpostError(f"{path} is too long for certificates or keys.")
        content = path.read_bytes()
    except OSError as why:
        raise OutpostError(f"Cannot read {path} ({why.strerror}).") from None
    if PRIVATE.search(content):
        raise OutpostError(
            f"{path} has a private key in it: nothing was read from it. Give a file with the "
            "certificate or the public key alone, and keep this one to yourself."
        )
    return content


# Roots


def read_roots(names: Sequence[str]) -> list[bytes]:
    """DER of each root in bundles by name (azure, ...) and in PEM or DER files."""
    found: list[bytes] = []
    for name in names:
        if Path(name).is_file():
            _content(Path(name))
        for der in roots.choose([name]):
            if der in found:
                raise OutpostError(f"The root {common_name(der)} is given twice.")
            found.append(der)
    return found


def add_roots(present: Sequence[bytes], names: Sequence[str]) -> tuple[bytes, ...]:
    more = read_roots(names)
    for der in more:
        if der in present:
            raise OutpostError(f"The root {common_name(der)} is in the bundle already.")
    return (*present, *more)


def remove_roots(present: Sequence[bytes], names: Sequence[str]) -> tuple[bytes, ...]:
    """Without those of these common names, fingerprints (8 digits at least), or files."""
    left = list(present)
    for name in names:
        left.remove(_the_one(left, name))
    if not left:
        raise OutpostError("A bundle without a root would leave the fleet without a connection.")
    return tuple(left)


def _the_one(among: Sequence[bytes], name: str) -> bytes:
    if Path(name).is_file():
        given = read_certificates(Path(name))
        found = [der for der in among if der in given]
    else:
        digits = name.lower().replace(":", "")
        by_print = re.fullmatch("[0-9a-f]{8,64}", digits) is not None
        found = [
            der
            for der in among
            if common_name(der) == name or (by_print and fingerprint(der).startswith(digits))
        ]
    if len(found) != 1:
        there = "; ".join(f"{common_name(der)} ({fingerprint(der)[:16]})" for der in among)
        raise OutpostError(
            f"{name!r} is {'several' if found else 'none'} of the roots in the bundle: {there}."
        )
    return found[0]


def read_certificates(path: Path) -> list[bytes]:
    content = _content(path)
    try:
        if b"-----BEGIN" in content:
            held = x509.load_pem_x509_certificates(content)
        else:
            held = [x509.load_der_x509_certificate(content)]
    except ValueError:
        raise OutpostError(f"{path} holds no certificate in PEM or DER.") from None
    return [one.public_bytes(serialization.Encoding.DER) for one in held]


def common_name(der: bytes) -> str:
    certificate = x509.load_der_x509_certificate(der)
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()


def fingerprint(der: bytes) -> str:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    return digest.finalize().hex()


# Keys


def read_key(path: Path) -> NamedKey:
    """A public key of P-256: PEM (SubjectPublicKeyInfo), called by the file's name."""
    content = _content(path)
    try:
        key = serialization.load_pem_public_key(content)
    except ValueError:
        raise OutpostError(
            f"{path} holds no public key in PEM: its owner makes it with `outpost sign public`."
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise OutpostError(f"The key in {path} is not of the curve P-256.")
    return NamedKey(path.stem[:64], envelope.point_of(key))


def public_pem(point: bytes) -> bytes:
    """A point of 65 bytes as the file that read_key() takes."""
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def add_keys(present: Keys, more: Iterable[NamedKey], threshold: int | None) -> Keys:
    points = list(present.points)
    for key in more:
        if key.point in points:
            raise OutpostError(f"The key {key.name} ({key.id}) is in the bundle already.")
        points.append(key.point)
    return Keys.of(threshold or present.threshold or _most(len(points)), points)


def remove_keys(
    present: Keys,
    names: Sequence[str],
    called: dict[str, str],
    k: int | None,
    option: str = "threshold",
) -> Keys:
    """Without the keys of these names or ids; `option` is what says how many must sign."""
    points = list(present.points)
    for name in names:
        found = [
            point
            for point in points
            if name in (envelope.key_id(point).hex(), called.get(envelope.key_id(point).hex()))
        ]
        if len(found) != 1:
            there = ", ".join(called.get(i.hex(), i.hex()) for i in present.ids)
            raise OutpostError(
                f"{name!r} is {'several' if found else 'none'} of the keys: {there}."
            )
        points.remove(found[0])
    if not points:
        raise OutpostError("Without a key nobody could sign the next bundle: add one first.")
    threshold = k or present.threshold
    if threshold > len(points):
        raise OutpostError(
            f"{threshold} signatures are wanted and {len(points)} keys would be left: add a key, "
            f"or give another --{option}."
        )
    return Keys.of(threshold, points)


def _most(n: int) -> int:
    """More than half: one lost or stolen key stops nobody and betrays nobody, from three on."""
    return n // 2 + 1


# Recovery endpoints


def read_recovery(text: str) -> bundle.Endpoint:
    """HOST[:PORT]=FILE: where a bundle is to be had, and the certificate it is known by."""
    match = re.fullmatch(r"([A-Za-z0-9_.-]{1,253})(?::(\d{1,5}))?=(.+)", text)
    if match is None:
        raise OutpostError(f"{text!r} is no recovery endpoint: give HOST[:PORT]=FILE.")
    path = Path(match[3])
    held = read_certificates(path)
    if len(held) != 1:
        raise OutpostError(f"{path} holds {len(held)} certificates: a pin is one.")
    pin = x509.load_der_x509_certificate(held[0])
    if pin.issuer != pin.subject:
        raise OutpostError(
            f"{common_name(held[0])} in {path} is neither a root nor a self-signed certificate: a "
            "recovery endpoint is known by one of these."
        )
    found = bundle.Endpoint(match[1], int(match[2] or 443), held[0])
    found.encode()
    return found
