"""The flash image: read back by programs other than the ones that wrote it.

littlefs-python, with MicroPython's cache sizes, reads the file system; the NVS has no other reader
on PyPI, so this file holds a small one, written from Espressif's description of the format.
"""

import base64
import dataclasses
import json
import os
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from littlefs import LittleFS, UserContext
from outpost_tools import bundle, image, roots
from outpost_tools.errors import OutpostError
from outpost_tools.image import Settings, build_image
from outpost_tools.partitions import PartitionTable
from outpost_tools.paths import binary, tree
from outpost_tools.registry import Device, Registry

BUILD_TIME = 1_800_000_000


@pytest.fixture(scope="module")
def device(tmp_path_factory) -> Device:
    with Registry(tmp_path_factory.mktemp("registry")) as registry:
        return registry.add("pump-7.north:A")


@pytest.fixture(scope="module")
def trust() -> list[bytes]:
    return roots.choose(["azure-rsa"])


@pytest.fixture(scope="module")
def flash(device, trust) -> bytes:
    return build_image(device, trust, build_time_s=BUILD_TIME)


def part(flash: bytes, name: str) -> bytes:
    p = PartitionTable.from_binary(flash[0x8000:0x8C00])[name]
    return flash[p.offset : p.end]


def files_of(flash: bytes) -> dict[str, bytes]:
    content = bytearray(part(flash, "vfs"))
    # The sizes MicroPython mounts with: inline files must fit its cache.
    fs = LittleFS(
        UserContext(buffer=content),
        mount=False,
        block_size=4096,
        block_count=len(content) // 4096,
        read_size=32,
        prog_size=32,
        cache_size=128,
        lookahead_size=32,
    )
    fs.mount()
    assert fs.fs_stat().disk_version == 0x00020000
    files = {}
    for folder, _, names in fs.walk("/"):
        for name in names:
            path = f"{folder.rstrip('/')}/{name}"
            with fs.open(path, "rb") as file:
                files[path] = file.read()
    return files


def crc(data: bytes) -> int:
    return zlib.crc32(data, 0xFFFFFFFF) & 0xFFFFFFFF


def nvs_of(partition: bytes) -> dict[str, bytes | int]:
    """{"namespace.key": value} of an NVS partition in format version 2; checks every CRC."""
    spaces: dict[int, str] = {}
    chunks: dict[tuple[int, str, int], bytes] = {}
    index: dict[tuple[int, str], tuple[int, int, int]] = {}
    numbers: dict[tuple[int, str], int] = {}
    pages_used = 0
    for start in range(0, len(partition), 4096):
        page = partition[start : start + 4096]
        if page == b"\xff" * 4096:
            continue
        pages_used += 1
        state, _, version = struct.unpack_from("<IIB", page)
        assert state in (0xFFFFFFFE, 0xFFFFFFFC) and version == 0xFE
        assert struct.unpack_from("<I", page, 28)[0] == crc(page[4:28])
        entry = 0
        while entry < 126:
            at = 64 + 32 * entry
            if page[32 + entry // 4] >> (entry % 4 * 2) & 3 != 2:  # 2: written
                entry += 1
                continue
            space, kind, span, chunk = page[at : at + 4]
            assert struct.unpack_from("<I", page, at + 4)[0] == crc(
                page[at : at + 4] + page[at + 8 : at + 32]
            )
            key = page[at + 8 : at + 24].split(b"\0")[0].decode()
            value = page[at + 24 : at + 32]
            if space == 0:
                spaces[value[0]] = key
            elif kind == 0x42:
                size, data_crc = struct.unpack("<HxxI", value)
                data = page[at + 32 : at + 32 + size]
                assert crc(data) == data_crc
                chunks[space, key, chunk] = data
            elif kind == 0x48:
                index[space, key] = struct.unpack("<IBBxx", value)
            elif kind == 0x14:
                numbers[space, key] = struct.unpack("<i", value[:4])[0]
            else:
                raise AssertionError(f"unexpected type {kind:#x}")
            entry += span
    assert pages_used < len(partition) // 4096, "a page is kept free"
    found: dict[str, bytes | int] = {f"{spaces[s]}.{k}": v for (s, k), v in numbers.items()}
    for (space, key), (size, count, first) in index.items():
        blob = b"".join(chunks[space, key, first + n] for n in range(count))
        assert len(blob) == size
        found[f"{spaces[space]}.{key}"] = blob
    return found


def test_nvs_holds_the_identity_and_the_floor_and_nothing_else(flash, device):
    assert nvs_of(part(flash, "nvs")) == {
        "outpost.id": b"pump-7.north:A",
        "outpost.sas1": device.primary_key.encode(),
        "outpost.sas2": device.secondary_key.encode(),
        "outpost.floor": BUILD_TIME - 946684800,
    }


def test_an_id_of_128_characters_fits(device, trust):
    long = dataclasses.replace(device, device_id="x" * 128)
    nvs = nvs_of(part(build_image(long, trust, build_time_s=BUILD_TIME), "nvs"))
    assert nvs["outpost.id"] == b"x" * 128


def test_an_image_without_a_device_has_the_floor_alone(trust):
    nvs = nvs_of(part(build_image(None, trust, build_time_s=BUILD_TIME), "nvs"))
    assert list(nvs) == ["outpost.floor"]


def test_file_system_holds_the_software_the_configuration_and_the_roots(flash, trust):
    files = files_of(flash)
    assert sorted(files) == ["/boot.py", "/config.json", "/main.py", "/trust/factory.bin"]
    assert files["/boot.py"] == (tree() / "boot.py").read_bytes()
    assert files["/trust/factory.bin"] == bundle.factory(trust, BUILD_TIME)
    assert json.loads(files["/config.json"]) == {
        "hub": "localhost",
        "port": 8883,
        "wifi": {"ssid": "Espressif", "key": ""},
        "sntp": ["0.pool.ntp.org:123", "1.pool.ntp.org:123", "2.pool.ntp.org:123"],
        "record_size": "auto",
        "suites": "all",
        "keepalive_s": 240,
    }


def test_the_keys_are_in_the_nvs_alone(flash, device):
    nvs = PartitionTable.for_size(4)["nvs"]
    outside = flash[: nvs.offset] + flash[nvs.end :]
    for key in (device.primary_key, device.secondary_key):
        assert flash.count(key.encode()) == 1
        assert key.encode() not in outside and base64.b64decode(key) not in outside


def test_the_same_inputs_give_the_same_bytes(flash, device, trust):
    assert build_image(device, trust, build_time_s=BUILD_TIME) == flash


def test_what_is_not_written_is_erased_flash(flash):
    assert len(flash) == 4 << 20
    assert set(flash[:0x8000]) == {0xFF}
    for name in ("phy_init", "factory", "outbox"):
        assert set(part(flash, name)) == {0xFF}


def test_library_in_flash_is_compiled_and_names_no_path_of_this_machine(device, trust):
    built = build_image(device, trust, build_time_s=BUILD_TIME, library="flash")
    files = files_of(built)
    sources = {p.stem for p in (tree() / "lib" / "outpost").glob("*.py")}
    compiled = {p for p in files if p.startswith("/lib/")}
    assert compiled == {f"/lib/outpost/{s}.mpy" for s in sources} | {"/lib/umqtt/simple.mpy"}
    for path in compiled:
        assert files[path][0:1] == b"M" and str(tree()).encode() not in files[path]
    again = build_image(device, trust, build_time_s=BUILD_TIME, library="flash")
    assert again == built


def test_an_application_takes_the_place_of_main_and_brings_its_files(device, trust, tmp_path):
    (tmp_path / "drivers").mkdir()
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "main.pyc").write_bytes(b"x")
    (tmp_path / "main.py").write_text("print('mine')\n")
    (tmp_path / "drivers" / "pump.py").write_text("SPEED = 3\n")
    files = files_of(build_image(device, trust, build_time_s=BUILD_TIME, app=tmp_path))
    assert files["/main.py"] == b"print('mine')\n"
    # A module goes compiled, and without this machine's paths; MicroPython looks for main.py.
    assert files["/drivers/pump.mpy"][:1] == b"M" and "/drivers/pump.py" not in files
    assert str(tmp_path).encode() not in files["/drivers/pump.mpy"]
    assert files["/boot.py"] == (tree() / "boot.py").read_bytes()
    assert not [path for path in files if "pycache" in path]


def test_a_module_that_is_no_python_is_refused_by_name_before_it_is_on_a_board(tmp_path):
    (tmp_path / "pump.py").write_text("SPEED = = 3\n")
    with pytest.raises(OutpostError, match=r"pump\.py does not compile"):
        image.compiled_application(tmp_path)


def test_a_module_and_its_compiled_form_are_not_both_taken(tmp_path):
    (tmp_path / "pump.py").write_text("SPEED = 3\n")
    (tmp_path / "pump.mpy").write_bytes(image.compiled(tmp_path / "pump.py", "pump.py"))
    with pytest.raises(OutpostError, match="leave one out"):
        image.compiled_application(tmp_path)


def test_the_same_inputs_in_two_folders_give_the_same_image(device, trust, tmp_path):
    made = []
    for name in ("one", "another/deep"):
        app = tmp_path / name
        (app / "drivers").mkdir(parents=True)
        (app / "drivers" / "pump.py").write_text("def f():\n    raise ValueError\n")
        made.append(build_image(device, trust, build_time_s=BUILD_TIME, app=app, library="flash"))
    assert made[0] == made[1]


def hostile_link(folder: Path) -> None:
    (folder / "motd").symlink_to("/etc/hostname")


def hostile_dangling_link(folder: Path) -> None:
    (folder / "lost").symlink_to("/nowhere/at/all")


def hostile_folder_link(folder: Path) -> None:
    (folder / "ssl").symlink_to("/etc")


def hostile_name(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.py")).touch()


def hostile_line(folder: Path) -> None:
    (folder / "a\nb.py").touch()


def hostile_size(folder: Path) -> None:
    with (folder / "big").open("wb") as file:
        file.truncate(5 << 30)


@pytest.mark.parametrize(
    "hostile",
    [
        hostile_link,
        hostile_dangling_link,
        hostile_folder_link,
        hostile_name,
        hostile_line,
        hostile_size,
    ],
)
def test_a_hostile_application_folder_is_one_sentence(device, trust, tmp_path, hostile):
    (tmp_path / "app").mkdir()
    hostile(tmp_path / "app")
    with pytest.raises(OutpostError) as caught:
        build_image(device, trust, build_time_s=BUILD_TIME, app=tmp_path / "app")
    assert "\n" not in str(caught.value)


def test_a_link_within_the_application_folder_is_followed(tmp_path):
    (tmp_path / "real.py").write_bytes(b"1")
    (tmp_path / "main.py").symlink_to("real.py")
    assert image.application(tmp_path) == {"/main.py": b"1", "/real.py": b"1"}


def test_files_can_be_replaced_and_taken_out(device, trust):
    extra = {"/config.json": b"{", "/main.py": None, "/a/b.txt": b"c"}
    files = files_of(build_image(device, trust, build_time_s=BUILD_TIME, files=extra))
    assert files["/config.json"] == b"{" and files["/a/b.txt"] == b"c"
    assert "/main.py" not in files


def test_files_of_every_size_around_the_cache_are_read_back(device, trust):
    extra = {f"/f{size}": bytes(size % 251 for _ in range(size)) for size in range(0, 300, 7)}
    extra |= {f"/g{size}": b"\x5a" * size for size in (127, 128, 129, 4095, 4096, 4097, 100_000)}
    files = files_of(build_image(device, trust, build_time_s=BUILD_TIME, files=extra))
    assert {path: files[path] for path in extra} == extra


def test_more_files_than_fit_are_one_sentence(device, trust):
    with pytest.raises(OutpostError, match="do not fit"):
        build_image(device, trust, build_time_s=BUILD_TIME, files={"/big": bytes(2 << 20)})


def test_a_name_that_littlefs_does_not_take_is_one_sentence(device, trust):
    with pytest.raises(OutpostError, match="cannot go into the image"):
        build_image(device, trust, build_time_s=BUILD_TIME, files={"/" + "x" * 300: b""})


@pytest.mark.parametrize(
    "wrong",
    [
        {"hub": "https://hub.example"},
        {"hub": "hub.example:8883"},
        {"hub": ""},
        {"hub": "hub example"},
        {"port": 0},
        {"port": 65536},
        {"wifi_ssid": ""},
        {"wifi_ssid": "x" * 33},
        {"wifi_key": "short"},
        {"sntp": []},
        {"sntp": ["a", "b", "c", "d", "e"]},
        {"sntp": ["time.example:http"]},
        {"sntp": ["time.example:0"]},
        {"sntp": ["time.example:"]},
        {"record_size": 1000},
        {"record_size": "small"},
        {"keepalive_s": 5},
        {"keepalive_s": 2000},
    ],
    ids=str,
)
def test_settings_that_the_device_would_refuse_are_refused_here(device, trust, wrong):
    with pytest.raises(OutpostError) as caught:
        build_image(device, trust, Settings(**wrong), build_time_s=BUILD_TIME)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("build_time", [0, 946684799, 946684800 + 2**31])
def test_a_build_time_that_no_device_can_hold_is_refused(device, trust, build_time):
    with pytest.raises(OutpostError, match="build time"):
        build_image(device, trust, build_time_s=build_time)


def test_missing_compiler_names_make_micropython(device, trust, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPOST_BIN", str(tmp_path))
    with pytest.raises(OutpostError, match="make micropython"):
        build_image(device, trust, build_time_s=BUILD_TIME, library="flash")


def test_a_broken_library_says_which_file(tmp_path, monkeypatch):
    fake = tmp_path / "tree"
    (fake / "lib" / "outpost").mkdir(parents=True)
    (fake / "lib" / "outpost" / "bad.py").write_text("def (:\n")
    umqtt = fake / "build" / "micropython" / "umqtt" / "umqtt" / "simple.py"
    umqtt.parent.mkdir(parents=True)
    umqtt.write_text("")
    monkeypatch.setattr(image, "tree", lambda: fake)
    with pytest.raises(OutpostError, match="bad.py does not compile"):
        image.compiled_library()


def test_the_compiler_is_the_one_of_this_build(device):
    version = subprocess.run([binary("mpy-cross"), "--version"], capture_output=True, text=True)
    assert "mpy-cross" in version.stdout
