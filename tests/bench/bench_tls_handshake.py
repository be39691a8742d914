"""A handshake: bytes on the wire each way, and its time as a ratio to the stock build.

Both builds are 32 bits and take turns against the same server in the same run.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import pki
import servers
import tlsdevice
from bench.bench_tls_memory import KINDS
from bench.table import Table

ROUNDS = 3
HANDSHAKES = 8

HANDSHAKE = """
import time
if tlspolicy:
    tlspolicy.max_fragment_length(size)
times = []
for _ in range(count):
    raw = tcp(port)
    ctx = context(root)
    start = time.ticks_us()
    s = ctx.wrap_socket(raw, server_hostname="localhost")
    times.append(time.ticks_diff(time.ticks_us(), start))
    suite = s.cipher()[0]
    s.close()
    del s, ctx
    gc.collect()
report(times=times, suite=suite)
"""


def measure() -> list[Table]:
    table = Table(
        "One full TLS 1.2 handshake",
        ["chain, build", "asked", "received", "sent", "ms", "ratio to stock"],
        notes=[
            "Bytes on the wire above TCP; median times on this machine with the server on it too.",
        ],
    )
    with tempfile.TemporaryDirectory() as name:
        for kind, label in KINDS.items():
            directory = Path(name) / kind
            chain = pki.chain(kind)
            certificate, key = chain.write(directory / "pki")
            root = directory / "root.der"
            root.write_bytes(chain.root.der)
            builds = [
                ("stock32", None),
                ("outpost32", None),
                ("outpost32", 512),
                ("outpost32", 4096),
            ]
            times: dict[tuple[str, int | None], list[int]] = {build: [] for build in builds}
            wire: dict[tuple[str, int | None], tuple[int, int]] = {}
            with servers.mosquitto(directory / "mosquitto", certificate, key) as port:
                for build in builds:
                    with servers.Proxy(port) as proxy:
                        _run(build, directory, root, proxy.port, 1)
                        wire[build] = (proxy.from_server, proxy.from_client)
                for _ in range(ROUNDS):
                    for build in builds:
                        times[build] += _run(build, directory, root, port, HANDSHAKES)
            stock = statistics.median(times[builds[0]])
            for build in builds:
                middle = statistics.median(times[build])
                ratio = middle / stock
                table.add(
                    f"{label}, {build[0]}", build[1], *wire[build], round(middle / 1000, 1), ratio
                )
    return [table]


def _run(
    build: tuple[str, int | None], directory: Path, root: Path, port: int, count: int
) -> list[int]:
    leg, size = build
    return tlsdevice.one(leg, directory, HANDSHAKE, root=root, port=port, size=size, count=count)[
        "times"
    ]
