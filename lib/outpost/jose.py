"""What JWS and JWE have in common: base64url, JSON without two meanings, key thumbprints.

Strict on purpose: one value has one spelling, so that no two readers of a signed or sealed thing
can take it for different things. Owns no flash, keeps nothing.
"""

import binascii
import hashlib
import json

from micropython import const

_DEPTH_MAX = const(8)
_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def encode(data):
    """base64url without padding (RFC 7515, section 2), as a str."""
    text = binascii.b2a_base64(data).decode().strip()
    return text.rstrip("=").replace("+", "-").replace("/", "_")


def decode(text):
    """The bytes of base64url (str or bytes); ValueError unless it is what encode() would give.

    Takes the text's length once more while it works.
    """
    if isinstance(text, str):
        text = text.encode()
    elif not isinstance(text, (bytes, bytearray, memoryview)):
        raise ValueError("it is not a text")
    n = len(text)
    if n % 4 == 1:
        raise ValueError("it is cut off")
    plain = bytearray(n + -n % 4)
    for i in range(n):
        c = text[i]
        if c not in _PLAIN:
            raise ValueError("it has a character that base64url does not have")
        plain[i] = 43 if c == 45 else 47 if c == 95 else c
    for i in range(n, len(plain)):
        plain[i] = 61
    # Left-over bits may be anything to a lenient reader: here they must be zero.
    if n % 4 and _PLAIN.find(bytes(text[n - 1 : n])) & (15 if n % 4 == 2 else 3):
        raise ValueError("it is not in the one form that base64url has for it")
    return binascii.a2b_base64(plain)


def parse(data):
    """The dict of a JSON object in UTF-8; ValueError where it has two meanings or none.

    MicroPython's parser takes a name twice, a text that ends early, and values with nothing
    between them: what was scanned must be what was parsed.
    """
    scanned = _scanned(data)  # first: how deep it goes is known before memory is taken for it
    try:
        value = json.loads(data)
    except ValueError:  # UnicodeError is one
        raise ValueError("it is not JSON")
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    if scanned != _counted(value):
        raise ValueError("it is not strict JSON, or has a name twice")
    return value


def _scanned(data):
    """(names, strings, containers, commas) in the text, counted without parsing it; ValueError
    where it goes too deep or does not end as it should."""
    colons = strings = opened = closed = commas = 0
    quoted = escaped = False
    for c in data:
        if escaped:
            escaped = False
        elif quoted:
            escaped = c == 92  # backslash
            quoted = c != 34
        elif c == 34:
            quoted = True
            strings += 1
        elif c == 58:
            colons += 1
        elif c == 44:
            commas += 1
        elif c in b"{[":
            opened += 1
            if opened - closed > _DEPTH_MAX:
                raise ValueError("it is not JSON of at most %d levels" % _DEPTH_MAX)
        elif c in b"}]":
            closed += 1
    if quoted or opened != closed:
        raise ValueError("it is not JSON: it does not end as it should")
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
