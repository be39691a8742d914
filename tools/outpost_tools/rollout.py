"""Something new for a whole fleet, in waves: it stops where things go wrong, and can be resumed.

It knows nothing of what is rolled out: a Cargo pushes it to one device and says later what each
device made of it (trust bundles: trustcargo.py). It owns the order of things and writes each step
into the ledger (waves.py) before it goes on. A device that is not connected is no failure: it is
left for the next run. A device that took it and then was not heard of is one. Trouble with the hub
itself ends the run and says nothing of any device.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from outpost_tools.errors import HubTrouble, OutpostError
from outpost_tools.waves import AWAY, DONE, FAILED, SENT, WAITING, Ledger

PARALLEL = 8
PATIENCE_S = 300.0
POLL_S = 2.0


class Away(OutpostError):
    """The device cannot be reached just now. Nothing can be said of it."""


@dataclass(frozen=True)
class Outcome:
    """What a device made of it: `good` where it has it and works with it."""

    good: bool
    why: str = ""


class Cargo(Protocol):
    """What is rolled out.

    kind, what   name it, e.g. "trust" and {"version": 5, "sha256": ...}: plain data for the ledger
    """

    kind: str
    what: Mapping[str, Any]

    def push(self, device_id: str) -> Outcome | None:
        """Give it to one device. An Outcome where that is clear at once (it has it already, it
        refuses it), None where it will tell. Raises Away, HubTrouble; another OutpostError is a
        failure."""

    def outcomes(self, device_ids: Sequence[str]) -> Mapping[str, Outcome]:
        """What has become clear of these devices since; those without news are left out."""


@dataclass(frozen=True)
class Limits:
    """failures   so many are borne; one more stops the rollout
    patience_s  for so long a device may say nothing after it was sent
    pause_s     between two waves
    """

    failures: int = 0
    patience_s: float = PATIENCE_S
    pause_s: float = 0.0
    parallel: int = PARALLEL
    poll_s: float = POLL_S


class Rollout:
    """`Rollout(ledger, cargo, limits, tell).run()`; the ledger is held and has been begun.

    tell  gets what happens as plain data: {"event": "wave", "number", "of", "devices"},
          {"event": "device", "device", "state", "why"}, {"event": "pause", "seconds"},
          {"event": "trouble", "why"}, {"event": "ending"} after a Ctrl-C, {"event": "stopped",
          "why"}; from any thread
    """

    def __init__(
        self,
        ledger: Ledger,
        cargo: Cargo,
        limits: Limits | None = None,
        tell: Callable[[dict[str, Any]], None] = lambda event: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        ledger.check(cargo.kind, cargo.what)
        self.ledger, self._cargo, self._limits = ledger, cargo, limits or Limits()
        self._tell, self._sleep = tell, sleep

    def run(self, retry: bool = False) -> bool:
        """On from where it stands; True when every device that could be reached has it.

        retry  gives those that failed another try; else they count against the limit
        """
        self._forgive(retry)
        paused = True
        for number, wave in enumerate(self.ledger.waves, 1):
            if self._too_many():
                return self._stopped()
            todo = self.ledger.in_state(WAITING, SENT, AWAY, among=wave)
            if not todo:
                continue
            if not paused:
                self._tell({"event": "pause", "seconds": self._limits.pause_s})
                self._sleep(self._limits.pause_s)
            self._tell(
                {
                    "event": "wave",
                    "number": number,
                    "of": len(self.ledger.waves),
                    "devices": len(todo),
                }
            )
            self._wave(todo)
            paused = not self._limits.pause_s or not self.ledger.in_state(DONE, FAILED, among=todo)
        return self._stopped() if self._too_many() else not self.ledger.in_state(FAILED)

    def _forgive(self, all_of_them: bool) -> None:
        """Who was given up and has it after all has not failed."""
        failed = self.ledger.in_state(FAILED)
        heard = self._cargo.outcomes(failed) if failed else {}
        for device_id in failed:
            if device_id in heard and heard[device_id].good:
                self._judge(device_id, heard[device_id])
            elif all_of_them:
                self._set(device_id, WAITING)

    # One wave

    def _wave(self, todo: Sequence[str]) -> None:
        """Everyone in it gets it and is heard of, or the limit of failures is reached."""
        # Sent in a run that was killed: it may have told since, and is not sent it twice.
        self._hear(self.ledger.in_state(SENT, among=todo))
        pool = ThreadPoolExecutor(self._limits.parallel, "rollout")
        try:
            for job in [pool.submit(self._push, one) for one in todo]:
                job.result()
        except KeyboardInterrupt:
            self._tell({"event": "ending"})
            raise
        finally:
            # A Ctrl-C above all: whoever is being sent it gets it whole, and nobody else.
            pool.shutdown(cancel_futures=True)
        self._listen(todo)

    def _push(self, device_id: str) -> None:
        if self._too_many() or self.ledger.state(device_id) in (DONE, FAILED):
            return
        try:
            outcome = self._cargo.push(device_id)
        except Away as why:
            self._set(device_id, AWAY, str(why))
        except HubTrouble:
            raise
        except OutpostError as why:
            self._set(device_id, FAILED, str(why))
        else:
            if outcome is None:
                self._set(device_id, SENT)
            else:
                self._judge(device_id, outcome)

    def _listen(self, wave: Sequence[str]) -> None:
        """Wait for what those who were sent it say; who says nothing in time has failed."""
        ends = time.monotonic() + self._limits.patience_s
        trouble = None
        while waiting := self.ledger.in_state(SENT, among=wave):
            try:
                self._hear(waiting)
                trouble = None
            except HubTrouble as why:
                if trouble is None:
                    self._tell({"event": "trouble", "why": str(why)})
                trouble = why
            if not (waiting := self.ledger.in_state(SENT, among=wave)):
                return
            if time.monotonic() >= ends:
                if trouble:
                    raise trouble
                for device_id in waiting:
                    why = f"it was not heard of within {self._limits.patience_s:.0f} s"
                    self._set(device_id, FAILED, why)
                return
            # A hub is asked for a whole fleet less often: the real one counts its queries.
            self._sleep(self._limits.poll_s * (1 + len(waiting) // 100))

    def _hear(self, device_ids: Sequence[str]) -> None:
        if device_ids:
            for device_id, outcome in self._cargo.outcomes(device_ids).items():
                self._judge(device_id, outcome)

    def _judge(self, device_id: str, outcome: Outcome) -> None:
        self._set(device_id, DONE if outcome.good else FAILED, outcome.why)

    def _set(self, device_id: str, state: str, why: str = "") -> None:
        self.ledger.set(device_id, state, why, at_s=int(time.time()))
        self._tell({"event": "device", "device": device_id, "state": state, "why": why})

    # The limit

    def _too_many(self) -> bool:
        return self.ledger.counts()[FAILED] > self._limits.failures

    def _stopped(self) -> bool:
        failed = self.ledger.in_state(FAILED)
        why = f"{len(failed)} failed, and {self._limits.failures} are borne: nobody else is sent it"
        self._tell({"event": "stopped", "why": why})
        return False
