"""A development CA for tests, made once per run: an RSA key of 4096 bits takes seconds.

It owns one temporary folder. A copy is as good as a fresh one for every test that does not look at
how the CA comes into being.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

from outpost_tools.pki import DevCA


@functools.cache
def _made() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="outpost-test-ca-")
    ca = DevCA(Path(folder.name))
    for kind in ca.kinds:
        ca.server(kind, ["127.0.0.1", "localhost"])  # as a hub asks for it
    return folder


def put_ca(data: Path) -> DevCA:
    """A development CA in the data folder `data`, the same one for every test of a run."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copytree(Path(_made().name) / "ca", data / "ca", dirs_exist_ok=True)
    return DevCA(data)
