"""Trust: what the bundle in use says, above all the roots that a server's chain must end in.

Roots only, on purpose. Reads bundles (docs/trust-bundle.md) where trusting.py has put them, and the
list of roots that the factory.bin of older images is. What it reads was verified before it was
installed (bundle.py): here it is only looked through, one section in RAM at a time. Writes nothing.
"""

from . import agreed
from .errors import TrustError

_REMEDY = "build the image again with 'outpost image'"

# The trusting.Trial under way, or None: servers are verified with its bundle meanwhile, and with
# nothing else. Hosts, keys and signers stay those of the bundle in use.
trial = None


def in_use():
    """The path of the bundle in use."""
    import esp32

    try:
        return agreed.TRUST_SLOTS[esp32.NVS(agreed.NVS_NAMESPACE).get_i32(agreed.NVS_TRUST_SLOT)]
    except (OSError, IndexError):
        return agreed.FACTORY_ROOTS_PATH


def roots(path=None):
    """Yield the DER of each root that servers are verified with now.

    TrustError where the file is missing, empty, cut off, too large, or a root is not DER.
    """
    path = path or (trial.path if trial else in_use())
    count = 0
    for der in values(agreed.SECTION_ROOT, path):
        count += 1
        # A certificate is a SEQUENCE whose length fills the entry exactly.
        if len(der) < 4 or der[:2] != b"\x30\x82" or (der[2] << 8 | der[3]) != len(der) - 4:
            raise TrustError("%s is damaged at root %d: %s" % (path, count, _REMEDY), True)
        yield der
        der = None
    if not count:
        raise TrustError("%s holds no root: %s" % (path, _REMEDY), True)


def version(path=None):
    """Of the bundle in use, verified when it was installed; 0: a list of roots, or damaged."""
    try:
        with open(path or in_use(), "rb") as f:
            start = f.read(7)
            if start[:4] != agreed.ENVELOPE_MAGIC:
                return 0
            f.seek(start[6], 1)
            return int.from_bytes(f.read(4), "big")
    except (OSError, IndexError):
        return 0


def hosts():
    """Names of the hosts that downloads may come from."""
    return [str(name, "utf-8") for name in values(agreed.SECTION_HOST)]


def software_keys():
    """Who signs software: threshold, number, and 64 bytes for each key; None: nobody."""
    for keys in values(agreed.SECTION_SOFTWARE):
        return keys


def signers():
    """The JSON of who may command this device, or None where the bundle does not say."""
    for content in values(agreed.SECTION_SIGNERS):
        return content


def changeable():
    """Whether there is anybody who may give this device another bundle."""
    import os

    path = in_use()
    if path != agreed.FACTORY_ROOTS_PATH:
        return True  # somebody did, whatever the flash made of it
    try:
        with open(path, "rb") as f:
            if (to_body(f) or (0, 0))[1]:
                return True
        os.stat(agreed.SIGNERS_PATH)
    except OSError:
        return False
    return True


def values(kind, path=None):
    """Yield the value of each section of a kind: one is in RAM, never all."""
    path = path or in_use()
    try:
        f = open(path, "rb")
    except OSError:
        raise TrustError(
            "there are no roots at %s, so no server can be verified: %s" % (path, _REMEDY), True
        )
    with f:
        body = to_body(f)
        new = body is not None
        left = body[0] if new else 0
        head = 3 if new else 2  # the older list has roots alone, and no kind before them
        count = total = 0
        while not new or total < left:
            entry = f.read(head)
            if not entry and not new:
                break
            length = (entry[-2] << 8 | entry[-1]) if len(entry) == head else 0
            total += head + length
            this = entry[0] if new and entry else agreed.SECTION_ROOT
            if this == agreed.SECTION_ROOT:
                count += 1
            if total > agreed.ROOTS_MAX_BYTES or count > agreed.ROOTS_MAX:
                raise TrustError("%s is larger than it may be: %s" % (path, _REMEDY), True)
            if this != kind:
                f.seek(length, 1)
                continue
            value = f.read(length)
            if len(value) != length or len(entry) != head:
                raise TrustError("%s is damaged at root %d: %s" % (path, count, _REMEDY), True)
            yield value
            value = None  # one is in RAM, never two


def to_body(f):
    """Go to a bundle's body: (its length, how many keys the head names); None: a list of roots."""
    start = f.read(7)
    if start[:4] != agreed.ENVELOPE_MAGIC or len(start) != 7:
        f.seek(0)
        return None
    f.seek(start[6] + 16, 1)
    size = int.from_bytes(f.read(4), "big")
    f.seek(33, 1)
    keys = f.read(1)
    f.seek(64 * keys[0] if keys else 0, 1)
    count = f.read(1)
    f.seek(72 * count[0] if count else 0, 1)
    return (size, keys[0]) if count else (0, 0)
