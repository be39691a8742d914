"""Azure's device provisioning service on the hub's own listener: its MQTT device side.

    with Hub(data, faces=[dps], services=[dps]) as hub: ...      # where dps = Dps(data)

A CONNECT whose user name is `{id scope}/registrations/{registration id}/api-version=...` is for it.
It owns the enrolments' file (through `Enrolments`) and the operations that devices poll; who a
device is it learns from the token or the certificate, and what becomes of it stands in `assign`.
No token, key or certificate request reaches the log.
"""

import asyncio
import collections
import secrets
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outpost_tools.enrolment import REGISTRATION_ID_MAX, Enrolment, Registration, utc
from outpost_tools.enrolments import Enrolments
from outpost_tools.hub import assign, auth, faults, packets
from outpost_tools.hub.dps_conversation import Conversation, Failed
from outpost_tools.hub.dps_who import Who, admit, split_user_name
from outpost_tools.hub.twins import parse_json

if TYPE_CHECKING:
    from outpost_tools.hub.core import HubCore
    from outpost_tools.hub.line import Line

OPERATIONS_MAX = 10000
OPERATION_LIFE_S = 3600
RETRY_AFTER_S = 3
LOCKS = 64
# How many registrations of one device may wait for their end.
UNDER_WAY_MAX = 8
# The first api-version whose registrations may carry a certificate request.
CSR_SINCE = "2025-07-01-preview"


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
            who = admit(connect, line.certificates, self.enrolments, self.core.now_s())
        except auth.Refusal as refusal:
            named = split_user_name(connect.username)
            self.core.tell(
                "refused",
                device=named[1][:REGISTRATION_ID_MAX] if named else "",
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

    # What devices ask for.

    def register(self, who: Who, body: bytes) -> Operation:
        """Begin to assign the device; it asks for the outcome later."""
        asked = _object(body)
        named = asked.get("registrationId", who.registration_id)
        if not isinstance(named, str) or named.lower() != who.registration_id.lower():
            raise Failed(400, 400004, "The registrationId is another than the connection's.")
        # The enrolment may have been changed or disabled since the device connected.
        enrolment = self.enrolments.still(who.enrolment, who.registration_id)
        if enrolment is None:
            if self.enrolments.find(who.enrolment.name, who.enrolment.is_group) is None:
                raise Failed(404, 404204, "The enrolment was removed.")
            raise Failed(401, 401002, "The enrolment was changed: connect again.")
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
        if not enrolment.enabled:
            self._disable(operation)
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
        except assign.Disabled as why:
            self._disable(operation)
            reason = str(why)
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

    def _disable(self, operation: Operation) -> None:
        operation.status = "disabled"
        operation.state = self._bare_state(operation.registration_id, "disabled", self.core.now_s())

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


def _attested(enrolment: Enrolment) -> dict[str, Any]:
    """The member by which Azure's answer says how the device has shown who it is."""
    if enrolment.attestation == "x509":
        return {"x509": {}}
    group = {"enrollmentGroupId": enrolment.name} if enrolment.is_group else {}
    return {"symmetricKey": group}


def _object(body: bytes) -> dict[str, Any]:
    try:
        asked = parse_json(body.decode() or "{}")
    except (faults.ArgumentInvalid, UnicodeDecodeError):
        raise Failed(400, 400003, "The request is not JSON.") from None
    if not isinstance(asked, dict):
        raise Failed(400, 400003, "The request is not a JSON object.")
    return asked
