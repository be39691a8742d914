"""Incoming: what the hub sends, on its way to Commands and Twin.

Subscribes on every connection (a hub that lost its state says so by session present 0, and one
that kept it may have kept the wishes of earlier software), and says when the device is to stop
reading because too many handlers are under way. Owns no flash.
"""

from . import agreed, log, telemetry
from .profile import ANSWER, DESIRED, MESSAGE, METHOD, WHOLE
from .tasks import Tasks


class Incoming:
    """tasks, commands and twin: its parts, for those who register handlers.

    commands and twin are loaded when they are first asked for: software that only sends does
    without their memory. `now` is Commands.now.
    """

    def __init__(self, now=None):
        self.tasks = Tasks()
        self._now = now
        self._commands = self._twin = None
        self._session = self._profile = self._id = None
        self._filters = []
        self._with_twin = False
        self._wishes = None  # the Delivery, which follows one desired property

    @property
    def commands(self):
        if self._commands is None:
            from .commands import Commands

            self._commands = Commands(self.tasks)
            self._commands.now = self._now
            if self._session:
                self._commands.attach(self._session, self._profile, self._id)
        return self._commands

    @property
    def twin(self):
        if self._twin is None:
            from .twin import Twin

            self._twin = Twin(self.tasks)
            if self._wishes:
                self._twin.desired(agreed.LIBRARY_PROPERTY, self._wishes.desired)
            if self._session:
                self._twin.attach(self._session, self._profile, self._id)
                self._filters = []  # so that what the subscription brings is for it
        return self._twin

    def follow(self, wishes):
        """Let a Delivery follow its desired property: by the twin where the application has one,
        else without twin.py, which takes more memory than that is worth."""
        self._wishes = wishes
        if self._twin:
            self._twin.desired(agreed.LIBRARY_PROPERTY, wishes.desired)

    def ask_twin(self):
        """Ask for the twin whole, where that is how it comes: the answer is the Delivery's."""
        topic = self._profile.twin_get(agreed.LIBRARY_PROPERTY)
        if topic is not None:
            self._session.publish(topic, b"", qos=0)

    def tell(self, patch):
        """Report a patch of the library's own property, now and once."""
        names = self._profile
        topic = names.twin_report(self._id, agreed.LIBRARY_PROPERTY)
        self._session.publish(topic, telemetry.encode(patch), qos=names.REPORT_QOS)

    def attach(self, session, profile, device_id):
        """A new connection."""
        self._session, self._profile, self._id = session, profile, device_id
        session.received = self._received
        session.too_long = self._too_long
        for part in (self._commands, self._twin):
            if part:
                part.attach(session, profile, device_id)
        self._filters = []
        self._said = False
        self._subscribe()

    def detach(self):
        self._session = None
        for part in (self._commands, self._twin):
            if part:
                part.detach()

    def _subscribe(self):
        commands = self._commands
        twin = self._twin.wanted() if self._twin else self._wishes is not None
        filters = self._profile.subscriptions(
            self._id,
            commands is not None and commands.takes_methods(),
            commands is not None and commands.takes_messages(),
            twin,
        )
        if filters != self._filters or (self._twin and twin and self._twin.unheard):
            self._filters = filters
            self._with_twin = twin
            if twin and self._twin:
                self._twin.unheard = False
            self._session.ask(filters, self._subscribed)

    def _subscribed(self, granted):
        for i, code in enumerate(granted):
            if code & 0x80:
                # The rest works: a device that may not be commanded can still report.
                log.say("hub", "the server refused the subscription to %s" % self._filters[i][0])
        # The twin's come last.
        if self._with_twin and not granted[-1] & 0x80:
            if self._twin:
                self._twin.start()
            else:
                self.ask_twin()

    def full(self):
        """Whether nothing more is to be read from the connection now."""
        return self.tasks.full()

    def service(self):
        """Take handlers a step further, ask and report. Returns ms until the next."""
        wait = self.tasks.step()
        if self._session is None:
            return wait
        if not self._session.asking():
            self._subscribe()  # a handler may have come since
        return min(wait, self._twin.service()) if self._twin else wait

    def acknowledged(self, pid):
        if self._twin:
            self._twin.acknowledged(pid)

    def _received(self, topic, body, pid):
        found = self._profile.incoming(topic, self._id)
        kind = found[0]
        if kind == MESSAGE:
            if self._commands is None:
                return  # left with the hub: software that takes messages may come
            properties, mid, expires = self._profile.message(found[1])
            self._commands.on_message(properties, mid, expires, body, pid)
            return  # which acknowledges it
        if kind == METHOD:
            # Also where none was registered: a hub that kept the wishes of earlier software calls.
            self.commands.on_method(found[1], found[2], body)
        elif kind and self._twin is None:
            if self._wishes:
                self._wishes.heard(kind, found, body)
        elif kind == ANSWER:
            self._twin.on_answer(found[1], found[2], body)
        elif kind == DESIRED:
            self._twin.on_patch(found[1], body)
        elif kind == WHOLE:
            self._twin.on_whole(body)
        elif not self._said:
            self._said = True  # once for a connection: whoever floods it must not fill the console
            log.say("hub", "a message to a topic that is none of this device's was ignored")
        if pid is not None:
            self._session.puback(pid)

    def _too_long(self, topic, size):
        found = self._profile.incoming(topic, self._id)
        log.say("hub", "a message of %d bytes is more than this device takes: ignored" % size)
        if found[0] == METHOD:
            self.commands.too_long(found[2], size)
        elif found[0] in (ANSWER, DESIRED, WHOLE) and self._twin:
            self._twin.too_long(found[0] == ANSWER and found[2])
