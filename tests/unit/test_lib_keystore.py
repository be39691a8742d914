"""The key store: a record is whole or not there, and a change is one write."""

import random

import pytest
import storekeys
from chip import Chip
from storekeys import Nvs

keystore = storekeys.load()
agreed, Record = keystore.agreed, keystore.Record
IdentityError = keystore.IdentityError

OLD, OLD2, NEW, NEW2 = (random.Random(n).randbytes(32) for n in range(4))
CHAIN = random.Random(9).randbytes(900)


@pytest.fixture
def nvs(tmp_path):
    chip = Chip(tmp_path / "flash.bin")
    assert chip.start() == 0
    yield Nvs(chip)
    chip.close()


def symmetric(primary=NEW, secondary=NEW2):
    return Record(agreed.RECORD_SYMMETRIC, primary=primary, secondary=secondary)


RECORDS = {
    "symmetric": symmetric(),
    "one key": symmetric(NEW, b""),
    "x509": Record(agreed.RECORD_X509, 7, slot=2, chain=CHAIN),
    "x509 of a stock board": Record(agreed.RECORD_X509, slot=255, chain=CHAIN, private=bytes(121)),
    "signer": Record(agreed.RECORD_SIGNER, 2**32 - 1, slot=0, chain=b"\x30" * 3072),
}


def same(a, b):
    return vars(a) == vars(b)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_read_as_it_was_written(name):
    record = RECORDS[name]
    assert same(keystore.unpack(keystore.pack(record)), record)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_cut_off_or_with_one_bit_wrong_is_none(name):
    data = keystore.pack(RECORDS[name])
    for n in range(len(data)):
        assert keystore.unpack(data[:n]) is None
    for n in random.Random(1).sample(range(len(data)), min(len(data), 60)):
        wrong = bytearray(data)
        wrong[n] ^= 1 << n % 8
        assert keystore.unpack(wrong) is None
    assert keystore.unpack(data + b"\0") is None


def test_a_record_whose_crc_is_right_and_whose_lengths_lie_is_none():
    import binascii
    import struct

    for body in (b"", b"\xff", b"\x20" + NEW, b"\x10" + bytes(16) + b"\xff", b"\x00\x00"):
        for kind in (0, 1, 2, 3, 4, 255):
            data = struct.pack("<4sIB", b"OPK1", 1, kind) + body
            data += struct.pack("<I", binascii.crc32(data))
            assert keystore.unpack(data) is None


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (symmetric(b"short"), "a key has 5 bytes"),
        (symmetric(bytes(65)), "a key has 65 bytes"),
        (symmetric(NEW, bytes(3)), "a key has 3 bytes"),
        (Record(2, chain=bytes(3073)), "chain has 3073 bytes"),
        (Record(2), "chain has 0 bytes"),
        (Record(2, chain=CHAIN, private=bytes(257)), "no EC P-256 key"),
        (Record(9), "no kind 9"),
    ],
)
def test_a_record_that_could_not_be_used_is_not_written(nvs, record, words):
    store = keystore.Store(nvs)
    with pytest.raises(IdentityError, match=words):
        store.candidate(record)
    assert store.trial() is None


def test_a_candidate_is_tried_beside_the_one_in_use_and_takes_its_place_when_committed(nvs):
    store = keystore.Store(nvs)
    assert store.current() is store.trial() is None
    for n in range(5):
        record = RECORDS["x509"] if n % 2 else symmetric(bytes([n]) * 16)
        before = store.current()
        store.candidate(record)
        store = keystore.Store(nvs)
        assert before is None or same(store.current(), before)
        assert same(store.trial(), record) and record.seq == n + 1
        store.commit()
        store = keystore.Store(nvs)
        assert same(store.current(), record) and store.trial() is None
    with pytest.raises(IdentityError, match="no new key"):
        store.commit()


def test_after_a_commit_nothing_of_the_old_key_is_readable(nvs):
    nvs.set_blob("sas1", b"old")
    nvs.set_blob("sas2", b"old")
    store = keystore.Store(nvs)
    for key in (OLD, NEW):
        store.candidate(symmetric(key, b""))
        store.commit()
    for name in ("sas1", "sas2", "ida", "idtry"):
        with pytest.raises(OSError):
            nvs.get_blob(name, bytearray(400))
    assert same(store.current(), symmetric_with_seq(NEW, 2))


def test_each_change_of_the_key_in_use_drops_the_tls_session(nvs):
    before = keystore.resumption.forgotten
    store = keystore.Store(nvs)
    store.candidate(symmetric(OLD))
    store.drop()
    assert keystore.resumption.forgotten == before  # the key in use stayed
    store.candidate(symmetric(NEW))
    store.commit()
    assert keystore.resumption.forgotten == before + 1
    # Power went right after the write that commits: the next start does what is left.
    nvs.set_i32(agreed.NVS_TRIAL, nvs.get_i32(agreed.NVS_CURRENT))
    keystore.Store(nvs)
    assert keystore.resumption.forgotten == before + 2


def symmetric_with_seq(key, seq):
    return Record(agreed.RECORD_SYMMETRIC, seq, key, b"")


def test_a_dropped_candidate_is_gone_and_a_second_one_takes_the_place_of_the_first(nvs):
    store = keystore.Store(nvs)
    store.candidate(symmetric(OLD, b""))
    store.commit()
    store.candidate(symmetric(OLD2))
    store.candidate(symmetric(NEW))
    assert keystore.Store(nvs).trial().primary == NEW
    store.drop()
    store = keystore.Store(nvs)
    assert store.trial() is None and store.current().primary == OLD
    store.drop()


def test_a_full_nvs_refuses_a_candidate_and_changes_nothing(nvs):
    store = keystore.Store(nvs)
    store.candidate(symmetric(OLD))
    store.commit()
    n = 0
    with pytest.raises(OSError):
        while True:
            nvs.set_blob(f"fill{n}", bytes(600))
            n += 1
    with pytest.raises(IdentityError, match="NVS is full: nothing was changed"):
        store.candidate(Record(agreed.RECORD_X509, chain=CHAIN, slot=1))
    store = keystore.Store(nvs)
    assert store.trial() is None and store.current().primary == OLD


def test_what_dps_is_asked_with_is_kept_once_and_its_slot_is_never_given_away(nvs):
    store = keystore.Store(nvs)
    assert store.free_slot() == 1
    store.candidate(Record(agreed.RECORD_X509, chain=CHAIN, slot=1))
    store.commit()
    store.keep_onboard(store.current())
    assert store.free_slot() == 2
    store.candidate(Record(agreed.RECORD_X509, chain=CHAIN, slot=2))
    store.commit()
    store.keep_onboard(store.current())
    assert keystore.Store(nvs).onboard().slot == 1 and store.free_slot() == 3


def test_no_text_of_a_record_holds_its_key():
    for record in RECORDS.values():
        assert repr(record) == str(record) == f"<Record kind={record.kind} seq={record.seq}>"
