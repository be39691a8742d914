"""The operator's side of a hub, through Microsoft's service SDK: the local hub or a real one.

Registry, twins and methods are REST. Commands and telemetry are AMQP on a real IoT Hub; the local
hub has no AMQP, and they take routes of its own there (docs/hub.md). It owns one SDK client, and
turns the SDK's errors into one sentence each; it never prints a key.
"""

import contextlib
import datetime as dt
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import requests
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod, QuerySpecification, Twin, TwinProperties
from azure.iot.hub.protocol.models import ExportImportDevice
from msrest.exceptions import ClientException, HttpOperationError

from outpost_tools import sas
from outpost_tools.connection import Connection
from outpost_tools.errors import HubTrouble, OutpostError

API = "api-version=2021-04-12"
PAGE = 100
PATIENCE_S = 30
TOKEN_LIFE_S = 3600
RESPONSE_DEFAULT_S = 30

# What the hub's numbers mean for the person who gave the command.
SENTENCES = {
    401: "The hub refuses this policy's key, or the policy lacks the right: see `outpost policy`.",
    404103: "The device is not connected, or does not take methods: try again when it is.",
    412: "Someone else changed it meanwhile: try again.",
    413: "That is larger than the hub takes.",
    429: "The hub is asked too much at once: try again in a minute.",
    504101: "The device took the call and did not answer in time.",
}


@dataclass(frozen=True)
class Message:
    """A command to a device. `expiry_s` is Unix time; None leaves it to the hub."""

    body: bytes
    properties: Mapping[str, str] = field(default_factory=dict)
    message_id: str | None = None
    correlation_id: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    expiry_s: float | None = None
    ack: str = "none"


class NoDevice(OutpostError):
    """The hub does not have that device."""


class Operator:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        with _in_a_sentence(connection.host):
            self._sdk = IoTHubRegistryManager.from_connection_string(connection.text)
        if connection.roots is not None:
            self._sdk.protocol.config.connection.verify = str(connection.roots)
        # A direct method may take five minutes to connect and five to answer.
        self._sdk.protocol.config.connection.timeout = 660
        self._sdk.protocol.config.retry_policy.policy.total = 1

    # Devices, in IoT Hub's own JSON form.

    def device(self, device_id: str) -> dict[str, Any]:
        with self._asking(device_id):
            return self._sdk.get_device(quote_id(device_id)).serialize(keep_readonly=True)

    def devices(self) -> list[dict[str, Any]]:
        """Every device's twin: what a fleet is listed from."""
        found: list[dict[str, Any]] = []
        token = None
        while True:
            with self._asking():
                page = self._sdk.query_iot_hub(
                    QuerySpecification(query="SELECT * FROM devices"), token, PAGE
                )
            found += [twin.serialize(keep_readonly=True) for twin in page.items or []]
            token = page.continuation_token
            if not token:
                return found

    def add(self, device_id: str, auth: str, first: str, second: str, status: str) -> Any:
        """`first` and `second` are keys for "sas", thumbprints for "selfSigned"."""
        sdk = self._sdk
        name = quote_id(device_id)
        with self._asking(device_id):
            if auth == "sas":
                made = sdk.create_device_with_sas(name, first, second, status)
            elif auth == "selfSigned":
                made = sdk.create_device_with_x509(name, first, second, status)
            else:
                made = sdk.create_device_with_certificate_authority(name, status)
        return made.serialize(keep_readonly=True)

    def update(
        self, device: dict[str, Any], status: str | None = None, keys: tuple[str, str] | None = None
    ) -> dict[str, Any]:
        """Write a device back that was read, with another status or other keys."""
        device_id, etag = device["deviceId"], device["etag"]
        auth = device.get("authentication") or {}
        status = status or device["status"]
        name = quote_id(device_id)
        with self._asking(device_id):
            if auth.get("type", "sas") == "sas":
                held = auth.get("symmetricKey") or {}
                first, second = keys or (held.get("primaryKey"), held.get("secondaryKey"))
                made = self._sdk.update_device_with_sas(name, etag, first, second, status)
            elif auth["type"] == "selfSigned":
                held = auth.get("x509Thumbprint") or {}
                made = self._sdk.update_device_with_x509(
                    name,
                    etag,
                    held.get("primaryThumbprint"),
                    held.get("secondaryThumbprint"),
                    status,
                )
            else:
                made = self._sdk.update_device_with_certificate_authority(name, etag, status)
        return made.serialize(keep_readonly=True)

    def authenticate(
        self, device: dict[str, Any], auth: str, first: str, second: str, status: str
    ) -> dict[str, Any]:
        """Write a device back that was read, with another way to prove itself (as for `add`)."""
        device_id, etag = device["deviceId"], device["etag"]
        sdk, name = self._sdk, quote_id(device_id)
        with self._asking(device_id):
            if auth == "sas":
                made = sdk.update_device_with_sas(name, etag, first, second, status)
            elif auth == "selfSigned":
                made = sdk.update_device_with_x509(name, etag, first, second or None, status)
            else:
                made = sdk.update_device_with_certificate_authority(name, etag, status)
        return made.serialize(keep_readonly=True)

    def remove(self, device_id: str) -> None:
        with self._asking(device_id):
            self._sdk.delete_device(quote_id(device_id))

    def bulk(self, entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """Bulk entries in IoT Hub's form, a hundred at a time; gives what was refused, by id."""
        refused: dict[str, str] = {}
        waiting = (ExportImportDevice.deserialize(dict(entry)) for entry in entries)
        while page := list(itertools.islice(waiting, PAGE)):
            with self._asking():
                result = self._sdk.bulk_create_or_update_devices(page)
            for error in result.errors or []:
                refused[error.device_id] = str(error.error_status or error.error_code)
        return refused

    def statistics(self) -> dict[str, int]:
        with self._asking():
            registry = self._sdk.get_device_registry_statistics().serialize(keep_readonly=True)
            return registry | self._sdk.get_service_statistics().serialize(keep_readonly=True)

    # Twins and methods.

    def twin(self, device_id: str) -> dict[str, Any]:
        with self._asking(device_id):
            return self._sdk.get_twin(quote_id(device_id)).serialize(keep_readonly=True)

    def patch_twin(
        self, device_id: str, desired: dict[str, Any] | None, tags: dict[str, Any] | None
    ) -> dict[str, Any]:
        properties = None if desired is None else TwinProperties(desired=desired)
        twin = Twin(properties=properties, tags=tags)
        with self._asking(device_id):
            patched = self._sdk.update_twin(quote_id(device_id), twin)
        return patched.serialize(keep_readonly=True)

    def invoke(
        self, device_id: str, method: str, payload: Any, response_s: int, connect_s: int
    ) -> tuple[int, Any]:
        request = CloudToDeviceMethod(
            method_name=method,
            payload=payload,
            response_timeout_in_seconds=response_s,
            connect_timeout_in_seconds=connect_s,
        )
        with self._asking(device_id):
            result = self._sdk.invoke_device_method(quote_id(device_id), request)
        return result.status, result.payload

    # Commands and telemetry.

    def send(self, device_id: str, message: Message) -> str:
        """Queue a command; gives its message id where the hub says it."""
        if self.connection.is_azure:
            return self._send_by_amqp(device_id, message)
        headers = {
            "Content-Type": message.content_type or "application/octet-stream",
            "iothub-ack": message.ack,
        }
        optional = {
            "iothub-messageid": message.message_id,
            "iothub-correlationid": message.correlation_id,
            "iothub-expiry": None if message.expiry_s is None else utc(message.expiry_s),
            "iothub-contenttype": message.content_type,
            "iothub-contentencoding": message.content_encoding,
        }
        for name, value in optional.items():
            if value and not (value.isascii() and value.isprintable()):
                raise OutpostError(f"A command's {name[7:]} is printable ASCII.")
        headers |= {name: value for name, value in optional.items() if value}
        headers |= {
            f"iothub-app-{quote(name, safe='')}": quote(value, safe="")
            for name, value in message.properties.items()
        }
        path = f"/devices/{quote(quote_id(device_id), safe='')}/messages/devicebound?{API}"
        answer = self._own_route("POST", path, device_id, data=message.body, headers=headers)
        with contextlib.suppress(ValueError, AttributeError):
            return str(answer.json().get("messageId") or message.message_id or "")
        return message.message_id or ""

    def _send_by_amqp(self, device_id: str, message: Message) -> str:
        properties: dict[str, Any] = dict(message.properties)
        system = {
            "messageId": message.message_id,
            "correlationId": message.correlation_id,
            "contentType": message.content_type,
            "contentEncoding": message.content_encoding,
            "expiryTimeUtc": None if message.expiry_s is None else int(message.expiry_s * 1000),
            "iothub-ack": None if message.ack == "none" else message.ack,
        }
        properties |= {name: value for name, value in system.items() if value is not None}
        try:
            self._sdk.send_c2d_message(device_id, message.body, properties)
        except Exception as why:  # the SDK raises bare Exception, its AMQP library many kinds
            raise OutpostError(
                f"The command did not reach {self.connection.host} ({type(why).__name__}): is "
                "AMQP (port 5671) open from here?"
            ) from None
        return message.message_id or ""

    def events(
        self, device_id: str | None, since_s: float | None, follow: bool, kinds: Iterable[str] = ()
    ) -> Iterator[dict[str, Any]]:
        """Kept telemetry from `since_s` on, then with `follow` what happens, until it is closed."""
        if self.connection.is_azure:
            from outpost_tools.operator_amqp import events

            yield from events(self.connection, device_id, since_s, follow)
            return
        query = {
            "device": device_id,
            "since": since_s,
            "follow": int(follow),
            "kinds": ",".join(kinds) or None,
        }
        answer = self._own_route(
            "GET",
            "/outpost/events",
            device_id,
            params={name: value for name, value in query.items() if value is not None},
            stream=True,
        )
        with contextlib.closing(answer), _in_a_sentence(self.connection.host):
            for line in answer.iter_lines(chunk_size=None):
                if line:
                    yield json.loads(line)

    def _own_route(
        self, verb: str, path: str, device_id: str | None, stream: bool = False, **content: Any
    ) -> requests.Response:
        connection = self.connection
        expiry_s = int(time.time()) + TOKEN_LIFE_S
        token = sas.make(connection.key, connection.host, expiry_s, connection.policy)
        headers = {"Authorization": token, **content.pop("headers", {})}
        with _in_a_sentence(connection.host):
            answer = requests.request(
                verb,
                f"https://{connection.host}{path}",
                headers=headers,
                verify=str(connection.roots) if connection.roots else True,
                timeout=PATIENCE_S,
                stream=stream,
                allow_redirects=False,
                **content,
            )
        if answer.status_code >= 300:
            raise _refused(answer, device_id)
        return answer

    @contextlib.contextmanager
    def _asking(self, device_id: str | None = None) -> Iterator[None]:
        with _in_a_sentence(self.connection.host):
            try:
                yield
            except HttpOperationError as why:
                raise _refused(why.response, device_id) from None

    def close(self) -> None:
        client, self._sdk.amqp_svc_client = self._sdk.amqp_svc_client, None
        if client is not None:
            client.disconnect_sync()
        self._sdk.protocol.close()

    def __enter__(self) -> "Operator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def quote_id(device_id: str) -> str:
    """The SDK quotes what goes into a path itself; only what it cannot take is refused here."""
    if device_id in (".", ".."):
        raise OutpostError(
            f"The id {device_id!r} cannot stand in an HTTPS address: choose another id."
        )
    if not device_id or "/" in device_id:
        raise OutpostError(f"{device_id!r} is not a device id.")
    return device_id


def utc(at_s: float) -> str:
    return dt.datetime.fromtimestamp(at_s, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextlib.contextmanager
def _in_a_sentence(host: str) -> Iterator[None]:
    """Trouble on the way to the hub, said once."""
    try:
        yield
    except (
        requests.exceptions.SSLError,
        ClientException,
        requests.exceptions.RequestException,
    ) as e:
        inner = getattr(e, "inner_exception", None) or e
        if isinstance(inner, requests.exceptions.SSLError):
            why = "its certificate is not trusted: is --data the folder of that hub?"
        elif isinstance(inner, requests.exceptions.Timeout):
            why = "it does not answer in time."
        elif isinstance(inner, requests.exceptions.ConnectionError):
            why = "no connection: does it run there?"
        else:
            why = f"its answer makes no sense ({type(inner).__name__})."
        raise HubTrouble(f"The hub {host} cannot be used: {why}") from None


def _refused(answer: requests.Response, device_id: str | None) -> OutpostError:
    """IoT Hub's refusal in a sentence; `{"Message": …}` holds a code, or JSON with one."""
    status = answer.status_code
    code, name, text = _error_of(answer)
    if code == 404001 or (status == 404 and device_id and code not in SENTENCES):
        return NoDevice(f"The hub has no device {device_id!r}: make it with `outpost device new`.")
    if status == 409 and device_id:
        return OutpostError(f"The hub has a device {device_id!r} already: choose another id.")
    sentence = SENTENCES.get(code) or SENTENCES.get(status)
    # What is true of whoever asks says nothing of the device.
    kind = HubTrouble if status in (401, 403, 429) or status >= 500 else OutpostError
    if sentence:
        return (OutpostError if code == 504101 else kind)(f"{sentence} ({code or status})")
    said = " ".join(filter(None, (name, text)))[:200]
    return kind(f"The hub answers {code or status}{': ' + said if said else '.'}")


def _error_of(answer: requests.Response) -> tuple[int, str, str]:
    """IoT Hub's six-digit code (0 for none), its name, and its text."""
    code, name, text = 0, "", ""
    # A body in another form is no reason to say nothing: the status alone then has to do.
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        text = str(answer.json().get("Message", ""))
        inner = json.loads(text) if text.startswith("{") else {}
        code = int(inner.get("errorCode") or 0)
        text = str(inner.get("message") or text)
    header = answer.headers.get("iothub-errorcode", "")
    if text.startswith("ErrorCode:"):
        name, _, text = text.removeprefix("ErrorCode:").partition(";")
    name = name or header
    codes = {"DeviceNotFound": 404001, "DeviceNotOnline": 404103, "GatewayTimeout": 504101}
    return code or codes.get(name, 0), name, text.strip()
