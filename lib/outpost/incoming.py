"""Incoming: what the hub sends, on its way to Commands and Twin.

Subscribes on every connection (a hub that lost its state says so by session present 0, and one
that kept it may have kept the wishes of earlier software), and says when the device is to stop
reading because too many handlers are under way. Owns no flash.
"""

from . import log
from .commands import Commands
from .profile import ANSWER, DESIRED, MESSAGE, METHOD, WHOLE
from .tasks import Tasks
from .twin import Twin


class Incoming:
    """tasks, commands and twin: its parts, for those who register handlers."""

    def __init__(self):
        self.tasks = Tasks()
        self.commands = Commands(self.tasks)
        self.twin = Twin(self.tasks)
        self._session = self._profile = self._id = None
        self._filters = []
        self._with_twin = False

    def attach(self, session, profile, device_id):
        """A new connection."""
        self._session, self._profile, self._id = session, profile, device_id
        session.received = self._received
        session.too_long = self._too_long
        self.commands.attach(session, profile, device_id)
        self.twin.attach(session, profile, device_id)
        self._filters = []
        self._subscribe()

    def detach(self):
        self._session = None
        self.commands.detach()
        self.twin.detach()

    def _subscribe(self):
        commands = self.commands
        twin = self.twin.wanted()
        filters = self._profile.subscriptions(
            self._id, commands.takes_methods(), commands.takes_messages(), twin
        )
        if filters != self._filters:
            self._filters = filters
            self._with_twin = twin
            self._session.ask(filters, self._subscribed)

    def _subscribed(self, granted):
        for i, code in enumerate(granted):
            if code & 0x80:
                # The rest works: a device that may not be commanded can still report.
                log.say("hub", "the server refused the subscription to %s" % self._filters[i][0])
        # The twin's come last.
        if self._with_twin and not granted[-1] & 0x80:
            self.twin.start()

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
        return min(wait, self.twin.service())

    def acknowledged(self, pid):
        self.twin.acknowledged(pid)

    def _received(self, topic, body, pid):
        found = self._profile.incoming(topic, self._id)
        kind = found[0]
        if kind == MESSAGE:
            properties, mid, expires = self._profile.message(found[1])
            self.commands.on_message(properties, mid, expires, body, pid)
            return  # which acknowledges it
        if kind == METHOD:
            self.commands.on_method(found[1], found[2], body)
        elif kind == ANSWER:
            self.twin.on_answer(found[1], found[2], body)
        elif kind == DESIRED:
            self.twin.on_patch(found[1], body)
        elif kind == WHOLE:
            self.twin.on_whole(body)
        else:
            log.say("hub", "a message to a topic that is none of this device's was ignored")
        if pid is not None:
            self._session.puback(pid)

    def _too_long(self, topic, size):
        found = self._profile.incoming(topic, self._id)
        log.say("hub", "a message of %d bytes is more than this device takes: ignored" % size)
        if found[0] == METHOD:
            self.commands.too_long(found[2], size)
        elif found[0] in (ANSWER, DESIRED, WHOLE):
            self.twin.too_long(found[0] == ANSWER and found[2])
