"""Device: what the application says, and the loop that keeps it connected.

Each failure is one sentence on the console, then a wait, then the walk (walk.py) again from
its start. Messages are the Sender's, flash is the outbox's and the identity's: owns none itself.
"""

import gc
import sys
import time

from . import agreed, clock, iothub, log, sender, telemetry
from .backoff import Backoff
from .errors import OutboxFull, OutpostError, understood
from .walk import Walk

_READS_PER_STEP = 16  # so that a flood from the server cannot starve the timers
_ACK_TIMEOUT_MS = 30000
_STEADY_MS = 60000  # a connection that lasted this long was a good one
_IDLE_MS = 1000
_RESERVE_BYTES = 12288  # what a connection takes of the GC heap while it is made
_PIECE_BYTES = 2048  # of that, the most in one piece: a root certificate


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
        self.online = False
        self._timers = []
        self._messages = sender.Sender(sender.open_outbox(agreed.OUTBOX_LABEL))
        self._way = Walk()
        self._stepping = False
        self._session = None
        self._stream = None
        self._ack_timeout_ms = _ACK_TIMEOUT_MS
        self._online_since = 0
        self._backoff = Backoff(1, 300)
        self._retry_at = 0

    # What the application says

    def every(self, seconds):
        """Decorator: call the function every `seconds` (0.001 or more), first at once."""
        # Whole seconds stay whole: a single-precision float has no room for many days.
        if not 0.001 <= seconds <= 1e9:
            raise ValueError("every() wants a number of seconds from 0.001 to 1e9")
        period_ms = int(seconds * 1000)

        def register(handler):
            self._timers.append(_Timer(period_ms, handler))
            return handler

        return register

    @property
    def sent(self):
        """Messages published since start, not counting repetitions."""
        return self._messages.sent

    @property
    def acked(self):
        """Messages that the hub has acknowledged since start."""
        return self._messages.acked

    def send(self, body, durable=True, priority=sender.PRIORITY_DEFAULT):
        """Take one telemetry message: a value that JSON has, or bytes as they are.

        Returns its number once it is safe in flash. From then on it is kept, over
        power cuts and resets, until the hub has acknowledged it (QoS 1: it may arrive
        twice, never not at all). At most 4,000 bytes. With durable=False, or on a board
        without an outbox partition, it waits in RAM and is lost with the power: at most
        65,536 bytes, and config's `queue` of them.

        `priority`, 0 to 3, counts where the configuration says outbox_full "priority".

        OutboxFull when there is no room: nothing was taken. ValueError when it is too
        long or has no JSON.
        """
        is_json = telemetry.is_json(body)
        try:
            body = telemetry.encode(body)
        except MemoryError:
            raise OutboxFull("there is no memory for it: this message was not taken")
        self._messages.check_size(len(body), durable)
        if not self._messages.keeps(durable):
            # Messages that leave no room for a connection would wait for ever.
            self._need_room()
        return self._messages.accept(body, durable, self._way.date(), priority, is_json)

    def _need_room(self):
        """OutboxFull where too little memory is free, or none of it in one piece."""
        reserve = _RESERVE_BYTES // 2 if self.online else _RESERVE_BYTES
        if gc.mem_free() < reserve:
            gc.collect()
            if gc.mem_free() < reserve:
                raise OutboxFull(
                    "only %d bytes of memory are free: this message was not taken" % gc.mem_free()
                )
        if self._messages.in_ram() > sender.WINDOW:
            try:
                bytearray(_PIECE_BYTES)
            except MemoryError:
                raise OutboxFull("the free memory is in pieces: this message was not taken")

    def run(self):
        """step() for ever. Ctrl-C and SystemExit end it, with the connection closed."""
        log.say("boot", "Outpost device starts %s" % _where())
        if len(self._messages):
            log.say("outbox", "messages from before wait count=%d" % len(self._messages))
        try:
            while True:
                self.pause(self.step())
        finally:
            self._close()

    def run_and_sleep(self, every, linger=1, longest=60):
        """Instead of run(): connect, send all that waits, take commands, then sleep deeply.

        every    seconds from one start to the next (up to a tenth is added at random)
        linger   seconds to stay on once all is sent, for commands that the hub holds
        longest  seconds awake at the most, connected or not: what waits stays in flash

        Does not return: the board starts anew after the sleep, from boot.py. docs/sleep.md.
        """
        from . import duty

        duty.check(every, linger, longest)
        log.say("boot", "Outpost device starts %s" % _where())
        try:
            why = duty.stay_awake(self, linger, longest)
        finally:
            self._close()
        duty.sleep(every, why)

    @property
    def waiting(self):
        """Messages taken and not yet acknowledged."""
        return len(self._messages)

    def busy(self):
        """Whether something received is still being read or worked on."""
        return bool(self._session) and self._session.receiving()

    def pause(self, ms):
        """Wait that long, or until something comes."""
        if self._stream:
            self._stream.wait(ms)
        else:
            time.sleep_ms(ms)

    def step(self):
        """One bounded slice of work. Returns how long the caller may sleep, in ms.

        While connecting it may take as long as the deadlines of link, clock and TLS.
        Raises nothing but what a handler raises on purpose to end the program.
        """
        if self._stepping:
            raise RuntimeError("step() and run() cannot be called from a handler")
        self._stepping = True
        wait = _IDLE_MS
        try:
            wait = self._run_timers()
            return max(0, min(wait, self._advance()))
        except Exception as e:
            return max(0, min(wait, self._recover(e)))
        finally:
            self._stepping = False

    def _advance(self):
        """Serve the connection, or make one when its time has come. Returns ms to sleep."""
        if self._session:
            return self._serve()
        left = self._retry_at - log.uptime_ms()
        if left <= 0:
            self._connect()
        return left

    # The connection

    def _connect(self):
        way = self._way
        c = way.configure()
        self._messages.configure(c)
        if self._backoff.bounds != c.backoff_s:
            self._backoff = Backoff(*c.backoff_s)
        self.id = way.identify().device_id
        session = way.connect()
        session.acknowledged = self._acknowledged
        self._session = session
        self._stream = session.sock
        self._ack_timeout_ms = min(_ACK_TIMEOUT_MS, c.keepalive_s * 1000)
        self._messages.attach(session)
        self.online = True
        self._online_since = log.uptime_ms()

    @property
    def connection(self):
        """Facts of the last handshake (tls.Connection), or None."""
        return self._way.connection

    def _failed(self, err):
        """Close, say it, and set when to try again. Returns ms until then."""
        # Not reset by connecting alone: a server that accepts and hangs up at once
        # must not be called in a tight loop.
        if self.online and log.uptime_ms() - self._online_since > _STEADY_MS:
            self._backoff.reset()
        if err.person and err.stage in ("tls", "hub") and self._way.doubt_clock():
            err.person = False
        wait = self._backoff.next_ms(err.person)
        self._retry_at = log.uptime_ms() + wait
        self._close()
        log.say("error", "%s: %s; next attempt in %.1f s" % (err.stage, err, wait / 1000))
        return wait

    def _recover(self, e):
        try:
            return self._failed(understood(e))
        except MemoryError:
            # The application holds it all: what it lets go is free at the next step.
            self.online = False
            self._session = self._stream = None
            gc.collect()
            log.say("error", "device: out of memory")
            return _IDLE_MS

    def _close(self):
        self.online = False
        session, self._session, self._stream = self._session, None, None
        if session:
            session.disconnect()
        gc.collect()

    # The connected slice

    def _serve(self):
        session = self._session
        if log.uptime_ms() >= self._way.renew_at:
            log.say("hub", "token ends soon: connecting again with a new one")
            self._close()
            self._retry_at = 0
            return 0
        for _ in range(_READS_PER_STEP):
            if session.check_msg() is None:
                break
        self._messages.pump(session, self._topic, self._way.date())
        return session.service(self._ack_timeout_ms)

    def _topic(self, name, made, more):
        """Topic of one message, with its number and when it was made where that is known."""
        made = None if made is None else clock.text(made + agreed.UNIX_2000)
        return iothub.events_topic(self.id, name, made, more)

    def _acknowledged(self, pid):
        if self._messages.acknowledged(pid):
            self._backoff.reset()

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
