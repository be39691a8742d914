"""The signed record of a firmware: which bytes, for which chip (docs/updates.md, byte by byte).

The record is what the signers sign and what a device asks for first; the firmware itself follows
as it is. It owns no file.
"""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

from outpost_tools import agreed
from outpost_tools.errors import OutpostError

_FIXED = struct.Struct(">4sBHI32sB")  # magic, format, chip, size, SHA-256, length of the label
_IMAGE_MAGIC = 0xE9
_HEADER_BYTES = 24


@dataclass(frozen=True)
class FirmwareRecord:
    label: str
    chip: int  # as in the image's own header
    size: int
    sha256: bytes

    @classmethod
    def of(cls, image: Path, label: str = "") -> "FirmwareRecord":
        """Of an application image: what a MicroPython build calls micropython.bin."""
        data = read(image)
        if len(data) < _HEADER_BYTES or data[0] != _IMAGE_MAGIC:
            raise OutpostError(
                f"{image} is no application image of an ESP32: give the build's micropython.bin."
            )
        made = cls(label, data[12] | data[13] << 8, len(data), hashlib.sha256(data).digest())
        made.check()
        return made

    def check(self) -> None:
        if len(self.label.encode()) > agreed.APP_LABEL_MAX or not self.label.isprintable():
            raise OutpostError(f"A label is a text of at most {agreed.APP_LABEL_MAX} bytes.")

    def encode(self) -> bytes:
        self.check()
        label = self.label.encode()
        fixed = (agreed.FIRMWARE_FORMAT, self.chip, self.size, self.sha256, len(label))
        return _FIXED.pack(agreed.FIRMWARE_MAGIC, *fixed) + label

    @classmethod
    def decode(cls, body: bytes) -> "FirmwareRecord":
        try:
            magic, form, chip, size, digest, length = _FIXED.unpack_from(body)
            label = body[_FIXED.size :].decode()
        except (struct.error, UnicodeDecodeError):
            raise OutpostError("The record of the firmware is cut off or damaged.") from None
        if magic != agreed.FIRMWARE_MAGIC or form != agreed.FIRMWARE_FORMAT:
            raise OutpostError("This is no record of a firmware.")
        if len(body) != _FIXED.size + length:
            raise OutpostError("The record of the firmware is cut off or damaged.")
        made = cls(label, chip, size, digest)
        made.check()
        return made

    def image(self, path: Path) -> bytes:
        """The file's bytes; OutpostError where they are not the ones that were signed."""
        data = read(path)
        if hashlib.sha256(data).digest() != self.sha256:
            raise OutpostError(f"{path} is not the firmware that was signed.")
        return data


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as why:
        raise OutpostError(f"Cannot read {path} ({why.strerror}).") from None
