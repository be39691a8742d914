"""An HTTPS server for files that devices fetch: bundles, packages, and the recovery endpoint's.

TLS 1.2 with the design's suites, ranges, exact lengths, small records for who asks for them; no
directory, no upload, nothing but GET. It asks no device who it is, and keeps of a request its path
and its range alone. It owns one listener and one thread; the files stay where they are.
"""

import asyncio
import contextlib
import re
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from aiohttp import web

from outpost_tools.errors import OutpostError
from outpost_tools.hub.listening import listen
from outpost_tools.hub.tls import server_context
from outpost_tools.pki import DevCA

IDLE_S = 30
RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")

Files = Callable[[str], bytes | None]


@dataclass(frozen=True)
class Asked:
    """One request: first and last are -1 where no range was asked for."""

    path: str
    first: int
    last: int
    status: int


def recovery_path(fleet: str) -> str:
    """Where devices of a fleet look for their bundle when no other server can be trusted."""
    return f"/outpost/{quote(fleet, safe='')}/trust.bin"


def of_folder(folder: Path) -> Files:
    """Every file below a folder, and nothing outside it."""
    base = folder.resolve()
    if not base.is_dir():
        raise OutpostError(f"{folder} is no folder: make it, and put the files in it.")

    def read(path: str) -> bytes | None:
        found = (base / path.lstrip("/")).resolve()
        if base not in found.parents or not found.is_file():
            return None
        return found.read_bytes()

    return read


def of_mapping(files: Mapping[str, bytes]) -> Files:
    return lambda path: files.get(path)


def development_context(data: Path, names: Sequence[str]) -> ssl.SSLContext:
    """TLS with certificates of the development CA in `data`, for these names."""
    ca = DevCA(data)
    leaves = [ca.leaf(kind, names) for kind in ca.kinds]
    return server_context([(leaf.chain, leaf.key) for leaf in leaves])


class BundleServer:
    """`with BundleServer(of_mapping({"/b.bin": b"..."}), context) as server: server.port`

    on_asked  called in the server's thread with each request that was answered
    """

    def __init__(
        self,
        files: Files,
        context: ssl.SSLContext,
        host: str = "127.0.0.1",
        port: int = 0,
        on_asked: Callable[[Asked], None] | None = None,
    ) -> None:
        self.host, self.port = host, port
        self.connections = 0  # that there have been
        self._files, self._context, self._on_asked = files, context, on_asked
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ending: asyncio.Event | None = None

    def start(self) -> "BundleServer":
        listener = listen(self.host, self.port)
        self.port = listener.getsockname()[1]
        ready = threading.Event()
        run = self._run(listener, ready)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(run), name="bundles", daemon=True
        )
        self._thread.start()
        ready.wait()
        return self

    def stop(self) -> None:
        if self._thread is not None and self._loop is not None and self._ending is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._ending.set)
            self._thread.join()

    def __enter__(self) -> "BundleServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _run(self, listener: Any, ready: threading.Event) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        server = web.Server(self._answer, access_log=None, keepalive_timeout=IDLE_S)

        def connection() -> Any:
            self.connections += 1
            return server()

        running = await self._loop.create_server(connection, sock=listener, ssl=self._context)
        ready.set()
        await self._ending.wait()
        running.close()
        await server.shutdown(1)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = unquote(request.rel_url.raw_path)
        found = None
        if request.method == "GET":
            found = self._files(request.rel_url.raw_path) or self._files(path)
        first, last, response = -1, -1, web.Response(status=404)
        if found is not None:
            response = web.Response(body=found, content_type="application/octet-stream")
            wanted = RANGE.fullmatch(request.headers.get("Range", ""))
            if wanted:
                first, last = int(wanted[1]), min(int(wanted[2] or len(found)), len(found) - 1)
                response = _part(found, first, last)
        response.headers["Accept-Ranges"] = "bytes"
        if self._on_asked:
            self._on_asked(Asked(path, first, last, response.status))
        return response


def _part(found: bytes, first: int, last: int) -> web.Response:
    if first > last:
        return web.Response(status=416, headers={"Content-Range": f"bytes */{len(found)}"})
    return web.Response(
        status=206,
        body=found[first : last + 1],
        content_type="application/octet-stream",
        headers={"Content-Range": f"bytes {first}-{last}/{len(found)}"},
    )
