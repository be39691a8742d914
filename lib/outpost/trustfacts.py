"""Trust facts: what the device reports of its trust. Public facts alone. Loaded to report."""

import binascii
import hashlib
import json

from . import clock, formats, install, trust, trusting, x509


def facts(way, anchor):
    """version, roots, expires_days, anchor, change: docs/trust.md."""
    store = trusting.nvs()
    h = install.usable(trust.in_use())
    ends, marks = None, []
    for der in trust.roots(trust.in_use()):
        marks.append(_mark(hashlib.sha256(der).digest()))
        last = x509.last_moment(der)
        if last and (ends is None or last < ends):
            ends = last
    version = trusting.entry(store, formats.NVS_TRUST_CHANGE)
    outcome = trusting.entry(store, formats.NVS_TRUST_OUTCOME)
    return {
        "version": h.version if h else None,
        "roots": marks,
        "expires_days": _days(ends, way),
        "anchor": _mark(anchor) if anchor else None,
        "change": {"version": version, "outcome": formats.TRUST_OUTCOMES[outcome]}
        if outcome
        else None,
    }


def _mark(digest):
    return binascii.hexlify(digest[:8]).decode()


def _days(ends, way):
    """Whole weeks while it is far away, so that it is no news every day."""
    if ends is None or way.date() is None:
        return None
    days = (clock.stamp(ends) - clock.now()) // 86400
    return days if days < 60 else days // 7 * 7


def report(way, anchor, twin):
    """Report what is news; the mark to keep once the hub has it, or None."""
    found = facts(way, anchor)
    mark = binascii.crc32(json.dumps(found).encode()) & 0x7FFFFFFF
    if trusting.entry(trusting.nvs(), formats.NVS_TRUST_REPORTED, None) == mark:
        return None
    twin().report({"outpost": {"trust": found}})
    return mark


def told(mark):
    """The hub has it."""
    trusting.write(trusting.nvs(), formats.NVS_TRUST_REPORTED, mark)
