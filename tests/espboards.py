"""Our board definitions without ESP-IDF: MicroPython's own CMake and manifest tools run over them.

`configure` runs the ESP32 port's real CMakeLists.txt with a board of ours and a stand-in for
ESP-IDF's side of CMake (tests/espidf); `compile_c` compiles our C for the ESP32-C3's instruction
set. It owns nothing but the folder that it is given.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from servers import need

ROOT = Path(__file__).resolve().parent.parent
FIRMWARE = ROOT / "firmware"
BOARDS = FIRMWARE / "boards"
SOURCE = ROOT / "build" / "micropython" / "src"
STAND_IN = ROOT / "tests" / "espidf"
LIMIT_S = 120
RISCV = "riscv64-unknown-elf-gcc"

TOOLCHAIN = f"""\
set(CMAKE_SYSTEM_NAME Generic)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(CMAKE_C_COMPILER {RISCV})
set(CMAKE_ASM_COMPILER {RISCV})
"""
# As ports/esp32/esp32_common.cmake has it for MicroPython and its user modules.
AS_THE_PORT = ("-Wno-clobbered", "-Wno-deprecated-declarations", "-Wno-missing-field-initializers")


def script(name: str) -> ModuleType:
    """firmware/{name}.py, which finds build.py beside it as when it is run."""
    if str(FIRMWARE) not in sys.path:
        sys.path.insert(0, str(FIRMWARE))
    spec = importlib.util.spec_from_file_location(name, FIRMWARE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules.get(name) or importlib.util.module_from_spec(spec)
    if name not in sys.modules:
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return module


def boards() -> list[str]:
    return sorted(path.parent.name for path in BOARDS.glob("*/mpconfigboard.cmake"))


def shadow(folder: Path) -> Path:
    """MicroPython's tree by links, with a berkeley-db of empty files: Debian's package has none."""
    tree = folder / "micropython"
    (tree / "lib").mkdir(parents=True)
    for path in SOURCE.iterdir():
        if path.name != "lib":
            (tree / path.name).symlink_to(path)
    for path in (SOURCE / "lib").iterdir():
        if path.name != "berkeley-db-1.xx":
            (tree / "lib" / path.name).symlink_to(path)
    store = tree / "lib" / "berkeley-db-1.xx"
    for name in ("btree", "mpool", "include"):
        (store / name).mkdir(parents=True)
    (store / "README").touch()
    for part in "close conv debug delete get open overflow page put search seq split utils".split():
        (store / "btree" / f"bt_{part}.c").touch()
    (store / "mpool" / "mpool.c").touch()
    return tree


def configure(folder: Path, board: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The port's CMake over a board; what it came to lies in folder/build/seen.*."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = shadow(folder)
    (folder / "toolchain.cmake").write_text(TOOLCHAIN)
    need(RISCV, "gcc-riscv64-unknown-elf")
    words = [
        need("cmake", "cmake"),
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={need('ninja', 'ninja-build')}",
        "-S",
        str(tree / "ports" / "esp32"),
        "-B",
        str(folder / "build"),
        f"-DCMAKE_TOOLCHAIN_FILE={folder / 'toolchain.cmake'}",
        f"-DMICROPY_BOARD={board}",
        f"-DMICROPY_BOARD_DIR={BOARDS / board}",
        *arguments,
    ]
    environment = {"IDF_PATH": str(STAND_IN), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    return subprocess.run(
        words, capture_output=True, text=True, timeout=LIMIT_S, env=environment, check=False
    )


def seen(folder: Path, what: str) -> list[str]:
    text = (folder / "build" / f"seen.{what}").read_text()
    return [part for line in text.splitlines() for part in line.split(";") if part]


def compile_c(source: Path, to: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """One C file of ours as on an ESP32-C3, with every warning an error."""
    words = [
        need(RISCV, "gcc-riscv64-unknown-elf"),
        "--specs=picolibc.specs",
        "-march=rv32imc",
        "-mabi=ilp32",
        "-Os",
        "-std=gnu17",
        "-Wall",
        "-Wextra",
        "-Werror",
        *AS_THE_PORT,
        "-DESP_PLATFORM",
        f'-DMP_CONFIGFILE="{BOARDS / "mpconfigoutpost.h"}"',
        '-DMBEDTLS_CONFIG_FILE="embedded_mbedtls_config.h"',
        f"-I{STAND_IN / 'include'}",
        "-isystem",
        str(SOURCE),
        "-isystem",
        str(SOURCE / "lib" / "mbedtls" / "include"),
        f"-I{ROOT / 'build' / 'micropython' / 'outpost32'}",  # names that MicroPython generates
        f"-I{FIRMWARE / 'modules' / 'tlspolicy'}",
        *options,
        "-c",
        str(source),
        "-o",
        str(to),
    ]
    return subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
