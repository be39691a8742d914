"""Who a CONNECT is from, and whether it may.

It owns the rules of IoT Hub's user names and tokens, and asks the registry for the rest. A refusal
carries the CONNACK code that the real service gives and a reason that is safe to log; it never
carries what the device sent as its password.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from outpost_tools import sas
from outpost_tools.hub.packets import Connect
from outpost_tools.registry import DEVICE_ID_PATTERN, Registry

ACCEPTED = 0
BAD_PROTOCOL = 1
BAD_IDENTIFIER = 2
BAD_USER_OR_PASSWORD = 4
NOT_AUTHORISED = 5


class Refusal(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True)
class UserName:
    """`{hub}/{device}/?api-version=…&model-id=…`"""

    hub: str
    device_id: str
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> "UserName":
        hub, slash, rest = text.partition("/")
        device_id, _, query = rest.partition("/")
        if not (hub and slash and device_id) or (query and not query.startswith("?")):
            raise Refusal(
                BAD_USER_OR_PASSWORD, "the user name is not {hub}/{device}/?api-version=..."
            )
        return cls(hub, device_id, dict(parse_qsl(query[1:], keep_blank_values=True)))


@dataclass(frozen=True)
class Admitted:
    device_id: str
    expires_s: int


def admit(connect: Connect, registry: Registry, hub_names: Sequence[str], now_s: float) -> Admitted:
    """The device that this CONNECT speaks for, or a Refusal."""
    if connect.protocol != ("MQTT", 4):
        raise Refusal(BAD_PROTOCOL, "the protocol is not MQTT 3.1.1")
    device_id = connect.client_id
    if not (len(device_id) <= 128 and DEVICE_ID_PATTERN.fullmatch(device_id)):
        raise Refusal(BAD_IDENTIFIER, "the client id is not a device id")
    if connect.username is None:
        raise Refusal(BAD_USER_OR_PASSWORD, "there is no user name")
    user = UserName.parse(connect.username)
    if user.device_id != device_id:
        raise Refusal(NOT_AUTHORISED, "the user name is of another device than the client id")
    if user.hub.lower() not in [name.lower() for name in hub_names]:
        raise Refusal(NOT_AUTHORISED, "the user name is of another hub")
    if not connect.password:
        raise Refusal(NOT_AUTHORISED, "there is no token")
    try:
        token = sas.parse(connect.password.decode("ascii"))
    except UnicodeDecodeError:
        raise Refusal(BAD_USER_OR_PASSWORD, "the password is not a SAS token") from None
    except sas.Refused as why:
        raise Refusal(BAD_USER_OR_PASSWORD, why.reason) from None
    device = registry.find(device_id)
    if device is None:
        raise Refusal(NOT_AUTHORISED, "the device is unknown: make it with `outpost device new`")
    try:
        keys = (device.primary_key, device.secondary_key)
        sas.check(token, f"{user.hub}/devices/{device_id}", keys, now_s)
    except sas.Refused as why:
        raise Refusal(NOT_AUTHORISED, why.reason) from None
    if not device.enabled:
        raise Refusal(NOT_AUTHORISED, "the device is disabled")
    return Admitted(device_id, token.expiry_s)
