"""IoT Hub's rate limits, switched off unless a test or a person wants to see throttling.

It owns one bucket for each kind of operation: it fills at the rate of the limit, holds one second's
worth, and who finds it empty is told how long to wait. The figures are those of one unit of S1.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields

from outpost_tools.hub import faults


@dataclass(frozen=True)
class Limits:
    """Operations in a second, for the whole hub; None is without limit."""

    connects: float | None = None
    telemetry: float | None = None
    commands: float | None = None
    methods: float | None = None
    twin_reads: float | None = None
    twin_updates: float | None = None
    registry: float | None = None


# S1 and one unit: connections and telemetry 100/s, commands and registry 100/min, methods
# 160 KB/s in steps of 4 KB, twin reads 100/s, twin updates 50/s.
S1 = Limits(
    connects=100,
    telemetry=100,
    commands=100 / 60,
    methods=40,
    twin_reads=100,
    twin_updates=50,
    registry=100 / 60,
)
BY_NAME = {"off": Limits(), "s1": S1}


class Throttle:
    def __init__(
        self, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self.set(limits or Limits())

    def set(self, limits: Limits) -> None:
        """Other limits from now on; the buckets start full."""
        self.limits = limits
        now = self._clock()
        self._level = {f.name: self._room(f.name) for f in fields(limits)}
        self._at = dict.fromkeys(self._level, now)

    def _room(self, kind: str) -> float:
        rate = getattr(self.limits, kind)
        return 0.0 if rate is None else max(1.0, rate)

    def wait_s(self, kind: str, overdraw: bool = False) -> float:
        """0.0 where the operation may go on now, and it is counted; else how long it must wait.

        With `overdraw` it is counted even so: the caller does wait.
        """
        rate = getattr(self.limits, kind)
        if rate is None:
            return 0.0
        now = self._clock()
        level = min(self._room(kind), self._level[kind] + (now - self._at[kind]) * rate)
        self._at[kind] = now
        if level >= 1.0 or overdraw:
            level -= 1.0
            self._level[kind] = level
            return max(0.0, -level / rate)
        self._level[kind] = level
        return (1.0 - level) / rate

    def check(self, kind: str) -> None:
        """Count one operation, or raise faults.Throttled."""
        if wait_s := self.wait_s(kind):
            raise faults.Throttled(
                f"There are more {kind.replace('_', ' ')} than this hub takes in a second.", wait_s
            )
