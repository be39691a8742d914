"""The operator's commands against a running hub: Microsoft's service SDK, or our own routes.

The device on the other end is paho-mqtt, so that nothing of ours answers for itself.
"""

from __future__ import annotations

import json
import queue
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator

import paho.mqtt.client as paho
import pytest
import requests
from devca import put_ca
from hubs import eventually, loopback
from operatorworld import DEVICE, PROGRAM, World, outpost
from outpost_tools.registry import Registry
from servers import in_time


@pytest.fixture
def world(tmp_path, monkeypatch) -> Iterator[World]:
    data = tmp_path / "data"
    monkeypatch.setenv("OUTPOST_DATA", str(data))
    monkeypatch.delenv("OUTPOST_CONNECTION_STRING", raising=False)
    monkeypatch.chdir(tmp_path)
    world = World(data)
    yield world
    world.close()


def told(*words: str) -> object:
    return json.loads(outpost(*words, "--json").stdout)


def refused(*words: str) -> str:
    """The one sentence of a command that failed."""
    said = outpost(*words, code=1).stderr
    assert said.startswith("outpost: ") and said.count("\n") == 1, said
    return said


# Devices


def test_a_devices_life_goes_through_the_hub(world):
    made = told("device", "new", DEVICE)
    assert made["registry"].startswith("hub 127.0.0.1:") and made["status"] == "enabled"
    assert "already" in refused("device", "new", DEVICE)
    client = world.device()
    assert told("device", "show", DEVICE)["connectionState"] == "Connected"
    assert [row["device"] for row in told("device", "list")] == [DEVICE]
    started = time.monotonic()
    assert told("device", "disable", DEVICE)["status"] == "disabled"
    assert client.lost.wait(30) and time.monotonic() - started < in_time(2)
    assert told("device", "enable", DEVICE)["status"] == "enabled"
    outpost("device", "remove", DEVICE)
    assert "no device" in refused("device", "show", DEVICE)
    assert "no device" in refused("device", "remove", DEVICE)


def test_no_command_shows_a_key_and_keys_go_into_a_private_file(world, tmp_path):
    shown = outpost("device", "new", DEVICE).output
    with Registry(world.data) as registry:
        before = registry.get(DEVICE)
        owner = registry.policy("iothubowner")
    file = tmp_path / "keys.json"
    for words in (
        ("device", "show", DEVICE, "--keys-to", str(file)),
        ("device", "show", DEVICE, "--json"),
        ("device", "list"),
        ("device", "list", "--json"),
        ("hub", "status"),
        ("hub", "status", "--json"),
        ("policy", "list", "--json"),
        ("policy", "show", "service", "--keys-to", str(tmp_path / "service.json")),
        ("device", "rotate", DEVICE, "--json"),
    ):
        shown += outpost(*words).output
    with Registry(world.data) as registry:
        after = registry.get(DEVICE)
    assert file.stat().st_mode & 0o777 == 0o600
    held = json.loads(file.read_text())
    assert held["primaryKey"] == before.primary_key
    text = f"HostName=127.0.0.1;DeviceId={DEVICE};SharedAccessKey={before.primary_key}"
    assert held["connectionString"] == text
    assert not {after.primary_key, after.secondary_key} & {before.primary_key, before.secondary_key}
    for key in (*before.keys, *after.keys, *owner.keys):
        assert key not in shown


@pytest.mark.parametrize("which", ["primary", "secondary", "swap"])
def test_rotate_changes_the_keys_it_is_asked_to(world, which):
    outpost("device", "new", DEVICE)
    with Registry(world.data) as registry:
        first, second = registry.get(DEVICE).keys
        outpost("device", "rotate", DEVICE, "--which", which)
        now = registry.get(DEVICE).keys
    expected = {
        "primary": (now[0] != first, now[1] == second),
        "secondary": (now[0] == first, now[1] != second),
        "swap": (now == (second, first),),
    }[which]
    assert all(expected)


def test_devices_with_certificates_are_made_and_have_no_keys_to_show(world):
    prints = ["AB" * 32, "CD" * 20]
    row = told("device", "new", DEVICE, "--thumbprint", prints[0], "--thumbprint", prints[1])
    assert row["auth"] == "selfSigned" and row["primaryThumbprint"] == prints[0]
    assert told("device", "new", "pump-8", "--ca-signed")["auth"] == "certificateAuthority"
    for device in (DEVICE, "pump-8"):
        assert told("device", "disable", device)["status"] == "disabled"
        assert "certificate" in refused("device", "rotate", device)
        assert "certificate" in refused("device", "show", device, "--keys-to", "k.json")
    assert {row["auth"] for row in told("device", "list")} == {"selfSigned", "certificateAuthority"}


def test_what_is_exported_from_one_hub_can_be_imported_into_another(world, tmp_path, monkeypatch):
    outpost("device", "new", DEVICE)
    outpost("device", "new", "pump-8", "--thumbprint", "AB" * 32, "--disabled")
    outpost("twin", "patch", DEVICE, '{"interval": 5}', "--tags", '{"site": "north"}')
    assert told("device", "export", "-o", "fleet.jsonl")["devices"] == 2
    file = tmp_path / "fleet.jsonl"
    assert file.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["id"] for line in lines} == {DEVICE, "pump-8"}
    with Registry(world.data) as registry:
        old = {d.device_id: d for d in registry.devices()}
    # Into a folder where no hub runs, and from there out again.
    other = tmp_path / "other"
    monkeypatch.setenv("OUTPOST_DATA", str(other))
    assert told("device", "import", "fleet.jsonl") == {"taken": 2, "refused": {}}
    with Registry(other) as registry:
        new = {d.device_id: d for d in registry.devices()}
    for name, device in old.items():
        for part in ("keys", "thumbprints", "auth", "status"):
            assert getattr(new[name], part) == getattr(device, part), part
    outpost("device", "export", "-o", "again.jsonl")
    again = {
        line["id"]: line
        for line in map(json.loads, (tmp_path / "again.jsonl").read_text().splitlines())
    }
    assert again[DEVICE]["tags"] == {"site": "north"}
    assert again[DEVICE]["properties"]["desired"]["interval"] == 5
    # And into the hub, where both are already.
    monkeypatch.setenv("OUTPOST_DATA", str(world.data))
    result = outpost("device", "import", "again.jsonl", "--mode", "create", "--json", code=1)
    assert set(json.loads(result.stdout)["refused"]) == {DEVICE, "pump-8"}
    assert told("device", "import", "again.jsonl")["refused"] == {}
    assert told("device", "import", "again.jsonl", "--mode", "delete")["taken"] == 2
    assert told("device", "list") == []


# Commands, methods, twins


def test_a_command_reaches_the_device_with_all_that_was_said_of_it(world):
    outpost("device", "new", DEVICE)
    sent = told(
        *("send", DEVICE, '{"open": true}', "--property", "zone=3 & ö", "--message-id", "m 1"),
        *("--content-type", "application/json", "--expires", "5m", "--ack", "full"),
    )
    assert sent == {"device": DEVICE, "messageId": "m 1", "bytes": 14}
    topic, body = world.device().got.get(timeout=30)
    assert body == b'{"open": true}'
    assert topic.startswith(f"devices/{DEVICE}/messages/devicebound/")
    for part in ("%24.mid=m%201", "zone=3%20%26%20%C3%B6", "iothub-ack=full"):
        assert part in topic, topic


def test_a_command_from_a_file_arrives_byte_for_byte(world, tmp_path):
    outpost("device", "new", DEVICE)
    (tmp_path / "body.bin").write_bytes(bytes(range(256)))
    client = world.device()
    outpost("send", DEVICE, "@body.bin")
    assert client.got.get(timeout=30)[1] == bytes(range(256))


def test_a_method_is_invoked_and_its_status_is_the_exit_status(world):
    outpost("device", "new", DEVICE)
    client = world.device(answers={"add": (200, {"sum": 3}), "fail": (500, "no")})
    assert outpost("invoke", DEVICE, "add", '{"a": 1}').stdout == '200 {"sum": 3}\n'
    assert json.loads(client.got.get(timeout=30)[1]) == {"a": 1}
    result = outpost("invoke", DEVICE, "fail", "--json", code=1)
    assert json.loads(result.stdout)["status"] == 500


def test_a_method_on_a_device_that_is_away_or_unknown_says_so(world):
    outpost("device", "new", DEVICE)
    assert "404103" in refused("invoke", DEVICE, "add")
    assert "no device" in refused("invoke", "pump-99", "add")


def test_a_method_that_nobody_answers_says_so(world):
    outpost("device", "new", DEVICE)
    client = world.device(answers={})
    client.on_message = lambda *_: None
    assert "504101" in refused("invoke", DEVICE, "slow", "--response-timeout", "5")


def test_a_twin_is_patched_shown_and_reaches_the_device(world):
    outpost("device", "new", DEVICE)
    client = world.device()
    twin = told("twin", "patch", DEVICE, '{"interval": 5, "led": {"r": 1}}', "--tags", '{"a": 1}')
    assert twin["properties"]["desired"]["interval"] == 5 and twin["tags"] == {"a": 1}
    topic, body = client.got.get(timeout=30)
    assert topic.startswith("$iothub/twin/PATCH/properties/desired/")
    assert json.loads(body)["interval"] == 5
    outpost("twin", "patch", DEVICE, "-", stdin='{"interval": null}')
    assert "interval" not in told("twin", "get", DEVICE)["properties"]["desired"]
    shown = outpost("twin", "get", DEVICE).stdout
    assert "desired (version 3)" in shown and '"r": 1' in shown and "$metadata" not in shown


@pytest.mark.parametrize(
    "words",
    [
        ["twin", "patch", DEVICE, "{"],
        ["twin", "patch", DEVICE, "[]"],
        ["twin", "patch", DEVICE],
        ["twin", "patch", DEVICE, "@nothing.json"],
        ["invoke", DEVICE, "x", "{"],
        ["send", DEVICE, "@nothing"],
        ["send", DEVICE, "x", "--property", "zone"],
        ["send", DEVICE, "x", "--expires", "soon"],
        ["send", "pump-99", "x"],
        ["twin", "get", "pump-99"],
        ["watch", "--since", "yesterday"],
        ["token", "pump-99"],
        ["token", DEVICE, "--policy", "registryRead"],
        ["token", "--policy", "nobody"],
        ["token", DEVICE, "--life", "9000d"],
        ["device", "import", "nothing.jsonl"],
        ["policy", "new", "a b", "--right", "RegistryRead"],
        ["policy", "remove", "nobody"],
        ["authority", "add", "x", "nothing.pem"],
        ["enrol", "show", "nobody"],
    ],
    ids=" ".join,
)
def test_what_cannot_work_is_one_sentence(world, words):
    outpost("device", "new", DEVICE)
    refused(*words)


# Watching


def watched(*words: str) -> list[dict]:
    return [json.loads(line) for line in outpost("watch", *words, "--json").stdout.splitlines()]


def test_kept_telemetry_is_read_again_with_both_of_its_times(world):
    for device_id in (DEVICE, "pump-8"):
        outpost("device", "new", device_id)
        client = world.device(device_id)
        for n in range(3):
            topic = f"devices/{device_id}/messages/events/n={n}"
            client.publish(topic, f"{device_id} {n}", qos=1).wait_for_publish(10)
    events = watched("--since", "1h")
    assert len(events) == 6 and {e["event"] for e in events} == {"telemetry"}
    mine = watched("--since", "1h", "--device", DEVICE)
    assert [e["body"] for e in mine] == [f"{DEVICE} {n}" for n in range(3)]
    assert mine[0]["properties"]["n"] == "0" and time.time() - mine[0]["received_s"] < 60
    words = outpost("watch", "--since", "1h", "--device", "pump-8").stdout
    assert "pump-8 sent pump-8 2" in words


def test_watch_follows_what_happens_until_it_is_told_to_end(world):
    outpost("device", "new", DEVICE)
    watching = subprocess.Popen(
        [PROGRAM, "watch", "--json", "--device", DEVICE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert eventually(lambda: world.hub.core._news)
        client = world.device()
        client.publish(f"devices/{DEVICE}/messages/events/", "live", qos=1)
        outpost("send", DEVICE, "hello")
        kinds = []
        for line in watching.stdout:
            event = json.loads(line)
            kinds.append(event["event"])
            if event["event"] == "command-completed":
                break
        assert {"connected", "telemetry", "command-queued", "command-sent"} <= set(kinds)
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=20)
        assert watching.returncode == 0 and errors == ""
    finally:
        watching.kill()
        watching.wait()


# Which hub


def test_load_counts_what_is_acknowledged_and_finds_all_of_it_kept(world):
    got = told("hub", "load", "--devices", "5", "--rate", "10", "--run-for", "2")
    assert got["connected"] == 5 and got["lost"] == 0
    assert got["acknowledged"] == got["stored"] >= 50


def test_a_hub_that_runs_by_itself_is_found_by_the_commands(tmp_path, monkeypatch):
    data = tmp_path / "data"
    monkeypatch.setenv("OUTPOST_DATA", str(data))
    put_ca(data)
    hub = subprocess.Popen(
        [PROGRAM, "hub", "run", "--port", "0", "--json"], stdout=subprocess.DEVNULL
    )
    try:
        assert eventually(lambda: (data / "hub.json").exists())
        assert told("device", "new", DEVICE)["registry"].startswith("hub 127.0.0.1:")
        assert told("hub", "status")["statistics"]["totalDeviceCount"] == 1
        assert told("send", DEVICE, "waits")["messageId"]
        hub.kill()
        hub.wait()
        assert told("device", "list")[0]["device"] == DEVICE
        assert "outpost hub run" in refused("send", DEVICE, "x")
    finally:
        hub.kill()
        hub.wait()


def test_status_says_where_the_hub_is_and_how_many_devices_it_has(world):
    outpost("device", "new", DEVICE)
    world.device()
    status = told("hub", "status")
    assert status["port"] == world.hub.port
    assert status["statistics"]["totalDeviceCount"] == 1
    assert status["statistics"]["connectedDeviceCount"] == 1
    assert "1 devices, 1 connected" in outpost("hub", "status").stdout


def test_a_connection_string_leads_to_that_hub_and_to_its_policys_rights(
    world, tmp_path, monkeypatch
):
    outpost("device", "new", DEVICE)
    outpost("policy", "show", "registryRead", "--keys-to", "read.json")
    text = json.loads((tmp_path / "read.json").read_text())["connectionString"]
    (tmp_path / "string.txt").write_text(text)
    shown = told("device", "show", DEVICE, "--connection", "string.txt")
    assert shown["device"] == DEVICE
    monkeypatch.setenv("OUTPOST_CONNECTION_STRING", text)
    assert told("device", "show", DEVICE)["device"] == DEVICE
    said = refused("device", "new", "pump-8")
    assert "lacks the right" in said and "SharedAccess" not in said


@pytest.mark.parametrize(
    "text",
    [
        "HostName=127.0.0.1:1;SharedAccessKeyName=a;SharedAccessKey=" + "A" * 43 + "=",
        "HostName=h;SharedAccessKeyName=a",
        "HostName=h;DeviceId=a;SharedAccessKey=" + "A" * 43 + "=",
        "HostName=h;SharedAccessKeyName=a;SharedAccessKey=secret!",
        "nothing here",
    ],
)
def test_a_connection_string_that_leads_nowhere_is_one_sentence_without_its_key(world, text):
    said = refused("twin", "get", DEVICE, "--connection", text)
    assert "AAAA" not in said and "secret" not in said


def test_without_a_hub_devices_can_be_made_and_the_rest_names_the_next_step(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPOST_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("OUTPOST_CONNECTION_STRING", raising=False)
    outpost("device", "new", DEVICE)
    outpost("device", "rotate", DEVICE)
    assert told("device", "disable", DEVICE)["status"] == "disabled"
    for words in (["twin", "get", DEVICE], ["invoke", DEVICE, "x"], ["send", DEVICE, "x"]):
        assert "outpost hub run" in refused(*words)
    for words in (["watch"], ["hub", "status"], ["hub", "load"]):
        assert "outpost hub run" in refused(*words)


def test_a_hub_that_was_killed_is_not_taken_for_running(tmp_path, monkeypatch):
    data = tmp_path / "data"
    monkeypatch.setenv("OUTPOST_DATA", str(data))
    outpost("device", "new", DEVICE)
    address = loopback(9)
    (data / "hub.json").write_text(
        json.dumps(
            {"host": address, "port": 9, "rest_host": address, "rest_port": 9, "names": ["x"]}
        )
    )
    assert told("device", "show", DEVICE)["status"] == "enabled"
    (data / "hub.json").write_text("{")
    assert told("device", "show", DEVICE)["status"] == "enabled"


# Tokens


def test_a_token_from_a_policys_key_lets_a_device_in_and_its_end_is_as_asked(world):
    outpost("device", "new", DEVICE)
    outpost("policy", "new", "tokens", "--right", "DeviceConnect")
    made = told("token", DEVICE, "--policy", "tokens", "--life", "15m", "--hub", "localhost")
    assert made["resource"] == f"localhost/devices/{DEVICE}" and made["policy"] == "tokens"
    assert 0 <= time.time() + 900 - made["expires_s"] < 60
    for words in (["--policy", "tokens"], [], ["--secondary"]):
        token = outpost("token", DEVICE, "--hub", "localhost", *words).stdout.strip()
        client = paho.Client(client_id=DEVICE, protocol=paho.MQTTv311)
        client.tls_set(str(world.roots), tls_version=ssl.PROTOCOL_TLS_CLIENT)
        client.username_pw_set(f"localhost/{DEVICE}/?api-version=2021-04-12", token)
        codes: queue.Queue[int] = queue.Queue()
        client.on_connect = lambda c, u, f, code, codes=codes: codes.put(code)
        client.connect("localhost", world.hub.port)
        client.loop_start()
        assert codes.get(timeout=30) == 0
        client.disconnect()
        client.loop_stop()


def test_a_service_token_is_taken_by_the_service_side(world):
    outpost("device", "new", DEVICE)
    token = outpost("token", "--policy", "service").stdout.strip()
    answer = requests.get(
        f"https://127.0.0.1:{world.rest.port}/twins/{DEVICE}?api-version=2021-04-12",
        headers={"Authorization": token},
        verify=str(world.roots),
        timeout=30,
    )
    assert answer.status_code == 200 and answer.json()["deviceId"] == DEVICE


# Enrolments


def test_enrolments_are_made_shown_changed_and_removed_without_their_keys(world, tmp_path):
    made = outpost("enrol", "new", "pumps", "--group", "--keys-to", "pumps.json", "--json")
    scope = json.loads(made.stdout)["idScope"]
    keys = json.loads((tmp_path / "pumps.json").read_text())
    assert keys["idScope"] == scope and (tmp_path / "pumps.json").stat().st_mode & 0o77 == 0
    outpost("enrol", "key", "pumps", DEVICE, "-o", "pump-7.json")
    derived = json.loads((tmp_path / "pump-7.json").read_text())
    shown = made.output
    for words in (
        ("enrol", "list"),
        ("enrol", "list", "--json"),
        ("enrol", "show", "pumps", "--group"),
        ("enrol", "disable", "pumps", "--group", "--json"),
        ("enrol", "enable", "pumps", "--group"),
        ("enrol", "remove", "pumps", "--group"),
    ):
        shown += outpost(*words).output
    for key in (keys["primaryKey"], keys["secondaryKey"], derived["primaryKey"]):
        assert key not in shown
    assert told("enrol", "list")["enrolments"] == []
