"""A gateway in front of the hub: TLS is spoken with the gateway, the identity is the hub's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading

import pki
import pytest

HUB_NAME = "plant-hub.example"


class Gateway:
    """A TLS server with its own certificate that passes MQTT on to the hub over TLS of its own.

    It verifies the hub by the hub's root, as the device would. `host` is what it is named.
    """

    def __init__(self, folder, hub_port: int, hub_roots: list[bytes]) -> None:
        self.chain = pki.chain("ecdsa", root_number=3)
        certificate, key = self.chain.write(folder / "gateway")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        self.upstream = ssl.create_default_context(
            cadata="".join(ssl.DER_cert_to_PEM_cert(der) for der in hub_roots)
        )
        self.hub_port = hub_port
        self.seen = bytearray()
        self.names: list[str | None] = []
        self.context.sni_callback = lambda _s, name, _c: self.names.append(name)
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self.thread.start()
        ready.wait(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        self.server = self.loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        )
        self.port = self.server.sockets[0].getsockname()[1]
        ready.set()
        self.loop.run_forever()

    async def _serve(self, reader, writer) -> None:
        up_reader, up_writer = await asyncio.open_connection(
            "127.0.0.1", self.hub_port, ssl=self.upstream, server_hostname="localhost"
        )

        async def carry(source, target, keep) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(4096):
                    if keep:
                        self.seen += data
                    target.write(data)
                    await target.drain()
            target.close()

        await asyncio.gather(carry(reader, up_writer, True), carry(up_reader, writer, False))

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


@pytest.fixture
def gateway(world):
    hub = world.hub(names=[HUB_NAME])
    made = Gateway(world.folder, hub.port, world.ca.roots_der())
    made.hub = hub
    world._closing.append(made)
    return made


def test_device_speaks_tls_with_the_gateway_and_proves_itself_to_the_hub(world, gateway):
    # The gateway's root alone is trusted: the hub's own would not do.
    flash = world.image(
        gateway.port,
        hub=HUB_NAME,
        config={"gateway_host": "localhost"},
        trust=[gateway.chain.root.der],
    )
    board = world.board(flash)
    board.wait_for(r"acked id=2", 60)
    assert json.loads(gateway.hub.telemetry[0].body)["n"] == 1
    assert set(gateway.names) == {"localhost"}
    # User name and token name the hub.
    assert f"{HUB_NAME}/{world.device.device_id}/?api-version".encode() in gateway.seen
    assert f"{HUB_NAME}%2Fdevices%2F{world.device.device_id}".encode() in gateway.seen
    assert b"localhost" not in gateway.seen


def test_gateway_of_another_name_is_not_trusted(world, gateway):
    flash = world.image(
        gateway.port,
        hub=HUB_NAME,
        config={"gateway_host": "127.0.0.1"},
        trust=[gateway.chain.root.der],
    )
    board = world.board(flash)
    board.wait_for(r"error +tls: 127.0.0.1 is not trusted: its certificate names another host", 60)
    assert not gateway.hub.telemetry and not gateway.seen


def test_gateway_that_ends_in_the_hubs_root_only_is_not_trusted_and_none_goes_around_it(
    world, gateway
):
    flash = world.image(gateway.port, hub=HUB_NAME, config={"gateway_host": "localhost"})
    board = world.board(flash)
    board.wait_for(r"error +tls: localhost is not trusted: .*one of this device's roots", 60)
    assert not gateway.hub.telemetry and not gateway.seen and not gateway.hub.connected
