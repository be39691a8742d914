"""Azure's device provisioning service on the hub's own listener: its MQTT device side.

    with Hub(data, faces=[dps], services=[dps]) as hub: ...      # where dps = Dps(data)

A CONNECT whose user name is `{id scope}/registrations/{registration id}/api-version=...` is for it.
It owns the enrolments' file (through `Enrolments`) and the operations that devices poll; who a
device is it learns from the token or the certificate, and what becomes of it stands in `assign`.
No token, key or certificate request reaches the log.
"""

import asyncio
import collections
import json
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from amqtt.mqtt.packet import DISCONNECT, PINGREQ, PUBLISH, SUBSCRIBE, UNSUBSCRIBE

from outpost_tools import sas
from outpost_tools.enrolments import Enrolment, Enrolments, Registration, derive_key, utc
from outpost_tools.hub import assign, attest, auth, packets
from outpost_tools.hub.line import Close

if TYPE_CHECKING:
    from outpost_tools.hub.core import HubCore
    from outpost_tools.hub.line import Line

RESPONSES = "$dps/registrations/res/#"
REGISTER = "$dps/registrations/PUT/iotdps-register/"
STATUS = "$dps/registrations/GET/iotdps-get-operationstatus/"

REQUEST_MAX_BYTES = 65536
REQUEST_ID_MAX = 128
OPERATIONS_MAX = 10000
OPERATION_LIFE_S = 3600
RETRY_AFTER_S = 3
LOCKS = 64
# How many registrations of one device may wait for their end.
UNDER_WAY_MAX = 8
# The first api-version whose registrations may carry a certificate request.
CSR_SINCE = "2025-07-01-preview"


@dataclass(frozen=True)
class Who:
    """A device that has shown who it is."""

    registration_id: str
    enrolment: Enrolment
    api_version: str
    expires_s: float | None
    proof: attest.Proof = field(repr=False)


@dataclass
class Operation:
    id: str
    registration_id: str
    started_s: float
    status: str = "assigning"
    state: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"operationId": self.id, "status": self.status}
        return {**shown, "registrationState": self.state} if self.state else shown


class Failed(Exception):
    """A request that is answered with an error; the connection stays."""

    def __init__(self, status: int, code: int, message: str, retry_after_s: int | None = None):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after_s = retry_after_s


def split_user_name(user_name: str | None) -> tuple[str, str, dict[str, str]] | None:
    """Id scope, registration id and options of a DPS user name; None where it is none."""
    parts = (user_name or "").split("/", 3)
    if len(parts) != 4 or parts[1].lower() != "registrations" or parts[2].startswith("?"):
        return None
    options = parse_qsl(parts[3].removeprefix("?"), keep_blank_values=True)
    return parts[0], parts[2], dict(options)


class Dps:
    """The provisioning service of the data folder `data`; give it to Hub as face and service.

    retry_after_s  what devices are told to wait between two questions
    hold_s         how long an operation stays "assigning" at the least, for tests of waiting
    per_minute     how many registrations are taken in a minute; None is without limit
    """

    def __init__(
        self,
        data: Path,
        retry_after_s: int = RETRY_AFTER_S,
        hold_s: float = 0.0,
        per_minute: int | None = None,
    ) -> None:
        self.data = Path(data)
        self.retry_after_s, self.hold_s, self.per_minute = retry_after_s, hold_s, per_minute
        self.enrolments = Enrolments(self.data)
        self.core: HubCore
        self._operations: dict[str, Operation] = {}
        # One device is assigned once at a time; two that share a lock only wait a little.
        self._locks = [asyncio.Lock() for _ in range(LOCKS)]
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: collections.Counter[str] = collections.Counter()
        self._taken: list[float] = []

    @property
    def id_scope(self) -> str:
        return self.enrolments.id_scope

    # As a service of the hub.

    async def start(self, core: "HubCore") -> None:
        self.core = core

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.enrolments.close()

    # As a face of the device listener.

    def claims(self, connect: packets.Connect) -> bool:
        return split_user_name(connect.username) is not None

    async def serve(self, line: "Line", connect: packets.Connect) -> str:
        try:
            who = self.admit(connect, line.certificates)
        except auth.Refusal as refusal:
            named = split_user_name(connect.username)
            self.core.tell(
                "refused",
                device=named[1] if named else "",
                peer=line.peer,
                code=refusal.code,
                reason=f"DPS: {refusal.reason}",
            )
            line.write(packets.connack(refusal.code))
            await line.drain()
            return ""
        line.belongs_to(who.registration_id)
        line.keep_alive(connect.keep_alive_s)
        line.write(packets.connack(auth.ACCEPTED))
        return await Conversation(self, line, who).run()

    def admit(self, connect: packets.Connect, certificates: list[bytes]) -> Who:
        """Who this CONNECT is from, or a Refusal."""
        if connect.protocol != ("MQTT", 4):
            raise auth.Refusal(auth.BAD_PROTOCOL, "the protocol is not MQTT 3.1.1")
        named = split_user_name(connect.username)
        assert named is not None
        scope, registration_id, options = named
        api_version = options.get("api-version", "")
        if not api_version:
            raise auth.Refusal(auth.BAD_USER_OR_PASSWORD, "the user name has no api-version")
        if connect.client_id.lower() != registration_id.lower():
            raise auth.Refusal(
                auth.BAD_IDENTIFIER, "the client id is another than the registration id"
            )
        if scope.lower() != self.id_scope.lower():
            raise auth.Refusal(auth.NOT_AUTHORISED, "the id scope is of another service")
        now_s = self.core.now_s()
        if not connect.password:
            enrolment, proof = self._by_certificate(registration_id, certificates)
            return Who(registration_id, enrolment, api_version, None, proof)
        try:
            token = sas.parse(connect.password.decode("ascii"))
        except UnicodeDecodeError:
            raise auth.Refusal(
                auth.BAD_USER_OR_PASSWORD, "the password is not a SAS token"
            ) from None
        except sas.Refused as why:
            raise auth.Refusal(auth.BAD_USER_OR_PASSWORD, why.reason) from None
        if token.policy not in (None, "registration"):
            raise auth.Refusal(auth.NOT_AUTHORISED, "the token's policy is not `registration`")
        resource = f"{scope}/registrations/{registration_id}"
        enrolment, proof = self._by_token(registration_id, resource, token, now_s)
        return Who(registration_id, enrolment, api_version, token.expiry_s, proof)

    def _by_token(
        self, registration_id: str, resource: str, token: sas.Token, now_s: float
    ) -> tuple[Enrolment, attest.Proof]:
        reason = "there is no enrolment for it"
        own = self.enrolments.find(registration_id)
        candidates = [own] if own else self.enrolments.all(group=True)
        for enrolment in candidates:
            if enrolment.attestation != "symmetricKey":
                continue
            primary, secondary = enrolment.keys
            if enrolment.is_group:
                primary = derive_key(primary, registration_id)
                secondary = derive_key(secondary, registration_id)
            try:
                sas.check(token, resource, (primary, secondary), now_s)
            except sas.Refused as why:
                reason = why.reason
            else:
                return enrolment, attest.Proof(keys=(primary, secondary))
        raise auth.Refusal(auth.NOT_AUTHORISED, reason)

    def _by_certificate(
        self, registration_id: str, certificates: list[bytes]
    ) -> tuple[Enrolment, attest.Proof]:
        if not certificates:
            raise auth.Refusal(auth.NOT_AUTHORISED, "there is neither a token nor a certificate")
        try:
            shown = attest.read(certificates, registration_id, self.core.now_s())
            own = self.enrolments.find(registration_id)
            if own is not None:
                return own, attest.as_individual(shown, own)
            groups = [e for e in self.enrolments.all(group=True) if e.attestation == "x509"]
            return attest.in_group(shown, groups)
        except attest.Unproven as why:
            raise auth.Refusal(auth.NOT_AUTHORISED, str(why)) from None

    # What devices ask for.

    def register(self, who: Who, body: bytes) -> Operation:
        """Begin to assign the device; it asks for the outcome later."""
        asked = _object(body)
        named = asked.get("registrationId", who.registration_id)
        if not isinstance(named, str) or named.lower() != who.registration_id.lower():
            raise Failed(400, 400004, "The registrationId is another than the connection's.")
        request = None
        if asked.get("csr") is not None:
            if who.api_version < CSR_SINCE:
                raise Failed(400, 400004, f"A csr needs api-version {CSR_SINCE} or later.")
            request = asked["csr"]
        self._count_one()
        name = who.registration_id.lower()
        if self._under_way[name] >= UNDER_WAY_MAX:
            raise Failed(429, 429001, "Earlier registrations are under way.", self.retry_after_s)
        now_s = self.core.now_s()
        self._forget_old(now_s)
        operation = Operation(
            f"5.{secrets.token_hex(8)}.{uuid.uuid4()}", who.registration_id, now_s
        )
        self._operations[operation.id] = operation
        # The enrolment may have been changed or disabled since the device connected.
        enrolment = self.enrolments.find(who.enrolment.name, who.enrolment.is_group)
        if enrolment is None:
            self._operations.pop(operation.id)
            raise Failed(404, 404204, "The enrolment was removed.")
        if not enrolment.enabled:
            operation.status = "disabled"
            operation.state = self._bare_state(who.registration_id, "disabled", now_s)
            return operation
        task = asyncio.create_task(
            self._assign(operation, who, enrolment, asked.get("payload"), request)
        )
        self._under_way[name] += 1
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._done(task, name))
        return operation

    def _done(self, task: "asyncio.Task[None]", name: str) -> None:
        self._tasks.discard(task)
        self._under_way[name] -= 1
        if not self._under_way[name]:
            del self._under_way[name]

    def status(self, who: Who, operation_id: str) -> Operation:
        operation = self._operations.get(operation_id)
        if operation is None or operation.registration_id.lower() != who.registration_id.lower():
            raise Failed(404, 404203, "There is no such operation: register again.")
        return operation

    async def _assign(
        self, operation: Operation, who: Who, enrolment: Enrolment, payload: Any, request: Any
    ) -> None:
        started = time.monotonic()
        lock = self._locks[hash(who.registration_id.lower()) % LOCKS]
        registration: Registration | None = None
        try:
            async with lock:
                registration, extra = await assign.assign(
                    self.core,
                    self.enrolments,
                    assign.Order(who.registration_id, enrolment, who.proof, payload, request),
                )
            await asyncio.sleep(self.hold_s - (time.monotonic() - started))
        except assign.Impossible as why:
            operation.state = {
                **self._bare_state(who.registration_id, "failed", operation.started_s),
                "errorCode": why.code,
                "errorMessage": str(why),
            }
            operation.status = "failed"
            reason = str(why)
        except asyncio.CancelledError:
            raise
        except Exception as why:
            # A fault of ours must not take the hub along; its kind is enough to find it by.
            operation.state = {
                **self._bare_state(who.registration_id, "failed", operation.started_s),
                "errorCode": 500001,
                "errorMessage": f"A fault in the hub ({type(why).__name__}).",
            }
            operation.status = "failed"
            reason = f"a fault in the hub ({type(why).__name__})"
        else:
            operation.state = {**registration.to_json(), **extra, **_attested(enrolment)}
            operation.status = "assigned"
            reason = f"{registration.substatus} on {registration.assigned_hub}"
        self.core.tell(
            "provisioned" if registration else "not-provisioned",
            device=registration.device_id if registration else who.registration_id,
            registration=who.registration_id,
            hub=registration.assigned_hub if registration else "",
            reason=reason,
        )

    @staticmethod
    def _bare_state(registration_id: str, status: str, now_s: float) -> dict[str, Any]:
        return {
            "registrationId": registration_id,
            "createdDateTimeUtc": utc(now_s),
            "status": status,
            "lastUpdatedDateTimeUtc": utc(now_s),
        }

    def _count_one(self) -> None:
        if self.per_minute is None:
            return
        now = time.monotonic()
        self._taken = [at for at in self._taken if now - at < 60]
        if len(self._taken) >= self.per_minute:
            wait_s = int(60 - (now - self._taken[0])) + 1
            raise Failed(429, 429001, "There are too many registrations in a minute.", wait_s)
        self._taken.append(now)

    def _forget_old(self, now_s: float) -> None:
        """Operations come in the order of their time: the oldest are first."""
        for operation in list(self._operations.values()):
            young = now_s - operation.started_s < OPERATION_LIFE_S
            if young and len(self._operations) < OPERATIONS_MAX:
                break
            del self._operations[operation.id]


class Conversation:
    """One device's connection to DPS, after its CONNECT was accepted."""

    def __init__(self, dps: Dps, line: "Line", who: Who) -> None:
        self._dps, self._line, self._who = dps, line, who
        self._subscribed = False
        self._handlers: dict[int, Callable[[packets.Packet], Any]] = {
            PUBLISH: self._publish,
            SUBSCRIBE: self._subscribe,
            UNSUBSCRIBE: self._unsubscribe,
            PINGREQ: self._ping,
        }

    async def run(self) -> str:
        ending = None
        if self._who.expires_s is not None:
            left_s = max(self._who.expires_s - self._dps.core.now_s(), 0)
            ending = asyncio.get_running_loop().call_later(
                min(left_s, 86400 * 365), self._line.close, "its token has expired"
            )
        try:
            while True:
                packet = await self._line.read()
                if packet is None:
                    return "the device closed the connection without DISCONNECT"
                if packet.type == DISCONNECT:
                    if packet.body:
                        raise packets.Malformed("DISCONNECT has a body")
                    return "the device disconnected"
                handler = self._handlers.get(packet.type)
                if handler is None:
                    raise Close(f"{packet.name} is not served by DPS")
                await handler(packet)
                await self._line.drain()
        finally:
            if ending is not None:
                ending.cancel()

    async def _ping(self, packet: packets.Packet) -> None:
        if packet.body:
            raise packets.Malformed("PINGREQ has a body")
        self._line.write(packets.pingresp())

    async def _subscribe(self, packet: packets.Packet) -> None:
        asked = await packets.decode_subscribe(packet)
        codes = []
        for topic, qos in asked.filters:
            granted = topic == RESPONSES
            self._subscribed |= granted
            codes.append(min(qos, 1) if granted else 0x80)
        self._line.write(packets.suback(asked.packet_id, codes))

    async def _unsubscribe(self, packet: packets.Packet) -> None:
        asked = await packets.decode_unsubscribe(packet)
        if RESPONSES in asked.filters:
            self._subscribed = False
        self._line.write(packets.unsuback(asked.packet_id))

    async def _publish(self, packet: packets.Packet) -> None:
        message = await packets.decode_publish(packet)
        if message.qos == 2:
            raise Close("it published at QoS 2, which DPS does not take")
        topic, _, query = message.topic.partition("?")
        options = dict(part.partition("=")[::2] for part in query.split("&"))
        request_id = options.get("$rid", "")
        if topic not in (REGISTER, STATUS) or not 0 < len(request_id) <= REQUEST_ID_MAX:
            raise Close("it published to a topic that DPS does not have")
        if len(message.body) > REQUEST_MAX_BYTES:
            raise Close(f"a request of {len(message.body)} bytes is over DPS's limit")
        if message.qos == 1 and message.packet_id:
            self._line.write(packets.puback(message.packet_id))
        retry_after_s: int | None = None
        try:
            if topic == REGISTER:
                operation = self._dps.register(self._who, message.body)
            else:
                operation = self._dps.status(self._who, unquote(options.get("operationId", "")))
            status, answer = 200, operation.to_json()
            if operation.status == "assigning":
                status, retry_after_s = 202, self._dps.retry_after_s
        except Failed as why:
            status, retry_after_s = why.status, why.retry_after_s
            answer = {
                "errorCode": why.code,
                "trackingId": str(uuid.uuid4()),
                "message": why.message,
                "timestampUtc": utc(self._dps.core.now_s()),
            }
        self._answer(request_id, status, answer, retry_after_s)

    def _answer(
        self, request_id: str, status: int, answer: dict[str, Any], retry_after_s: int | None
    ) -> None:
        if not self._subscribed:
            return
        topic = f"{RESPONSES[:-1]}{status}/?$rid={request_id}"
        if retry_after_s is not None:
            topic += f"&retry-after={retry_after_s}"
        self._line.write(packets.publish(topic, json.dumps(answer).encode()))


def _attested(enrolment: Enrolment) -> dict[str, Any]:
    """The member by which Azure's answer says how the device has shown who it is."""
    if enrolment.attestation == "x509":
        return {"x509": {}}
    group = {"enrollmentGroupId": enrolment.name} if enrolment.is_group else {}
    return {"symmetricKey": group}


def _object(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body.decode() or "{}")
    except (ValueError, RecursionError):
        raise Failed(400, 400003, "The request is not JSON.") from None
    if not isinstance(asked, dict):
        raise Failed(400, 400003, "The request is not a JSON object.")
    return asked
