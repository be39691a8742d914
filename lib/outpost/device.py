"""Device: the walk from flash to an acknowledged message, and the loop.

    config -> identity -> link -> clock -> trust -> tls -> mqtt -> hub

Each failure is one sentence on the console, then a wait, then the walk again from
its start: what a person mends meanwhile is picked up. Holds the messages that
wait for their PUBACK, in RAM; owns no flash.
"""

import binascii
import gc
import json
import sys
import time

from . import clock, config, identity, iothub, log, tls, trust
from .backoff import Backoff
from .errors import MqttError, OutboxFull, OutpostError
from .link import Link
from .mqtt import Session

_WINDOW = 8  # QoS 1 publishes in flight
_READS_PER_STEP = 16  # so that a flood from the server cannot starve the timers
_ACK_TIMEOUT_MS = 30000
_STEADY_MS = 60000  # a connection that lasted this long was a good one
_IDLE_MS = 1000


class _Timer:
    def __init__(self, period_ms, handler):
        self.period_ms = period_ms
        self.handler = handler
        self.due = log.uptime_ms()


class Device:
    """A device that calls home.

    device = Device()

    @device.every(seconds=10)
    def measure():
        device.send({"temperature": 21.5})

    device.run()
    """

    def __init__(self):
        self.id = None
        self.sent = 0
        self.acked = 0
        self.connection = None  # facts of the last handshake (tls.Connection)
        self.online = False
        self._timers = []
        self._queue = []  # [id, body, packet id or None], oldest first
        self._queue_limit = 32
        self._next_id = 1
        self._config = None
        self._clock = None
        self._link = None
        self._ladder = None
        self._session = None
        self._stream = None
        self._topic = None
        self._renew_at = 0
        self._online_since = 0
        self._backoff = Backoff(1, 300)
        self._retry_at = 0

    # What the application says

    def every(self, seconds):
        """Decorator: call the function every `seconds` (a number above 0), first at once."""
        if seconds <= 0:
            raise ValueError("every() wants a number of seconds above 0")

        def register(handler):
            self._timers.append(_Timer(int(seconds * 1000), handler))
            return handler

        return register

    def send(self, body):
        """Queue one telemetry message: a value for json.dumps, or bytes as they are.

        Returns its number. It stays queued, in RAM, until the hub has acknowledged
        it (QoS 1: it may arrive twice, never not at all while the device runs).
        OutboxFull when config's `queue` messages wait already; ValueError when it
        is longer than the hub takes.
        """
        if not isinstance(body, (bytes, bytearray)):
            body = json.dumps(body).encode()
        if len(body) > 65536:
            raise ValueError("a message of %d bytes is too long: 65,536 at most" % len(body))
        if len(self._queue) >= self._queue_limit:
            raise OutboxFull(
                "%d messages wait for the hub already: this one was not taken" % len(self._queue)
            )
        number = self._next_id
        self._next_id += 1
        self._queue.append([number, body, None])
        return number

    def run(self):
        """step() for ever."""
        log.say("boot", "Outpost device starts %s" % _where())
        while True:
            wait_ms = self.step()
            if self._stream:
                self._stream.wait(wait_ms)
            else:
                time.sleep_ms(wait_ms)

    def step(self):
        """One bounded slice of work. Returns how long the caller may sleep, in ms.

        While connecting it may take as long as the deadlines of link, clock and TLS.
        """
        wait = self._run_timers()
        try:
            if self._session:
                wait = min(wait, self._serve())
            else:
                left = self._retry_at - log.uptime_ms()
                if left > 0:
                    wait = min(wait, left)
                else:
                    self._walk()
                    wait = 0
        except OutpostError as e:
            wait = min(wait, self._failed(e))
        except MemoryError:
            gc.collect()
            wait = min(
                wait, self._failed(OutpostError("out of memory: %d bytes free" % gc.mem_free()))
            )
        except OSError as e:
            wait = min(wait, self._failed(MqttError("the network failed (%s)" % e)))
        return max(0, wait)

    # The walk

    def _walk(self):
        c = self._config = config.load()
        log.say(
            "config", "hub=%s port=%d record_size=%s" % (c.hub, c.port, c.record_size or "none")
        )
        self._queue_limit = c.queue
        self._backoff = self._backoff_for(c)
        who = identity.load()
        self.id = who.device_id
        log.say("identity", "device=%s kind=symmetric-key" % who.device_id)
        if not self._link or not self._link.up():
            self._link = Link(c.wifi_ssid, c.wifi_key)
            log.say("link", "connected ssid=%s address=%s" % (c.wifi_ssid, self._link.connect()))
        if not self._clock:
            self._clock = clock.Clock(c.sntp)
        now = self._clock.settle()
        log.say("clock", "time=%s source=%s" % (clock.text(now), self._clock.source))
        if not self._ladder:
            self._ladder = tls.Ladder(c.hub, c.port, c.record_size)
        session = Session(
            who.device_id,
            iothub.user_name(c.hub, who.device_id),
            iothub.password(who, c.hub, now),
            c.keepalive_s,
        )
        _, self.connection = tls.connect(
            c, trust.roots, lambda s: session.connect(s, False), self._ladder
        )
        session.pswd = None
        session.acknowledged = self._acknowledged
        self._session = session
        self._stream = session.sock
        self._topic = iothub.events_topic(who.device_id)
        self._renew_at = now + iothub.TOKEN_TTL_S - iothub.RENEW_BEFORE_S
        for message in self._queue:
            # Sent on an earlier connection: again, under the same packet id, as a duplicate.
            if message[2]:
                session.inflight[message[2]] = time.ticks_ms()
        for message in self._queue:
            if message[2]:
                session.publish(self._topic, message[1], pid=message[2])
        self.online = True
        self._online_since = log.uptime_ms()
        log.say("tls", self._tls_line())
        log.say("hub", "connected device=%s" % who.device_id)
        facts = self.connection.facts
        if facts and facts["not_before"]:
            # The chain was verified and the hub accepted us: its certificate cannot
            # have been issued in the future, so time is at least that.
            self._clock.raise_floor(_unix(facts["not_before"]))

    def _backoff_for(self, c):
        if self._backoff.bounds != c.backoff_s:
            return Backoff(*c.backoff_s)
        return self._backoff

    def _tls_line(self):
        c = self.connection
        f = c.facts
        line = "connected version=%s cipher=%s" % (c.version, c.suite)
        if not f:
            return line + (
                " ms=%d (stock MicroPython: record size, root and memory are not known here, and "
                "the TLS floor holds for this library alone)" % c.ms
            )
        root = binascii.hexlify(f["root"]).decode() if f["root"] else "none"
        return line + (
            " mfl_asked=%d mfl_granted=%d root=%s rx=%d tx=%d ms=%d"
            " tls_heap_peak=%d tls_heap_steady=%d"
            % (c.asked, c.granted, root, f["rx"], f["tx"], f["ms"], c.heap_peak, c.heap_steady)
        )

    def _failed(self, err):
        """Close, say it, and set when to try again. Returns ms until then."""
        # Not reset by connecting alone: a server that accepts and hangs up at once
        # must not be called in a tight loop.
        if self.online and log.uptime_ms() - self._online_since > _STEADY_MS:
            self._backoff.reset()
        self._close()
        wait = self._backoff.next_ms(err.person)
        self._retry_at = log.uptime_ms() + wait
        log.say("error", "%s: %s; next attempt in %.1f s" % (err.stage, err, wait / 1000))
        return wait

    def _close(self):
        self.online = False
        session, self._session, self._stream = self._session, None, None
        if session:
            session.disconnect()
        gc.collect()

    # The connected slice

    def _serve(self):
        session = self._session
        if clock.now() >= self._renew_at:
            log.say("hub", "token ends soon: connecting again with a new one")
            self._close()
            self._retry_at = 0
            return 0
        for _ in range(_READS_PER_STEP):
            if session.check_msg() is None:
                break
        for message in self._queue:
            if len(session.inflight) >= _WINDOW:
                break
            if message[2] is None:
                message[2] = session.publish(self._topic, message[1])
                self.sent += 1
                log.say("send", "sent id=%d bytes=%d" % (message[0], len(message[1])))
        return session.service(_ACK_TIMEOUT_MS)

    def _acknowledged(self, pid):
        for i, message in enumerate(self._queue):
            if message[2] == pid:
                del self._queue[i]
                self.acked += 1
                self._backoff.reset()
                log.say("send", "acked id=%d" % message[0])
                return

    def _run_timers(self):
        """Call what is due. Returns ms until the next is, at most a second."""
        wait = _IDLE_MS
        for timer in self._timers:
            now = log.uptime_ms()
            if now >= timer.due:
                # Missed periods are not made up for: one call, then on the grid again.
                timer.due += ((now - timer.due) // timer.period_ms + 1) * timer.period_ms
                try:
                    timer.handler()
                except OutpostError as e:
                    log.error(e)
                except Exception as e:
                    # The application's own fault: its traceback is for its author, and
                    # the device goes on.
                    log.say("app", "%s raised %s" % (_name(timer.handler), type(e).__name__))
                    sys.print_exception(e)
            wait = min(wait, timer.due - now)
        return wait


def _name(handler):
    return getattr(handler, "__name__", "handler")


def _where():
    name = sys.implementation
    return "on MicroPython %d.%d.%d, %s" % (
        name[1][0],
        name[1][1],
        name[1][2],
        getattr(name, "_machine", ""),
    )


def _unix(stamp):
    """Unix seconds of 'YYYYMMDDHHMMSS'."""
    return clock.unix(
        *[int(stamp[a:b]) for a, b in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 14))]
    )
