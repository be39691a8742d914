"""App facts: what the device reports of its software. Public facts alone. Loaded to report."""

import binascii
import json

from . import agreed, slots
from .update import State


def facts():
    """version, slot, firmware, change: docs/updates.md."""
    state = State()
    slot = state.slot()
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
            "kind": agreed.FIRMWARE_KIND if outcome > 16 else agreed.APP_KIND,
            "version": state.get(slots.NVS_APP_LAST),
            "outcome": slots.APP_OUTCOMES[outcome % 16],
            "trial": state.get(slots.NVS_APP_COUNT),
        }
    return found


def report(twin):
    """Report what is news; the mark to keep once the hub has it, or None."""
    found = facts()
    mark = binascii.crc32(json.dumps(found).encode()) & 0x7FFFFFFF
    if State().get(slots.NVS_APP_REPORTED) == mark:
        return None
    twin.report({"outpost": {"software": found}})
    return mark


def told(mark):
    """The hub has it."""
    State().set(slots.NVS_APP_REPORTED, mark)
