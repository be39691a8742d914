"""Application packages for tests: good ones, and bodies that are wrong in one way each.

It owns nothing on disk but the folder that it is given.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import bundles
from outpost_tools import agreed, bundle
from outpost_tools.envelope import Envelope
from outpost_tools.package import Package, build
from outpost_tools.software import Software

MAIN = b"""
from outpost import Device

device = Device()

@device.every(seconds=0.5)
def beat():
    device.send({"software": "NAME"})

device.run()
"""


def main(name: str = "new") -> bytes:
    return MAIN.replace(b"NAME", name.encode())


@functools.cache
def application(source: bytes = MAIN, more: tuple[tuple[str, bytes], ...] = ()) -> Package:
    """A folder with that main.py, compiled."""
    with tempfile.TemporaryDirectory(prefix="outpost-app-") as folder:
        for path, content in (("main.py", source), *more):
            target = Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return build(Path(folder), "test")


def raw(
    files: Sequence[tuple[bytes, bytes]],
    *,
    sizes: dict[int, int] | None = None,
    digests: dict[int, bytes] | None = None,
    count: int | None = None,
    head: bytes = b"OPAP\x01\x06\x00",
    label: bytes = b"",
    tail: bytes = b"",
) -> bytes:
    """A body as an attacker with a signing key would make it: nothing is checked."""
    parts = [head, bytes((len(files) if count is None else count, len(label))), label]
    for i, (path, content) in enumerate(files):
        size = (sizes or {}).get(i, len(content))
        digest = (digests or {}).get(i, hashlib.sha256(content).digest())
        parts.append(bytes((len(path),)) + path + struct.pack(">I", size) + digest + content)
    return b"".join((*parts, tail))


def around(body: bytes, version: int = 1, fleet: str = bundles.FLEET, **fields) -> Envelope:
    now = int(time.time())
    settings = {"role": agreed.ROLE_SOFTWARE, "issued": now - 60, "expires": now + 86400} | fields
    return Envelope.around(body, fleet=fleet, version=version, floor=0, **settings)


def signed(package: Package, version: int = 1, names: str = "s", **fields) -> bytes:
    """The package as it is delivered, signed by the keys of these names."""
    return bundle.sign(
        around(package.encode(), version, **fields), [bundles.key(name) for name in names]
    ).encode()


__all__ = ["Software", "application", "around", "main", "raw", "signed"]
