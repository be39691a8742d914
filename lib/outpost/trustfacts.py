"""Trust facts: what the device reports of its trust. Public facts alone. Loaded to report."""

import binascii
import hashlib
import json

from . import agreed, clock, formats, trust, x509


def _entry(name):
    import esp32

    try:
        return esp32.NVS(agreed.NVS_NAMESPACE).get_i32(name)
    except OSError:
        return None


def facts(way, anchor):
    """version, roots, expires_days, change, and the anchor where it is known: docs/trust.md."""
    path = trust.in_use()
    ends, marks = None, []
    for der in trust.roots(path):
        marks.append(_mark(hashlib.sha256(der).digest()))
        last = x509.last_moment(der)
        if last and (ends is None or last < ends):
            ends = last
    outcome = _entry(formats.NVS_TRUST_OUTCOME)
    change = None
    # A power cut may leave "on trial" of a delivery that was not finished.
    if outcome and (outcome != 1 or trust.trial):
        change = {
            "version": _entry(formats.NVS_TRUST_CHANGE),
            "outcome": formats.TRUST_OUTCOMES[outcome],
        }
    found = {
        "version": trust.version(path),
        "roots": marks,
        "expires_days": _days(ends, way),
        "change": change,
    }
    if anchor:
        found["anchor"] = _mark(anchor)
    return found


def _mark(digest):
    return str(binascii.hexlify(digest[:8]), "utf-8")


def _days(ends, way):
    """Whole weeks while it is far away, so that it is no news every day."""
    if ends is None or way.date() is None:
        return None
    days = (clock.stamp(ends) - clock.now()) // 86400
    return days if days < 60 else days // 7 * 7


def report(way, anchor, session):
    """Publish what is news, in one patch; the mark to keep once the hub has it, or False.

    Not by way of twin.py, which an application that has no use for it does without.
    """
    kept = _entry(formats.NVS_TRUST_REPORTED)
    rest = binascii.crc32(json.dumps(facts(way, None)).encode()) & 0x7FFF0000
    # A session that was taken up again proves no root: the anchor that the hub has stays.
    mark = rest | (int.from_bytes(anchor[:2], "big") if anchor else (kept or 0) & 0xFFFF)
    if kept == mark:
        return False
    body = json.dumps({"outpost": {"trust": facts(way, anchor)}}).encode()
    names = way.profile
    session.publish(names.twin_report(way.who.device_id, "trust"), body, qos=names.REPORT_QOS)
    return mark


def told(mark):
    """The hub has it."""
    import esp32

    try:
        nvs = esp32.NVS(agreed.NVS_NAMESPACE)
        nvs.set_i32(formats.NVS_TRUST_REPORTED, mark)
        nvs.commit()
    except OSError:
        pass  # it is reported once more then
