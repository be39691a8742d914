"""P-256 in plain Python: signatures checked and secrets agreed where no tlspolicy is.

What a stock MicroPython lacks. Slow (seconds on an ESP32) and right: every input is checked, and
what it needs of the heap does not depend on the input (SEC 1; FIPS 186-5; RFC 5903 has the curve).
Python's long numbers take a time that depends on their values, so whoever can measure this board's
power or timing closely may learn a private key from agree(): our own firmware uses tlspolicy.
Owns no flash; never signs.
"""

import hashlib
import os

from micropython import const

_P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
_N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
_G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
    1,
)
_NOWHERE = (1, 1, 0)  # the point at infinity, in Jacobian coordinates
_BITS = const(256)


def _number(b):
    return int.from_bytes(b, "big")


def _double(a):
    x, y, z = a
    if not z:
        return a
    # dbl-2001-b, for curves with a = -3.
    delta = z * z % _P
    gamma = y * y % _P
    beta = x * gamma % _P
    alpha = 3 * (x - delta) * (x + delta) % _P
    x3 = (alpha * alpha - 8 * beta) % _P
    z3 = ((y + z) * (y + z) - gamma - delta) % _P
    return x3, (alpha * (4 * beta - x3) - 8 * gamma * gamma) % _P, z3


def _add(a, b):
    x1, y1, z1 = a
    x2, y2, z2 = b
    if not z1:
        return b
    if not z2:
        return a
    zz1 = z1 * z1 % _P
    zz2 = z2 * z2 % _P
    u1 = x1 * zz2 % _P
    s1 = y1 * zz2 * z2 % _P
    h = (x2 * zz1 - u1) % _P
    r = (y2 * zz1 * z1 - s1) % _P
    if not h:
        return _NOWHERE if r else _double(a)
    hh = h * h % _P
    hhh = h * hh % _P
    v = u1 * hh % _P
    x3 = (r * r - hhh - 2 * v) % _P
    return x3, (r * (v - x3) - s1 * hhh) % _P, h * z1 * z2 % _P


def _affine(a):
    x, y, z = a
    # Fermat: MicroPython's pow() takes no negative exponent.
    inverse = pow(z, _P - 2, _P)
    square = inverse * inverse % _P
    return x * square % _P, y * square * inverse % _P


def _point(sec1):
    """The point of its 65 bytes; ValueError where there is none."""
    if len(sec1) != 65 or sec1[0] != 4:
        raise ValueError("not an uncompressed P-256 point")
    x = _number(sec1[1:33])
    y = _number(sec1[33:])
    if x >= _P or y >= _P or (y * y - (x * x * x - 3 * x + _B)) % _P:
        raise ValueError("the point is not on P-256")
    return x, y, 1


def _scalar(private):
    d = _number(private)
    if len(private) != 32 or not 0 < d < _N:
        raise ValueError("not a P-256 private key")
    return d


def _times(d, a):
    """The affine d * a: a ladder, so that each bit costs one addition and one doubling."""
    # Another Z each time stands for the same point: the numbers on the way are never the same.
    z = _number(os.urandom(32)) % (_P - 1) + 1
    zz = z * z % _P
    low, high = _NOWHERE, (a[0] * zz % _P, a[1] * zz * z % _P, z)
    for i in range(_BITS - 1, -1, -1):
        if d >> i & 1:
            low, high = _add(low, high), _double(high)
        else:
            low, high = _double(low), _add(low, high)
    return _affine(low)


def new():
    """A new private key: 32 bytes of the board's random source (switch the radio on first)."""
    while True:
        private = os.urandom(32)
        if 0 < _number(private) < _N:
            return private


def public(private):
    """The 65 bytes of the private key's point."""
    x, y = _times(_scalar(private), _G)
    return b"\x04" + x.to_bytes(32, "big") + y.to_bytes(32, "big")


def agree(private, point):
    """ECDH: the 32 bytes that both ends come to; ValueError for a point not on the curve."""
    x, _ = _times(_scalar(private), _point(point))
    return x.to_bytes(32, "big")


def verify(point, message, signature):
    """Whether an ECDSA-SHA256 signature is right: 64 bytes of r and s, or DER.

    ValueError for a point not on the curve; any other fault makes it False.
    """
    key = _point(point)
    if len(signature) == 64:
        r, s = _number(signature[:32]), _number(signature[32:])
    else:
        r, s = _from_der(signature)
    if not 0 < r < _N or not 0 < s < _N:
        return False
    w = pow(s, _N - 2, _N)
    u = _number(hashlib.sha256(message).digest()) * w % _N
    v = r * w % _N
    # Both products in one go (Shamir); all of it is public, so a branch on a bit tells nothing.
    both = _add(_G, key)
    at = _NOWHERE
    for i in range(_BITS - 1, -1, -1):
        at = _double(at)
        a, b = u >> i & 1, v >> i & 1
        if a and b:
            at = _add(at, both)
        elif a:
            at = _add(at, _G)
        elif b:
            at = _add(at, key)
    return at[2] != 0 and _affine(at)[0] % _N == r


def _from_der(b):
    """r and s of SEQUENCE { INTEGER, INTEGER }; zeros, which no signature has, where it is none."""
    if len(b) < 8 or len(b) > 72 or b[0] != 0x30 or b[1] != len(b) - 2:
        return 0, 0
    found = []
    at = 2
    for _ in range(2):
        if at + 2 > len(b) or b[at] != 2:
            return 0, 0
        start, at = at + 2, at + 2 + b[at + 1]
        # DER: no sign bit, and no zero in front that is not needed.
        if not start < at <= len(b) or b[start] & 0x80:
            return 0, 0
        if not b[start] and (at - start == 1 or not b[start + 1] & 0x80):
            return 0, 0
        found.append(_number(b[start:at]))
    return (found[0], found[1]) if at == len(b) else (0, 0)
