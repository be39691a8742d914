"""The registry: what it keeps through kill -9, what it refuses, and that it shows no key."""

import base64
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import pytest
from outpost_tools.errors import OutpostError
from outpost_tools.registry import Registry, check_device_id

WRITER = """
import sys
from pathlib import Path
from outpost_tools.registry import Registry
registry = Registry(Path(sys.argv[1]))
for number in range(100000):
    device = registry.add(f"{sys.argv[2]}-{number}")
    print(device.device_id, device.primary_key, flush=True)
"""


def test_a_new_device_has_two_different_keys_of_32_bytes(tmp_path):
    with Registry(tmp_path) as registry:
        device = registry.add("pump-7")
        assert registry.get("pump-7") == device
    keys = [base64.b64decode(key) for key in (device.primary_key, device.secondary_key)]
    assert [len(key) for key in keys] == [32, 32] and keys[0] != keys[1]
    assert device.enabled


def test_repr_shows_no_key(tmp_path):
    with Registry(tmp_path) as registry:
        device = registry.add("pump-7")
    assert device.primary_key not in repr(device)
    assert device.secondary_key not in repr(device)


def test_only_the_owner_can_read_it(tmp_path):
    with Registry(tmp_path / "data") as registry:
        registry.add("pump-7")
        for path in (tmp_path / "data").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_an_id_is_given_once(tmp_path):
    with Registry(tmp_path) as registry:
        first = registry.add("pump-7")
        with pytest.raises(OutpostError, match="already"):
            registry.add("pump-7")
        assert registry.get("pump-7") == first


def test_ids_are_told_apart_by_case(tmp_path):
    with Registry(tmp_path) as registry:
        registry.add("Pump")
        registry.add("pump")
        assert [d.device_id for d in registry.devices()] == ["Pump", "pump"]


@pytest.mark.parametrize("good", ["a", "A-1:.+%_#*?!(),=@;$'", "x" * 128])
def test_ids_that_iot_hub_takes(good):
    assert check_device_id(good) == good


@pytest.mark.parametrize("bad", ["", "a b", "a/b", "é", "x" * 129, "a\n", 'a"b', "a\0", "a&b"])
def test_ids_that_iot_hub_refuses_are_one_sentence(bad):
    with pytest.raises(OutpostError) as caught:
        check_device_id(bad)
    assert "\n" not in str(caught.value)


def test_a_missing_device_names_the_next_step(tmp_path):
    with Registry(tmp_path) as registry, pytest.raises(OutpostError, match="outpost device new"):
        registry.get("pump-7")


@pytest.mark.parametrize("key", ["not base64!", "QUJD", "A" * 400])
def test_a_wrong_key_is_refused_without_quoting_it(tmp_path, key):
    with Registry(tmp_path) as registry, pytest.raises(OutpostError) as caught:
        registry.add("pump-7", primary_key=key)
    assert key not in str(caught.value)


def test_what_one_process_disables_another_sees(tmp_path):
    with Registry(tmp_path) as one, Registry(tmp_path) as other:
        made = one.add("pump-7")
        other.set_status("pump-7", "disabled", "stolen")
        seen = one.get("pump-7")
        assert not seen.enabled and seen.status_reason == "stolen"
        assert seen.etag != made.etag and seen.primary_key == made.primary_key


def test_two_writers_at_once_lose_nothing(tmp_path):
    def add(name: str) -> None:
        with Registry(tmp_path) as registry:
            for number in range(25):
                registry.add(f"{name}-{number}")

    threads = [threading.Thread(target=add, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Registry(tmp_path) as registry:
        assert len(registry.devices()) == 50


def test_kill_9_loses_no_device_that_was_reported(tmp_path):
    reported = {}
    for round_number in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), f"r{round_number}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(0.02 + 0.013 * round_number)
        os.kill(writer.pid, signal.SIGKILL)
        lines = [first, *writer.stdout.read().splitlines(keepends=True)]
        writer.wait()
        # A last line that was cut short was not reported.
        reported |= dict(line.split() for line in lines if line.endswith("\n"))
    assert len(reported) >= 5
    with Registry(tmp_path) as registry:
        for device_id, key in reported.items():
            assert registry.get(device_id).primary_key == key
    with sqlite3.connect(tmp_path / "registry.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_file_that_is_no_database_is_one_sentence(tmp_path):
    (tmp_path / "registry.db").write_bytes(b"this is not SQLite" * 100)
    with pytest.raises(OutpostError, match="cannot be opened"):
        Registry(tmp_path)


def test_a_registry_of_a_newer_program_is_not_touched(tmp_path):
    Registry(tmp_path).close()
    with sqlite3.connect(tmp_path / "registry.db") as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(OutpostError, match="newer"):
        Registry(tmp_path)


def test_a_data_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(OutpostError, match="is a file"):
        Registry(tmp_path / "data")
