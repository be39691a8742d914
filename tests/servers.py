"""Real servers for tests, each on a loopback port of its own, and proxies to stand between.

It owns the processes and threads it starts, and ends each of them by its id. It never uses a
fixed port, and never waits without a limit.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_ports = itertools.count(random.randrange(1200))
WAIT_S = 60.0  # a machine that does other things too


def need(program: str, package: str) -> str:
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/bin")
    if path is None:
        pytest.fail(f"{program} is missing: run `apt-get install {package}`")
    return path


def free_port() -> int:
    """A port for a server that must be told one: of the range that no connection gets its own from,
    and of a part of it that the other processes of this run leave alone."""
    part = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0) % 16
    for _ in range(1000):
        port = 12000 + part * 1200 + next(_ports) % 1200
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("there is no free port")


def in_time(seconds: float) -> float:
    """So many seconds on a machine that has time, and as many more as it has too much to do."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def wait_until(done: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if done():
            return
        time.sleep(0.02)
    pytest.fail(f"{process.args[0]} did not start: {log.read_text(errors='replace')[-800:]}")


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def mosquitto(directory: Path, certificate: Path, key: Path, more: str = "") -> Iterator[int]:
    """mosquitto (OpenSSL) with TLS; the answer is its port. `more` joins its configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    program = need("mosquitto", "mosquitto")
    for _ in range(5):
        port = free_port()
        config = directory / "mosquitto.conf"
        config.write_text(
            f"listener {port} 127.0.0.1\n"
            f"certfile {certificate}\nkeyfile {key}\n"
            "allow_anonymous true\npersistence false\nmessage_size_limit 0\n"
            + ("user root\n" if os.geteuid() == 0 else "")
            + more
        )
        log = directory / "mosquitto.log"
        with log.open("wb") as out:
            process = subprocess.Popen([program, "-c", str(config)], stdout=out, stderr=out)
        try:
            settled = time.monotonic() + WAIT_S
            while process.poll() is None and time.monotonic() < settled:
                if b" running" in log.read_bytes():
                    break
                time.sleep(0.02)
            if process.poll() is not None and b"in use" in log.read_bytes():
                continue  # somebody took the port in between
            wait_until(lambda port=port: listening(port), process, log)
            yield port
            return
        finally:
            stop(process)
    pytest.fail("no free port for mosquitto")


@contextlib.contextmanager
def nats(directory: Path, certificate: Path, key: Path) -> Iterator[int]:
    """nats-server (Go's TLS, which ignores max_fragment_length) with MQTT over TLS."""
    directory.mkdir(parents=True, exist_ok=True)
    program = need("nats-server", "nats-server")
    config = directory / "nats.conf"
    config.write_text(
        "listen: 127.0.0.1:-1\nserver_name: test\n"
        f'jetstream {{ store_dir: "{directory / "store"}" }}\n'
        "mqtt { host: 127.0.0.1, port: -1, "
        f'tls {{ cert_file: "{certificate}", key_file: "{key}", timeout: 10 }} }}\n'
    )
    log = directory / "nats.log"
    with log.open("wb") as out:
        process = subprocess.Popen([program, "-c", str(config)], stdout=out, stderr=out)

    def port() -> int | None:
        match = re.search(r"MQTT clients on tls://127\.0\.0\.1:(\d+)", log.read_text())
        return int(match[1]) if match and "Server is ready" in log.read_text() else None

    try:
        wait_until(lambda: port() is not None, process, log)
        found = port()
        assert found is not None
        yield found
    finally:
        stop(process)


@contextlib.contextmanager
def s_server(
    directory: Path,
    certificate: Path,
    key: Path,
    *options: str,
    www: bool = True,
    say: dict[bytes, bytes] | None = None,
) -> Iterator[int]:
    """`openssl s_server`, for what no other server would do.

    `www` answers HTTP with a page; without it `say` tells what to type at its console when a
    word appears there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    program = need("openssl", "openssl")
    log = directory / "s_server.log"
    issuers = directory / "issuers.pem"
    issuers.write_text(
        "".join(certificate.read_text().partition("-----END CERTIFICATE-----\n")[2:])
    )
    command = [program, "s_server", "-accept", "127.0.0.1:0", "-cert", str(certificate)]
    command += ["-cert_chain", str(issuers), "-key", str(key), *options]
    command += ["-www"] if www else []
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out)

    def talk() -> None:
        assert process.stdin is not None
        for word, answer in (say or {}).items():
            while process.poll() is None:
                if word in log.read_bytes():
                    process.stdin.write(answer)
                    process.stdin.flush()
                    break
                time.sleep(0.05)

    def port() -> int | None:
        match = re.search(r"ACCEPT 127\.0\.0\.1:(\d+)", log.read_text(errors="replace"))
        return int(match[1]) if match else None

    try:
        wait_until(lambda: port() is not None, process, log)
        found = port()
        assert found is not None
        threading.Thread(target=talk, daemon=True).start()
        yield found
    finally:
        stop(process)


@dataclass
class Proxy:
    """Passes bytes between a client and a server, counts them, and may change their shape."""

    upstream: int
    reshape: Callable[[bytes], list[bytes]] | None = None
    from_server: int = 0
    from_client: int = 0
    # Type and length of each record.
    records: list[tuple[int, int]] = field(default_factory=list)
    client_records: list[tuple[int, int]] = field(default_factory=list)
    port: int = 0
    _listener: socket.socket | None = None
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Proxy:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(WAIT_S)
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.upstream), WAIT_S)
            for end in (client, server):
                end.settimeout(WAIT_S)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start(self._up, client, server)
            self._start(self._down, server, client)

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                header = read_exactly(client, 5)
                body = read_exactly(client, int.from_bytes(header[3:5], "big"))
                self.client_records.append((header[0], len(body)))
                self.from_client += len(header) + len(body)
                server.sendall(header + body)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        """Record by record, so that their sizes are known and their shape can be changed."""
        encrypted = False
        with contextlib.suppress(OSError, EOFError):
            while True:
                header = read_exactly(server, 5)
                body = read_exactly(server, int.from_bytes(header[3:5], "big"))
                self.records.append((header[0], len(body)))
                encrypted = encrypted or header[0] == 20
                pieces = [header + body]
                if self.reshape is not None and header[0] == 22 and not encrypted:
                    pieces = self.reshape(header + body)
                for piece in pieces:
                    self.from_server += len(piece)
                    client.sendall(piece)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def read_exactly(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        got = source.recv(count - len(data))
        if not got:
            raise EOFError
        data += got
    return data


def in_records_of(size: int) -> Callable[[bytes], list[bytes]]:
    """Splits a handshake record into records of `size` bytes, which TLS 1.2 allows."""

    def reshape(record: bytes) -> list[bytes]:
        kind, body = record[:3], record[5:]
        parts = [body[at : at + size] for at in range(0, len(body), size)]
        return [kind + len(part).to_bytes(2, "big") + part for part in parts]

    return reshape


def byte_by_byte(record: bytes) -> list[bytes]:
    """The same record, each byte in a packet of its own."""
    return [record[at : at + 1] for at in range(len(record))]


def client_hello(run: Callable[[int], object]) -> bytes:
    """Runs a client against a socket that only listens; the answer is its ClientHello."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT_S)
        caught: list[bytes] = []

        def catch() -> None:
            with contextlib.suppress(OSError, EOFError):
                client, _ = listener.accept()
                client.settimeout(WAIT_S)
                header = read_exactly(client, 5)
                caught.append(read_exactly(client, int.from_bytes(header[3:5], "big")))
                client.close()

        thread = threading.Thread(target=catch, daemon=True)
        thread.start()
        run(listener.getsockname()[1])
        thread.join(WAIT_S)
    assert caught, "the client sent nothing"
    return caught[0]
