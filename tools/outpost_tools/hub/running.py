"""Where the hub of a data folder is reached while it runs.

It owns `hub.json` in the data folder, written once the hub listens and removed when it ends in
order. After a `kill -9` the file is left behind, so a reader tries the address before believing it.
"""

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from outpost_tools.paths import write_whole

FILE = "hub.json"
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True)
class Running:
    """Device listener and service listener of a running hub; its own host name first in `names`."""

    host: str
    port: int
    rest_host: str
    rest_port: int
    names: tuple[str, ...] = ()

    @property
    def service(self) -> str:
        """host:port of the service side, as a connection string's HostName has it."""
        host = EVERYWHERE.get(self.rest_host, self.rest_host)
        return f"[{host}]:{self.rest_port}" if ":" in host else f"{host}:{self.rest_port}"


@contextlib.contextmanager
def announced(data: Path, running: Running) -> Iterator[None]:
    """Say so in the data folder while the block runs."""
    content = json.dumps(asdict(running)).encode()
    path = Path(data) / FILE
    try:
        write_whole(path, content)  # a signal may come as soon as it stands there
        yield
    finally:
        # A hub that was started after this one has written its own.
        with contextlib.suppress(OSError):
            if path.read_bytes() == content:
                path.unlink()


def find(data: Path) -> Running | None:
    """The running hub of this data folder, if it answers."""
    try:
        held = json.loads((Path(data) / FILE).read_text())
        running = Running(**{**held, "names": tuple(held["names"])})
        host = EVERYWHERE.get(running.rest_host, running.rest_host)
        socket.create_connection((host, running.rest_port), 2).close()
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return running
