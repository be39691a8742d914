"""A trust bundle on its way to a fleet: what a rollout pushes, and how devices tell of it.

A device tells in its reported properties (docs/trust.md): which version it uses, which root carried
its last connection, what became of the last change. It owns nothing; the hub, the local one or a
real IoT Hub alike, has it all.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outpost_tools import delivery
from outpost_tools.bundle import Bundle
from outpost_tools.envelope import Envelope
from outpost_tools.errors import OutpostError
from outpost_tools.operator import NoDevice, Operator
from outpost_tools.rollout import Away, Outcome

NOT_THERE = "(404103)"
IN_USE, ON_TRIAL = "in use", "on trial"
MARK_DIGITS = 16  # of a root's SHA-256, as devices report it
EACH_MAX = 40  # of more devices the twins are asked for all at once


@dataclass(frozen=True)
class Told:
    """What a device reported of its trust; `marked` tells one report from the next."""

    version: int | None = None
    roots: tuple[str, ...] = ()
    anchor: str | None = None
    expires_days: int | None = None
    change_version: int | None = None
    change: str = ""
    marked: str = ""

    @classmethod
    def of(cls, twin: Mapping[str, Any]) -> "Told":
        """Of a twin in IoT Hub's JSON form. A device may lie in it: what has not the form that it
        should have counts as nothing."""
        reported = _in(_in(twin, "properties"), "reported")
        trust = _in(_in(reported, "outpost"), "trust")
        change = _in(trust, "change")
        metadata = _in(_in(_in(reported, "$metadata"), "outpost"), "trust")
        roots = trust.get("roots")
        return cls(
            _number(trust.get("version")),
            tuple(one for one in roots if _hex(one)) if isinstance(roots, list) else (),
            _hex(trust.get("anchor")),
            _number(trust.get("expires_days")),
            _number(change.get("version")),
            _words(change.get("outcome")),
            str(metadata.get("$lastUpdated", "")),
        )


def _in(content: Any, name: str) -> Mapping[str, Any]:
    found = content.get(name) if isinstance(content, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _hex(value: Any) -> str | None:
    return value if isinstance(value, str) and value.isalnum() and len(value) <= 64 else None


def _words(value: Any) -> str:
    return value[:200] if isinstance(value, str) and value.isprintable() else ""


class TrustCargo:
    """One bundle for rollout.Rollout, with the changes of keys before it.

    progress  called with a device's id, how many bytes are there, and how many it will be
    """

    kind = "trust"

    def __init__(
        self,
        operator: Operator,
        made: Envelope,
        data: bytes,
        progress: Callable[[str, int, int], None] | None = None,
        patience_s: float = delivery.PATIENCE_S,
    ) -> None:
        self._operator, self._data, self._version = operator, data, made.version
        roots = Bundle.of(made).roots
        self._marks = {hashlib.sha256(root).hexdigest()[:MARK_DIGITS] for root in roots}
        self.what: Mapping[str, Any] = {
            "version": made.version,
            "sha256": hashlib.sha256(made.head()).hexdigest(),
        }
        self._progress, self._patience_s = progress, patience_s
        self._before: dict[str, str] = {}  # mark of what was reported before it was sent
        self._lock = threading.Lock()

    def push(self, device_id: str) -> Outcome | None:
        try:
            twin = self._operator.twin(device_id)
        except NoDevice:
            raise Away("the hub has no such device any more") from None
        told = Told.of(twin)
        if told.version is not None and told.version >= self._version:
            return self._has(told)
        # The hub's word may be late: it is asked all the same, without a long wait.
        there = twin.get("connectionState") == "Connected"
        invoke = delivery.through(self._operator, device_id, 5 if there else 1)
        try:
            delivery.status(invoke, self.kind)
        except OutpostError as why:
            if str(why).endswith(NOT_THERE):
                raise Away("it is not connected") from None
            raise
        with self._lock:
            self._before[device_id] = told.marked
        answer = self._deliver(device_id, invoke)
        if answer is None:
            return None
        if not answer.taken:
            raise OutpostError(answer.why)
        return Outcome(True) if answer.status == 200 else None

    def _deliver(self, device_id: str, invoke: delivery.Invoke) -> delivery.Delivered | None:
        """What the device said last; None where it has all of it, and its answer was lost."""
        there = [0, 1]

        def progress(have: int, size: int) -> None:
            there[:] = have, size
            if self._progress:
                self._progress(device_id, have, size)

        about = {"version": self._version}
        try:
            return delivery.push(
                invoke,
                self.kind,
                self._data,
                progress,
                about=about,
                patience_s=self._patience_s,
            )
        except OutpostError as why:
            if not str(why).endswith(NOT_THERE):
                raise
        if there[0] < there[1]:
            raise Away("it went away while it was sent")
        return None

    def outcomes(self, device_ids: Sequence[str]) -> Mapping[str, Outcome]:
        found = {}
        for device_id, told in self._told(device_ids).items():
            outcome = self._judge(device_id, told)
            if outcome is not None:
                found[device_id] = outcome
        return found

    def _told(self, device_ids: Sequence[str]) -> dict[str, Told]:
        if len(device_ids) > EACH_MAX:
            wanted = set(device_ids)
            twins = (twin for twin in self._operator.devices() if twin["deviceId"] in wanted)
            return {twin["deviceId"]: Told.of(twin) for twin in twins}
        found = {}
        for one in device_ids:
            with contextlib.suppress(NoDevice):
                found[one] = Told.of(self._operator.twin(one))
        return found

    def _judge(self, device_id: str, told: Told) -> Outcome | None:
        if told.version is not None and told.version >= self._version:
            return self._has(told)
        if told.change_version != self._version or told.change in ("", IN_USE, ON_TRIAL):
            return None
        with self._lock:
            before = self._before.get(device_id)
        if before is None or before == told.marked:
            return None  # that was said of an earlier attempt
        return Outcome(False, f"it went back: {told.change}")

    def _has(self, told: Told) -> Outcome:
        if told.version != self._version:
            return Outcome(True, f"it has a newer one, version {told.version}")
        # Signers who were deceived may have made two of one version.
        if told.roots and set(told.roots) != self._marks:
            return Outcome(False, f"it has another version {self._version}, with other roots")
        return Outcome(True)
