"""Revoke: the signed command below which version no bundle is used any more (docs/trust.md).

Raises "tr-floor" in NVS, and never lowers it. Loaded only for that.
"""

from . import formats, trust
from .errors import TrustError
from .trusting import entry, nvs, write


def revoke(args):
    """No bundle below args["floor"] is used any more, not even to reach a recovery endpoint."""
    store = nvs()
    floor = args.get("floor")
    if not isinstance(floor, int) or isinstance(floor, bool) or floor < 0:
        raise TrustError('the command must name a version: {"floor": 7}')
    version = trust.version(trust.in_use())
    if floor > version:
        raise TrustError(
            "version %d is in use: deliver a newer bundle before it is revoked" % version
        )
    floor = max(floor, entry(store, formats.NVS_TRUST_FLOOR))
    write(store, formats.NVS_TRUST_FLOOR, floor)
    return {"floor": floor, "version": version}
