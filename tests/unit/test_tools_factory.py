"""A factory run: nothing secret is shared, nothing is open to others, and a kill costs nothing."""

import base64
import hmac
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from nvs_reader import read as read_nvs
from outpost_tools import bulk, factory, proof, roots
from outpost_tools.ca import FleetCA, create
from outpost_tools.cli import app
from outpost_tools.errors import OutpostError
from outpost_tools.factory import Factory, check_alone
from outpost_tools.fleet import Fleet
from outpost_tools.partitions import PartitionTable
from outpost_tools.profile import read
from outpost_tools.registry import Registry
from typer.testing import CliRunner

PASSPHRASE = "correct horse battery"
ROOTS = roots.choose(["azure"])


def profile(folder: Path, device: str = "", image: str = "", settings: str = "") -> Path:
    path = folder / "profile.toml"
    path.write_text(
        f'[device]\nid = "pump-{{n:04}}"\n{device}\n[image]\nbuild_time = 1800000000\n{image}\n'
        f"[settings]\n{settings}\n"
    )
    return path


@pytest.fixture(scope="module")
def ca(tmp_path_factory) -> FleetCA:
    return create(tmp_path_factory.mktemp("ca") / "fleet-ca", "Pumps", lambda: PASSPHRASE)


def run(folder: Path, count: int, path: Path, ca: FleetCA | None = None, workers: int = 1) -> dict:
    made = Factory(folder / "out", read(path), count, ROOTS)
    return made.make(folder / "data", ca, lambda: PASSPHRASE, workers)


def nvs(folder: Path, name: str) -> dict:
    held = read_nvs((folder / "out" / "devices" / f"{name}.nvs.bin").read_bytes())
    return {".".join(at): value for at, value in held.items()}


# What it makes


def test_the_keys_in_the_images_are_the_keys_in_the_registry_file(tmp_path):
    run(tmp_path, 5, profile(tmp_path))
    entries = bulk.read((tmp_path / "out" / "registry.jsonl").open())
    assert [entry["id"] for entry in entries] == [f"pump-000{n}" for n in range(1, 6)]
    for entry in entries:
        held = nvs(tmp_path, entry["id"])
        keys = entry["authentication"]["symmetricKey"]
        assert held["outpost.id"] == entry["id"].encode()
        assert held["outpost.sas1"] == keys["primaryKey"].encode()
        assert held["outpost.sas2"] == keys["secondaryKey"].encode()


def test_the_certificate_in_an_image_is_for_the_key_beside_it_and_holds(tmp_path, ca):
    run(tmp_path, 3, profile(tmp_path, 'keys = "x509"\nby = "thumbprint"'), ca)
    entries = bulk.read((tmp_path / "out" / "registry.jsonl").open())
    for entry in entries:
        chain, private = x509_of(nvs(tmp_path, entry["id"]))
        key = serialization.load_der_private_key(private, None)
        point = proof.point(key.public_key(), "its")
        proof.check_chain([*proof.read_chain(chain), ca.root], entry["id"], point)
    with Fleet(tmp_path / "data") as fleet:
        prints = {c.device_id: c.thumbprint for c in fleet.certificates()}
        assert {d.made_on for d in fleet.devices()} == {"host"}
    said = {e["id"]: e["authentication"]["x509Thumbprint"]["primaryThumbprint"] for e in entries}
    assert said == prints


def x509_of(held: dict) -> tuple[bytes, bytes]:
    """Chain and private key of a record, read from the format's description."""
    record = held["outpost.ida"]
    assert record[:4] == b"OPK1" and record[8] == 2 and record[9] == 255
    size = int.from_bytes(record[10:12], "little")
    chain, rest = record[12 : 12 + size], record[12 + size :]
    assert int.from_bytes(rest[:2], "little") == len(rest) - 6
    assert held["outpost.idcur"] == 0
    return chain, rest[2:-4]


def test_two_images_share_nothing_secret(tmp_path, ca):
    """What two devices of a run have in common is in the image of all, which holds no secret."""
    text = profile(tmp_path, 'keys = "x509"', 'output = "image"\nencrypt_nvs = true')
    run(tmp_path, 2, text, ca)
    one, two = ((tmp_path / "out" / "devices" / f"pump-000{n}.bin").read_bytes() for n in (1, 2))
    table = PartitionTable.from_binary(one[0x8000:0x8C00])
    differ = {p.name for p in table if one[p.offset : p.end] != two[p.offset : p.end]}
    assert differ == {"nvs", "nvs_keys"}
    keys = [image[table["nvs_keys"].offset :][:64] for image in (one, two)]
    shared = windows(keys[0]) & windows(keys[1])
    assert not shared
    cipher = [image[table["nvs"].offset : table["nvs"].end] for image in (one, two)]
    shared = windows(cipher[0]) & windows(cipher[1])
    assert all(len(set(window)) < 12 for window in shared), "only page headers and erased flash"


def windows(data: bytes, size: int = 16) -> set[bytes]:
    return {data[at : at + size] for at in range(len(data) - size + 1)}


def test_symmetric_keys_of_a_run_are_all_different(tmp_path):
    run(tmp_path, 20, profile(tmp_path))
    keys = set()
    for entry in bulk.read((tmp_path / "out" / "registry.jsonl").open()):
        keys |= set(entry["authentication"]["symmetricKey"].values())
    assert len(keys) == 40


def test_a_born_board_gets_an_image_without_any_key_and_no_entry(tmp_path):
    run(tmp_path, 2, profile(tmp_path, 'keys = "born"'))
    assert (tmp_path / "out" / "registry.jsonl").read_text() == ""
    assert sorted(nvs(tmp_path, "pump-0001")) == ["outpost.floor", "outpost.id"]


def test_keys_for_the_provisioning_service_are_derived_from_its_groups(tmp_path):
    group = base64.b64encode(b"g" * 32).decode()
    (tmp_path / "group.key").write_text(group + "\n")
    text = '[dps]\nid_scope = "0ne0000ABCD"\ngroup_key_file = "group.key"'
    path = profile(tmp_path)
    path.write_text(path.read_text() + text)
    run(tmp_path, 2, path)
    for name in ("pump-0001", "pump-0002"):
        mac = hmac.digest(b"g" * 32, name.encode(), "sha256")
        assert nvs(tmp_path, name)["outpost.sas1"] == base64.b64encode(mac)
    assert (tmp_path / "out" / "registry.jsonl").read_text() == "", "DPS makes the entries"
    for file in (tmp_path / "out").rglob("*.*"):
        assert not file.is_file() or group.encode() not in file.read_bytes()
    assert b'"dps"' in (tmp_path / "out" / "common.bin").read_bytes()


def test_the_image_of_all_holds_no_identity_and_no_key(tmp_path):
    run(tmp_path, 2, profile(tmp_path, image="encrypt_nvs = true"))
    common = (tmp_path / "out" / "common.bin").read_bytes()
    table = PartitionTable.from_binary(common[0x8000:0x8C00])
    for name in ("nvs", "nvs_keys"):
        assert set(common[table[name].offset : table[name].end]) == {0xFF}


def test_the_registry_takes_the_file_and_the_tags(tmp_path, monkeypatch):
    run(tmp_path, 3, profile(tmp_path, 'tags = {batch = "12"}'))
    monkeypatch.setenv("OUTPOST_DATA", str(tmp_path / "data"))
    file = tmp_path / "out" / "registry.jsonl"
    done = CliRunner().invoke(app, ["device", "import", str(file)])
    assert done.exit_code == 0, done.output
    with Registry(tmp_path / "data") as registry:
        held = registry.get("pump-0002")
    assert held.primary_key.encode() == nvs(tmp_path, "pump-0002")["outpost.sas1"]


# Files


def test_every_file_is_its_owners_alone_and_in_the_manifest(tmp_path):
    before = os.umask(0)
    try:
        manifest = run(tmp_path, 3, profile(tmp_path, image="encrypt_nvs = true"))
    finally:
        os.umask(before)
    out = tmp_path / "out"
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert files - {".lock", "plan.json", "manifest.json"} == set(manifest["files"])
    for name in files - {".lock"}:
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert not (out / "work").exists()


def test_a_changed_file_is_found(tmp_path):
    run(tmp_path, 2, profile(tmp_path))
    path = tmp_path / "out" / "devices" / "pump-0001.nvs.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(OutpostError, match=r"pump-0001.nvs.bin was changed"):
        factory.verify(tmp_path / "out")
    path.unlink()
    with pytest.raises(OutpostError, match="missing"):
        factory.verify(tmp_path / "out")


def test_the_same_key_twice_is_found_before_the_run_is_done(tmp_path):
    records = [{"id": "a", "marks": ["1"]}, {"id": "b", "marks": ["2"]}]
    check_alone(records)
    records.append({"id": "c", "marks": ["1"]})
    with pytest.raises(OutpostError, match="a and c have the same key"):
        check_alone(records)


def test_a_generator_that_repeats_itself_is_caught(tmp_path, monkeypatch):
    """In the run itself: the worker is run here, with a broken source of randomness."""
    from outpost_tools import factoryline

    monkeypatch.setattr(factoryline, "new_key", lambda: base64.b64encode(bytes(32)).decode())
    made = Factory(tmp_path / "out", read(profile(tmp_path)), 2, ROOTS)

    def here(order, ca, word, missing, workers, progress):
        factoryline.begin(order, None, "", os.getppid())
        factoryline.make(missing)

    monkeypatch.setattr(made, "_run", here)
    monkeypatch.setattr(factoryline.signal, "signal", lambda *_: None)
    monkeypatch.setattr(factoryline.ctypes, "CDLL", lambda *_: (_ for _ in ()).throw(OSError))
    with pytest.raises(OutpostError, match="have the same key"):
        made.make(tmp_path / "data", None, None)
    assert not (tmp_path / "out" / "manifest.json").exists()


# Kill


def start(folder: Path, path: Path, count: int) -> subprocess.Popen:
    program = "from outpost_tools.cli import main; main()"
    command = [sys.executable, "-c", program, "factory", "--count", str(count)]
    command += ["--profile", str(path), "-o", str(folder / "out"), "--data", str(folder / "data")]
    return subprocess.Popen(
        [*command, "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "OUTPOST_CA_PASSPHRASE": PASSPHRASE},
    )


def made_so_far(folder: Path) -> dict[str, bytes]:
    work = folder / "out" / "work"
    return {p.name: p.read_bytes() for p in work.glob("[0-9]*.json")} if work.is_dir() else {}


@pytest.mark.parametrize("when", [1, 17, 39, 60])
def test_a_killed_run_goes_on_where_it_was(tmp_path, when):
    """Killed after so many devices; the last time while the files about all are written."""
    path, count = profile(tmp_path), 60
    process = start(tmp_path, path, count)
    ends = time.monotonic() + 60
    while len(made_so_far(tmp_path)) < when and process.poll() is None:
        assert time.monotonic() < ends
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert_no_orphans(process.pid)
    kept = made_so_far(tmp_path)
    assert run(tmp_path, count, path)["count"] == count
    entries = bulk.read((tmp_path / "out" / "registry.jsonl").open())
    assert len({entry["id"] for entry in entries}) == count
    for entry in entries:
        held = nvs(tmp_path, entry["id"])
        keys = entry["authentication"]["symmetricKey"]
        assert held["outpost.sas1"] == keys["primaryKey"].encode()
    lines = {entry["id"]: entry["authentication"] for entry in entries}
    for record in map(json.loads, kept.values()):
        assert lines[record["id"]] == record["entry"]["authentication"], "it was made again"
    leftovers = [p.name for p in (tmp_path / "out").rglob(".*") if p.name != ".lock"]
    assert leftovers == []


def assert_no_orphans(session: int) -> None:
    """The workers of a killed run end by themselves."""
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        alive = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                alive.append(path.parent.name)
        if not alive:
            return
        time.sleep(0.1)
    raise AssertionError(f"still there: {alive}")


def test_a_run_that_is_done_is_done(tmp_path):
    path = profile(tmp_path)
    first = run(tmp_path, 3, path)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert run(tmp_path, 3, path) == first
    del files[tmp_path / "out" / ".lock"]
    assert all(p.stat().st_mtime_ns == at for p, at in files.items())


@pytest.mark.parametrize(
    ("count", "device"), [(4, ""), (3, 'keys = "born"')], ids=["count", "profile"]
)
def test_a_folder_of_another_run_is_left_alone(tmp_path, count, device):
    run(tmp_path, 3, profile(tmp_path))
    with pytest.raises(OutpostError, match="holds another run"):
        run(tmp_path, count, profile(tmp_path, device))


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letters.txt").write_text("mine")
    with pytest.raises(OutpostError, match="holds other files"):
        run(tmp_path, 3, profile(tmp_path))


def test_two_runs_in_one_folder_do_not_meet(tmp_path):
    first = Factory(tmp_path / "out", read(profile(tmp_path)), 3, ROOTS)
    with first._locked(), pytest.raises(OutpostError, match="Another run"):
        run(tmp_path, 3, profile(tmp_path))


# Bad input


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[device", "not TOML"),
        ("[devices]\n", r"no \[devices\]"),
        ('[device]\nid = "pump"\n', "needs {n}"),
        ('[device]\nid = "pump-{x}"\n', "needs {n}"),
        ('[device]\nid = "p/{n}"\n', "character|has '/'"),
        ('[device]\nid = "p-{n}"\nkeys = "rsa"\n', "one of symmetric"),
        ('[device]\nid = "p-{n}"\nfirst = true\n', "first is not a field"),
        ('[device]\nid = "p-{n}"\n[settings]\nhub = "https://x"\n', "not a host name"),
        ('[device]\nid = "p-{n}"\n[dps]\nid_scope = "0ne1"\n', "group_key_file"),
        ('[device]\nid = "p-{n}"\n[settings]\nwifi_key_file = "none"\n', "Wi-Fi key"),
    ],
)
def test_a_bad_profile_is_refused_in_a_sentence(tmp_path, text, words):
    path = tmp_path / "profile.toml"
    path.write_text(text)
    with pytest.raises(OutpostError, match=words):
        read(path)


def test_a_wrong_passphrase_is_said_before_anything_is_made(tmp_path, ca):
    made = Factory(tmp_path / "out", read(profile(tmp_path, 'keys = "x509"')), 3, ROOTS)
    with pytest.raises(OutpostError, match="passphrase is another"):
        made.make(tmp_path / "data", ca, lambda: "some other passphrase")
    assert not list((tmp_path / "out" / "devices").iterdir())


def test_no_output_of_a_run_holds_a_secret(tmp_path):
    word = tmp_path / "wifi"
    word.write_text("the wifi password")
    path = profile(tmp_path, settings='wifi_key_file = "wifi"')
    command = ["factory", "--count", "3", "--profile", path, "-o", tmp_path / "out"]
    command += ["--data", tmp_path / "data", "--json"]
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 0, done.output
    secrets = ["the wifi password"]
    for entry in bulk.read((tmp_path / "out" / "registry.jsonl").open()):
        secrets += entry["authentication"]["symmetricKey"].values()
    shown = done.output + (tmp_path / "out" / "manifest.json").read_text()
    shown += (tmp_path / "out" / "plan.json").read_text()
    assert not [s for s in secrets if s in shown]


def test_a_worker_whose_run_is_gone_before_it_begins_ends():
    """The kernel ends it only for what happens after it asked to be ended."""
    program = "from outpost_tools.factoryline import begin; begin(None, None, '', 1)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 1
