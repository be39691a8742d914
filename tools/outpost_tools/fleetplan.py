"""Whom something new goes to, and in which waves: what every rollout begins with.

It owns nothing; the ledger (waves.py) keeps the plan.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from outpost_tools import waves
from outpost_tools.errors import OutpostError
from outpost_tools.operator import Operator
from outpost_tools.waves import Ledger


class Named(Protocol):
    kind: str
    what: Mapping[str, Any]


def devices(operator: Operator) -> list[str]:
    """Ids of the hub's devices, but for those that are disabled."""
    twins = operator.devices()
    return sorted(twin["deviceId"] for twin in twins if twin.get("status") != "disabled")


def plan(
    operator: Operator,
    ledger: Ledger,
    only: Sequence[str] | None,
    first: Sequence[str],
    sizes: str,
) -> list[list[str]]:
    """The waves: of a rollout that has begun those that it has, then newcomers in waves."""
    there = devices(operator)
    for device_id in (*(only or ()), *first):
        if device_id not in there:
            raise OutpostError(f"The hub has no enabled device {device_id!r}.")
    wanted = list(dict.fromkeys([*first, *(only or there)]))
    if not ledger.begun:
        return waves.plan(wanted, sizes)
    known = {one for wave in ledger.waves for one in wave}
    more = [one for one in wanted if one not in known]
    return [*ledger.waves, *waves.plan(more, sizes)]


def begin(ledger: Ledger, cargo: Named, planned: Sequence[Sequence[str]]) -> None:
    """Put the plan into the ledger, as far as it is not there."""
    if not ledger.begun:
        ledger.begin(cargo.kind, cargo.what, planned)
    ledger.check(cargo.kind, cargo.what)
    for wave in planned[len(ledger.waves) :]:
        ledger.add(wave)
