"""Sender: every message from send() until the hub has acknowledged it.

Durable ones live in the outbox (flash), the others in a short list in RAM. Keeps which packet id
carries what, a window of publishes in flight, and, over a broken connection, which were sent
before: those go again under the same packet id, flagged as duplicates. Durable ones go first, each
kind in the order it was taken. A body is in RAM only while it is written to the connection.
"""

import time

from . import log
from .errors import OutboxFull
from .outbox import BODY_MAX, TIME_UNKNOWN, Outbox

WINDOW = 8  # QoS 1 publishes in flight


def open_outbox(label):
    """The Outbox on the partition of that label, or None where the table has none."""
    import esp32

    found = esp32.Partition.find(esp32.Partition.TYPE_DATA, label=label)
    return Outbox(found[0]) if found else None


class Sender:
    """sent and acked count messages; limit is how many may wait in RAM."""

    def __init__(self, outbox, limit=32):
        self.outbox = outbox
        self.limit = limit
        self.sent = 0
        self.acked = 0
        self._ram = []  # [id, body], oldest first
        self._next_ram = 1
        self._flying = {}  # packet id -> (id, place in the outbox or None)
        self._before = {}  # id -> packet id, of what an earlier connection carried
        self._cursor = 0

    def __len__(self):
        """How many messages wait."""
        return len(self._ram) + (0 if self.outbox is None else len(self.outbox))

    def accept(self, body, durable, date=None):
        """Take a message (bytes); returns its id: a number, or "r1" and so on for RAM.

        `date` is seconds since 2000 where the clock is vouched for, else None: the
        uptime is kept then. A durable one is in flash when this returns.
        """
        if self.keeps(durable):
            if date is None:
                return self.outbox.append(body, log.uptime_ms() // 1000, TIME_UNKNOWN)
            return self.outbox.append(body, date)
        if len(self._ram) >= self.limit:
            raise OutboxFull(
                "%d messages wait for the hub already: this one was not taken" % len(self._ram)
            )
        name = "r%d" % self._next_ram
        self._next_ram += 1
        self._ram.append((name, body))
        return name

    def keeps(self, durable):
        """Whether such a message goes into flash."""
        return durable and self.outbox is not None

    def in_ram(self):
        return len(self._ram)

    def of_this_start(self, name):
        """Whether a durable message was taken since the board started."""
        return name >= self.outbox.first_of_this_start

    def check_size(self, size, durable):
        """Raise ValueError where a message of that size could never be taken."""
        if self.keeps(durable) and size > BODY_MAX:
            raise ValueError(
                "a durable message of %d bytes is too long: %d at most, or durable=False"
                % (size, BODY_MAX)
            )

    def attach(self, session):
        """A new connection: whatever is not acknowledged goes again, oldest first."""
        for pid, (name, _) in self._flying.items():
            self._before[name] = pid
        self._flying = {}
        self._cursor = 0
        # These ids are taken: a new message must not get one of them.
        for pid in self._before.values():
            session.inflight[pid] = time.ticks_ms()

    def pump(self, session, topic):
        """Publish until the window is full. topic(id, time, flags) names each message's topic."""
        while len(self._flying) < WINDOW:
            found = None if self.outbox is None else self.outbox.read(self._cursor)
            if found:
                name, date, flags, body, place = found
                self._cursor = name
            else:
                entry = self._next_in_ram()
                if entry is None:
                    return
                name, body = entry
                date, flags, place = None, 0, None
            pid = self._before.pop(name, None)
            again = pid is not None
            pid = session.publish(topic(name, date, flags), body, pid=pid)
            self._flying[pid] = (name, place)
            if not again:
                self.sent += 1
            log.say(
                "send", "sent id=%s bytes=%d%s" % (name, len(body), " again=1" if again else "")
            )

    def _next_in_ram(self):
        flying = [name for name, _ in self._flying.values()]
        for entry in self._ram:
            if entry[0] not in flying:
                return entry
        return None

    def acknowledged(self, pid):
        """PUBACK: the message is the hub's now. False where it is for none of ours."""
        name, place = self._flying.pop(pid, (None, None))
        if name is None:
            return False
        if place:
            self.outbox.release(place)
        else:
            self._ram = [entry for entry in self._ram if entry[0] != name]
        self.acked += 1
        log.say("send", "acked id=%s" % name)
        return True
