"""Trust bundles for tests: keys that sign, roots, and any bundle, good or bad.

It owns nothing on disk. Keys and roots are made once per run.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric import ec
from outpost_tools import bundle, envelope
from outpost_tools.bundle import Bundle
from outpost_tools.envelope import Envelope, Keys

import certs

FLEET = "harbour"
Key = ec.EllipticCurvePrivateKey


@functools.cache
def key(name: str) -> Key:
    """A signing key; the same name gives the same key."""
    del name
    return ec.generate_private_key(ec.SECP256R1())


@functools.cache
def root(name: str = "A") -> certs.Holder:
    """An authority's certificate; the same name gives the same one."""
    return certs.holder(f"Root {name}", authority=True, ends=3650 * certs.DAY)


def keys(names: str = "a", threshold: int = 1) -> Keys:
    """Of keys with names of one letter."""
    return Keys.of(threshold, [envelope.point_of(key(name)) for name in names])


def make(version: int = 1, roots: Sequence[bytes] | None = None, **fields) -> Bundle:
    """A bundle of the fleet `harbour` with the root A, whose next one the key a signs."""
    now = int(time.time())
    settings = {"keys": keys(), "issued": now - 60, "expires": now + 90 * 86400} | fields
    fleet = settings.pop("fleet", FLEET)
    return Bundle(fleet, version, tuple(roots or (root().der,)), **settings)


def signed(made: Bundle | Envelope, names: str = "a") -> Envelope:
    unsigned = made.unsigned() if isinstance(made, Bundle) else made
    return bundle.sign(unsigned, [key(name) for name in names])


def data(version: int = 1, names: str = "a", **fields) -> bytes:
    """The bytes of a bundle that the keys of these names have signed."""
    return signed(make(version, **fields), names).encode()
