"""Which devices are connected, and when each was last heard of.

It owns the table of live sessions, one for each device, and what is known of those that left since
the hub began; when a device was last active goes into the registry now and then.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from outpost_tools.registry import Registry

if TYPE_CHECKING:
    from outpost_tools.hub.session import Session


@dataclass(frozen=True)
class Connection:
    """What is known of a device's connection. Times are Unix seconds, 0.0 for never."""

    connected: bool
    changed_s: float  # when it last connected or was lost
    last_activity_s: float
    peer: str = ""
    model_id: str = ""

    @property
    def state(self) -> str:
        return "Connected" if self.connected else "Disconnected"


NEVER = Connection(False, 0.0, 0.0)


class Presence:
    def __init__(self, registry: Registry, now_s: Callable[[], float]) -> None:
        self.sessions: dict[str, Session] = {}
        self._registry, self._now_s = registry, now_s
        self._seen: dict[str, Connection] = {}
        self._unsaved: dict[str, float] = {}

    def connection(self, device_id: str) -> Connection:
        seen = self._seen.get(device_id)
        if seen is not None:
            return seen
        device = self._registry.find(device_id)
        return NEVER if device is None else Connection(False, 0.0, device.last_activity_s)

    def enter(self, session: "Session") -> "Session | None":
        """A device is in; gives the older session that it takes the place of."""
        older = self.sessions.get(session.device_id)
        self.sessions[session.device_id] = session
        now_s = self._now_s()
        self._seen[session.device_id] = Connection(
            True, now_s, now_s, session.line.peer, session.admitted.model_id
        )
        self._unsaved[session.device_id] = now_s
        return older

    def leave(self, session: "Session") -> None:
        if self.sessions.get(session.device_id) is session:
            del self.sessions[session.device_id]
            seen = self._seen[session.device_id]
            self._seen[session.device_id] = replace(seen, connected=False, changed_s=self._now_s())

    def heard(self, session: "Session") -> None:
        """Something came from the device."""
        if self.sessions.get(session.device_id) is session:
            now_s = self._now_s()
            seen = self._seen[session.device_id]
            # A clock that went back counts as well.
            if abs(now_s - seen.last_activity_s) >= 1:
                self._seen[session.device_id] = replace(seen, last_activity_s=now_s)
                self._unsaved[session.device_id] = now_s

    def save(self) -> None:
        """Write down when devices were active. This reaches the disk."""
        unsaved, self._unsaved = self._unsaved, {}
        if unsaved:
            self._registry.heard_of(unsaved.items())
