"""The envelope: signed bytes for a fleet, of a role, with a version (docs/trust-bundle.md).

Trust bundles and software packages are both envelopes. Here they are written, read, signed (k of n
keys, a file carried from signer to signer) and verified exactly as a device does. It keeps nothing
and holds no private key longer than it signs.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from outpost_tools import agreed
from outpost_tools.errors import OutpostError

POINT_BYTES = 64
SIGNATURE_BYTES = 8 + 64
_U32_MAX = 0xFFFFFFFF
_FIXED = struct.Struct(">IIIII32s")  # version, floor, issued, expires, body's length and hash


@dataclass(frozen=True)
class Keys:
    """Public keys (x and y, 64 bytes each) of which `threshold` different ones must sign."""

    threshold: int = 0
    points: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, threshold: int, points: Iterable[bytes]) -> "Keys":
        """Of points of 64 bytes, or of 65 as SEC 1 writes them."""
        keys = cls(threshold, tuple(p[1:] if len(p) == 65 else p for p in points))
        keys.check()
        return keys

    def check(self) -> None:
        n = len(self.points)
        if n > agreed.ENVELOPE_KEYS_MAX or not (
            1 <= self.threshold <= n or self.threshold == n == 0
        ):
            raise OutpostError(
                f"{self.threshold} of {n} keys is no threshold: name 1 to "
                f"{agreed.ENVELOPE_KEYS_MAX} keys, of which 1 to all must sign."
            )
        if len(set(self.ids)) != n:
            raise OutpostError("A set of signing keys names one key twice.")
        for point in self.points:
            _public(point)

    @property
    def ids(self) -> list[bytes]:
        return [key_id(point) for point in self.points]

    def encode(self) -> bytes:
        return bytes((self.threshold, len(self.points))) + b"".join(self.points)


@dataclass(frozen=True)
class Signature:
    key: bytes  # the key's id
    value: bytes  # r and s


@dataclass(frozen=True)
class Envelope:
    """`body` is None in a link: the head of an earlier bundle, which shows a change of keys."""

    role: int
    fleet: str
    version: int
    floor: int
    issued: int
    expires: int
    keys: Keys
    body_size: int
    body_sha256: bytes
    body: bytes | None = None
    signatures: tuple[Signature, ...] = ()

    @classmethod
    def around(
        cls,
        body: bytes,
        *,
        role: int,
        fleet: str,
        version: int,
        floor: int,
        issued: int,
        expires: int,
        keys: Keys | None = None,
    ) -> "Envelope":
        """An unsigned envelope around a body; OutpostError says what cannot be so."""
        made = cls(
            role,
            fleet,
            version,
            floor,
            issued,
            expires,
            keys or Keys(),
            len(body),
            hashlib.sha256(body).digest(),
            body,
        )
        made.check()
        return made

    def check(self) -> None:
        """What a device asks of every head, whoever signed it."""
        name = len(self.fleet.encode())
        if name > agreed.FLEET_NAME_MAX or (not name and self.version):
            raise OutpostError("An envelope names its fleet in 1 to 64 bytes.")
        if not 0 <= self.version <= agreed.VERSION_MAX or not 0 <= self.floor <= self.version:
            raise OutpostError("The floor must be a version that is not above the envelope's own.")
        if not 0 <= self.issued < self.expires <= _U32_MAX:
            raise OutpostError("The envelope must expire after it was issued.")
        if self.role == agreed.ROLE_TRUST:
            if self.version and not self.keys.points:
                raise OutpostError("A trust bundle must name the keys that sign the next one.")
        elif self.role != agreed.ROLE_SOFTWARE:
            raise OutpostError(f"There is no role {self.role} of envelopes.")
        elif self.keys.points:
            raise OutpostError("A software package names no signing keys: the trust bundle does.")
        self.keys.check()

    def head(self) -> bytes:
        """The bytes that are signed."""
        name = self.fleet.encode()
        fixed = _FIXED.pack(
            self.version, self.floor, self.issued, self.expires, self.body_size, self.body_sha256
        )
        start = agreed.ENVELOPE_MAGIC + bytes((agreed.ENVELOPE_FORMAT, self.role, len(name)))
        return start + name + fixed + self.keys.encode()

    def _signed_head(self) -> bytes:
        rows = b"".join(one.key + one.value for one in self.signatures)
        return self.head() + bytes((len(self.signatures),)) + rows

    def encode(self) -> bytes:
        """The whole envelope."""
        if self.body is None:
            raise OutpostError("A link has no body: only a bundle can be delivered.")
        return self._signed_head() + self.body

    def encode_link(self) -> bytes:
        """The head and its signatures alone, as they stand before a newer bundle."""
        return bytes((agreed.LINK_MARK,)) + self._signed_head()

    def without_body(self) -> "Envelope":
        return replace(self, body=None)

    def signed(self, signature: Signature) -> "Envelope":
        """With one signature more; a second one by the same key takes the first one's place."""
        others = [one for one in self.signatures if one.key != signature.key]
        if len(others) >= agreed.SIGNATURES_MAX:
            raise OutpostError(f"An envelope takes at most {agreed.SIGNATURES_MAX} signatures.")
        return replace(self, signatures=(*others, signature))


def key_id(point: bytes) -> bytes:
    """The 8 bytes that a signature names its key by."""
    return hashlib.sha256(b"\x04" + point).digest()[:8]


def point_of(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> bytes:
    """The 64 bytes of a P-256 key's point."""
    public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
    if public.curve.name != "secp256r1":
        raise OutpostError("A signing key must be of the curve P-256.")
    numbers = public.public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def _public(point: bytes) -> ec.EllipticCurvePublicKey:
    try:
        if len(point) != POINT_BYTES:
            raise ValueError
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + point)
    except ValueError:
        raise OutpostError("A signing key is no point of P-256.") from None


def sign(envelope: Envelope, key: ec.EllipticCurvePrivateKey) -> Envelope:
    """The envelope with this key's signature too. The key may be one in a token."""
    der = key.sign(envelope.head(), ec.ECDSA(hashes.SHA256()))
    r, s = utils.decode_dss_signature(der)
    value = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return envelope.signed(Signature(key_id(point_of(key)), value))


# Reading


@dataclass(frozen=True)
class Delivered:
    """What a file to deliver holds: changes of keys, oldest first, and the newest envelope."""

    links: tuple[Envelope, ...]
    envelope: Envelope


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        piece = self.data[self.at : self.at + size]
        if len(piece) != size:
            raise OutpostError("The file is cut off.")
        self.at += size
        return piece


def _head(reader: _Reader) -> Envelope:
    if reader.take(4) != agreed.ENVELOPE_MAGIC:
        raise OutpostError("This is no trust bundle or package of Outpost.")
    form, role, name_size = reader.take(3)
    if form != agreed.ENVELOPE_FORMAT:
        raise OutpostError(f"The envelope is of format {form}: use a newer `outpost`.")
    try:
        fleet = reader.take(name_size).decode()
    except UnicodeDecodeError:
        raise OutpostError("The name of the fleet is not UTF-8.") from None
    version, floor, issued, expires, size, digest = _FIXED.unpack(reader.take(_FIXED.size))
    threshold, n = reader.take(2)
    points = [reader.take(POINT_BYTES) for _ in range(min(n, agreed.ENVELOPE_KEYS_MAX + 1))]
    keys = Keys(threshold, tuple(points))
    found = Envelope(role, fleet, version, floor, issued, expires, keys, size, digest)
    found.check()
    (count,) = reader.take(1)
    if count > agreed.SIGNATURES_MAX:
        raise OutpostError("The envelope has too many signatures.")
    rows = [Signature(reader.take(8), reader.take(64)) for _ in range(count)]
    if len({one.key for one in rows}) != count:
        raise OutpostError("One key has signed twice.")
    return replace(found, signatures=tuple(rows))


def decode(data: bytes) -> Delivered:
    """What is in a file, whoever signed it: verify() says whether it may be believed."""
    reader = _Reader(data)
    links: list[Envelope] = []
    while data[reader.at : reader.at + 1] == bytes((agreed.LINK_MARK,)):
        reader.at += 1
        links.append(_head(reader))
    envelope = _head(reader)
    body = reader.take(envelope.body_size)
    if reader.at != len(data):
        raise OutpostError("There is something behind the end of the envelope.")
    if hashlib.sha256(body).digest() != envelope.body_sha256:
        raise OutpostError("The body is not the one that the head names.")
    return Delivered(tuple(links), replace(envelope, body=body))


def encode(links: Iterable[Envelope], envelope: Envelope) -> bytes:
    """A file to deliver: the changes of keys, then the envelope."""
    return b"".join(link.encode_link() for link in links) + envelope.encode()


# Verifying


def signers(envelope: Envelope, *sets: Keys) -> set[bytes]:
    """Ids of the keys that have signed; each signature must be right and of a key in the sets."""
    known = {key_id(point): point for keys in sets for point in keys.points}
    head = envelope.head()
    for one in envelope.signatures:
        point = known.get(one.key)
        if point is None:
            raise OutpostError(f"Version {envelope.version} is signed with a key nobody named.")
        r, s = (int.from_bytes(part, "big") for part in (one.value[:32], one.value[32:]))
        try:
            der = utils.encode_dss_signature(r, s)
            _public(point).verify(der, head, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise OutpostError(f"A signature of version {envelope.version} is wrong.") from None
    return {one.key for one in envelope.signatures}


def missing(envelope: Envelope, present: Keys) -> tuple[int, int]:
    """How many signatures are still needed: (of the present keys, of the ones it names)."""
    done = signers(envelope, present, envelope.keys)
    old = max(0, present.threshold - len(done & set(present.ids)))
    new = 0
    if envelope.role == agreed.ROLE_TRUST and envelope.keys != present:
        new = max(0, envelope.keys.threshold - len(done & set(envelope.keys.ids)))
    return old, new


def check_signed(envelope: Envelope, present: Keys) -> None:
    """OutpostError where the present keys, or the new ones it names, have not signed enough."""
    if not present.points:
        raise OutpostError("There are no keys that may sign this.")
    old, new = missing(envelope, present)
    if old or new:
        raise OutpostError(
            f"Version {envelope.version} lacks signatures: {old} of the present keys, "
            f"{new} of the new ones."
        )


def verify(
    data: bytes, *, role: int, fleet: str, version: int, keys: Keys, now: int | None = None
) -> Envelope:
    """The envelope that a device with these keys, at this version, would install from the file.

    now  Unix seconds; None judges no dates
    """
    delivered = decode(data)
    if delivered.links and role != agreed.ROLE_TRUST:
        raise OutpostError("Changes of keys stand before a trust bundle alone.")
    newest = version
    for link in delivered.links:
        _belongs(link, role, fleet)
        if link.version <= version:
            continue  # it is from before this device's own bundle
        if link.version <= newest:
            raise OutpostError("The changes of keys are not in the order of their versions.")
        check_signed(link, keys)
        newest, keys = link.version, link.keys
    envelope = delivered.envelope
    _belongs(envelope, role, fleet)
    if envelope.version <= newest:
        raise OutpostError(f"Version {envelope.version} is not newer than {newest}.")
    check_signed(envelope, keys)
    if now is not None and envelope.expires <= now:
        raise OutpostError(f"Version {envelope.version} has expired: sign a new one.")
    return envelope


def _belongs(envelope: Envelope, role: int, fleet: str) -> None:
    if envelope.role != role:
        raise OutpostError("The envelope is of another role.")
    if envelope.fleet != fleet:
        raise OutpostError(f"The envelope is for the fleet {envelope.fleet!r}, not {fleet!r}.")


def changes(history: Sequence[Envelope]) -> list[Envelope]:
    """Of the bundles of a fleet, oldest first, the links that lead from any of them to the newest.

    A bundle whose keys are those of the one before it needs none.
    """
    found = []
    for before, after in zip(history, history[1:], strict=False):
        if after is not history[-1] and after.keys != before.keys:
            found.append(after.without_body())
    return found
