"""A PKCS #11 token in software (SoftHSM, from Debian): real library, real token, in a folder.

It owns that folder and the environment variable by which the library finds it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from outpost_tools.vault import TokenPlace

PIN = "271828"
LABEL = "fleet"


def library() -> str:
    """Where Debian has the library; it differs by architecture."""
    done = subprocess.run(["dpkg", "-L", "libsofthsm2"], capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.endswith("/libsofthsm2.so")]
    assert found, "SoftHSM is missing: install the package softhsm2, as `make test` does"
    return found[0]


def make_token(folder: Path, label: str = LABEL) -> TokenPlace:
    """A fresh token; from then on this process and its children find it."""
    folder.mkdir(exist_ok=True)
    tokens = folder / "tokens"
    tokens.mkdir(exist_ok=True)
    config = folder / "softhsm2.conf"
    config.write_text(
        f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    os.environ["SOFTHSM2_CONF"] = str(config)
    command = ["softhsm2-util", "--init-token", "--free", "--label", label]
    command += ["--pin", PIN, "--so-pin", "31415926"]
    subprocess.run(command, check=True, capture_output=True)
    return TokenPlace(library(), label, "ca")
