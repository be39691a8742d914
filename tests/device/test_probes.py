"""The virtual board answers as a stock ESP32 did, line by line.

The two probes in esp32/ were run on stock MicroPython for ESP32; their answers lie beside them.
Here they run on the virtual board, through its raw prompt after a soft reset, as there. Addresses,
times, memory and signal strength are masked. What still differs is listed, with its reason, in
expected/probe-differences.toml: an unlisted difference fails, and so does a listed one that is
gone.

The probe's TLS ports are fixed (28883, 28884): they are replaced by free ones when it is read, so
that tests can run side by side. Its two root certificates are handed to it through `open`, because
its listing of '/' was taken without them.
"""

from __future__ import annotations

import datetime as dt
import re
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pki
import pytest
from legs import LEGS, VIRTUAL
from stockboard import blank_flash, raw_prompt

LEGS_HERE = VIRTUAL
HERE = Path(__file__).parent
STOCK = HERE / "esp32"
DIFFERENCES = HERE / "expected" / "probe-differences.toml"
STOCK_VERSION = "1.25.0"

MASKS = (
    (r"^free \d+$", "free N"),
    (r"^after ms \d+$", "after ms N"),
    (r"^(RTC\.datetime -> \(2000, 1, 1, 5, 0, 0), \d+, \d+\)$", r"\1, N, N)"),
    (r"^(gmtime -> \(2026, 11, 23, 12, 0), \d+,", r"\1, N,"),
    (r"^(time\.time) -> 84875040\d$", r"\1 -> 84875040N"),
    (r"^(time_ns) -> 84875040\d{10}$", r"\1 -> 84875040N"),
    (r"^(rssi) -> -\d+$", r"\1 -> -N"),
)


def masked(line: str) -> str:
    for pattern, replacement in MASKS:
        line = re.sub(pattern, replacement, line)
    return line


# ---------------------------------------------------------------- TLS servers of the board probe


@dataclass(frozen=True)
class Server:
    port: int
    root: bytes  # DER


@contextmanager
def tls_server(folder: Path, kind: str) -> Iterator[Server]:
    """OpenSSL's server with a chain for localhost that is valid on the day the probe sets."""
    now = dt.datetime.now(dt.UTC)
    valid = {
        "starts": dt.datetime(2020, 1, 1, tzinfo=dt.UTC) - now,
        "ends": dt.datetime(2037, 1, 1, tzinfo=dt.UTC) - now,
    }
    key = "rsa2048" if kind == "rsa" else "p256"
    root = pki.make(f"Probe {kind} root", pki.key(key, 900), **valid)
    leaf = pki.make("localhost", pki.key(key, 901), root, hosts=("localhost",), **valid)
    certificate, private = pki.Chain(root, root, leaf).write(folder / kind)
    command = [
        "openssl",
        "s_server",
        "-accept",
        "127.0.0.1:0",
        "-cert",
        certificate,
        "-key",
        private,
    ]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        for line in server.stdout:
            found = re.match(rb"ACCEPT 127\.0\.0\.1:(\d+)", line)
            if found:
                yield Server(int(found[1]), root.der)
                break
        else:
            raise AssertionError("openssl s_server did not start")
    finally:
        server.terminate()
        server.communicate()


# ---------------------------------------------------------------- comparison


def difference_lists(probe: str, leg: str) -> list[dict]:
    listed = tomllib.loads(DIFFERENCES.read_text())["difference"]
    assert all(entry["reason"].strip() for entry in listed)
    return [e for e in listed if e["probe"] == probe and leg in e["legs"]]


def compare(probe: str, leg: str, printed: str) -> None:
    stock = (STOCK / f"stock-{STOCK_VERSION}-{probe}.txt").read_text().splitlines()
    ours = printed.replace("\r", "").splitlines()
    listed = difference_lists(probe, leg)
    problems = []
    used = set()
    assert len(ours) == len(stock), "not the same number of lines:\n" + printed
    for number, (theirs, mine) in enumerate(zip(stock, ours, strict=True), 1):
        if masked(theirs) == masked(mine):
            continue
        for at, entry in enumerate(listed):
            if theirs.startswith(entry["stock"]) and re.fullmatch(entry["ours"], mine):
                used.add(at)
                break
        else:
            problems.append(f"line {number} differs\n  stock {theirs}\n  ours  {mine}")
    for at, entry in enumerate(listed):
        if at not in used:
            problems.append(f"listed, but does not occur any more: {entry['stock']}")
    assert not problems, "\n".join(problems)


def test_every_listed_difference_names_known_legs_and_probes() -> None:
    for entry in tomllib.loads(DIFFERENCES.read_text())["difference"]:
        assert entry["probe"] in ("board", "flash")
        assert entry["legs"] and set(entry["legs"]) <= set(LEGS)


def test_flash_probe_answers_as_a_stock_board(leg: str, tmp_path: Path) -> None:
    flash = blank_flash(tmp_path / "flash.bin")
    with raw_prompt(leg, flash) as prompt:
        printed = prompt.run((STOCK / "probe_flash.py").read_text())
    compare("flash", leg, printed)


def test_board_probe_answers_as_a_stock_board(leg: str, tmp_path: Path) -> None:
    flash = blank_flash(tmp_path / "flash.bin")
    source = (STOCK / "probe_board.py").read_text()
    with tls_server(tmp_path, "rsa") as rsa, tls_server(tmp_path, "ecdsa") as ecdsa:
        source = source.replace("28883", str(rsa.port)).replace("28884", str(ecdsa.port))
        roots = f"import io\n_open = open\n_roots = {{'rsa-root.der': {rsa.root!r}, "
        roots += f"'ec-root.der': {ecdsa.root!r}}}\n"
        roots += "def open(name, *mode):\n"
        roots += "    return io.BytesIO(_roots[name]) if name in _roots else _open(name, *mode)\n"
        with raw_prompt(leg, flash) as prompt:
            prompt.run(roots)
            printed = prompt.run(source)
    took = re.search(r"^after ms (\d+)", printed, re.M)
    assert took and 1000 <= int(took[1]) < 2000
    compare("board", leg, printed)


@pytest.mark.parametrize("release", ["1.26.1"])
def test_newer_release_answers_as_the_one_compared_with(release: str) -> None:
    """Two releases agree, so that the differences listed are ours and not a release's."""
    allowed = {
        "board": {"time.time type"},  # 1.26 prints floats exactly
        "flash": {"(name='micropython'"},  # version and build
    }
    for probe, starts in allowed.items():
        old = (STOCK / f"stock-{STOCK_VERSION}-{probe}.txt").read_text().splitlines()
        new = (STOCK / f"stock-{release}-{probe}.txt").read_text().splitlines()
        for before, after in zip(old, new, strict=True):
            if masked(before) != masked(after):
                assert any(before.startswith(start) for start in starts), (before, after)
