"""Install: a delivered trust bundle is judged, put into the free slot, and on trial.

Owns /trust/a.bin and /trust/b.bin; never writes factory.bin, nor the slot that is in use. Loaded
only while something is installed. docs/trust.md.
"""

from micropython import const

from . import agreed, bundle, clock, formats, trust
from .errors import OutpostError, TrustError, number
from .trusting import REFUSED, begin, entry, erase, nvs, write

_PIECE = const(256)

# Bundles on the board


def usable(path):
    """The Head of a bundle that lies here whole, or None. An older image's list has version 0."""
    try:
        with open(path, "rb") as f:
            if path == agreed.FACTORY_ROOTS_PATH and trust.to_body(f) is None:
                h = bundle.Head()
                h.version = h.floor = 0
                h.fleet, h.keys, h.signed = b"", b"\0\0", None
                return h if f.read(1) else None
            f.seek(0)
            h = bundle.head(f)
            bundle.check_body(f, h)
    except (OSError, TrustError):
        return None
    return h if h.role == agreed.ROLE_TRUST else None


def known(store):
    """(path, Head) of the bundles that may be turned to: the one in use, the other slot's, the
    factory's. The first is not there where it is damaged; the others must not be revoked."""
    at = trust.in_use()
    h = usable(at)
    lowest = max(entry(store, formats.NVS_TRUST_FLOOR), h.floor if h else 0)
    if h:
        yield at, h
    for path in agreed.TRUST_SLOTS + (agreed.FACTORY_ROOTS_PATH,):
        if path != at:
            h = usable(path)
            if h and h.version >= lowest:
                yield path, h


def present(store):
    """The Head by which the next bundle is judged; above: only a higher version than that."""
    for path, h in known(store):
        # Where the one in use is damaged, that version may come again, and none before it.
        h.above = max(h.version, entry(store, formats.NVS_TRUST_HIGH) - 1)
        if h.version > entry(store, formats.NVS_TRUST_HIGH) and path != trust.in_use():
            continue  # it never was in use: whoever signs next is not for it to say
        if h.signed and not bundle.as_signed(h):
            continue  # a bit of it is another: its keys may be
        if not h.keys[1]:
            _first_signers(h)
        h.in_use = path == trust.in_use()
        return h
    raise TrustError("no bundle on this board is whole: build the image again", True)


def _first_signers(h):
    """Of an unsigned bundle: its signers are those who may command "trust", any one of them."""
    from . import signed

    try:
        found = signed.signers()
    except OutpostError:
        raise TrustError("this board's image names nobody who may sign a bundle", True)
    points = [p for p, roles in found.keys.values() if "trust" in roles]
    h.keys = bytes((1 if points else 0, len(points))) + b"".join([p[1:] for p in points])
    h.fleet = found.fleet.encode()


# Installing


def install(path, way):
    """Judge a delivered file, and put its bundle on trial.

    (202, ...) where it is; (200, ...) where that very bundle is in use; TrustError says why not.
    """
    store = nvs()
    base = present(store)
    if base.in_use and base.signed and _newest(path) == base.signed:
        return 200, {"state": "in use", "version": base.version}
    now = way.at_least() or clock.Clock(()).floor
    # Changes of keys count from the bundle that is judged by, which may be older than the last.
    h = bundle.accepted(
        path, agreed.ROLE_TRUST, base.fleet, base.version, base.keys, now, above=base.above
    )
    if way.date() is not None and h.issued > now + 86400:
        raise TrustError("it was issued in the future: check the clock of who signed it")
    begin(store, _stored(store, path, h), h)
    return 202, {"state": "trial", "version": h.version}


def late(path, way):
    """install() of a file whose sender has his answer already: a refusal is reported."""
    try:
        return install(path, way)
    except (TrustError, MemoryError):
        store = nvs()
        write(store, formats.NVS_TRUST_CHANGE, 0)
        write(store, formats.NVS_TRUST_OUTCOME, REFUSED)
        raise


def _newest(path):
    """The signed head of the file's bundle, unverified; None where there is none."""
    try:
        with open(path, "rb") as f:
            while f.read(1) == bytes((formats.LINK_MARK,)):
                bundle.head(f)
            f.seek(f.tell() - 1)
            return bundle.head(f).signed
    except (OSError, TrustError):
        return None


def _stored(store, path, h):
    """Copy a verified bundle into the free slot; its number."""
    slot = free_slot()
    target = agreed.TRUST_SLOTS[slot]
    there = usable(target)
    if there and there.signed == h.signed:
        return slot  # it was here before: a trial that came to nothing, or a power cut
    trust.trial = None
    erase(store, formats.NVS_TRUST_TRIAL)  # what lies in the slot now is on trial no more
    try:
        with open(path, "rb") as f, open(target, "wb") as out:
            f.seek(h.start)
            while True:
                piece = f.read(_PIECE)
                if not piece:
                    break
                out.write(piece)
    except OSError as e:
        raise TrustError("the bundle could not be written (error %d)" % number(e), True)
    there = usable(target)
    if not there or there.signed != h.signed:
        raise TrustError("the flash did not keep the bundle: deliver it again", True)
    return slot


def free_slot():
    return 1 if trust.in_use() == agreed.TRUST_SLOTS[0] else 0
