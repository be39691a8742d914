"""Assignment: when the provisioning service is asked, and what its answer changes.

Asked at the first connection; again, ever more seldom, while the hub that it gave does not take
this device; and ahead of the end of a certificate that it issued. The connection to it is closed
before the hub is called: there are never two. What it gave is dps.py's to keep in NVS; a
certificate that it issued is put on trial in the key store, and commits itself by working.
"""

from . import agreed, clock, dps, identity, keystore, log
from .errors import IdentityError, OutpostError, ProvisioningError
from .mqtt import Session

_REFUSAL = 4  # what a refusal weighs against a hub that could not be reached
_ASK_MOST = 256
_RENEW_RETRY_MS = 3600000
_THIRD = 3  # renewed when this part of a certificate's life is left


class Assignment:
    """The hub of one device, as DPS assigned it."""

    def __init__(self):
        self._dps = None
        self._who = None
        self._name = None
        self._misses = 0
        self._ask_at = _REFUSAL  # so many misses
        self._not_before = 0  # uptime in ms: the service sent this device away until then
        self._renew_not_before = 0

    def named(self, settings, who):
        """For these settings and this device; it is called what DPS has called it."""
        self._dps = settings
        self._who = who
        self._name = settings.registration_id or who.device_id
        kept = dps.remembered(settings, self._name)
        if kept:
            who.device_id = kept.device_id

    def hub(self, walk, now):
        """The hub's name: the one in NVS, or asked for over a connection of its own."""
        kept = dps.remembered(self._dps, self._name)
        renewal = kept and self._renewal_due(walk.clock)
        if kept and not renewal and self._misses < self._ask_at:
            return kept.hub
        try:
            got = self._register(walk, now)
        except OutpostError as e:
            if renewal:
                # The certificate still works: the hub is more urgent.
                self._renew_not_before = log.uptime_ms() + _RENEW_RETRY_MS
                log.error(e)
                return kept.hub
            self._asked(kept, kept)
            raise
        self._asked(kept, got)
        # Whether or not the hub takes what was issued: a loop would serve nobody.
        self._renew_not_before = log.uptime_ms() + _RENEW_RETRY_MS
        self._who.device_id = got.device_id
        log.say("dps", "assigned hub=%s device=%s" % (got.hub, got.device_id))
        return got.hub

    def _asked(self, before, after):
        """The next time is further away, unless the answer was news."""
        self._misses = 0
        same = before and before.hub == after.hub
        self._ask_at = min(self._ask_at * 2, _ASK_MOST) if same else _REFUSAL

    def missed(self, e):
        """The hub could not be reached, or refused this device."""
        self._misses += _REFUSAL if e.refused else 1

    def reached(self):
        self._misses = 0
        self._ask_at = _REFUSAL

    # One registration

    def _register(self, walk, now):
        left_ms = self._not_before - log.uptime_ms()
        if left_ms > 0:
            raise ProvisioningError(
                "the provisioning service is busy: not asked again for %d s" % (left_ms // 1000 + 1)
            )
        settings = self._dps
        log.say("dps", "asking %s for the hub of %s" % (settings.host, self._name))
        slot, request = self._request() if settings.csr else (None, None)
        try:
            credential, got = walk.first_accepted(
                self._who.onboarding(), lambda c: self._ask(walk, c, now, request)
            )
        except OutpostError as e:
            later_s = getattr(e, "later_s", 0)
            self._not_before = log.uptime_ms() + later_s * 1000
            raise
        if request:
            self._keep_certificate(got.chain, slot, now, credential)
            walk.trial_failed = walk.trial_feared = False
        dps.remember(got, settings, self._name)
        return got

    def _ask(self, walk, credential, now, request):
        from .walk import Endpoint

        settings = self._dps
        where = Endpoint(settings.host, walk.config.port, walk.config.ecc_only)
        session = Session(
            self._name,
            dps.user_name(settings, self._name),
            dps.password(credential, settings, self._name, now),
            walk.config.keepalive_s,
        )
        walk.open(session, where, credential, True, credential.symmetric)
        try:
            return dps.ask(session, self._name, request)
        finally:
            session.disconnect()

    # A certificate issued for a key of this device

    def _request(self):
        if identity.policy is None:
            raise IdentityError(
                "a stock MicroPython makes no keys: take dps.csr out of config.json, or flash "
                "our firmware",
                True,
            )
        from . import provision

        store = keystore.Store()
        slot = store.free_slot()
        # A key whose certificate is on trial, or was never answered for, is used again.
        return slot, provision.request(slot, self._name, store.trial() is None)

    def _keep_certificate(self, chain, slot, now, credential):
        """On trial beside the identity in use; what DPS is asked with stays what it was."""
        from . import provision

        if chain is None:
            raise ProvisioningError("the provisioning service issued no certificate", True)
        provision.check_chain(chain, self._name, slot, now)
        store = keystore.Store()
        if credential.place in ("current", "old") and store.onboard() is None:
            store.keep_onboard(store.current() or self._who.old_record())
        store.candidate(keystore.Record(agreed.RECORD_X509, slot=slot, chain=chain))

    def renewal_at(self, clock_):
        """Uptime in ms at which the issued certificate is to be renewed."""
        left_s = self._renewal_left_s()
        if left_s is None or not clock_.vouched():
            return 1 << 50
        return max(log.uptime_ms() + max(left_s, 0) * 1000, self._renew_not_before)

    def _renewal_due(self, clock_):
        if not clock_.vouched() or log.uptime_ms() < self._renew_not_before:
            return False
        left_s = self._renewal_left_s()
        return left_s is not None and left_s <= 0

    def _renewal_left_s(self):
        """Seconds until the certificate in use has a third of its life left; None without one."""
        if not self._dps.csr or identity.policy is None:
            return None
        record = keystore.Store().current()
        if record is None or record.kind != agreed.RECORD_X509:
            return None
        try:
            leaf = identity.policy.certificate(next(identity.certificates(record.chain)))
        except (ValueError, StopIteration):
            return None
        ends = clock.stamp(leaf["not_after"])
        return ends - (ends - clock.stamp(leaf["not_before"])) // _THIRD - clock.now()
