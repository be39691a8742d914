"""What a rotation needs of the hub: how a device proves itself there, and its direct methods.

It owns nothing: the hub keeps the keys, the local one or a real IoT Hub alike. A key is in memory
while it is compared or written, and is never printed.
"""

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from outpost_tools import agreed
from outpost_tools.errors import OutpostError
from outpost_tools.operator import Operator

NOT_THERE = ("(404103)", "(504101)")  # of an Operator's sentences: it may come back
ANSWER_S = 30


def key_id(key: str) -> str:
    """What device and host call a symmetric key (base64) by; it tells nothing of the key."""
    try:
        raw = base64.b64decode(key, validate=True)
    except ValueError:
        raise OutpostError("A key at the hub is not base64.") from None
    digest = hmac.new(raw, agreed.KEY_ID_LABEL, hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest[:12]).decode()


@dataclass(frozen=True)
class Way:
    """How a device proves itself: sas with two keys, selfSigned with two thumbprints, or a CA."""

    auth: str
    first: str = field(default="", repr=False)
    second: str = field(default="", repr=False)
    enabled: bool = True

    @property
    def values(self) -> tuple[str, str]:
        return self.first, self.second

    def with_other(self, kept: str, new: str) -> "Way":
        """`new` in the place that `kept` is not in."""
        first, second = (kept, new) if kept == self.first else (new, kept)
        return Way(self.auth, first, second, self.enabled)


class HubSide(Protocol):
    def way(self, device_id: str) -> Way: ...

    def change(self, device_id: str, way: Way, cut: bool = False) -> None:
        """Another way to prove itself. With `cut` whoever is connected is thrown out first."""

    def ask(self, device_id: str, method: str, payload: Any, patience_s: float) -> tuple[int, Any]:
        """A direct method's status and result; OutpostError when the patience is over."""


class OperatorHub:
    """HubSide through Microsoft's service SDK."""

    def __init__(self, operator: Operator, pause: Callable[[float], None] = time.sleep) -> None:
        self._operator, self._pause = operator, pause

    def way(self, device_id: str) -> Way:
        device = self._operator.device(device_id)
        auth = device.get("authentication") or {}
        kind = auth.get("type") or "sas"
        keys, prints = auth.get("symmetricKey") or {}, auth.get("x509Thumbprint") or {}
        pair = {
            "sas": (keys.get("primaryKey"), keys.get("secondaryKey")),
            "selfSigned": (prints.get("primaryThumbprint"), prints.get("secondaryThumbprint")),
        }.get(kind, ("", ""))
        return Way(kind, pair[0] or "", pair[1] or "", device.get("status") == "enabled")

    def change(self, device_id: str, way: Way, cut: bool = False) -> None:
        device = self._operator.device(device_id)
        if cut:
            # A hub may leave a connection be whose key has gone; one of a disabled device ends.
            device = self._operator.authenticate(
                device, way.auth, way.first, way.second, "disabled"
            )
        # Whoever disabled it meanwhile meant it: only who cut it off lets it in again.
        status = ("enabled" if way.enabled else "disabled") if cut else device["status"]
        self._operator.authenticate(device, way.auth, way.first, way.second, status)

    def ask(self, device_id: str, method: str, payload: Any, patience_s: float) -> tuple[int, Any]:
        ends = time.monotonic() + patience_s
        while True:
            left = max(1, min(300, int(ends - time.monotonic())))
            try:
                return self._operator.invoke(device_id, method, payload, ANSWER_S, left)
            except OutpostError as why:
                if not str(why).endswith(NOT_THERE) or time.monotonic() >= ends:
                    raise
            self._pause(1)
