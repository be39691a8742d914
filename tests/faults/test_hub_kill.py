"""kill -9 of a hub at work: what was acknowledged, queued or reported is there afterwards."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

from hubs import roots_file
from outpost_tools.hub import Hub
from outpost_tools.hub.load import Load
from outpost_tools.registry import Registry

HUB = """
import sys, threading
from pathlib import Path
from outpost_tools.hub import Hub
hub = Hub(Path(sys.argv[1]), port=int(sys.argv[2]))
print(hub.start()[1], flush=True)
count = 0
for line in sys.stdin:
    command = hub.core.wait(hub.core.send_command("pump-7", line.strip().encode()))
    twin = hub.core.wait(hub.core.twin_patch("pump-7", desired={"n": int(line)}))
    print(command.message_id, twin.desired_version, flush=True)
threading.Event().wait()
"""


def start(data, port=0):
    hub = subprocess.Popen(
        [sys.executable, "-c", HUB, str(data), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return hub, int(hub.stdout.readline())


def test_no_acknowledged_message_is_lost_when_the_hub_is_killed_under_load(tmp_path):
    import asyncio

    roots_file(tmp_path)
    hub, port = start(tmp_path)
    load = Load(tmp_path, 40, 10.0, "127.0.0.1", port, 100, "localhost")
    hubs = [hub]

    def kill():
        load_began.wait(30)
        for pause_s in (1.0, 1.3):
            time.sleep(pause_s)
            os.kill(hubs[-1].pid, signal.SIGKILL)
            hubs[-1].wait()
            hubs.append(start(tmp_path, port)[0])

    load_began = threading.Event()
    killer = threading.Thread(target=kill)
    killer.start()
    result = asyncio.run(load.run(8.0, lambda _: load_began.set()))
    killer.join()
    load.look_into_the_store()
    for one in hubs:
        one.kill()
        one.wait()
        one.stdin.close()
        one.stdout.close()
    assert len(hubs) == 3 and result.reconnects >= 40
    assert result.acknowledged > 500 and result.lost == 0
    assert result.stored == result.acknowledged


def test_commands_and_twins_that_were_answered_for_outlive_the_hub(tmp_path):
    roots_file(tmp_path)
    with Registry(tmp_path) as registry:
        registry.add("pump-7")
    answered = []
    for pause_s in (0.05, 0.11):
        hub, _ = start(tmp_path)

        def feed(into=hub.stdin):
            try:
                for number in range(20):
                    into.write(f"{number}\n")
                    into.flush()
                    time.sleep(0.01)
            except OSError:
                pass

        feeder = threading.Thread(target=feed)
        feeder.start()
        first = hub.stdout.readline()
        time.sleep(pause_s)
        os.kill(hub.pid, signal.SIGKILL)
        lines = [first, *hub.stdout.readlines()]
        hub.wait()
        feeder.join()
        hub.stdout.close()
        answered += [line.split() for line in lines if line.endswith("\n")]
    assert len(answered) >= 2
    with Hub(tmp_path) as again:
        waiting = again.core.wait(again.core.commands_waiting("pump-7"))
        twin = again.core.wait(again.core.twin_get("pump-7"))
    assert {message_id for message_id, _ in answered} <= {c.message_id for c in waiting}
    assert twin.desired_version >= int(answered[-1][1])
    assert json.dumps(twin.desired)


REGISTRAR = """
import sys
from pathlib import Path
from outpost_tools.registry import Registry
registry = Registry(Path(sys.argv[1]))
for number in range(1000):
    name = f"{sys.argv[2]}-{number}"
    print("add", name, registry.add(name).primary_key, flush=True)
    print("rotate", name, registry.rotate(name, "primary").primary_key, flush=True)
    print("disable", name, registry.set_status(name, "disabled").status, flush=True)
    if number % 3 == 2:
        registry.remove(f"{sys.argv[2]}-{number - 1}")
        print("remove", f"{sys.argv[2]}-{number - 1}", "-", flush=True)
"""


def test_every_change_of_the_registry_that_was_answered_for_outlives_a_kill(tmp_path):
    answered = []
    for number, pause_s in enumerate((0.02, 0.05, 0.11, 0.23)):
        child = subprocess.Popen(
            [sys.executable, "-c", REGISTRAR, str(tmp_path), str(number)],
            stdout=subprocess.PIPE,
            text=True,
        )
        answered.append(child.stdout.readline().split())
        time.sleep(pause_s)
        child.kill()
        lines = child.stdout.readlines()
        child.wait()
        child.stdout.close()
        answered += [line.split() for line in lines if line.endswith("\n")]
    with Registry(tmp_path) as registry:
        assert registry._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        held = {d.device_id: d for d in registry.devices()}
        assert len(registry.policies()) == 5
    assert len(answered) >= 8
    last = {name: index for index, (_, name, _) in enumerate(answered)}
    for index, (done, name, value) in enumerate(answered):
        newest = index == last[name]
        if done == "remove":
            assert name not in held
        elif name not in held:
            # Removed, and killed before it could say so: it was the last but one of its round.
            assert ["remove", name, "-"] in answered or _last_but_one(name, answered)
        elif newest and done == "rotate":
            assert held[name].primary_key == value or not held[name].enabled
        elif newest and done == "disable":
            assert not held[name].enabled


def _last_but_one(name, answered):
    same = [n for _, n, _ in answered if n.partition("-")[0] == name.partition("-")[0]]
    return list(dict.fromkeys(same))[-2:][0] == name
