"""JWE in compact form (RFC 7516, RFC 7518): `dir` and ECDH-ES (P-256), both with A128CBC-HS256.

What AES-CBC and SHA-256 of a stock MicroPython can do. The MAC is compared, in constant time,
before anything is decrypted, and every way in which a token can be wrong gives the same sentence
from then on. Holds a message two or three times in RAM while it works; takes at most LIMIT bytes.
Owns no flash, and keeps no key.
"""

import hashlib
import json
import os

from cryptolib import aes
from micropython import const

from . import jose
from .errors import SealError
from .sas import hmac_sha256

LIMIT = const(16384)  # bytes of a token, either way
_CBC = const(2)
_ENC = "A128CBC-HS256"
_BROKEN = "the sealed message was changed on its way, or was sealed for another key"


def seal_dir(plain, key, kid=None):
    """A token (str) that whoever has the 32-byte key can open. kid names the key, if said."""
    header = {"alg": "dir", "enc": _ENC}
    if kid:
        header["kid"] = kid
    return _seal(header, "", plain, key)


def open_dir(token, key):
    """The plain bytes of a `dir` token; SealError says in a sentence why not."""
    header, parts = _parse(token)
    if header.get("alg") != "dir":
        raise SealError("the sealed message is not one for a shared key (alg dir)")
    for name in header:
        if name not in ("alg", "enc", "kid"):
            raise SealError("the sealed message has a header that is not understood")
    return _open(parts, key)


def seal(plain, point, ephemeral=None):
    """A token (str) that only the holder of the point's private key can open.

    Works with the plain-Python curve: seconds on a board.
    """
    from . import p256

    private = ephemeral or p256.new()
    x, y = jose.coordinates(p256.public(private))
    header = {
        "alg": "ECDH-ES",
        "enc": _ENC,
        "epk": {"kty": "EC", "crv": "P-256", "x": x, "y": y},
    }
    return _seal(header, "", plain, _derive(p256.agree(private, point), b"", b""))


def open_sealed(token, agree):
    """The plain bytes of an ECDH-ES token; agree(point: 65 bytes) -> the shared secret Z."""
    header, parts = _parse(token)
    epk = header.get("epk")
    if header.get("alg") != "ECDH-ES" or not isinstance(epk, dict):
        raise SealError("the sealed message is not one for this device's key (alg ECDH-ES)")
    for name in header:
        if name not in ("alg", "enc", "kid", "epk", "apu", "apv"):
            raise SealError("the sealed message has a header that is not understood")
    try:
        if epk.get("kty") != "EC" or epk.get("crv") != "P-256":
            raise ValueError
        x, y = jose.decode(epk.get("x")), jose.decode(epk.get("y"))
        point = b"\x04" + x + y
        apu, apv = jose.decode(header.get("apu", "")), jose.decode(header.get("apv", ""))
        if len(x) != 32 or len(y) != 32:
            raise ValueError
        secret = agree(point)
    except (ValueError, AttributeError):  # AttributeError: x, y, apu or apv is no text
        raise SealError("the sealed message was made with a key that is not on P-256")
    return _open(parts, _derive(secret, apu, apv))


def _derive(secret, apu, apv):
    """Concat KDF (RFC 7518, 4.6.2) for 256 bits: one round of SHA-256."""
    kdf = hashlib.sha256(b"\0\0\0\x01")
    kdf.update(secret)
    for part in (_ENC.encode(), apu, apv):
        kdf.update(len(part).to_bytes(4, "big"))
        kdf.update(part)
    kdf.update(b"\0\0\x01\0")
    return kdf.digest()


def _mac(key, header, iv, body):
    bits = (len(header) * 8).to_bytes(8, "big")
    return hmac_sha256(key[:16], b"".join((header, iv, body, bits)))[:16]


def _seal(header, wrapped, plain, key):
    if len(key) != 32:
        raise ValueError("A128CBC-HS256 takes a key of 32 bytes")
    if len(plain) > LIMIT * 3 // 4 - 512:
        raise SealError("%d bytes are too many to seal: %d at most" % (len(plain), LIMIT * 3 // 4))
    head = jose.encode(json.dumps(header).encode())
    pad = 16 - len(plain) % 16
    iv = os.urandom(16)
    body = aes(key[16:], _CBC, iv).encrypt(plain + bytes((pad,)) * pad)
    tag = _mac(key, head.encode(), iv, body)
    return ".".join((head, wrapped, jose.encode(iv), jose.encode(body), jose.encode(tag)))


def _parse(token):
    """(header, (header's own text, iv, ciphertext, tag)) of a token in compact form."""
    if isinstance(token, (bytes, bytearray)):
        try:
            token = str(token, "utf-8")
        except UnicodeError:
            raise SealError("the sealed message is not a text")
    if len(token) > LIMIT:
        raise SealError(
            "the sealed message has %d bytes, more than the %d this device takes"
            % (len(token), LIMIT)
        )
    parts = token.split(".")
    if len(parts) != 5 or parts[1]:
        raise SealError("the sealed message is not a JWE of five parts with its second empty")
    try:
        header = jose.parse(jose.decode(parts[0]))
        iv, body, tag = [jose.decode(part) for part in parts[2:]]
    except ValueError as e:
        raise SealError("the sealed message cannot be read: %s" % e)
    if header.get("enc") != _ENC:
        raise SealError("the sealed message is not encrypted with %s" % _ENC)
    if len(iv) != 16 or len(tag) != 16 or not body or len(body) % 16:
        raise SealError(_BROKEN)
    return header, (parts[0].encode(), iv, body, tag)


def _open(parts, key):
    header, iv, body, tag = parts
    if len(key) != 32:
        raise ValueError("A128CBC-HS256 takes a key of 32 bytes")
    if not jose.equal(_mac(key, header, iv, body), tag):
        raise SealError(_BROKEN)
    plain = aes(key[16:], _CBC, iv).decrypt(body)
    pad = plain[-1]
    if not 1 <= pad <= 16 or plain[-pad:] != bytes((pad,)) * pad:
        raise SealError(_BROKEN)
    return plain[:-pad]
