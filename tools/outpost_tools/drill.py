"""The drill: a fleet changes its root and strands nobody; then a bad bundle; then the emergency.

It owns the order of things and judges each step by what the hub and the devices say; a step that
does not come out as it should ends the drill with a sentence. The parts are drillworld.py's, the
picture is drillview.py's. Nothing of it touches a real fleet: all of it is on loopback.
"""

import datetime as dt
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpost_tools import endpoint
from outpost_tools.bundle import Bundle
from outpost_tools.bundle import Endpoint as Recovery
from outpost_tools.bundleserver import BundleServer, of_mapping, recovery_path
from outpost_tools.drillworld import DrillWorld
from outpost_tools.envelope import Envelope
from outpost_tools.errors import OutpostError
from outpost_tools.hub.tls import server_context
from outpost_tools.pki import DevCA
from outpost_tools.progress import count
from outpost_tools.rollout import Limits, Rollout
from outpost_tools.trustplan import Shipment, verified
from outpost_tools.waves import DONE, FAILED, Ledger, plan

PATIENCE_S = 120.0
LOOK_S = 0.5
YEARS_LATER_S = 500 * 86400
SHORT_LIFE_DAYS = 400  # of root B, which will have expired by then
DEVICES_MAX = 50


@dataclass(frozen=True)
class Plan:
    """patience_s  how long a step may take before the drill has failed
    pace_s      how long to stay after each phase, for who watches
    """

    folder: Path
    devices: int = 10
    leg: str = "outpost32"
    waves: str = "1,30%"
    patience_s: float = PATIENCE_S
    pace_s: float = 0.0

    def check(self) -> None:
        if not 1 <= self.devices <= DEVICES_MAX:
            raise OutpostError(f"The drill takes 1 to {DEVICES_MAX} devices, not {self.devices}.")


class DrillFailed(OutpostError):
    """A step did not come out as it should."""


class Drill:
    """`Drill(plan, tell).run()`.

    tell  gets what happens, as plain data: {"event": "phase", "title"}, {"event": "step", "text"},
          {"event": "look"} whenever what is known of the devices is new, and {"event": "end"}
    """

    def __init__(self, plan: Plan, tell: Callable[[dict[str, Any]], None]) -> None:
        plan.check()
        self.plan, self._tell = plan, tell
        self.world: DrillWorld
        self.root_names: dict[str, str] = {}
        self._files: dict[str, bytes] = {}  # at the recovery endpoint
        self._phases = 0
        self._began = time.monotonic()

    def run(self) -> dict[str, Any]:
        """The whole of it; gives the figures. DrillFailed says which step went wrong."""
        with DrillWorld(self.plan.folder, self.plan.devices, self.plan.leg) as self.world:
            a, b, c = self._authorities()
            # Known by its pin, whatever becomes of the other roots.
            pinned = self.world.authority("Recovery")
            files = of_mapping(self._files)
            with BundleServer(files, server_context([self.world.leaf(pinned)])) as server:
                point = Recovery("localhost", server.port, self.world.root(pinned))
                self._fleet_under(a, point)
                self._over_to(a, b)
                self._misspelt(b)
                self._emergency(b, c)
                return self._end()

    def _authorities(self) -> tuple[DevCA, DevCA, DevCA]:
        made = (
            self.world.authority("A"),
            self.world.authority("B", SHORT_LIFE_DAYS),
            self.world.authority("C"),
        )
        for ca, name in zip(made, "ABC", strict=True):
            self.root_names[_mark(self.world.root(ca))] = name
        return made

    # The phases

    def _fleet_under(self, a: DevCA, recovery: Recovery) -> None:
        self._phase(f"{count(self.plan.devices)} under root A")
        self.world.open_hub(a)
        first = self.world.first([self.world.root(a)], [recovery])
        self.world.build(first)
        self.world.power_on()
        self._all_connected("all are connected, and send a message each second")

    def _over_to(self, a: DevCA, b: DevCA) -> None:
        root_a, root_b = self.world.root(a), self.world.root(b)
        self._phase("the bundle with A and B goes out in waves, telemetry goes on")
        both = self.world.next([root_a, root_b])
        self._roll_out(both)
        self._phase("the hub moves to root B")
        self.world.move_hub(b)
        self._all_connected("all came back, under root B", _mark(root_b))
        self._phase("root A is removed, in waves")
        alone = self.world.next([root_b])
        self._roll_out(alone)
        self._all_connected("all are connected, and none knows root A any more", _mark(root_b))
        self._none_lost()

    def _misspelt(self, b: DevCA) -> None:
        self._phase("a bad bundle: B misspelt (its name, another key)")
        other = self.world.root(DevCA(self.plan.folder / "misspelt", ("ecdsa",), "B"))
        bad = self.world.next([other])
        try:
            verified(Bundle.of(bad), [endpoint.look(self.world.listener, [other])])
        except OutpostError as why:
            self._step(f"`outpost trust rollout` refuses: {why}")
        else:
            raise DrillFailed("The misspelt bundle was not found out before it was sent.")
        self._step("it is sent all the same, to every device at once")
        counts = self._rollout(bad, "100%", failures=self.plan.devices)
        if counts[FAILED] != self.plan.devices:
            raise DrillFailed(f"Of the misspelt bundle the devices say: {counts}.")
        self._all_connected("every device tried it, and went back", _mark(self.world.root(b)))
        self._none_lost()

    def _emergency(self, b: DevCA, c: DevCA) -> None:
        self._phase("the emergency: B expires before there is another bundle")
        self.world.tally(quiet=False)
        self.world.power_off()
        self.world.sntp.offset_s = YEARS_LATER_S
        long = _later(YEARS_LATER_S + 400 * 86400)
        self.world.move_hub(b, long)
        self._step("power off; 500 days later root B has expired, and the power is back")
        self.world.power_on()
        self._until(
            lambda: self._refused() == self.plan.devices,
            lambda: f"{self._refused()} of {self.plan.devices} devices refuse the expired root",
        )
        self.world.look()
        if self.world.connected:
            raise DrillFailed("A device took an expired root.")
        self._step("every device refuses the hub: its root has expired")
        self.world.move_hub(c, long)
        rescue = self.world.next([self.world.root(c)])
        self._files[recovery_path(self.world.fleet)] = self.world.shelf.deliverable(rescue)
        self._step("the hub has moved to root C; a bundle lies at the recovery endpoint")
        self._all_connected(
            "all came back through the recovery endpoint", _mark(self.world.root(c)), rescue.version
        )

    def _end(self) -> dict[str, Any]:
        self._none_lost(quiet=True)
        world = self.world
        seconds = round(time.monotonic() - self._began)
        self._phase(
            f"all {world.connected} devices are connected, {world.messages} messages arrived, "
            f"{world.lost} lost, in {seconds} s"
        )
        self._tell({"event": "end"})
        return {
            "devices": self.plan.devices,
            "connected": world.connected,
            "messages": world.messages,
            "lost": world.lost,
            "versions": sorted({m.told.version for m in world.members.values()}),
            "roots": sorted({self.root_of(m.told.anchor) for m in world.members.values()}),
            "seconds": seconds,
        }

    # Rollouts

    def _roll_out(self, made: Envelope) -> None:
        shipment = Shipment(self.world.operator, self.world.shelf, made)
        for line in shipment.check([self.world.listener]):
            self._step(line)
        counts = self._rollout(made, self.plan.waves)
        if counts[DONE] != self.plan.devices:
            raise DrillFailed(f"Version {made.version} did not reach everyone: {counts}.")

    def _rollout(self, made: Envelope, sizes: str, failures: int = 0) -> dict[str, int]:
        shipment = Shipment(self.world.operator, self.world.shelf, made)
        ledger = Ledger(self.plan.folder / f"rollout-{made.version}.jsonl")
        limits = Limits(failures, self.plan.patience_s, parallel=4, poll_s=LOOK_S)

        def tell(event: dict[str, Any]) -> None:
            if event["event"] == "wave":
                self._step(
                    f"version {made.version}, wave {event['number']} of {event['of']}: "
                    f"{count(event['devices'])}"
                )

        def sleep(seconds: float) -> None:
            self._look()
            time.sleep(seconds)

        with ledger.held():
            ledger.begin(shipment.kind, shipment.what, plan(list(self.world.members), sizes))
            Rollout(ledger, shipment, limits, tell, sleep).run()
        self._look()
        return ledger.counts()

    # Judging

    def root_of(self, mark: str | None) -> str:
        return self.root_names.get((mark or "")[:16], mark or "")

    def _all_connected(self, words: str, root: str = "", version: int | None = None) -> None:
        def there() -> int:
            return sum(
                member.connected
                and bool(member.messages)
                and (not root or (member.told.anchor or "").startswith(root))
                and (version is None or member.told.version == version)
                for member in self.world.members.values()
            )

        self._until(
            lambda: there() == self.plan.devices,
            lambda: f"{there()} of {self.plan.devices} devices are where they should be",
        )
        self._step(words)

    def _refused(self) -> int:
        return sum("expired" in member.word for member in self.world.members.values())

    def _none_lost(self, quiet: bool = False) -> None:
        """Everything that the devices have accepted so far arrives."""
        self.world.tally(quiet)
        self._until(lambda: not self.world.lost, lambda: f"{self.world.lost} messages are missing")
        self._step(f"{self.world.messages} messages arrived, none is lost")

    def _until(self, done: Callable[[], bool], state: Callable[[], str]) -> None:
        ends = time.monotonic() + self.plan.patience_s
        while True:
            self._look()
            if done():
                return
            if time.monotonic() > ends:
                raise DrillFailed(
                    f"The drill failed: after {self.plan.patience_s:.0f} s {state()}. What the "
                    f"boards said is in {self.plan.folder}."
                )
            time.sleep(LOOK_S)

    def _look(self) -> None:
        self.world.look()
        self._tell({"event": "look"})

    def _phase(self, title: str) -> None:
        ends = time.monotonic() + self.plan.pace_s
        while self._phases and time.monotonic() < ends:
            self._look()
            time.sleep(LOOK_S)
        self._phases += 1
        self._tell({"event": "phase", "title": title})

    def _step(self, text: str) -> None:
        self._tell({"event": "step", "text": text})


def _mark(root: bytes) -> str:
    return hashlib.sha256(root).hexdigest()[:16]


def _later(seconds: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=seconds)
