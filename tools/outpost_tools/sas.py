"""SAS tokens: what a device shows instead of a password.

Makes and checks `SharedAccessSignature sr=…&sig=…&se=…` as IoT Hub documents it. It owns no state,
and never puts a token, a signature or a key into a message: `Refused.reason` is safe to log.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

PREFIX = "SharedAccessSignature "
MAX_TOKEN_CHARS = 4096


class Refused(Exception):
    """A token that does not open the door. `reason` holds no secret."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Token:
    resource: str  # as signed: still percent-encoded
    expiry_s: int
    expiry_text: str
    signature: bytes = field(repr=False)
    policy: str | None = None


def sign(key: str, resource: str, expiry: str) -> bytes:
    """HMAC-SHA256 over the encoded resource and the expiry, one line each."""
    return hmac.digest(base64.b64decode(key), f"{resource}\n{expiry}".encode(), hashlib.sha256)


def make(key: str, resource: str, expiry_s: int, policy: str | None = None) -> str:
    """A token for `resource` (plain text, e.g. "hub.example/devices/pump-7")."""
    encoded = quote(resource, safe="")
    signature = quote(base64.b64encode(sign(key, encoded, str(expiry_s))).decode(), safe="")
    token = f"{PREFIX}sr={encoded}&sig={signature}&se={expiry_s}"
    return f"{token}&skn={quote(policy, safe='')}" if policy else token


def parse(text: str) -> Token:
    """Take a token apart; Refused says what is wrong with its form."""
    if len(text) > MAX_TOKEN_CHARS:
        raise Refused("the token is too long")
    if not text.startswith(PREFIX):
        raise Refused("the password is not a SAS token")
    fields: dict[str, str] = {}
    for part in text[len(PREFIX) :].split("&"):
        name, equals, value = part.partition("=")
        if not equals or name in fields:
            raise Refused("the token is malformed")
        fields[name] = value
    if not {"sr", "sig", "se"} <= fields.keys():
        raise Refused("the token lacks sr, sig or se")
    expiry = fields["se"]
    if not (expiry.isascii() and expiry.isdigit() and len(expiry) <= 12):
        raise Refused("the token's expiry is not a number of seconds")
    try:
        signature = base64.b64decode(unquote(fields["sig"]), validate=True)
    except ValueError:
        raise Refused("the token's signature is not base64") from None
    policy = unquote(fields["skn"]) if fields.get("skn") else None
    return Token(fields["sr"], int(expiry), expiry, signature, policy)


def check(
    token: Token, resource: str, keys: Iterable[str], now_s: float, prefix: bool = False
) -> str:
    """The one of `keys` that signed it, or Refused; also where it has ended or is for another.

    With `prefix` a token for what stands above `resource` is good for it too: one for "hub" opens
    "hub/devices/pump-7".
    """
    signed, asked = unquote(token.resource).lower(), resource.lower()
    if signed != asked and not (prefix and asked.startswith(signed.rstrip("/") + "/")):
        raise Refused("the token is for another resource")
    keys = list(keys)
    # Every key is tried whatever the first gave: the time taken says nothing about which matched.
    matches = [
        hmac.compare_digest(sign(key, token.resource, token.expiry_text), token.signature)
        for key in keys
    ]
    if not any(matches):
        raise Refused("the token is signed with another key")
    if token.expiry_s <= now_s:
        raise Refused(f"the token expired {int(now_s - token.expiry_s)} s ago")
    return keys[matches.index(True)]
