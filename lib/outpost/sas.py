"""Shared access signatures: how a symmetric key proves an identity to IoT Hub.

Never keeps or prints a key; a token is as secret as the key until it expires.
"""

import binascii
import hashlib

_HEX = "0123456789ABCDEF"


def hmac_sha256(key, message):
    """RFC 2104 with SHA-256: 32 bytes."""
    if len(key) > 64:
        key = hashlib.sha256(key).digest()
    pad = bytearray(64)
    for i in range(64):
        pad[i] = (key[i] if i < len(key) else 0) ^ 0x36
    inner = hashlib.sha256(pad)
    inner.update(message)
    for i in range(64):
        pad[i] ^= 0x6A  # 0x36 ^ 0x5C
    outer = hashlib.sha256(pad)
    outer.update(inner.digest())
    return outer.digest()


def quote(text):
    """Percent-encoding as RFC 3986 wants it: only the unreserved characters stay."""
    out = bytearray()
    for b in text if isinstance(text, bytes) else text.encode():
        if 48 <= b <= 57 or 65 <= b <= 90 or 97 <= b <= 122 or b in b"-._~":
            out.append(b)
        else:
            out.append(37)
            out.append(ord(_HEX[b >> 4]))
            out.append(ord(_HEX[b & 15]))
    return out.decode()


def token(sign, hub, device_id, expiry):
    """SharedAccessSignature for hub/devices/device_id until `expiry` (Unix seconds).

    sign(message) -> HMAC-SHA256, as Credential.sign.
    """
    return signature(sign, "%s/devices/%s" % (hub, device_id), expiry)


def signature(sign, resource, expiry, policy=None):
    """SharedAccessSignature for any resource, by the policy's key where one is named."""
    resource = quote(resource)
    signed = binascii.b2a_base64(sign(("%s\n%d" % (resource, expiry)).encode())).strip()
    text = "SharedAccessSignature sr=%s&sig=%s&se=%d" % (resource, quote(signed), expiry)
    return text + "&skn=" + policy if policy else text
