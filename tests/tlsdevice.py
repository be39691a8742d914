"""Runs a MicroPython script on one of our builds; what it reports comes back as Python values.

It owns no state. A script calls `report(name=value, ...)`; the parameters of the run are
variables of the same names in it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

BIN = Path(__file__).resolve().parent.parent / "build" / "bin"
OURS = ("outpost64", "outpost32")

PRELUDE = """\
import gc, json, socket, sys, tls
try:
    import tlspolicy
except ImportError:
    tlspolicy = None

def report(**values):
    print("REPORT " + json.dumps(values))

def tcp(port):
    s = socket.socket()
    s.settimeout(30)
    s.connect(socket.getaddrinfo("127.0.0.1", port)[0][-1])
    return s

def context(*roots):
    ctx = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
    for root in roots:
        with open(root, "rb") as f:
            ctx.load_verify_locations(f.read())
    return ctx

def attempt(run):
    # What came of it: "" or the exception, as text.
    try:
        run()
        return ""
    except Exception as e:
        return "%s: %s" % (type(e).__name__, e)

def last():
    facts = tlspolicy.last()
    if facts and facts["root"]:
        facts["root"] = "".join("%02x" % b for b in facts["root"])
    return facts
"""


class ScriptFailed(AssertionError):
    pass


def run(
    leg: str,
    directory: Path,
    script: str,
    *,
    heap: str = "160K",
    timeout: float = 60,
    flash: Path | None = None,
    options: tuple[str, ...] = (),
    **parameters: Any,
) -> list[dict[str, Any]]:
    """Each report of the script, in order; ScriptFailed with its output when it raised.

    flash    an image whose NVS the script works with; without it the script has none
    options  further words for the binary
    """
    lines = [PRELUDE]
    for name, value in parameters.items():
        lines.append(
            f"{name} = {str(value)!r}" if isinstance(value, Path) else f"{name} = {value!r}"
        )
    path = directory / "script.py"
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n" + script, encoding="utf-8")
    words = [str(BIN / leg), "-X", f"heapsize={heap}", *options]
    words += ["--flash", str(flash)] if flash else []
    done = subprocess.run(
        [*words, str(path)],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode != 0:
        raise ScriptFailed(f"{leg} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return [
        json.loads(line.removeprefix("REPORT "))
        for line in done.stdout.splitlines()
        if line.startswith("REPORT ")
    ]


def one(leg: str, directory: Path, script: str, **parameters: Any) -> dict[str, Any]:
    """The only report of the script."""
    reports = run(leg, directory, script, **parameters)
    assert len(reports) == 1, f"{len(reports)} reports instead of one: {reports}"
    return reports[0]
