"""The virtual board's flash and NVS, compiled alone and driven from Python through ctypes.

Owns the shared library that it builds into build/tests/ from the files in SOURCES.
Never starts a MicroPython: the same C code as in the board, without the board.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import mmap
import os
import struct
import subprocess
import zlib
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
VIRTUAL = REPO / "firmware" / "virtual"

SOURCES = ("flash*.[ch]", "nvs*.[ch]", "md5.[ch]", "bytes.h", "board_err.c")
MIB = 1024 * 1024
SECTOR = 4096
CLEAN, TORN, ODD = 0, 1, 2

INVALID_ARG = 0x102
INVALID_SIZE = 0x104
POWER_GONE = 0x6001
NOT_INITIALIZED = 0x1101
NOT_FOUND = 0x1102
NOT_ENOUGH_SPACE = 0x1105
KEY_TOO_LONG = 0x1109
INVALID_LENGTH = 0x110C
NO_FREE_PAGES = 0x110D
READ_ONLY = 0x1104
NOT_ALLOWED = 0x10D
VALUE_TOO_LONG = 0x110E
NEW_VERSION_FOUND = 0x1110


class FlashCounts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("erases", "programs", "bytes_programmed")]


class NvsStatus(ctypes.Structure):
    _fields_ = [
        ("error", ctypes.c_int),
        ("pages", ctypes.c_uint),
        ("pages_free", ctypes.c_uint),
        ("pages_unreadable", ctypes.c_uint),
        ("entries_used", ctypes.c_uint),
        ("entries_damaged", ctypes.c_uint),
        ("sentence", ctypes.c_char * 128),
    ]


class Partition(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint8),
        ("subtype", ctypes.c_uint8),
        ("offset", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("label", ctypes.c_char * 17),
        ("encrypted", ctypes.c_bool),
        ("readonly", ctypes.c_bool),
    ]


class ChipError(Exception):
    """A call answered a code other than ESP_OK."""

    def __init__(self, code: int, name: str) -> None:
        super().__init__(f"{name} (0x{code:x})")
        self.code = code


def _sources() -> list[Path]:
    return sorted(path for pattern in SOURCES for path in VIRTUAL.glob(pattern))


def library(*defines: str) -> Path:
    """The shared library, built when a source is newer than what is there."""
    digest = hashlib.sha256(repr(defines).encode())
    for source in _sources():
        digest.update(source.read_bytes())
    target = REPO / "build" / "tests" / f"libchip-{digest.hexdigest()[:16]}.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    # Eight processes of one test run want it at the same moment: the first builds it.
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _build(target, *defines)
    return target


def _build(target: Path, *defines: str) -> None:
    fresh = target.with_suffix(f".{os.getpid()}")
    flags = ["-shared", "-fPIC", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]
    options = [f"-D{name}" for name in defines]
    files = [str(source) for source in _sources() if source.suffix == ".c"]
    subprocess.run(["gcc", *flags, *options, *files, "-o", str(fresh)], check=True)
    fresh.rename(target)


def crc(data: bytes) -> int:
    """Espressif's CRC: that of Ethernet, begun with all ones."""
    return zlib.crc32(data, 0xFFFFFFFF)


def table(partitions: list[tuple[int, int, int, int, str]]) -> bytes:
    """A partition table as Espressif's tools write it, MD5 entry included."""
    entries = b"".join(
        b"\xaa\x50" + struct.pack("<BBII16sI", kind, subtype, offset, size, label.encode(), 0)
        for kind, subtype, offset, size, label in partitions
    )
    return entries + b"\xeb\xeb" + b"\xff" * 14 + hashlib.md5(entries).digest()


class Chip:
    """One flash chip over an image file, and the NVS partition in it."""

    def __init__(self, path: Path, *defines: str, size: int = 4 * MIB) -> None:
        if not path.exists():
            path.write_bytes(b"\xff" * size)
        self.lib = ctypes.CDLL(str(library(*defines)))
        self.lib.flash_error.restype = ctypes.c_char_p
        self.lib.board_err_name.restype = ctypes.c_char_p
        self.lib.flash_operations.restype = ctypes.c_uint64
        self.lib.flash_cut_after.argtypes = [ctypes.c_uint64, ctypes.c_int, ctypes.c_uint32]
        for name in ("partition_find", "boot_partition", "running_partition"):
            getattr(self.lib, f"flash_{name}").restype = ctypes.POINTER(Partition)
        self.lib.flash_next_update_partition.restype = ctypes.POINTER(Partition)
        self.path = path
        self.open()
        self.file = path.open("r+b")
        self.image = mmap.mmap(self.file.fileno(), 0)  # the same pages as the library's own

    def open(self) -> None:
        if self.lib.flash_open(str(self.path).encode()) != 0:
            raise ChipError(-1, self.error())

    def close(self) -> None:
        self.lib.nvs_deinit()
        self.lib.flash_close()
        self.image.close()
        self.file.close()

    def error(self) -> str:
        return self.lib.flash_error().decode()

    def check(self, code: int) -> None:
        if code != 0:
            raise ChipError(code, self.lib.board_err_name(code).decode())

    # ---- flash

    def read(self, offset: int, length: int) -> bytes:
        buffer = ctypes.create_string_buffer(length)
        self.check(self.lib.flash_read(ctypes.c_uint32(offset), buffer, ctypes.c_size_t(length)))
        return buffer.raw

    def program(self, offset: int, data: bytes) -> None:
        size = ctypes.c_size_t(len(data))
        self.check(self.lib.flash_program(ctypes.c_uint32(offset), data, size))

    def erase(self, offset: int) -> None:
        self.check(self.lib.flash_erase_sector(ctypes.c_uint32(offset)))

    def counts(self) -> FlashCounts:
        counts = FlashCounts()
        self.lib.flash_counts(ctypes.byref(counts))
        return counts

    def cut_after(self, operation: int, mode: int = CLEAN, seed: int = 1) -> None:
        self.lib.flash_cut_after(operation, mode, seed)

    def power_on(self) -> None:
        self.lib.flash_power_on()

    def partitions(self) -> list[Partition]:
        found = ctypes.POINTER(Partition)()
        count = self.lib.flash_partitions(ctypes.byref(found))
        if count < 0:
            raise ChipError(-1, self.error())
        return found[:count]

    # ---- NVS

    def start(self, offset: int = 0x9000, size: int = 0x6000) -> int:
        """Loads the NVS partition, as the board's start does; answers the code."""
        self.nvs_offset, self.nvs_size = offset, size
        return self.lib.nvs_init(ctypes.c_uint32(offset), ctypes.c_uint32(size))

    def restart(self) -> int:
        """Power off and on again."""
        self.power_on()
        return self.start(self.nvs_offset, self.nvs_size)

    def status(self) -> NvsStatus:
        status = NvsStatus()
        self.lib.nvs_status(ctypes.byref(status))
        return status

    @property
    def nvs_bytes(self) -> bytes:
        return self.image[self.nvs_offset : self.nvs_offset + self.nvs_size]

    @nvs_bytes.setter
    def nvs_bytes(self, data: bytes) -> None:
        self.image[self.nvs_offset : self.nvs_offset + len(data)] = data

    def namespace(self, name: str, create: bool = True) -> int:
        number = ctypes.c_uint32()
        self.check(self.lib.nvs_open(name.encode(), create, ctypes.byref(number)))
        return number.value

    def set_i32(self, ns: int, key: str, value: int) -> None:
        self.check(self.lib.nvs_set_i32(ns, key.encode(), value))

    def get_i32(self, ns: int, key: str) -> int:
        value = ctypes.c_int32()
        self.check(self.lib.nvs_get_i32(ns, key.encode(), ctypes.byref(value)))
        return value.value

    def set_blob(self, ns: int, key: str, value: bytes) -> None:
        self.check(self.lib.nvs_set_blob(ns, key.encode(), value, ctypes.c_size_t(len(value))))

    def get_blob(self, ns: int, key: str, room: int = 32768) -> bytes:
        buffer = ctypes.create_string_buffer(room)
        length = ctypes.c_size_t(room)
        self.check(self.lib.nvs_get_blob(ns, key.encode(), buffer, ctypes.byref(length)))
        return buffer.raw[: length.value]

    def set(self, ns: int, key: str, value: int | bytes) -> None:
        (self.set_i32 if isinstance(value, int) else self.set_blob)(ns, key, value)

    def get(self, ns: int, key: str) -> int | bytes | None:
        """The value whatever its type; None where there is none."""
        for read in (self.get_i32, self.get_blob):
            try:
                return read(ns, key)
            except ChipError as err:
                if err.code != NOT_FOUND:
                    raise
        return None

    def erase_key(self, ns: int, key: str) -> None:
        self.check(self.lib.nvs_erase_key(ns, key.encode()))
