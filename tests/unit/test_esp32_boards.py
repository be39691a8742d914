"""Our ESP32 boards, all that can be seen of them without ESP-IDF.

MicroPython's own CMake files and manifest tools are real; ESP-IDF's side of CMake and its headers
are stood in for by tests/espidf.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import espboards
import pytest
from esp_idf_defs.partitions import PartitionTable as Espressif
from espboards import BOARDS, FIRMWARE, ROOT, SOURCE, compile_c, configure, seen
from outpost_tools.partitions import PartitionTable

TARGETS = {"OUTPOST_ESP32": "esp32", "OUTPOST_ESP32C3": "esp32c3", "OUTPOST_ESP32S3": "esp32s3"}
STOCK = {"esp32": "ESP32_GENERIC", "esp32c3": "ESP32_GENERIC_C3", "esp32s3": "ESP32_GENERIC_S3"}
# Speed of a module's flash, which the image says and esptool knows; no Bluetooth in ours.
NOT_OURS = re.compile(r"BT_.*|ESPTOOLPY_FLASH(MODE|FREQ|SIZE)_.*|PARTITION_TABLE_CUSTOM_FILENAME")
# Those of Mbed TLS's own CMakeLists.txt, which ESP-IDF builds it with.
AS_MBED_TLS = (
    "-Wwrite-strings -Wmissing-prototypes -Wformat=2 -Wno-format-nonliteral -Wvla -Wlogical-op "
    "-Wshadow -Wformat-signedness -Wformat-overflow=2 -Wformat-truncation"
).split()
TLS = sorted((SOURCE / "lib" / "mbedtls" / "library").glob("ssl_*.c"))
MODULES = f"-DUSER_C_MODULES={FIRMWARE / 'modules' / 'micropython.cmake'}"
OURS = sorted((FIRMWARE / "modules").glob("*/*.c"))
esp32 = espboards.script("esp32")


def test_the_three_boards_are_there_and_no_other() -> None:
    assert espboards.boards() == esp32.boards() == sorted(TARGETS)


@pytest.fixture(scope="module", params=sorted(TARGETS))
def configured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(board, folder) of a board that CMake has read: 4 MiB, one application."""
    folder = tmp_path_factory.mktemp(request.param)
    done = configure(folder, request.param, MODULES)
    assert done.returncode == 0, done.stderr[-900:]
    return request.param, folder


def test_cmake_takes_the_board_with_our_modules_and_manifest(configured) -> None:
    board, folder = configured
    definitions, linked = seen(folder, "definitions"), seen(folder, "linked")
    assert f'MP_CONFIGFILE="{BOARDS / "mpconfigoutpost.h"}"' in definitions
    assert seen(folder, "manifest") == [str(BOARDS / "manifest.py")]
    assert {str(path) for path in OURS} == set(seen(folder, "usermod"))
    # MicroPython's module of partitions is compiled against our names, so that it reads no NVS.
    assert "esp_partition_read=tlspolicy_partition_read" in seen(folder, "closed")
    assert not [path for path in seen(folder, "missing") if path.startswith(str(ROOT / "firmware"))]
    assert "-Wl,--wrap=esp_wifi_set_mode" in linked
    assert "-Wl,--wrap=mbedtls_ssl_setup" in linked
    user = FIRMWARE / "modules" / "tlspolicy" / "tlspolicy_config.h"
    assert seen(folder, "mbedtls") == [f'MBEDTLS_USER_CONFIG_FILE="{user}"']
    cache = (folder / "build" / "sdkconfig.combined").read_text()
    assert f'PARTITION_TABLE_CUSTOM_FILENAME="{BOARDS / "partitions-4MiB.csv"}"' in cache
    assert "IDF_TARGET" in (BOARDS / board / "mpconfigboard.cmake").read_text()


def test_our_settings_are_the_last_word_over_micropythons(configured) -> None:
    """The stock file says DTLS=y and other things; ours come after it."""
    board, folder = configured
    got = dict(line.split("=", 1) for line in seen(folder, "sdkconfig"))
    asked = esp32.settings((BOARDS / "sdkconfig.outpost").read_text())
    asked |= esp32.settings((BOARDS / board / "sdkconfig.board").read_text())
    asked |= esp32.settings((folder / "build" / "sdkconfig.chosen").read_text())
    for name, value in asked.items():
        assert got[name] == ("" if value == "n" else value.strip('"')), name
    assert got["BOOTLOADER_APP_ROLLBACK_ENABLE"] == "y"
    assert got["ESPTOOLPY_FLASHSIZE_4MB"] == "y" and not got["ESPTOOLPY_FLASHSIZE_8MB"]
    # Stock's settings are there too: without them the port does not build.
    assert got["FREERTOS_THREAD_LOCAL_STORAGE_POINTERS"] == "2"


def test_a_chip_has_what_stocks_own_board_of_it_sets(configured) -> None:
    """Some of that is there because the chip does not run without."""
    board, folder = configured
    got = dict(line.split("=", 1) for line in seen(folder, "sdkconfig"))
    stock = SOURCE / "ports" / "esp32" / "boards" / STOCK[TARGETS[board]]
    named = re.findall(r"boards/\S+", (stock / "mpconfigboard.cmake").read_text())
    theirs: dict[str, str] = {}
    for name in named or ["boards/sdkconfig.base"]:
        theirs |= esp32.settings((stock.parent.parent / name).read_text())
    ours = esp32.settings((BOARDS / "sdkconfig.outpost").read_text())
    for name, value in theirs.items():
        if name not in ours and not NOT_OURS.fullmatch(name):
            assert got.get(name, "") == ("" if value == "n" else value.strip('"')), name


@pytest.mark.parametrize(
    ("arguments", "table", "more"),
    [
        (
            ("-DOUTPOST_LAYOUT=ota",),
            "partitions-4MiB-ota.csv",
            "CONFIG_COMPILER_OPTIMIZATION_SIZE=y",
        ),
        (("-DOUTPOST_FLASH_MIB=8",), "partitions-8MiB.csv", "CONFIG_ESPTOOLPY_FLASHSIZE_8MB=y"),
        (
            ("-DOUTPOST_FLASH_MIB=16", "-DOUTPOST_LAYOUT=ota", "-DOUTPOST_ENCRYPTED=ON"),
            "partitions-16MiB-ota.csv",
            "CONFIG_NVS_ENCRYPTION=y",
        ),
    ],
)
def test_layout_and_size_choose_table_and_settings(
    arguments: tuple[str, ...], table: str, more: str, tmp_path: Path
) -> None:
    done = configure(tmp_path, "OUTPOST_ESP32S3", MODULES, *arguments)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "build" / "sdkconfig.combined").read_text()
    assert f'CONFIG_PARTITION_TABLE_CUSTOM_FILENAME="{BOARDS / table}"' in text
    assert more in text.splitlines()


@pytest.mark.parametrize("argument", ["-DOUTPOST_LAYOUT=three", "-DOUTPOST_FLASH_MIB=5"])
def test_a_layout_that_is_not_there_ends_the_configuration(argument: str, tmp_path: Path) -> None:
    done = configure(tmp_path, "OUTPOST_ESP32", MODULES, argument)
    assert done.returncode != 0
    assert "single or ota" in done.stderr or "no partition table" in done.stderr


def test_every_setting_is_known_where_esp_idf_has_it() -> None:
    listed = set(tomllib.loads((BOARDS / "options.toml").read_text())["options"])
    used: set[str] = set()
    for path in [*BOARDS.glob("sdkconfig.*"), *BOARDS.glob("*/sdkconfig.*")]:
        used |= set(esp32.settings(path.read_text()))
    used |= set(re.findall(r"CONFIG_([A-Z0-9_]+)=", (BOARDS / "outpost.cmake").read_text()))
    used = {name for name in used if name != "ESPTOOLPY_FLASHSIZE_"}
    assert used - listed == set(), "looked up in no Kconfig: add them to options.toml"
    chosen = {f"ESPTOOLPY_FLASHSIZE_{size}MB" for size in (2, 4, 8, 16, 32)}
    assert listed - used - chosen == set(), "listed and not used"


@pytest.mark.parametrize("layout", esp32.LAYOUTS)
@pytest.mark.parametrize("size", esp32.FLASH_MIB)
def test_espressifs_parser_takes_the_table_with_the_keys_of_the_nvs(
    size: int, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CSV that ESP-IDF is given where the NVS is encrypted is the table of the image."""
    monkeypatch.setattr(esp32, "OUT", tmp_path)
    order = esp32.Order("OUTPOST_ESP32", tmp_path, tmp_path, layout, size, encrypted=True)
    arguments = esp32.cmake_arguments(order)
    path = Path(arguments[-1].partition("=")[2])
    theirs = Espressif.from_csv(path.read_text())
    theirs.verify()
    keys = next(p for p in theirs if p.name == "nvs_keys")
    assert keys.encrypted and keys.size == 0x1000
    assert esp32.table(order).to_binary().rstrip(b"\xff") == theirs.to_binary().rstrip(b"\xff")


def test_the_single_layout_has_stocks_application_slot() -> None:
    table = PartitionTable.for_size(4)
    assert (table.application.offset, table.application.size) == (0x10000, 0x1F0000)


@pytest.mark.parametrize("march", ["xtensawin", "rv32imc"])
def test_the_manifest_freezes_for_the_chip(march: str, tmp_path: Path) -> None:
    """By MicroPython's own tool, with the flags of the port for both kinds of chip."""
    out = tmp_path / "frozen_content.c"
    genhdr = ROOT / "build" / "micropython" / "outpost32" / "genhdr"
    words = [
        sys.executable,
        str(SOURCE / "tools" / "makemanifest.py"),
        "-o",
        str(out),
        "-v",
        f"MPY_DIR={SOURCE}",
        "-v",
        f"PORT_DIR={SOURCE / 'ports' / 'esp32'}",
        "-v",
        f"MPY_LIB_DIR={tmp_path}",
        "-v",
        f"BOARD_DIR={BOARDS / 'OUTPOST_ESP32'}",
        "-b",
        str(tmp_path),
        f"-f-march={march}",
        str(BOARDS / "manifest.py"),
    ]
    environment = {"MICROPY_MPYCROSS": str(ROOT / "build" / "bin" / "mpy-cross")}
    (tmp_path / "genhdr").symlink_to(genhdr)
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = out.read_text()
    for path in [*(ROOT / "lib" / "outpost").glob("*.py")]:
        assert f"outpost/{path.name}" in text, path.name
    for name in ("_boot.py", "inisetup.py", "flashbdev.py", "umqtt/simple.py"):
        assert name in text
    assert "webrepl" not in text


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_our_c_compiles_for_an_esp32_c3_without_a_warning(path: Path, tmp_path: Path) -> None:
    done = compile_c(path, tmp_path / "out.o")
    assert done.returncode == 0, done.stderr
    done = compile_c(path, tmp_path / "out.o", "-DCONFIG_NVS_ENCRYPTION=1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", TLS, ids=lambda path: path.name)
def test_mbed_tls_takes_our_configuration_without_a_warning(path: Path, tmp_path: Path) -> None:
    """The length of a record is a variable there; ESP-IDF builds it with -Werror."""
    done = compile_c(path, tmp_path / "out.o", *AS_MBED_TLS)
    assert done.returncode == 0, done.stderr


def test_what_is_wrapped_is_what_we_define(tmp_path: Path) -> None:
    """The linker's list in CMake and the functions in C are the same on ESP32."""
    asked, defined = set(), set()
    for path in (FIRMWARE / "modules").glob("*/micropython.cmake"):
        text = path.read_text()
        asked |= set(re.findall(r"--wrap=(\w+)", text))
        if block := re.search(r"set\(TLSPOLICY_WRAPPED(.*?)\)", text, re.DOTALL):
            asked |= set(block[1].split())
    for path in OURS:
        done = compile_c(path, tmp_path / "out.o")
        assert done.returncode == 0, done.stderr
        symbols = subprocess.run(
            ["riscv64-unknown-elf-nm", "--defined-only", str(tmp_path / "out.o")],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        defined |= set(re.findall(r" T __wrap_(\w+)", symbols))
    assert asked == defined


def test_webrepl_is_out_of_the_configuration(tmp_path: Path) -> None:
    probe = tmp_path / "probe.c"
    probe.write_text(
        '#include "py/mpconfig.h"\n'
        "#if MICROPY_PY_WEBREPL || MICROPY_PY_WEBSOCKET || MICROPY_PY_SOCKET_EVENTS\n"
        '#error "still in"\n#endif\n'
        "int probe;\n"
    )
    done = compile_c(probe, tmp_path / "probe.o")
    assert done.returncode == 0, done.stderr
    # The probe can fail: without our configuration it is still in.
    assert compile_c(probe, tmp_path / "probe.o", "-UMP_CONFIGFILE").returncode != 0


@pytest.mark.parametrize("board", sorted(TARGETS))
def test_the_header_of_the_board_sets_the_start_up_hook(board: str, tmp_path: Path) -> None:
    probe = tmp_path / "probe.c"
    probe.write_text(
        f'#include "{BOARDS / board / "mpconfigboard.h"}"\n'
        "#if MICROPY_PY_BLUETOOTH || MICROPY_PY_ESPNOW || MICROPY_HW_ENABLE_MDNS_RESPONDER\n"
        '#error "still in"\n#endif\n'
        "void (*hook)(void) = MICROPY_BOARD_STARTUP;\n"
        "const char *name = MICROPY_HW_MCU_NAME;\n"
    )
    done = compile_c(probe, tmp_path / "probe.o")
    assert done.returncode == 0, done.stderr
    assert TARGETS[board].upper() in (BOARDS / board / "mpconfigboard.h").read_text()
