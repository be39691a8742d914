"""A PKCS #11 token in software (SoftHSM, from Debian): real library, real token, in a folder.

It owns that folder, one for each test process, and the environment variable by which the library
finds it. The library reads both once, when it is loaded, so a process has one token, and each test
a key label of its own.
"""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import tempfile
from pathlib import Path

from outpost_tools.vault import TokenPlace

PIN = "271828"
LABEL = "fleet"
_numbers = itertools.count(1)


def library() -> str:
    """Where Debian has the library; it differs by architecture."""
    done = subprocess.run(["dpkg", "-L", "libsofthsm2"], capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.endswith("/libsofthsm2.so")]
    assert found, "SoftHSM is missing: install the package softhsm2, as `make test` does"
    return found[0]


@functools.cache
def _store() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="outpost-test-tokens-")
    tokens = Path(folder.name) / "tokens"
    tokens.mkdir()
    config = Path(folder.name) / "softhsm2.conf"
    config.write_text(
        f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    os.environ["SOFTHSM2_CONF"] = str(config)
    command = ["softhsm2-util", "--init-token", "--free", "--label", LABEL]
    command += ["--pin", PIN, "--so-pin", "31415926"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def make_token() -> TokenPlace:
    """The place of a key that is not there yet; this process's children find the token too."""
    _store()
    return TokenPlace(library(), LABEL, f"ca-{next(_numbers)}")
