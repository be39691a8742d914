"""Identity: who this device is and the key it proves it with.

Owns the id and key entries of the NVS namespace (agreed.py). The key stays in
this object; its text forms (repr, str, errors) never hold it.
"""

import binascii

from . import agreed
from .errors import IdentityError, number

_PROVISION = "provision the board again with 'outpost device new' and 'outpost image'"


class Identity:
    """device_id (str) and sign(message) -> HMAC-SHA256 with the primary key."""

    def __init__(self, device_id, key):
        self.device_id = device_id
        self._key = key

    def sign(self, message):
        from .sas import hmac_sha256

        return hmac_sha256(self._key, message)

    def __repr__(self):
        return "<Identity %s>" % self.device_id


def _blob(nvs, name, buffer):
    """The blob as bytes, None where there is none, IdentityError where it is too long."""
    try:
        n = nvs.get_blob(name, buffer)
    except OSError as e:
        code = number(e)
        if code == -0x1102:  # ESP_ERR_NVS_NOT_FOUND: also another type under that name
            return None
        if code == -0x110C:  # ESP_ERR_NVS_INVALID_LENGTH
            raise IdentityError("entry '%s' in NVS is too long: %s" % (name, _PROVISION), True)
        raise IdentityError("NVS cannot be read (error %d): %s" % (code, _PROVISION), True)
    return bytes(buffer[:n])


def check_device_id(raw):
    """The id as str; IdentityError where IoT Hub would not take it."""
    device_id = "".join(chr(b) for b in raw)
    for c in device_id:
        if not (c.isdigit() or "a" <= c.lower() <= "z" or c in agreed.DEVICE_ID_PUNCTUATION):
            raise IdentityError(
                "the device id in NVS holds a character that IoT Hub does not take: " + _PROVISION,
                True,
            )
    if not device_id:
        raise IdentityError("the device id in NVS is empty: " + _PROVISION, True)
    return device_id


def load():
    """Identity from NVS; IdentityError says what is missing."""
    import esp32

    try:
        nvs = esp32.NVS(agreed.NVS_NAMESPACE)
    except OSError as e:
        raise IdentityError("NVS cannot be opened (error %d): %s" % (number(e), _PROVISION), True)
    buffer = bytearray(agreed.DEVICE_ID_MAX)
    raw_id = _blob(nvs, agreed.NVS_DEVICE_ID, buffer)
    if raw_id is None:
        raise IdentityError("this board has no device id: " + _PROVISION, True)
    device_id = check_device_id(raw_id)
    text = _blob(nvs, agreed.NVS_KEY_PRIMARY, buffer)
    if text is None:
        raise IdentityError("device %s has no key in NVS: %s" % (device_id, _PROVISION), True)
    return Identity(device_id, decode_key(text, device_id))


def decode_key(text, device_id):
    """The key's bytes of its base64 text; IdentityError never repeats the text."""
    try:
        key = binascii.a2b_base64(text)
        # a2b_base64 skips what is not base64; encoding again shows whether it did.
        good = binascii.b2a_base64(key).strip() == text.strip()
    except ValueError:
        good = False
    if not good:
        raise IdentityError(
            "the key of device %s is not base64: %s" % (device_id, _PROVISION), True
        )
    if not agreed.KEY_MIN_BYTES <= len(key) <= agreed.KEY_MAX_BYTES:
        raise IdentityError(
            "the key of device %s has %d bytes, not %d to %d: %s"
            % (device_id, len(key), agreed.KEY_MIN_BYTES, agreed.KEY_MAX_BYTES, _PROVISION),
            True,
        )
    return key
