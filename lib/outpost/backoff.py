"""Back-off: how long to wait before the next attempt.

Exponential with full jitter: a wait drawn from 0 to min(longest, first * 2**n),
so that a fleet that lost its hub at one instant does not come back at one
instant. A server that says it is busy gets the upper half of that. A refusal
that only a person can mend waits in the upper half of the longest interval.
"""

import os


def _random(below):
    """A uniform number from 0 to below - 1 (below at most 2**24)."""
    raw = os.urandom(4)
    return (raw[0] | raw[1] << 8 | raw[2] << 16 | (raw[3] & 63) << 24) % below


class Backoff:
    def __init__(self, first_s, longest_s):
        self.bounds = (first_s, longest_s)
        self._first_ms = first_s * 1000
        self._longest_ms = longest_s * 1000
        self._n = 0

    def reset(self):
        self._n = 0

    def next_ms(self, person=False, busy=False):
        """Milliseconds to wait now; each call without reset() widens the next."""
        if person:
            half = self._longest_ms // 2
            return half + _random(half + 1)
        limit = self._first_ms << min(self._n, 16)
        if limit < self._longest_ms:
            self._n += 1
        else:
            limit = self._longest_ms
        # A server that has too much to do is not asked again at once by anybody.
        least = limit // 2 if busy else 0
        return least + _random(limit - least + 1)
