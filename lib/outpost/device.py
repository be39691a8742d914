"""Device: what the application says, and the loop that keeps it connected.

Each failure is one sentence on the console, then a wait, then the walk (walk.py) again from
its start. Messages are the Sender's, flash is the outbox's and the identity's: owns none itself.
"""

import gc
import sys
import time

from . import agreed, clock, log, room, sender, telemetry, trust, watchdog
from .backoff import Backoff
from .errors import OutboxFull, understood
from .incoming import Incoming
from .parts import let_go
from .timers import Timers, milliseconds, moment
from .walk import Walk

_READS_PER_STEP = 16  # so that a flood from the server cannot starve the timers
_ACK_TIMEOUT_MS = 30000
_STEADY_MS = 60000  # a connection that lasted this long was a good one
_IDLE_MS = 1000


class Device:
    """A device that calls home.

    device = Device()

    @device.every(seconds=10)
    def measure():
        device.send({"temperature": 21.5})

    device.run()
    """

    def __init__(self, model=None):
        """`model` is the id of the Plug and Play model that this software implements."""
        self.id = None
        self.online = False
        self._timers = Timers()
        self._messages = sender.Sender(sender.open_outbox(agreed.OUTBOX_LABEL))
        self._way = Walk()
        self._way.model = model
        self._in = Incoming(self._way.at_least, self._messages.counts)
        self._watched = False
        self._stepping = False
        self._leaving = False
        self._session = None
        self._stream = None
        self._ack_timeout_ms = _ACK_TIMEOUT_MS
        self._online_since = 0
        self._backoff = Backoff(1, 300)
        self._retry_at = 0
        self.health = None  # the application's health check
        # What the fleet signs: changes of trust and software, which come in files, commands,
        # changes of keys.
        self._guard = self._updates = None
        if trust.changeable():
            from .guard import Guard
            from .updates import Updates

            self._guard = Guard(self._way, self._messages)
            self._updates = Updates(self, self._way)
        self._files = None
        if "outpost.delivery" in sys.modules:  # somebody takes files: who does not is spared it
            from . import delivery

            self._files = delivery.opened(self._in)
        from . import desk

        self._desk, self._keys = desk.opened(self._way, self._in.commands, self.after)  # or None
        if not self._desk:
            let_go(desk)
        elif self._guard:
            self._desk.on("trust", "revoke", self._guard.revoke)

    # What the application says

    def every(self, seconds):
        """Decorator: call the function every `seconds` (0.001 or more), first at once."""
        return _register(self._timers.every, milliseconds(seconds, "every()"))

    def at(self, when):
        """Decorator: call the function at a time of day in UTC ("06:30"), every day, or once at
        a Unix time (int), late rather than never. Waits while the clock is not known."""
        return _register(self._timers.at, moment(when))

    def after(self, seconds, handler):
        """Call `handler` once, in `seconds` from now."""
        self._timers.after(milliseconds(seconds, "after()"), handler)

    def method(self, name, timeout_s=60):
        """Decorator: handler(payload) answers the direct method; what it returns is the reply,
        or (status, reply). A generator may take up to timeout_s."""
        if name.startswith(agreed.RESERVED_METHODS):
            raise ValueError(
                "names that begin with %s are the library's own" % agreed.RESERVED_METHODS
            )
        return _register(self._in.commands.method, name, timeout_s)

    def desired(self, name):
        """Decorator: handler(value) gets each new value of the desired property, None where it
        was removed; what it returns, or else the value, is acknowledged in the reported ones."""
        if name == agreed.LIBRARY_PROPERTY:
            raise ValueError("the desired property %s is the library's own" % name)
        return _register(self._in.twin.desired, name)

    def message(self, handler):
        """Decorator: handler(body, properties) gets each cloud-to-device message, which is
        acknowledged after it returned."""
        self._in.commands.message(handler)
        return handler

    def healthy(self, check):
        """Decorator: check() says True once new software does what it is for. Without that, and
        without a connection, software from an update is not kept (docs/updates.md)."""
        self.health = check
        return check

    def report(self, properties):
        """Put reported properties of the twin: a dict; None removes one. What the hub has
        already is not sent. In RAM until the hub has it. ValueError: no JSON, or over 32 KB."""
        self._in.twin.report(properties)

    @property
    def commands(self):
        """The dispatcher (commands.Commands), for modules of this library."""
        return self._in.commands

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
            room.needed(self.online, self._messages.in_ram() > sender.WINDOW)
        return self._messages.accept(body, durable, self._way.date(), priority, is_json)

    def run(self):
        """step() for ever. Ctrl-C and SystemExit end it, with the connection closed."""
        self.begin()
        try:
            while True:
                self.pause(self.step())
        except Exception as e:
            from . import lastwords

            lastwords.crashed(e)
            raise
        finally:
            self.close()

    def begin(self):
        """What run() does before its first step(): the watchdog counts from then on."""
        log.say("boot", "Outpost device starts %s" % _where())
        if len(self._messages):
            log.say("outbox", "messages from before wait count=%d" % len(self._messages))
        self._watched = True

        from . import lastwords

        lastwords.begin(self.report)
        let_go(lastwords)

    def readable(self):
        """Whether the hub has sent something that step() would read."""
        return self._stream is not None and not self._in.full() and self._stream.readable()

    def run_and_sleep(self, every, linger=1, longest=60):
        """Instead of run(): connect, send all that waits, take commands, then sleep deeply until
        `every` seconds after the start. Does not return: the board starts anew. docs/sleep.md.

        linger: seconds to stay once all is sent; longest: seconds awake at the most.
        """
        from . import duty

        duty.run(self, every, linger, longest)

    def idle(self):
        """Whether all that was taken is sent, and nothing is under way: no handler, no question to
        the hub, no report."""
        session = self._session
        return session is not None and not (
            (self._files and self._files.busy())
            or len(self._messages)
            or self._in.busy()
            or self._timers.busy()
            or session.busy()
            or trust.trial
            or (self._updates and self._updates.trial)
        )

    def waiting(self):
        """How many messages are taken and not yet acknowledged."""
        return len(self._messages)

    def pause(self, ms):
        """Wait that long, or until something comes."""
        if self._stream and not self._in.full():
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
            wait = self._timers.run(self._way.date())
            return max(0, min(wait, self._advance()))
        except Exception as e:
            return max(0, min(wait, self._recover(e)))
        finally:
            self._stepping = False
            if self._leaving:
                self.close()
            if self._updates:
                self._updates.step()
            watchdog.feed()

    def _advance(self):
        """Serve the connection, or make one when its time has come. Returns ms to sleep."""
        if self._session:
            return self._serve()
        if self._files and self._files.fetching():
            self._files.fetch(self._way)
            self._in.service()
            return 0
        left = self._retry_at - log.uptime_ms()
        if left <= 0:
            self._connect()
        return min(left, self._in.service())

    # The connection

    def _connect(self):
        way = self._way
        c = way.configure()
        self._messages.configure(c)
        if self._watched:
            watchdog.arm(c.watchdog_s)
        if self._backoff.bounds != c.backoff_s:
            self._backoff = Backoff(*c.backoff_s)
        self.id = way.identify().device_id
        session = way.connect()
        self.id = way.who.device_id  # the provisioning service may have given it another
        session.acknowledged = self._acknowledged
        self._session = session
        self._stream = session.sock
        self._ack_timeout_ms = min(_ACK_TIMEOUT_MS, c.keepalive_s * 1000)
        self._messages.attach(session)
        if self._keys:
            session.limit = max(session.limit, agreed.COMMAND_PACKET_BYTES)
        if self._files:
            session.limit = max(session.limit, self._files.packet_bytes())
        self._in.attach(session, way.profile, self.id)
        self.online = True
        self._online_since = log.uptime_ms()
        if self._guard:
            self._guard.connected(session)
            self._updates.connected(session)

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
        if err.clock and self._way.doubt_clock():
            err.person = False
        again = self._guard and self._guard.failed(err)
        wait = 0 if again else self._backoff.next_ms(err.person, err.busy)
        self._retry_at = log.uptime_ms() + wait
        self._end()
        log.say(
            "error",
            "%s: %s; next attempt in %.1f s kind=%s" % (err.stage, err, wait / 1000, err.kind()),
        )
        return wait

    def _recover(self, e):
        try:
            return self._failed(understood(e))
        except MemoryError:
            # The application holds it all: what it lets go is free at the next step.
            self.online = False
            self._session = self._stream = None
            self._in.detach()
            gc.collect()
            log.say("error", "device: out of memory")
            return _IDLE_MS

    def close(self):
        """End the connection in order; step() makes a new one. From a handler: once the slice
        that it is called in is over."""
        self._leaving = self._stepping
        if not self._stepping:
            self._end()

    def _end(self):
        self._leaving = False
        self.online = False
        session, self._session, self._stream = self._session, None, None
        self._in.detach()
        if self._files:
            self._files.detached()
        if session:
            session.disconnect()
        gc.collect()

    # The connected slice

    def _serve(self):
        session = self._session
        if log.uptime_ms() >= self._way.renew_at:
            log.say("hub", "token ends soon: connecting again with a new one")
            return self._again()
        if self._keys and self._keys.step():
            log.say("hub", "a new key is on trial: connecting again with it")
            return self._again()
        if self._guard and self._guard.step():
            return self._again()
        if self._files and self._files.due(self._updates and self._updates.trial):
            log.say("hub", "there is a file to fetch: the connection ends for it")
            return self._again()
        for _ in range(_READS_PER_STEP):
            if self._in.full() or session.check_msg() is None:
                break
        wait = self._in.service()
        self._messages.pump(session, self._topic, self._way.date())
        return min(wait, session.service(self._ack_timeout_ms, not self._in.full()))

    def _again(self):
        """A new connection, now. Returns ms to sleep."""
        self._end()
        self._retry_at = 0
        return 0

    def _topic(self, name, made, more):
        """Topic of one message, with its number and when it was made where that is known."""
        made = None if made is None else clock.text(made + agreed.UNIX_2000)
        return self._way.profile.events_topic(self.id, name, made, more)

    def _acknowledged(self, pid):
        if self._messages.acknowledged(pid):
            self._backoff.reset()
            if self._guard:
                self._guard.acknowledged(self._session)
        else:
            self._in.acknowledged(pid)


def _register(register, what, *more):
    """A decorator that hands the function on and gives it back."""

    def decorate(handler):
        register(what, handler, *more)
        return handler

    return decorate


def _where():
    name = sys.implementation
    return "on MicroPython %d.%d.%d, %s" % (
        name[1][0],
        name[1][1],
        name[1][2],
        getattr(name, "_machine", ""),
    )
