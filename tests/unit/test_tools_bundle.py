"""Trust bundles on the host: what is written is read back, and nothing else is believed."""

from __future__ import annotations

import time
from dataclasses import replace

import bundles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outpost_tools import agreed, bundle, envelope
from outpost_tools.bundle import Bundle, Endpoint
from outpost_tools.envelope import Envelope, Keys
from outpost_tools.errors import OutpostError

import certs

NOW = int(time.time())
PRESENT = bundles.make(1)
POINTS = [envelope.point_of(bundles.key(name)) for name in "abcdefgh"]


@st.composite
def some_bundle(draw) -> Bundle:
    n = draw(st.integers(1, 8))
    version = draw(st.integers(1, agreed.VERSION_MAX))
    issued = draw(st.integers(0, 2**32 - 2))
    roots = [bundles.root(name).der for name in draw(st.sets(st.sampled_from("ABC"), min_size=1))]
    hosts = st.lists(st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z])?", fullmatch=True), max_size=4)
    endpoints = st.builds(
        Endpoint,
        st.just("rescue.example"),
        st.integers(1, 65535),
        st.sampled_from([bundles.root(name).der for name in "AB"]),
    )
    return Bundle(
        draw(st.text(st.characters(codec="utf-8"), min_size=1, max_size=16)),
        version,
        tuple(roots),
        Keys.of(draw(st.integers(1, n)), POINTS[:n]),
        draw(st.integers(0, version)),
        issued,
        draw(st.integers(issued + 1, 2**32 - 1)),
        tuple(draw(hosts)),
        tuple(draw(st.lists(endpoints, max_size=3))),
        draw(st.none() | st.just(Keys.of(2, POINTS[:3]))),
        None,
        tuple(draw(st.lists(st.tuples(st.integers(6, 127), st.binary(max_size=40)), max_size=3))),
    )


@given(some_bundle())
@settings(max_examples=60, deadline=None)
def test_every_bundle_comes_back_as_it_was_written(made):
    whole = bundles.signed(made, "abc")
    found, delivered = bundle.read(whole.encode())
    assert found == made and delivered.envelope == whole and delivered.links == ()


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_bytes_that_are_no_bundle_end_in_a_sentence(junk):
    for data in (junk, b"OPTB" + junk, b"LOPTB" + junk, b"OPTB\x01\x01\x01x" + junk):
        with pytest.raises(OutpostError):
            bundle.read(data)


def test_an_envelope_around_anything_of_either_role_is_read_back():
    made = Envelope.around(
        b"x" * 70000,
        role=agreed.ROLE_SOFTWARE,
        fleet="harbour",
        version=3,
        floor=2,
        issued=NOW,
        expires=NOW + 1,
    )
    made = envelope.sign(made, bundles.key("a"))
    keys = bundles.keys()
    got = envelope.verify(
        made.encode(), role=agreed.ROLE_SOFTWARE, fleet="harbour", version=2, keys=keys, now=NOW
    )
    assert got == made
    with pytest.raises(OutpostError, match="another role"):
        envelope.verify(made.encode(), role=1, fleet="harbour", version=2, keys=keys)


def test_six_roots_of_the_usual_sizes_with_all_else_fit_into_the_limit():
    from outpost_tools import roots

    real = roots.choose(["azure"])
    made = bundles.make(
        2,
        [*real, bundles.root("A").der, bundles.root("B").der],
        keys=Keys.of(3, POINTS[:5]),
        hosts=("updates.example.com",),
        recovery=(Endpoint("rescue.example.com", 443, bundles.root("C").der),),
        software=Keys.of(2, POINTS[:3]),
    )
    assert len(bundles.signed(made, "abcde").encode()) <= agreed.BUNDLE_MAX_BYTES


def test_a_bundle_that_would_be_too_large_is_refused():
    made = bundles.make(2, more=((6, b"x" * 8000),))
    with pytest.raises(OutpostError, match="8192"):
        made.unsigned()


# Who signs


def test_present_keys_sign_the_next_bundle():
    assert bundle.verify(bundles.data(2), PRESENT, NOW).version == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: bundles.make(2).unsigned().encode(), "lacks signatures"),
        (lambda: bundles.data(2, "b"), "nobody named"),
        (lambda: bundles.data(2, "ab"), "nobody named"),
        (lambda: bundles.data(1), "not newer"),
        (lambda: bundles.data(2, fleet="dock"), "for the fleet 'dock'"),
        (lambda: bundles.data(2, issued=NOW - 3600, expires=NOW - 30), "expired"),
        (lambda: bundles.data(2) + b"x", "behind the end"),
        (lambda: bundles.data(2)[:-1], "cut off"),
        (lambda: bundles.data(2, roots=[certs.holder("leaf").der]), "not a root"),
    ],
)
def test_what_a_device_must_not_take_is_refused(data, words):
    with pytest.raises(OutpostError, match=words):
        bundle.verify(data(), PRESENT, NOW)


def test_one_key_that_signs_twice_does_not_make_two():
    present = bundles.make(1, keys=bundles.keys("abc", 2))
    once = bundles.signed(bundles.make(2, keys=present.keys))
    with pytest.raises(OutpostError, match="1 of the present"):
        bundle.verify(once.encode(), present)
    twice = replace(once, signatures=once.signatures * 2)
    with pytest.raises(OutpostError, match="signed twice"):
        bundle.verify(twice.encode(), present)


def test_any_two_of_three_keys_will_do_each_on_its_own_machine():
    present = bundles.make(1, keys=bundles.keys("abc", 2))
    for names in ("ab", "ca", "cb", "abc"):
        carried = bundles.make(2, keys=present.keys).unsigned().encode()
        for name in names:  # a file goes from one to the other
            carried = envelope.sign(envelope.decode(carried).envelope, bundles.key(name)).encode()
        assert bundle.verify(carried, present).version == 2


def test_new_keys_need_as_many_of_their_own_signatures():
    made = bundles.make(2, keys=bundles.keys("bcd", 2))
    for names in ("a", "ab", "bc"):
        with pytest.raises(OutpostError, match="lacks signatures"):
            bundle.verify(bundles.signed(made, names).encode(), PRESENT)
    assert bundle.verify(bundles.signed(made, "abd").encode(), PRESENT).keys == made.keys
    assert envelope.missing(bundles.signed(made, "b"), PRESENT.keys) == (1, 1)


def test_a_flipped_bit_anywhere_is_refused():
    good = bytearray(bundles.data(2))
    for at in range(len(good)):
        good[at] ^= 1 << at % 8
        with pytest.raises(OutpostError):
            bundle.verify(bytes(good), PRESENT)
        good[at] ^= 1 << at % 8
    assert bundle.verify(bytes(good), PRESENT)


# Changes of keys


def history() -> list[Envelope]:
    """1 by a; 2 goes over to b; 3 as it was; 4 goes over to c; 5."""
    return [
        bundles.signed(bundles.make(1), "a"),
        bundles.signed(bundles.make(2, keys=bundles.keys("b")), "ab"),
        bundles.signed(bundles.make(3, keys=bundles.keys("b")), "b"),
        bundles.signed(bundles.make(4, keys=bundles.keys("c")), "bc"),
        bundles.signed(bundles.make(5, keys=bundles.keys("c")), "c"),
    ]


def test_one_file_takes_a_device_at_any_version_to_the_newest():
    made = history()
    data = bundle.deliverable(made)
    assert [link.version for link in envelope.decode(data).links] == [2, 4]
    for known in made[:-1]:
        assert bundle.verify(data, Bundle.of(known)).version == 5


def test_a_link_is_not_stopped_by_its_expiry():
    made = history()
    old = replace(made[1], issued=10, expires=20, signatures=())
    made[1] = bundles.signed(old, "ab")
    assert bundle.verify(bundle.deliverable(made), PRESENT, NOW).version == 5


def test_without_a_link_or_in_another_order_the_newest_is_refused():
    made = history()
    links = envelope.changes(made)
    for wrong in ([links[1]], [links[0]], [], links[::-1], [links[0], links[0], links[1]]):
        with pytest.raises(OutpostError):
            bundle.verify(envelope.encode(wrong, made[-1]), PRESENT)


def test_a_link_that_the_keys_before_it_did_not_sign_is_refused():
    made = history()
    made[1] = bundles.signed(bundles.make(2, keys=bundles.keys("b")), "b")
    with pytest.raises(OutpostError, match="lacks signatures"):
        bundle.verify(bundle.deliverable(made), PRESENT)


# What cannot be made


@pytest.mark.parametrize(
    "fields",
    [
        {"floor": 3},
        {"expires": 5},
        {"keys": Keys()},
        {"roots": [bundles.root().der] * 2},
        {"hosts": ("https://x",)},
        {"hosts": tuple("abcde")},
        {"signers": b'{"fleet": "dock"}'},
        {"more": ((128, b""),)},
        {"recovery": (Endpoint("x", 0, bundles.root().der),)},
        {"recovery": (Endpoint("x", 443, b"pin"),)},
        {"software": Keys()},
    ],
)
def test_a_bundle_that_no_device_would_take_is_not_made(fields):
    with pytest.raises(OutpostError):
        bundles.make(2, **fields).unsigned()


def test_a_section_that_must_be_known_is_refused_and_another_is_passed_over():
    plain = bundles.make(2)
    for kind, taken in ((127, True), (128, False)):
        body = plain.body() + bytes((kind, 0, 1)) + b"x"
        made = Envelope.around(
            body,
            role=1,
            fleet=plain.fleet,
            version=2,
            floor=0,
            issued=plain.issued,
            expires=plain.expires,
            keys=plain.keys,
        )
        data = bundles.signed(made).encode()
        if taken:
            assert bundle.verify(data, PRESENT).more == ((127, b"x"),)
        else:
            with pytest.raises(OutpostError, match="section 128"):
                bundle.verify(data, PRESENT)


def test_a_set_of_keys_names_each_once_and_can_reach_its_threshold():
    for threshold, points in ((0, POINTS[:1]), (2, POINTS[:1]), (1, POINTS[:1] * 2)):
        with pytest.raises(OutpostError):
            Keys.of(threshold, points)
    with pytest.raises(OutpostError, match="no point"):
        Keys.of(1, [b"\1" * 64])


def test_the_bundle_of_an_image_has_version_0_and_cannot_be_delivered():
    data = bundle.factory([bundles.root().der], NOW)
    found, delivered = bundle.read(data)
    assert found.version == 0 and not delivered.envelope.signatures and not found.keys.points
    with pytest.raises(OutpostError, match="fleet|newer"):
        bundle.verify(data, PRESENT)
