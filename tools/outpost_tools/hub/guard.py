"""The registry's word on who may stay, and the folder's on whose it is.

It owns `hub.lock` in the data folder, and another connection to the registry than the one that this
process writes with: that one sees every change, whichever process makes it.
"""

import asyncio
import contextlib
import fcntl
import sqlite3
from pathlib import Path
from typing import IO

from outpost_tools.errors import OutpostError
from outpost_tools.hub import auth
from outpost_tools.hub.presence import Presence
from outpost_tools.registry import Registry

WATCH_EVERY_S = 0.25


class Guard:
    """Opened once for a hub; OutpostError where another hub has the folder."""

    def __init__(self, data: Path, presence: Presence) -> None:
        self._own = _sole_hub(data)
        self._presence = presence
        self._registry = Registry(data)

    async def watch(self) -> None:
        """Close within a moment what the registry, changed by whom ever, no longer admits."""
        before = self._registry.changes()
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            with contextlib.suppress(sqlite3.Error):
                now = self._registry.changes()
                if now != before:
                    self.check()
                    before = now

    def check(self) -> None:
        """Close, now, what the registry no longer admits."""
        sessions = self._presence.sessions
        shared, etags = self._registry.standing(sessions)
        for session in list(sessions.values()):
            standing = (shared, etags.get(session.device_id))
            if session.standing == standing:
                continue  # twins and commands are in the same file, and change all the time
            if reason := auth.still(session.admitted, self._registry):
                session.close(reason)
            session.standing = standing

    def refuses(self, admitted: auth.Admitted) -> str:
        """Why a device that was let in a moment ago may not stay; nothing where it may."""
        return auth.still(admitted, self._registry)

    def close(self) -> None:
        self._registry.close()
        self._own.close()


def _sole_hub(data: Path) -> IO[bytes]:
    """The folder is this hub's while the file is open: two would each send the same commands."""
    lock = (data / "hub.lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise OutpostError(
            f"Another hub runs on the folder {data}: stop it, or give this one a folder of its own."
        ) from None
    return lock
