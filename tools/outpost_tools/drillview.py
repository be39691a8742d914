"""The drill on the terminal: what has been done, and a line for each device as it is now.

It owns the live picture while it lasts; where stdout is no terminal it prints phases and steps as
lines, and the devices once, at the end.
"""

import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from outpost_tools.drill import Drill

STEPS_SHOWN = 12
WORD_CHARS = 48


class View:
    """`with View() as view: drill = Drill(plan, view); view.drill = drill; drill.run()`."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(quiet=quiet)
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._began = time.monotonic()
        self._title = ""
        self._steps: list[str] = []
        self.drill: Drill | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "phase":
            self._title = event["title"]
            self._steps.append(f"[{self._clock()}] {self._title}")
            self._line(f"\n[{self._clock()}] {self._title}", bold=True)
        elif kind == "step":
            self._steps.append(f"{'':9}{event['text']}")
            self._line(f"{'':9}{event['text']}")
        if self._console.is_terminal:
            self._live.update(self._picture(), refresh=True)
        elif kind == "end":
            self._console.print(self.devices())

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self._began)
        return f"{seconds // 60}:{seconds % 60:02}"

    def _line(self, text: str, bold: bool = False) -> None:
        if not self._console.is_terminal:
            self._console.print(Text(text), highlight=False, soft_wrap=True)

    def _picture(self) -> RenderableType:
        steps = Text("\n".join(self._steps[-STEPS_SHOWN:]), overflow="ellipsis", no_wrap=True)
        return Group(steps, self.devices())

    def devices(self) -> RenderableType:
        """A line for each device."""
        table = Table()
        for title in ("device", "hub", "bundle", "root", "messages", "missing"):
            table.add_column(title, no_wrap=True)
        table.add_column("what it said last")  # where it is narrow, this one gives way
        drill = self.drill
        world = getattr(drill, "world", None)
        if drill is None or world is None:
            return table
        for member in world.members.values():
            told = member.told
            table.add_row(
                member.device_id,
                Text("connected", "green") if member.connected else Text("away", "red"),
                "" if told.version is None else str(told.version),
                drill.root_of(told.anchor),
                str(member.messages),
                str(member.lost or ""),
                Text(member.word[:WORD_CHARS], no_wrap=True, overflow="ellipsis"),
            )
        return table

    def __enter__(self) -> "View":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()
