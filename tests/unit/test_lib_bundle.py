"""The device's reader of bundles, held to the host's on the same bytes: what one takes the other
takes, and what one refuses so does the other."""

from __future__ import annotations

import datetime as dt
import random
import time
from dataclasses import replace
from pathlib import Path

import bundles
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from devicelib import Library
from hypothesis import given, settings
from hypothesis import strategies as st
from outpost_tools import agreed, bundle, envelope, roots
from outpost_tools.bundle import Bundle, Endpoint
from outpost_tools.envelope import Envelope
from outpost_tools.errors import OutpostError

import certs

NOW = int(time.time())
PRESENT = bundles.make(3)


def verify(point: bytes, message: bytes, signature: bytes) -> bool:
    """What tlspolicy.verify does. p256's is held to vectors elsewhere, and used on stock boards."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


class Device:
    """lib/outpost/bundle.py and trust.py, on CPython."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "delivered.bin"
        self.library = Library()
        self.bundle, self.trust = self.library.bundle, self.library.trust
        self.bundle.verify = verify
        self.error = self.library.errors.TrustError

    def accepted(self, data: bytes, present: Bundle = PRESENT, now: int | None = NOW):
        self.path.write_bytes(data)
        return self.bundle.accepted(
            str(self.path),
            agreed.ROLE_TRUST,
            present.fleet.encode(),
            present.version,
            present.keys.encode(),
            now,
        )

    def takes(self, data: bytes, present: Bundle = PRESENT, now: int | None = NOW) -> bool:
        try:
            self.accepted(data, present, now)
        except self.error:
            return False
        return True


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    return Device(tmp_path_factory.mktemp("device"))


def host_takes(data: bytes, present: Bundle = PRESENT, now: int | None = NOW) -> bool:
    try:
        bundle.verify(data, present, now)
    except OutpostError:
        return False
    return True


def raw(body: bytes, version: int = 4, **fields) -> bytes:
    """An envelope around any body, signed as it should be."""
    settings = {
        "role": agreed.ROLE_TRUST,
        "fleet": bundles.FLEET,
        "floor": 0,
        "issued": NOW,
        "expires": NOW + 1000,
        "keys": bundles.keys(),
    }
    made = Envelope.around(body, version=version, **(settings | fields))
    return bundles.signed(made).encode()


def section(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value


ROOT = section(1, bundles.root().der)
KEY = envelope.point_of(bundles.key("a"))
NOT_A_ROOT = {
    "a leaf": certs.holder("leaf").der,
    "issued by another": certs.holder("sub", bundles.root(), authority=True).der,
    "junk": b"\x30\x82\x00\x04junk",
    "nothing": b"",
}

TWICE = replace(
    bundles.signed(bundles.make(4)), signatures=bundles.signed(bundles.make(4)).signatures * 2
)
TWO = bundles.keys("abc", 2)

GOOD = {
    "the next": bundles.data(4),
    "a later": bundles.data(40, floor=7),
    "new keys": bundles.data(4, "abc", keys=TWO),
    "everything": bundles.data(
        5,
        roots=[bundles.root(name).der for name in "ABC"],
        hosts=("one.example", "127.0.0.1"),
        recovery=(Endpoint("rescue.example", 443, bundles.root("D").der),) * 3,
        software=TWO,
        signers=b'{"fleet": "harbour", "signers": []}',
        more=((6, b""), (127, b"x" * 100)),
    ),
    "the roots of azure": bundles.data(6, roots=roots.choose(["azure"])),
}

BAD = {
    "nothing": b"",
    "no signature": bundles.make(4).unsigned().encode(),
    "another key": bundles.data(4, "b"),
    "one more key": bundles.data(4, "ab"),
    "the same version": bundles.data(3),
    "an older one": bundles.data(2),
    "another fleet": bundles.data(4, fleet="dock"),
    "expired": bundles.data(4, issued=NOW - 60, expires=NOW),
    "one key twice": TWICE.encode(),
    "a key named twice, for two": bundles.signed(
        replace(bundles.make(4).unsigned(), keys=envelope.Keys(2, (KEY, KEY)))
    ).encode(),
    "new keys unsigned": bundles.data(4, keys=TWO),
    "too few new ones": bundles.data(4, "ab", keys=bundles.keys("bc", 2)),
    "another role": raw(ROOT, role=agreed.ROLE_SOFTWARE, keys=None),
    "something behind": bundles.data(4) + b"\0",
    "a link alone": b"L" + bundles.data(4),
    "no root": raw(section(2, b"host")),
    "an empty body": raw(b""),
    "a root twice": raw(ROOT * 2),
    "seven roots": raw(b"".join(section(1, bundles.root(n).der) for n in "ABCDEFG")),
    "a section of nothing": raw(ROOT + section(0, b"")),
    "a section that must be known": raw(ROOT + section(128, b"")),
    "a section cut off": raw(ROOT + b"\2\0\5abc"),
    "a section's head cut off": raw(ROOT + b"\2\0"),
    "five hosts": raw(ROOT + section(2, b"h") * 5),
    "a host with a scheme": raw(ROOT + section(2, b"https://h")),
    "an empty host": raw(ROOT + section(2, b"")),
    "a long host": raw(ROOT + section(2, b"h" * 254)),
    "four endpoints": raw(ROOT + section(3, b"\1\xbb\1h" + bundles.root().der) * 4),
    "an endpoint without a pin": raw(ROOT + section(3, b"\1\xbb\1h")),
    "an endpoint with port 0": raw(ROOT + section(3, b"\0\0\1h" + bundles.root().der)),
    "an endpoint cut off": raw(ROOT + section(3, b"\1\xbb\x99h")),
    "software keys twice": raw(ROOT + section(4, b"\1\1" + KEY) * 2),
    "one software key twice": raw(ROOT + section(4, b"\1\2" + KEY * 2)),
    "too few software keys": raw(ROOT + section(4, b"\2\1" + KEY)),
    "no software keys": raw(ROOT + section(4, b"\0\0")),
    "software keys cut off": raw(ROOT + section(4, b"\1\1" + KEY[:-1])),
    "long signers": raw(ROOT + section(5, b" " * 2049)),
    "too large": raw(ROOT + section(6, bytes(7700))),
    **{f"a root that is {name}": raw(section(1, der)) for name, der in NOT_A_ROOT.items()},
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_bundle_is_taken_by_both(device, name):
    assert host_takes(GOOD[name]) and device.takes(GOOD[name])
    found, read = device.accepted(GOOD[name]), bundle.read(GOOD[name])[0]
    assert (found.version, found.floor, found.issued, found.expires) == (
        read.version,
        read.floor,
        read.issued,
        read.expires,
    )
    assert found.keys == read.keys.encode()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_bundle_is_refused_by_both(device, name):
    assert not host_takes(BAD[name]) and not device.takes(BAD[name])


def test_expiry_is_judged_only_by_a_time_that_is_known(device):
    assert device.takes(BAD["expired"], now=None) and host_takes(BAD["expired"], now=None)
    assert device.takes(bundles.data(4, issued=NOW - 60, expires=NOW + 1))


def test_a_flipped_bit_at_every_byte_is_refused_by_both(device):
    good = bytearray(bundles.data(4, "abc", keys=TWO, hosts=("h.example",), software=TWO))
    bit = random.Random(5)
    for at in range(len(good)):
        mask = 1 << bit.randrange(8)
        good[at] ^= mask
        assert not device.takes(bytes(good)), at
        assert not host_takes(bytes(good)), at
        good[at] ^= mask
    assert device.takes(bytes(good))


def test_a_file_cut_off_anywhere_is_refused_by_both(device):
    good = chain()
    for end in range(0, len(good), 7):
        assert not device.takes(good[:end]) and not host_takes(good[:end]), end
    assert device.takes(good)


def history() -> list[Envelope]:
    return [
        bundles.signed(PRESENT),
        bundles.signed(bundles.make(4, keys=bundles.keys("b")), "ab"),
        bundles.signed(bundles.make(5, keys=bundles.keys("b")), "b"),
        bundles.signed(bundles.make(6, keys=bundles.keys("cde", 2)), "bcd"),
        bundles.signed(bundles.make(7, keys=bundles.keys("cde", 2)), "de"),
    ]


def chain() -> bytes:
    return bundle.deliverable(history())


def test_keys_two_generations_on_are_reached_from_every_version(device):
    made = history()
    for known in made[:-1]:
        present = Bundle.of(known)
        assert device.accepted(chain(), present).version == 7
    assert not device.takes(chain(), Bundle.of(made[-1]))


def test_links_in_another_order_missing_or_twice_are_refused_by_both(device):
    made = history()
    four, six = envelope.changes(made)
    last = bundles.signed(bundles.make(7, keys=bundles.keys("c")), "bc")
    twin = bundles.signed(bundles.make(4, keys=bundles.keys("c")), "bc")
    over = bundles.signed(bundles.make(7, keys=bundles.keys("c")), "c")
    for links, end in (
        ([six, four], made[-1]),
        ([six], made[-1]),
        ([four], made[-1]),
        ([], made[-1]),
        ([four, four, six], made[-1]),
        ([four, six, six], made[-1]),
        ([four, six], made[2]),
        ([four, twin], over),
        ([four, six], last),
        ([replace(four, signatures=four.signatures[:1]), six], made[-1]),
    ):
        data = envelope.encode(links, end)
        assert not device.takes(data) and not host_takes(data)


def test_links_without_end_are_refused(device):
    link = envelope.changes(history())[0].encode_link()
    assert not device.takes(link * 2000)
    # Also where each is one that this device passes over.
    old = bundles.signed(bundles.make(2, keys=bundles.keys("b")), "ab").encode_link()
    assert not device.takes(old * 2000 + bundles.data(4))
    assert device.takes(old * 3 + bundles.data(4))


def test_an_endless_file_is_refused_without_being_read(device):
    class Endless:
        def __init__(self) -> None:
            self.good, self.at, self.most = bundles.data(4), 0, 0

        def read(self, n: int) -> bytes:
            piece = self.good[self.at : self.at + n]
            self.at += n
            self.most = max(self.most, n)
            return piece + bytes(n - len(piece))

        def seek(self, at: int, whence: int = 0) -> None:
            self.at = at + (self.at if whence else 0)

        def tell(self) -> int:
            return self.at

        def __enter__(self):
            return self

        def __exit__(self, *_) -> None:
            pass

    endless = Endless()
    device.bundle.open = lambda path, mode: endless
    try:
        with pytest.raises(device.error, match="behind its end"):
            device.bundle.accepted("x", 1, b"harbour", 3, PRESENT.keys.encode(), NOW)
    finally:
        del device.bundle.open
    assert endless.at < 2 * len(endless.good) and endless.most < 2048


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_both_say_the_same_of_any_damage(device, data):
    good = bytearray(data.draw(st.sampled_from([GOOD["new keys"], GOOD["everything"], chain()])))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(good) - 1))
        what = data.draw(st.sampled_from(["set", "insert", "delete", "swap"]))
        if what == "set":
            good[at] = data.draw(st.integers(0, 255))
        elif what == "insert":
            good[at:at] = data.draw(st.binary(max_size=5))
        elif what == "delete":
            del good[at : at + data.draw(st.integers(1, 80))]
        else:
            good[:at] = good[:at][::-1]
        if not good:
            break
    assert device.takes(bytes(good)) == host_takes(bytes(good))


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_both_say_the_same_of_any_body_that_is_well_signed(device, tail):
    data = raw(ROOT + tail)
    assert device.takes(data) == host_takes(data)


# What is read of a bundle in use


def test_roots_hosts_and_the_rest_are_found_in_a_bundle(device, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(GOOD["everything"])
    trust = device.trust
    assert list(trust.roots(str(path))) == [bundles.root(name).der for name in "ABC"]
    assert list(trust.values(2, str(path))) == [b"one.example", b"127.0.0.1"]
    assert list(trust.values(4, str(path))) == [TWO.encode()]
    assert device.bundle.endpoint(list(trust.values(3, str(path)))[2]) == (
        "rescue.example",
        443,
        bundles.root("D").der,
    )


def test_every_byte_cut_off_a_bundle_in_use_is_a_sentence(device, tmp_path):
    path = tmp_path / "a.bin"
    good = bundle.factory([bundles.root("A").der, bundles.root("B").der], NOW)
    for end in range(len(good)):
        path.write_bytes(good[:end])
        with pytest.raises(device.error):
            list(device.trust.roots(str(path)))


def test_the_last_moment_of_a_root_is_the_one_that_cryptography_reads(device):
    x509 = device.library.x509
    ders = roots.choose(["azure"]) + [bundles.root().der, certs.holder("leaf").der]
    ders.append(certs.holder("late", authority=True, ends=dt.timedelta(days=20000)).der)
    for der in ders:
        assert x509.last_moment(der) == f"{bundle.last_day(der):%Y%m%d%H%M%S}"


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_certificate_is_judged_and_never_raises(device, data):
    der = bytearray(bundles.root().der)
    at = data.draw(st.integers(0, len(der) - 1))
    der[at] = data.draw(st.integers(0, 255))
    cut = bytes(der[: data.draw(st.integers(0, len(der)))])
    for one in (bytes(der), cut):
        device.library.x509.is_root(one)
        device.library.x509.last_moment(one)
    assert not device.library.x509.is_root(cut) or cut == bytes(der)


def test_device_says_the_same_on_its_own_interpreter(micropython, tmp_path):
    cases = [(data, True) for data in (*GOOD.values(), chain())]
    cases += [(BAD[name], False) for name in sorted(BAD)[::4]]
    flipped = bytearray(GOOD["the next"])
    for at in range(3, len(flipped), 97):
        flipped[at] ^= 4
        cases.append((bytes(flipped), False))
        flipped[at] ^= 4
    for number, (data, _) in enumerate(cases):
        (tmp_path / f"{number}.bin").write_bytes(data)
    said = micropython(
        "from outpost import bundle, trust\n"
        "from outpost.errors import TrustError\n"
        f"keys = {PRESENT.keys.encode()!r}\n"
        f"for number in range({len(cases)}):\n"
        "    try:\n"
        f"        h = bundle.accepted('%d.bin' % number, 1, b'harbour', 3, keys, {NOW})\n"
        "        print(number, len(list(trust.roots('%d.bin' % number)))\n"
        "            if h.start == 0 else 1)\n"
        "    except TrustError as e:\n"
        "        print(number, 'refused')\n",
        timeout=240,
    ).split("\n")
    assert [" refused" not in line for line in said[: len(cases)]] == [good for _, good in cases]
