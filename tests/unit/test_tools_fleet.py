"""The fleet's book: what is kept of each device outlives a kill, and is never a secret."""

import datetime as dt
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from outpost_tools.errors import OutpostError
from outpost_tools.fleet import Fleet, point_of

import certs


@pytest.fixture
def fleet(tmp_path):
    with Fleet(tmp_path) as fleet:
        yield fleet


def test_a_born_key_is_kept_with_its_certificate_and_thumbprint(tmp_path, fleet):
    made = certs.holder("pump-1")
    fleet.remember("pump-1", born_certificate=made.der, made_on="device")
    with Fleet(tmp_path) as again:
        known = again.find("pump-1")
        assert known.born_point == point_of(made.der) == again.born("pump-1")
        assert known.born_thumbprint == made.certificate.fingerprint(_sha256()).hex().upper()
        assert known.made_on == "device"
        assert again.born("pump-2") is None


def _sha256():
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA256()


def test_another_born_key_is_refused_and_nothing_is_changed(fleet):
    first, second = certs.holder("pump-1"), certs.holder("pump-1")
    fleet.remember("pump-1", born_certificate=first.der)
    with pytest.raises(OutpostError, match="another born key"):
        fleet.remember("pump-1", born=point_of(second.der))
    assert fleet.find("pump-1").born_certificate == first.der
    fleet.remember("pump-1", born=point_of(second.der), replace=True)
    assert fleet.born("pump-1") == point_of(second.der)
    assert fleet.find("pump-1").born_certificate is None, "it belonged to the other key"


def test_what_is_not_given_stays(fleet):
    made = certs.holder("pump-1")
    fleet.remember("pump-1", born_certificate=made.der, made_on="device")
    fleet.remember("pump-1")
    assert fleet.find("pump-1").born_certificate == made.der
    assert fleet.find("pump-1").made_on == "device"


@pytest.mark.parametrize("point", [b"", b"\x04" + b"\x01" * 64, b"\x02" + b"\x01" * 32])
def test_what_is_no_point_of_the_curve_is_refused(fleet, point):
    with pytest.raises(OutpostError, match="P-256"):
        fleet.remember("pump-1", born=point)
    assert fleet.find("pump-1") is None


def test_one_certificate_is_in_use_and_the_one_before_it_is_old(fleet):
    first, second = certs.holder("pump-1"), certs.holder("pump-1")
    fleet.issued("pump-1", first.der, "current")
    kept = fleet.issued("pump-1", second.der)
    assert [c.state for c in fleet.certificates("pump-1")] == ["current", "issued"]
    fleet.in_use("pump-1", kept.thumbprint)
    assert [c.state for c in fleet.certificates("pump-1")] == ["old", "current"]
    assert kept.serial == f"{second.certificate.serial_number:x}"
    ends = second.certificate.not_valid_after_utc
    assert dt.datetime.fromtimestamp(kept.not_after_s, dt.UTC) == ends


def test_a_rotation_is_kept_until_it_ends(tmp_path, fleet):
    fleet.rotating("pump-1", "symmetric", "sent", slot=2)
    with Fleet(tmp_path) as again:
        assert again.rotation("pump-1").detail == {"slot": 2}
        assert [r.phase for r in again.rotations()] == ["sent"]
    fleet.rotated("pump-1")
    assert fleet.rotation("pump-1") is None


def test_counters_only_rise_and_follow_the_clock(tmp_path, fleet):
    seen = [fleet.next_counter("keys") for _ in range(5)]
    assert seen == sorted(set(seen))
    assert abs(seen[0] - (time.time() - 946684800)) < 60
    with Fleet(tmp_path) as again:
        assert again.next_counter("keys") > seen[-1]


def test_the_fleet_has_a_name_of_its_own_until_it_is_given_one(tmp_path, fleet):
    with Fleet(tmp_path / "other") as other:
        assert other.name != fleet.name
    fleet.rename("pumps-north")
    assert fleet.name == "pumps-north"
    with pytest.raises(OutpostError, match="cannot name a fleet"):
        fleet.rename("no spaces")


def test_the_file_is_its_owners_alone(fleet):
    assert fleet.path.stat().st_mode & 0o777 == 0o600


def test_what_was_said_to_be_kept_is_there_after_a_kill(tmp_path):
    program = (
        "import sys; from pathlib import Path; from outpost_tools.fleet import Fleet\n"
        "fleet = Fleet(Path(sys.argv[1]))\n"
        "for n in range(100000):\n"
        "    fleet.rotating(f'd{n}', 'x509', 'sent'); print(n, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
        for _ in range(20):
            last = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    with Fleet(tmp_path) as fleet:
        assert len(fleet.rotations()) > last


def test_a_damaged_book_is_said_in_a_sentence(tmp_path):
    (tmp_path / "fleet.db").write_bytes(b"no database, but long enough to be taken for one" * 20)
    with pytest.raises(OutpostError, match="cannot be opened"):
        Fleet(tmp_path)


def test_a_book_of_a_newer_format_is_left_alone(tmp_path):
    Fleet(tmp_path).close()
    db = sqlite3.connect(tmp_path / "fleet.db")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(OutpostError, match="newer"):
        Fleet(tmp_path)
