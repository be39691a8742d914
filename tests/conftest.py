"""Shared by every test: the builds under test and how a script is run on one of them."""

from __future__ import annotations

import os
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from legs import BIN, LEGS, REPO
from world import World

pytest_plugins = ("faulttable",)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in (*LEGS, "mpy-cross") if not (BIN / name).exists()]
    if missing:
        pytest.exit(
            f"build/bin/{missing[0]} is not built: run 'make test', or 'make micropython' first", 2
        )
    for item in items:
        if _only_in_test_all(item):
            item.add_marker("exhaustive")


def _only_in_test_all(item: pytest.Item) -> bool:
    """Whether this is a build that `make test` leaves out for this test.

    A test of every build runs there on outpost32, whose sizes are the board's, and on one other,
    which goes by the test's name and parameters: each build meets a third of all tests.
    """
    case = getattr(item, "callspec", None)
    leg = case.params.get("leg") if case else None
    chosen = any("leg" in mark.args[0] for mark in item.iter_markers("parametrize"))
    if leg in (None, "outpost32") or chosen or hasattr(item.module, "LEGS_HERE"):
        return False
    others = [name for name in LEGS if name != "outpost32"]
    name = item.nodeid.replace(leg, "")
    return leg != others[zlib.crc32(name.encode()) % len(others)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # A module whose tests are of some builds alone says so: LEGS_HERE = (...).
    own = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "leg" in metafunc.fixturenames and not any("leg" in names for names in own):
        legs = getattr(metafunc.module, "LEGS_HERE", tuple(LEGS))
        metafunc.parametrize("leg", legs, indirect=True)


@pytest.fixture
def leg(request: pytest.FixtureRequest) -> str:
    """The build under test: every one in LEGS, unless the module names its own."""
    return request.param


@pytest.fixture
def micropython(leg: str, tmp_path: Path) -> Callable[..., str]:
    """Run a script on the leg's build, in a directory of its own; returns what it printed.

    A script that raises fails the test with its traceback.
    """

    def run(script: str, *board_args: str, timeout: float = 60) -> str:
        path = tmp_path / "script.py"
        path.write_text(script)
        env = dict(os.environ)
        if leg.startswith("stock"):
            env["MICROPYPATH"] = f".frozen:{REPO / 'lib'}"
        command = [str(BIN / leg), "-X", f"heapsize={LEGS[leg]}", *board_args, str(path)]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def world(tmp_path: Path, leg: str) -> Iterator[World]:
    """One device's surroundings on the leg under test; everything in it ends with the test."""
    world = World(tmp_path, leg)
    yield world
    world.close()
