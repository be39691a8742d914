"""Key store: the device's identity records in NVS, two slots, so that none is ever half there.

Owns the NVS entries ida, idb, idcur, idtry, idlives and idonb (agreed.py): reads them here, and
writes them in keychange.py. The older form sas1/sas2 stays the lowest. Holds no private key of a
tlspolicy slot: those are in C. Never prints anything.
"""

import binascii
import struct

from . import agreed
from .errors import IdentityError, number
from .parts import do

PROVISION = "provision the board again with 'outpost device new' and 'outpost image'"

_NOT_FOUND = -0x1102  # ESP_ERR_NVS_NOT_FOUND: also another type under that name
_TOO_LONG = -0x110C  # ESP_ERR_NVS_INVALID_LENGTH: longer than the buffer
_SIZES = (256, 1280, 3584)  # records: symmetric, one certificate, the largest chain


class Record:
    """kind, seq, and by kind: primary, secondary (bytes) or slot, chain, private (bytes)."""

    def __init__(self, kind, seq=0, primary=b"", secondary=b"", slot=255, chain=b"", private=b""):
        self.kind = kind
        self.seq = seq
        self.primary = primary
        self.secondary = secondary
        self.slot = slot
        self.chain = chain
        self.private = private

    def __repr__(self):
        return "<Record kind=%d seq=%d>" % (self.kind, self.seq)


def pack(record):
    """The record's bytes; IdentityError where a field is not what it may be."""
    head = struct.pack("<4sIB", agreed.RECORD_MAGIC, record.seq & 0xFFFFFFFF, record.kind)
    if record.kind == agreed.RECORD_SYMMETRIC:
        _check_length(record.primary)
        if record.secondary:
            _check_length(record.secondary)
        body = bytes((len(record.primary),)) + record.primary
        body += bytes((len(record.secondary),)) + record.secondary
    elif record.kind in (agreed.RECORD_X509, agreed.RECORD_SIGNER):
        if not 0 < len(record.chain) <= agreed.CHAIN_MAX_BYTES:
            raise IdentityError(
                "the certificate chain has %d bytes, not 1 to %d: leave the root out"
                % (len(record.chain), agreed.CHAIN_MAX_BYTES),
                True,
            )
        if len(record.private) > agreed.PRIVATE_KEY_MAX_BYTES:
            raise IdentityError("the private key is no EC P-256 key: it is too long", True)
        body = struct.pack("<BH", record.slot, len(record.chain)) + record.chain
        body += struct.pack("<H", len(record.private)) + record.private
    else:
        raise IdentityError("there is no kind %d of identity" % record.kind, True)
    whole = head + body
    return whole + struct.pack("<I", binascii.crc32(whole))


def _check_length(key):
    if not agreed.KEY_MIN_BYTES <= len(key) <= agreed.KEY_MAX_BYTES:
        raise IdentityError(
            "a key has %d bytes, not %d to %d"
            % (len(key), agreed.KEY_MIN_BYTES, agreed.KEY_MAX_BYTES),
            True,
        )


def unpack(data):
    """The Record in `data`, or None where it is not whole: cut off, damaged, of another make."""
    n = len(data)
    if n < 14 or data[:4] != agreed.RECORD_MAGIC:
        return None
    if struct.unpack_from("<I", data, n - 4)[0] != binascii.crc32(memoryview(data)[: n - 4]):
        return None
    _, seq, kind = struct.unpack_from("<4sIB", data)
    try:
        if kind == agreed.RECORD_SYMMETRIC:
            primary, at = _field(data, 9, 1)
            secondary, at = _field(data, at, 1)
            record = Record(kind, seq, primary, secondary)
        else:
            chain, at = _field(data, 10, 2)
            private, at = _field(data, at, 2)
            record = Record(kind, seq, slot=data[9], chain=chain, private=private)
        # What could not be written is not believed either.
        return record if at == n - 4 and len(pack(record)) == n else None
    except (IndexError, ValueError, IdentityError):
        return None


def _field(data, at, width):
    """(bytes, place behind them) of a field with its length before it."""
    length = data[at] | (data[at + 1] << 8 if width == 2 else 0)
    at += width
    if at + length > len(data) - 4:
        raise ValueError
    return bytes(data[at : at + length]), at + length


# NVS


def open_nvs():
    import esp32

    try:
        return esp32.NVS(agreed.NVS_NAMESPACE)
    except OSError as e:
        raise IdentityError("NVS cannot be opened (error %d): %s" % (number(e), PROVISION), True)


def blob(nvs, name, sizes):
    """The blob as bytes, None where there is none; IdentityError where it is too long.

    sizes  of the buffers to try, smallest first: the fit is found with the least memory
    """
    for size in sizes:
        buffer = bytearray(size)
        try:
            n = nvs.get_blob(name, buffer)
        except OSError as e:
            code = number(e)
            if code == _NOT_FOUND:
                return None
            if code == _TOO_LONG:
                continue
            raise IdentityError("NVS cannot be read (error %d): %s" % (code, PROVISION), True)
        return bytes(memoryview(buffer)[:n])
    raise IdentityError("entry '%s' in NVS is too long: %s" % (name, PROVISION), True)


def _index(nvs, name):
    try:
        value = nvs.get_i32(name)
    except OSError:
        return None
    return value if value in (0, 1) else None


def write(change):
    """Run one write; IdentityError in a sentence where NVS does not take it."""
    try:
        change()
    except OSError as e:
        code = number(e)
        if code in (-0x1105, -0x110D):  # NOT_ENOUGH_SPACE, NO_FREE_PAGES
            raise IdentityError("NVS is full: nothing was changed", True)
        raise IdentityError("NVS took no key (error %d): nothing was changed" % code, True)


def _read(nvs, name):
    try:
        data = blob(nvs, name, _SIZES)
    except IdentityError:
        return None
    return unpack(data) if data else None


class Store:
    """What NVS holds now. current, trial and onboard are read when asked for."""

    def __init__(self, nvs=None):
        self.nvs = nvs or open_nvs()
        self._at = _index(self.nvs, agreed.NVS_CURRENT)
        self._tried = _index(self.nvs, agreed.NVS_TRIAL)
        if self._tried is not None and self._tried == self._at:
            # Power went after the commit and before the tidying: go on with that.
            self._tried = None
            self.tidy()

    def current(self):
        """The Record in use, or None: sas1/sas2 may be there then."""
        return None if self._at is None else _read(self.nvs, agreed.NVS_RECORDS[self._at])

    def trial(self):
        """The Record on trial, or None."""
        return None if self._tried is None else _read(self.nvs, agreed.NVS_RECORDS[self._tried])

    def onboard(self):
        """The Record that the provisioning service is asked with, where it has one of its own."""
        return _read(self.nvs, agreed.NVS_ONBOARD)

    def __getattr__(self, name):
        """What writes is in keychange.py, which is loaded for as long as it takes."""
        return lambda *args: do("keychange", name, self, *args)


def candidate(kind, **fields):
    """Store().candidate() of a Record(kind, ...)."""
    Store().candidate(Record(kind, **fields))


def commit():
    Store().commit()


def drop():
    Store().drop()
