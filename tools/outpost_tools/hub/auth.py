"""Who a CONNECT is from, and whether it may.

It owns the rules of IoT Hub's user names, tokens and certificates, and asks the registry for the
rest. A refusal carries the CONNACK code that the real service gives and a reason that is safe to
log; it never carries what the device sent as its password.
"""

import datetime as dt
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from cryptography import x509
from cryptography.x509.oid import NameOID
from OpenSSL import crypto

from outpost_tools import sas
from outpost_tools.hub.packets import Connect
from outpost_tools.registry import DEVICE_ID_PATTERN, Device, Registry, thumbprints

ACCEPTED = 0
BAD_PROTOCOL = 1
BAD_IDENTIFIER = 2
UNAVAILABLE = 3
BAD_USER_OR_PASSWORD = 4
NOT_AUTHORISED = 5
NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which pyOpenSSL has no name for


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
    """Who was let in, and by what: so that it can be told when that no longer holds."""

    device_id: str
    generation_id: str
    expires_s: int | None  # None with a certificate, which ends with the connection
    model_id: str
    key: str = field(default="", repr=False)  # of the device or of the policy, that signed
    policy: str = ""
    certificates: tuple[bytes, ...] = field(default=(), repr=False)


def admit(
    connect: Connect,
    registry: Registry,
    hub_names: Sequence[str],
    now_s: float,
    certificates: Sequence[bytes] = (),
) -> Admitted:
    """The device that this CONNECT speaks for, or a Refusal.

    certificates  what the client showed in the handshake, leaf first, as DER
    """
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
    if connect.password:
        admitted = _by_token(connect.password, registry, user, now_s)
    elif certificates:
        admitted = _by_certificate(certificates, registry, user, now_s)
    else:
        raise Refusal(NOT_AUTHORISED, "there is no token and no certificate")
    if not _known(registry, device_id).enabled:
        raise Refusal(NOT_AUTHORISED, "the device is disabled")
    return admitted


def still(admitted: Admitted, registry: Registry) -> str:
    """Why a device that was let in may stay no longer; nothing while it may."""
    device = registry.find(admitted.device_id)
    if device is None or device.generation_id != admitted.generation_id:
        return "the device was removed"
    if not device.enabled:
        return "the device was disabled"
    if admitted.policy:
        policy = registry.policy(admitted.policy)
        if policy is None or "DeviceConnect" not in policy.rights:
            return "the policy of its token was removed"
        return "" if admitted.key in policy.keys else "the key of its token was replaced"
    if admitted.key:
        return "" if admitted.key in device.keys else "the key of its token was replaced"
    try:
        _check_certificate(admitted.certificates, device, registry, None)
    except Refusal:
        return "its certificate was replaced"
    return ""


def _known(registry: Registry, device_id: str) -> Device:
    device = registry.find(device_id)
    if device is None:
        raise Refusal(NOT_AUTHORISED, "the device is unknown: make it with `outpost device new`")
    return device


def _by_token(password: bytes, registry: Registry, user: UserName, now_s: float) -> Admitted:
    try:
        token = sas.parse(password.decode("ascii"))
    except UnicodeDecodeError:
        raise Refusal(BAD_USER_OR_PASSWORD, "the password is not a SAS token") from None
    except sas.Refused as why:
        raise Refusal(BAD_USER_OR_PASSWORD, why.reason) from None
    device = _known(registry, user.device_id)
    resource = f"{user.hub}/devices/{user.device_id}"
    try:
        if token.policy:
            policy = registry.policy(token.policy)
            if policy is None:
                raise Refusal(NOT_AUTHORISED, "the token names a policy that is not there")
            if "DeviceConnect" not in policy.rights:
                raise Refusal(NOT_AUTHORISED, "the token's policy lacks the right DeviceConnect")
            key = sas.check(token, resource, policy.keys, now_s, prefix=True)
        elif not device.keys:
            raise Refusal(NOT_AUTHORISED, "the device connects with a certificate, not a token")
        else:
            key = sas.check(token, resource, device.keys, now_s)
    except sas.Refused as why:
        raise Refusal(NOT_AUTHORISED, why.reason) from None
    return Admitted(
        device_id=user.device_id,
        generation_id=device.generation_id,
        expires_s=token.expiry_s,
        model_id=user.options.get("model-id", ""),
        key=key,
        policy=token.policy or "",
    )


def _by_certificate(
    certificates: Sequence[bytes], registry: Registry, user: UserName, now_s: float
) -> Admitted:
    device = _known(registry, user.device_id)
    if device.keys:
        raise Refusal(NOT_AUTHORISED, "the device connects with a token: there is none")
    _check_certificate(certificates, device, registry, now_s)
    return Admitted(
        device_id=user.device_id,
        generation_id=device.generation_id,
        expires_s=None,
        model_id=user.options.get("model-id", ""),
        certificates=tuple(certificates),
    )


def _check_certificate(
    certificates: Sequence[bytes], device: Device, registry: Registry, now_s: float | None
) -> None:
    """The certificate is this device's; its dates are looked at where `now_s` is given."""
    if device.auth == "selfSigned":
        shown = thumbprints(certificates[0])
        same = [hmac.compare_digest(one, known) for one in shown for known in device.thumbprints]
        if not any(same):
            raise Refusal(NOT_AUTHORISED, "the certificate's thumbprint is not the device's")
        return
    if device.auth != "certificateAuthority":
        raise Refusal(NOT_AUTHORISED, "the device connects with a token: there is none")
    try:
        leaf, *others = [crypto.X509.from_cryptography(_read(der)) for der in certificates]
        names = leaf.to_cryptography().subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (ValueError, crypto.Error):
        raise Refusal(NOT_AUTHORISED, "the certificate cannot be read") from None
    if [name.value for name in names] != [device.device_id]:
        raise Refusal(NOT_AUTHORISED, "the certificate's common name is not the device id")
    store = crypto.X509Store()
    for authority in registry.authorities().values():
        store.add_cert(crypto.X509.from_cryptography(authority))
    # An intermediate may be the authority that was registered: its own issuer is not asked for.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    if now_s is None:
        store.set_flags(NO_CHECK_TIME)
    else:
        store.set_time(dt.datetime.fromtimestamp(now_s, dt.UTC))
    try:
        crypto.X509StoreContext(store, leaf, others).verify_certificate()
    except crypto.X509StoreContextError as why:
        text = why.args[0] if why.args else "unknown"
        raise Refusal(
            NOT_AUTHORISED, f"the certificate is not of a known authority ({text})"
        ) from None


def _read(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)
