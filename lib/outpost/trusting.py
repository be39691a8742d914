"""Trusting: a trust bundle on trial, and what comes of it (docs/trust.md).

    delivered file -> verified -> free slot -> on trial -> in use
                                                   |
                                                   +-> back: the bundle in use was never touched

Owns the NVS entries "tr-*". One of them says which slot is in use: writing it is the commit. What
power does at any other moment changes nothing that is believed. Loaded only while a bundle is on
trial; install.py has what comes before that.
"""

from micropython import const

from . import agreed, clock, formats, log, resumption, trust
from .errors import TrustError, number

_NOT_FOUND = const(-0x1102)
_TRIAL_S = const(600)
_LIVES_MOST = const(3)  # starts of the device that may begin with a bundle on trial
_REFUSALS_MOST = const(3)  # handshakes that may end without trust in the hub

ON_TRIAL, IN_USE, NOT_TRUSTED, NOT_REACHED, SILENT, RESTARTED, REFUSED = 1, 2, 3, 4, 5, 6, 7

# NVS


def nvs():
    import esp32

    try:
        return esp32.NVS(agreed.NVS_NAMESPACE)
    except OSError as e:
        raise TrustError("NVS cannot be opened (error %d): nothing was changed" % number(e), True)


def entry(store, name, default=0):
    try:
        return store.get_i32(name)
    except OSError as e:
        if number(e) == _NOT_FOUND:
            return default
        raise TrustError("NVS cannot be read (error %d): nothing was changed" % number(e), True)


def write(store, name, value):
    """One i32, where it is news."""
    if entry(store, name, None) == value:
        return
    try:
        store.set_i32(name, value)
        store.commit()
    except OSError as e:
        raise TrustError("NVS took nothing (error %d)" % number(e), True)


def erase(store, *names):
    for name in names:
        if entry(store, name, None) is None:
            continue
        try:
            store.erase_key(name)
            store.commit()
        except OSError as e:
            raise TrustError("NVS took nothing (error %d)" % number(e), True)


def begin(store, slot, h):
    """The bundle in the slot is on trial from the next connection on."""
    # What comes of it is reported even where it is what came of an earlier trial.
    erase(store, formats.NVS_TRUST_LIVES, formats.NVS_TRUST_REPORTED)
    write(store, formats.NVS_TRUST_CHANGE, h.version)
    write(store, formats.NVS_TRUST_OUTCOME, ON_TRIAL)
    write(store, formats.NVS_TRUST_TRIAL, slot)
    trust.trial = Trial(slot, h)
    resumption.forget()
    log.say("trust", "bundle version=%d is on trial; the one in use stays" % h.version)


def resumed():
    """At the start of the device: the Trial that it began in, or None."""
    from .install import usable

    store = nvs()
    if entry(store, agreed.NVS_TRUST_SLOT, None) is None:
        _found_again(store, usable)
    slot = entry(store, formats.NVS_TRUST_TRIAL, None)
    if slot is None:
        return None
    if slot == entry(store, agreed.NVS_TRUST_SLOT, -1) or slot not in (0, 1):
        h = usable(trust.in_use())
        _tidy(store, h.version if h else 0, h.floor if h else 0)  # power went after the commit
        return None
    h = usable(agreed.TRUST_SLOTS[slot])
    lives = entry(store, formats.NVS_TRUST_LIVES) + 1
    if not h or lives > _LIVES_MOST:
        _back(store, RESTARTED)
        return None
    write(store, formats.NVS_TRUST_LIVES, lives)
    resumption.forget()
    log.say("trust", "bundle version=%d is on trial still" % h.version)
    return Trial(slot, h)


def _found_again(store, usable):
    """NVS lost which slot is in use: it is the one with the highest version that ever was, and no
    older bundle takes its place."""
    high = entry(store, formats.NVS_TRUST_HIGH)
    factory = usable(agreed.FACTORY_ROOTS_PATH)
    if not high or (factory and factory.version >= high):
        return
    for slot, path in enumerate(agreed.TRUST_SLOTS):
        h = usable(path)
        if h and h.version == high:
            write(store, agreed.NVS_TRUST_SLOT, slot)


def _tidy(store, version, floor):
    """After a commit: what follows from it, the mark of the trial last."""
    if version:
        for name, value in (
            (formats.NVS_TRUST_HIGH, version),
            (formats.NVS_TRUST_FLOOR, floor),
        ):
            write(store, name, max(value, entry(store, name)))
        write(store, formats.NVS_TRUST_CHANGE, version)
        write(store, formats.NVS_TRUST_OUTCOME, IN_USE)
    erase(store, formats.NVS_TRUST_LIVES, formats.NVS_TRUST_TRIAL)


def _back(store, outcome):
    # First in RAM: where NVS takes nothing, this life goes on with the old one all the same.
    trust.trial = None
    resumption.forget()
    write(store, formats.NVS_TRUST_OUTCOME, outcome)
    erase(store, formats.NVS_TRUST_TRIAL, formats.NVS_TRUST_LIVES)
    log.say("trust", "back to the bundle in use: %s" % formats.TRUST_OUTCOMES[outcome])


class Trial:
    """A bundle on trial. session: the connection that was made with it, while there is one;
    probe_ms: when it was made, until a message of ours is due."""

    def __init__(self, slot, h):
        self.slot = slot
        self.path = agreed.TRUST_SLOTS[slot]
        self.version, self.floor, self.issued = h.version, h.floor, h.issued
        self.session = self.probe_ms = None
        self.reached = False
        self.refusals = 0
        self._began_ms = log.uptime_ms()

    def connected(self, session):
        self.session = session
        self.probe_ms = log.uptime_ms()
        self.reached = True

    def late(self, way):
        """Whether its time is over."""
        limit_s = way.config.trial_s if way.config else _TRIAL_S
        return log.uptime_ms() - self._began_ms >= limit_s * 1000


def failed(err, way):
    """A connection was not made with the bundle on trial, or has ended: whether that is enough."""
    trial = trust.trial
    trial.session = None
    trial.refusals += err.stage == "trust" or getattr(err, "untrusted", False)
    if trial.refusals >= _REFUSALS_MOST:
        _back(nvs(), NOT_TRUSTED)
        return True
    return trial.late(way) and ended()


def ended():
    """The time of the trial is over: back. True."""
    trial = trust.trial
    _back(nvs(), SILENT if trial.reached else NOT_TRUSTED if trial.refusals else NOT_REACHED)
    return True


def commit(way):
    """The hub was verified with it, and has acknowledged a message: it is in use from now on."""
    trial = trust.trial
    store = nvs()
    write(store, agreed.NVS_TRUST_SLOT, trial.slot)
    trust.trial = None
    log.say("trust", "bundle version=%d works: it is in use from now on" % trial.version)
    _raise_floor(way, trial.issued)
    _tidy(store, trial.version, trial.floor)


def _raise_floor(way, issued):
    """Time is at least when the bundle was issued; but a signer's wrong clock must not take this
    device out of the days in which the hub's certificate is good."""
    facts = way.connection and way.connection.facts
    if way.clock.vouched():
        way.clock.raise_floor(min(issued, clock.now()))
    elif facts and facts["not_after"] and issued < clock.stamp(facts["not_after"]):
        way.clock.raise_floor(issued)
