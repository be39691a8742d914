"""The drill, as `make drill` shows it: a fleet changes its root, and strands nobody."""

from __future__ import annotations

import signal
import subprocess

import pytest
from operatorworld import PROGRAM
from outpost_tools.drill import Drill, Plan

LEGS_HERE = ("outpost32",)


@pytest.mark.timeout(600)
def test_a_fleet_of_ten_changes_its_root_outlives_a_bad_bundle_and_an_expired_root(leg, tmp_path):
    told: list[dict] = []
    found = Drill(Plan(tmp_path, 10, leg, patience_s=200), told.append).run()
    assert found["connected"] == 10 and found["lost"] == 0
    assert found["messages"] > 10 * 10
    assert found["versions"] == [5] and found["roots"] == ["C"]
    steps = [event["text"] for event in told if event["event"] == "step"]
    for words in (
        "all came back, under root B",
        "none knows root A any more",
        "refuses: Version 4 would strand the fleet",
        "every device tried it, and went back",
        "its root has expired",
        "all came back through the recovery endpoint",
    ):
        assert any(words in step for step in steps), (words, steps)


def test_a_drill_that_is_stopped_ends_in_order_and_leaves_no_board_behind(leg, tmp_path):
    folder = tmp_path / "drill"
    words = ["drill", "--devices", "1", "--pace", "60", "--leg", leg, "--data", str(folder)]
    drill = subprocess.Popen(
        [PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert any("all are connected" in line for line in iter(drill.stdout.readline, ""))
    drill.send_signal(signal.SIGINT)
    _, said = drill.communicate(timeout=60)
    assert drill.returncode == 1
    assert said == "outpost: The drill was stopped before its end.\n"
    left = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True)
    assert left.stdout == ""


def test_a_folder_that_holds_something_else_is_not_emptied(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    words = [PROGRAM, "drill", "--data", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1 and "something else than a drill" in done.stderr
    assert (tmp_path / "mine.txt").read_text() == "keep me"
