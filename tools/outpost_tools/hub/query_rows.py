"""What a compiled query does with twins: comparing values, choosing, grouping and adding up.

It owns IoT Hub's rules of values: what is not there compares with nothing, and values of two kinds
differ. How a query's text is understood is `query`'s.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Json = Any
Expression = Callable[[Json], Json]


class _Undefined:
    """What a path leads to where there is nothing: no comparison with it holds."""

    def __repr__(self) -> str:
        return "undefined"


UNDEFINED = _Undefined()

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<>": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
TYPE_TESTS: dict[str, Callable[[Any], bool]] = {
    "IS_DEFINED": lambda v: v is not UNDEFINED,
    "IS_NULL": lambda v: v is None,
    "IS_BOOL": lambda v: isinstance(v, bool),
    "IS_NUMBER": lambda v: kind(v) == "number",
    "IS_STRING": lambda v: isinstance(v, str),
    "IS_OBJECT": lambda v: isinstance(v, dict),
    "IS_PRIMITIVE": lambda v: kind(v) in ("number", "text", "truth", "null"),
}
TEXT_TESTS: dict[str, Callable[[str, str], bool]] = {
    "STARTSWITH": lambda text, part: text.startswith(part),
    "ENDSWITH": lambda text, part: text.endswith(part),
    "CONTAINS": lambda text, part: part in text,
}
AGGREGATES = ("COUNT", "SUM", "AVG", "MIN", "MAX")


def kind(value: Any) -> str:
    if value is UNDEFINED:
        return "undefined"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else "object"


def compare(sign: str, left: Any, right: Any) -> bool:
    kinds = {kind(left), kind(right)}
    if "undefined" in kinds:
        return False
    if len(kinds) > 1:
        return sign in ("!=", "<>")
    if sign in ("=", "!=", "<>") or kinds <= {"number", "text"}:
        return COMPARISONS[sign](left, right)
    return False


@dataclass(frozen=True)
class Item:
    name: str
    of: Expression
    aggregate: str = ""


@dataclass(frozen=True)
class Query:
    """A compiled query. `whole` says that it selects twins as they are."""

    items: list[Item]
    where: Expression
    group_by: list[Item]
    top: int | None
    whole: bool

    @property
    def item_type(self) -> str:
        """What IoT Hub's answer says in x-ms-item-type."""
        return "Twin" if self.whole else "Raw"

    @property
    def sums_up(self) -> bool:
        """Whether a row is of many twins: then all of them must be looked at first."""
        return not self.whole and bool(self.group_by or any(i.aggregate for i in self.items))

    def run(self, twins: Iterable[Json]) -> list[Json]:
        if self.sums_up:
            return self._grouped([t for t in twins if self.where(t) is True])[: self.top]
        return [row for _, row in itertools.islice(self.rows(twins), self.top)]

    def rows(self, twins: Iterable[Json]) -> Iterator[tuple[str, Json]]:
        """Device id and row of one twin after the other, for a query that does not sum up."""
        for twin in twins:
            if self.where(twin) is True:
                yield twin.get("deviceId", ""), twin if self.whole else self._row(twin)

    def _row(self, twin: Json) -> Json:
        values = ((item.name, item.of(twin)) for item in self.items)
        return {name: value for name, value in values if value is not UNDEFINED}

    def _grouped(self, twins: list[Json]) -> list[Json]:
        groups: dict[str, list[Json]] = {}
        for twin in twins:
            groups.setdefault(repr([item.of(twin) for item in self.group_by]), []).append(twin)
        if not self.group_by:
            groups.setdefault("[]", [])
        found = []
        for members in groups.values():
            row = {}
            for item in self.items:
                if item.aggregate:
                    row[item.name] = _total(item, members)
                elif members and (value := item.of(members[0])) is not UNDEFINED:
                    row[item.name] = value
            found.append(row)
        return found


def _total(item: Item, members: list[Json]) -> Json:
    if item.aggregate == "COUNT":
        return sum(1 for member in members if item.of(member) is not UNDEFINED)
    values = [value for m in members if kind(value := item.of(m)) == "number"]
    if item.aggregate in ("SUM", "AVG"):
        if not values:
            return 0 if item.aggregate == "SUM" else None
        try:
            total = sum(values)
            found = total if item.aggregate == "SUM" else total / len(values)
            return found if math.isfinite(found) else None
        except OverflowError:  # a whole number that no float holds
            return None
    if not values:
        return None
    return min(values) if item.aggregate == "MIN" else max(values)
