"""What JWS and JWE have in common: base64url, JSON without two meanings, key thumbprints.

Strict on purpose: one value has one spelling, so that no two readers of a signed or sealed thing
can take it for different things. Owns no flash, keeps nothing.
"""

import binascii
import hashlib
import json

_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def encode(data):
    """base64url without padding (RFC 7515, section 2), as a str."""
    text = binascii.b2a_base64(data).decode().strip()
    return text.rstrip("=").replace("+", "-").replace("/", "_")


def decode(text):
    """The bytes of base64url (str); ValueError unless it is exactly what encode() would give."""
    for c in text.encode():
        if c not in _PLAIN:
            raise ValueError("it has a character that base64url does not have")
    if len(text) % 4 == 1:
        raise ValueError("it is cut off")
    padded = text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4)
    data = binascii.a2b_base64(padded)
    # Left-over bits may be anything to a lenient reader: here they must be zero.
    if encode(data) != text:
        raise ValueError("it is not in the one form that base64url has for it")
    return data


def parse(data):
    """The dict of a JSON object in UTF-8; ValueError where it has two meanings or none.

    MicroPython's parser takes a name twice, a text that ends early, and values with nothing
    between them: what was scanned must be what was parsed.
    """
    try:
        text = str(data, "utf-8")
        value = json.loads(text)
    except (ValueError, RuntimeError):  # RuntimeError: nested deeper than the stack allows
        raise ValueError("it is not JSON")
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    if _scanned(text) != _counted(value):
        raise ValueError("it is not strict JSON, or has a name twice")
    return value


def _scanned(text):
    """(names, strings, containers, commas) in the text, counted without parsing it; None where
    it does not end as it should."""
    colons = strings = opened = closed = commas = 0
    quoted = escaped = False
    for c in text:
        if escaped:
            escaped = False
        elif quoted:
            escaped = c == "\\"
            quoted = c != '"'
        elif c == '"':
            quoted = True
            strings += 1
        elif c == ":":
            colons += 1
        elif c == ",":
            commas += 1
        elif c in "{[":
            opened += 1
        elif c in "}]":
            closed += 1
    if quoted or opened != closed:
        return None
    return colons, strings, opened, commas


def _counted(value):
    """The same of the parsed value."""
    if isinstance(value, str):
        return 0, 1, 0, 0
    if not isinstance(value, (dict, list)):
        return 0, 0, 0, 0
    names = len(value) if isinstance(value, dict) else 0
    colons, strings, opened, commas = names, 0, 1, max(0, len(value) - 1)
    for item in value:
        if names:
            if not isinstance(item, str):
                return None
            strings += 1
            item = value[item]
        inner = _counted(item)
        if inner is None:
            return None
        colons += inner[0]
        strings += inner[1]
        opened += inner[2]
        commas += inner[3]
    return colons, strings, opened, commas


def coordinates(point):
    """(x, y) of a 65-byte point, in base64url."""
    return encode(point[1:33]), encode(point[33:])


def thumbprint(point):
    """RFC 7638 thumbprint of a P-256 public key (65 bytes), in base64url: its name as a signer."""
    text = '{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}' % coordinates(point)
    return encode(hashlib.sha256(text.encode()).digest())


def equal(a, b):
    """Whether two secrets are equal, in a time that depends on their length alone."""
    if len(a) != len(b):
        return False
    different = 0
    for i in range(len(a)):
        different |= a[i] ^ b[i]
    return not different
