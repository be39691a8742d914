"""Sender: every message from send() until the hub has acknowledged it.

Durable ones live in the outbox (flash), the others in a short list in RAM. Keeps which packet id
carries what, a window of publishes in flight, and, over a broken connection, which were sent
before: those go again under the same packet id, flagged as duplicates. Durable ones go first, each
kind in the order it was taken. With `batch` set, small JSON messages that follow one another go
as one, an array; each is released by the PUBACK of the message that carried it and by nothing else.
A body is in RAM only while it is written to the connection.
"""

import time

from . import log
from .errors import OutboxFull, OutpostError
from .moments import Moments
from .outbox import BODY_MAX, JSON, OLDEST, PRIORITY_SHIFT, TIME_UNKNOWN, Outbox

WINDOW = 8  # QoS 1 publishes in flight
PRIORITY_DEFAULT = 1
SEALED = ("sealed", "dir")  # property of a message whose body is a JWE
_BATCH_MOST = 32  # messages in one


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
        self.batch = 0  # bytes of one message made of several, 0: none
        self.full = 0  # policy, as the outbox's
        self.seal = None  # bytes -> bytes, where bodies are encrypted from end to end
        self._most = None  # bytes that it can take, None: any
        self._singly = False  # there was no memory for several in one
        self.sent = 0
        self.acked = 0
        self._moments = Moments()
        self._configured = False
        self._ram = []  # (id, body, priority), oldest first
        self._next_ram = 1
        self._refused = self._dropped = 0  # of those in RAM
        self._flying = {}  # packet id -> (ids, places in the outbox or None)
        self._before = {}  # id -> (packet id, ids), of what an earlier connection carried
        self._cursor = 0

    def __len__(self):
        """How many messages wait."""
        return len(self._ram) + (0 if self.outbox is None else len(self.outbox))

    def configure(self, c):
        """Take over what the configuration says about messages."""
        self._configured = True
        self.limit = c.queue
        self.batch = c.batch
        self.full = c.full
        self.seal = self._most = None
        if c.protect:
            from . import protect

            self.seal, self._most = protect.load(), protect.MOST
        if self.outbox is not None:
            self.outbox.full = c.full

    def counts(self):
        """What became of the messages, for a report.

        waiting; sent, acked, refused, damaged: since the start; dropped: by the policy, from
        flash ever since the outbox was made (kept over power cuts), from RAM since the start.
        """
        box = self.outbox
        return {
            "waiting": len(self),
            "sent": self.sent,
            "acked": self.acked,
            "refused": self._refused + (box.refused if box is not None else 0),
            "dropped": self.dropped(),
            "damaged": box.damaged if box is not None else 0,
        }

    def dropped(self):
        return self._dropped + (self.outbox.dropped if self.outbox is not None else 0)

    # Taking

    def accept(self, body, durable, date=None, priority=PRIORITY_DEFAULT, is_json=False):
        """Take a message (bytes); returns its id: a number, or "r1" and so on for RAM.

        `date` is seconds since 2000 where the clock is vouched for, else None: the
        uptime is kept then. A durable one is in flash when this returns. `priority` is
        0 (may go first) to 3.
        """
        if isinstance(priority, bool) or priority not in (0, 1, 2, 3):
            raise ValueError("priority must be 0, 1, 2 or 3")
        if not self.keeps(durable):
            return self._accept_in_ram(body, priority)
        try:
            return self._append(body, date, priority, is_json)
        except OutboxFull:
            if not self._learn_policy():
                raise
            return self._append(body, date, priority, is_json)

    def _append(self, body, date, priority, is_json):
        flags = priority << PRIORITY_SHIFT | (JSON if is_json else 0)
        if date is None:
            boot = self._moments.boot()
            seconds = log.uptime_ms() // 1000
            return self.outbox.append(body, seconds, flags | TIME_UNKNOWN, boot)
        self._moments.learn(date)
        return self.outbox.append(body, date, flags)

    def _learn_policy(self):
        """Full before the first connection: whether the configuration knows a way out."""
        if self._configured:
            return False
        self._configured = True
        from . import config  # at most once, and not kept: see walk.py

        try:
            self.configure(config.load())
        except OutpostError:
            return False
        if self.full:
            self.outbox.refused -= 1  # it is tried again
        return self.full != 0

    def _accept_in_ram(self, body, priority):
        if len(self._ram) >= self.limit and not self._drop_from_ram(priority):
            self._refused += 1
            raise OutboxFull(
                "%d messages wait for the hub already: this one was not taken" % len(self._ram)
            )
        name = "r%d" % self._next_ram
        self._next_ram += 1
        self._ram.append((name, body, priority))
        return name

    def _drop_from_ram(self, priority):
        """By the policy: the oldest, or the oldest of the least important. False: none."""
        if not self.full:
            return False
        flying = self._names_in_flight()
        worst = None
        for entry in self._ram:
            if entry[0] in flying:
                continue
            if worst is None or (self.full != OLDEST and entry[2] < worst[2]):
                worst = entry
        if worst is None or (self.full != OLDEST and worst[2] > priority):
            return False
        self._ram.remove(worst)
        self._before.pop(worst[0], None)
        self._dropped += 1
        return True

    def keeps(self, durable):
        """Whether such a message goes into flash."""
        return durable and self.outbox is not None

    def in_ram(self):
        return len(self._ram)

    def check_size(self, size, durable):
        """Raise ValueError where a message of that size could never be taken."""
        if self.keeps(durable) and size > BODY_MAX:
            raise ValueError(
                "a durable message of %d bytes is too long: %d at most, or durable=False"
                % (size, BODY_MAX)
            )
        if self._most and size > self._most:
            raise ValueError(
                "a message of %d bytes is too long to be sealed: %d at most" % (size, self._most)
            )

    # Sending

    def attach(self, session):
        """A new connection: whatever is not acknowledged goes again, oldest first."""
        for pid, (names, _) in self._flying.items():
            self._before[names[0]] = (pid, names)
        self._flying = {}
        self._cursor = 0
        # These ids are taken: a new message must not get one of them.
        for pid, _ in self._before.values():
            session.inflight[pid] = time.ticks_ms()

    def pump(self, session, topic, date=None):
        """Publish until the window is full.

        topic(id, made, more) names each message's topic: `made` in seconds since 2000 or None,
        `more` a list of (name, text). `date` is now in seconds since 2000, None: not known.
        """
        if date is not None:
            self._moments.learn(date)
        while len(self._flying) < WINDOW:
            entry = self._next(date)
            if entry is None:
                break
            names, places, body, made, more = entry
            pid = self._pid_from_before(names, session)
            again = pid is not None
            title = _title(names)
            counts = self.counts()
            more += [(n, str(counts[n])) for n in ("dropped", "refused", "damaged") if counts[n]]
            pid = session.publish(topic(title, made, more), body, pid=pid)
            self._flying[pid] = (names, places)
            if not again:
                self.sent += len(names)
            log.say(
                "send", "sent id=%s bytes=%d%s" % (title, len(body), " again=1" if again else "")
            )
        # No more than a window was in flight and it went first: what is left was dropped
        # meanwhile, and nobody waits for its acknowledgement.
        for pid, _ in self._before.values():
            session.inflight.pop(pid, None)
        self._before.clear()

    def _next(self, date):
        """(ids, places, body as it is sent, made, properties) of the next message, or None."""
        try:
            while True:
                found = (
                    self._next_in_ram(True) or self._next_in_flash(date) or self._next_in_ram(False)
                )
                if found is None or not self.seal:
                    return found
                names, places, body, made, more = found
                body = self._sealed(names, places, body)
                if body is not None:
                    return names, places, body, made, more + [SEALED]
        except MemoryError:
            self._singly = True  # several in one may be what is too much
            raise

    def _sealed(self, names, places, body):
        """The body encrypted. None: it waited in RAM and cannot be; it is dropped, or else nothing
        behind it would ever be sent."""
        if places:
            return self.seal(body)
        try:
            if len(body) <= self._most:
                return self.seal(body)
        except MemoryError:
            pass
        log.say("send", "id=%s is too long to be sealed: dropped" % names[0])
        self._ram = [entry for entry in self._ram if entry[0] != names[0]]
        self._dropped += 1
        return None

    def _pid_from_before(self, names, session):
        """The packet id that carried exactly these, or None."""
        pid, before = self._before.pop(names[0], (None, None))
        if pid is not None and before != names:
            session.inflight.pop(pid, None)
            return None
        return pid

    def _next_in_flash(self, date):
        """(ids, places, body, made, properties) of the next from the outbox, or None."""
        if self.outbox is None:
            return None
        found = self.outbox.read(self._cursor)
        if not found:
            return None
        sequence, seconds, flags, body, place, boot, number = found
        self._cursor = sequence
        more = []
        made = seconds
        if flags & TIME_UNKNOWN:
            made = self._made(sequence, seconds, boot, date)
            if made is None:
                more = [("boot", str(boot)), ("uptime", str(seconds))]
        elif flags & JSON and self.batch and not self._singly:
            return self._batch(found)
        return (number,), (place,), body, made, more

    def _made(self, sequence, uptime, boot, date):
        if sequence < self.outbox.first_of_this_start:
            return self._moments.date_of(boot, uptime)
        if date is None:
            return None
        # Made before the clock was set, in this life: the uptime tells when.
        return date - (log.uptime_ms() // 1000 - uptime)

    def _batch(self, found):
        """One message of this record and of those right behind it that fit."""
        _, made, _, body, place, _, number = found
        before = self._before.get(number, (None, ()))[1]
        names, places, times = [number], [place], [made]
        most = min(self.batch, self._most or self.batch)
        whole = bytearray(b"[")
        whole += body
        while len(names) < _BATCH_MOST:
            following = self.outbox.next_size()
            if following is None or (before and len(names) == len(before)):
                break
            if (self.seal or not before) and len(whole) + following + 2 > most:
                break
            found = self.outbox.read(self._cursor)
            if not found:
                break
            self._cursor = found[0]
            names.append(found[6])
            places.append(found[4])
            whole += b","
            whole += found[3]
            times.append(found[1])
        if len(names) == 1:
            return (number,), (place,), body, made, []
        more = [
            ("ids", ".".join([str(n) for n in names])),
            ("times", ".".join([str(t - made) for t in times])),
        ]
        whole += b"]"
        return tuple(names), tuple(places), whole, made, more

    def _names_in_flight(self):
        return [name for names, _ in self._flying.values() for name in names]

    def _next_in_ram(self, sent_before):
        if not self._ram or (sent_before and not self._before):
            return None
        flying = self._names_in_flight()
        for name, body, _ in self._ram:
            if name not in flying and (name in self._before or not sent_before):
                return (name,), None, body, None, []
        return None

    def acknowledged(self, pid):
        """PUBACK: the messages are the hub's now. False where it is for none of ours."""
        names, places = self._flying.pop(pid, (None, None))
        if names is None:
            return False
        if places:
            for place in places:
                self.outbox.release(place)
        else:
            self._ram = [entry for entry in self._ram if entry[0] != names[0]]
        self.acked += len(names)
        log.say("send", "acked id=%s" % _title(names))
        return True


def _title(names):
    return str(names[0]) if len(names) == 1 else "%s-%s" % (names[0], names[-1])
