"""Recovery: the newest bundle from the one server that is known by a certificate of its own.

    https://HOST:PORT/outpost/FLEET/trust.bin

Address and certificate (the pin) come from a bundle. Dates are not judged there, so that neither an
expired pin nor a clock that nobody set can lock this device out: what is fetched decides by its
signatures, and by nothing else. No certificate of the device is shown, no word said about it, no
command taken. With tlspolicy the connection is of its own kind, in C (tlspolicy_pin.c); a stock
board sets its clock to a moment at which the certificates are valid, and back again. The floor of
time is not touched. Owns /stage/recovery.bin, while it is fetched and judged. Loaded for that
alone.
"""

import os
import time

from micropython import const

from . import agreed, clock, fetch, formats, log, rtcmem, sas, tls, x509
from .errors import DeliveryError, TlsError
from .walk import Endpoint

_FILE = agreed.STAGE_PATH + "/recovery.bin"
_MOMENTS = const(10)  # that are tried on a stock board
_DAY_S = const(86400)


def run(endpoint, way, judge):
    """What judge(path) says of the file; it is gone afterwards.

    endpoint  (host, port, pin, fleet). TlsError, DeliveryError: why there is none
    """
    host, port, pin, fleet = endpoint
    way.ready()
    where = Endpoint(host, port, way.config.ecc_only)
    where.pin = pin
    path = "/outpost/%s/trust.bin" % sas.quote(fleet)
    log.say("trust", "asking %s port %d for a bundle" % (host, port))
    try:
        try:
            _dated(pin, lambda: _fetched(where, path))
        except OSError:
            _make_room()
            _dated(pin, lambda: _fetched(where, path))
        return judge(_FILE)
    except OSError as e:
        raise DeliveryError("there is no room for it in this device's flash (%s)" % e)
    finally:
        _remove(_FILE)


def _fetched(where, path):
    source = fetch.Fetch(where, path, lambda: (where.pin,), None, formats.TRUST_FILE_MAX_BYTES)
    buffer = memoryview(bytearray(agreed.DELIVERY_PIECE_BYTES))
    at = 0
    try:
        at = source.read(0, buffer)  # before anything is written: there may be no such server
        try:
            os.mkdir(agreed.STAGE_PATH)
        except OSError:
            pass  # it is there
        with open(_FILE, "wb") as f:
            f.write(buffer[:at])
            while at < source.size:
                n = source.read(at, buffer)
                f.write(buffer[:n])
                at += n
    finally:
        source.close()


def _make_room():
    """What was on its way to this device goes: it can come again once there is a hub."""
    try:
        for name in os.listdir(agreed.STAGE_PATH):
            if name.endswith(".bin"):
                _remove("%s/%s" % (agreed.STAGE_PATH, name))
    except OSError:
        pass


def _remove(path):
    try:
        os.remove(path)
    except OSError:
        pass


# A stock board judges dates whatever it is told: its clock is set for the attempt.


def _dated(pin, attempt):
    if tls.policy:
        return attempt()
    low, high = _validity(pin)
    began, moment = clock.now(), time.ticks_ms()
    vouched = rtcmem.get(rtcmem.CLOCK_VOUCHED)
    # Should the board be reset meanwhile, the clock is worth nothing.
    rtcmem.put(rtcmem.CLOCK_VOUCHED, None)
    try:
        return _in_between(low, high, began, attempt)
    finally:
        clock._set(began + time.ticks_diff(time.ticks_ms(), moment) // 1000)
        rtcmem.put(rtcmem.CLOCK_VOUCHED, vouched)


def _in_between(low, high, now, attempt):
    """Try now, then halve the pin's life by what is said of the server's certificate."""
    at = now if low <= now <= high else max(low, high - _DAY_S)
    for last in range(_MOMENTS):
        if at != now or last:
            clock._set(at)
        try:
            return attempt()
        except TlsError as e:
            words = str(e)
            if "has expired" in words:
                high = at
            elif "not valid yet" in words:
                low = at
            else:
                raise
            if last + 1 == _MOMENTS or high - low < 2:
                raise
        at = (low + high) // 2


def _validity(der):
    """(first, last) moment of a certificate in Unix seconds, as far as the board's clock goes."""
    try:
        first, last = x509.validity(der)
        return max(agreed.UNIX_2000, _unix(first)), _unix(last)
    except (ValueError, IndexError):
        raise DeliveryError("the pin of the recovery endpoint cannot be read", True)


def _unix(text):
    return clock.stamp(text) if text[:4] >= "2000" else agreed.UNIX_2000
