"""What may join the hub beside its devices' own MQTT: the two seams, and nothing more."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from outpost_tools.hub.core import HubCore
    from outpost_tools.hub.packets import Connect
    from outpost_tools.hub.session import Line


class Face(Protocol):
    """Another protocol on the device listener, told apart by its CONNECT (DPS is one)."""

    def claims(self, connect: "Connect") -> bool:
        """Whether this CONNECT is for it."""

    async def serve(self, line: "Line", connect: "Connect") -> str:
        """Answer the CONNECT and serve until the end; returns why it ended, safe to log.

        May raise session.Close(reason) and packets.Malformed, as sessions do.
        """


class Service(Protocol):
    """Something beside the device listener that lives in the hub's loop (REST is one)."""

    async def start(self, core: "HubCore") -> None:
        """Listen. Raises OutpostError where that cannot be."""

    async def stop(self) -> None: ...
