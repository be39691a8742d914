"""Twins, commands and methods through a device that is paho's and the core that services use."""

import datetime as dt
import json
import subprocess
import sys
import time

import pytest
from outpost_tools.hub import faults
from outpost_tools.hub.throttle import Limits
from outpost_tools.registry import Registry
from pahodevice import World, connack, end
from servers import in_time

COMMANDS = "devices/pump-7/messages/devicebound/#"
METHODS = "$iothub/methods/POST/#"
TWIN = "$iothub/twin/res/#"
DESIRED = "$iothub/twin/PATCH/properties/desired/#"


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "data")
    yield world
    world.hub.stop()


def send(world, body=b"x", **given):
    return world.call(world.core.send_command("pump-7", body, **given))


# Commands


def test_a_command_arrives_with_its_properties_and_is_done_at_its_puback(world):
    client = world.client()
    client.subscribe_to(COMMANDS)
    sent = send(
        world,
        b"\x00go",
        properties={"a b": "c&d"},
        message_id="m-1",
        ack="full",
        content_type="x/y",
    )
    topic, body, qos = client.next()
    expiry = dt.datetime.fromtimestamp(sent.expiry_s, dt.UTC).strftime("%Y-%m-%dT%H%%3A%M%%3A%SZ")
    assert topic == (
        "devices/pump-7/messages/devicebound/%24.mid=m-1&"
        f"%24.to=%2Fdevices%2Fpump-7%2Fmessages%2Fdevicebound&%24.exp={expiry}&%24.ct=x%2Fy&"
        "iothub-ack=full&a%20b=c%26d"
    )
    assert (body, qos, sent.message_id) == (b"\x00go", 1, "m-1")
    done = world.event("command-completed")
    assert done["message_id"] == "m-1" and done["deliveries"] == 1 and done["ack"] == "full"
    assert world.call(world.core.commands_waiting("pump-7")) == []
    end(client)


def test_commands_are_held_while_the_device_is_away_and_come_in_order(world):
    for number in range(50):
        send(world, str(number).encode())
    with pytest.raises(faults.QueueFull):
        send(world)
    client = world.client()
    client.subscribe_to(COMMANDS)
    assert [client.next()[1] for _ in range(50)] == [str(n).encode() for n in range(50)]
    assert world.hub.wait_until(lambda: world.count("command-completed") == 50)
    end(client)


def test_commands_outlive_the_hub(world):
    send(world, b"kept", message_id="m-1")
    world.restart()
    client = world.client()
    client.subscribe_to(COMMANDS)
    assert client.next()[1] == b"kept"
    end(client)


def test_without_a_puback_it_comes_again_on_the_next_connection_marked_as_a_duplicate(world):
    send(world, b"again")
    with world.raw_session() as raw:
        raw.subscribe(COMMANDS)
        first = raw.next_publish()
    with world.raw_session() as raw:
        raw.subscribe(COMMANDS)
        second = raw.next_publish()
        assert (first.dup, second.dup) == (False, True) and second.body == b"again"
        raw.acknowledge(second)
        assert world.event("command-completed")["deliveries"] == 2


def test_a_command_tried_too_often_becomes_a_dead_letter(world):
    world.core.commands.lock_s, world.core.commands.deliveries_max = 0.2, 3
    send(world, b"poison", message_id="m-1")
    with world.raw_session() as raw:
        raw.subscribe(COMMANDS)
        got = [raw.next_publish() for _ in range(3)]
        assert [one.dup for one in got] == [False, True, True]
        dead = world.event("command-dead")
        assert (dead["message_id"], dead["state"]) == ("m-1", "undeliverable")
        raw.acknowledge(got[-1])  # too late, and no reason to hang up
        raw.ping()
    (letter,) = world.call(world.core.commands_dead("pump-7"))
    assert letter.deliveries == 3 and letter.state == "undeliverable"


def test_a_command_that_expires_is_never_delivered(world):
    send(world, b"late", expiry_s=time.time() + 1.5, message_id="m-1")
    send(world, b"good")
    assert world.event("command-dead")["state"] == "expired"
    client = world.client()
    client.subscribe_to(COMMANDS)
    assert client.next()[1] == b"good"
    end(client)


@pytest.mark.parametrize(
    ("ack", "wanted"),
    [
        ("none", []),
        ("positive", ["Success"]),
        ("negative", ["Purged", "DeliveryCountExceeded", "Expired"]),
        ("full", ["Success", "Purged", "DeliveryCountExceeded", "Expired"]),
    ],
)
def test_what_became_of_a_command_is_kept_for_who_asked(world, ack, wanted):
    queue, now_s = world.core.commands, time.time()
    for expiry_s in (None, None, None, now_s + 1.5):
        queue.add("pump-7", b"x", message_id="m", ack=ack, expiry_s=expiry_s)
    (first, second, third), _ = queue.take("pump-7", 3)
    queue.complete(first.number)
    last = queue.waiting("pump-7")[-1]
    queue.release([second.number])
    with queue._lock:
        queue._db.execute(
            "UPDATE command SET device_id = 'away' WHERE number > ?", (second.number,)
        )
    queue.purge("pump-7")
    with queue._lock:
        queue._db.execute("UPDATE command SET device_id = 'pump-7' WHERE device_id = 'away'")
        queue._db.execute("UPDATE command SET deliveries = 10 WHERE number = ?", (third.number,))
    queue.release([third.number])
    queue.take("pump-7", 0)
    time.sleep(max(0.0, now_s + 1.55 - time.time()))
    world.call(world.core.on_disk(queue.sweep))
    assert queue.waiting("pump-7") == [] and last.number > third.number
    world.restart()
    found = world.call(world.core.commands_feedback("pump-7"))
    assert [f["statusCode"] for f in found] == wanted
    for one in found:
        assert one["originalMessageId"] == "m" and one["deviceId"] == "pump-7"
        assert one["deviceGenerationId"] == world.device.generation_id and one["at_s"] >= now_s


def test_a_purged_queue_is_empty(world):
    send(world)
    send(world)
    assert world.call(world.core.commands_purge("pump-7")) == 2
    assert world.call(world.core.commands_waiting("pump-7")) == []


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"body": bytes(65537)}, faults.TooLarge),
        ({"properties": {"a": "é" * 20000}}, faults.TooLarge),
        ({"expiry_s": 1.0}, faults.ArgumentInvalid),
        ({"expiry_s": 9e9}, faults.ArgumentInvalid),
        ({"ack": "maybe"}, faults.ArgumentInvalid),
        ({"message_id": "m" * 129}, faults.ArgumentInvalid),
        ({"properties": {"a": "\ud800"}}, faults.ArgumentInvalid),
    ],
)
def test_commands_beyond_the_limits_are_refused(world, given, fault):
    with pytest.raises(fault):
        send(world, **{"body": b"x", **given})


def test_a_command_for_nobody_is_refused(world):
    with pytest.raises(faults.DeviceNotFound):
        world.call(world.core.send_command("pump-99", b"x"))


def test_a_session_that_is_kept_needs_no_new_subscription(world):
    client = world.client(clean=False)
    assert not client.session_present
    client.subscribe_to(COMMANDS)
    end(client)
    send(world, b"meanwhile")
    world.restart()
    again = world.client(clean=False)
    assert again.session_present and again.next()[1] == b"meanwhile"
    end(again)
    clean = world.client(clean=True)
    assert not clean.session_present
    end(clean)
    third = world.client(clean=False)
    assert not third.session_present
    end(third)


# Twins


def test_the_device_reads_its_twin_and_hears_of_desired_changes(world):
    client = world.client()
    client.subscribe_to(TWIN)
    client.subscribe_to(DESIRED)
    world.call(world.core.twin_patch("pump-7", desired={"rate": 5, "a": {"b": 1, "c": 2}}))
    topic, body, _ = client.next()
    assert topic == "$iothub/twin/PATCH/properties/desired/?$version=2"
    assert json.loads(body) == {"rate": 5, "a": {"b": 1, "c": 2}, "$version": 2}
    world.call(world.core.twin_patch("pump-7", desired={"a": {"b": None}}))
    assert json.loads(client.next()[1]) == {"a": {"b": None}, "$version": 3}
    client.publish("$iothub/twin/GET/?$rid=q1", b"")
    topic, body, _ = client.next()
    assert topic == "$iothub/twin/res/200/?$rid=q1"
    assert json.loads(body) == {
        "desired": {"rate": 5, "a": {"c": 2}, "$version": 3},
        "reported": {"$version": 1},
    }
    end(client)


def test_what_the_device_reports_is_merged_and_versioned(world):
    client = world.client()
    client.subscribe_to(TWIN)
    topic = "$iothub/twin/PATCH/properties/reported/?$rid={}"
    client.publish(topic.format(1), b'{"fw": "1.0", "old": 1, "n": {"a": 1}}', qos=1)
    assert client.next()[:2] == ("$iothub/twin/res/204/?$rid=1&$version=2", b"")
    client.publish(topic.format(2), b'{"old": null, "n": {"b": [1, {"c": 2}]}}')
    assert client.next()[0] == "$iothub/twin/res/204/?$rid=2&$version=3"
    twin = world.call(world.core.twin_get("pump-7"))
    assert twin.reported == {"fw": "1.0", "n": {"a": 1, "b": [1, {"c": 2}]}}
    assert set(twin.reported_metadata) == {"$lastUpdated", "fw", "n"}
    for bad in (b"{", b"[1]", b'{"a.b": 1}', b'{"a": NaN}', b"[" * 100000, b'{"a": 1e999999'):
        client.publish(topic.format(9), bad)
        assert client.next()[0] == "$iothub/twin/res/400/?$rid=9"
    client.publish(topic.format(9), json.dumps({f"k{n}": "x" * 4000 for n in range(9)}))
    assert client.next()[0] == "$iothub/twin/res/413/?$rid=9"
    assert world.call(world.core.twin_get("pump-7")) == twin
    end(client)


# Methods


def test_a_method_is_called_and_answered(world):
    client = world.client()
    client.subscribe_to(METHODS)
    call = world.start(world.core.invoke_method("pump-7", "reboot", {"delay": 3}))
    topic, body, _ = client.next()
    prefix = "$iothub/methods/POST/reboot/?$rid="
    assert topic.startswith(prefix) and json.loads(body) == {"delay": 3}
    client.publish(f"$iothub/methods/res/202/?$rid={topic[len(prefix) :]}", b'{"ok": true}')
    assert call.result(10) == (202, {"ok": True})
    end(client)


def test_a_method_for_a_device_that_is_away_waits_for_it_or_fails_with_404103(world):
    with pytest.raises(faults.DeviceNotOnline) as caught:
        world.call(world.core.invoke_method("pump-7", "reboot"))
    assert caught.value.code == 404103
    call = world.start(world.core.invoke_method("pump-7", "reboot", connect_timeout_s=20))
    client = world.client()
    client.subscribe_to(METHODS)
    rid = client.next()[0].partition("$rid=")[2]
    client.publish(f"$iothub/methods/res/200/?$rid={rid}", b"")
    assert call.result(10) == (200, None)
    end(client)


def test_a_method_that_nobody_answers_fails_with_504101(world, monkeypatch):
    monkeypatch.setattr("outpost_tools.hub.limits.METHOD_TIMEOUT_MIN_S", 0.1)
    client = world.client()
    client.subscribe_to(METHODS)
    with pytest.raises(faults.GatewayTimeout) as caught:
        world.call(world.core.invoke_method("pump-7", "reboot", response_timeout_s=0.3))
    assert caught.value.code == 504101 and len(world.core.methods) == 0
    rid = client.next()[0].partition("$rid=")[2]
    client.publish(f"$iothub/methods/res/200/?$rid={rid}", b"{}")  # too late, no harm
    assert not client.lost.wait(0.3)
    end(client)


def test_a_connection_that_ends_ends_its_methods(world):
    client = world.client()
    client.subscribe_to(METHODS)
    call = world.start(world.core.invoke_method("pump-7", "reboot"))
    client.next()
    end(client)
    with pytest.raises(faults.DeviceNotOnline):
        call.result(10)


@pytest.mark.parametrize(
    "given",
    [
        {"name": ""},
        {"name": "a/b"},
        {"name": "\ud800"},
        {"payload": float("nan")},
        {"response_timeout_s": 1},
        {"connect_timeout_s": 301},
    ],
)
def test_methods_beyond_the_limits_are_refused(world, given):
    with pytest.raises(faults.ArgumentInvalid):
        world.call(world.core.invoke_method("pump-7", **{"name": "reboot", **given}))


def test_a_method_payload_over_128_kb_is_refused(world):
    with pytest.raises(faults.TooLarge):
        world.call(world.core.invoke_method("pump-7", "reboot", "x" * 131072))


# Revocation


ELSEWHERE = """
import sys
from pathlib import Path
from outpost_tools.registry import Registry
registry = Registry(Path(sys.argv[1]))
getattr(registry, sys.argv[2])(*sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("set_status", "pump-7", "disabled"), "the device was disabled"),
        (("remove", "pump-7"), "the device was removed"),
        (("rotate", "pump-7", "primary"), "the key of its token was replaced"),
    ],
)
def test_a_change_by_another_process_ends_the_connection_within_a_second(world, change, reason):
    client = world.client()
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, str(world.data), *change], check=True)
    began = time.monotonic()
    assert client.lost.wait(30) and time.monotonic() - began < in_time(1), done
    end(client)
    assert world.event("closed")["reason"] == reason
    refused = world.client(wait=False)
    assert connack(refused) == 5
    end(refused)


def test_the_secondary_keys_connection_stays_when_the_primary_is_replaced(world):
    client = world.client(password=world.token(key=world.device.secondary_key))
    with Registry(world.data) as registry:
        registry.rotate("pump-7", "primary")
    assert not client.lost.wait(1)
    end(client)


def test_statistics_and_connection_state(world):
    assert world.core.connection("pump-7").state == "Disconnected"
    client = world.client(username="localhost/pump-7/?api-version=2021-04-12&model-id=dtmi%3Aa%3B1")
    seen = world.core.connection("pump-7")
    assert seen.state == "Connected" and seen.model_id == "dtmi:a;1"
    assert world.core.statistics() == {
        "totalDeviceCount": 1,
        "enabledDeviceCount": 1,
        "disabledDeviceCount": 0,
        "connectedDeviceCount": 1,
    }
    end(client)
    assert world.hub.wait_until(lambda: world.core.connection("pump-7").state == "Disconnected")
    world.restart()
    assert world.core.connection("pump-7").last_activity_s == pytest.approx(
        seen.last_activity_s, abs=5
    )


# Telemetry beyond the walk


def test_the_will_of_a_broken_connection_is_telemetry(world):
    with world.raw_session(will=(b"devices/pump-7/messages/events/a=1", b"gone")):
        pass
    assert world.hub.wait_until(lambda: world.hub.telemetry)
    (will,) = world.hub.telemetry
    assert will.body == b"gone"
    assert will.properties == {"a": "1", "iothub-MessageType": "Will"}


def test_a_retained_message_says_so_in_a_property(world):
    client = world.client()
    client.publish("devices/pump-7/messages/events/", b"x", qos=1, retain=True).wait_for_publish(10)
    assert world.hub.telemetry[0].properties == {"mqtt-retain": "true"}
    end(client)


def test_telemetry_is_read_again_with_the_time_it_was_made(world):
    client = world.client()
    topic = "devices/pump-7/messages/events/a=1&%24.ctime=2026-01-02T03%3A04%3A05Z"
    client.publish(topic, b"\xff", qos=1).wait_for_publish(10)
    client.publish("devices/pump-7/messages/events/", b"two", qos=1).wait_for_publish(10)
    end(client)
    first, second = world.call(world.core.telemetry_since())
    assert first["made_s"] == 1767323045 and first["received_s"] > first["made_s"]
    assert first["base64"] == "/w==" and first["properties"] == {"a": "1"}
    assert second["made_s"] == second["received_s"] and second["body"] == "two"
    later = world.call(world.core.telemetry_since(after_number=first["number"]))
    assert later == [second]
    assert world.call(world.core.telemetry_since(since_s=time.time() + 9)) == []
    assert world.call(world.core.telemetry_since(device_id="pump-8")) == []


# Throttling


def test_without_limits_nothing_is_throttled_and_with_them_it_is(world):
    client = world.client()
    client.subscribe_to(TWIN)
    world.core.throttle.set(Limits(twin_reads=1, telemetry=5, connects=1))
    statuses = set()
    for rid in range(4):
        client.publish(f"$iothub/twin/GET/?$rid={rid}", b"")
        statuses.add(client.next()[0].split("/")[3])
    assert statuses == {"200", "429"}
    began = time.monotonic()
    sent = [client.publish("devices/pump-7/messages/events/", b"x", qos=1) for _ in range(10)]
    for one in sent:
        one.wait_for_publish(20)
    assert time.monotonic() - began > 0.7  # shaped, not lost
    end(client)
    codes = []
    for _ in range(3):
        other = world.client(wait=False)
        codes.append(connack(other))
        end(other)
    assert 3 in codes
