"""Emptied: a folder goes, and all in it. Loaded while a slot is made free; owns no flash itself,
and removes nothing outside of the folder that its caller names.
"""

import os

from micropython import const

from .errors import UpdateError, number

_FOLDER = const(0x4000)


def empty(top):
    """Remove a folder and all in it, one entry at a time: no list of it is held."""
    while True:
        path = top
        while True:
            entry = _first(path)
            if entry is None:
                break
            path = path + "/" + entry[0]
            if entry[1] != _FOLDER:
                break
        try:
            if entry is None:
                os.rmdir(path)
            else:
                os.remove(path)
        except OSError as e:
            if path == top and number(e) in (2, 44):  # there is none
                return
            raise UpdateError("the slot %s cannot be emptied (%s)" % (top, e), True)
        if path == top:
            return


def _first(path):
    """(name, kind) of the first entry of a folder, or None."""
    try:
        for entry in os.ilistdir(path):
            return entry[0], entry[1]
    except OSError:
        pass
    return None
