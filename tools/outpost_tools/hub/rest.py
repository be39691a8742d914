"""The service side over HTTPS: IoT Hub's REST API for devices, twins, methods and queries.

It owns the listener, who may call what (service tokens of shared access policies), and the routes;
what they do is done by `HubCore`. `send` and `watch`, which are AMQP on the real service, are
routes of our own here. Tokens and keys are never logged, and no request is.
"""

import asyncio
import base64
import binascii
import contextlib
import datetime as dt
import json
import socket
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from aiohttp import web

from outpost_tools import sas
from outpost_tools.errors import OutpostError
from outpost_tools.hub import faults, forms
from outpost_tools.hub.query import compile_query
from outpost_tools.hub.tls import server_context
from outpost_tools.hub.twins import Twin, parse_json
from outpost_tools.pki import DevCA
from outpost_tools.registry import Device, StaleEtag

if TYPE_CHECKING:
    from outpost_tools.hub.core import Event, HubCore

BODY_MAX_BYTES = 4 * 1024 * 1024
BULK_MAX = 100
DEVICES_MAX = 1000
QUERY_PAGE = 100
QUERY_PAGE_MAX = 1000
STREAM_PAGE = 500
STREAM_ALIVE_S = 15

READ, WRITE, SERVICE = "RegistryRead", "RegistryReadWrite", "ServiceConnect"
APP_PREFIX = "iothub-app-"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    handler: Handler
    rights: tuple[str, ...]  # any one of them opens it
    limit: str = ""  # the rate limit that it counts against


class RestServer:
    """Give it to Hub as a service: `Hub(data, services=[RestServer(port=0)])`.

    `port` is the one it listens on once it has started.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 8443, context: ssl.SSLContext | None = None
    ) -> None:
        self.host, self.port = host, port
        self._context = context
        self.core: HubCore
        self._runner: web.AppRunner | None = None

    async def start(self, core: "HubCore") -> None:
        self.core = core
        app = web.Application(middlewares=[self._answer], client_max_size=BODY_MAX_BYTES)
        for route in self._routes():
            app.router.add_route(route.method, route.path, self._guarded(route))
        context = self._context or await asyncio.to_thread(
            service_context, core.data, self.host, core.names
        )
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=1
        )
        await self._runner.setup()
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
            await web.SockSite(self._runner, listener, ssl_context=context).start()
        except (OSError, OverflowError) as why:
            listener.close()
            await self._runner.cleanup()
            text = why.strerror if isinstance(why, OSError) else str(why)
            raise OutpostError(
                f"Port {self.port} on {self.host} cannot be listened on for HTTPS ({text}): give "
                "another --rest-port."
            ) from None
        self.port = listener.getsockname()[1]
        core.tell("rest-listening", host=self.host, port=self.port)

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def _routes(self) -> list[Route]:
        device = "/devices/{id}"
        bound = f"{device}/messages/devicebound"
        return [
            Route("GET", "/devices", self._list, (READ, WRITE), "registry"),
            Route("POST", "/devices", self._bulk, (WRITE,), "registry"),
            Route("POST", "/devices/query", self._query, (SERVICE,)),
            Route("GET", device, self._read, (READ, WRITE), "registry"),
            Route("PUT", device, self._write, (WRITE,), "registry"),
            Route("DELETE", device, self._delete, (WRITE,), "registry"),
            Route("GET", f"{device}/modules", self._modules, (READ, WRITE), "registry"),
            Route("DELETE", f"{device}/commands", self._purge, (SERVICE,)),
            Route("GET", "/twins/{id}", self._twin, (SERVICE,)),
            Route("PATCH", "/twins/{id}", self._twin_patch, (SERVICE,)),
            Route("PUT", "/twins/{id}", self._twin_replace, (SERVICE,)),
            Route("POST", "/twins/{id}/methods", self._method, (SERVICE,)),
            Route("GET", "/statistics/devices", self._device_statistics, (READ, WRITE)),
            Route("GET", "/statistics/service", self._service_statistics, (READ, WRITE, SERVICE)),
            # Ours: the real service has these over AMQP.
            Route("POST", bound, self._send, (SERVICE,)),
            Route("GET", bound, self._commands, (SERVICE,)),
            Route("GET", "/outpost/events", self._events, (SERVICE,)),
            Route("GET", "/outpost/status", self._status, (SERVICE,)),
        ]

    # Who may, and what is said where something is wrong.

    def _guarded(self, route: Route) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            self._check_rights(request, route.rights)
            if not route.path.startswith("/outpost") and not request.query.get("api-version"):
                raise faults.ArgumentInvalid("The api-version is missing.")
            if route.limit:
                self.core.throttle.check(route.limit)
            return await route.handler(request)

        return guarded

    def _check_rights(self, request: web.Request, rights: tuple[str, ...]) -> None:
        """A token of a policy that has one of `rights`, for this hub or this part of it."""
        try:
            token = sas.parse(request.headers.get("Authorization", ""))
            policy = self.core.registry.policy(token.policy) if token.policy else None
            if policy is None:
                raise faults.Unauthorized("The token is of no shared access policy of this hub.")
            resource = unquote(token.resource)
            host, _, below = resource.partition("/")
            ours = {name.lower() for name in self.core.names} | {self.host.lower()}
            if host.lower() not in ours | {f"{name}:{self.port}" for name in ours}:
                raise faults.Unauthorized("The token is for another hub.")
            if below and not f"{request.path}/".startswith(f"/{below.strip('/')}/"):
                raise faults.Unauthorized("The token is for another part of the hub.")
            sas.check(token, resource, policy.keys, self.core.now_s())
        except sas.Refused as why:
            raise faults.Unauthorized(f"Unauthorized: {why.reason}.") from None
        if not policy.rights & set(rights):
            raise faults.Unauthorized(
                f"The policy {policy.name!r} has none of the rights {', '.join(rights)}."
            )

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except faults.ServiceError as why:
            fault = why
        except StaleEtag as why:
            fault = faults.PreconditionFailed(str(why))
        except OutpostError as why:
            fault = faults.ArgumentInvalid(str(why))
        except web.HTTPRequestEntityTooLarge:
            fault = faults.TooLarge(f"A request has at most {BODY_MAX_BYTES} bytes.")
        except web.HTTPException as why:
            fault = faults.ServiceError(why.reason or "This hub does not serve that.")
            fault.status, fault.code, fault.name = why.status, why.status * 1000, "NotServed"
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as why:
            # A fault of ours must not take the hub along; its kind is enough to find it by.
            fault = faults.ServiceError(f"A fault in the hub ({type(why).__name__}).")
            self.core.tell("rest-fault", reason=f"a fault in the hub ({type(why).__name__})")
        headers = {"iothub-errorcode": fault.name}
        if isinstance(fault, faults.Throttled):
            headers["Retry-After"] = str(max(1, round(fault.retry_after_s)))
        tracking = uuid.uuid4().hex
        body = forms.error_json(fault, tracking, self.core.now_s())
        return web.json_response(body, status=fault.status, headers=headers)

    # Devices

    async def _list(self, request: web.Request) -> web.Response:
        top = _number(request.query.get("top"), DEVICES_MAX)
        top = top if 1 <= top <= DEVICES_MAX else DEVICES_MAX
        devices = (await asyncio.to_thread(self.core.registry.devices))[:top]
        shown = await asyncio.to_thread(lambda: [self._device_json(d) for d in devices])
        return web.json_response(shown)

    async def _read(self, request: web.Request) -> web.Response:
        return self._device_answer(self.core.device(request.match_info["id"]))

    async def _write(self, request: web.Request) -> web.Response:
        device_id = forms.read_device_id(request.match_info["id"])
        asked = forms.read_object(await _json(request), "A device")
        if asked.get("deviceId", device_id) != device_id:
            raise faults.ArgumentInvalid("The deviceId is another than the path's.")
        identity = forms.read_identity(asked)
        device = await self._put(device_id, identity, _if_match(request))
        return self._device_answer(device)

    async def _put(self, device_id: str, identity: forms.Json, if_match: str | None) -> Device:
        """Make a device (no If-Match), or change the one that is there."""
        registry = self.core.registry

        def put() -> Device:
            held = registry.find(device_id)
            if if_match is None:
                if held is not None:
                    raise faults.DeviceAlreadyExists(f"There is a device {device_id!r} already.")
                return registry.add(device_id, **identity)
            if held is None:
                raise faults.DeviceNotFound(f"There is no device {device_id!r} in this hub.")
            return registry.update(device_id, if_match=if_match, **identity)

        device = await asyncio.to_thread(put)
        self.core.check_registry()
        return device

    async def _delete(self, request: web.Request) -> web.Response:
        device_id = forms.read_device_id(request.match_info["id"])
        await self._remove(device_id, _if_match(request))
        return web.Response(status=204)

    async def _remove(self, device_id: str, if_match: str | None) -> None:
        self.core.device(device_id)
        await asyncio.to_thread(self.core.registry.remove, device_id, if_match)
        self.core.check_registry()

    async def _bulk(self, request: web.Request) -> web.Response:
        entries = await _json(request)
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise faults.ArgumentInvalid("A bulk request is a list of devices.")
        if len(entries) > BULK_MAX:
            raise faults.ArgumentInvalid(f"A bulk request has at most {BULK_MAX} devices.")
        seen: set[str] = set()
        errors = []
        for entry in entries:
            device_id = entry.get("id")
            try:
                if forms.read_device_id(device_id) in seen:
                    raise faults.ArgumentInvalid("The device is named twice.")
                seen.add(str(device_id))
                await self._one_of_bulk(str(device_id), entry)
            except (faults.ServiceError, OutpostError) as why:
                name = why.name if isinstance(why, faults.ServiceError) else "ArgumentInvalid"
                if isinstance(why, StaleEtag):
                    name = "PreconditionFailed"
                errors.append(
                    {
                        "deviceId": str(device_id),
                        "errorCode": name,
                        "errorStatus": str(why),
                        "operation": entry.get("importMode") or "create",
                    }
                )
        answer = {"isSuccessful": not errors, "errors": errors, "warnings": []}
        return web.json_response(answer, status=400 if errors else 200)

    async def _one_of_bulk(self, device_id: str, entry: forms.Json) -> None:
        mode = str(entry.get("importMode") or "create")
        if mode not in forms.IMPORT_MODES:
            known = ", ".join(forms.IMPORT_MODES)
            raise faults.ArgumentInvalid(f"An importMode is one of {known}.")
        matches = "*"
        if mode.endswith("IfMatchETag"):
            matches = str(entry.get("eTag") or "").strip('"')
            if not matches:
                raise faults.ArgumentInvalid("The importMode needs an eTag.")
        mode = mode.removesuffix("IfMatchETag")
        if mode == "delete":
            await self._remove(device_id, matches)
            return
        tags, desired = forms.read_twin(entry)
        if mode != "updateTwin":
            there = self.core.registry.find(device_id) is not None
            creates = mode == "create" or (mode == "createOrUpdate" and not there)
            await self._put(device_id, forms.read_identity(entry), None if creates else matches)
            matches = "*"
        if tags is not None or desired is not None:
            await self.core.twin_patch(device_id, tags, desired, matches)

    async def _modules(self, request: web.Request) -> web.Response:
        self.core.device(request.match_info["id"])
        return web.json_response([])

    async def _purge(self, request: web.Request) -> web.Response:
        device_id = request.match_info["id"]
        purged = await self.core.commands_purge(device_id)
        return web.json_response(
            {"deviceId": device_id, "moduleId": None, "totalMessagesPurged": purged}
        )

    def _device_json(self, device: Device) -> forms.Json:
        waiting = self.core.commands.count(device.device_id)
        return forms.device_json(device, self.core.connection(device.device_id), waiting)

    def _device_answer(self, device: Device) -> web.Response:
        return web.json_response(self._device_json(device), headers={"ETag": f'"{device.etag}"'})

    # Twins and methods

    async def _twin(self, request: web.Request) -> web.Response:
        return self._twin_answer(await self.core.twin_get(request.match_info["id"]))

    async def _twin_patch(self, request: web.Request) -> web.Response:
        tags, desired = forms.read_twin(await _json(request))
        device_id = request.match_info["id"]
        twin = await self.core.twin_patch(device_id, tags, desired, _if_match(request))
        return self._twin_answer(twin)

    async def _twin_replace(self, request: web.Request) -> web.Response:
        tags, desired = forms.read_twin(await _json(request))
        device_id = request.match_info["id"]
        twin = await self.core.twin_replace(device_id, tags, desired, _if_match(request))
        return self._twin_answer(twin)

    def _twin_json(self, device: Device, twin: Twin) -> forms.Json:
        device_id = device.device_id
        waiting = self.core.commands.count(device_id)
        return forms.twin_json(device, self.core.connection(device_id), waiting, twin)

    def _twin_answer(self, twin: Twin) -> web.Response:
        shown = self._twin_json(self.core.device(twin.device_id), twin)
        return web.json_response(shown, headers={"ETag": f'"{twin.etag}"'})

    async def _method(self, request: web.Request) -> web.Response:
        asked = forms.read_object(await _json(request), "A method")
        name = asked.get("methodName")
        if not isinstance(name, str):
            raise faults.ArgumentInvalid("A method has a methodName.")
        status, payload = await self.core.invoke_method(
            request.match_info["id"],
            name,
            asked.get("payload"),
            connect_timeout_s=_seconds(asked.get("connectTimeoutInSeconds"), 0),
            response_timeout_s=_seconds(asked.get("responseTimeoutInSeconds"), 30),
        )
        return web.json_response({"status": status, "payload": payload})

    async def _query(self, request: web.Request) -> web.Response:
        asked = forms.read_object(await _json(request), "A query")
        text = asked.get("query")
        query = compile_query(text)
        size = _number(request.headers.get("x-ms-max-item-count"), QUERY_PAGE)
        size = size if 1 <= size <= QUERY_PAGE_MAX else QUERY_PAGE
        start = _continuation(request.headers.get("x-ms-continuation"))
        twins = {twin.device_id: twin for twin in await self.core.twins_all()}

        def run() -> list[Any]:
            devices = self.core.registry.devices()
            return query.run(
                self._twin_json(d, twins[d.device_id]) for d in devices if d.device_id in twins
            )

        found = await asyncio.to_thread(run)
        headers = {"x-ms-item-type": query.item_type}
        if len(found) > start + size:
            position = json.dumps({"start": start + size}).encode()
            headers["x-ms-continuation"] = base64.b64encode(position).decode()
        return web.json_response(found[start : start + size], headers=headers)

    async def _device_statistics(self, request: web.Request) -> web.Response:
        counts = self.core.statistics()
        names = ("totalDeviceCount", "enabledDeviceCount", "disabledDeviceCount")
        return web.json_response({name: counts[name] for name in names})

    async def _service_statistics(self, request: web.Request) -> web.Response:
        count = self.core.statistics()["connectedDeviceCount"]
        return web.json_response({"connectedDeviceCount": count})

    # Ours

    async def _send(self, request: web.Request) -> web.Response:
        device_id = request.match_info["id"]
        headers = request.headers
        properties = {
            unquote(name[len(APP_PREFIX) :]): unquote(value)
            for name, value in headers.items()
            if name.lower().startswith(APP_PREFIX)
        }
        command = await self.core.send_command(
            device_id,
            await request.read(),
            properties,
            message_id=headers.get("iothub-messageid"),
            expiry_s=_moment(headers.get("iothub-expiry")),
            ack=headers.get("iothub-ack", "none"),
            correlation_id=headers.get("iothub-correlationid"),
            content_type=headers.get("Content-Type"),
            content_encoding=headers.get("iothub-contentencoding"),
        )
        answer = {
            "messageId": command.message_id,
            "device": device_id,
            "expiryS": command.expiry_s,
        }
        return web.json_response(answer, status=201)

    async def _commands(self, request: web.Request) -> web.Response:
        device_id = request.match_info["id"]
        self.core.device(device_id)
        waiting = await self.core.commands_waiting(device_id)
        dead = await self.core.commands_dead(device_id)
        return web.json_response(
            {
                "waiting": [command.as_json() for command in waiting],
                "dead": [command.as_json() for command in dead],
                "feedback": await self.core.commands_feedback(device_id),
            }
        )

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "names": list(self.core.names),
                "restPort": self.port,
                "connected": self.core.connected,
                "statistics": self.core.statistics(),
            }
        )

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """One event a line; with follow=1 until the caller has had enough."""
        asked = request.query
        device_id = asked.get("device") or None
        kinds = set(filter(None, asked.get("kinds", "").split(",")))
        follow = asked.get("follow", "0") not in ("0", "", "false")
        since_s = _moment(asked.get("since"))
        after = _number(asked["after"], 0) if asked.get("after") else None
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        async with contextlib.AsyncExitStack() as stack:
            live = await stack.enter_async_context(self.core.events()) if follow else None
            await response.prepare(request)
            last = after or 0
            if since_s is not None or after is not None or not follow:
                async for event in self._kept(since_s, device_id, last):
                    last = max(last, int(event.get("number") or 0))
                    if not kinds or event.get("event") in kinds:
                        await response.write(forms.event_line(event))
            while live is not None:
                try:
                    async with asyncio.timeout(STREAM_ALIVE_S):
                        event = await live.get()
                except TimeoutError:
                    await response.write(b"\n")  # finds out whether anybody still reads
                    continue
                if device_id is not None and event.get("device") != device_id:
                    continue
                if event.get("event") == "telemetry" and 0 < int(event.get("number") or 0) <= last:
                    continue  # was among the kept ones
                if not kinds or event.get("event") in kinds:
                    await response.write(forms.event_line(event))
        await response.write_eof()
        return response

    async def _kept(
        self, since_s: float | None, device_id: str | None, after: int
    ) -> AsyncIterator["Event"]:
        while True:
            page = await self.core.telemetry_since(since_s, device_id, after, STREAM_PAGE)
            if not page:  # a page may be short because its messages are large
                return
            for event in page:
                after = max(after, int(event.get("number") or 0))
                yield event


def service_context(data: Path, host: str, names: Sequence[str]) -> ssl.SSLContext:
    """TLS as the device listener has it, for the hub's names and the address of this listener."""
    ca = DevCA(data)
    everywhere = host in ("0.0.0.0", "::", "")
    if everywhere or host in names:
        leaves = [ca.server(kind, names) for kind in ca.kinds]
    else:
        leaves = [ca.leaf(kind, [host, *names]) for kind in ca.kinds]
    return server_context([(leaf.chain, leaf.key) for leaf in leaves])


async def _json(request: web.Request) -> Any:
    body = await request.read()
    return parse_json(body) if body else {}


def _if_match(request: web.Request) -> str | None:
    """The etag of If-Match without its quotes; "*" for any, None where there is none."""
    given = request.headers.get("If-Match")
    if given is None:
        return None
    return given.strip().removeprefix("W/").strip('"') or "*"


def _number(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise faults.ArgumentInvalid(f"{text[:40]!r} is not a whole number.")
    return int(text)


def _seconds(value: Any, default: int) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise faults.ArgumentInvalid("A time-out is a number of seconds.")
    return float(value)


def _moment(text: str | None) -> float | None:
    """Unix seconds, or ISO 8601 (UTC where it names no zone)."""
    if not text:
        return None
    with contextlib.suppress(ValueError):
        return float(text)
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        raise faults.ArgumentInvalid(f"{text[:40]!r} is neither seconds nor ISO 8601.") from None
    return (at if at.tzinfo else at.replace(tzinfo=dt.UTC)).timestamp()


def _continuation(text: str | None) -> int:
    if not text:
        return 0
    try:
        start = json.loads(base64.b64decode(text, validate=True))["start"]
    except (ValueError, binascii.Error, KeyError, TypeError, RecursionError):
        start = None
    if not isinstance(start, int) or start < 0:
        raise faults.ArgumentInvalid("The continuation token is not one of this hub's.")
    return start
