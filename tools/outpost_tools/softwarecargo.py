"""Software on its way to a fleet: what a rollout pushes, and how devices tell of it.

A device tells in its reported properties (docs/updates.md): which version it runs, and how the
last trial ended. It owns nothing; the hub, the local one or a real IoT Hub alike, has it all.
"""

import base64
import contextlib
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outpost_tools import agreed, delivery
from outpost_tools.errors import OutpostError
from outpost_tools.operator import NoDevice, Operator
from outpost_tools.rollout import Away, Outcome
from outpost_tools.software import Software

NOT_THERE = "(404103)"
# A device that restarts for the trial goes away with the answer half said.
LOST = ("(404103)", "(504101)")
KEPT = agreed.APP_OUTCOMES[1]
EACH_MAX = 40  # of more devices the twins are asked for all at once


@dataclass(frozen=True)
class Told:
    """What a device reported of its software; `trial` numbers the trials that it has had."""

    version: int | None = None
    firmware: int | None = None
    slot: str = ""
    change_version: int | None = None
    change: str = ""
    kind: str = ""
    trial: int = 0

    @classmethod
    def of(cls, twin: Mapping[str, Any]) -> "Told":
        """Of a twin in IoT Hub's JSON form. A device may lie in it: what has not the form that it
        should have counts as nothing."""
        found: Any = twin
        for name in ("properties", "reported", "outpost", "software"):
            found = found.get(name) if isinstance(found, Mapping) else None
        found = found if isinstance(found, Mapping) else {}
        change = found.get("change")
        change = change if isinstance(change, Mapping) else {}
        return cls(
            _number(found.get("version")),
            _number(found.get("firmware")),
            _words(found.get("slot")),
            _number(change.get("version")),
            _words(change.get("outcome")),
            _words(change.get("kind")),
            _number(change.get("trial")) or 0,
        )

    def has(self, kind: str) -> int | None:
        return self.firmware if kind == agreed.FIRMWARE_KIND else self.version


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _words(value: Any) -> str:
    return value[:200] if isinstance(value, str) and value.isprintable() else ""


class SoftwareCargo:
    """One package, or one firmware with its record, for rollout.Rollout.

    image     of a firmware: its bytes
    progress  called with a device's id, how many bytes are there, and how many it will be
    """

    def __init__(
        self,
        operator: Operator,
        made: Software,
        image: bytes | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        patience_s: float = delivery.PATIENCE_S,
    ) -> None:
        self.kind = made.kind
        self._operator, self._version = operator, made.version
        self._data = made.encode() if image is None else image
        signed = {} if image is None else {"signed": base64.b64encode(made.encode()).decode()}
        self._about = {"version": made.version, **signed}
        self.what: Mapping[str, Any] = {
            "version": made.version,
            "sha256": hashlib.sha256(made.envelope.head()).hexdigest(),
        }
        self._progress, self._patience_s = progress, patience_s
        self._before: dict[str, int] = {}  # the device's number of trials before it was sent
        self._lock = threading.Lock()

    def push(self, device_id: str) -> Outcome | None:
        try:
            told = Told.of(self._operator.twin(device_id))
        except NoDevice:
            raise Away("the hub has no such device any more") from None
        if self._good(told):
            return self._has(told)
        invoke = delivery.through(self._operator, device_id)
        try:
            delivery.status(invoke, self.kind)
        except OutpostError as why:
            if str(why).endswith(NOT_THERE):
                raise Away("it is not connected") from None
            raise
        with self._lock:
            self._before[device_id] = told.trial
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

        try:
            return delivery.push(
                invoke,
                self.kind,
                self._data,
                progress,
                about=self._about,
                patience_s=self._patience_s,
            )
        except OutpostError as why:
            if not str(why).endswith(LOST):
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
        if self._good(told):
            return self._has(told)
        about = (told.kind, told.change_version)
        if about != (self.kind, self._version) or told.change in ("", KEPT):
            return None
        with self._lock:
            before = self._before.get(device_id)
        if before is None or told.trial <= before:
            return None  # that was said of an earlier trial
        return Outcome(False, f"it went back: {told.change}")

    def _good(self, told: Told) -> bool:
        version = told.has(self.kind)
        return version is not None and version >= self._version

    def _has(self, told: Told) -> Outcome:
        version = told.has(self.kind)
        newer = "" if version == self._version else f"it has a newer one, version {version}"
        return Outcome(True, newer)
