"""Bring a file to a device: piece by piece, through direct methods, on any hub.

It owns nothing: the pieces lie on the device, and a push that was cut off (here, there or in
between) goes on where they end. What the device makes of the file is its answer to the last call.
"""

import base64
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from outpost_tools import agreed
from outpost_tools.errors import HubTrouble, OutpostError
from outpost_tools.operator import Operator

PATIENCE_S = 120.0  # without a single call that was answered
ANSWER_S = 60
BEGINNINGS = 5
LEAST_PIECE = 256
WORDS_MAX = 200
# Of an Operator's sentences: the device may come back, the hub may have time again.
PASSING = ("(404103)", "(504101)", "(429)")

Invoke = Callable[[str, Any], tuple[int, Any]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Delivered:
    """What the device said last: its handler's answer, or why it takes no such file."""

    status: int
    result: Any = None

    @property
    def taken(self) -> bool:
        return self.status < 300

    @property
    def why(self) -> str:
        """In the device's words, which are shown and kept: a line, and no play with terminals."""
        said = self.result.get("error") if isinstance(self.result, Mapping) else None
        words = (
            "".join(c if c.isprintable() else "?" for c in said) if isinstance(said, str) else ""
        )
        return words[:WORDS_MAX] or f"the device answers {self.status}"


def through(operator: Operator, device_id: str, connect_s: int = 5) -> Invoke:
    """A way to call one device's methods, for `push`."""

    def invoke(method: str, payload: Any) -> tuple[int, Any]:
        return operator.invoke(device_id, method, payload, ANSWER_S, connect_s)

    return invoke


def push(
    invoke: Invoke,
    kind: str,
    data: bytes,
    progress: Progress | None = None,
    *,
    about: Mapping[str, Any] | None = None,
    patience_s: float = PATIENCE_S,
    pause: Callable[[float], None] = time.sleep,
) -> Delivered:
    """Deliver `data` as a file of that kind; OutpostError where the device cannot be reached.

    about     what else the device is told before the first piece, such as {"version": 7}
    progress  called with how many bytes are there, and how many it will be
    """
    return _Push(invoke, kind, data, progress, dict(about or {}), patience_s, pause).run()


def status(invoke: Invoke, kind: str) -> dict[str, Any]:
    """What a device has of a file of that kind: have, size, sha256, max and last."""
    code, result = invoke(agreed.DELIVERY_METHOD, {"kind": kind, "op": "status"})
    if code != 200 or not isinstance(result, dict):
        raise OutpostError(f"The device does not say: {Delivered(code, result).why}.")
    return result


@dataclass
class _Push:
    invoke: Invoke
    kind: str
    data: bytes
    progress: Progress | None
    about: dict[str, Any]
    patience_s: float
    pause: Callable[[float], None]

    def __post_init__(self) -> None:
        self.sha256 = hashlib.sha256(self.data).hexdigest()
        self.step = agreed.DELIVERY_PIECE_BYTES

    def run(self) -> Delivered:
        # Begun anew only where another file came in between, or what lies there is damaged.
        for _ in range(BEGINNINGS):
            answer = self._begin()
            have = _have(answer)
            if answer.status != 200 or have is None:
                return answer  # refused, or not needed
            refused = self._pieces(have)
            if refused:
                return refused
            answer = self._call("commit")
            if answer.status not in (409, 422) or _have(answer) is None:
                break
        return answer

    def _pieces(self, have: int) -> Delivered | None:
        """All that is not there. What the device said where it takes no more; None: go on."""
        while have < len(self.data):
            self._show(have)
            answer = self._write(have)
            there = _have(answer)
            if answer.status == 409 and there is not None:
                return None
            if answer.status == 413 and self.step > LEAST_PIECE:
                self.step //= 2  # it is short of memory just now
                continue
            if answer.status != 200 or there is None or there <= have:
                return answer
            have = there
        self._show(have)
        return None

    def _begin(self) -> Delivered:
        # A long text that comes last is taken for data.
        return self._call("begin", **self.about, size=len(self.data))

    def _write(self, at: int) -> Delivered:
        piece = base64.b64encode(self.data[at : at + self.step]).decode()
        # The data last: the device then decodes them where they lie.
        return self._call("write", at=at, data=piece)

    def _call(self, op: str, **more: Any) -> Delivered:
        call = {"kind": self.kind, "op": op, "sha256": self.sha256, **more}
        ends = time.monotonic() + self.patience_s
        while True:
            wait_s = 1.0
            try:
                answer = Delivered(*self.invoke(agreed.DELIVERY_METHOD, call))
                wait_s = _wait_s(answer)
                if not 0 < wait_s < ends - time.monotonic():
                    return answer
            except OutpostError as why:
                passing = isinstance(why, HubTrouble) or str(why).endswith(PASSING)
                if not passing or time.monotonic() >= ends:
                    raise
            self.pause(wait_s)

    def _show(self, have: int) -> None:
        if self.progress:
            self.progress(have, len(self.data))


def _wait_s(answer: Delivered) -> float:
    """After how long the device is to be asked again, where it says so; else 0."""
    if answer.status != 429 or not isinstance(answer.result, Mapping):
        return 0
    wait_s = answer.result.get("retry_s")
    return wait_s if isinstance(wait_s, int) else 0


def _have(answer: Delivered) -> int | None:
    have = answer.result.get("have") if isinstance(answer.result, Mapping) else None
    return have if isinstance(have, int) else None
