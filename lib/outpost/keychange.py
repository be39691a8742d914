"""Changes of key: what writes the identity records that keystore.py reads.

A candidate goes whole into the entry that is not in use; one i32 write makes it the one in use;
only then is the old one erased. Power that goes at any flash operation so leaves the old identity
or the new one, whole. Another key in use drops the TLS session of the last. Its functions are the
Store's: store.commit() is commit(store) here. Loaded only while one of them runs; never prints.
"""

from . import agreed, resumption
from .errors import IdentityError
from .keystore import pack, write

try:
    import tlspolicy as policy

    if not hasattr(policy, "key_erase"):
        policy = None
except ImportError:
    policy = None


def _erase(nvs, name):
    try:
        nvs.erase_key(name)
    except OSError:
        pass  # it is not there


def candidate(store, record):
    """Write a record beside the one in use, and note that it is on trial."""
    before = store.current()
    record.seq = before.seq + 1 if before else 1
    at = 1 if store._at == 0 else 0
    data = pack(record)
    nvs = store.nvs
    _erase(nvs, agreed.NVS_TRIAL_LIVES)
    write(lambda: (nvs.set_blob(agreed.NVS_RECORDS[at], data), nvs.commit()))
    write(lambda: (nvs.set_i32(agreed.NVS_TRIAL, at), nvs.commit()))
    store._tried = at


def lives_of_trial(store):
    """One life of the device more begins with this candidate: how many have by now."""
    lives = 1
    try:
        lives += store.nvs.get_i32(agreed.NVS_TRIAL_LIVES)
    except OSError:
        pass  # the first
    try:
        store.nvs.set_i32(agreed.NVS_TRIAL_LIVES, min(lives, 1000))
        store.nvs.commit()
    except OSError:
        pass  # NVS is full: then it is not counted
    return lives


def commit(store):
    """The candidate is the identity from now on, by one write; the old one is erased."""
    if store.trial() is None:
        raise IdentityError("there is no new key to commit", True)
    nvs, at = store.nvs, store._tried
    write(lambda: (nvs.set_i32(agreed.NVS_CURRENT, at), nvs.commit()))
    store._at, store._tried = at, None
    tidy(store)


def drop(store):
    """Forget the candidate."""
    tried, store._tried = store._tried, None
    if tried is not None:
        _erase(store.nvs, agreed.NVS_TRIAL)
        _erase(store.nvs, agreed.NVS_RECORDS[tried])
        _erase(store.nvs, agreed.NVS_TRIAL_LIVES)
        store.nvs.commit()


def tidy(store):
    """After a commit: what the new identity took the place of goes, the trial's mark last."""
    nvs = store.nvs
    resumption.forget()  # a session stands for the key that it was made with
    _erase_keys(store)
    for name in (
        agreed.NVS_RECORDS[1 - store._at],
        agreed.NVS_KEY_PRIMARY,
        agreed.NVS_KEY_SECONDARY,
        agreed.NVS_TRIAL_LIVES,
        agreed.NVS_TRIAL,
    ):
        _erase(nvs, name)
    try:
        nvs.commit()
    except OSError:
        pass


def _erase_keys(store):
    used = _slots(store)
    if policy and used is not None:
        for slot in agreed.SLOTS_TLS:
            if slot not in used and policy.key_public(slot) is not None:
                policy.key_erase(slot)


def _slots(store):
    """Slots of the keys in use; None where a record that may name one cannot be read."""
    current = store.current()
    return None if current is None else [r.slot for r in (current, store.onboard()) if r]


def keep_onboard(store, record):
    """Keep what DPS is asked with before another record takes its place. Written once."""
    if store.onboard() is None:
        data = pack(record)
        nvs = store.nvs
        write(lambda: (nvs.set_blob(agreed.NVS_ONBOARD, data), nvs.commit()))


def free_slot(store):
    """A key slot of tlspolicy that neither the record in use nor DPS needs."""
    used = _slots(store) or [r.slot for r in (store.onboard(),) if r]
    for slot in agreed.SLOTS_TLS:
        if slot not in used:
            return slot
