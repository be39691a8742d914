"""Walk: from the configuration to a connected MQTT session, one stage after the other.

    config -> identity -> link -> clock -> (dps) -> trust -> tls -> mqtt

Each stage says what it found on the console, and raises an OutpostError with its sentence
where it cannot go on. What the stages keep between two walks (the Wi-Fi link, the clock, the
record size that works, the key that was taken) stays here. Owns nothing in flash.
"""

from . import agreed, clock, identity, keystore, log, profile, tls, trust, watchdog
from .errors import IdentityError, OutpostError, Refused
from .link import Link
from .mqtt import Session
from .parts import do

_WALK_S = 60  # from the making of a token to the connection made with it, at the longest
_LIVES_MOST = 3  # so many may begin with a key on trial: a trial may be what ends them
_NEVER = 1 << 50  # of the uptime in ms


class Endpoint:
    """What tls.connect() needs to know of a server.

    hub   the name that this device proves itself to
    host  the server that TLS is spoken with: the hub, or a gateway in front of it
    pin   of the recovery endpoint alone: the certificate that it is known by
    """

    pin = None

    def __init__(self, hub, port, ecc_only, gateway=None):
        self.hub = hub
        self.gateway = gateway
        self.port = port
        self.ecc_only = ecc_only

    @property
    def host(self):
        return self.gateway or self.hub


class Walk:
    """config, who (Identity), clock and connection (tls.Connection) are None until their stage.

    renew_at      uptime in ms at which the session is to be replaced by a new connection
    credential    name of the key that the session was made with: "primary", "born", ...
    trial_failed  whether the key on trial was tried in this life and did not work
    trial_feared  whether several lives of the device have ended with it on trial: tried last
    profile       the module that knows what the hub calls things (profile.py)
    model         id of the Plug and Play model that is announced, or None
    """

    def __init__(self):
        self.config = None
        self.who = None
        self.clock = None
        self.connection = None
        self.renew_at = 0
        self.credential = None
        self.trial_failed = False
        self.trial_feared = False
        self._trial_counted = False
        self.profile = None
        self.model = None
        self._mark = None  # of the credential that worked last: the next walk begins with it
        self._link = None
        self._ladder = None
        self._endpoint = None  # what the ladder is for
        self._assignment = None
        self._kept = None  # SHA-256 of the root that a rescue would connect with

    def configure(self):
        """Read the configuration again: what a person mended meanwhile is picked up."""
        c = self.config = _configuration()
        log.shown = c.console
        self.profile = profile.load(c.profile)
        log.say(
            "config",
            "%s=%s port=%d record_size=%s"
            % ("dps" if c.dps else "hub", c.dps.host if c.dps else c.hub, c.port, _size(c)),
        )
        return c

    def identify(self):
        """Read who this device is; at its first start, make the key that it is born with."""
        dps = self.config.dps
        self._first_boot(dps and dps.registration_id)
        self.who = identity.load(dps and dps.registration_id)
        if dps:
            self._assignment = self._assignment or _assignment()
            self._assignment.named(dps, self.who)
        log.say("identity", "device=%s kind=%s" % (self.who.device_id, self.who.kind))
        return self.who

    def _first_boot(self, name):
        if identity.policy is None:
            return
        try:
            nvs = keystore.open_nvs()
            name = identity.device_id(nvs, name)
            if identity.born_certificate(nvs):
                return
            # In one life of the board alone, so that no later start loads it.
            if do("provision", "first_boot", name):
                log.say("identity", "this board has made the key that it is born with")
        except IdentityError as e:
            log.say("identity", str(e))  # what identity there is may do

    def connect(self):
        """The rest of the walk: returns a Session that the hub has accepted."""
        now = self.ready()
        c = self.config
        where = Endpoint(c.hub, c.port, c.ecc_only, c.gateway_host)
        if c.dps:
            where.hub = self._assignment.hub(self, now)
        try:
            credential, session = self.first_accepted(
                self._in_order(self.who.credentials()),
                lambda credential: self._session(where, credential, now),
            )
        except OutpostError as e:
            if c.dps:
                self._assignment.missed(e)
            raise
        if c.dps:
            self._assignment.reached()
        self._accepted(credential)
        return session

    def ready(self):
        """Link and clock for the configuration. Returns the time in Unix seconds."""
        c = self.config
        if not self._link or not self._link.up():
            self._link = Link(c.wifi_ssid, c.wifi_key)
            log.say("link", "connected ssid=%s address=%s" % (c.wifi_ssid, self._link.connect()))
        watchdog.feed()
        if not self.clock:
            self.clock = clock.Clock(c.sntp)
        self.clock.servers = c.sntp
        now = self.clock.settle()
        log.say("clock", "time=%s source=%s" % (clock.text(now), self.clock.source))
        return now

    # Which key

    def _in_order(self, credentials):
        """On trial first, once; then from the one that worked last, so that no reconnection
        begins with a refusal; a trial that failed comes last."""
        trial = [c for c in credentials if c.trial]
        order = [c for c in credentials if not c.trial]
        for i, c in enumerate(order):
            if c.mark == self._mark:
                order = order[i:] + order[:i]
                break
        if trial and not self._trial_counted:
            self._trial_counted = True
            self.trial_feared = keystore.Store().lives_of_trial() > _LIVES_MOST
        return order + trial if self.trial_failed or self.trial_feared else trial + order

    def first_accepted(self, credentials, attempt):
        """(credential, what attempt(credential) gave) of the first that is not refused.

        A refusal is no fault of the network: only after one is the next key tried.
        """
        refusal = None
        for i, credential in enumerate(credentials):
            try:
                return credential, attempt(credential)
            except Exception as e:
                if credential.trial:
                    # Whatever it was, memory too: the next walk begins with what has worked.
                    self.trial_failed = True
                if not isinstance(e, IdentityError) and not getattr(e, "refused", False):
                    raise
                if refusal is None or not refusal.refused:
                    refusal = e
                if i + 1 < len(credentials):
                    log.say(
                        "identity",
                        "%s: %s; trying %s" % (credential.name, e, credentials[i + 1].name),
                    )
        raise refusal or IdentityError("this device has no key to connect with", True)

    def _accepted(self, credential):
        """The hub took this key: it goes first next time, and is committed if it was on trial."""
        self._mark = credential.mark
        self.credential = credential.name
        # By the uptime: the wall clock may be set, even by years, while the token lasts.
        self.renew_at = _NEVER
        names = self.profile
        if credential.symmetric and names.TOKEN_TTL_S:
            life_s = names.TOKEN_TTL_S - names.RENEW_BEFORE_S - _WALK_S
            self.renew_at = log.uptime_ms() + life_s * 1000
        log.say("tls", self.connection.line())
        log.say("hub", "connected device=%s credential=%s" % (self.who.device_id, self.credential))
        self._learn_time()
        self._keep()
        if credential.trial:
            self._commit()
        else:
            # Nothing that a second trial could learn, until another key is on trial.
            self.trial_failed = self.trial_failed and keystore.Store().trial() is not None
        if self._assignment:
            self.renew_at = min(self.renew_at, self._assignment.renewal_at(self.clock))

    def _commit(self):
        try:
            keystore.commit()
        except IdentityError as e:
            log.error(e)  # it stays on trial: the next connection commits it
            return
        self.trial_failed = False
        kept = self.who.credentials()
        if kept:
            self._mark = kept[0].mark
        log.say("identity", "the new key works: it is this device's key from now on")

    # One connection

    def ladder(self, where):
        """The record sizes for an endpoint; the last one's is kept."""
        key = (where.host, where.port, self.config.record_size)
        if self._endpoint != key:
            self._endpoint = key
            self._ladder = tls.Ladder(*key)
        return self._ladder

    def _session(self, where, credential, now):
        """A Session that the hub has accepted with this credential."""
        names, c = self.profile, self.config
        user = names.user_name(where.hub, self.who.device_id, self.model, not credential.symmetric)
        password = names.password(credential, where.hub, now) if credential.symmetric else ""
        session = Session(self.who.device_id, user, password, c.keepalive_s, c.incoming_bytes)
        dated = credential.symmetric and names.TOKEN_TTL_S
        return self.open(session, where, credential, False, dated)

    def open(self, session, where, credential, clean, dated):
        """CONNECT over a new TLS connection to `where`; the session's password goes at once.

        dated  whether that is a token, which ends at a time
        """
        watchdog.feed()
        try:
            _, self.connection = tls.connect(
                where,
                trust.roots,
                lambda stream: session.connect(stream, clean),
                self.ladder(where),
                credential,
            )
        except BaseException as e:
            session.drop()
            if dated and isinstance(e, Refused) and e.refused:
                e = self._token_refused(e)
            raise e
        finally:
            session.pswd = None
        return session

    def _token_refused(self, e):
        """By a clock that nobody vouches for, the token's end may be long past."""
        if not self.clock.vouched():
            sentence = (
                "the token was refused, and nobody vouches for the clock (source=%s): the time is "
                "likely to be wrong, not the key; check `sntp`, and UDP port 123 outbound"
            )
            e = Refused(e.code, sentence % self.clock.source, e.person)
        e.clock = True
        return e

    def _learn_time(self):
        facts = self.connection.facts
        if facts and facts["not_before"]:
            # The chain was verified and the hub accepted us: its certificate cannot
            # have been issued in the future, so time is at least that.
            self.clock.raise_floor(clock.stamp(facts["not_before"]))

    def _keep(self):
        """What a rescue needs goes into the NVS: once in a life, and after a change of root."""
        facts = self.connection.facts
        if facts and facts["root"] and facts["root"] != self._kept:
            do("kit", "keep", facts["root"])
            self._kept = facts["root"]

    def doubt_clock(self):
        """After a refusal that a wrong clock may explain: whether asking SNTP again can help."""
        return self.clock and self.clock.doubt()

    def at_least(self):
        """Unix seconds that it certainly is, or None: the time, or else the floor of time."""
        if not self.clock:
            return None
        return clock.now() if self.clock.vouched() else self.clock.floor

    def date(self):
        """Seconds since 2000, or None while nobody vouches for the clock."""
        if self.clock and self.clock.vouched():
            return clock.now() - agreed.UNIX_2000
        return None


def _configuration():
    """What config.py makes of the file. Read from flash, the module takes 5 KB, and nobody needs
    it while there is a connection."""
    return do("config", "load")


def _size(c):
    return c.record_size or "none"


def _assignment():
    from .assignment import Assignment

    return Assignment()
