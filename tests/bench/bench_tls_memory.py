"""C heap of one TLS connection: the peak in the handshake and what it holds afterwards.

Our build at every record size beside the stock build, with RSA and ECDSA chains, against a
server that grants the size (mosquitto, OpenSSL) and one that ignores it (nats-server, Go).
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pki
import servers
import tlsdevice
from bench.table import Table

# esp32.idf_heap_info is the one counter that both builds have; the stand-in answers it from
# what the TLS stack asked for.
ONE_CONNECTION = """
import esp32
def held():
    total, free, _, least = esp32.idf_heap_info(esp32.HEAP_DATA)[0]
    return total - free, total - least

if tlspolicy:
    tlspolicy.max_fragment_length(size)
before = held()[0]
ctx = context(root)
s = ctx.wrap_socket(tcp(port), server_hostname="localhost")
now, peak = held()
granted = tlspolicy.last()["granted"] if tlspolicy else None
report(peak=peak - before, steady=now - before, granted=granted)
"""

BUDGET = {"peak": 24 * 1024, "steady": 6656}
KINDS = {"rsa": "RSA 4096-2048-2048", "ecdsa": "ECDSA P-256"}


def measure() -> list[Table]:
    table = Table(
        "C heap of one TLS connection",
        ["chain, server", "asked", "granted", "peak", "steady", "stock peak", "stock steady"],
        notes=[
            f"Bytes, the trusted root included. Budget at 512 with the RSA chain: peak "
            f"{BUDGET['peak']:,}, steady {BUDGET['steady']:,}.",
            "A server that ignores the size may send records of 16 KiB, so room for them is held.",
        ],
    )
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        for kind, label in KINDS.items():
            directory = Path(name) / kind
            chain = pki.chain(kind)
            certificate, key = chain.write(directory / "pki")
            root = directory / "root.der"
            root.write_bytes(chain.root.der)
            ports = {
                "grants": stack.enter_context(
                    servers.mosquitto(directory / "mosquitto", certificate, key)
                ),
                "ignores": stack.enter_context(servers.nats(directory / "nats", certificate, key)),
            }

            for server, port in ports.items():
                stock = _one("stock32", directory, root, port, None)
                for size in (512, 1024, 2048, 4096, None) if server == "grants" else (512, None):
                    ours = _one("outpost32", directory, root, port, size)
                    table.add(
                        f"{label}, {server}",
                        size,
                        ours["granted"],
                        ours["peak"],
                        ours["steady"],
                        stock["peak"],
                        stock["steady"],
                    )
    return [table]


def _one(leg: str, directory: Path, root: Path, port: int, size: int | None) -> dict[str, Any]:
    return tlsdevice.one(leg, directory, ONE_CONNECTION, root=root, port=port, size=size)
