"""Provision: the keys that are born on this board, their request, and the certificate for them.

    first_boot(device_id)     the born key and its certificate, once in the board's life
    csr(device_id=None)       the request (PKCS #10, DER) for the TLS key, which it makes
    install(chain, now=None)  the certificate for it: checked whole, then kept

Owns the entries "born" and, on a board that has none, "id" of the NVS namespace; the keys are in
tlspolicy's own. Keys are made with the radio on: before that the ESP32's generator is only
pseudo-random. Prints nothing; a private key never comes here, so that none can be shown.
"""

from . import agreed, clock, identity, keystore
from .errors import IdentityError

_COMMON_NAME_MAX = 64  # X.520's bound, which every authority keeps to
# Its dates mean nothing: it is known by its thumbprint, for as long as the board lives.
_BORN_FROM = "20240101000000"
_BORN_UNTIL = "99991231235959"


def _policy():
    if identity.policy is None:
        raise IdentityError(
            "a stock MicroPython makes no keys: make the key and its certificate on the host, "
            "which is the weaker way, or flash our firmware",
            True,
        )
    return identity.policy


def _make_key(slot, again=False):
    """A new key, from a generator that the radio feeds."""
    import network

    try:
        network.WLAN(network.STA_IF).active(True)
        _policy().key_new(slot, again)
    except (OSError, RuntimeError) as e:
        raise IdentityError("no key could be made (%s): is NVS full? Nothing was changed" % e, True)


def _check_name(device_id):
    if len(device_id) > _COMMON_NAME_MAX:
        raise IdentityError(
            "device id %s has %d characters: a certificate takes %d at most"
            % (device_id, len(device_id), _COMMON_NAME_MAX),
            True,
        )


def first_boot(device_id):
    """Make the born key and its certificate where they are missing. True where it did."""
    policy = _policy()
    nvs = keystore.open_nvs()
    if identity.born_certificate(nvs):
        return False
    _check_name(device_id)
    # The certificate is written last: while it is not there, power went in between.
    if policy.key_public(agreed.SLOT_BORN) is None:
        _make_key(agreed.SLOT_BORN)
    der = policy.self_signed(agreed.SLOT_BORN, device_id, _BORN_FROM, _BORN_UNTIL)
    keystore.write(lambda: (nvs.set_blob(agreed.NVS_BORN, der), nvs.commit()))
    return True


def csr(device_id=None, new=False):
    """The request for this device's next TLS key, in DER; asking again gives the same key's.

    device_id  for a board that has none: kept in NVS; another than the board's own is refused
    new        a new key, even where one waits for its certificate
    """
    _policy()
    store = keystore.Store()
    name = identity.device_id(store.nvs, device_id)
    if device_id and name != device_id:
        raise IdentityError("this board is %s, not %s" % (name, device_id), True)
    identity.check_device_id(name.encode())
    _check_name(name)
    if keystore.blob(store.nvs, agreed.NVS_DEVICE_ID, (agreed.DEVICE_ID_MAX,)) is None:
        keystore.write(
            lambda: (store.nvs.set_blob(agreed.NVS_DEVICE_ID, name.encode()), store.nvs.commit())
        )
    first_boot(name)
    if new:
        store.drop()  # its certificate would be for a key that is gone
    return request(store.free_slot(), name, new)


def request(slot, name, new):
    """The request for the key in a slot, made anew where asked or where there is none."""
    policy = _policy()
    _check_name(name)
    if new or policy.key_public(slot) is None:
        _make_key(slot, True)
    return policy.key_csr(slot, name)


def born():
    """The born key's certificate (DER), by whose SHA-256 a hub can know this device."""
    nvs = keystore.open_nvs()
    first_boot(identity.device_id(nvs))
    return identity.born_certificate(nvs)


def install(chain, now=None):
    """Keep the chain (DER, leaf first) for the key that csr() made.

    now  Unix seconds by the host that signed it; without it, this board's clock where it is set
    A board with another identity tries this one beside it, and keeps what the hub accepts.
    """
    store = keystore.Store()
    name = identity.device_id(store.nvs)
    slot = store.free_slot()
    check_chain(chain, name, slot, now)
    first = store.current() is None and identity.Identity(name, store, "").old_record() is None
    store.candidate(keystore.Record(agreed.RECORD_X509, slot=slot, chain=bytes(chain)))
    if first:
        store.commit()


def check_chain(chain, name, slot, now=None):
    """IdentityError, in one sentence, where the chain is not one for `name` and slot's key."""
    policy = _policy()
    point = policy.key_public(slot)
    if point is None:
        raise IdentityError("this board made no request: ask it for one first", True)
    if not 0 < len(chain) <= agreed.CHAIN_MAX_BYTES:
        raise IdentityError(
            "the chain has %d bytes, not 1 to %d: leave the root out"
            % (len(chain), agreed.CHAIN_MAX_BYTES),
            True,
        )
    try:
        whole = [policy.certificate(der) for der in identity.certificates(chain)]
    except ValueError:
        raise IdentityError(
            "a certificate cannot be read: it is cut off, or it is not DER, one after another", True
        )
    leaf = whole[0]
    if leaf["cn"] != name:
        raise IdentityError("the certificate is for %s: this is %s" % (leaf["cn"], name), True)
    if leaf["point"] is None:
        raise IdentityError("the certificate's key is not one of the curve P-256", True)
    if leaf["point"] != point:
        raise IdentityError(
            "the certificate is for another key: sign the request that this board gave", True
        )
    try:
        policy.chain_ok(chain)
    except ValueError as e:
        raise IdentityError("the chain does not hold: %s" % e, True)
    _check_dates(whole, now)


def _check_dates(whole, now):
    floor = clock.Clock([]).floor
    known = now is not None or clock.now() >= floor
    now = max(floor, now or clock.now())
    for cert in whole:
        if clock.stamp(cert["not_after"]) < now:
            raise IdentityError("a certificate ended at %s" % _day(cert["not_after"]), True)
        # A clock at its floor is late, so that it cannot say that something is early.
        if known and clock.stamp(cert["not_before"]) > now:
            raise IdentityError(
                "a certificate begins at %s only, and it is %s"
                % (_day(cert["not_before"]), clock.text(now)),
                True,
            )


def _day(stamp):
    return "%s-%s-%s" % (stamp[:4], stamp[4:6], stamp[6:8])
