"""Protect: bodies encrypted and authenticated from end to end, through gateway and hub.

Standard JWE in compact form, `dir` with A128CBC-HS256 (RFC 7516, RFC 7518), under a 32-byte key
that this device and whoever reads its messages share. The key lies in NVS (`outpost image
--payload-key` puts it there); the header names it (`kid`) by 8 bytes of its SHA-256. What is in
flash on its way is not encrypted by this. Writes nothing.
"""

import hashlib

from micropython import const

from . import agreed, jose, jwe
from .errors import ConfigError

MOST = const(4096)  # bytes of a body: sealing takes up to eight times that for a moment


def load():
    """seal(bytes) -> bytes, with this device's key; ConfigError where it has none."""
    key = _key()
    kid = jose.encode(hashlib.sha256(key).digest()[:8])
    return lambda body: jwe.seal_dir(bytes(body), key, kid).encode()


def _key():
    import esp32

    key = bytearray(32)
    try:
        if esp32.NVS(agreed.NVS_NAMESPACE).get_blob(agreed.NVS_PAYLOAD_KEY, key) == 32:
            return bytes(key)
    except OSError:
        pass
    raise ConfigError(
        'config.json says protect "jwe", and this device has no payload key: build its image '
        "with 'outpost image --payload-key FILE'",
        True,
    )
