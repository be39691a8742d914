"""What a bench topic answers: tables, and how they are shown.

It owns the layout alone: on the terminal by rich, in docs/numbers.md as Markdown. It never
judges a figure: a bench has no pass and no fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import rich.table


@dataclass
class Table:
    """`columns` and `rows` of text or numbers; the first column is a name."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        self.rows.append(cells)

    def for_terminal(self) -> rich.table.Table:
        shown = rich.table.Table(
            title=self.title, title_justify="left", caption=" ".join(self.notes)
        )
        for at, column in enumerate(self.columns):
            shown.add_column(column, justify="left" if at == 0 else "right")
        for row in self.rows:
            shown.add_row(*(text(cell) for cell in row))
        return shown

    def as_markdown(self) -> str:
        lines = [f"## {self.title}", ""]
        lines.append("| " + " | ".join(self.columns) + " |")
        lines.append("| --- |" + " ---: |" * (len(self.columns) - 1))
        lines += ["| " + " | ".join(text(cell) for cell in row) + " |" for row in self.rows]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines) + "\n"


def text(cell: object) -> str:
    if isinstance(cell, bool) or cell is None:
        return "none" if cell is None else str(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:.2f}"
    return str(cell)
