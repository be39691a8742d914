"""A resumed TLS connection beside a full one: bytes on the wire each way, and time.

The 32-bit build against mosquitto, RSA and ECDSA chains, in turns in the same run.
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

HANDSHAKES = 8

SCRIPT = """
import time
tlspolicy.max_fragment_length(size)
tlspolicy.keep_session(True)
def once(session):
    tlspolicy.session(session)
    raw = tcp(port)
    ctx = context(root)
    start = time.ticks_us()
    s = ctx.wrap_socket(raw, server_hostname="localhost")
    us = time.ticks_diff(time.ticks_us(), start)
    facts = last()
    kept = tlspolicy.session()
    s.close()
    del s, ctx
    gc.collect()
    return us, facts, kept
_, first, session = once(None)
full, resumed = [], []
for _ in range(count):
    full.append(once(None)[0])
    us, again, session = once(session)
    assert again["resumed"]
    resumed.append(us)
report(first=first, again=again, full=full, resumed=resumed, size=len(session))
"""


def measure() -> list[Table]:
    table = Table(
        "A resumed TLS 1.2 connection beside a full one",
        ["chain, asked", "full: rx", "tx", "ms", "resumed: rx", "tx", "ms", "session"],
        notes=[
            "Bytes above TCP; median ms of a full and of a resumed handshake on this machine, the "
            "server on it too; the session's bytes as kept in RTC memory (2,048 there).",
        ],
    )
    with tempfile.TemporaryDirectory() as name:
        for kind, label in KINDS.items():
            directory = Path(name) / kind
            chain = pki.chain(kind)
            certificate, key = chain.write(directory / "pki")
            root = directory / "root.der"
            root.write_bytes(chain.root.der)
            with servers.mosquitto(directory / "mosquitto", certificate, key) as port:
                for size in (512, None):
                    found = tlsdevice.one(
                        "outpost32",
                        directory,
                        SCRIPT,
                        root=root,
                        port=port,
                        size=size,
                        count=HANDSHAKES,
                    )
                    first, again = found["first"], found["again"]
                    table.add(
                        f"{label}, {size}",
                        first["rx"],
                        first["tx"],
                        round(statistics.median(found["full"]) / 1000, 1),
                        again["rx"],
                        again["tx"],
                        round(statistics.median(found["resumed"]) / 1000, 1),
                        found["size"],
                    )
    return [table]
