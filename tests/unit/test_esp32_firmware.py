"""`make firmware`: what it refuses, what it calls, and how it judges what came out.

MicroPython, ESP-IDF and make's work are made up here, as trees of a few files; the build itself
needs a real ESP-IDF.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import espboards
import pytest

esp32 = espboards.script("esp32")
build = espboards.script("build")


def clone(folder: Path, version: str = "1.26.1", submodules: bool = True) -> Path:
    major, minor, micro = version.split(".")
    tree = folder / "micropython"
    (tree / "py").mkdir(parents=True)
    (tree / "py" / "mpconfig.h").write_text(
        f"#define MICROPY_VERSION_MAJOR {major}\n#define MICROPY_VERSION_MINOR {minor}\n"
        f"#define MICROPY_VERSION_MICRO {micro}\n"
    )
    (tree / "ports" / "esp32").mkdir(parents=True)
    # As `make -C ports/esp32 submodules` leaves a clone of 1.26 or later: lib/tinyusb stays empty.
    for module, file in (
        ("berkeley-db-1.xx", "README"),
        ("micropython-lib", "README.md"),
        ("tinyusb", None),
    ):
        (tree / "lib" / module).mkdir(parents=True)
        if submodules and file:
            (tree / "lib" / module / file).touch()
    (tree / "ports" / "esp32" / "Makefile").write_text(MAKEFILE)
    return tree


# Does what ESP-IDF's build would leave behind, out of the files that the test puts beside it.
MAKEFILE = """\
all:
\t@test ! -e $(BUILD)/sdkconfig || echo kept > kept
\t@echo "$(BOARD)|$(BOARD_DIR)|$(CMAKE_ARGS)|$$IDF_PATH" > called
\t@mkdir -p $(BUILD)
\t@cp -r result/. $(BUILD)
"""


def idf(folder: Path, version: str = "5.4.2", mbedtls: str | None = "3.6.3") -> Path:
    major, minor, patch = version.split(".")
    tree = folder / "esp-idf"
    (tree / "tools" / "cmake").mkdir(parents=True)
    (tree / "tools" / "cmake" / "version.cmake").write_text(
        f"set(IDF_VERSION_MAJOR {major})\nset(IDF_VERSION_MINOR {minor})\n"
        f"set(IDF_VERSION_PATCH {patch})\n"
    )
    if mbedtls:
        header = tree / "components/mbedtls/mbedtls/include/mbedtls/build_info.h"
        header.parent.mkdir(parents=True)
        header.write_text(f'#define MBEDTLS_VERSION_STRING         "{mbedtls}"\n')
    (tree / "export.sh").write_text("export EXPORTED=1\n")
    return tree


def refused(order) -> str:
    with pytest.raises(build.BuildError) as caught:
        esp32.check(order)
    return str(caught.value)


BOARD = "OUTPOST_ESP32"


@pytest.mark.parametrize("version", ["1.25.0", "1.22.2", "0.9.9"])
def test_an_older_micropython_is_refused_with_the_reason(version: str, tmp_path: Path) -> None:
    said = refused(esp32.Order(BOARD, clone(tmp_path, version), idf(tmp_path)))
    assert f"MicroPython {version} will not do" in said and "1.26.0 or later" in said
    assert "cannot join a certificate message that comes in several small records" in said


@pytest.mark.parametrize("version", ["5.4.1", "5.2.2", "4.4.8"])
def test_an_older_esp_idf_is_refused_with_the_reason(version: str, tmp_path: Path) -> None:
    said = refused(esp32.Order(BOARD, clone(tmp_path), idf(tmp_path, version)))
    assert f"ESP-IDF {version} will not do" in said and "5.4.2 or later" in said
    assert "cannot join a certificate message that comes in several small records" in said


def test_an_esp_idf_with_another_mbedtls_is_refused(tmp_path: Path) -> None:
    said = refused(esp32.Order(BOARD, clone(tmp_path), idf(tmp_path, "6.0.0", "4.0.0")))
    assert "ESP-IDF 6.0.0 will not do" in said and "Mbed TLS is 4" in said


@pytest.mark.parametrize(
    ("version", "words"), [("3.6.2", "3.6.2 will not do"), (None, "submodule")]
)
def test_the_mbedtls_that_is_really_there_decides(
    version: str | None, words: str, tmp_path: Path
) -> None:
    assert words in refused(esp32.Order(BOARD, clone(tmp_path), idf(tmp_path, "5.4.2", version)))


def test_what_is_not_a_tree_is_refused(tmp_path: Path) -> None:
    good, other = clone(tmp_path), idf(tmp_path)
    assert "is not a clone" in refused(esp32.Order(BOARD, tmp_path, other))
    assert "is not an installed ESP-IDF" in refused(esp32.Order(BOARD, good, tmp_path))
    assert "BOARD is one of OUTPOST_ESP32, " in refused(esp32.Order("ESP32_GENERIC", good, other))
    bare = clone(tmp_path / "bare", submodules=False)
    assert "submodules" in refused(esp32.Order(BOARD, bare, other))
    (bare / "lib" / "berkeley-db-1.xx" / "README").touch()
    assert "no lib/micropython-lib" in refused(esp32.Order(BOARD, bare, other))


def test_the_versions_that_will_do_are_told(tmp_path: Path) -> None:
    order = esp32.Order(BOARD, clone(tmp_path, "1.28.0"), idf(tmp_path, "5.5.1", "3.6.5"))
    assert esp32.check(order) == "MicroPython 1.28.0, ESP-IDF 5.5.1"


def test_make_firmware_says_what_it_lacks() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "IDF_PATH"}
    words = [sys.executable, str(espboards.FIRMWARE / "esp32.py"), "--board", BOARD]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 1 and "Say MICROPYTHON_DIR=" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An order whose make leaves behind what ESP-IDF would, where everything took."""
    monkeypatch.setattr(esp32, "OUT", tmp_path / "out")
    monkeypatch.setattr(esp32, "ROOT", tmp_path)
    monkeypatch.setattr(build, "make_umqtt", lambda: "")
    order = esp32.Order(BOARD, clone(tmp_path), idf(tmp_path))
    result = order.micropython / "ports" / "esp32" / "result"
    (result / "partition_table").mkdir(parents=True)
    (result / "partition_table" / "partition-table.bin").write_bytes(esp32.table(order).to_binary())
    (result / "micropython.bin").write_bytes(bytes(1 << 20))
    chosen = "CONFIG_PARTITION_TABLE_CUSTOM=y\nCONFIG_ESPTOOLPY_FLASHSIZE_8MB=n\n"
    (result / "sdkconfig.chosen").write_text(chosen)
    asked = esp32.settings((esp32.BOARDS / "sdkconfig.outpost").read_text()) | esp32.settings(
        chosen
    )
    lines = [
        f"# CONFIG_{name} is not set" if value == "n" else f"CONFIG_{name}={value}"
        for name, value in asked.items()
    ]
    (result / "sdkconfig").write_text("\n".join(lines) + "\nCONFIG_SOMETHING_ELSE=y\n")
    return order, result


def test_a_build_calls_micropythons_make_with_our_board(made, capsys) -> None:
    order, _ = made
    esp32.run(order)
    called = (order.micropython / "ports" / "esp32" / "called").read_text().strip().split("|")
    assert called[0] == BOARD and called[1] == str(esp32.BOARDS / BOARD)
    assert "-DOUTPOST_LAYOUT=single" in called[2] and "-DOUTPOST_FLASH_MIB=4" in called[2]
    assert f"-DUSER_C_MODULES={espboards.FIRMWARE / 'modules' / 'micropython.cmake'}" in called[2]
    assert called[3] == str(order.idf)
    said = capsys.readouterr().out
    assert "1048576 of 2031616 bytes" in said and "--firmware" in said and "--layout single" in said


def test_a_second_build_asks_for_our_settings_anew(made) -> None:
    """ESP-IDF reads the defaults only where there is no sdkconfig of an earlier build."""
    order, _ = made
    esp32.run(order)
    esp32.run(order)
    assert (order.out / "esp-idf" / "sdkconfig").is_file()
    assert not (order.micropython / "ports" / "esp32" / "kept").exists()


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE=y", "", "BOOTLOADER_APP_ROLLBACK_ENABLE"),
        (
            "# CONFIG_MBEDTLS_DYNAMIC_BUFFER is not set",
            "CONFIG_MBEDTLS_DYNAMIC_BUFFER=y",
            "MBEDTLS_DYNAMIC_BUFFER",
        ),
        ("CONFIG_PARTITION_TABLE_CUSTOM=y", "CONFIG_PARTITION_TABLE_CUSTOM=n", "TABLE_CUSTOM"),
    ],
)
def test_a_setting_that_did_not_take_fails_the_build(old: str, new: str, named: str, made) -> None:
    order, result = made
    path = result / "sdkconfig"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(build.BuildError, match=rf"did not take these settings: \w*{named}"):
        esp32.run(order)


def test_another_partition_table_fails_the_build(made) -> None:
    order, result = made
    other = esp32.Order(BOARD, order.micropython, order.idf, "ota")
    table = esp32.table(other).to_binary()
    (result / "partition_table" / "partition-table.bin").write_bytes(table)
    with pytest.raises(build.BuildError, match="another partition table"):
        esp32.run(order)


def test_an_application_that_does_not_fit_fails_the_build(made) -> None:
    order, result = made
    with (result / "micropython.bin").open("r+b") as file:
        file.truncate(0x1F0001)
    with pytest.raises(build.BuildError, match="has 2031617 bytes; its place in the flash has"):
        esp32.run(order)


def test_a_make_that_fails_shows_the_end_of_its_log(made, capsys) -> None:
    order, _ = made
    makefile = order.micropython / "ports" / "esp32" / "Makefile"
    makefile.write_text("all:\n\t@echo the reason && false\n")
    with pytest.raises(build.BuildError, match="did not build: see"):
        esp32.run(order)
    assert "the reason" in capsys.readouterr().out


def test_without_idf_py_the_tools_of_that_esp_idf_are_used(made, monkeypatch) -> None:
    order, _ = made
    assert esp32.command(order)[0] == "bash" and "export.sh" in esp32.command(order)[2]
    (order.idf / "export.sh").unlink()
    with pytest.raises(build.BuildError, match="install ESP-IDF first"):
        esp32.command(order)
