"""Identity: who this device is, and the ways in which it can prove it, in the order to try.

Reads the device id and the key store (keystore.py); writes nothing. A key stays in its
Credential, and a tlspolicy key never leaves C; no text form (repr, str, errors) holds either.
"""

import binascii

from . import agreed, keystore
from .errors import IdentityError

try:
    import tlspolicy as policy

    if not hasattr(policy, "key_public"):
        policy = None
except ImportError:
    policy = None

_NAMES = {
    agreed.RECORD_SYMMETRIC: "symmetric-key",
    agreed.RECORD_X509: "x509",
    agreed.RECORD_SIGNER: "external-signer",
    None: "born",
}

_signer = None


def use_signer(sign):
    """Let a secure element prove this device: sign(32-byte hash) -> ECDSA signature in DER.

    For an identity of kind "external-signer"; call it before Device() is made.
    """
    global _signer
    _signer = sign


class Credential:
    """One way to prove who this device is.

    name       "primary", "secondary", "certificate", "signer" or "born"; "new ..." on trial,
               "enrolled ..." for what the provisioning service knows the device by
    mark       the same as long as it is the same key: what was refused is known again by it
    symmetric  whether it signs tokens; else it is shown in the TLS handshake
    place      where it is kept: "trial", "current", "old", "onboard" or "born"
    """

    def __init__(self, device_id, name, store, place, key=None, seq=0):
        self.device_id = device_id
        self.trial = place == "trial"
        self.name = {"trial": "new ", "onboard": "enrolled "}.get(place, "") + name
        self.mark = "%s %s %d" % (place, name, seq)
        self.symmetric = key is not None
        self._key = key
        self._store = store
        self.place = place

    def __repr__(self):
        return "<Credential %s of %s>" % (self.name, self.device_id)

    def sign(self, message):
        """HMAC-SHA256 of a token's text with this symmetric key."""
        from .sas import hmac_sha256

        return hmac_sha256(self._key, message)

    def _record(self):
        if self.place == "born":
            chain = born_certificate(self._store.nvs)
            return keystore.Record(agreed.RECORD_X509, slot=agreed.SLOT_BORN, chain=chain or b"")
        # The place is the name of the store's own function.
        return getattr(self._store, self.place)() or keystore.Record(0)

    def shown(self):
        """The chain that is shown in the handshake; nothing where tokens are signed."""
        return b"" if self.symmetric else self._record().chain

    def message_bytes(self):
        """How long the device's certificate message is, in one handshake record."""
        return 0 if self.symmetric else 16 + 3 * 4 + len(self.shown())

    def arm(self, context):
        """Make the connections that follow show this certificate. Holds the chain meanwhile."""
        if self.symmetric:
            return
        record = self._record()
        try:
            if record.kind == agreed.RECORD_SIGNER:
                _arm_signer(record)
            elif policy and record.slot != agreed.SLOT_NONE:
                policy.client(record.chain, record.slot)
            elif not record.private:
                raise IdentityError(
                    "the key of this device is in slot %d, which a stock MicroPython has not: "
                    "use our firmware, or make the key on the host" % record.slot,
                    True,
                )
            else:
                for der in certificates(record.chain):
                    context.load_cert_chain(der, record.private)
        except (ValueError, OSError):
            raise IdentityError(
                "the certificate of this device does not fit its key: " + keystore.PROVISION, True
            )

    def disarm(self):
        if policy and not self.symmetric:
            policy.client(None)


def _arm_signer(record):
    if policy is None:
        raise IdentityError(
            "an external signer needs our firmware: a stock MicroPython cannot call one", True
        )
    if _signer is None:
        raise IdentityError(
            "this device's key is in a secure element: main.py must call "
            "outpost.identity.use_signer() before Device()",
            True,
        )
    policy.client(record.chain, _sign_outside)


def _sign_outside(digest):
    """What the TLS stack calls in the handshake."""
    try:
        return _signer(digest)
    except (IdentityError, MemoryError):
        raise
    except Exception as e:
        # Its text is the element's own: it is not known what is in it.
        raise IdentityError("the secure element did not sign (%s)" % type(e).__name__)


def certificates(chain):
    """Each certificate (DER) of a chain; ValueError where it is cut off or not DER."""
    at = 0
    while at < len(chain):
        # Longer than 255 bytes and shorter than 64 KiB, as every certificate is.
        if chain[at : at + 2] != b"\x30\x82" or len(chain) < at + 4:
            raise ValueError("the chain is not certificates in DER")
        end = at + 4 + (chain[at + 2] << 8 | chain[at + 3])
        if end > len(chain):
            raise ValueError("the last certificate of the chain is cut off")
        yield chain[at:end]
        at = end


def born_certificate(nvs):
    """DER of the born key's certificate, or None."""
    if policy is None:
        return None
    return keystore.blob(nvs, agreed.NVS_BORN, (1024,))


class Identity:
    """device_id, kind (a word for the console), and credentials() in the order to try."""

    def __init__(self, device_id, store, kind):
        self.device_id = device_id
        self.kind = kind
        self._store = store

    def __repr__(self):
        return "<Identity %s>" % self.device_id

    def credentials(self):
        """On trial, in use (primary, secondary), enrolled, born: a list, no chain in it yet.

        Read anew each time: a rotation may have written meanwhile.
        """
        self._store = store = keystore.Store()
        found = []
        for record, place in ((store.trial(), "trial"), (store.current(), "current")):
            if record:
                found += self._of(record, place)
        if not found or found[-1].trial:
            found += self._old_form()
        return found + self._enrolled() + self._born()

    def _enrolled(self):
        """Since a rotation another than the one in use: a hub that the service has assigned anew
        knows this device by it."""
        current, record = self._store.current(), self._store.onboard()
        same = current and record and current.kind == record.kind
        return self._of(record, "onboard") if same else []

    def onboarding(self):
        """The ways to prove it to the provisioning service: what it was first enrolled with."""
        others = [c for c in self.credentials() if c.place not in ("trial", "onboard")]
        record = self._store.onboard()
        return (self._of(record, "onboard") if record else []) + others

    def _of(self, record, place):
        def one(name, key=None):
            return Credential(self.device_id, name, self._store, place, key, record.seq)

        if record.kind == agreed.RECORD_SYMMETRIC:
            found = [one("primary", record.primary)]
            return found + [one("secondary", record.secondary)] if record.secondary else found
        return [one("certificate" if record.kind == agreed.RECORD_X509 else "signer")]

    def _old_form(self):
        found = []
        for entry, name in (
            (agreed.NVS_KEY_PRIMARY, "primary"),
            (agreed.NVS_KEY_SECONDARY, "secondary"),
        ):
            try:
                text = keystore.blob(self._store.nvs, entry, (agreed.DEVICE_ID_MAX,))
                key = decode_key(text, self.device_id) if text is not None else None
            except IdentityError:
                if name == "primary":
                    raise
                key = None  # the primary may do
            if key:
                found.append(Credential(self.device_id, name, self._store, "old", key))
        return found

    def old_record(self):
        """The old form's keys as a Record, or None."""
        keys = [c._key for c in self._old_form()]
        return keystore.Record(agreed.RECORD_SYMMETRIC, 0, *keys) if keys else None

    def _born(self):
        if born_certificate(self._store.nvs):
            return [Credential(self.device_id, "born", self._store, "born")]
        return []


def check_device_id(raw):
    """The id as str; IdentityError where IoT Hub would not take it."""
    device_id = "".join(chr(b) for b in raw)
    for c in device_id:
        if not (c.isdigit() or "a" <= c.lower() <= "z" or c in agreed.DEVICE_ID_PUNCTUATION):
            raise IdentityError(
                "the device id in NVS holds a character that IoT Hub does not take: "
                + keystore.PROVISION,
                True,
            )
    if not device_id:
        raise IdentityError("the device id in NVS is empty: " + keystore.PROVISION, True)
    return device_id


def device_id(nvs, default=None):
    """The id in NVS, or the default (DPS's registration id); IdentityError where there is none."""
    raw = keystore.blob(nvs, agreed.NVS_DEVICE_ID, (agreed.DEVICE_ID_MAX,))
    if raw is None and default:
        return default
    if raw is None:
        raise IdentityError("this board has no device id: " + keystore.PROVISION, True)
    return check_device_id(raw)


def load(default_id=None):
    """Identity from NVS; IdentityError says what is missing."""
    store = keystore.Store()
    name = device_id(store.nvs, default_id)
    record = store.current()
    who = Identity(name, store, _NAMES[record.kind] if record else "symmetric-key")
    if record is None and not who._old_form():
        if not who._born() and store.trial() is None:
            raise IdentityError(
                "device %s has no key in NVS: %s" % (name, keystore.PROVISION), True
            )
        who.kind = "born"
    return who


def decode_key(text, device_id):
    """The key's bytes of its base64 text; IdentityError never repeats the text."""
    try:
        key = binascii.a2b_base64(text)
        # a2b_base64 skips what is not base64; encoding again shows whether it did.
        good = binascii.b2a_base64(key).strip() == text.strip()
    except ValueError:
        good = False
    if not good:
        raise IdentityError(
            "the key of device %s is not base64: %s" % (device_id, keystore.PROVISION), True
        )
    if not agreed.KEY_MIN_BYTES <= len(key) <= agreed.KEY_MAX_BYTES:
        raise IdentityError(
            "the key of device %s has %d bytes, not %d to %d: %s"
            % (
                device_id,
                len(key),
                agreed.KEY_MIN_BYTES,
                agreed.KEY_MAX_BYTES,
                keystore.PROVISION,
            ),
            True,
        )
    return key
