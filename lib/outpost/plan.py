"""Plan: which file of a wish is to be fetched, and from where (pull.py fetches it).

A file is wanted where its kind wants that version; its address counts where the bundle in use names
the host. Loaded for one look at the wish; owns no flash.
"""

from . import orders, staging, trust
from .errors import DeliveryError, understood
from .pull import FOR_GOOD, Pull


def planned(delivery, wish, kinds):
    """The Pull of the first file that is wanted; None: there is none, and delivery was told."""
    wish = wish if isinstance(wish, dict) else {}
    name = None
    try:
        for name, kind in kinds.items():
            order = wish.get(name)
            found = isinstance(order, dict) and _looked_at(delivery, name, kind, order)
            if found:
                return found
    except Exception as e:
        delivery.later(name, understood(e))
        return None
    delivery.ended()
    return None


def _looked_at(delivery, name, kind, order):
    try:
        size, sha256 = orders.announced(order)
        if delivery.over.get(name) == sha256:
            return None
        delivery.over.pop(name, None)
        answered = orders.judged(kind, size, sha256, order)
        if answered is None:
            host, port, path = _allowed(order.get("url"))
    except DeliveryError as e:
        sha256 = order.get("sha256")
        answered = 400, {"error": str(e)}
    if answered is None:
        staged = (kind.stage or staging.Staging)(name)
        if (size, sha256) != (staged.size, staged.sha256):
            if staging.allow(kind, staging.BEGIN_BYTES):
                raise DeliveryError("too much was written in a short time")
            staged.begin(size, sha256)
        return Pull(delivery, name, kind, staged, (host, port, path), order.get("version"))
    if answered[0] >= 300 and answered[0] not in FOR_GOOD:
        raise DeliveryError(answered[1].get("error"))
    if delivery.over.get(name) != sha256:
        delivery.over[name] = sha256
        if answered[0] >= 300:
            delivery.report(name, order.get("version"), *answered)
    return None


def _allowed(url):
    """(host, port, path) of an address that this device may call."""
    host, port, path = parts(url)
    for name in trust.hosts():
        if name.lower() in (host, "%s:%d" % (host, port)):
            return host, port, path
    raise DeliveryError("the bundle in use does not name %s as a host for downloads" % host)


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
