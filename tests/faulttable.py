"""The table of faults and outcomes: what was broken on purpose in this run, and what came of it.

Owns the command-line option `--faults FILE`. A row is one test of tests/faults or one of the
device's own bad days; its name is the property, its cases are the parameters and builds it ran
with. Counts are what this run saw: nothing is carried over from another one.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from pathlib import Path

import pytest

PLACES = ("tests/faults/", "tests/device/test_bad_", "tests/device/test_hostile")
TITLE = "Faults and outcomes"
HEAD = f"""# {TITLE}

Every test that breaks something on purpose, with the number of cases it ran (parameters, builds of
the board) and how many of them passed. The name says what must hold. `make test-all` writes this
file with everything; `make test PYTEST_ARGS="-n 8 --faults=docs/faults.md"` with a sample of the
builds and of the power cuts.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--faults", metavar="FILE", help="write the table of faults and outcomes there"
    )


def _rows(reporter: pytest.TerminalReporter) -> dict[str, dict[str, Counter[str]]]:
    """By module, then by test: how many cases came to which outcome."""
    rows: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in reporter.stats.get(outcome, ()):
            if not isinstance(report, pytest.TestReport):
                continue
            if report.when != "call" and outcome == "passed":
                continue
            module, _, name = report.nodeid.partition("::")
            if module.startswith(PLACES):
                rows[module][name.partition("[")[0]][outcome] += 1
    return rows


def _about(module: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or module.stem
    return " ".join(text.split()).split(". ", 1)[0].rstrip(".")


def table(rows: dict[str, dict[str, Counter[str]]], root: Path, whole: bool) -> str:
    """The rows as Markdown."""
    parts = [HEAD, f"\nThis one is of `make {'test-all' if whole else 'test'}`.\n"]
    for module in sorted(rows):
        parts.append(f"\n## {_about(root / module)}\n\n`{module}`\n")
        parts.append("\n| what must hold | cases | passed |\n| --- | ---: | ---: |\n")
        for name, outcomes in sorted(rows[module].items()):
            words = name.removeprefix("test_").replace("_", " ")
            parts.append(f"| {words} | {sum(outcomes.values())} | {outcomes['passed']} |\n")
    return "".join(parts)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    target = config.getoption("--faults")
    if not target:
        return
    rows = _rows(terminalreporter)
    whole = "exhaustive or" in config.option.markexpr
    Path(target).write_text(table(rows, config.rootpath, whole), encoding="utf-8")
    terminalreporter.section(TITLE)
    for module in sorted(rows):
        terminalreporter.write_line(_about(config.rootpath / module))
        for name, outcomes in sorted(rows[module].items()):
            words = name.removeprefix("test_").replace("_", " ")
            passed, total = outcomes["passed"], sum(outcomes.values())
            terminalreporter.write_line(f"  {passed:>5} of {total:<5} {words}")
