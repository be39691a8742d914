"""App facts: what the device reports of its software. Public facts alone. Loaded to report."""

import binascii
import json

from . import log, slots
from .appstate import State


def facts():
    """version, slot, firmware, change: docs/updates.md."""
    state = State()
    slot = state.running()
    outcome = state.get(slots.NVS_APP_OUTCOME)
    found = {
        "version": state.version(slot),
        "slot": "image" if slot < 0 else slots.APP_SLOTS[slot][-1],
    }
    firmware = state.get(slots.NVS_FIRMWARE_TOP)
    if firmware >= 0:
        found["firmware"] = firmware
    if outcome > 0 and outcome % 16 < len(slots.APP_OUTCOMES):
        found["change"] = {
            "kind": slots.FIRMWARE_KIND if outcome > 16 else slots.APP_KIND,
            "version": state.get(slots.NVS_APP_LAST),
            "outcome": slots.APP_OUTCOMES[outcome % 16],
            "trial": state.get(slots.NVS_APP_COUNT),
        }
    return found


def report(way, session):
    """Publish what is news, in one patch; the mark to keep once the hub has it, or None.

    Not by way of twin.py, which an application that has no use for it does without.
    """
    body = json.dumps({"outpost": {"software": facts()}}).encode()
    mark = binascii.crc32(body) & 0x7FFFFFFF
    if State().get(slots.NVS_APP_REPORTED) == mark:
        return None
    names = way.profile
    session.publish(names.twin_report(way.who.device_id, "software"), body, qos=names.REPORT_QOS)
    log.say("update", "software is reported bytes=%d" % len(body))
    return mark


def told(mark):
    """The hub has it."""
    State().set(slots.NVS_APP_REPORTED, mark)
