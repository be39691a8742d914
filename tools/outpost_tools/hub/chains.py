"""The intermediate certificates of devices that resume a TLS session.

A resumed session shows the device's own certificate and nothing above it, so what stood above it is
remembered from the full handshake: of devices that were let in, and judged anew each time. It owns
that memory, which ends with the hub, as the sessions do.
"""

import collections
import hashlib
from collections.abc import Sequence

HELD_MAX = 8192


class Chains:
    def __init__(self) -> None:
        self._above: collections.OrderedDict[bytes, tuple[bytes, ...]] = collections.OrderedDict()

    def remember(self, certificates: Sequence[bytes]) -> None:
        """Leaf first, in DER. To be called for who was let in, and for nobody else."""
        if len(certificates) < 2:
            return
        leaf = hashlib.sha256(certificates[0]).digest()
        self._above[leaf] = tuple(certificates[1:])
        self._above.move_to_end(leaf)
        if len(self._above) > HELD_MAX:
            self._above.popitem(last=False)

    def whole(self, certificates: Sequence[bytes]) -> list[bytes]:
        """What was shown, with what is known to stand above it where it is a leaf alone."""
        if len(certificates) != 1:
            return list(certificates)
        leaf = hashlib.sha256(certificates[0]).digest()
        return [*certificates, *self._above.get(leaf, ())]
