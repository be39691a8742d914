"""The whole walk at once, for `make run`: hub, clock, devices, images, boards, and what they say.

It owns everything it starts and ends all of it, in order, whatever happens. The registry and the
development CA stay in the data folder, so that the second run starts at once; the images are made
anew each time.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpost_tools import console
from outpost_tools.board import LEGS, Board, Line
from outpost_tools.errors import OutpostError
from outpost_tools.hub.faults import ServiceError
from outpost_tools.hub.server import Chain, Event, Hub, in_words
from outpost_tools.image import Library, RecordSize, Settings, build_image
from outpost_tools.partitions import SIZES_MIB
from outpost_tools.paths import binary, write_whole
from outpost_tools.pki import DevCA
from outpost_tools.registry import Registry
from outpost_tools.sntp import SntpServer

DEVICES_MAX = 100
WATCH_S = 0.2
SETTLE_S = 1.0
# What the example main.py is told once it has sent something: a person would type these.
ORDERS = (
    "outpost twin patch {} '{{\"interval\": 1}}'",
    "outpost invoke {} blink 2",
    "outpost send {} 'good morning'",
)
# A stock board has nothing of ours frozen in.
LIBRARY_OF: dict[str, Library] = {"stock32": "flash", "stock-release": "flash"}


@dataclass(frozen=True)
class Plan:
    data: Path
    devices: int = 1
    run_for_s: float | None = None
    record_size: RecordSize = "auto"
    leg: str = "outpost32"
    heapsize: str | None = None
    chain: Chain = "both"
    library: Library | None = None  # where this build has it
    app: Path | None = None
    size_mib: int = SIZES_MIB[0]

    def check(self) -> None:
        if not 1 <= self.devices <= DEVICES_MAX:
            raise OutpostError(f"The demo runs 1 to {DEVICES_MAX} devices, not {self.devices}.")
        if self.run_for_s is not None and not self.run_for_s > 0:
            raise OutpostError("--run-for takes a number of seconds above 0.")
        Settings(record_size=self.record_size).check()
        binary(self.leg)


class Demo:
    """`say` gets every line as it comes, from any thread."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self.plan = plan
        self._say_to = say
        self._lock = threading.Lock()
        self._ended = False
        self.tallies: list[console.Tally] = []
        self.boards: list[Board] = []
        self.obeyed = 0
        self._heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._told: set[str] = set()

    def run(self) -> None:
        """Set up, run, clear up. Ends by itself after `run_for_s`, or when every board is down."""
        self.plan.check()
        with contextlib.ExitStack() as stack:
            self._say(f"making ready in {self.plan.data} ...")
            sntp = stack.enter_context(SntpServer())
            hub = stack.enter_context(
                Hub(self.plan.data, chain=self.plan.chain, on_event=self._hub_says)
            )
            images = self._images(hub.port, sntp.address)
            try:
                for device_id, flash in images:
                    self._start(stack, device_id, flash)
                self._watch(hub)
            finally:
                with self._lock:
                    self._ended = True

    def summary(self) -> dict[str, Any]:
        """What happened, in numbers; `obeyed` counts the orders that devices carried out."""
        tallies = zip(self.tallies, self.boards, strict=True)
        whole = console.together([tally.summary(board.reboots) for tally, board in tallies])
        return whole | {"obeyed": self.obeyed}

    @property
    def acked(self) -> int:
        return sum(tally.acked for tally in self.tallies)

    def _images(self, port: int, sntp_address: str) -> list[tuple[str, Path]]:
        settings = Settings(
            hub="localhost", port=port, sntp=[sntp_address], record_size=self.plan.record_size
        )
        trust = DevCA(self.plan.data).roots_der()
        images = []
        with Registry(self.plan.data) as registry:
            for number in range(1, self.plan.devices + 1):
                device_id = f"demo-{number}"
                device = registry.find(device_id) or registry.add(device_id)
                image = build_image(
                    device,
                    trust,
                    settings,
                    build_time_s=int(time.time()),
                    library=self.plan.library or LIBRARY_OF.get(self.plan.leg, "frozen"),
                    app=self.plan.app,
                    size_mib=self.plan.size_mib,
                )
                flash = self.plan.data / f"{device_id}.bin"
                write_whole(flash, image)
                self._say(f"image of {device_id} is {flash} ({len(image) >> 20} MiB)")
                images.append((device_id, flash))
        return images

    def _start(self, stack: contextlib.ExitStack, device_id: str, flash: Path) -> None:
        tally = console.Tally(device_id)
        prefix = f"{device_id}: " if self.plan.devices > 1 else ""

        def on_line(line: Line) -> None:
            tally.take(line.text)
            self._say(prefix + line.text)

        def on_exit(code: int) -> None:
            self._say(f"{prefix}-- the board's processor stopped with {code}")

        board = Board(
            flash,
            self.plan.leg,
            self.plan.heapsize or LEGS[self.plan.leg],
            on_line=on_line,
            on_exit=on_exit,
        )
        # Its lines stop being shown before it is stopped: what a stopped board prints is noise.
        self.tallies.append(tally)
        self.boards.append(board)
        stack.enter_context(board)

    def _watch(self, hub: Hub) -> None:
        started = time.monotonic()
        while any(board.running for board in self.boards):
            self._give_orders(hub)
            if self.plan.run_for_s is not None:
                left_s = self.plan.run_for_s - (time.monotonic() - started)
                if left_s <= 0:
                    return self._settle()
                time.sleep(min(left_s, WATCH_S))
            else:
                time.sleep(WATCH_S)

    def _give_orders(self, hub: Hub) -> None:
        """To each device that has sent something; an application of the user's gets none."""
        while not self._heard.empty():
            device_id = self._heard.get()
            if self.plan.app is not None or device_id in self._told:
                continue
            self._told.add(device_id)
            core = hub.core
            works = (
                core.twin_patch(device_id, desired={"interval": 1}),
                core.invoke_method(device_id, "blink", 2, 5, 30),
                core.send_command(device_id, b"good morning"),
            )
            for order, work in zip(ORDERS, works, strict=True):
                self._say(f"$ {order.format(device_id)}")
                try:
                    core.wait(work)
                    self.obeyed += 1
                except ServiceError as why:
                    self._say(f"[hub] {device_id} did not obey: {why}")

    def _settle(self) -> None:
        """What is on its way when the time is up may still arrive."""
        until = time.monotonic() + SETTLE_S
        while time.monotonic() < until:
            if all(tally.sent <= tally.acked for tally in self.tallies):
                return
            time.sleep(0.02)

    def _hub_says(self, event: Event) -> None:
        if event["event"] == "telemetry":
            self._heard.put(event["device"])
        self._say(f"[hub] {in_words(event)}")

    def _say(self, text: str) -> None:
        with self._lock:
            if not self._ended:
                self._say_to(text)
