"""The hub's parts alone: twins, the telemetry store, throttling; no connection and no TLS."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outpost_tools.hub import faults
from outpost_tools.hub.store import Telemetry, TelemetryStore
from outpost_tools.hub.throttle import S1, Limits, Throttle
from outpost_tools.hub.twins import TwinStore, check, parse_json
from outpost_tools.registry import Registry


@pytest.fixture
def twins(tmp_path):
    with Registry(tmp_path) as registry:
        registry.add("pump-7")
    store = TwinStore(tmp_path, lambda: 1000.0)
    yield store
    store.close()


def test_a_new_devices_twin_is_empty_and_in_its_first_version(twins):
    twin = twins.get("pump-7")
    assert (twin.tags, twin.desired, twin.reported) == ({}, {}, {})
    assert (twin.desired_version, twin.reported_version) == (1, 1)
    with pytest.raises(faults.DeviceNotFound):
        twins.get("pump-8")


def test_metadata_says_when_each_property_was_set(twins):
    twins.now_s = lambda: 2000.5
    twins.change("pump-7", desired={"a": {"b": 1}, "c": 2})
    twins.now_s = lambda: 3000.0
    twin = twins.change("pump-7", desired={"a": {"d": 3}, "c": None})
    first = {"$lastUpdated": "1970-01-01T00:33:20.5000000Z", "$lastUpdatedVersion": 2}
    second = {"$lastUpdated": "1970-01-01T00:50:00.0000000Z", "$lastUpdatedVersion": 3}
    assert twin.properties["desired"] == {
        "a": {"b": 1, "d": 3},
        "$metadata": {**second, "a": {**second, "b": first, "d": second}},
        "$version": 3,
    }


def test_an_etag_that_is_stale_changes_nothing(twins):
    first = twins.get("pump-7")
    second = twins.change("pump-7", tags={"site": "n"}, if_match=first.etag)
    assert second.etag != first.etag and second.desired_version == 1
    with pytest.raises(faults.PreconditionFailed):
        twins.change("pump-7", tags={"site": "s"}, if_match=first.etag)
    assert twins.get("pump-7") == second
    assert twins.report("pump-7", {"a": 1}).etag == second.etag


def test_replacing_empties_what_is_not_named_and_says_so_to_the_device(twins):
    told = []
    twins.on_desired = lambda *given: told.append(given)
    twins.change("pump-7", tags={"site": "n"}, desired={"a": 1, "b": 2})
    twin = twins.change("pump-7", desired={"b": 3, "$version": 9, "$metadata": {}}, whole=True)
    assert (twin.tags, twin.desired, twin.desired_version) == ({}, {"b": 3}, 3)
    assert told[1] == ("pump-7", {"a": None, "b": 3}, 3)


def test_a_removed_devices_twin_goes_with_it(twins, tmp_path):
    twins.change("pump-7", tags={"site": "n"})
    with Registry(tmp_path) as registry:
        registry.remove("pump-7")
        registry.add("pump-7")
    assert twins.get("pump-7").tags == {}


@pytest.mark.parametrize(
    "bad",
    [
        [],
        "text",
        {"": 1},
        {"a.b": 1},
        {"$a": 1},
        {"a b": 1},
        {"a\n": 1},
        {"a" * 1025: 1},
        {"a": "x" * 4097},
        {"a": 4503599627370496},
        {"a": -4503599627370497},
        {"a": [None]},
        {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": {"j": {"k": 1}}}}}}}}}}},
        {"a": "\ud800"},
    ],
)
def test_what_iot_hub_does_not_take_in_a_twin(bad):
    with pytest.raises(faults.ArgumentInvalid):
        check(bad, "reported")


@pytest.mark.parametrize(
    "good",
    [
        {"a": [1, "x", {"b": 2.5}, True]},
        {"a": None},
        {"é": "ü" * 2048},
        {"a": 4503599627370495},
        {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": {"j": 1}}}}}}}}}},
    ],
)
def test_what_iot_hub_takes_in_a_twin(good):
    assert check(good, "reported") == good


def test_32_kb_are_the_limit_of_the_whole_part_and_8_of_tags(twins):
    for number in range(8):
        twins.change("pump-7", desired={f"k{number}": "x" * 4000})
    with pytest.raises(faults.TooLarge):
        twins.change("pump-7", desired={"k9": "x" * 4000})
    assert twins.get("pump-7").desired_version == 9
    with pytest.raises(faults.TooLarge):
        twins.change("pump-7", tags={f"k{n}": "x" * 4000 for n in range(3)})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=3),
    lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3),
    max_leaves=8,
)
PATCHES = st.lists(st.dictionaries(st.sampled_from("abc"), JSON, max_size=3), max_size=5)


def merged(target, patch):
    """JSON Merge Patch, RFC 7396, as its own text has it."""
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = merged(target.get(name), value)
    return target


def shape(value):
    """The names of a part, and of its metadata, as one tree."""
    named = value if isinstance(value, dict) else {}
    return {name: shape(below) for name, below in named.items() if name[0] != "$"}


@settings(max_examples=60, deadline=None)
@given(PATCHES)
def test_patches_merge_as_rfc_7396_and_metadata_has_the_same_names(patches):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        with Registry(Path(folder)) as registry:
            registry.add("pump-7")
        store = TwinStore(Path(folder), time.time)
        expected = {}
        for patch in patches:
            expected = merged(expected, patch)
            twin = store.report("pump-7", patch)
        twin = store.get("pump-7")
        store.close()
    assert twin.reported == expected and twin.reported_version == 1 + len(patches)
    assert shape(twin.reported_metadata) == shape(twin.reported)


@pytest.mark.parametrize("bomb", [b"[" * 10**6, b'{"a":' * 10**5, b"9" * 10**5, b"\xff", b"NaN"])
def test_json_bombs_are_refused(bomb):
    with pytest.raises(faults.ArgumentInvalid):
        parse_json(bomb)


# Telemetry


async def put(store, count, body=b"x", received_s=None):
    done = [
        store.add(Telemetry("pump-7", body, {}, 1, False, 1, received_s or time.time()))
        for _ in range(count)
    ]
    return [await one for one in done]


def test_what_is_older_than_seven_days_is_forgotten(tmp_path):
    store = TelemetryStore(tmp_path)
    asyncio.run(put(store, 3, received_s=time.time() - 8 * 86400))
    asyncio.run(put(store, 2))
    store.forget()
    assert [e["number"] for e in store.read()] == [4, 5]
    store.close()


def test_beyond_the_size_the_oldest_is_forgotten(tmp_path):
    store = TelemetryStore(tmp_path, keep_bytes=200_000)
    asyncio.run(put(store, 100, body=bytes(4000)))
    store.forget()
    left = [e["number"] for e in store.read()]
    assert 20 < len(left) < 50 and left[-1] == 100 and left == list(range(left[0], 101))
    asyncio.run(put(store, 1))
    assert store.read()[-1]["number"] == 101
    store.close()


# Throttling


def test_a_bucket_gives_a_seconds_worth_at_once_and_then_its_rate():
    now = [0.0]
    throttle = Throttle(Limits(twin_reads=2), clock=lambda: now[0])
    assert [throttle.wait_s("twin_reads") for _ in range(3)] == [0.0, 0.0, 0.5]
    now[0] = 0.5
    assert [throttle.wait_s("twin_reads") for _ in range(2)] == [0.0, 0.5]
    with pytest.raises(faults.Throttled) as caught:
        throttle.check("twin_reads")
    assert caught.value.retry_after_s == 0.5 and caught.value.status == 429
    assert not any(throttle.wait_s("telemetry") for _ in range(1000))


def test_shaping_spreads_what_comes_at_once():
    throttle = Throttle(S1, clock=lambda: 0.0)
    waits = [throttle.wait_s("telemetry", overdraw=True) for _ in range(201)]
    assert waits[:100] == [0.0] * 100 and waits[200] == pytest.approx(1.01)
