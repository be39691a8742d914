"""The service side over HTTPS: IoT Hub's REST API for devices, twins, methods and queries.

It owns the listener, who may call what (service tokens of shared access policies), and the routes;
what they do is done by `HubCore`. `send` and `watch`, which are AMQP on the real service, are
routes of our own here. Tokens and keys are never logged, and no request is.
"""

import asyncio
import contextlib
import itertools
import socket
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from aiohttp import web

from outpost_tools import sas
from outpost_tools.errors import OutpostError
from outpost_tools.hub import asking, devicebook, faults, forms, routes_own
from outpost_tools.hub.query import compile_query
from outpost_tools.hub.tls import server_context
from outpost_tools.hub.twins import Twin
from outpost_tools.pki import DevCA
from outpost_tools.registry import Device, StaleEtag

if TYPE_CHECKING:
    from outpost_tools.hub.core import HubCore

BODY_MAX_BYTES = 4 * 1024 * 1024
DEVICES_MAX = 1000
QUERY_PAGE = 100
QUERY_PAGE_MAX = 1000
# Between two requests a connection may be quiet for so long; SDKs keep theirs.
IDLE_S = 75.0

READ, WRITE, SERVICE = "RegistryRead", "RegistryReadWrite", "ServiceConnect"

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

    `port` is the one it listens on once it has started; `patience_s` is how long a request's head,
    and then its body, may take to come.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8443,
        context: ssl.SSLContext | None = None,
        patience_s: float = asking.BODY_PATIENCE_S,
    ) -> None:
        self.host, self.port, self.patience_s = host, port, patience_s
        self._context = context
        # Connections: until when each may be quiet; None while a request of theirs is answered.
        self._quiet_until: dict[Any, float | None] = {}
        self._sweeping: asyncio.Task[None] | None = None
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
        self._sweeping = asyncio.create_task(self._sweep())
        core.tell("rest-listening", host=self.host, port=self.port)

    async def _sweep(self) -> None:
        """Hang up on who connects and sends no whole request's head."""
        assert self._runner is not None and self._runner.server is not None
        while True:
            await asyncio.sleep(self.patience_s / 4)
            now = time.monotonic()
            there = self._runner.server.connections
            known, fresh = self._quiet_until, now + self.patience_s
            self._quiet_until = {each: known.get(each, fresh) for each in there}
            for connection, until in self._quiet_until.items():
                if until is not None and now > until:
                    connection.force_close()

    async def stop(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeping
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
        self._quiet_until[request.protocol] = None
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
        finally:
            self._quiet_until[request.protocol] = time.monotonic() + IDLE_S
        headers = {"iothub-errorcode": fault.name}
        if isinstance(fault, faults.Throttled):
            headers["Retry-After"] = str(max(1, round(fault.retry_after_s)))
        tracking = uuid.uuid4().hex
        body = forms.error_json(fault, tracking, self.core.now_s())
        return web.json_response(body, status=fault.status, headers=headers)

    # Devices

    async def _list(self, request: web.Request) -> web.Response:
        top = asking.number(request.query.get("top"), DEVICES_MAX)
        top = top if 1 <= top <= DEVICES_MAX else DEVICES_MAX
        devices = (await asyncio.to_thread(self.core.registry.devices))[:top]
        shown = await asyncio.to_thread(lambda: [self._device_json(d) for d in devices])
        return web.json_response(shown)

    async def _read(self, request: web.Request) -> web.Response:
        return self._device_answer(self.core.device(request.match_info["id"]))

    async def _write(self, request: web.Request) -> web.Response:
        device_id = forms.read_device_id(request.match_info["id"])
        asked = forms.read_object(await self._content(request), "A device")
        if asked.get("deviceId", device_id) != device_id:
            raise faults.ArgumentInvalid("The deviceId is another than the path's.")
        identity = forms.read_identity(asked)
        device = await devicebook.put(self.core, device_id, identity, asking.if_match(request))
        return self._device_answer(device)

    async def _delete(self, request: web.Request) -> web.Response:
        device_id = forms.read_device_id(request.match_info["id"])
        await devicebook.remove(self.core, device_id, asking.if_match(request))
        return web.Response(status=204)

    async def _bulk(self, request: web.Request) -> web.Response:
        errors = await devicebook.bulk(self.core, await self._content(request))
        answer = {"isSuccessful": not errors, "errors": errors, "warnings": []}
        return web.json_response(answer, status=400 if errors else 200)

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
        tags, desired = forms.read_twin(await self._content(request))
        device_id = request.match_info["id"]
        twin = await self.core.twin_patch(device_id, tags, desired, asking.if_match(request))
        return self._twin_answer(twin)

    async def _twin_replace(self, request: web.Request) -> web.Response:
        tags, desired = forms.read_twin(await self._content(request))
        device_id = request.match_info["id"]
        twin = await self.core.twin_replace(device_id, tags, desired, asking.if_match(request))
        return self._twin_answer(twin)

    def _twin_json(self, device: Device, twin: Twin) -> forms.Json:
        device_id = device.device_id
        waiting = self.core.commands.count(device_id)
        return forms.twin_json(device, self.core.connection(device_id), waiting, twin)

    def _twin_answer(self, twin: Twin) -> web.Response:
        shown = self._twin_json(self.core.device(twin.device_id), twin)
        return web.json_response(shown, headers={"ETag": f'"{twin.etag}"'})

    async def _method(self, request: web.Request) -> web.Response:
        asked = forms.read_object(await self._content(request), "A method")
        name = asked.get("methodName")
        if not isinstance(name, str):
            raise faults.ArgumentInvalid("A method has a methodName.")
        status, payload = await self.core.invoke_method(
            request.match_info["id"],
            name,
            asked.get("payload"),
            connect_timeout_s=asking.seconds(asked.get("connectTimeoutInSeconds"), 0),
            response_timeout_s=asking.seconds(asked.get("responseTimeoutInSeconds"), 30),
        )
        return web.json_response({"status": status, "payload": payload})

    async def _query(self, request: web.Request) -> web.Response:
        asked = forms.read_object(await self._content(request), "A query")
        text = asked.get("query")
        query = compile_query(text)
        size = asking.number(request.headers.get("x-ms-max-item-count"), QUERY_PAGE)
        size = size if 1 <= size <= QUERY_PAGE_MAX else QUERY_PAGE
        start, after = asking.continuation(request.headers.get("x-ms-continuation"))
        twins = {twin.device_id: twin for twin in await self.core.twins_all()}

        def run() -> tuple[list[Any], str]:
            devices = (d for d in self.core.registry.devices() if d.device_id in twins)
            if query.sums_up:
                found = query.run(self._twin_json(d, twins[d.device_id]) for d in devices)
                return found[start : start + size + 1], ""
            left = size + 1 if query.top is None else min(size + 1, max(0, query.top - start))
            # A page looks at no device before it: a fleet is listed in the time of its number.
            shown = (self._twin_json(d, twins[d.device_id]) for d in devices if d.device_id > after)
            page = list(itertools.islice(query.rows(shown), left))
            return [row for _, row in page], page[size - 1][0] if len(page) > size else ""

        rows, last = await asyncio.to_thread(run)
        headers = {"x-ms-item-type": query.item_type}
        if len(rows) > size:
            headers["x-ms-continuation"] = asking.continuing(start + size, last)
        return web.json_response(rows[:size], headers=headers)

    async def _device_statistics(self, request: web.Request) -> web.Response:
        counts = self.core.statistics()
        names = ("totalDeviceCount", "enabledDeviceCount", "disabledDeviceCount")
        return web.json_response({name: counts[name] for name in names})

    async def _service_statistics(self, request: web.Request) -> web.Response:
        count = self.core.statistics()["connectedDeviceCount"]
        return web.json_response({"connectedDeviceCount": count})

    # Ours

    async def _content(self, request: web.Request) -> Any:
        return await asking.content(request, self.patience_s)

    async def _send(self, request: web.Request) -> web.Response:
        body = await asking.body(request, self.patience_s)
        return await routes_own.send(self.core, request, body)

    async def _commands(self, request: web.Request) -> web.Response:
        return await routes_own.commands(self.core, request.match_info["id"])

    async def _events(self, request: web.Request) -> web.StreamResponse:
        return await routes_own.events(self.core, request)

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "names": list(self.core.names),
                "restPort": self.port,
                "connected": self.core.connected,
                "statistics": self.core.statistics(),
            }
        )


def service_context(data: Path, host: str, names: Sequence[str]) -> ssl.SSLContext:
    """TLS as the device listener has it, for the hub's names and the address of this listener."""
    ca = DevCA(data)
    everywhere = host in ("0.0.0.0", "::", "")
    if everywhere or host in names:
        leaves = [ca.server(kind, names) for kind in ca.kinds]
    else:
        leaves = [ca.leaf(kind, [host, *names]) for kind in ca.kinds]
    return server_context([(leaf.chain, leaf.key) for leaf in leaves])
