"""Plan: which file of a wish is to be fetched, and from where (pull.py fetches it).

A file is wanted where its kind wants that version; its address counts where the bundle in use names
the host. Each kind waits for itself: one that cannot be fetched keeps no other from coming. Loaded
for one look at the wish; owns no flash.
"""

from . import log, orders, staging, trust
from .errors import DeliveryError, understood
from .pull import FOR_GOOD, Pull


def planned(delivery, wish, kinds, again_ms):
    """(the Pull of the first file that is wanted, or None; ms until the next look, or None).

    again_ms  a failure keeps its kind waiting for so long even where another order came
    """
    wish = wish if isinstance(wish, dict) else {}
    now = log.uptime_ms()
    at = None
    for name, kind in kinds.items():
        order = wish.get(name)
        if not isinstance(order, dict):
            kind.order = None
            continue
        if order != kind.order:
            kind.order, kind.settled, kind.backoff = order, False, None
            kind.again_ms = min(kind.again_ms, now + again_ms)
        if kind.busy:
            kind.again_ms = max(kind.again_ms, now + 1000)
        if now >= kind.again_ms and not kind.settled:
            try:
                found = _looked_at(delivery, kind, order)
                if found:
                    return found, None
            except Exception as e:
                delivery.later(kind, understood(e))
        if not kind.settled:
            at = kind.again_ms if at is None else min(at, kind.again_ms)
    return None, None if at is None else max(0, at - now)


def _looked_at(delivery, kind, order):
    """The Pull of an order; None: it is settled."""
    answered = None
    try:
        size, sha256 = orders.announced(order)
        address = parts(order.get("url"))
    except DeliveryError as e:
        answered = 400, {"error": str(e)}
    if not answered and sha256 != kind.fetched:
        if staging.begins(kind):
            raise DeliveryError(staging.WORN)
        answered = orders.judged(kind, size, sha256, order)
        if not answered and not _named(*address):
            words = "the bundle in use does not name %s as a host for downloads" % address[0]
            answered = 400, {"error": words}
        if not answered:
            staged = (kind.stage or staging.Staging)(kind.name)
            if (size, sha256) != (staged.size, staged.sha256):
                if staging.allow(kind, staging.BEGIN_BYTES):
                    raise DeliveryError(staging.WORN)
                staged.begin(size, sha256)
            return Pull(delivery, kind, staged, address)
        if answered[0] >= 300 and answered[0] not in FOR_GOOD:
            raise DeliveryError(answered[1].get("error"))
    kind.settled = True
    if answered and answered[0] >= 300:
        delivery.report(kind, *answered)
    return None


def _named(host, port, path):
    """Whether the bundle in use names it."""
    for name in trust.hosts():
        if name.lower() in (host, "%s:%d" % (host, port)):
            return True
    return False


def parts(url):
    """(host, port, path) of an https address; DeliveryError where it is anything else."""
    if not isinstance(url, str) or len(url) > 512 or [c for c in url if not "!" <= c <= "~"]:
        raise DeliveryError("url is an https address of up to 512 plain characters")
    scheme, _, rest = url.partition("://")
    name, slash, path = rest.partition("/")
    host, colon, port = name.partition(":")
    if scheme.lower() != "https" or not host or not slash or "@" in name or "#" in url:
        raise DeliveryError("url is https://HOST[:PORT]/PATH, without user name and fragment")
    try:
        number = int(port) if colon else 443
    except ValueError:
        number = 0
    if not 1 <= number <= 65535 or [c for c in host if c in "\\?%[]"]:
        raise DeliveryError("url has no host and port that can be called")
    return host.lower(), number, "/" + path
