"""IoT Hub's query language over device twins: the part of it that the local hub understands.

    SELECT [TOP n] * | item, ... FROM devices [WHERE condition] [GROUP BY path, ...]

An item is a path, or COUNT(), SUM, AVG, MIN, MAX of a path, each with `AS name`. A condition has
= != <> < <= > >=, IN [..], NIN [..], AND, OR, NOT, parentheses, and is_defined, is_null, is_bool,
is_number, is_string, is_object, startswith, endswith, contains. It owns no state; a query is
compiled once and then run over twins in their JSON form.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from outpost_tools.hub.faults import ArgumentInvalid
from outpost_tools.hub.query_rows import (
    AGGREGATES,
    COMPARISONS,
    TEXT_TESTS,
    TYPE_TESTS,
    UNDEFINED,
    Expression,
    Item,
    Json,
    Query,
    compare,
)

LENGTH_MAX = 8192
DEPTH_MAX = 32

TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
    | (?P<text>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.)*")
    | (?P<name>[A-Za-z_$][A-Za-z0-9_$]*)
    | (?P<sign><=|>=|<>|!=|[=<>(),.*\[\]])
    )""",
    re.VERBOSE,
)
KEYWORDS = frozenset(
    "SELECT TOP FROM WHERE GROUP BY AND OR NOT IN NIN AS TRUE FALSE NULL ORDER".split()
)


def compile_query(text: object) -> Query:
    """Understand a query, or raise ArgumentInvalid with a sentence that says where it fails."""
    if not isinstance(text, str) or not text.strip() or len(text) > LENGTH_MAX:
        raise ArgumentInvalid(f"A query is a text of 1 to {LENGTH_MAX} characters.")
    return _Parser(text).query()


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        text = text.rstrip()
        while at < len(text):
            match = TOKEN.match(text, at)
            if match is None:
                raise ArgumentInvalid(f"The query cannot be read at character {at + 1}.")
            kind = match.lastgroup or ""
            value = match.group(kind)
            if kind == "name" and value.upper() in KEYWORDS:
                kind, value = "word", value.upper()
            self._tokens.append((kind, value))
            at = match.end()
        self._at = 0
        self._depth = 0

    def query(self) -> Query:
        self._need("SELECT")
        top = None
        if self._take("TOP"):
            top = self._whole_number()
        whole = self._take("*")
        items = [] if whole else self._list(self._item)
        self._need("FROM")
        if self._name().lower() != "devices" or self._peek() == ("sign", "."):
            raise ArgumentInvalid("This hub answers queries FROM devices only.")
        where: Expression = lambda twin: True  # noqa: E731
        if self._take("WHERE"):
            where = self._either()
        group_by: list[Item] = []
        if self._take("GROUP"):
            self._need("BY")
            group_by = self._list(self._item)
        if self._at < len(self._tokens):
            raise ArgumentInvalid(f"The query has {self._peek()[1]!r} where it should end.")
        if whole and group_by:
            raise ArgumentInvalid("A query with GROUP BY selects items, not *.")
        return Query(items, where, group_by, top, whole)

    # Tokens

    def _peek(self, ahead: int = 0) -> tuple[str, str]:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else ("end", "its end")

    def _next(self) -> tuple[str, str]:
        token = self._peek()
        self._at += 1
        return token

    def _take(self, value: str) -> bool:
        kind, found = self._peek()
        if kind in ("word", "sign") and found == value:
            self._at += 1
            return True
        return False

    def _need(self, value: str) -> None:
        if not self._take(value):
            raise ArgumentInvalid(f"The query has {self._peek()[1]!r} where {value} should be.")

    def _name(self) -> str:
        kind, value = self._next()
        if kind not in ("name", "word"):
            raise ArgumentInvalid(f"The query has {value!r} where a name should be.")
        return value

    def _whole_number(self) -> int:
        kind, value = self._next()
        if kind != "number" or not value.isdigit() or len(value) > 9:
            raise ArgumentInvalid(f"The query has {value!r} where a whole number should be.")
        return int(value)

    def _list(self, read: Callable[[], Any]) -> list[Any]:
        found = [read()]
        while self._take(","):
            found.append(read())
        return found

    # Parts

    def _item(self) -> Item:
        kind, value = self._peek()
        aggregate = value.upper() if kind == "name" and self._peek(1) == ("sign", "(") else ""
        if aggregate:
            if aggregate not in AGGREGATES:
                raise ArgumentInvalid(f"The query cannot select {value!r} of something.")
            self._next()
            self._need("(")
            if aggregate == "COUNT" and (self._take("*") or self._peek() == ("sign", ")")):
                of: Expression = lambda twin: 1  # noqa: E731
            else:
                of, _ = self._path()
            self._need(")")
            name = aggregate.lower()
        else:
            of, name = self._path()
        if self._take("AS"):
            name = self._name()
        return Item(name, of, aggregate)

    def _path(self) -> tuple[Expression, str]:
        steps: list[str | int] = [self._name()]
        while True:
            if self._take("."):
                steps.append(self._name())
            elif self._take("["):
                kind, value = self._peek()
                steps.append(self._text() if kind == "text" else self._whole_number())
                self._need("]")
            else:
                break

        def follow(twin: Json) -> Json:
            for step in steps:
                if isinstance(twin, dict) and isinstance(step, str) and step in twin:
                    twin = twin[step]
                elif isinstance(twin, list) and isinstance(step, int) and step < len(twin):
                    twin = twin[step]
                else:
                    return UNDEFINED
            return twin

        return follow, str(steps[-1])

    def _text(self) -> str:
        value = self._next()[1]
        inner = value[1:-1]
        if value[0] == "'":
            inner = inner.replace("''", "'")
        return re.sub(r"\\(.)", r"\1", inner)

    def _either(self) -> Expression:
        parts = [self._both()]
        while self._take("OR"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else lambda t: any(p(t) is True for p in parts)

    def _both(self) -> Expression:
        parts = [self._not()]
        while self._take("AND"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else lambda t: all(p(t) is True for p in parts)

    def _not(self) -> Expression:
        with self._deeper():
            if self._take("NOT"):
                inner = self._not()
                return lambda t: inner(t) is not True
            if self._take("("):
                inner = self._either()
                self._need(")")
                return inner
            return self._comparison()

    def _comparison(self) -> Expression:
        left = self._operand()
        kind, sign = self._peek()
        if kind == "sign" and sign in COMPARISONS:
            self._next()
            right = self._operand()
            return lambda t: compare(sign, left(t), right(t))
        for word, wanted in (("IN", True), ("NIN", False)):
            if self._take(word):
                self._need("[")
                choices = [choice(None) for choice in self._list(self._literal)]
                self._need("]")

                def among(twin: Json, choices: Any = choices, wanted: bool = wanted) -> bool:
                    value = left(twin)
                    known = any(compare("=", value, choice) for choice in choices)
                    return value is not UNDEFINED and known is wanted

                return among
        return left

    @contextlib.contextmanager
    def _deeper(self) -> Iterator[None]:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise ArgumentInvalid(f"The query is nested more than {DEPTH_MAX} deep.")
        try:
            yield
        finally:
            self._depth -= 1

    def _operand(self) -> Expression:
        kind, value = self._peek()
        if kind == "name" and self._peek(1) == ("sign", "("):
            with self._deeper():
                return self._function()
        if kind == "name":
            return self._path()[0]
        return self._literal()

    def _literal(self) -> Expression:
        kind, value = self._peek()
        if kind == "text":
            found: Any = self._text()
        elif kind == "number":
            self._next()
            found = int(value) if re.fullmatch(r"-?\d{1,18}", value) else float(value)
        elif kind == "word" and value in ("TRUE", "FALSE", "NULL"):
            self._next()
            found = {"TRUE": True, "FALSE": False, "NULL": None}[value]
        else:
            raise ArgumentInvalid(f"The query has {value!r} where a value should be.")
        return lambda twin: found

    def _function(self) -> Expression:
        name = self._name().upper()
        self._need("(")
        if name in TYPE_TESTS:
            of, _ = self._path()
            self._need(")")
            test = TYPE_TESTS[name]
            return lambda t: test(of(t))
        if name in TEXT_TESTS:
            of = self._operand()
            self._need(",")
            part = self._operand()
            self._need(")")
            holds = TEXT_TESTS[name]

            def told(twin: Json) -> Json:
                text, piece = of(twin), part(twin)
                both = isinstance(text, str) and isinstance(piece, str)
                return holds(text, piece) if both else UNDEFINED

            return told
        raise ArgumentInvalid(f"This hub's queries have no function {name.lower()!r}.")
