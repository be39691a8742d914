"""Brokers that are no IoT Hub, as a fleet would run them: TLS, and a client certificate for each.

It owns the processes it starts, Erlang's port mapper included, and ends each by its id; ports
are free ones. A broker's user name for a client is the common name of its certificate.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from servers import free_port, listening, need, stop

RABBIT_BIN = Path("/usr/lib/rabbitmq/bin")
START_S = 120.0  # Erlang, on a machine that does other things too


@dataclass(frozen=True)
class Certificates:
    """PEM files: a server's chain and key, and the authority of the clients' certificates."""

    chain: Path
    key: Path
    clients: Path


def _wait(done, processes: list[subprocess.Popen[bytes]], logs: list[Path], what: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if done():
            return
        if any(process.poll() is not None for process in processes):
            break
        time.sleep(0.1)
    tail = "\n".join(log.read_text(errors="replace")[-800:] for log in logs if log.exists())
    pytest.fail(f"{what} did not start: {tail}")


@contextlib.contextmanager
def mosquitto(folder: Path, certificates: Certificates) -> Iterator[int]:
    """mosquitto that asks for a client certificate and keeps sessions; the answer is its port."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    (folder / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\n"
        f"certfile {certificates.chain}\nkeyfile {certificates.key}\n"
        f"cafile {certificates.clients}\nrequire_certificate true\n"
        "use_identity_as_username true\nallow_anonymous false\n"
        f"persistence true\npersistence_location {folder}/\nautosave_interval 1\n"
        + ("user root\n" if os.geteuid() == 0 else "")
    )
    log = folder / "mosquitto.log"
    command = [need("mosquitto", "mosquitto"), "-c", str(folder / "mosquitto.conf")]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        _wait(lambda: listening(port), [process], [log], "mosquitto")
        yield port
    finally:
        stop(process)


@contextlib.contextmanager
def rabbitmq(folder: Path, certificates: Certificates, users: list[str]) -> Iterator[int]:
    """RabbitMQ with its MQTT plugin alone; the answer is the port of MQTT over TLS.

    users  common names of the certificates that may connect
    """
    need("epmd", "rabbitmq-server")
    if not (RABBIT_BIN / "rabbitmq-server").exists():
        pytest.fail("rabbitmq-server is missing: run `apt-get install rabbitmq-server`")
    folder.mkdir(parents=True, exist_ok=True)
    port, epmd_port, dist_port = free_port(), free_port(), free_port()
    (folder / "plugins").write_text("[rabbitmq_mqtt,rabbitmq_auth_mechanism_ssl].\n")
    (folder / "rabbitmq.conf").write_text(
        "listeners.tcp = none\n"
        "mqtt.listeners.tcp = none\n"
        f"mqtt.listeners.ssl.1 = 127.0.0.1:{port}\n"
        "mqtt.ssl_cert_login = true\nssl_cert_login_from = common_name\n"
        "mqtt.allow_anonymous = false\n"
        f"ssl_options.certfile = {certificates.chain}\n"
        f"ssl_options.keyfile = {certificates.key}\n"
        f"ssl_options.cacertfile = {certificates.clients}\n"
        "ssl_options.versions.1 = tlsv1.2\n"
        "ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n"
        f"load_definitions = {folder / 'definitions.json'}\n"
    )
    (folder / "definitions.json").write_text(_definitions(users))
    env = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_DIST_PORT": str(dist_port),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}",
    }
    log = folder / "rabbitmq.log"
    with log.open("wb") as out:
        mapper = subprocess.Popen(["epmd"], env=env, stdout=out, stderr=out)
        try:
            _wait(lambda: listening(epmd_port), [mapper], [log], "epmd")
            server = subprocess.Popen(
                [str(RABBIT_BIN / "rabbitmq-server")],
                env=env,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
            try:
                ready = "Server startup complete"
                _wait(
                    lambda: ready in log.read_text(errors="replace") and listening(port),
                    [server],
                    [log],
                    "RabbitMQ",
                )
                yield port
            finally:
                stop(server)
        finally:
            stop(mapper)


def _definitions(users: list[str]) -> str:
    """RabbitMQ's own form: each certificate's name is a user with a password nobody knows."""
    return json.dumps(
        {
            "users": [
                {"name": name, "password": secrets.token_urlsafe(24), "tags": ""} for name in users
            ],
            "vhosts": [{"name": "/"}],
            "permissions": [
                {"user": name, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
                for name in users
            ],
        }
    )


@dataclass
class NatsNode:
    """One server of a cluster: it can be killed and started again on its own store and ports."""

    name: str
    mqtt_port: int
    config: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [need("nats-server", "nats-server"), "-c", str(self.config)],
                stdout=out,
                stderr=out,
            )

    def kill(self) -> None:
        """As a power cut: no time to say goodbye."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)


@contextlib.contextmanager
def nats_cluster(
    folder: Path, certificates: Certificates, users: list[str], count: int = 3
) -> Iterator[list[NatsNode]]:
    """nats-servers with JetStream, MQTT over TLS, clients known by their certificate's name.

    users  common names of the certificates that may connect
    """
    folder.mkdir(parents=True, exist_ok=True)
    routes = [free_port() for _ in range(count)]
    nodes = []
    known = ", ".join(f'{{ user: "CN={name}" }}' for name in users)
    for i in range(count):
        name, port = f"n{i + 1}", free_port()
        config = folder / f"{name}.conf"
        others = ", ".join(
            f'"nats-route://127.0.0.1:{route}"' for j, route in enumerate(routes) if j != i
        )
        cluster = (
            f"cluster {{ name: fleet, listen: 127.0.0.1:{routes[i]}, routes: [{others}] }}\n"
            if count > 1
            else ""
        )
        config.write_text(
            f"listen: 127.0.0.1:-1\nserver_name: {name}\n"
            f'jetstream {{ store_dir: "{folder / name}" }}\n'
            + cluster
            + f"authorization {{ users: [{known}] }}\n"
            # Said, not left to the moment of the first connection: three copies of everything.
            + f"mqtt {{ host: 127.0.0.1, port: {port}, stream_replicas: {count}, "
            + f'tls {{ cert_file: "{certificates.chain}", key_file: "{certificates.key}", '
            + f'ca_file: "{certificates.clients}", verify_and_map: true, timeout: 10 }} }}\n'
        )
        nodes.append(NatsNode(name, port, config, folder / f"{name}.log"))
    try:
        for node in nodes:
            node.start()
        for node in nodes:
            assert node.process is not None
            _wait(lambda node=node: _nats_ready(node, count), [node.process], [node.log], node.name)
        yield nodes
    finally:
        for node in nodes:
            node.stop()


def _nats_ready(node: NatsNode, count: int) -> bool:
    text = node.log.read_text(errors="replace")
    # Its log alone tells: a probe of the port would be a broken handshake in that log.
    led = "JetStream cluster new metadata leader" in text or "Self is new JetStream" in text
    return "Server is ready" in text and (count == 1 or led)


@contextlib.contextmanager
def balancer(folder: Path, nodes: list[int]) -> Iterator[int]:
    """HAProxy before the nodes' ports: TCP passed through, to the first node that is up.

    TLS is the node's: the balancer sees neither keys nor messages. The answer is its port.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    servers = "".join(
        f"    server n{i} 127.0.0.1:{node} maxconn 1000 check inter 500ms fall 2 rise 1 "
        "on-marked-down shutdown-sessions\n"
        for i, node in enumerate(nodes, 1)
    )
    config = folder / "haproxy.cfg"
    config.write_text(
        "defaults\n    mode tcp\n    timeout connect 2s\n    timeout client 1h\n"
        "    timeout server 1h\n    option redispatch\n"
        f"frontend devices\n    bind 127.0.0.1:{port}\n    default_backend cluster\n"
        f"backend cluster\n    balance first\n{servers}"
    )
    log = folder / "haproxy.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [need("haproxy", "haproxy"), "-db", "-f", str(config)], stdout=out, stderr=out
        )
    try:
        _wait(lambda: listening(port), [process], [log], "HAProxy")
        yield port
    finally:
        stop(process)
