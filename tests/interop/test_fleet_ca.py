"""What `outpost ca` makes, in the hands of others: Microsoft's device SDK, and OpenSSL."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.iot.device import X509, IoTHubDeviceClient
from azure.iot.device import exceptions as sdk
from hubs import eventually, loopback, roots_file
from outpost_tools.cli import app
from outpost_tools.hub import Hub
from outpost_tools.registry import Registry
from softtoken import PIN, make_token
from typer.testing import CliRunner

PASSPHRASE = "correct horse battery"
DEVICE = "gateway-1"


class World:
    """A hub, and a fleet's CA made on the command line."""

    def __init__(self, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.data = folder, folder / "data"
        monkeypatch.setenv("OUTPOST_DATA", str(self.data))
        monkeypatch.setenv("OUTPOST_CA_PASSPHRASE", PASSPHRASE)
        monkeypatch.setenv("OUTPOST_CA_PIN", PIN)
        self.roots = roots_file(self.data).read_text()
        words = ["--intermediate"] if kind != "root" else []
        if kind == "token":
            place = make_token()
            words += ["--pkcs11", place.module, "--token", place.token, "--key", place.key]
        self.run("ca", "new", "Pumps", *words)
        self.host = loopback()
        self.hub = Hub(self.data, host=self.host, port=8883)
        self.hub.start()
        self._clients: list[IoTHubDeviceClient] = []

    def run(self, *words: object) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.output

    def issue(self, device_id: str = DEVICE) -> None:
        key, chain = self.folder / f"{device_id}.key", self.folder / f"{device_id}.pem"
        self.run("ca", "issue", device_id, "--key-to", key, "-o", chain)

    def client(self, device_id: str = DEVICE, shows: str = DEVICE) -> IoTHubDeviceClient:
        chain, key = self.folder / f"{shows}.pem", self.folder / f"{shows}.key"
        client = IoTHubDeviceClient.create_from_x509_certificate(
            X509(cert_file=str(chain), key_file=str(key)),
            hostname=self.host,
            device_id=device_id,
            server_verification_cert=self.roots,
            connection_retry=False,
        )
        self._clients.append(client)
        return client

    def connects(self, client: IoTHubDeviceClient) -> None:
        client.connect()
        client.send_message("hello")
        assert eventually(lambda: [t.text for t in self.hub.telemetry] == ["hello"])

    def close(self) -> None:
        for client in self._clients:
            client.shutdown()
        self.hub.stop()


@pytest.fixture(params=["root", "intermediate", "token"])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    world = World(tmp_path, request.param, monkeypatch)
    yield world
    world.close()


def test_microsofts_device_sdk_connects_by_the_thumbprint(world: World) -> None:
    world.issue()
    world.run("device", "new", DEVICE, "--certificate", world.folder / f"{DEVICE}.pem")
    world.connects(world.client())


def test_microsofts_device_sdk_connects_by_the_ca(world: World) -> None:
    world.issue()
    world.run("authority", "add", "fleet", world.data / "fleet-ca" / "root.pem")
    world.run("device", "new", DEVICE, "--ca-signed")
    world.connects(world.client())


def test_a_certificate_of_the_ca_does_not_let_another_device_in(world: World) -> None:
    for device_id in (DEVICE, "gateway-2"):
        world.issue(device_id)
        world.run("device", "new", device_id, "--ca-signed")
    world.run("authority", "add", "fleet", world.data / "fleet-ca" / "root.pem")
    with pytest.raises(sdk.CredentialError):
        world.client("gateway-2", shows=DEVICE).connect()


def test_without_the_authority_the_ca_lets_nobody_in(world: World) -> None:
    world.issue()
    world.run("device", "new", DEVICE, "--ca-signed")
    with pytest.raises(sdk.CredentialError):
        world.client().connect()


def test_openssl_makes_the_request_and_verifies_the_chain(world: World) -> None:
    key, csr, chain = (world.folder / f"o.{end}" for end in ("key", "csr", "pem"))
    openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", key)
    openssl("req", "-new", "-key", key, "-subj", f"/CN={DEVICE}", "-out", csr)
    world.run("ca", "sign", DEVICE, csr, "-o", chain)
    root = world.data / "fleet-ca" / "root.pem"
    words = ("-x509_strict", "-purpose", "sslclient", "-CAfile", root, "-untrusted", chain)
    assert openssl("verify", *words, chain).strip().endswith("OK")
    with Registry(world.data) as registry:
        assert registry.devices() == [], "signing registers nobody"


def openssl(*words: object) -> str:
    command = ["openssl", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
