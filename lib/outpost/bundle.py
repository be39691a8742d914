"""Bundle: envelopes, as bundles and packages are, read from a file and verified before anything in
them is believed (docs/trust-bundle.md).

A head and its signatures are in RAM (1.8 KB at most), a body never: it is hashed piece by piece,
and its sections are looked at one by one. Loaded only while something is installed. Owns no flash,
and signs nothing.
"""

import hashlib
import struct

from micropython import const

from . import agreed, formats, watchdog, x509
from .errors import TrustError

try:
    from tlspolicy import verify
except ImportError:  # a stock board
    from .p256 import verify

_POINT = const(64)
_SIGNATURE = const(72)
_PIECE = const(256)


class Head:
    """role, fleet (bytes), version, floor, issued, expires, size, sha256, keys; as they were
    signed: signed, signatures; where the body is in the file: at.

    keys  threshold, number, and 64 bytes for each key
    """


def _read(f, n):
    data = f.read(n)
    if len(data) != n:
        raise TrustError("the file is cut off")
    return data


def head(f):
    """The Head at the file's place, whoever signed it; TrustError says what is wrong with it."""
    start = _read(f, 7)
    if start[:4] != agreed.ENVELOPE_MAGIC:
        raise TrustError("this is no trust bundle or package")
    if start[4] != formats.ENVELOPE_FORMAT:
        raise TrustError("it is of format %d, which this device does not know" % start[4])
    if start[6] > agreed.FLEET_NAME_MAX:
        raise TrustError("the name of its fleet is too long")
    h = Head()
    h.role = start[5]
    h.fleet = _read(f, start[6])
    try:
        str(h.fleet, "utf-8")
    except (UnicodeError, ValueError):
        raise TrustError("the name of its fleet is not UTF-8")
    fixed = _read(f, 52)
    h.version, h.floor, h.issued, h.expires, h.size = struct.unpack_from(">IIIII", fixed)
    h.sha256 = fixed[20:]
    keys = _read(f, 2)
    check_threshold(keys)
    h.keys = keys + _read(f, keys[1] * _POINT)
    if len(set(ids(h.keys))) != keys[1]:
        raise TrustError("it names one key twice")
    _check(h)
    h.signed = start + h.fleet + fixed + h.keys
    count = _read(f, 1)[0]
    if count > formats.SIGNATURES_MAX:
        raise TrustError("it has too many signatures")
    h.signatures = _read(f, count * _SIGNATURE)
    h.at = f.tell()
    return h


def check_threshold(keys):
    """TrustError where what begins with threshold and number is no set of keys."""
    if keys[1] > formats.ENVELOPE_KEYS_MAX or not (1 <= keys[0] <= keys[1] or keys == b"\0\0"):
        raise TrustError("%d of %d keys is no threshold" % (keys[0], keys[1]))


def _check(h):
    """The same as the host's Envelope.check()."""
    if not h.fleet and h.version:
        raise TrustError("it names no fleet")
    if h.version > formats.VERSION_MAX or h.floor > h.version or h.issued >= h.expires:
        raise TrustError("its version, floor or dates cannot be so")
    if h.role == agreed.ROLE_TRUST:
        if h.version and not h.keys[1]:
            raise TrustError("it names no keys that sign the next one")
    elif h.role != agreed.ROLE_SOFTWARE or h.keys[1]:
        raise TrustError("it is of another role")


def points(keys):
    """Each key of a set, 65 bytes."""
    for at in range(2, len(keys), _POINT):
        yield b"\x04" + keys[at : at + _POINT]


def ids(keys):
    """What signatures name the keys of a set by."""
    return [hashlib.sha256(point).digest()[:8] for point in points(keys)]


def check_signed(h, keys):
    """TrustError unless enough of `keys` signed, and of the ones it names where they are others."""
    if len(keys) < 2 or not keys[0]:
        raise TrustError("this device knows no keys that may sign it")
    known = {}
    new = h.role == agreed.ROLE_TRUST and h.keys != keys
    for one in (keys, h.keys) if new else (keys,):
        for point in points(one):
            known[hashlib.sha256(point).digest()[:8]] = point
    done = set()
    for at in range(0, len(h.signatures), _SIGNATURE):
        name = h.signatures[at : at + 8]
        if name in done:
            raise TrustError("one key has signed twice")
        if name not in known:
            raise TrustError("it is signed with a key that nobody named")
        try:
            good = verify(known[name], h.signed, h.signatures[at + 8 : at + _SIGNATURE])
        except ValueError:
            good = False
        if not good:
            raise TrustError("a signature is wrong")
        watchdog.feed()  # without tlspolicy each takes seconds
        done.add(name)
    for one in (keys, h.keys) if new else (keys,):
        count = 0
        for name in ids(one):
            count += name in done
        if count < one[0]:
            raise TrustError("%d of its keys signed, not %d" % (count, one[0]))


def as_signed(h):
    """Whether the head of a bundle that lies here is as it was signed: its own keys tell. An
    image's bundle may have no signature, and the one of a rescue has none."""
    known = {hashlib.sha256(point).digest()[:8]: point for point in points(h.keys)}
    done = set()
    for at in range(0, len(h.signatures), _SIGNATURE):
        point = known.get(h.signatures[at : at + 8])
        try:
            if point and verify(point, h.signed, h.signatures[at + 8 : at + _SIGNATURE]):
                done.add(point)
        except ValueError:
            pass  # no point of the curve
    return not h.signatures or len(done) >= h.keys[0]


def accepted(path, role, fleet, version, keys, now=None, most=formats.BUNDLE_MAX_BYTES, above=0):
    """The Head of the envelope in a delivered file, verified to its last byte.

    fleet, version  this device's: only a higher version of the same fleet is taken
    keys            who must have signed: as in Head
    above           the envelope's version is higher than this, too
    now             Unix seconds that it certainly is, or None
    most            bytes that an envelope may have, head to end
    """
    try:
        f = open(path, "rb")
    except OSError:
        raise TrustError("there is no file at %s" % path)
    with f:
        newest = version
        while _read(f, 1)[0] == formats.LINK_MARK:
            if role != agreed.ROLE_TRUST or f.tell() > formats.TRUST_FILE_MAX_BYTES:
                raise TrustError("there is no envelope behind the changes of keys")
            link = head(f)
            _belongs(link, role, fleet)
            if link.version <= version:
                continue  # from before this device's own bundle
            if link.version <= newest:
                raise TrustError("the changes of keys are not in the order of their versions")
            check_signed(link, keys)
            newest, keys = link.version, link.keys
        start = f.tell() - 1
        f.seek(start)
        h = head(f)
        h.start = start
        _belongs(h, role, fleet)
        above = max(above, newest)
        if h.version <= above:
            raise TrustError("version %d is not newer than %d" % (h.version, above))
        if h.at - start + h.size > most:
            raise TrustError("it is larger than this device takes")
        check_signed(h, keys)
        if now is not None and h.expires <= now:
            raise TrustError("version %d has expired: sign a new one" % h.version)
        check_body(f, h)
        if f.read(1):
            raise TrustError("there is something behind its end")
        if role == agreed.ROLE_TRUST:
            f.seek(h.at)
            check_sections(f, h.size)
    return h


def _belongs(h, role, fleet):
    if h.role != role:
        raise TrustError("it is of another role")
    if h.fleet != fleet:
        raise TrustError("it is for another fleet")


def check_body(f, h):
    """Read the body; TrustError where it is not the one that the head names."""
    digest = hashlib.sha256()
    left = h.size
    while left:
        piece = _read(f, min(left, _PIECE))
        digest.update(piece)
        left -= len(piece)
    if digest.digest() != h.sha256:
        raise TrustError("the body is not the one that its head names")


def check_sections(f, left):
    """TrustError where a trust bundle's body is not what a device can live by."""
    counts = bytearray(256)
    seen = []
    while left:
        if left < 3:
            raise TrustError("its last section is cut off")
        kind, length = struct.unpack(">BH", _read(f, 3))
        left -= 3 + length
        if left < 0:
            raise TrustError("its last section is cut off")
        if kind > agreed.SECTION_SIGNERS and kind < formats.SECTION_MUST_KNOW:
            f.seek(length, 1)
            continue
        if not kind or kind >= formats.SECTION_MUST_KNOW:
            raise TrustError("it has a section %d, which this device does not know" % kind)
        counts[kind] += 1
        most = (0, agreed.ROOTS_MAX, formats.HOSTS_MAX, formats.RECOVERY_MAX, 1, 1)
        if counts[kind] > most[kind]:
            raise TrustError("it has too many sections of kind %d" % kind)
        value = _read(f, length)
        if kind == agreed.SECTION_ROOT:
            mark = hashlib.sha256(value).digest()
            if mark in seen or not x509.is_root(value):
                raise TrustError("a certificate in it is not a root")
            seen.append(mark)
        elif kind == agreed.SECTION_HOST:
            _check_host(value)
        elif kind == formats.SECTION_RECOVERY:
            endpoint(value)
        elif kind == agreed.SECTION_SIGNERS:
            if length > agreed.SIGNERS_MAX_BYTES:
                raise TrustError("its command signers are more than this device takes")
        else:
            _check_software(value)
    if not seen:
        raise TrustError("it has no root")


def _check_software(keys):
    if len(keys) < 2 or len(keys) != 2 + keys[1] * _POINT or not keys[1]:
        raise TrustError("its software keys are not whole")
    check_threshold(keys)
    if len(set(ids(keys))) != keys[1]:
        raise TrustError("its software keys name one twice")


def _check_host(name):
    good = 1 <= len(name) <= formats.HOST_MAX_BYTES
    for c in name:
        good = good and (48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122 or c in b"-._")
    if not good:
        raise TrustError("it names a host that cannot be one")


def endpoint(value):
    """(host, port, DER of the pinned certificate) of a recovery endpoint."""
    if len(value) < 4 or len(value) < 3 + value[2]:
        raise TrustError("its recovery endpoint is cut off")
    name, pin = value[3 : 3 + value[2]], value[3 + value[2] :]
    port = value[0] << 8 | value[1]
    _check_host(name)
    if not port or not x509.is_certificate(pin):
        raise TrustError("its recovery endpoint cannot be one")
    return str(name, "utf-8"), port, pin
