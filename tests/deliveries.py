"""What the tests of deliveries share: a device that takes files, and somebody who sends them.

It owns nothing; world, hub and board are the test's.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

from fromhub import Operator
from outpost_tools import agreed
from outpost_tools.delivery import Delivered, push
from outpost_tools.errors import OutpostError

KIND = "parcel"
# A device whose application takes files of a kind of its own, and says what it was handed.
MAIN = b"""
import hashlib, os, sys
from outpost import Device, OutpostError, delivery

def begin(size, sha256, args):
    if args.get("version") == 1:
        raise OutpostError("version 1 is older than what is here")
    if args.get("version") == 2:
        return 200, {"state": "have it"}

def parcel(path):
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as f:
        data = part = f.read(256)
        while part:
            digest.update(part)
            size += len(part)
            part = f.read(256)
    print("PARCEL", size, "".join(["%02x" % b for b in digest.digest()]))
    if data[:4] == b"slow":
        return slow()
    if data[:3] == b"bad":
        return 422, {"error": "not what I wanted"}
    if data[:5] == b"raise":
        raise OutpostError("this one is no good")
    return 200, {"state": "read", "bytes": size}

def slow():
    for _ in range(10):
        yield 100
    return 202, {"state": "trial"}

LAZY = ("pieces", "orders", "staging", "plan", "pull", "fetch")

delivery.register("parcel", 20000, begin, parcel)
d = Device()

@d.method("modules")
def modules(payload):
    return sorted([name for name in sys.modules if name[8:] in LAZY])

@d.method("files")
def files(payload):
    try:
        return sorted(os.listdir("/stage"))
    except OSError:
        return []

d.run()
"""


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Sender:
    """Calls outpost.deliver on one device, one call at a time."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator

    def invoke(self, method: str, payload: Any) -> tuple[int, Any]:
        try:
            return self.operator.invoke(method, payload)
        except Exception as why:  # what the hub raises where the device is not there
            raise OutpostError(f"{type(why).__name__} (404103)") from why

    def call(self, op: str, data: bytes = b"", /, **more: Any) -> tuple[int, Any]:
        payload = {"kind": KIND, "op": op, **({"sha256": sha(data)} if data else {}), **more}
        return self.operator.invoke(agreed.DELIVERY_METHOD, payload)

    def begin(self, data: bytes, /, **more: Any) -> tuple[int, Any]:
        return self.call("begin", data, **{"size": len(data), **more})

    def write(self, of: bytes, at: int, size: int = 2048, **more: Any) -> tuple[int, Any]:
        piece = base64.b64encode(of[at : at + size]).decode()
        return self.call("write", of, **{"at": at, "data": piece} | more)

    def push(self, data: bytes, progress: Callable | None = None, **more: Any) -> Delivered:
        return push(self.invoke, KIND, data, progress, **more)
