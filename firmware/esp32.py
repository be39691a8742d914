#!/usr/bin/env python3
"""Builds our firmware for a real board: what `make firmware` calls.

From a clone of MicroPython and an installed ESP-IDF, both the user's. It refuses versions that
cannot join small TLS records, runs MicroPython's own build with our board, and then looks whether
each of our settings took and whether the partition table is the one that `outpost image` writes. It
owns build/firmware/, never downloads ESP-IDF or a toolchain, and changes neither tree.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import build
from build import ROOT, VERSIONS, BuildError, plain, say, version_numbers

BOARDS = build.FIRMWARE / "boards"
OUT = ROOT / "build" / "firmware"
LAYOUTS = ("single", "ota")
FLASH_MIB = (4, 8, 16)
# The sentence that facts gave us; a board that is built otherwise cannot use small records.
WHY = (
    "older ones have an Mbed TLS before 3.6.3, which cannot join a certificate message that "
    "comes in several small records"
)


@dataclass(frozen=True)
class Order:
    """One firmware: for which board, from what, laid out how."""

    board: str
    micropython: Path
    idf: Path
    layout: str = "single"
    flash_mib: int = 4
    encrypted: bool = False

    @property
    def name(self) -> str:
        more = "-encrypted" if self.encrypted else ""
        return f"{self.board}-{self.flash_mib}MiB-{self.layout}{more}"

    @property
    def out(self) -> Path:
        return OUT / self.name


def boards() -> list[str]:
    return sorted(path.parent.name for path in BOARDS.glob("*/mpconfigboard.cmake"))


# ------------------------------------------------------------------- what it is built from


def shown(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise BuildError(what) from None


def check_micropython(clone: Path) -> tuple[int, ...]:
    """The version of a clone that will do; BuildError for one that will not."""
    text = read(
        clone / "py" / "mpconfig.h",
        f"MICROPYTHON_DIR={clone} is not a clone of MicroPython.",
    )
    found = [re.search(rf"VERSION_{part}\s+(\d+)", text) for part in ("MAJOR", "MINOR", "MICRO")]
    if not all(found):
        raise BuildError(f"MICROPYTHON_DIR={clone} says no version in py/mpconfig.h.")
    version = tuple(int(match[1]) for match in found if match)
    minimum = version_numbers(VERSIONS["esp32"]["micropython_minimum"])
    if version < minimum:
        raise BuildError(
            f"MicroPython {shown(version)} will not do for a board: take {shown(minimum)} or "
            f"later, with ESP-IDF {VERSIONS['esp32']['idf_minimum']} or later; {WHY}."
        )
    if not (clone / "ports" / "esp32" / "Makefile").is_file():
        raise BuildError(f"MICROPYTHON_DIR={clone} has no ports/esp32: take the whole clone.")
    # What the port's own CMake asks for; what else it needs comes from Espressif's registry.
    for module, file in (("berkeley-db-1.xx", "README"), ("micropython-lib", "README.md")):
        if not (clone / "lib" / module / file).is_file():
            raise BuildError(
                f"The clone has no lib/{module}: run `make -C {clone}/ports/esp32 submodules` "
                "with ESP-IDF's tools in the path."
            )
    return version


def check_idf(idf: Path) -> tuple[int, ...]:
    """The version of an ESP-IDF that will do; BuildError for one that will not."""
    text = read(
        idf / "tools" / "cmake" / "version.cmake",
        f"IDF_PATH={idf} is not an installed ESP-IDF.",
    )
    found = [
        re.search(rf"IDF_VERSION_{part}\s+(\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")
    ]
    if not all(found):
        raise BuildError(f"IDF_PATH={idf} says no version in tools/cmake/version.cmake.")
    version = tuple(int(match[1]) for match in found if match)
    minimum = version_numbers(VERSIONS["esp32"]["idf_minimum"])
    if version < minimum:
        raise BuildError(
            f"ESP-IDF {shown(version)} will not do: take {shown(minimum)} or later, with "
            f"MicroPython {VERSIONS['esp32']['micropython_minimum']} or later; {WHY}."
        )
    if version >= version_numbers(VERSIONS["esp32"]["idf_below"]):
        raise BuildError(
            f"ESP-IDF {shown(version)} will not do: its Mbed TLS is 4, and tlspolicy is written "
            f"for 3.6; take {shown(minimum)} or a later 5."
        )
    header = idf / "components" / "mbedtls" / "mbedtls" / "include" / "mbedtls" / "build_info.h"
    text = read(
        header,
        f"IDF_PATH={idf} has no components/mbedtls/mbedtls: run `git submodule update --init "
        "--recursive` there.",
    )
    match = re.search(r'MBEDTLS_VERSION_STRING\s+"([^"]+)"', text)
    build.check_mbedtls(version_numbers(match[1] if match else ""))
    return version


def check(order: Order) -> str:
    """Refuses what cannot be built, in a sentence; else what it is built from."""
    if order.board not in boards():
        raise BuildError(
            f"There is no board {order.board!r}: BOARD is one of {', '.join(boards())}."
        )
    versions = check_micropython(order.micropython), check_idf(order.idf)
    for path in (order.micropython, order.idf):
        plain(path)  # a blank in a path breaks make
    return f"MicroPython {shown(versions[0])}, ESP-IDF {shown(versions[1])}"


# ----------------------------------------------------------------------------------- build


def table(order: Order):  # type: ignore[no-untyped-def]
    """The partition table, by the same code as `outpost image`."""
    from outpost_tools import agreed
    from outpost_tools.partitions import PartitionTable

    found = PartitionTable.for_size(order.flash_mib, order.layout)
    return found.with_nvs_keys(agreed.VFS_LABEL) if order.encrypted else found


def cmake_arguments(order: Order) -> list[str]:
    arguments = [
        f"-DUSER_C_MODULES={plain(build.FIRMWARE / 'modules' / 'micropython.cmake')}",
        f"-DOUTPOST_LAYOUT={order.layout}",
        f"-DOUTPOST_FLASH_MIB={order.flash_mib}",
    ]
    if order.encrypted:
        path = order.out / "partitions.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            f"{p.name}, {p.type}, {p.subtype:#x}, {p.offset:#x}, {p.size:#x},"
            + (" encrypted" if p.flags & 1 else "")
            for p in table(order)
        ]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        arguments += ["-DOUTPOST_ENCRYPTED=ON", f"-DOUTPOST_PARTITIONS={plain(path)}"]
    return arguments


def command(order: Order) -> list[str]:
    """MicroPython's own build with our board; idf.py from the path, or by export.sh."""
    make = [
        "make",
        "-C",
        plain(order.micropython / "ports" / "esp32"),
        f"BOARD={order.board}",
        f"BOARD_DIR={plain(BOARDS / order.board)}",
        f"BUILD={plain(order.out / 'esp-idf')}",
        f"CMAKE_ARGS={' '.join(cmake_arguments(order))}",
    ]
    if shutil.which("idf.py"):
        return make
    export = order.idf / "export.sh"
    if not export.is_file():
        raise BuildError(f"There is no idf.py in the path, and no {export}: install ESP-IDF first.")
    return ["bash", "-c", f". {shlex.quote(str(export))} >/dev/null && exec {shlex.join(make)}"]


def run(order: Order) -> None:
    with build.one_at_a_time():
        build.make_umqtt()
        build.make_rescue_boot()
    order.out.mkdir(parents=True, exist_ok=True)
    log = order.out / "build.log"
    say(f"{order.name}: building; the whole output goes to {log.relative_to(ROOT)}")
    words = command(order)
    # ESP-IDF would go by the settings of the last build, whatever our files say by now.
    (order.out / "esp-idf" / "sdkconfig").unlink(missing_ok=True)
    environment = {**build.make_environment(), "IDF_PATH": str(order.idf)}
    with log.open("wb") as out:
        out.write(f"{shlex.join(words)}\n".encode())
        out.flush()
        done = subprocess.run(words, env=environment, stdout=out, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        tail = log.read_text(errors="replace").splitlines()[-20:]
        say("\n".join(tail))
        raise BuildError(f"{order.name} did not build: see {log.relative_to(ROOT)}.")
    judge(order)


# -------------------------------------------------------------------------------- judgement


def settings(text: str) -> dict[str, str]:
    """CONFIG_ lines of an sdkconfig, the last of each; what is not set is n."""
    found = {}
    for line in text.splitlines():
        line = line.strip()
        if match := re.fullmatch(r"CONFIG_(\w+)=(.*)", line):
            found[match[1]] = match[2] or "n"
        elif match := re.fullmatch(r"# CONFIG_(\w+) is not set", line):
            found[match[1]] = "n"
    return found


def wanted(order: Order) -> dict[str, str]:
    """What our files ask for, the later before the earlier."""
    files = [BOARDS / "sdkconfig.outpost", BOARDS / order.board / "sdkconfig.board"]
    files.append(order.out / "esp-idf" / "sdkconfig.chosen")
    if order.encrypted:
        files.append(BOARDS / "sdkconfig.encrypted")
    asked: dict[str, str] = {}
    for path in files:
        asked |= settings(read(path, f"{path.name} is missing: the build has not run."))
    return asked


def not_taken(asked: dict[str, str], got: dict[str, str]) -> list[str]:
    """Which settings came out otherwise. An option that does not exist is the same as n."""
    return sorted(name for name, value in asked.items() if got.get(name, "n") != value)


def judge(order: Order) -> None:
    """Whether what was built is what was asked for; then says where it lies and what comes next."""
    made = order.out / "esp-idf"
    got = settings(read(made / "sdkconfig", f"{order.name} left no sdkconfig."))
    if missed := not_taken(wanted(order), got):
        raise BuildError(
            f"ESP-IDF did not take these settings: {', '.join(missed)}. Look in its Kconfig what "
            "they depend on (firmware/boards/options.toml says where)."
        )
    try:
        binary = (made / "partition_table" / "partition-table.bin").read_bytes()
        size = (made / "micropython.bin").stat().st_size
    except OSError as why:
        raise BuildError(f"{order.name} left no {Path(why.filename or '').name}.") from None
    ours = table(order)
    if binary.rstrip(b"\xff") != ours.to_binary().rstrip(b"\xff"):
        raise BuildError("ESP-IDF made another partition table than `outpost image` would write.")
    room = ours.application.size
    if size > room:
        raise BuildError(f"The application has {size} bytes; its place in the flash has {room}.")
    say(f"{order.name}: {size} of {room} bytes in {made.relative_to(ROOT)}")
    chosen = f" --size {order.flash_mib}" if order.flash_mib != 4 else ""
    say(
        f"next: outpost image DEVICE -o DEVICE.bin --firmware {made.relative_to(ROOT)}/firmware.bin"
        f" --layout {order.layout}{chosen}"
    )


def order_of(options: argparse.Namespace) -> Order:
    for name, value in (("MICROPYTHON_DIR", options.micropython), ("IDF_PATH", options.idf)):
        if not value:
            raise BuildError(f"Say {name}=...: `make firmware` builds from your own {name}.")
    return Order(
        options.board,
        Path(options.micropython).expanduser().resolve(),
        Path(options.idf).expanduser().resolve(),
        options.layout,
        options.flash_mib,
        options.encrypted,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Builds our firmware for a real board into build/firmware/.",
        epilog="example: make firmware BOARD=OUTPOST_ESP32 MICROPYTHON_DIR=~/micropython "
        "IDF_PATH=~/esp-idf",
    )
    parser.add_argument("--board", default="OUTPOST_ESP32", help=", ".join(boards()))
    parser.add_argument("--micropython", default="", help="a clone, 1.26 or later")
    parser.add_argument("--idf", default=os.environ.get("IDF_PATH", ""), help="5.4.2 or later")
    parser.add_argument("--layout", choices=LAYOUTS, default="single")
    parser.add_argument("--flash-mib", type=int, choices=FLASH_MIB, default=4)
    parser.add_argument("--encrypted", action="store_true", help="flash and NVS encryption")
    options = parser.parse_args()
    try:
        order = order_of(options)
        say(f"{order.name}: {check(order)}")
        run(order)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.strerror or error} ({error.filename}).", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
