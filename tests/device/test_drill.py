"""The drill, as `make drill` shows it: a fleet changes its root, and strands nobody."""

from __future__ import annotations

import pytest
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
