"""The load tool against a real hub: its figures agree with what the hub has."""

import pytest
from outpost_tools.errors import OutpostError
from outpost_tools.hub.load import run_load
from pahodevice import World


def test_the_figures_of_a_load_agree_with_the_store(tmp_path):
    world = World(tmp_path / "data")
    try:
        figures = run_load(world.data, "127.0.0.1", world.hub.port, 5, 20.0, 1.0)
        kept = world.call(world.core.telemetry_since())
    finally:
        world.hub.stop()
    assert figures["connected"] == 5 and figures["lost"] == 0 and figures["reconnects"] == 0
    assert figures["sent"] == figures["acknowledged"] == figures["stored"] == len(kept) >= 60


def test_a_load_without_a_hubs_folder_is_one_sentence(tmp_path):
    with pytest.raises(OutpostError, match="run the hub first"):
        run_load(tmp_path)
