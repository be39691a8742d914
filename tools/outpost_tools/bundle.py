"""The trust bundle: which roots, hosts and keys a fleet believes (docs/trust-bundle.md).

It makes, reads, signs and verifies bundles; envelope.py has the signed frame around them. What it
accepts is what a device accepts. It keeps nothing.
"""

import datetime as dt
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from outpost_tools import agreed, envelope
from outpost_tools.envelope import Envelope, Keys
from outpost_tools.errors import OutpostError

NEVER_EXPIRES = 0xFFFFFFFF


@dataclass(frozen=True)
class Endpoint:
    """Where a device without a root that works finds a newer bundle, and the pin of its server."""

    host: str
    port: int
    pin: bytes = field(repr=False)  # DER

    def encode(self) -> bytes:
        name = _host(self.host)
        if not 1 <= self.port <= 65535:
            raise OutpostError(f"{self.port} is not a port: 1 to 65535.")
        _certificate(self.pin, "the pin of a recovery endpoint")
        return struct.pack(">HB", self.port, len(name)) + name + self.pin

    @classmethod
    def decode(cls, value: bytes) -> "Endpoint":
        if len(value) < 3 or len(value) < 3 + value[2]:
            raise OutpostError("A recovery endpoint of the bundle is cut off.")
        name, pin = value[3 : 3 + value[2]], value[3 + value[2] :]
        found = cls(_name(name), int.from_bytes(value[:2], "big"), pin)
        found.encode()
        return found


@dataclass(frozen=True)
class Bundle:
    """A trust bundle without its signatures.

    keys      who signs the next bundle
    software  who signs software packages
    signers   who may command devices: the JSON of docs/signed-commands.md
    more      (type, value) of sections that this version does not know: 6 to 127
    """

    fleet: str
    version: int
    roots: tuple[bytes, ...]
    keys: Keys = field(default_factory=Keys)
    floor: int = 0
    issued: int = 0
    expires: int = NEVER_EXPIRES
    hosts: tuple[str, ...] = ()
    recovery: tuple[Endpoint, ...] = ()
    software: Keys | None = None
    signers: bytes | None = None
    more: tuple[tuple[int, bytes], ...] = ()

    def body(self) -> bytes:
        self._check()
        sections = [(agreed.SECTION_ROOT, root) for root in self.roots]
        sections += [(agreed.SECTION_HOST, _host(host)) for host in self.hosts]
        sections += [(agreed.SECTION_RECOVERY, point.encode()) for point in self.recovery]
        if self.software is not None:
            sections.append((agreed.SECTION_SOFTWARE, self.software.encode()))
        if self.signers is not None:
            sections.append((agreed.SECTION_SIGNERS, self.signers))
        return b"".join(struct.pack(">BH", k, len(v)) + v for k, v in (*sections, *self.more))

    def _check(self) -> None:
        if not 1 <= len(self.roots) <= agreed.ROOTS_MAX:
            raise OutpostError(f"A bundle has 1 to {agreed.ROOTS_MAX} roots.")
        if len(set(self.roots)) != len(self.roots):
            raise OutpostError("A bundle names one root twice.")
        for root in self.roots:
            _check_root(root)
        if len(self.hosts) > agreed.HOSTS_MAX:
            raise OutpostError(f"A bundle names at most {agreed.HOSTS_MAX} hosts for downloads.")
        if len(self.recovery) > agreed.RECOVERY_MAX:
            raise OutpostError(f"A bundle has at most {agreed.RECOVERY_MAX} recovery endpoints.")
        if self.software is not None:
            self.software.check()
            if not self.software.points:
                raise OutpostError("The software keys are none: leave the section out.")
        if self.signers is not None:
            _check_signers(self.signers, self.fleet)
        for kind, value in self.more:
            if kind >= agreed.SECTION_MUST_KNOW or kind <= agreed.SECTION_SIGNERS:
                raise OutpostError(f"The bundle has a section {kind} that this `outpost` lacks.")
            if len(value) > 0xFFFF:
                raise OutpostError("A section has at most 65,535 bytes.")

    def unsigned(self) -> Envelope:
        """The envelope to be signed, or version 0 as it stands in an image."""
        made = Envelope.around(
            self.body(),
            role=agreed.ROLE_TRUST,
            fleet=self.fleet,
            version=self.version,
            floor=self.floor,
            issued=self.issued,
            expires=self.expires,
            keys=self.keys,
        )
        _check_size(len(made.encode()))
        return made

    @classmethod
    def of(cls, found: Envelope) -> "Bundle":
        """What is in an envelope; OutpostError where a device would not take it."""
        if found.role != agreed.ROLE_TRUST or found.body is None:
            raise OutpostError("This is no trust bundle: it is of another role.")
        _check_size(len(found.encode()))
        parts: dict[int, list[bytes]] = {}
        more = []
        for kind, value in _sections(found.body):
            if 1 <= kind <= agreed.SECTION_SIGNERS:
                parts.setdefault(kind, []).append(value)
            else:
                more.append((kind, value))
        bundle = cls(
            found.fleet,
            found.version,
            tuple(parts.get(agreed.SECTION_ROOT, ())),
            found.keys,
            found.floor,
            found.issued,
            found.expires,
            tuple(_name(value) for value in parts.get(agreed.SECTION_HOST, ())),
            tuple(Endpoint.decode(value) for value in parts.get(agreed.SECTION_RECOVERY, ())),
            _software(_one(parts, agreed.SECTION_SOFTWARE)),
            _one(parts, agreed.SECTION_SIGNERS),
            tuple(more),
        )
        bundle._check()
        return bundle


# What operators and tests use


def factory(roots: Sequence[bytes], issued: int, fleet: str = "") -> bytes:
    """The unsigned bundle of an image: version 0, which names no keys and cannot be delivered."""
    if not roots:
        raise OutpostError("An image needs at least one root: give --root.")
    return Bundle(fleet, 0, tuple(roots), issued=issued).unsigned().encode()


def for_image(data: bytes, now: int) -> Bundle:
    """The signed bundle of a file that an image is to be built with; OutpostError says why not."""
    found, delivered = read(data)
    if delivered.links or not found.version:
        raise OutpostError("An image takes a signed bundle alone, with no changes of keys before.")
    envelope.check_signed(delivered.envelope, found.keys)
    if found.expires <= now:
        raise OutpostError("The bundle has expired: sign a new one.")
    return found


def sign(unsigned: Envelope, keys: Iterable[ec.EllipticCurvePrivateKey]) -> Envelope:
    """With the signatures of all these keys."""
    for key in keys:
        unsigned = envelope.sign(unsigned, key)
    return unsigned


def read(data: bytes) -> tuple[Bundle, envelope.Delivered]:
    """A file's bundle and its frame, whoever signed them."""
    delivered = envelope.decode(data)
    return Bundle.of(delivered.envelope), delivered


def verify(data: bytes, present: Bundle, now: int | None = None) -> Bundle:
    """The bundle that a device which has `present` would install from a delivered file."""
    if len(data) > agreed.TRUST_FILE_MAX_BYTES:
        raise OutpostError(
            f"The file has {len(data)} bytes; a device takes {agreed.TRUST_FILE_MAX_BYTES}."
        )
    found = envelope.verify(
        data,
        role=agreed.ROLE_TRUST,
        fleet=present.fleet,
        version=present.version,
        keys=present.keys,
        now=now,
    )
    return Bundle.of(found)


def deliverable(history: Sequence[Envelope]) -> bytes:
    """The file for a device at any bundle of the history (oldest first): links and the newest.

    Of more links than a device takes the newest are in it. Who slept through all of the others
    has to be given an older bundle first.
    """
    links = envelope.changes(history)
    while len(data := envelope.encode(links, history[-1])) > agreed.TRUST_FILE_MAX_BYTES:
        links = links[1:]
    return data


def last_day(root: bytes) -> dt.datetime:
    """When a root expires."""
    return _certificate(root, "a root").not_valid_after_utc


# The parts of a body


def _sections(body: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(body):
        if at + 3 > len(body):
            raise OutpostError("The bundle's last section is cut off.")
        kind, size = struct.unpack_from(">BH", body, at)
        value = body[at + 3 : at + 3 + size]
        if len(value) != size:
            raise OutpostError("The bundle's last section is cut off.")
        found.append((kind, value))
        at += 3 + size
    return found


def _one(parts: dict[int, list[bytes]], kind: int) -> bytes | None:
    found = parts.get(kind, [])
    if len(found) > 1:
        raise OutpostError(f"The bundle has section {kind} twice.")
    return found[0] if found else None


def _software(value: bytes | None) -> Keys | None:
    if value is None:
        return None
    if len(value) < 2 or len(value) != 2 + value[1] * envelope.POINT_BYTES:
        raise OutpostError("The bundle's software keys are not whole.")
    size = envelope.POINT_BYTES
    return Keys.of(value[0], [value[at : at + size] for at in range(2, len(value), size)])


def _check_size(size: int) -> None:
    if size > agreed.BUNDLE_MAX_BYTES:
        raise OutpostError(
            f"The bundle has {size} bytes; a device holds {agreed.BUNDLE_MAX_BYTES}: "
            "leave a root or a recovery endpoint out."
        )


def _host(host: str) -> bytes:
    raw = host.encode()
    if not 1 <= len(raw) <= agreed.HOST_MAX_BYTES or any(
        not (c.isascii() and (c.isalnum() or c in "-._")) for c in host
    ):
        raise OutpostError(f"{host!r} is not a host name: give the name alone, no scheme, no port.")
    return raw


def _name(raw: bytes) -> str:
    try:
        name = raw.decode("ascii")
    except UnicodeDecodeError:
        raise OutpostError("The bundle has a host name that is none.") from None
    _host(name)
    return name


def _certificate(der: bytes, what: str) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError:
        raise OutpostError(f"What should be {what} is no certificate.") from None


def _check_root(der: bytes) -> None:
    certificate = _certificate(der, "a root")
    try:
        authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        authority = False
    if not authority or certificate.issuer != certificate.subject:
        raise OutpostError(
            "A certificate of the bundle is not a root: leaf and intermediate pins are not "
            "supported."
        )


def _check_signers(content: bytes, fleet: str) -> None:
    if len(content) > agreed.SIGNERS_MAX_BYTES:
        raise OutpostError("The command signers are more than a device takes.")
    try:
        named = json.loads(content)["fleet"]
    except (ValueError, KeyError, TypeError):
        raise OutpostError("The command signers are not the JSON that `outpost` writes.") from None
    if named != fleet:
        raise OutpostError(f"The command signers are of another fleet: {named!r}.")
