# SPDX-License-Identifier: MIT
"""Stand-in for the ESP32's `esp32` module on an unmodified MicroPython for unix.

NVS and Partition over the flash image (vflash.chip), with the answers and errors
of a stock board. A damaged NVS page is left alone, where a stock board may erase
the whole partition. There is no second application slot.
"""

import nvs
import vflash

_nvs = None
table = ()  # of vflash.partitions: set by board.py


def _store():
    global _nvs
    if _nvs is None:
        for kind, subtype, offset, size, label, _ in table:
            if (kind, subtype, label) == (1, 2, "nvs"):
                _nvs = nvs.Nvs(vflash.chip, offset, size)
                break
        else:
            raise OSError(-0x110F, "ESP_ERR_NVS_PART_NOT_FOUND")
    return _nvs


def _bytes(data):
    return data.encode() if isinstance(data, str) else bytes(data)


class NVS:
    def __init__(self, namespace):
        self._nvs = _store()
        self._ns = self._nvs.open(_bytes(namespace))

    def set_i32(self, key, value):
        if not -(1 << 31) <= value < 1 << 31:
            raise OverflowError("overflow converting long int to machine word")
        self._nvs.set_i32(self._ns, _bytes(key), value)

    def get_i32(self, key):
        return self._nvs.get_i32(self._ns, _bytes(key))

    def set_blob(self, key, value):
        self._nvs.set_blob(self._ns, _bytes(key), _bytes(value))

    def get_blob(self, key, buffer):
        value = self._nvs.get_blob(self._ns, _bytes(key))
        if len(value) > len(buffer):
            raise nvs.error(nvs.INVALID_LENGTH)
        buffer[: len(value)] = value
        return len(value)

    def erase_key(self, key):
        self._nvs.erase_key(self._ns, _bytes(key))

    def commit(self):
        pass


class Partition:
    TYPE_APP = 0
    TYPE_DATA = 1
    BOOT = 0
    RUNNING = 1

    def __init__(self, name):
        if isinstance(name, int):
            found = [p for p in table if p[0] == self.TYPE_APP]
        else:
            found = [p for p in table if p[4] == name]
        if not found:
            raise OSError(2)
        self._info = found[0]

    @classmethod
    def find(cls, type=TYPE_APP, subtype=0xFF, label=None, block_size=vflash.SECTOR):
        return [
            cls(p[4])
            for p in table
            if p[0] == type and subtype in (0xFF, p[1]) and label in (None, p[4])
        ]

    def info(self):
        return self._info

    def __str__(self):
        return "<Partition type=%d, subtype=%d, address=%d, size=%d, label=%s, encrypted=%d>" % (
            self._info
        )

    __repr__ = __str__

    def _at(self, block, offset, n):
        at = block * vflash.SECTOR + offset
        if at < 0 or at + n > self._info[3]:
            raise OSError(-0x104, "ESP_ERR_INVALID_SIZE")
        return self._info[2] + at

    def readblocks(self, block, buffer, offset=0):
        buffer[:] = vflash.chip.read(self._at(block, offset, len(buffer)), len(buffer))

    def writeblocks(self, block, data, offset=None):
        """Without an offset the blocks are erased first; with one nothing is."""
        at = self._at(block, offset or 0, len(data))
        if offset is None:
            for sector in range(at, at + len(data), vflash.SECTOR):
                vflash.chip.erase(sector)
        vflash.chip.program(at, data)

    def ioctl(self, op, arg):
        if op == 4:
            return self._info[3] // vflash.SECTOR
        if op == 5:
            return vflash.SECTOR
        if op == 6:
            vflash.chip.erase(self._at(arg, 0, vflash.SECTOR))
        return 0 if op in (1, 2, 3, 6) else None

    def set_boot(self):
        raise OSError(-0x105, "ESP_ERR_NOT_FOUND")

    @staticmethod
    def mark_app_valid_cancel_rollback():
        raise OSError(-0x105, "ESP_ERR_NOT_FOUND")

    def get_next_update(self):
        raise OSError(2)
