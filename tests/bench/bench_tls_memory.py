"""C heap of one TLS connection: the peak in the handshake and what it holds afterwards.

Our build at every record size beside the stock build, with RSA and ECDSA chains, against a
server that grants the size (mosquitto, OpenSSL) and one that ignores it (nats-server, Go); the
chain's root loaded into the context, or found by the handshake among six.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pki
import servers
import tlsdevice
from bench.table import Table
from cryptography import x509
from cryptography.hazmat.primitives import serialization

# esp32.idf_heap_info is the one counter that both builds have; the stand-in answers it from
# what the TLS stack asked for.
ONE_CONNECTION = """
import esp32
def held():
    total, free, _, least = esp32.idf_heap_info(esp32.HEAP_DATA)[0]
    return total - free, total - least

if tlspolicy:
    tlspolicy.max_fragment_length(size)
def provider():
    for path in on_demand:
        with open(path, "rb") as f:
            yield f.read()

before = held()[0]
if on_demand and tlspolicy:
    tlspolicy.roots(provider)
    ctx = context()
else:
    ctx = context(*on_demand or [root])
s = ctx.wrap_socket(tcp(port), server_hostname="localhost")
now, peak = held()
granted = tlspolicy.last()["granted"] if tlspolicy else None
report(peak=peak - before, steady=now - before, granted=granted)
"""

CERTS = Path(__file__).resolve().parents[2] / "certs"
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
            "Six roots: the four of certs/, one more and the chain's own. Our build reads them on "
            "demand, one by one in the handshake, and keeps none; stock loads them all. In the "
            "other rows one root is loaded (the head of its structure is then in the GC heap).",
        ],
    )
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        for kind, label in KINDS.items():
            directory = Path(name) / kind
            chain = pki.chain(kind)
            certificate, key = chain.write(directory / "pki")
            root = directory / "root.der"
            root.write_bytes(chain.root.der)
            six = [*others(Path(name)), root]
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
                if server == "grants":
                    stock = _one("stock32", directory, root, port, None, six)
                    for size in (512, 1024, 2048, 4096):
                        ours = _one("outpost32", directory, root, port, size, six)
                        table.add(
                            f"{label}, {server}, with six roots",
                            size,
                            ours["granted"],
                            ours["peak"],
                            ours["steady"],
                            stock["peak"],
                            stock["steady"],
                        )
    return [table]


def others(directory: Path) -> list[Path]:
    """Five roots of other servers, as DER files: the four of certs/ and one of RSA 4096."""
    found = {"stranger": pki.chain("rsa", root_number=1).root.der}
    for pem in sorted(CERTS.glob("*.pem")):
        certificate = x509.load_pem_x509_certificate(pem.read_bytes())
        found[pem.stem] = certificate.public_bytes(serialization.Encoding.DER)
    paths = []
    for name, der in found.items():
        paths.append(directory / f"{name}.der")
        paths[-1].write_bytes(der)
    return paths


def _one(
    leg: str,
    directory: Path,
    root: Path,
    port: int,
    size: int | None,
    on_demand: Sequence[Path] = (),
) -> dict[str, Any]:
    return tlsdevice.one(
        leg,
        directory,
        ONE_CONNECTION,
        root=root,
        port=port,
        size=size,
        on_demand=[str(path) for path in on_demand],
    )
