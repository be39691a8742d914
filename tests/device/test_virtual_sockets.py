"""Sockets of the virtual board against real servers: lwIP's manners, under TLS too."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pki
import pytest
from legs import BIN, LEGS, VIRTUAL

LEGS_HERE = VIRTUAL
PRELUDE = """\
import socket, select, time
def tell(call):
    try: print(call())
    except OSError as error: print('errno', error.errno)
def connected(timeout=5):
    s = socket.socket()
    s.settimeout(timeout)
    s.connect(('127.0.0.1', PORT))
    return s
"""


@contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A listener; each connection is given to `serve` and then closed."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(20)
                serve(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(25)


def script(port: int, body: str) -> str:
    return PRELUDE.replace("PORT", str(port)) + body


def wait_for_end(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_silence_ends_in_a_time_out_and_without_blocking_in_would_block(micropython) -> None:
    with server(wait_for_end) as port:
        printed = micropython(
            script(
                port,
                "s = connected(0.3)\n"
                "t = time.ticks_ms()\ntell(lambda: s.recv(1))\n"
                "took = time.ticks_diff(time.ticks_ms(), t)\nprint(300 <= took < 1000)\n"
                "tell(lambda: s.read(1))\ns.settimeout(0)\n"
                "tell(lambda: s.recv(1))\ntell(lambda: s.read(1))\ns.close()\n",
            )
        )
    assert printed.splitlines() == ["errno 116", "True", "errno 116", "errno 11", "None"]


def test_end_of_the_peer_is_read_again_and_again(micropython) -> None:
    with server(lambda connection: connection.sendall(b"bye")) as port:
        printed = micropython(
            script(
                port,
                "s = connected()\nprint(s.read(3), s.read(1), s.recv(5))\n"
                "p = select.poll(); p.register(s, select.POLLIN)\nprint(len(p.poll(0)))\n",
            )
        )
    assert printed.splitlines() == ["b'bye' b'' b''", "1"]


def test_reset_and_unconnected_have_the_numbers_of_lwip(micropython) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(1)
        reset(connection)

    with server(serve) as port:
        printed = micropython(
            script(
                port,
                "s = connected()\ns.write(b'x')\ntell(lambda: s.read(1))\n"
                "tell(lambda: socket.socket().send(b'x'))\n"
                "tell(lambda: socket.socket().recv(1))\n",
            )
        )
    assert printed.splitlines() == ["errno 104", "errno 128", "errno 128"]


def test_connection_made_without_blocking_becomes_writable(micropython) -> None:
    with server(wait_for_end) as port:
        printed = micropython(
            script(
                port,
                "s = socket.socket()\ns.setblocking(False)\n"
                "p = select.poll(); p.register(s, select.POLLOUT)\n"
                "print(p.poll(0)[0][1] == select.POLLOUT | select.POLLHUP)\n"
                "tell(lambda: s.connect(('127.0.0.1', PORT)))\n"
                "print(p.poll(2000)[0][1] == select.POLLOUT, s.send(b'x'))\n".replace(
                    "PORT", str(port)
                ),
            )
        )
    assert printed.splitlines() == ["True", "errno 119", "True 1"]


def test_slow_reader_makes_partial_writes_and_nothing_is_lost(micropython) -> None:
    total = 8_000_000
    received = []

    def serve(connection: socket.socket) -> None:
        threading.Event().wait(0.5)
        count = 0
        while chunk := connection.recv(65536):
            count += len(chunk)
        received.append(count)

    with server(serve) as port:
        printed = micropython(
            script(
                port,
                f"s = connected()\nblock = bytes(10000)\nleft = {total}\n"
                "s.setblocking(False)\npart = waits = 0\n"
                "p = select.poll(); p.register(s, select.POLLOUT)\n"
                "while left:\n"
                "    n = s.write(memoryview(block)[:min(left, len(block))])\n"
                "    if n is None:\n        waits += 1\n        p.poll(1000)\n        continue\n"
                "    left -= n\n"
                "s.close()\nprint(waits > 0)\n",
            )
        )
    assert printed.strip() == "True" and received == [total]


def test_there_are_ten_sockets_and_lost_ones_come_back(micropython) -> None:
    printed = micropython(
        PRELUDE + "kept = [socket.socket() for _ in range(10)]\n"
        "tell(socket.socket)\nkept = None\nimport gc\ngc.collect()\nprint(socket.socket())\n"
    )
    assert printed.splitlines() == ["errno 23", "<socket>"]


def test_datagrams_go_both_ways(micropython) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(10)

        def answer() -> None:
            data, sender = peer.recvfrom(100)
            peer.sendto(data[::-1], sender)

        thread = threading.Thread(target=answer)
        thread.start()
        port = peer.getsockname()[1]
        printed = micropython(
            PRELUDE + "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.settimeout(5)\n"
            f"where = socket.getaddrinfo('127.0.0.1', {port})[0][-1]\n"
            "print(s.sendto(b'ping', where))\n"
            "data, sender = s.recvfrom(100)\nprint(data, sender == where)\n"
        )
        thread.join()
    assert printed.splitlines() == ["4", "b'gnip' True"]


@pytest.mark.parametrize("body", ["s.recv(1)", "select.poll().poll()", "time.sleep(30)"])
def test_interrupt_wakes_whatever_waits(leg: str, tmp_path: Path, body: str) -> None:
    with server(wait_for_end) as port:
        path = tmp_path / "script.py"
        path.write_text(
            script(
                port,
                "s = connected(None)\nprint('waits')\ntry:\n"
                f"    {body}\nexcept KeyboardInterrupt:\n    print('woken')\n",
            )
        )
        process = subprocess.Popen([BIN / leg, path], stdout=subprocess.PIPE)
        try:
            assert process.stdout.readline() == b"waits\n"
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == b"woken\n"
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.communicate()


# ---------------------------------------------------------------- TLS over these sockets


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[pki.Chain, ssl.SSLContext]:
    made = pki.chain("ecdsa")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(*made.write(tmp_path_factory.mktemp("chain")))
    return made, context


def tls_script(port: int, chain: pki.Chain, body: str, **options: object) -> str:
    given = "".join(f", {name}={value}" for name, value in options.items())
    return script(
        port,
        "import tls\ndef secured(s):\n"
        "    c = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)\n"
        "    c.verify_mode = tls.CERT_REQUIRED\n"
        f"    c.load_verify_locations({chain.root.der!r})\n"
        f"    return c.wrap_socket(s, server_hostname='localhost'{given})\n" + body,
    )


def test_tls_time_out_is_negative_and_final_as_on_the_board(micropython, chain) -> None:
    """MicroPython's TLS socket keeps its last error: who wants to go on must not block."""
    made, context = chain

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            wait_for_end(secured)

    with server(serve) as port:
        printed = micropython(
            tls_script(
                port,
                made,
                "s = connected(0.5)\nz = secured(s)\ntell(lambda: z.read(1))\n"
                "s.setblocking(False)\ntell(lambda: z.read(1))\nz.close()\n",
            )
        )
    assert printed.splitlines() == ["errno -116", "errno -116"]


def test_tls_handshake_with_a_silent_server_times_out(micropython, chain) -> None:
    made, _ = chain
    with server(wait_for_end) as port:
        printed = micropython(
            tls_script(port, made, "s = connected(0.5)\ntell(lambda: secured(s))\n")
        )
    assert printed.strip() == "errno 116"


def test_poll_sees_what_tls_has_already_decrypted(micropython, chain) -> None:
    made, context = chain

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.sendall(b"0123456789")
            wait_for_end(secured)

    with server(serve) as port:
        printed = micropython(
            tls_script(
                port,
                made,
                "s = connected()\nz = secured(s)\nprint(z.read(1))\n"
                "p = select.poll(); p.register(z, select.POLLIN)\n"
                "print(len(p.poll(0)), z.read(9), len(p.poll(0)))\nz.close()\n",
            )
        )
    assert printed.splitlines() == ["b'0'", "1 b'123456789' 0"]


def test_tls_writes_all_of_a_large_message_to_a_slow_reader(micropython, chain) -> None:
    """Without blocking, one write must be one record, and be repeated as it was.

    mbedtls keeps a record that could not go out, and counts it for whatever it is given next: on
    a real board too, a write of several records that stops half-way loses data.
    """
    made, context = chain
    received = []

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            threading.Event().wait(0.5)
            count = 0
            while chunk := secured.recv(65536):
                count += len(chunk)
            received.append(count)

    for blocking, most in ((True, 9000), (False, 512)):
        with server(serve) as port:
            micropython(
                tls_script(
                    port,
                    made,
                    "s = connected()\nz = secured(s)\nblock = bytes(9000)\nleft = 2_000_000\n"
                    f"s.setblocking({blocking})\n"
                    "p = select.poll(); p.register(z, select.POLLOUT)\n"
                    "while left:\n"
                    f"    n = z.write(memoryview(block)[:min(left, {most})])\n"
                    "    if n is None:\n        p.poll(1000)\n        continue\n"
                    "    left -= n\nz.close()\ns.close()\n",
                )
            )
    assert received == [2_000_000, 2_000_000]


def test_tls_handshake_without_blocking_finishes_under_poll(micropython, chain) -> None:
    made, context = chain

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.sendall(secured.recv(4).upper())

    with server(serve) as port:
        printed = micropython(
            tls_script(
                port,
                made,
                "s = connected()\ns.setblocking(False)\nz = secured(s)\n"
                "p = select.poll(); p.register(z, select.POLLIN | select.POLLOUT)\n"
                "while z.write(b'ping') is None: p.poll(1000)\n"
                "p.modify(z, select.POLLIN)\n"
                "while (answer := z.read(4)) is None: p.poll(1000)\n"
                "print(answer)\nz.close()\n",
                do_handshake_on_connect=False,
            )
        )
    assert printed.strip() == "b'PING'"


def test_certificates_are_judged_by_the_boards_clock(leg: str, tmp_path: Path, chain) -> None:
    made, context = chain

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            wait_for_end(secured)

    with server(serve) as port:
        path = tmp_path / "script.py"
        path.write_text(
            tls_script(
                port,
                made,
                "try: secured(connected())\n"
                "except ValueError as error: print(str(error).strip())\n",
            )
        )
        command = [BIN / leg, "-X", f"heapsize={LEGS[leg]}", "--clock", "1000000000", path]
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=20)
    assert done.stdout.decode().strip() == "The certificate validity starts in the future"
