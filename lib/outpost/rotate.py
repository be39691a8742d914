"""Rotation: new keys over the air, tried beside the old ones, which work until the new have.

The signed commands of role "keys": a symmetric key comes sealed to the key that this board was
born with; for X.509 the board makes a new key in a free slot and a request that the born key
endorses, and gets a certificate. Either is written as the candidate of the key store; the walk
tries it, and the connection that it makes commits it. One that is refused is tried again for a
while and then dropped; the old keys were never gone. The outbox is not touched.

Owns the entries "idsince" and "idseq" (since when the key is in use) and reads "seal" (a stock
board's key to open secrets with) of the NVS namespace. No secret leaves it: a symmetric key is
named by key_id(), which tells nothing of it.
"""

import binascii

from micropython import const

from . import agreed, clock, identity, jose, keystore, log
from .errors import IdentityError, SealError
from .sas import hmac_sha256

if not identity.policy:
    from . import p256

_SETTLE_MS = const(500)  # from an answer to the new connection, so that the answer gets out
_AGAIN_MS = const(15000)  # a hub may take a while to know a new key
_PATIENCE_S = const(600)  # for so long a candidate that was refused is kept
_DAY_S = const(86400)


def key_id(key):
    """A name for a symmetric key: only who has the key can tell it, and it tells nothing of it."""
    return jose.encode(hmac_sha256(key, agreed.KEY_ID_LABEL)[:12])


def certificate_id(chain):
    """The thumbprint (SHA-256, upper-case hexadecimal) of a chain's first certificate."""
    import hashlib

    leaf = next(identity.certificates(chain))
    return binascii.hexlify(hashlib.sha256(leaf).digest()).decode().upper()


def record_id(record):
    """The name of the key in a Record; None where there is none."""
    if record is None:
        return None
    if record.kind == agreed.RECORD_SYMMETRIC:
        return key_id(record.primary)
    return certificate_id(record.chain)


class Rotation:
    """way: the Walk. The device's loop calls step(), and makes a new connection when it says so."""

    def __init__(self, way, unseal):
        self._way = way
        self._unseal = unseal  # jwe.open_sealed
        self._due_ms = None  # uptime at which the new connection is to be made
        self._failed_ms = None  # uptime of the candidate's first refusal
        self._patience_ms = _PATIENCE_S * 1000
        self._eager = True
        self._dropped = None  # the key_id of the last candidate that was given up
        self._noted = False

    def open(self, desk, commands):
        """Take the signed commands of role "keys", and the question for the public facts."""
        desk.on("keys", "symmetric", self.symmetric)
        desk.on("keys", "secondary", self.secondary)
        desk.on("keys", "request", self.request)
        desk.on("keys", "certificate", self.certificate)
        desk.on("keys", "drop", self.drop)
        commands.method(agreed.IDENTITY_METHOD, self.facts)

    # What the host asks

    def facts(self, payload=None):
        """Public facts of this device's keys: names and dates, never a key."""
        store = keystore.Store()
        credential = self._way.credential or ""
        current = store.current() or self._way.who.old_record()
        if credential.startswith("enrolled "):
            current = store.onboard()
        trial = store.trial()
        found = {
            "device": self._way.who.device_id,
            "credential": credential.split(" ")[-1],
            "kind": current.kind if current else 0,
            "key": record_id(current),
            "trial": record_id(trial),
            "refused": bool(trial and self._way.trial_failed),
            "dropped": self._dropped,
            "due": self.due(),
        }
        if current and current.secondary:
            found["secondary"] = key_id(current.secondary)
        return found

    # The signed commands

    def symmetric(self, args, payload):
        """A new primary key, sealed: {"jwe": token, "wait": seconds, "eager": bool}."""
        primary, secondary = self._unsealed(args)
        store = keystore.Store()
        current = store.current()
        if current and current.primary == primary:
            return {"state": "in use", "key": key_id(primary)}
        self._offer(
            store, args, keystore.Record(agreed.RECORD_SYMMETRIC, 0, primary, secondary or b"")
        )
        return {"state": "on trial", "key": key_id(primary)}

    def secondary(self, args, payload):
        """Another secondary key beside the primary in use, which needs no trial."""
        primary, secondary = self._unsealed(args)
        store = keystore.Store()
        current = store.current()
        if not current or current.kind != agreed.RECORD_SYMMETRIC or current.primary != primary:
            raise IdentityError("the primary key in use is another one: nothing was changed")
        store.candidate(keystore.Record(agreed.RECORD_SYMMETRIC, 0, primary, secondary or b""))
        store.commit()
        self._noted = False
        return {"state": "in use", "key": key_id(primary)}

    def request(self, args, payload):
        """A new key in a free slot, and the request for it that the born key endorses."""
        from . import provision

        if identity.policy is None:
            raise IdentityError(
                "a stock MicroPython makes no keys, so its certificate cannot be changed over the "
                "air: make key and certificate on the host and build the image again, or flash "
                "our firmware",
                True,
            )
        store = keystore.Store()
        store.drop()  # the certificate of an earlier request would be for a key that is gone
        who = self._way.who.device_id
        csr = provision.request(store.free_slot(), who, True)
        text = agreed.ENDORSEMENT % (payload["fleet"], who, payload["ctr"])
        signature = identity.policy.key_sign(agreed.SLOT_BORN, text.encode() + csr)
        return {"csr": jose.encode(csr), "endorsement": jose.encode(signature)}

    def certificate(self, args, payload):
        """The chain for the last request's key: {"chain": base64url of the DER, leaf first}."""
        from . import provision

        try:
            chain = jose.decode(args["chain"])
        except (KeyError, ValueError, AttributeError):
            raise IdentityError("the command holds no chain in base64url")
        store = keystore.Store()
        current = store.current()
        if current and current.chain == chain:
            return {"state": "in use", "key": certificate_id(chain)}
        slot = store.free_slot()
        provision.check_chain(chain, self._way.who.device_id, slot)
        self._offer(store, args, keystore.Record(agreed.RECORD_X509, slot=slot, chain=chain))
        return {"state": "on trial", "key": certificate_id(chain)}

    def drop(self, args, payload):
        """Forget the candidate: the key in use stays."""
        self._give_up(keystore.Store())
        return {"state": "dropped"}

    def _unsealed(self, args):
        """(primary, secondary or None) of the sealed keys."""
        try:
            content = jose.parse(self._unseal(args["jwe"], _agree))
            if content["device"] != self._way.who.device_id:
                raise IdentityError("the sealed keys are for another device")
            primary = jose.decode(content["primary"])
            secondary = jose.decode(content["secondary"]) if "secondary" in content else None
        except (KeyError, ValueError, AttributeError, TypeError):
            raise SealError("the command holds no sealed keys")
        for key in (primary, secondary or primary):
            if not agreed.KEY_MIN_BYTES <= len(key) <= agreed.KEY_MAX_BYTES:
                raise SealError("the sealed key is too short or too long for a key")
        return primary, secondary

    # The trial

    def _offer(self, store, args, record):
        """Write the candidate; the next connection tries it."""
        wait = args.get("wait", _PATIENCE_S)
        if not isinstance(wait, int) or not 1 <= wait <= _DAY_S:
            raise IdentityError("the command's wait must be seconds from 1 to a day")
        self._keep_onboard(store)
        store.candidate(record)
        self._patience_ms = wait * 1000
        self._eager = args.get("eager", True) is True
        self._failed_ms = None
        self._dropped = None
        self._noted = False
        self._way.trial_failed = self._way.trial_feared = False
        if self._eager:
            self._due_ms = log.uptime_ms() + _SETTLE_MS
        log.say("identity", "a new key is on trial; the old one stays until it has worked")

    def _keep_onboard(self, store):
        """The provisioning service knows this device by the key that it was enrolled with."""
        record = store.current() or self._way.who.old_record()
        if self._way.config.dps and record:
            store.keep_onboard(record)

    def _give_up(self, store):
        self._dropped = record_id(store.trial())
        store.drop()
        self._way.trial_failed = self._way.trial_feared = False
        self._failed_ms = None
        log.say("identity", "the new key did not work and is dropped; the old one stays")

    def step(self):
        """Whether the device is to make a new connection now. Called while it is connected."""
        now = log.uptime_ms()
        if self._due_ms is not None:
            if now < self._due_ms:
                return False
            self._due_ms = None
            self._way.trial_failed = False
            return True
        if self._way.trial_failed or self._way.trial_feared:
            self._wait_for_trial(now)
        elif not self._noted:
            self._note()
        return False

    def _wait_for_trial(self, now):
        if self._failed_ms is None:
            self._failed_ms = now
        if now - self._failed_ms >= self._patience_ms:
            self._give_up(keystore.Store())
        elif self._eager and not self._way.trial_feared:
            self._due_ms = now + _AGAIN_MS

    # When the next one is due

    def _note(self):
        """Keep since when the key is in use, once the clock is vouched for."""
        since = self._way.date()
        if since is None:
            return
        self._noted = True
        current = keystore.Store().current()
        seq = current.seq if current else 0
        nvs = keystore.open_nvs()
        if _i32(nvs, agreed.NVS_KEY_SEQ) != seq:
            try:
                # In this order: a date without its number is written again.
                nvs.set_i32(agreed.NVS_KEY_SINCE, since)
                nvs.set_i32(agreed.NVS_KEY_SEQ, seq)
                nvs.commit()
            except OSError as e:
                log.say("identity", "NVS does not keep since when the key is in use (%s)" % e)

    def due(self):
        """Why a rotation is due: "age", "expiry", or None."""
        config = self._way.config
        today = self._way.date()
        if today is None:
            return None
        current = keystore.Store().current()
        if current and current.chain and identity.policy and config.renewal_days:
            leaf = next(identity.certificates(current.chain))
            ends = clock.stamp(identity.policy.certificate(leaf)["not_after"])
            if ends - agreed.UNIX_2000 - today < config.renewal_days * _DAY_S:
                return "expiry"
        nvs = keystore.open_nvs()
        since = _i32(nvs, agreed.NVS_KEY_SINCE)
        if _i32(nvs, agreed.NVS_KEY_SEQ) != (current.seq if current else 0):
            since = None  # it is the date of another key
        if config.rotation_days and since and today - since >= config.rotation_days * _DAY_S:
            return "age"
        return None


def _i32(nvs, name):
    try:
        return nvs.get_i32(name)
    except OSError:
        return None


def _agree(point):
    """The secret shared with the sender of a sealed message."""
    if identity.policy:
        try:
            return identity.policy.key_agree(agreed.SLOT_BORN, point)
        except OSError:
            raise SealError("this board has no born key, so nothing can be sealed to it", True)
    private = keystore.blob(keystore.open_nvs(), agreed.NVS_SEAL, (32,))
    if private is None:
        raise SealError(
            "this board has no key that secrets can be sealed to: build its image with "
            "'outpost image --seal-key', or flash our firmware",
            True,
        )
    return p256.agree(private, point)
