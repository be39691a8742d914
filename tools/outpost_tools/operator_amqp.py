"""Telemetry of a real IoT Hub, over AMQP: the endpoint that it keeps for Event Hubs clients.

The hub answers a receiver at `messages/events` with a redirect to its Event Hub; there each
partition is read on its own. It uses the AMQP library that the service SDK brings. The local hub
has no AMQP, so this has been tried against no server: docs/hub.md says so.
"""

import time
from collections.abc import Iterator
from typing import Any

import uamqp

from outpost_tools import sas
from outpost_tools.connection import Connection
from outpost_tools.errors import OutpostError

GROUP = "$Default"
TURN_MS = 500
TOKEN_LIFE_S = 3600
# A partition that says nothing for so long has no more kept messages.
QUIET_S = 5.0
DEVICE_ID = b"iothub-connection-device-id"


def events(
    connection: Connection, device_id: str | None, since_s: float | None, follow: bool
) -> Iterator[dict[str, Any]]:
    """Telemetry of all partitions in the form of the local hub's events, oldest of each first."""
    receivers: list[Any] = []
    try:
        host, name = _event_hub(connection)
        for partition in _partitions(connection, host, name):
            receivers.append(_receiver(connection, host, name, partition, since_s))
        heard_s = time.monotonic()
        while follow or time.monotonic() - heard_s < QUIET_S:
            for receiver in receivers:
                for message in receiver.receive_message_batch(timeout=TURN_MS):
                    heard_s = time.monotonic()
                    event = event_of(message)
                    if device_id in (None, event["device"]):
                        yield event
    except uamqp.errors.AMQPError as why:
        raise OutpostError(
            f"The telemetry of {connection.host} cannot be read ({type(why).__name__}): is AMQP "
            "(port 5671) open from here, and has the policy ServiceConnect?"
        ) from None
    finally:
        for receiver in receivers:
            receiver.close()


def _event_hub(connection: Connection) -> tuple[str, str]:
    """Host and name of the hub's Event Hub, from the redirect that the hub answers with."""
    expiry_s = int(time.time()) + TOKEN_LIFE_S
    token = sas.make(connection.key, connection.host, expiry_s, connection.policy)
    short = connection.host.partition(".")[0]
    auth = uamqp.authentication.SASLPlain(
        connection.host, f"{connection.policy}@sas.root.{short}", token
    )
    source = f"amqps://{connection.host}/messages/events/ConsumerGroups/{GROUP}/Partitions/0"
    client = uamqp.ReceiveClient(source, auth=auth)
    try:
        client.receive_message_batch(max_batch_size=1, timeout=10000)
    except uamqp.errors.LinkRedirect as redirect:
        host = redirect.hostname.decode()
        address = redirect.address.decode()
        # amqps://{host}:5671/{name}/ConsumerGroups/...
        return host, address.partition("://")[2].partition("/")[2].partition("/")[0]
    finally:
        client.close()
    raise OutpostError(f"{connection.host} does not say where its telemetry is: is it an IoT Hub?")


def _auth(connection: Connection, host: str, name: str) -> Any:
    return uamqp.authentication.SASTokenAuth.from_shared_access_key(
        f"sb://{host}/{name}", connection.policy, connection.key
    )


def _partitions(connection: Connection, host: str, name: str) -> list[str]:
    client = uamqp.AMQPClient(f"amqps://{host}/{name}", auth=_auth(connection, host, name))
    try:
        answer = client.mgmt_request(
            uamqp.Message(application_properties={"name": name}),
            b"READ",
            op_type=b"com.microsoft:eventhub",
            status_code_field=b"status-code",
            description_fields=b"status-description",
        )
        return [part.decode() for part in answer.get_data()[b"partition_ids"]]
    finally:
        client.close()


def _receiver(
    connection: Connection, host: str, name: str, partition: str, since_s: float | None
) -> Any:
    source = uamqp.address.Source(
        f"amqps://{host}/{name}/ConsumerGroups/{GROUP}/Partitions/{partition}"
    )
    from_ms = int(1000 * (time.time() if since_s is None else since_s))
    source.set_filter(f"amqp.annotation.x-opt-enqueued-time > '{from_ms}'".encode())
    return uamqp.ReceiveClient(
        source, auth=_auth(connection, host, name), keep_alive_interval=60, prefetch=100
    )


def event_of(message: Any) -> dict[str, Any]:
    """One AMQP message as the local hub's event "telemetry"."""
    body = b"".join(message.get_data())
    noted = {_text(name): value for name, value in (message.annotations or {}).items()}
    arrived_ms = noted.get("iothub-enqueuedtime") or noted.get("x-opt-enqueued-time") or 0
    properties = message.application_properties or {}
    return {
        "event": "telemetry",
        "device": _text(noted.get(DEVICE_ID.decode(), "")),
        "at_s": arrived_ms / 1000,
        "received_s": arrived_ms / 1000,
        "number": noted.get("x-opt-sequence-number"),
        "properties": {_text(name): _text(value) for name, value in properties.items()},
        "body": body.decode(errors="backslashreplace"),
        "qos": 1,
        "dup": False,
    }


def _text(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
