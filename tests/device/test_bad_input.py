"""What a person sees when something is wrong: one clear sentence, no secret, and it goes on.

Each case is a fault at the device's edge; the sentence must come, twice where trying again can help
(the device did not stop), and nothing that the device prints may hold its key.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import socket
import ssl
import threading

import pytest
from legs import VIRTUAL
from outpost_tools.partitions import TABLE_OFFSET, PartitionTable
from outpost_tools.registry import Registry
from world import line_number


def no_secret(world, board) -> None:
    text = board.text
    for key in (world.device.primary_key, world.device.secondary_key):
        assert key not in text
        assert base64.b64decode(key).hex() not in text
    assert "SharedAccessSignature" not in text
    assert "Traceback" not in text


def says(world, board, pattern: str, times: int = 2, timeout_s: float = 60) -> None:
    at = 0
    for _ in range(times):
        at = line_number(board, pattern, at, timeout_s) + 1
    no_secret(world, board)


# What is in flash


@pytest.mark.parametrize(
    ("config", "pattern"),
    [
        (b"{", r"error +config: /config.json is not JSON"),
        (
            b'{"hub": 5, "wifi": {"ssid": "Espressif"}}',
            r"error +config: config.json: hub must be a text",
        ),
        (b'{"wifi": {"ssid": "Espressif"}}', r"error +config: config.json: hub is missing"),
        (None, r"error +config: /config.json is not there"),
    ],
)
def test_bad_configuration_is_named(world, config, pattern):
    board = world.board(world.image(8883, "127.0.0.1:1", files={"/config.json": config}))
    says(world, board, pattern, times=1)


def test_missing_identity_says_provision(world):
    board = world.board(world.image(8883, "127.0.0.1:1", provisioned=False))
    says(world, board, r"error +identity: this board has no device id: provision", times=2)


def test_key_that_is_not_base64_is_said_and_never_shown(world):
    bad = dataclasses.replace(world.device, primary_key="this is!not base64 at all")
    board = world.board(world.image(8883, "127.0.0.1:1", device=bad))
    says(world, board, r"error +identity: the key of device press-7 is not base64", times=2)
    assert "this is!not" not in board.text


def test_missing_or_damaged_roots_file_is_said(world):
    hub = world.hub()
    board = world.board(world.image(hub.port, files={"/trust/factory.bin": None}))
    says(world, board, r"error +trust: there are no roots")
    damaged = world.image(hub.port, files={"/trust/factory.bin": b"\x00\x05junk!"}, name="2.bin")
    says(world, world.board(damaged), r"error +trust: .*damaged at root 1")


def test_corrupt_partition_table_is_one_sentence(world):
    flash = world.image(8883, "127.0.0.1:1")
    content = bytearray(flash.read_bytes())
    content[TABLE_OFFSET + 4] ^= 0xFF
    flash.write_bytes(content)
    board = world.board(flash)
    assert board.wait_exit(30) == 75
    assert len(board.lines) == 1 and "partition table" in board.lines[0].text


def test_corrupt_littlefs_is_one_sentence_and_no_loop(world):
    flash = world.image(8883, "127.0.0.1:1")
    content = bytearray(flash.read_bytes())
    vfs = PartitionTable.from_flash(flash)["vfs"]
    content[vfs.offset : vfs.offset + 8192] = b"\x5a" * 8192
    flash.write_bytes(content)
    board = world.board(flash)
    assert board.wait_exit(30) == 75
    assert "file system" in board.text and len(board.lines) <= 3


def test_corrupt_nvs_is_said_and_not_erased(world):
    flash = world.image(8883, "127.0.0.1:1")
    content = bytearray(flash.read_bytes())
    nvs = PartitionTable.from_flash(flash)["nvs"]
    content[nvs.offset : nvs.offset + 4096] = b"\x00" * 4096
    flash.write_bytes(content)
    board = world.board(flash)
    says(world, board, r"error +identity: ", times=1)
    board.stop()
    if not world.leg.startswith("stock"):
        assert flash.read_bytes()[nvs.offset : nvs.offset + 4096] == b"\x00" * 4096


# The network


def test_hub_name_that_does_not_resolve_is_said_and_tried_again(world):
    board = world.board(world.image(8883, config={"hub": "no-such-hub.invalid"}))
    says(world, board, r"error +tls: the name no-such-hub\.invalid does not resolve")


def test_wrong_wifi_name_and_key_are_told_apart(world):
    flash = world.image(8883, "127.0.0.1:1", config={"wifi": {"ssid": "Elsewhere", "key": ""}})
    says(
        world, world.board(flash), r"error +link: Wi-Fi 'Elsewhere': no access point with that name"
    )
    flash = world.image(
        8883, "127.0.0.1:1", config={"wifi": {"ssid": "Home", "key": "wrong-key"}}, name="2.bin"
    )
    board = world.board(flash, wifi="Home:right-key")
    says(world, board, r"error +link: Wi-Fi 'Home': the access point refused the key")
    assert "wrong-key" not in board.text


def test_nothing_listens_at_the_hub(world):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        board = world.board(world.image(closed.getsockname()[1]))
        says(world, board, r"error +tls: localhost port \d+ cannot be reached")


def test_silent_sntp_leaves_the_floor_and_says_so(world):
    hub = world.hub()
    sntp = world.sntp(behaviour="silent")
    board = world.board(world.image(hub.port, sntp))
    says(world, board, r"clock .*source=(floor|unvouched)", times=1)
    # The build time is an hour old: the certificate is good, the token is judged by the hub.
    board.wait_for(r"(hub +connected|error +hub: )", 60)


@pytest.mark.parametrize(
    "behaviour", ["wrong-origin", "garbage", "unsynchronised", "zero", "short", "kiss"]
)
def test_sntp_answer_that_is_none_is_not_believed(world, behaviour):
    sntp = world.sntp(behaviour=behaviour)
    board = world.board(world.image(1, sntp))
    says(world, board, r"clock .*source=(floor|unvouched)", times=1)


def test_sntp_below_the_floor_is_not_believed(world):
    sntp = world.sntp(offset_s=-10 * 86400)
    board = world.board(world.image(1, sntp))
    says(world, board, r"clock .*source=(floor|unvouched)", times=1)


# The server


class TlsServer:
    """A server with one fault in its TLS; it takes connections until it is stopped."""

    def __init__(self, world, context: ssl.SSLContext, after=None) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self._context = context
        self._after = after
        self.finished: list[str] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        world._closing.append(self)

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self.socket.accept()
            except OSError:
                return
            plain.settimeout(10)
            try:
                with self._context.wrap_socket(plain, server_side=True) as tls:
                    self.finished.append(tls.version() or "")
                    if self._after:
                        self._after(tls)
            except OSError:
                plain.close()

    def stop(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._thread.join(15)


def server_context(leaf) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf.chain, leaf.key)
    return context


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_server_with_an_unknown_root_gets_no_application_data(world, kind, tmp_path):
    from outpost_tools.pki import DevCA

    other = DevCA(tmp_path / "other")
    server = TlsServer(world, server_context(other.leaf(kind, ["localhost"])))
    board = world.board(world.image(server.port))
    says(world, board, r"error +tls: localhost is not trusted: its certificate does not end in one")
    assert server.finished == []


def test_server_with_another_hosts_name_is_refused(world):
    server = TlsServer(world, server_context(world.ca.leaf("ecdsa", ["other.example"])))
    board = world.board(world.image(server.port))
    says(world, board, r"error +tls: localhost is not trusted: its certificate names another host")
    assert server.finished == []


def test_server_with_an_expired_certificate_is_refused(world):
    now = dt.datetime.now(dt.UTC)
    leaf = world.ca.leaf(
        "ecdsa",
        ["localhost"],
        not_before=now - dt.timedelta(days=60),
        not_after=now - dt.timedelta(days=1),
    )
    server = TlsServer(world, server_context(leaf))
    board = world.board(world.image(server.port))
    says(world, board, r"error +tls: localhost is not trusted: its certificate has expired")
    assert server.finished == []


@pytest.mark.parametrize("leg", VIRTUAL, indirect=True)  # the release leg's clock is the host's
def test_a_device_that_wakes_after_2038_takes_a_certificate_of_that_time(
    world, tmp_path, monkeypatch
):
    from outpost_tools import pki

    decades = dt.timedelta(days=40 * 365)
    monkeypatch.setattr(pki, "ROOT_LIFE", decades)
    monkeypatch.setattr(pki, "INTERMEDIATE_LIFE", decades)
    ca = pki.DevCA(tmp_path / "long")
    then = dt.datetime(2041, 1, 1, tzinfo=dt.UTC)
    year = dt.timedelta(days=365)
    leaf = ca.leaf("ecdsa", ["localhost"], not_before=then - year, not_after=then + year)
    server = TlsServer(world, server_context(leaf))
    sntp = world.sntp(offset_s=(then - dt.datetime.now(dt.UTC)).total_seconds())
    board = world.board(world.image(server.port, sntp, trust=ca.roots_der()))
    # It hangs up after the handshake, which is all that is asked of it here.
    line = says(world, board, r"error +(tls|mqtt|hub): ")
    assert "2041-01-01" in "".join(text.text for text in board.lines)
    assert server.finished, line


def test_server_that_speaks_tls_1_1_only_is_refused(world):
    context = server_context(world.ca.leaf("rsa", ["localhost"]))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    server = TlsServer(world, context)
    board = world.board(world.image(server.port))
    ours = not world.leg.startswith("stock")
    # It may have a suite for the version, or none: every one of ours is of TLS 1.2.
    words = r".*(does|may) not speak TLS 1\.2" if ours else "(refused the|does not speak TLS)"
    says(world, board, rf"error +tls: localhost {words}")
    assert server.finished == []


def test_server_that_speaks_tls_1_3_only_is_refused(world):
    context = server_context(world.ca.leaf("ecdsa", ["localhost"]))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    server = TlsServer(world, context)
    board = world.board(world.image(server.port))
    ours = not world.leg.startswith("stock")
    words = r"does not speak TLS 1\.2" if ours else r"(refused the|does not speak TLS 1\.2)"
    says(world, board, rf"error +tls: localhost {words}")
    assert server.finished == []


def test_server_with_no_common_suite_is_refused(world):
    context = server_context(world.ca.leaf("rsa", ["localhost"]))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-GCM-SHA256:AES256-SHA256:AES128-SHA:@SECLEVEL=0")
    server = TlsServer(world, context)
    board = world.board(world.image(server.port))
    ours = not world.leg.startswith("stock")
    words = "accepts none of this device's cipher suites" if ours else "refused the handshake"
    says(world, board, rf"error +tls: localhost {words}")
    assert server.finished == []


def test_server_that_accepts_and_says_nothing_ends_at_the_deadline(world):
    listener = socket.create_server(("127.0.0.1", 0))
    try:
        board = world.board(world.image(listener.getsockname()[1]))
        says(world, board, r"error +tls: the TLS handshake was not done in 20 s", times=1)
    finally:
        listener.close()


def test_connack_that_never_comes_ends_at_the_deadline(world):
    def swallow(tls) -> None:
        tls.settimeout(30)
        while tls.recv(4096):
            pass

    server = TlsServer(world, server_context(world.ca.leaf("ecdsa", ["localhost"])), swallow)
    board = world.board(world.image(server.port))
    says(world, board, r"error +mqtt: the server answered no CONNACK within 20 s", times=1)


def test_server_that_talks_nonsense_after_the_handshake_is_left(world):
    server = TlsServer(
        world,
        server_context(world.ca.leaf("ecdsa", ["localhost"])),
        lambda tls: tls.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    )
    board = world.board(world.image(server.port))
    says(world, board, r"error +mqtt: ")


def test_refused_token_says_what_to_check(world):
    hub = world.hub()
    flash = world.image(hub.port)
    Registry(world.data).remove(world.device.device_id)
    board = world.board(flash)
    says(
        world, board, r"error +hub: the server does not authorise this device: check that it exists"
    )
