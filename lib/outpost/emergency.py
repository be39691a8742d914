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
    missed = min(trusting.entry(store, formats.NVS_TRUST_MISSED) + 1, _ATTEMPTS)
    if since is None or since > now:
        # The first; or the clock was put back, and the wait begins anew.
        since, missed = now, 1
        trusting.write(store, formats.NVS_TRUST_SINCE, since)
    trusting.write(store, formats.NVS_TRUST_MISSED, missed)
    return missed >= _ATTEMPTS and now - since >= after_s


def over():
    """A server was verified: nothing is missed any more."""
    trusting.erase(trusting.nvs(), formats.NVS_TRUST_MISSED, formats.NVS_TRUST_SINCE)


def run(way):
    """Whether a bundle is on trial now. The next time is not before another wait is over."""
    store = trusting.nvs()
    trusting.erase(store, formats.NVS_TRUST_SINCE)
    log.say("trust", "no hub is trusted with the bundle in use: looking for a newer one")
    if _staged(store):
        return True
    for found in _endpoints(store):
        watchdog.feed()
        try:
            if _fetched(found, way):
                return True
        except OutpostError as e:
            log.say("trust", "no bundle from %s port %d: %s" % (found[0], found[1], e))
    return False


def _staged(store):
    """A newer bundle in the free slot, verified when it came: it gets one more trial each time,
    after which the endpoints have their turn."""
    slot = install.free_slot()
    h = install.usable(agreed.TRUST_SLOTS[slot])
    base = install.usable(trust.in_use())
    tried = trusting.entry(store, formats.NVS_TRUST_CHANGE)
    outcome = trusting.entry(store, formats.NVS_TRUST_OUTCOME)
    if not h or not h.version or not base or h.version <= base.version:
        return False
    if tried == h.version and outcome == trusting.NOT_TRUSTED:
        return False
    trusting.begin(store, slot, h)
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
