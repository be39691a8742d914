"""A rollout on the terminal: one bar, and a line for each wave and for each trouble.

It owns the bar on stderr while it lasts; where stderr is no terminal, lines alone are printed.
"""

import threading
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from outpost_tools.waves import DONE, FAILED


def count(devices: int) -> str:
    return "1 device" if devices == 1 else f"{devices} devices"


class Bar:
    """`with Bar(devices) as tell:` - tell is what rollout.Rollout tells its events."""

    def __init__(self, devices: int, quiet: bool = False) -> None:
        console = Console(stderr=True, quiet=quiet)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("devices", total=devices)
        self._settled: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, event: dict[str, Any]) -> None:
        with self._lock:
            getattr(self, f"_{event['event']}")(event)

    def _wave(self, event: dict[str, Any]) -> None:
        text = f"wave {event['number']} of {event['of']}"
        self._bar.update(self._task, description=text)
        self._say(f"{text}: {count(event['devices'])}")

    def _device(self, event: dict[str, Any]) -> None:
        device_id, state, why = event["device"], event["state"], event["why"]
        if state in (DONE, FAILED):
            self._settled.add(device_id)
        else:
            self._settled.discard(device_id)
        self._bar.update(self._task, completed=len(self._settled))
        if why:
            self._say(f"{device_id}: {state}, {why}")

    def _bytes(self, event: dict[str, Any]) -> None:
        text = f"{event['device']}: {event['have']} of {event['size']} bytes"
        self._bar.update(self._task, description=text)

    def _pause(self, event: dict[str, Any]) -> None:
        self._say(f"pause of {event['seconds']:.0f} s before the next wave")

    def _trouble(self, event: dict[str, Any]) -> None:
        self._say(f"{event['why']} Waiting.")

    def _ending(self, _event: dict[str, Any]) -> None:
        self._say("stopping: who is being sent it gets the whole of it, and nobody else")

    def _stopped(self, event: dict[str, Any]) -> None:
        self._say(f"stopped: {event['why']}")

    def _say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
