"""MicroPython in a flash image: read from files, judged, placed, and looked at by esptool itself.

The firmware files are made by Espressif's image writer (espimages.py): no official binary can be
downloaded where this runs.
"""

import subprocess
import sys
from pathlib import Path

import espimages
import pytest
from esp_idf_defs.otadata import OtaDataSelectEntry
from outpost_tools import roots
from outpost_tools.cli import app as outpost
from outpost_tools.errors import OutpostError
from outpost_tools.explain import explain
from outpost_tools.firmwareimage import CHIPS, FROZEN, read_firmware
from outpost_tools.image import build_image
from outpost_tools.mpyfile import check_mpy, emitted
from outpost_tools.nvsimage import Identity
from outpost_tools.partitions import PartitionTable
from outpost_tools.paths import binary
from typer.testing import CliRunner

BUILD_TIME = 1_800_000_000


def build(firmware=None, **more) -> bytes:
    trust = roots.choose(["azure-rsa"])
    device = Identity("pump-7")
    return build_image(device, trust, build_time_s=BUILD_TIME, firmware=firmware, **more)


def image_info(content: bytes, folder, word: str) -> str:
    file = folder / "part.bin"
    file.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-m", "esptool", "--chip", word, "image-info", str(file)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("word", [chip.word for chip in CHIPS])
def test_a_release_file_goes_into_the_image_where_its_chip_looks_for_it(word, tmp_path):
    firmware = read_firmware(espimages.release(tmp_path, word))
    flash = build(firmware)
    at = espimages.chip(word).bootloader_at
    assert firmware.chip.word == word and firmware.version == "v1.26.1"
    assert flash[at:0x8000].startswith(espimages.bootloader(word))
    app = espimages.application(word)
    assert flash[0x10000:0x200000].startswith(app)
    assert not flash[0x10000 + len(app) : 0x200000].strip(b"\xff")
    assert [p.name for p in PartitionTable.from_binary(flash[0x8000:0x8C00])][2] == "factory"


def test_esptool_finds_both_images_in_the_flash_whole(tmp_path):
    flash = build(read_firmware(espimages.release(tmp_path)))
    for content in (flash[0x1000:0x8000], flash[0x10000:0x200000]):
        said = image_info(content, tmp_path, "esp32")
        assert "Checksum: " in said and "(valid)" in said and "(invalid" not in said


@pytest.mark.parametrize(("size", "nibble"), [(4, 2), (8, 3), (16, 4)])
@pytest.mark.parametrize("layout", ["single", "ota"])
def test_each_size_and_layout_has_its_table_and_says_the_size_in_the_bootloader(
    size, nibble, layout, tmp_path
):
    flash = build(read_firmware(espimages.release(tmp_path)), size_mib=size, layout=layout)
    assert len(flash) == size << 20 and flash[0x1003] >> 4 == nibble
    image_info(flash[0x1000:0x8000], tmp_path, "esp32")
    table = PartitionTable.from_binary(flash[0x8000:0x8C00])
    table.check_fits(size << 20)
    place = table.application
    assert flash[place.offset] == 0xE9
    assert place.name == ("factory" if layout == "single" else "ota_0")


def test_otadata_names_the_first_place_and_espressifs_reader_takes_it():
    flash = build(layout="ota")
    where = PartitionTable.from_binary(flash[0x8000:0x8C00])["otadata"]
    entry = OtaDataSelectEntry.from_bytes(flash[where.offset : where.offset + 32])
    assert entry is not None and entry.ota_slot(2) == 0 and entry.ota_state.name == "VALID"
    assert not flash[where.offset + 32 : where.end].strip(b"\xff")


def test_the_same_firmware_and_inputs_give_the_same_bytes(tmp_path):
    path = espimages.release(tmp_path)
    assert build(read_firmware(path), size_mib=8) == build(read_firmware(path), size_mib=8)


def test_an_application_alone_leaves_the_bootloaders_place_blank(tmp_path):
    file = tmp_path / "micropython.bin"
    file.write_bytes(espimages.application())
    flash = build(read_firmware(file))
    assert not flash[:0x8000].strip(b"\xff") and flash[0x10000] == 0xE9


def test_an_application_with_its_bootloader_is_as_the_release(tmp_path):
    app, boot = tmp_path / "micropython.bin", tmp_path / "bootloader.bin"
    app.write_bytes(espimages.application())
    boot.write_bytes(espimages.bootloader())
    assert build(read_firmware(app, boot)) == build(read_firmware(espimages.release(tmp_path)))


def refused(tmp_path, content: bytes, boot: bytes | None = None) -> str:
    file = tmp_path / "given.bin"
    file.write_bytes(content)
    bootloader = None
    if boot is not None:
        bootloader = tmp_path / "boot.bin"
        bootloader.write_bytes(boot)
    with pytest.raises(OutpostError) as caught:
        read_firmware(file, bootloader)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_firmware_is_refused_with_a_sentence(tmp_path):
    whole = espimages.release(tmp_path).read_bytes()
    assert "no firmware" in refused(tmp_path, b"")
    assert "no firmware" in refused(tmp_path, b"\x7fELF" + bytes(2000))
    assert "does not know" in refused(tmp_path, b"\xe9" + bytes(11) + b"\x77\x77" + bytes(2000))
    assert "is it a bootloader" in refused(tmp_path, espimages.bootloader())
    assert "larger than any flash" in refused(tmp_path, bytes((16 << 20) + 1))
    assert "checksum does not match" in refused(tmp_path, whole[:0x7002] + b"\x77" + whole[0x7003:])


@pytest.mark.parametrize("cut", [0x100, 0x6FFF, 0x7000, 0x7010, 0xF010, 0xF200, -40, -1])
def test_a_release_file_that_is_cut_short_is_refused_anywhere(cut, tmp_path):
    whole = espimages.release(tmp_path).read_bytes()
    refused(tmp_path, whole[:cut])


@pytest.mark.parametrize("at", [0x1800 - 0x1000, 0x10400 - 0x1000, 0x12000 - 0x1000])
def test_one_wrong_byte_in_a_release_file_is_refused(at, tmp_path):
    whole = bytearray(espimages.release(tmp_path).read_bytes())
    whole[at] ^= 1
    assert "damaged" in refused(tmp_path, bytes(whole))


def test_a_bootloader_that_does_not_go_with_it_is_refused(tmp_path):
    app = espimages.application()
    assert "another chip" in refused(tmp_path, app, espimages.bootloader("esp32s2"))
    assert "is an application" in refused(
        tmp_path, app, app[:0x6000] and espimages.application(size=64)
    )
    assert "too long" in refused(tmp_path, app, espimages.bootloader(size=0x7000))


def test_a_firmware_that_does_not_fit_says_what_to_do(tmp_path):
    file = tmp_path / "micropython.bin"
    file.write_bytes(espimages.application(size=1_700_000))
    firmware = read_firmware(file)
    build(firmware)
    with pytest.raises(OutpostError, match="--layout"):
        build(firmware, layout="ota")


def mpy(version=None, features=0, bits=31) -> bytes:
    return bytes([0x4D, emitted()[0] if version is None else version, features, bits]) + bytes(20)


def test_compiled_python_that_the_board_would_not_load_is_refused(tmp_path):
    check_mpy(mpy(), "a.mpy")
    check_mpy(mpy(features=10 << 2 | emitted()[1]), "a.mpy", "esp32")
    for wrong, words in (
        (mpy(version=5), "version 5"),
        (mpy(version=7), "version 7"),
        (mpy(features=10 << 2 | (emitted()[1] ^ 1)), "version 2"),
        (mpy(features=2 << 2 | emitted()[1]), "another chip"),
        (mpy(bits=63), "64-bit"),
        (b"print(1)\n", "no compiled Python"),
        (b"M", "no compiled Python"),
    ):
        with pytest.raises(OutpostError, match=words):
            check_mpy(wrong, "a.mpy")
    with pytest.raises(OutpostError, match="another chip"):
        check_mpy(mpy(features=11 << 2 | emitted()[1]), "a.mpy", "esp32")
    (tmp_path / "pump.mpy").write_bytes(mpy(version=5))
    with pytest.raises(OutpostError, match="version 5"):
        build(app=tmp_path)


def test_production_is_an_entry_of_the_nvs_and_nothing_else():
    plain, closed = build(), build(production=True)
    nvs = PartitionTable.from_binary(plain[0x8000:0x8C00])["nvs"]
    assert plain[: nvs.offset] == closed[: nvs.offset] and plain[nvs.end :] == closed[nvs.end :]
    assert plain != closed


def image_of(tmp_path, firmware: Path, *words: str):
    out = tmp_path / "made.bin"
    done = CliRunner().invoke(
        outpost,
        ["image", "pump-7", "--born", "--data", str(tmp_path / "data"), "-o", str(out)]
        + ["--firmware", str(firmware), *words],
    )
    return done, out


def test_an_image_with_a_release_of_micropython_has_the_library_in_its_file_system(tmp_path):
    """A release has none in it: the board would find no lib/outpost, and never connect."""
    done, out = image_of(tmp_path, espimages.release(tmp_path))
    assert done.exit_code == 0, done.output
    assert "lib/outpost goes into the file system" in done.output
    assert "/lib/outpost/device.mpy" in str(explain(out).raw())
    done, _ = image_of(tmp_path, espimages.release(tmp_path), "--library", "frozen")
    assert done.exit_code == 1 and "take --library flash" in done.output


def test_an_image_with_our_own_firmware_uses_the_library_in_it(tmp_path):
    own = tmp_path / "micropython.bin"
    own.write_bytes(espimages.application(more=FROZEN))
    done, out = image_of(tmp_path, own)
    assert done.exit_code == 0, done.output
    assert "/lib/outpost" not in str(explain(out).raw())


@pytest.mark.parametrize(("name", "frozen"), [("outpost32", True), ("stock32", False)])
def test_the_frozen_library_is_found_in_what_micropython_really_builds(name, frozen):
    assert (FROZEN in binary(name).read_bytes()) is frozen
