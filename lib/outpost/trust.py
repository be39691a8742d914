"""Trust: the roots that a server's chain must end in. Roots only, on purpose.

Reads /trust/factory.bin (agreed.py): for each root a 2-byte big-endian length
and the DER. Writes nothing.
"""

from . import agreed
from .errors import TrustError

_REMEDY = "build the image again with 'outpost image'"


def roots(path=agreed.FACTORY_ROOTS_PATH):
    """Yield the DER of each root, one at a time: holds one in RAM, never all.

    TrustError where the file is missing, empty, cut off, too large, or not DER.
    """
    try:
        f = open(path, "rb")
    except OSError:
        raise TrustError(
            "there are no roots at %s, so no server can be verified: %s" % (path, _REMEDY), True
        )
    with f:
        count = total = 0
        while True:
            head = f.read(2)
            if not head:
                break
            length = head[0] << 8 | head[1] if len(head) == 2 else 0
            total += 2 + length
            count += 1
            if total > agreed.ROOTS_MAX_BYTES or count > agreed.ROOTS_MAX:
                raise TrustError("%s is larger than it may be: %s" % (path, _REMEDY), True)
            der = f.read(length)
            # A certificate is a SEQUENCE whose length fills the entry exactly.
            if (
                len(der) != length
                or length < 4
                or der[:2] != b"\x30\x82"
                or (der[2] << 8 | der[3]) != length - 4
            ):
                raise TrustError("%s is damaged at root %d: %s" % (path, count, _REMEDY), True)
            yield der
    if not count:
        raise TrustError("%s holds no root: %s" % (path, _REMEDY), True)
