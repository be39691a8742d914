"""The command `outpost`: its help, exit statuses and sentences, and that it tells no secret."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time

import pytest
from devca import put_ca
from outpost_tools import __version__
from outpost_tools.board import LEGS
from outpost_tools.cli import app
from outpost_tools.cli.boards import Leg
from outpost_tools.partitions import PartitionTable
from outpost_tools.registry import Registry
from typer.testing import CliRunner

COMMANDS = [
    *(
        ("device", verb)
        for verb in ("new", "list", "show", "disable", "enable", "remove", "rotate")
    ),
    ("device", "import"),
    ("device", "export"),
    ("image",),
    ("board", "run"),
    ("hub", "run"),
    ("hub", "status"),
    ("hub", "load"),
    ("send",),
    ("invoke",),
    ("twin", "get"),
    ("twin", "patch"),
    ("watch",),
    ("token",),
    *(("policy", verb) for verb in ("new", "list", "show", "rotate", "remove")),
    *(("authority", verb) for verb in ("add", "list", "remove")),
    *(("enrol", verb) for verb in ("new", "list", "show", "disable", "enable", "remove")),
    ("enrol", "key"),
    ("enrol", "hub"),
    ("enrol", "policy"),
    ("roots",),
    ("audit",),
    ("demo",),
]
OUTPOST = os.path.join(os.path.dirname(sys.executable), "outpost")


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    monkeypatch.setenv("OUTPOST_DATA", str(folder))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


def outpost(*words):
    return CliRunner().invoke(app, list(words))


def sentence(result):
    """The one line on stderr of a command that failed."""
    assert result.exit_code == 1, (result.exit_code, result.output, result.exception)
    assert result.stderr.startswith("outpost: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_of_itself(command):
    result = outpost(*command, "--help")
    assert result.exit_code == 0
    assert f"Example: outpost {' '.join(command)}" in re.sub(r"\s+", " ", result.stdout)


def test_version():
    assert outpost("--version").stdout == f"outpost {__version__}\n"


def test_an_unknown_command_and_an_unknown_option_exit_with_2():
    assert outpost("frobnicate").exit_code == 2
    assert outpost("device", "new", "a", "--frobnicate").exit_code == 2


# device


def test_device_new_makes_it_and_shows_no_key(data):
    result = outpost("device", "new", "pump-7", "--json")
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert (shown["device"], shown["status"]) == ("pump-7", "enabled")
    with Registry(data) as registry:
        device = registry.get("pump-7")
    listed = outpost("device", "list", "--json")
    assert [d["device"] for d in json.loads(listed.stdout)] == ["pump-7"]
    for key in (device.primary_key, device.secondary_key):
        assert key not in result.output + listed.output + outpost("device", "list").output


@pytest.mark.parametrize("bad", ["a b", "a/b", "é", "x" * 129, "", "a#b", "a+b"])
def test_device_new_refuses_an_id_that_cannot_work(data, bad):
    sentence(outpost("device", "new", bad))
    assert not data.exists() or not Registry(data).devices()


def test_device_new_refuses_an_id_that_is_there():
    assert outpost("device", "new", "pump-7").exit_code == 0
    assert "already" in sentence(outpost("device", "new", "pump-7"))


def test_device_new_in_a_folder_that_cannot_be_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "--data" in sentence(outpost("device", "new", "a", "--data", str(folder)))


def test_device_list_of_an_empty_registry_says_what_to_do():
    assert "outpost device new" in outpost("device", "list").stdout


# image


def test_image_holds_the_device_and_says_what_it_holds(tmp_path):
    outpost("device", "new", "pump-7")
    result = outpost("image", "pump-7", "-o", "pump.bin", "--hub", "h.example", "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["hub"] == "h.example" and shown["roots"] == ["azure"]
    flash = tmp_path / "pump.bin"
    assert shown["bytes"] == flash.stat().st_size == 4 << 20
    assert flash.stat().st_mode & 0o777 == 0o600, "it holds keys"
    assert len(PartitionTable.from_flash(flash)) == 5


def test_image_trusts_the_development_ca_where_there_is_one(data):
    put_ca(data)
    outpost("device", "new", "pump-7")
    result = outpost("image", "pump-7", "--json")
    assert json.loads(result.stdout)["roots"] == ["development CA"]
    named = outpost("image", "pump-7", "--root", "azure-rsa", "--json")
    assert json.loads(named.stdout)["roots"] == ["azure-rsa"]


def test_image_is_the_same_twice_with_the_same_build_time(tmp_path, monkeypatch):
    outpost("device", "new", "pump-7")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
    outpost("image", "pump-7", "-o", "a.bin")
    assert outpost("image", "pump-7", "-o", "b.bin", "--build-time", "1800000000").exit_code == 0
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ["--hub", "https://h.example/"],
        ["--port", "0"],
        ["--wifi", ""],
        ["--wifi", "Home:short"],
        ["--wifi-key-file", "nothing.txt"],
        ["--sntp", "time.example:none"],
        ["--record-size", "777"],
        ["--record-size", "big"],
        ["--keepalive", "3"],
        ["--root", "nothing.pem"],
        ["--app", "nothing"],
        ["--size", "5"],
        ["--build-time", "5"],
        ["-o", "nothing/here/a.bin"],
    ],
    ids=" ".join,
)
def test_image_refuses_what_cannot_work_in_one_sentence(tmp_path, words):
    outpost("device", "new", "pump-7")
    sentence(outpost("image", "pump-7", *words))
    assert not list(tmp_path.glob("*.bin"))


def test_image_of_a_missing_device_names_the_next_step():
    assert "outpost device new" in sentence(outpost("image", "pump-7"))


def test_image_output_that_is_a_folder_is_one_sentence(tmp_path):
    outpost("device", "new", "pump-7")
    (tmp_path / "out").mkdir()
    sentence(outpost("image", "pump-7", "-o", "out"))


def test_wifi_key_can_be_kept_off_the_command_line_and_is_not_shown(tmp_path):
    outpost("device", "new", "pump-7")
    (tmp_path / "key.txt").write_text("correct horse\n")
    result = outpost("image", "pump-7", "--wifi", "Home", "--wifi-key-file", "key.txt")
    assert result.exit_code == 0 and "correct horse" not in result.output
    assert b'"key": "correct horse"' in (tmp_path / "pump-7.bin").read_bytes()


# board


def test_board_run_without_an_image_or_without_binaries_says_what_to_do(tmp_path, monkeypatch):
    assert "outpost image" in sentence(outpost("board", "run", "flash.bin"))
    outpost("device", "new", "pump-7")
    outpost("image", "pump-7", "-o", "flash.bin")
    assert "heap size" in sentence(outpost("board", "run", "flash.bin", "--heapsize", "lots"))
    (tmp_path / "small.bin").write_bytes(bytes(5000))
    assert "exactly 4, 8 or 16 MiB" in sentence(outpost("board", "run", "small.bin"))
    monkeypatch.setenv("OUTPOST_BIN", str(tmp_path))
    assert "make micropython" in sentence(outpost("board", "run", "flash.bin"))


# hub


def test_hub_run_on_a_port_in_use_is_one_sentence(data):
    put_ca(data)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "in use" in sentence(outpost("hub", "run", "--port", port))


def listening(hub):
    """The event that says where a hub with --json listens for devices."""
    for line in hub.stdout:
        event = json.loads(line)
        if event["event"] == "listening":
            return event
    raise AssertionError("it ended before it listened")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_hub_run_prints_its_address_and_ends_cleanly_when_told(data, stop):
    put_ca(data)
    hub = subprocess.Popen(
        [OUTPOST, "hub", "run", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    event = listening(hub)
    assert event["names"] == ["127.0.0.1", "localhost"]
    socket.create_connection(("127.0.0.1", event["port"])).close()
    hub.send_signal(stop)
    out, err = hub.communicate(timeout=20)
    assert hub.returncode == 0 and err == ""
    assert not (data / "hub.json").exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", event["port"]))


def test_hub_run_killed_can_be_started_again(data):
    put_ca(data)
    for _ in range(2):
        hub = subprocess.Popen(
            [OUTPOST, "hub", "run", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
        )
        listening(hub)
        hub.kill()
        hub.wait()
    with sqlite3.connect(data / "registry.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# roots


def test_roots_check_shows_the_four(tmp_path):
    result = outpost("roots", "--check")
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 4
    assert len(json.loads(outpost("roots", "--check", "--json").stdout)) == 4


def test_roots_from_elsewhere_are_refused_in_one_sentence(tmp_path):
    store = tmp_path / "store.pem"
    store.write_text("no certificate")
    sentence(outpost("roots", "--from", str(store), "-o", str(tmp_path / "certs")))
    sentence(outpost("roots", "--from", "nothing.pem", "-o", str(tmp_path / "certs")))
    sentence(outpost("roots", "--check", "-o", str(tmp_path / "certs")))
    assert not (tmp_path / "certs").exists()


def test_an_image_is_never_put_in_the_place_of_a_device_or_a_folder(tmp_path):
    assert outpost("device", "new", "a").exit_code == 0
    os.mkfifo(tmp_path / "pipe")
    for place in ("pipe", "."):
        assert "Cannot write" in sentence(outpost("image", "a", "-o", place))
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("size", ["1", "4095", "K", "", "-64K", "64G"])
def test_a_heap_that_is_none_is_refused(size, tmp_path):
    sentence(outpost("board", "run", "none.bin", "--heapsize", size))


# demo


@pytest.mark.parametrize(
    "words", [["--devices", "0"], ["--mfl", "100"], ["--run-for", "0"], ["--heapsize", "x"]]
)
def test_demo_refuses_what_cannot_work_before_it_makes_anything(words, tmp_path):
    result = outpost("demo", "--data", "demo", *words)
    sentence(result)
    assert result.stdout == "" and not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    "words",
    [["--run-for", "abc"], ["--leg", "nonsense"], ["--devices", "x"], ["--chain", "dsa"]],
    ids=" ".join,
)
def test_a_value_that_is_none_is_told_in_one_sentence(words):
    result = outpost("demo", *words)
    assert result.exit_code == 2 and result.stdout == ""
    assert re.fullmatch(rf"outpost: [^\n]*{words[0]}[^\n]*\.\n", result.stderr), result.stderr


def test_every_build_that_there_is_can_be_named():
    assert [leg.value for leg in Leg] == list(LEGS)


def test_demo_without_binaries_names_make_micropython(monkeypatch, tmp_path):
    monkeypatch.setenv("OUTPOST_BIN", str(tmp_path))
    assert "make micropython" in sentence(outpost("demo", "--data", "demo"))


FAKE_BOARD = f"""#!{sys.executable}
import json, sys, time
def say(text):
    print(text, flush=True)
say("   0.100 tls      connected version=TLSv1.2 cipher=C mfl_asked=512 mfl_granted=512 "
    "tls_heap_peak=2 tls_heap_steady=1")
for n in range(1000):
    say(f"   0.200 send     sent id={{n}} bytes=3")
    if "acks" in sys.argv[0]:
        say(f"   0.300 send     acked id={{n}}")
    time.sleep(0.05)
"""


@pytest.fixture
def fake_bin(tmp_path, monkeypatch):
    def make(name):
        folder = tmp_path / name
        folder.mkdir()
        for leg in ("outpost32", "outpost64"):
            (folder / leg).write_text(FAKE_BOARD)
            (folder / leg).chmod(0o755)
        monkeypatch.setenv("OUTPOST_BIN", str(folder))
        put_ca(tmp_path / "demo")

    return make


def test_demo_ends_by_itself_with_one_json_object(fake_bin):
    fake_bin("acks")
    result = outpost("demo", "--data", "demo", "--run-for", "1", "--devices", "2", "--mfl", "512")
    assert result.exit_code == 0, result.output
    *lines, last = result.stdout.splitlines()
    summary = json.loads(last)
    assert summary["acked"] > 4 and len(summary["devices"]) == 2
    assert summary["device"] == "demo-1,demo-2" and summary["mfl_granted"] == 512
    assert [line for line in lines if line.startswith("demo-2:    0.300 send     acked")]


def test_demo_with_nothing_acknowledged_fails_and_still_ends_with_json(fake_bin):
    fake_bin("silent")
    result = outpost("demo", "--data", "demo", "--run-for", "1")
    assert "No message was acknowledged" in sentence(result)
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["sent"] > 0 and summary["acked"] == 0 and summary["device"] == "demo-1"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_demo_told_to_end_ends_everything(fake_bin, stop):
    fake_bin("acks")
    demo = subprocess.Popen(
        [OUTPOST, "demo", "--data", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if "acked" in line:
            break
    children = _children(demo.pid)
    assert children
    demo.send_signal(stop)
    time.sleep(0.05)
    demo.send_signal(stop)  # an impatient second one changes nothing
    _, err = demo.communicate(timeout=20)
    assert demo.returncode == 0 and err == ""
    for pid in children:
        assert not os.path.exists(f"/proc/{pid}")


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        found = [int(child) for child in file.read().split()]
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            found += [int(child) for child in file.read().split()]
    return found


def test_demo_a_second_time_keeps_the_device_and_its_keys(fake_bin, tmp_path):
    fake_bin("acks")
    for _ in range(2):
        assert outpost("demo", "--data", "demo", "--run-for", "0.3").exit_code == 0
    with Registry(tmp_path / "demo") as registry:
        assert [d.device_id for d in registry.devices()] == ["demo-1"]
