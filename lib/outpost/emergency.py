"""Emergency: what a device does when the bundle in use verifies no hub any more (docs/trust.md).

Only after it has been so for long, and often: first a newer bundle that is here already, then the
recovery endpoints of the bundles on the board, each with its pin. What comes from there is
judged as any delivery is, and put on trial. Counts in NVS: "tr-since" and "tr-miss". No older
bundle verifies a hub, whatever happens. Loaded only then.
"""

from micropython import const

from . import agreed, bundle, clock, formats, install, log, trust, trusting, watchdog
from .errors import OutpostError
from .parts import let_go

_ATTEMPTS = const(3)
_TURN = const(4)  # in the place of their count: the bundle that is here was tried the last time


def missed(way, damaged):
    """A connection was not made, for want of trust. Whether another bundle is on trial now.

    damaged  the bundle in use cannot be read, so nothing is to be waited for
    """
    return _due(0 if damaged else way.config.recovery_after_s) and run(way)


def _due(after_s):
    """Count it: whether it is time to look for another bundle."""
    store = trusting.nvs()
    now = max(0, clock.now() - agreed.UNIX_2000)
    since = trusting.entry(store, formats.NVS_TRUST_SINCE, None)
    missed = trusting.entry(store, formats.NVS_TRUST_MISSED)
    if since is None or since > now:
        # The first; or the clock was put back, and the wait begins anew.
        since = now
        missed = missed if missed == _TURN else 0
        trusting.write(store, formats.NVS_TRUST_SINCE, since)
    if missed < _ATTEMPTS:
        missed += 1
        trusting.write(store, formats.NVS_TRUST_MISSED, missed)
    return missed >= _ATTEMPTS and now - since >= after_s


def over():
    """A server was verified: nothing is missed any more."""
    trusting.erase(trusting.nvs(), formats.NVS_TRUST_MISSED, formats.NVS_TRUST_SINCE)


def run(way):
    """Whether there is another bundle now. The next time is not before another wait is over.

    A newer one that is here and the endpoints take turns: a trial may fail for many reasons, and
    none may keep the other way shut.
    """
    store = trusting.nvs()
    trusting.erase(store, formats.NVS_TRUST_SINCE)
    log.say("trust", "no hub is trusted with the bundle in use: looking for a newer one")
    if trusting.entry(store, formats.NVS_TRUST_MISSED) != _TURN and _staged(store):
        trusting.write(store, formats.NVS_TRUST_MISSED, _TURN)
        return True
    trusting.write(store, formats.NVS_TRUST_MISSED, _ATTEMPTS)
    for found in _endpoints(store):
        watchdog.feed()
        try:
            if _fetched(found, way):
                return True
        except OutpostError as e:
            log.say("trust", "no bundle from %s port %d: %s" % (found[0], found[1], e))
    return False


def _staged(store):
    """Whether a newer bundle that is on the board, verified when it came, is on trial now."""
    at = trust.in_use()
    base = install.usable(at)
    high = trusting.entry(store, formats.NVS_TRUST_HIGH)
    if not base and _written_anew(store, high):
        return True
    newest, found = base.version if base else high, None
    for slot, path in enumerate(agreed.TRUST_SLOTS):
        h = install.usable(path) if path != at else None
        if h and h.version > newest:
            newest, found = h.version, (slot, h)
    if found:
        trusting.begin(store, *found)
    return found is not None


def _written_anew(store, high):
    """The slot in use is empty, and the factory bundle is not older than what was in it: somebody
    has written the file system anew, with the board in hand. It is in use."""
    h = install.usable(agreed.FACTORY_ROOTS_PATH)
    if not h or h.version < max(1, high):
        return False
    trusting.write(store, formats.NVS_TRUST_HIGH, h.version)
    trusting.erase(store, agreed.NVS_TRUST_SLOT)
    log.say("trust", "the factory bundle version=%d is in use from now on" % h.version)
    return True


def _endpoints(store):
    """(host, port, pin, fleet): of the bundle in use, of the other slot's, of the factory's."""
    done = []
    for path, h in install.known(store):
        if not h.signed:
            continue
        for value in trust.values(formats.SECTION_RECOVERY, path):
            host, port, pin = bundle.endpoint(value)
            if (host, port, pin) not in done:
                done.append((host, port, pin))
                yield host, port, pin, str(h.fleet, "utf-8")


def _fetched(endpoint, way):
    from . import recovery

    try:
        status, _ = recovery.run(endpoint, way, lambda path: install.install(path, way))
    finally:
        let_go("fetch", "recovery")
    return status == 202
