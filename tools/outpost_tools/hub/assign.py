"""Which hub a registering device goes to, and its entry in that hub's registry.

It owns the order of the steps, so that a `kill -9` between any two is put right by the device's
next registration: the entry and the twin on the new hub, then the end of the old entry, then the
registration's record. It opens the registry of another hub for as long as that takes.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

from outpost_tools.enrolment import Enrolment, Registration
from outpost_tools.enrolments import Enrolments, LinkedHub
from outpost_tools.errors import OutpostError
from outpost_tools.hub import attest, faults, issuing
from outpost_tools.hub.twins import TwinStore, check, parse_json
from outpost_tools.registry import Registry, thumbprints

if TYPE_CHECKING:
    from outpost_tools.hub.core import HubCore

WEBHOOK_PATIENCE_S = 5
WEBHOOK_MAX_BYTES = 65536

CUSTOM_FAILED = 400207
CUSTOM_NO_HUB = 400208
NO_HUB = 404212
BAD_REQUEST = 400004
CHANGED = 401002


class Impossible(Exception):
    """The registration has failed. The text is a sentence for the device."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Disabled(Exception):
    """The enrolment assigns nobody now."""


@dataclass(frozen=True)
class Order:
    """What a device asked for, and what is known of it."""

    registration_id: str
    enrolment: Enrolment
    proof: attest.Proof = field(repr=False)
    payload: Any = None
    request: Any = None  # the text of a certificate request, None without

    @property
    def device_id(self) -> str:
        return str(self.enrolment.document.get("deviceId") or self.registration_id)


@dataclass(frozen=True)
class Choice:
    hub: LinkedHub
    initial_twin: dict[str, Any]
    payload: Any = None  # what a custom allocation sends back to the device


@dataclass(frozen=True)
class Books:
    """The registry and the twins of one hub."""

    registry: Registry
    twins: TwinStore


async def assign(
    core: "HubCore", enrolments: Enrolments, order: Order
) -> tuple[Registration, dict[str, Any]]:
    """Give the device its hub. Raises Impossible, having changed nothing, where that cannot be."""
    request = _certificate_request(enrolments, order)
    hubs = linked(core, enrolments)
    before = enrolments.registration(order.registration_id)
    choice = await _choose(order, hubs, before)
    _check_twin(choice.initial_twin)
    try:
        return await asyncio.to_thread(
            _settle, core, enrolments, order, hubs, before, choice, request
        )
    except (OutpostError, faults.ServiceError) as why:
        raise Impossible(500001, str(why)) from None
    finally:
        core.check_registry()


def linked(core: "HubCore", enrolments: Enrolments) -> list[LinkedHub]:
    """The hubs that devices can be sent to: this one, and those linked to the enrolments."""
    hubs = enrolments.hubs()
    own_names = {name.lower() for name in core.names}
    if not any(hub.host.lower() in own_names for hub in hubs):
        hubs.append(LinkedHub(core.names[0], core.data, 1))
    return sorted(hubs, key=lambda hub: hub.host)


def _certificate_request(enrolments: Enrolments, order: Order) -> tuple[Any, int] | None:
    """The request and the days its certificate is to live; None where none was sent."""
    if order.request is None:
        return None
    name = order.enrolment.document.get("credentialPolicyName")
    days = enrolments.credential_policies().get(str(name)) if name else None
    if days is None:
        raise Impossible(BAD_REQUEST, "The enrolment has no credential policy: no csr is signed.")
    if order.device_id.lower() != order.registration_id.lower():
        raise Impossible(
            BAD_REQUEST, "The enrolment gives another device id: its certificate would not fit."
        )
    try:
        return issuing.read_request(order.request, order.registration_id), days
    except issuing.BadRequest as why:
        raise Impossible(BAD_REQUEST, str(why)) from None


async def _choose(order: Order, hubs: list[LinkedHub], before: Registration | None) -> Choice:
    enrolment = order.enrolment
    twin = enrolment.document.get("initialTwin") or {}
    if before is not None and not enrolment.updates_hub:
        for hub in hubs:
            if hub.host.lower() == before.assigned_hub.lower():
                return Choice(hub, twin, before.payload)
    wanted = {host.lower() for host in enrolment.document["iotHubs"]}
    candidates = [hub for hub in hubs if not wanted or hub.host.lower() in wanted]
    if not candidates:
        raise Impossible(NO_HUB, "None of the enrolment's hubs is linked to this service.")
    match enrolment.allocation:
        case "static":
            return Choice(candidates[0], twin)
        case "custom":
            return await _ask_webhook(order, candidates, twin)
        case _:
            return Choice(hashed(order.registration_id, candidates), twin)


def hashed(registration_id: str, hubs: list[LinkedHub]) -> LinkedHub:
    """Always the same hub for a device, each hub's share by its weight.

    Rendezvous hashing: a hub that comes or goes moves no device between the others.
    """
    weighing = [hub for hub in hubs if hub.weight]
    if not weighing:
        raise Impossible(NO_HUB, "Every hub that the enrolment may use has the weight 0.")

    def score(hub: LinkedHub) -> float:
        text = f"{registration_id.lower()}\n{hub.host.lower()}".encode()
        part = (int.from_bytes(hashlib.sha256(text).digest()[:7]) + 1) / 2**56
        return float(part ** (1 / hub.weight))

    return max(weighing, key=score)


async def _ask_webhook(order: Order, hubs: list[LinkedHub], twin: dict[str, Any]) -> Choice:
    """Custom allocation: the enrolment's own program chooses, asked as Azure asks its functions."""
    enrolment = order.enrolment
    kind = "enrollmentGroup" if enrolment.is_group else "individualEnrollment"
    attested = {"x509": {}} if enrolment.attestation == "x509" else {"symmetricKey": {}}
    context: dict[str, Any] = {"registrationId": order.registration_id, **attested}
    if order.payload is not None:
        context["payload"] = order.payload
    question = {
        kind: enrolment.to_json(),
        "deviceRuntimeContext": context,
        "linkedHubs": [hub.host for hub in hubs],
    }
    url = enrolment.document["customAllocationDefinition"]["webhookUrl"]
    patience = aiohttp.ClientTimeout(total=WEBHOOK_PATIENCE_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=patience) as session,
            session.post(url, json=question, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise Impossible(
                    CUSTOM_FAILED, f"The custom allocation answered with HTTP {response.status}."
                )
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > WEBHOOK_MAX_BYTES:
                    break
        if len(body) > WEBHOOK_MAX_BYTES:
            raise Impossible(CUSTOM_FAILED, "The custom allocation's answer is too long.")
        answer = _object(bytes(body))
    except (aiohttp.ClientError, TimeoutError, OSError):
        raise Impossible(CUSTOM_FAILED, "The custom allocation cannot be reached.") from None
    host = answer.get("iotHubHostName")
    if not isinstance(host, str) or not host:
        raise Impossible(CUSTOM_NO_HUB, "The custom allocation named no hub.")
    for hub in hubs:
        if hub.host.lower() == host.lower():
            given = answer.get("initialTwin")
            return Choice(hub, given if isinstance(given, dict) else twin, answer.get("payload"))
    raise Impossible(NO_HUB, "The custom allocation named a hub that is not linked.")


def _object(body: bytes) -> dict[str, Any]:
    try:
        answer = parse_json(body)
    except faults.ArgumentInvalid:
        answer = None
    if not isinstance(answer, dict):
        raise Impossible(CUSTOM_FAILED, "The custom allocation's answer is not a JSON object.")
    return answer


def _settle(
    core: "HubCore",
    enrolments: Enrolments,
    order: Order,
    hubs: list[LinkedHub],
    before: Registration | None,
    choice: Choice,
    request: tuple[Any, int] | None,
) -> tuple[Registration, dict[str, Any]]:
    """What is written, in its order. It runs in a thread of its own: files are waited for."""
    _still_enrolled(enrolments, order)
    extra: dict[str, Any] = {}
    authority = None
    if request is not None:
        device_ca = issuing.DeviceCA(enrolments.data)
        chain = device_ca.issue(*request)
        extra["issuedCertificateChain"] = issuing.chain_text(chain)
        authority = device_ca.root_pem
    with _books(core, choice.hub) as new:
        if authority is not None:
            _trust(new.registry, authority)
        _enter(new.registry, order, request is not None)
        changes = before is not None and before.assigned_hub.lower() != choice.hub.host.lower()
        moved = False
        if before is None:
            substatus = "initialAssignment"
        elif not changes:
            substatus = "reprovisionedToInitialAssignment"
        else:
            migrates = order.enrolment.migrates_data
            substatus = "deviceDataMigrated" if migrates else "deviceDataReset"
            moved = _leave(core, hubs, before, order, new if migrates else None)
        if (before is None or changes) and not moved:
            _first_twin(new.twins, order.device_id, choice.initial_twin)
    group = order.enrolment.name if order.enrolment.is_group else None
    registration = enrolments.keep_registration(
        order.registration_id,
        group,
        order.device_id,
        choice.hub.host,
        substatus,
        choice.payload,
    )
    return registration, extra


def _still_enrolled(enrolments: Enrolments, order: Order) -> None:
    """The web hook and the device's earlier registrations took their time."""
    present = enrolments.still(order.enrolment, order.registration_id)
    if present is None:
        raise Impossible(CHANGED, "The enrolment was changed meanwhile: connect again.")
    if not present.enabled:
        raise Disabled("the enrolment was disabled meanwhile")


def _leave(
    core: "HubCore", hubs: list[LinkedHub], before: Registration, order: Order, new: Books | None
) -> bool:
    """End the entry on the hub before; whether its twin now stands in the books `new`."""
    moved = False
    for hub in hubs:
        if hub.host.lower() != before.assigned_hub.lower():
            continue
        with _books(core, hub) as old:
            if old.registry.find(before.device_id) is None:
                continue
            if new is not None:
                twin = old.twins.get(before.device_id)
                new.twins.change(order.device_id, twin.tags, twin.desired, whole=True)
                if twin.reported:
                    new.twins.report(order.device_id, twin.reported)
                moved = True
            old.registry.remove(before.device_id)
    return moved


@contextlib.contextmanager
def _books(core: "HubCore", hub: LinkedHub) -> Iterator[Books]:
    """The registry and twins of a hub: this one's own, or those in another folder."""
    if hub.data.resolve() == core.data.resolve():
        yield Books(core.registry, core.twins)
        return
    closing: list[Callable[[], None]] = []
    try:
        registry = Registry(hub.data)
        closing.append(registry.close)
        twins = TwinStore(hub.data, core.now_s)
        closing.append(twins.close)
        yield Books(registry, twins)
    finally:
        for close in reversed(closing):
            close()


def _enter(registry: Registry, order: Order, issued: bool) -> None:
    """The device's entry with what it will connect by; a status set by a person stays."""
    credentials: dict[str, str]
    if issued:
        credentials = {"auth": "certificateAuthority"}
    elif order.proof.keys is not None:
        primary, secondary = order.proof.keys
        credentials = {"auth": "sas", "primary_key": primary, "secondary_key": secondary}
    else:
        primary, secondary = _thumbprints(order)
        credentials = {
            "auth": "selfSigned",
            "primary_thumbprint": primary,
            "secondary_thumbprint": secondary,
        }
    held = registry.find(order.device_id)
    if held is None:
        registry.add(order.device_id, **credentials)
    elif any(getattr(held, name) != value for name, value in credentials.items()):
        registry.update(order.device_id, **credentials)


def _thumbprints(order: Order) -> tuple[str, str]:
    """Of both certificates of an individual enrolment, so that the hub takes either."""
    shown = [order.proof.certificate]
    if not order.enrolment.is_group:
        shown += [c for c in order.enrolment.certificates if c != order.proof.certificate]
    found = [thumbprints(issuing.der(c))[0] for c in shown if c is not None]
    return found[0], found[1] if len(found) > 1 else ""


def _trust(registry: Registry, pem: str) -> None:
    """Let the hub take certificates that were issued here."""
    name = issuing.AUTHORITY_NAME
    held = registry.authorities().get(name)
    if held is not None:
        if issuing.pem(held) == pem:
            return
        registry.remove_authority(name)
    registry.add_authority(name, pem)


def _check_twin(initial: dict[str, Any]) -> None:
    try:
        check(initial.get("tags") or {}, "initial tags")
        check(_desired(initial) or {}, "initial desired properties")
    except faults.ArgumentInvalid as why:
        raise Impossible(BAD_REQUEST, why.message) from None


def _desired(initial: dict[str, Any]) -> Any:
    properties = initial.get("properties") or {}
    return properties.get("desired") if isinstance(properties, dict) else None


def _first_twin(twins: TwinStore, device_id: str, initial: dict[str, Any]) -> None:
    """What the enrolment starts a twin with, where nobody has written to the twin yet."""
    tags = initial.get("tags") or None
    desired = _desired(initial) or None
    held = twins.get(device_id)
    if (tags or desired) and not held.tags and not held.desired:
        twins.change(device_id, tags, desired)
