"""Walk: from the configuration to a connected MQTT session, one stage after the other.

    config -> identity -> link -> clock -> trust -> tls -> mqtt

Each stage says what it found on the console, and raises an OutpostError with its sentence
where it cannot go on. What the stages keep between two walks (the Wi-Fi link, the clock, the
record size that works) stays here. Owns nothing in flash.
"""

from . import agreed, clock, config, identity, iothub, log, tls, trust
from .link import Link
from .mqtt import Session

_WALK_S = 60  # from the making of a token to the connection made with it, at the longest


class Walk:
    """config, who (Identity), clock and connection (tls.Connection) are None until their stage.

    renew_at  uptime in ms at which the session's token is to be replaced by a new connection
    """

    def __init__(self):
        self.config = None
        self.who = None
        self.clock = None
        self.connection = None
        self.renew_at = 0
        self._link = None
        self._ladder = None
        self._endpoint = None  # what the ladder is for

    def configure(self):
        """Read the configuration again: what a person mended meanwhile is picked up."""
        c = self.config = config.load()
        log.say(
            "config", "hub=%s port=%d record_size=%s" % (c.hub, c.port, c.record_size or "none")
        )
        return c

    def identify(self):
        """Read who this device is."""
        self.who = identity.load()
        log.say("identity", "device=%s kind=symmetric-key" % self.who.device_id)
        return self.who

    def connect(self):
        """The rest of the walk: returns a Session that the hub has accepted."""
        now = self._ready()
        session = self._session(now)
        try:
            _, self.connection = tls.connect(
                self.config, trust.roots, lambda s: session.connect(s, False), self._ladder
            )
        except BaseException:
            session.drop()
            raise
        session.pswd = None
        # By the uptime: the wall clock may be set, even by years, while the token lasts.
        self.renew_at = (
            log.uptime_ms() + (iothub.TOKEN_TTL_S - iothub.RENEW_BEFORE_S - _WALK_S) * 1000
        )
        log.say("tls", self.connection.line())
        log.say("hub", "connected device=%s" % self.who.device_id)
        self._learn_time()
        return session

    def _ready(self):
        """Link, clock and ladder for the configuration. Returns the time in Unix seconds."""
        c = self.config
        if not self._link or not self._link.up():
            self._link = Link(c.wifi_ssid, c.wifi_key)
            log.say("link", "connected ssid=%s address=%s" % (c.wifi_ssid, self._link.connect()))
        if not self.clock:
            self.clock = clock.Clock(c.sntp)
        self.clock.servers = c.sntp
        now = self.clock.settle()
        log.say("clock", "time=%s source=%s" % (clock.text(now), self.clock.source))
        if self._endpoint != (c.hub, c.port, c.record_size):
            self._endpoint = (c.hub, c.port, c.record_size)
            self._ladder = tls.Ladder(c.hub, c.port, c.record_size)
        return now

    def _session(self, now):
        c = self.config
        return Session(
            self.who.device_id,
            iothub.user_name(c.hub, self.who.device_id),
            iothub.password(self.who, c.hub, now),
            c.keepalive_s,
        )

    def _learn_time(self):
        facts = self.connection.facts
        if facts and facts["not_before"]:
            # The chain was verified and the hub accepted us: its certificate cannot
            # have been issued in the future, so time is at least that.
            self.clock.raise_floor(_unix(facts["not_before"]))

    def doubt_clock(self):
        """After a refusal that a wrong clock may explain: whether asking SNTP again can help."""
        return self.clock and self.clock.doubt()

    def date(self):
        """Seconds since 2000, or None while nobody vouches for the clock."""
        if self.clock and self.clock.vouched():
            return clock.now() - agreed.UNIX_2000
        return None


def _unix(stamp):
    """Unix seconds of 'YYYYMMDDHHMMSS'."""
    return clock.unix(
        *[int(stamp[a:b]) for a, b in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 14))]
    )
