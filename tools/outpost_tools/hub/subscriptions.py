"""What devices that keep their session (clean session false) have subscribed to.

It owns the table `mqtt_session` in the registry's file. The commands that wait are no part of it:
they are kept for every device. Its calls reach the disk and may block.
"""

import json
import threading
from pathlib import Path

from outpost_tools.hub.commands import Transaction, open_table


class Subscriptions:
    def __init__(self, data: Path) -> None:
        self._lock = threading.Lock()
        self._db = open_table(data)

    def begin(self, device_id: str, clean: bool) -> dict[str, int] | None:
        """The kept session's filters with their QoS; None where there was none to go on with."""
        with self._lock:
            row = self._db.execute(
                "SELECT subscriptions FROM mqtt_session WHERE device_id = ?", (device_id,)
            ).fetchone()
            if clean and row is not None:
                with Transaction(self._db):
                    self._db.execute("DELETE FROM mqtt_session WHERE device_id = ?", (device_id,))
        if clean:
            return None
        if row is None:
            self.keep(device_id, {})
            return None
        kept: dict[str, int] = json.loads(row[0])
        return kept

    def keep(self, device_id: str, filters: dict[str, int]) -> None:
        with self._lock, Transaction(self._db):
            # Not for a device that was removed meanwhile.
            self._db.execute(
                "INSERT OR REPLACE INTO mqtt_session SELECT device_id, ?2 FROM device "
                "WHERE device_id = ?1",
                (device_id, json.dumps(filters)),
            )

    def close(self) -> None:
        with self._lock:
            self._db.close()
