"""A hub of a test's own: loopback address, development CA, and what clients need to reach it.

It owns the choice of an address in 127.0.0.0/8, because Microsoft's device SDK knows one port alone
(8883): tests that run side by side differ by address.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

from devca import put_ca
from outpost_tools.registry import Registry

MQTT_PORT = 8883


def loopback(*ports: int) -> str:
    """An address on which nobody listens on any of `ports`."""
    for _ in range(100):
        address = (
            f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"
        )
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for port in ports or (MQTT_PORT,):
                probe = probes.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
            return address
    raise AssertionError(f"no loopback address has the ports {ports} free")


def roots_file(data: Path) -> Path:
    """Both development roots in one PEM file, made on first use."""
    ca = put_ca(data)
    path = data / "roots.pem"
    path.write_bytes(b"".join(ca.root_file(kind).read_bytes() for kind in ca.kinds))
    return path


def device_connection_string(data: Path, host: str, device_id: str, secondary: bool = False) -> str:
    with Registry(data) as registry:
        device = registry.get(device_id)
    key = device.secondary_key if secondary else device.primary_key
    return f"HostName={host};DeviceId={device_id};SharedAccessKey={key}"


def eventually(done: Callable[[], object], timeout_s: float = 20.0) -> object:
    """What `done()` gives once it is true; None where that did not come."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = done()
        if found:
            return found
        time.sleep(0.02)
    return None
