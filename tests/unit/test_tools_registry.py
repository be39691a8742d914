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
from outpost_tools.registry import Registry, StaleEtag, check_device_id

from certs import holder

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


# Certificates, keys, policies


FORMAT_1 = """
CREATE TABLE device (
    device_id      TEXT PRIMARY KEY,
    generation_id  TEXT NOT NULL,
    etag           TEXT NOT NULL,
    status         TEXT NOT NULL,
    status_reason  TEXT NOT NULL DEFAULT '',
    primary_key    TEXT NOT NULL,
    secondary_key  TEXT NOT NULL,
    created_s      INTEGER NOT NULL
) STRICT;
INSERT INTO device VALUES ('pump-7', '1', 'e', 'disabled', 'lost', 'AAAA', 'BBBB', 42);
PRAGMA user_version=1;
"""


def test_a_registry_of_the_first_format_is_taken_over(tmp_path):
    with sqlite3.connect(tmp_path / "registry.db") as db:
        db.executescript(FORMAT_1)
    with Registry(tmp_path) as registry:
        device = registry.get("pump-7")
        assert (device.status, device.primary_key, device.created_s) == ("disabled", "AAAA", 42)
        assert device.auth == "sas" and len(registry.policies()) == 5
    with Registry(tmp_path) as registry:
        assert registry.get("pump-7") == device


def test_certificates_take_the_place_of_keys_and_keys_of_certificates(tmp_path):
    with Registry(tmp_path) as registry:
        made = registry.add("pump-7")
        own = registry.update("pump-7", auth="selfSigned", primary_thumbprint="ab:" * 31 + "cd")
        assert own.keys == () and own.thumbprints == ("AB" * 31 + "CD",)
        assert made.primary_key not in str(registry.get("pump-7").__dict__)
        with pytest.raises(OutpostError, match="no keys"):
            registry.rotate("pump-7")
        signed = registry.update("pump-7", auth="certificateAuthority")
        assert signed.thumbprints == ()
        back = registry.update("pump-7", auth="sas")
        assert len(set(back.keys) | {made.primary_key}) == 3
        with pytest.raises(OutpostError, match="thumbprint"):
            registry.update("pump-7", auth="selfSigned")
        with pytest.raises(OutpostError, match="40 or 64"):
            registry.add("pump-8", auth="selfSigned", primary_thumbprint="abcd")
        assert registry.find("pump-8") is None and registry.get("pump-7") == back


@pytest.mark.parametrize(
    ("which", "kept"),
    [("both", ()), ("primary", ("secondary_key",)), ("secondary", ("primary_key",))],
)
def test_rotation_replaces_what_was_asked_for_alone(tmp_path, which, kept):
    with Registry(tmp_path) as registry:
        before = registry.add("pump-7")
        after = registry.rotate("pump-7", which)
    for name in ("primary_key", "secondary_key"):
        assert (getattr(before, name) == getattr(after, name)) == (name in kept)
    assert after.etag != before.etag and after.generation_id == before.generation_id


def test_swapped_keys_are_the_same_keys(tmp_path):
    with Registry(tmp_path) as registry:
        before = registry.add("pump-7")
        after = registry.rotate("pump-7", "swap")
    assert after.keys == before.keys[::-1]


def test_a_stale_etag_changes_nothing(tmp_path):
    with Registry(tmp_path) as registry:
        first = registry.add("pump-7")
        second = registry.update("pump-7", status="disabled", if_match=first.etag)
        for change in (
            lambda: registry.update("pump-7", status="enabled", if_match=first.etag),
            lambda: registry.remove("pump-7", if_match=first.etag),
        ):
            with pytest.raises(StaleEtag):
                change()
        assert registry.get("pump-7") == second
        registry.remove("pump-7", if_match="*")


def test_a_device_made_again_under_an_old_id_is_another_device(tmp_path):
    with Registry(tmp_path) as registry:
        first = registry.add("pump-7")
        registry.remove("pump-7")
        second = registry.add("pump-7")
    assert second.generation_id != first.generation_id


def test_policies_have_the_rights_that_iot_hub_gives_them(tmp_path):
    with Registry(tmp_path) as registry:
        rights = {p.name: p.rights for p in registry.policies()}
        policy = registry.add_policy("tokens", ["DeviceConnect"])
        assert registry.policy("tokens") == policy
        with pytest.raises(OutpostError, match="rights"):
            registry.add_policy("more", ["Everything"])
        with pytest.raises(OutpostError, match="already"):
            registry.add_policy("tokens", ["DeviceConnect"])
        assert policy.primary_key not in repr(policy)
    assert rights == {
        "iothubowner": {"RegistryRead", "RegistryReadWrite", "ServiceConnect", "DeviceConnect"},
        "service": {"ServiceConnect"},
        "device": {"DeviceConnect"},
        "registryRead": {"RegistryRead"},
        "registryReadWrite": {"RegistryRead", "RegistryReadWrite"},
    }


def test_an_authority_must_be_one(tmp_path):
    with Registry(tmp_path) as registry:
        for bad in ("", "-----BEGIN", holder("leaf").pem):
            with pytest.raises(OutpostError, match="CA"):
                registry.add_authority("fleet", bad)
        registry.add_authority("fleet", holder("root", authority=True).pem)
        assert list(registry.authorities()) == ["fleet"]


def test_a_registry_of_the_format_before_keeps_all_and_learns_of_feedback(tmp_path):
    with Registry(tmp_path) as registry:
        device, policies = registry.add("pump-7"), registry.policies()
        registry._db.execute("DROP TABLE feedback")
        registry._db.execute("PRAGMA user_version = 2")
    with Registry(tmp_path) as registry:
        assert (registry.get("pump-7"), registry.policies()) == (device, policies)
        assert registry._db.execute("SELECT count(*) FROM feedback").fetchone() == (0,)
