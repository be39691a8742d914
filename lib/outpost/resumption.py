"""Resumption: the TLS session of the last connection, kept over deep sleep, so that the next one
needs no certificates.

A session proves no root: it stands for the chain that was verified when it was made. So it is
offered only where all of this is as it was then: the server's name and port, the roots, the suites,
the key that this device proves itself with, the record size (in C, RFC 6066 binds it); while the
server's certificate has not expired; for a week at most; and never for a key on trial. One that
leads to no connection is offered once. forget() is for whoever changes trust or keys. Kept in RTC
memory, never in flash. A stock MicroPython has none.
"""

import hashlib
import struct

from micropython import const

from . import clock, log, rtcmem

try:
    import tlspolicy as policy

    if not hasattr(policy, "session"):
        policy = None
except ImportError:
    policy = None

_HEAD = const(40)  # tag, made, end of the server's certificate, both in seconds since 2000
_LONGEST_S = const(7 * 86400)
_UNIX_2000 = const(946684800)


def forget():
    """Drop the session: the next handshake is a full one."""
    rtcmem.put(rtcmem.SESSION, None)
    if policy:
        policy.session(None)
        policy.keep_session(False)


class Offer:
    """One connection's use of the session: offer before it, keep after it.

    where: host, port and ecc_only; roots() gives DER; credential None: no resumption.
    """

    def __init__(self, where, roots, credential):
        self.made = False  # whether a session was offered
        self._back = None  # what is in RTC memory again if the server was never reached
        self._tag = None
        self._began = self._ends = 0
        # A key on trial is tried with all of its proof.
        if not policy or credential is None or credential.trial:
            return
        key = "%s %s" % (credential.device_id, credential.mark)
        tag = hashlib.sha256(
            ("%s:%d %s %s" % (where.host, where.port, where.ecc_only, key)).encode()
        )
        tag.update(credential.shown())
        for der in roots():
            tag.update(der)
        self._tag = tag.digest()
        policy.keep_session(True)
        self.made = self._offer()

    def _offer(self):
        kept = rtcmem.get(rtcmem.SESSION)
        if not kept or len(kept) <= _HEAD or kept[:32] != self._tag:
            return False
        began, ends = struct.unpack_from("<II", kept, 32)
        now = clock.now() - _UNIX_2000
        if not began <= now < min(ends, began + _LONGEST_S):
            return False
        self._began, self._ends = began, ends
        # It goes before it is offered, and comes back by working: whatever it does to server or
        # device, power cut and reset included, it does once.
        rtcmem.put(rtcmem.SESSION, None)
        if not policy.session(kept[_HEAD:]):
            return False
        self._back = kept
        return True

    def used(self):
        """The server is reached."""
        self._back = None

    def kept(self, facts):
        """The connection is made: keep its session for the next one."""
        if self._tag is None:
            return
        try:
            self._keep(facts)
        except MemoryError:
            log.say("tls", "there is no memory to keep the session in")  # a full handshake next

    def _keep(self, facts):
        session = policy.session()
        if not facts["resumed"]:
            self._began = clock.now() - _UNIX_2000
            self._ends = clock.stamp(facts["not_after"]) - _UNIX_2000
        head = self._tag + struct.pack("<II", max(0, self._began), min(self._ends, 0xFFFFFFFF))
        if session and not rtcmem.put(rtcmem.SESSION, head + session):
            log.say("tls", "the session has %d bytes: too many to be kept" % len(session))

    def done(self):
        """Nothing of it stays in the TLS stack."""
        if self._back:
            rtcmem.put(rtcmem.SESSION, self._back)
        if policy:
            policy.session(None)
            policy.keep_session(False)
