"""Signed commands: what changes keys, trust or software is believed for its signature alone.

A JWS in compact form, ES256 (RFC 7515), made with a key that the trust bundle in use names, or else
the image, whoever brings it. Reads the bundle, or /trust/signers.json. Owns the entries
"ctr-<role>" in NVS: the counter of the last command taken, which only rises and is in flash before
the command runs, so a command runs at most once, whatever happens to the power. Never signs.
"""

import os

from . import agreed, clock, jose, trust
from .errors import SignedError, TrustError, number

try:
    from tlspolicy import verify
except ImportError:  # a stock board
    from .p256 import verify

_FIELDS = ("fleet", "device", "role", "op", "exp", "ctr", "args")


class Signers:
    """fleet (str) and, by key thumbprint, (point, roles)."""

    def __init__(self, fleet, keys):
        self.fleet = fleet
        self.keys = keys


def signers(path=agreed.SIGNERS_PATH):
    """The Signers whom the trust bundle in use names, else those of the file; SignedError says
    what is wrong with it."""
    remedy = "build the image again with 'outpost image'"
    try:
        raw = trust.signers()
        if raw:
            return _signers(jose.parse(raw))
    except TrustError:
        pass  # there is none, so it says nothing of signers
    except (ValueError, TypeError, KeyError, AttributeError):
        raise SignedError("the command signers of the trust bundle are damaged", True)
    try:
        size = os.stat(path)[6]
        if size > agreed.SIGNERS_MAX_BYTES:
            raise SignedError("%s is larger than it may be: %s" % (path, remedy), True)
        with open(path, "rb") as f:
            raw = f.read(size)
    except OSError:
        raise SignedError(
            "this board knows no signer (%s), so it takes no signed command: make one with "
            "'outpost sign key', then 'outpost image'" % path,
            True,
        )
    try:
        return _signers(jose.parse(raw))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise SignedError("%s is damaged: %s" % (path, remedy), True)


def _signers(raw):
    fleet = raw["fleet"]
    if not isinstance(fleet, str) or not 1 <= len(fleet) <= agreed.FLEET_NAME_MAX:
        raise ValueError
    keys = {}
    for entry in raw["signers"]:
        point = jose.decode(entry["point"])
        for role in entry["roles"]:
            if role not in agreed.COMMAND_ROLES:
                raise ValueError
        if len(point) != 65 or point[0] != 4 or not isinstance(entry["roles"], list):
            raise ValueError
        keys[jose.thumbprint(point)] = point, tuple(entry["roles"])
    if not 1 <= len(keys) <= agreed.SIGNERS_MAX:
        raise ValueError
    return Signers(fleet, keys)


def check(token, who, when, known=None):
    """The payload of a command that is for this device, now, and not taken before.

    Its counter is in flash when this returns; SignedError says in a sentence why it is refused.

    token  the JWS: str, or bytes where they lie (nothing is kept of them)
    who    has .device_id
    when   the Clock
    known  Signers; signers() unless given
    """
    if isinstance(token, str):
        token = token.encode()
    if not isinstance(token, (bytes, bytearray, memoryview)) or not len(token):
        raise SignedError("a signed command is a text: make it with 'outpost sign command'")
    if len(token) > agreed.COMMAND_MAX_BYTES:
        raise SignedError(
            "the command has %d bytes, more than the %d this device takes"
            % (len(token), agreed.COMMAND_MAX_BYTES)
        )
    known = known or signers()
    roles, payload = _authentic(token, known)
    _for_us(payload, known.fleet, who.device_id, roles)
    _in_time(payload["exp"], when)
    _count(payload["role"], payload["ctr"])
    return payload


def _authentic(token, known):
    """(the signer's roles, the payload) of a token whose signature is right."""
    dots = [i for i in range(len(token)) if token[i] == 46]
    if len(dots) != 2:
        raise SignedError("the command is not a JWS in compact form: it has not three parts")
    # Slices without copies: a command may be a good part of what memory is free in one piece.
    view = memoryview(token)
    try:
        header = jose.parse(jose.decode(view[: dots[0]]))
        signature = jose.decode(view[dots[1] + 1 :])
    except ValueError as e:
        raise SignedError("the command cannot be read: %s" % e)
    if header.get("alg") != "ES256":
        raise SignedError("the command is not signed with ES256, the one way this device takes")
    if len(header) != 2 or not isinstance(header.get("kid"), str):
        raise SignedError("the command's header must hold alg and kid, and nothing else")
    point, roles = known.keys.get(header["kid"], (None, None))
    if point is None:
        raise SignedError("the command is signed with a key that this device does not know")
    try:
        good = len(signature) == 64 and verify(point, view[: dots[1]], signature)
    except ValueError:
        good = False
    if not good:
        raise SignedError("the command's signature is wrong: it was changed, or never signed")
    try:
        return roles, jose.parse(jose.decode(view[dots[0] + 1 : dots[1]]))
    except ValueError as e:
        raise SignedError("the command's content cannot be read: %s" % e)


def _whole(value, low, high):
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _for_us(payload, fleet, device_id, roles):
    if len(payload) != len(_FIELDS) or not all(name in payload for name in _FIELDS):
        raise SignedError("the command must hold %s, and nothing else" % ", ".join(_FIELDS))
    if payload["fleet"] != fleet:
        raise SignedError("the command is for another fleet")
    if payload["device"] not in (device_id, "*"):
        raise SignedError("the command is for another device")
    if payload["role"] not in agreed.COMMAND_ROLES:
        raise SignedError("the command is of a role that this device does not know")
    if payload["role"] not in roles:
        raise SignedError("the command's signer may not sign for the role it names")
    if (
        not isinstance(payload["op"], str)
        or not isinstance(payload["args"], dict)
        or not _whole(payload["exp"], 0, 0xFFFFFFFF)
        or not _whole(payload["ctr"], 1, agreed.COUNTER_MAX)
    ):
        raise SignedError("the command has a field that is not what it must be")


def _in_time(expiry, when):
    # Where nobody vouches for the clock, time is at least the floor: what was over then is over.
    now = clock.now() if when.vouched() else when.floor
    if expiry <= now:
        raise SignedError("the command expired at %s: sign it again" % clock.text(expiry))


def counter(role):
    """The counter of the last command taken for that role; 0 before the first."""
    import esp32

    try:
        return esp32.NVS(agreed.NVS_NAMESPACE).get_i32(agreed.NVS_COUNTER_PREFIX + role)
    except OSError as e:
        if number(e) == -0x1102:  # ESP_ERR_NVS_NOT_FOUND
            return 0
        raise SignedError("NVS cannot be read (error %d): no command is taken" % number(e), True)


def _count(role, ctr):
    import esp32

    last = counter(role)
    if ctr <= last:
        raise SignedError("the command was taken before, or a later one was (%d)" % last)
    try:
        nvs = esp32.NVS(agreed.NVS_NAMESPACE)
        nvs.set_i32(agreed.NVS_COUNTER_PREFIX + role, ctr)
        nvs.commit()
    except OSError as e:
        raise SignedError(
            "NVS took no counter (error %d), so the command was not run" % number(e), True
        )
    if counter(role) != ctr:
        raise SignedError("NVS kept no counter, so the command was not run", True)
