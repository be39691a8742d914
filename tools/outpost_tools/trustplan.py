"""Before a bundle is sent: whom it goes to, and whether anybody would be stranded by it.

It asks the live endpoints under the devices' own policy, and refuses a bundle with which devices
would not connect to each of them as they are now. It owns nothing; waves.py keeps the plan.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from outpost_tools import endpoint, fleetplan, trustwords
from outpost_tools.audit import NotAsked
from outpost_tools.bundle import Bundle
from outpost_tools.connection import Connection
from outpost_tools.endpoint import Endpoint, Seen
from outpost_tools.envelope import Envelope
from outpost_tools.errors import OutpostError
from outpost_tools.hub import running
from outpost_tools.operator import Operator
from outpost_tools.trustcargo import TrustCargo
from outpost_tools.trustshelf import Shelf
from outpost_tools.waves import Ledger


def endpoints(connection: Connection, data: Path, more: Sequence[str]) -> list[Endpoint]:
    """What the fleet connects to: its hub, and what was named beside it."""
    found = [endpoint.parse(text) for text in more]
    if connection.is_azure:
        return [Endpoint(connection.host), *found]
    local = running.find(data)
    if local is not None and local.service == connection.host:
        address = running.EVERYWHERE.get(local.host, local.host)
        names = (*local.names, local.host)
        # Devices know it by a name, where it has one.
        name = next((one for one in names if not one.replace(".", "").isdigit()), names[0])
        return [Endpoint(name, local.port, address), *found]
    if not found:
        raise OutpostError(
            "Where do the devices connect to? Give it with --endpoint HOST[:PORT]: nothing is sent "
            "before its chain was verified with the new bundle."
        )
    return found


def verified(made: Bundle, seen: Sequence[Seen]) -> list[str]:
    """What there is to say of endpoints; OutpostError where devices would not connect to one."""
    lines = []
    for one in seen:
        if not one.good:
            raise OutpostError(
                f"Version {made.version} would strand the fleet at {one.endpoint}: {one.why} "
                "Nothing was sent."
            )
        names = " and ".join(one.roots)
        lines.append(f"{one.endpoint} is verified with version {made.version}, by {names}.")
        if one.ends is not None:
            days = trustwords.days_until(one.ends)
            if days < trustwords.SOON.days:
                lines.append(f"Note: its chain ends on {one.ends:%Y-%m-%d}, in {days} days.")
    return lines


def recoverable(made: Bundle) -> list[str]:
    """Notes on recovery endpoints that would not help now."""
    lines = []
    for point in made.recovery:
        where = Endpoint(point.host, point.port)
        try:
            why = endpoint.look(where, [point.pin], dated=False).why
        except OutpostError as trouble:
            why = str(trouble)
        if why:
            lines.append(f"Note: the recovery endpoint {where} would not help now: {why}")
    return lines


class Shipment(TrustCargo):
    """A bundle for a fleet: checked, planned, then pushed by rollout.Rollout."""

    def __init__(self, operator: Operator, shelf: Shelf, made: Envelope) -> None:
        self.show: Callable[[dict[str, Any]], None] = lambda event: None
        super().__init__(operator, made, shelf.deliverable(made), self._progressed)
        self._bundle = Bundle.of(made)
        self._operator = operator

    def check(self, where: Sequence[Endpoint], ecc_only: bool = False) -> list[str]:
        try:
            seen = [endpoint.look(one, self._bundle.roots, ecc_only=ecc_only) for one in where]
        except NotAsked as why:
            raise OutpostError(f"{why} Nothing was verified, and nothing was sent.") from None
        lines = verified(self._bundle, seen)
        lines += [f"Note: {line}" for line in trustwords.ending(self._bundle)]
        return lines + recoverable(self._bundle)

    def plan(
        self, ledger: Ledger, only: Sequence[str] | None, first: Sequence[str], sizes: str
    ) -> list[list[str]]:
        """The waves: of a rollout that has begun those that it has, and one for newcomers."""
        return fleetplan.plan(self._operator, ledger, only, first, sizes)

    def begin(self, ledger: Ledger, planned: Sequence[Sequence[str]]) -> None:
        fleetplan.begin(ledger, self, planned)

    def _progressed(self, device_id: str, have: int, size: int) -> None:
        self.show({"event": "bytes", "device": device_id, "have": have, "size": size})
