"""Outpost: a device that only ever calls home. See Device."""

import gc

# Collect often. Left alone, the heap fills to its end before the first collection: what stays is
# then strewn all over it, and the pieces of 1.5 KB that a TLS connection needs are not there,
# however much is free. An application that wants it otherwise calls gc.threshold() after this.
gc.collect()
gc.threshold(4096)

from .device import Device  # noqa: E402
from .errors import OutpostError  # noqa: E402

__version__ = "0.1.0"
__all__ = ("Device", "OutpostError")
