"""`outpost flash`, `deploy`, `erase` and `provision` at a board's serial port, with the real tools.

The board is the virtual one behind RFC 2217: it has DTR and RTS, the ROM's loader, and
MicroPython's raw prompt. esptool and mpremote are as PyPI has them.

That a flash leaves on a blank board the image byte for byte is shown once; where a test is about a
board that was written before, its flash is that image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import espimages
import pytest
from legs import REPO
from outpost_tools import explain as explaining
from outpost_tools import loader, roots
from outpost_tools.cli import app as outpost
from outpost_tools.errors import OutpostError
from outpost_tools.firmwareimage import read_firmware
from outpost_tools.image import build_image
from outpost_tools.mpyfile import emitted
from outpost_tools.nvsimage import Identity, new_keys
from outpost_tools.partitions import PartitionTable
from outpost_tools.serialport import SerialPort, served
from outpost_tools.serialport.chips import CHIPS, Chip
from outpost_tools.serialport.machine import Cut
from outpost_tools.serialport.norflash import blank
from serial import rfc2217
from typer.testing import CliRunner
from world import DEVICE_ID

LEGS_HERE = ("outpost32",)
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _quick_port(monkeypatch):
    """pyserial asks its RFC 2217 server every 2 ms instead of 50 whether it has taken a setting."""
    quick = SimpleNamespace(sleep=lambda s: time.sleep(min(s, 0.002)))
    monkeypatch.setattr(rfc2217, "time", quick)


@pytest.fixture
def board(tmp_path) -> Path:
    path = tmp_path / "board.bin"
    blank(path, 4)
    return path


def call(port: SerialPort | str, *words: object, fails: str = "", **options) -> str:
    url = port if isinstance(port, str) else port.url
    done = CliRunner().invoke(outpost, [*map(str, words), "--port", url], **options)
    assert done.exit_code == (1 if fails else 0), f"{done.output}\n{done.exception!r}"
    if fails:
        assert fails in done.output, done.output
        sentence = done.output.strip().splitlines()[-1]
        assert sentence.startswith("outpost: ") and "Traceback" not in done.output
    return done.output


def flash(port: SerialPort, image: Path, *words: object, fails: str = "") -> str:
    return call(port, "flash", image, "--wait", 0, *words, fails=fails)


def small_image(folder: Path, device_id: str = "pump-7", name: str = "image.bin", **more) -> Path:
    """An image whose board, when it runs, does nothing."""
    path = folder / name
    more["files"] = {"/main.py": None, "/boot.py": b"", **more.get("files", {})}
    device = Identity(device_id, "c2VjcmV0LXByaW1hcnkta2V5LWtleS0x")
    path.write_bytes(
        build_image(device, roots.choose(["azure-ecc"]), build_time_s=1_800_000_000, **more)
    )
    return path


def written(board: Path, image: Path) -> Path:
    """The board as a flash of that image leaves it."""
    board.write_bytes(image.read_bytes())
    return image


def files_on(board: Path) -> dict[str, bytes]:
    content = board.read_bytes()
    vfs = PartitionTable.from_flash(board)["vfs"]
    return explaining.read_files(content[vfs.offset : vfs.end])


def held(board: Path) -> dict[tuple[str, str], int | bytes]:
    """The board's NVS entries, by name: what it is, and what it has counted."""
    from outpost_tools import nvsread

    table = PartitionTable.from_flash(board)["nvs"]
    nvs = nvsread.read(board.read_bytes()[table.offset : table.end])
    return {(e.namespace, e.key): e.value for e in nvs.entries}


# ---------------------------------------------------------------- from an empty desk


def test_from_a_blank_board_to_a_connected_one_and_a_change_deployed(world, board, tmp_path):
    """Flash, provision (the key is made on the board), boot, connect, deploy: still itself."""
    from outpost_tools.ca import create

    words = tmp_path / "words"
    words.write_text("some words for tests")
    ca = create(world.data / "fleet-ca", "test fleet", words.read_text)
    hub = world.hub()
    image = world.image(hub.port, device=Identity(DEVICE_ID))
    app = tmp_path / "app"
    (app / "drivers").mkdir(parents=True)
    main = (REPO / "main.py").read_text()
    (app / "drivers" / "pump.py").write_text("SPEED = 7\n")
    (app / "main.py").write_text(
        main.replace("import gc\n", "import gc\nfrom drivers.pump import SPEED\n", 1).replace(
            '{"n": count', '{"speed": SPEED, "n": count'
        )
    )
    with served(board, world.leg, heapsize="160K") as port:
        flash(port, image, "--device", DEVICE_ID)
        signing = ("--data", world.data, "--passphrase-file", words, "--ca", ca.folder)
        said = call(port, "provision", DEVICE_ID, *signing)
        assert "Its key was made on the device" in said
        said = call(port, "console", "--reset", "--run-for", 10)
        assert f"connected device={DEVICE_ID}" in said and "kind=x509" in said
        before = held(board)
        itself = [key for key in before if key[0] == "outpost_keys" or key == ("outpost", "id")]
        assert len(itself) > 1, sorted(before)
        said = call(port, "deploy", app, "--device", DEVICE_ID)
        assert "/main.py" in said and "/drivers/pump.mpy" in said and "2 files sent" in said
        assert f"connected device={DEVICE_ID}" in said
        # Once more: nothing has changed.
        assert "0 files sent" in call(port, "deploy", app)
        ends = time.monotonic() + 60
        while not any(json.loads(t.body).get("speed") == 7 for t in hub.telemetry):
            assert time.monotonic() < ends, hub.telemetry[-3:]
            time.sleep(0.1)
    after = held(board)
    assert all(after[key] == before[key] for key in itself)
    files = files_on(board)
    assert files["/trust/factory.bin"] and not [f for f in files if f.startswith("/deploy")]
    # Written again, it is itself: its keys and what waits stay, whatever the image says.
    with served(board, world.leg, heapsize="160K") as port:
        said = call(port, "flash", image, "--device", DEVICE_ID)
        assert "nvs: the board's own stays" in said and "outbox: the board's own stays" in said
        assert f"connected device={DEVICE_ID}" in said
    after = held(board)
    assert all(after[key] == before[key] for key in itself)


def test_make_flash_says_what_it_does_and_refuses_without_a_device(board, tmp_path):
    image = small_image(tmp_path)

    def make(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", "--no-print-directory", "-o", "build/venv/.ready", *words],
            cwd=REPO,
            capture_output=True,
            text=True,
            env=os.environ | {"OUTPOST_PORT": ""},
        )

    assert "Say which device" in make("flash").stdout
    with served(board, "outpost32") as port:
        done = make("erase", f"PORT={port.url}", "YES=1")
        assert "is blank: 4 MiB erased" in done.stdout, done.stderr
        done = make("flash", "DEVICE=other", f"IMAGE={image}", f"PORT={port.url}")
        assert "is the image of pump-7, not of other" in done.stderr
    assert board.read_bytes() == b"\xff" * (4 * MIB)


def test_erase_asks_first_and_then_leaves_nothing(board, tmp_path):
    written(board, small_image(tmp_path))
    with served(board, "outpost32") as port:
        call(port, "erase", fails="Nothing was erased", input="n\n")
        assert held(board)["outpost", "id"] == b"pump-7"
        call(port, "erase", input="y\n")
    assert board.read_bytes() == b"\xff" * (4 * MIB)


# ---------------------------------------------------------------- only what changed


def test_what_is_the_same_is_not_written_and_what_changed_is(board, tmp_path):
    one = small_image(tmp_path, firmware=read_firmware(espimages.release(tmp_path)))
    other = small_image(
        tmp_path,
        name="other.bin",
        firmware=read_firmware(espimages.release(tmp_path)),
        files={"/new.py": b"x = 1\n"},
    )
    with served(board, "outpost32") as port:
        flash(port, one)
        assert board.read_bytes() == one.read_bytes()
        port.machine.operations = 0
        said = json.loads(flash(port, one, "--json"))
        assert port.machine.operations == 0
        assert all(region["written"] == 0 for region in said["regions"].values())
        said = json.loads(flash(port, other, "--json"))
        changed = {name for name, region in said["regions"].items() if region["written"]}
        assert changed == {"vfs"} and said["regions"]["vfs"]["written"] <= 64 << 10
    assert files_on(board)["/new.py"] == b"x = 1\n"


def test_erase_writes_all_of_the_image_and_nothing_else_is_left(board, tmp_path):
    board.write_bytes(random.Random(7).randbytes(4 * MIB))
    image = small_image(tmp_path)
    with served(board, "outpost32") as port:
        flash(port, image, "--erase")
    assert board.read_bytes() == image.read_bytes()


# ---------------------------------------------------------------- refused, and the board as it was

OTHER_CHIPS = ("esp32s2", "esp32s3", "esp32c6")


def refused(board: Path, image: Path, sentence: str, *words: object, chip: str = "esp32") -> None:
    before = board.read_bytes()
    with served(board, "outpost32", chip=chip) as port:
        port.machine.operations = 0
        flash(port, image, *words, fails=sentence)
        assert port.machine.operations == 0
    # Between two visits of the loader the board ran, as a board does: a blank one has nothing to.
    assert board.read_bytes() == before or before != b"\xff" * len(before)


@pytest.mark.parametrize(
    "chip",
    ["esp32c3", *(pytest.param(c, marks=pytest.mark.exhaustive) for c in OTHER_CHIPS)],
)
def test_a_board_of_another_chip_is_refused(chip, board, tmp_path):
    image = small_image(tmp_path, firmware=read_firmware(espimages.release(tmp_path)))
    refused(board, image, "the image is for an ESP32", chip=chip)


def test_a_flash_smaller_than_the_image_is_refused(board, tmp_path):
    refused(board, small_image(tmp_path, size_mib=8), "build it with --size 4")


def test_an_image_for_another_device_is_refused(board, tmp_path):
    refused(board, small_image(tmp_path), "not of pump-8", "--device", "pump-8")


# By what it is refused: the board's image, and each one that is not written over it.
UNLESS_TOLD = {
    "another device": ({}, ({"device_id": "pump-8"}, "The board is pump-7, and the image is for")),
    "an NVS that nobody can read": (
        {"nvs_keys": True},
        ({"nvs_keys": True}, "nobody can tell whose keys"),
    ),
    "another layout": (
        {},
        ({"layout": "ota", "device_id": "pump-8"}, "The board is pump-7"),
        ({"layout": "ota"}, "another layout"),
    ),
    "in development": ({}, ({"production": True}, "in development mode")),
}


def kept_unless_told(case: str, board: Path, folder: Path, erases: bool) -> None:
    """The refused one writes nothing and the board runs again; with --erase it is written."""

    def image(name: str, of: dict) -> Path:
        keys = {"nvs_keys": new_keys()} if "nvs_keys" in of else {}
        return small_image(folder, name=name, **of | keys)

    first, *others = UNLESS_TOLD[case]
    written(board, image("first.bin", first))
    before = held(board)
    with served(board, "outpost32") as port:
        for other, sentence in others:
            wanted = image("other.bin", other)
            flash(port, wanted, fails=sentence)
            assert port.machine.operations == 0 and port.machine.mode == "run"
        assert held(board) == before
        if erases:
            flash(port, wanted, "--erase")
    if erases:
        assert board.read_bytes() == wanted.read_bytes()


@pytest.mark.parametrize("case", UNLESS_TOLD)
def test_a_board_keeps_its_keys_unless_told(case, board, tmp_path):
    kept_unless_told(case, board, tmp_path, erases=case == "another device")


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", UNLESS_TOLD)
def test_each_board_that_keeps_its_keys_is_written_when_told(case, board, tmp_path):
    kept_unless_told(case, board, tmp_path, erases=True)


def test_a_port_that_another_program_holds_is_one_sentence(board, tmp_path):
    import serial

    image = small_image(tmp_path)
    with served(board, "outpost32") as port:
        holder = serial.serial_for_url(port.url, 115200)
        try:
            flash(port, image, fails="is in use")
        finally:
            holder.close()
    call("/dev/nowhere", "flash", image, fails="does not open")
    call("rfc2217://127.0.0.1:1", "flash", image, fails="does not open")


def test_what_is_no_image_never_reaches_the_port(tmp_path):
    file = tmp_path / "noise.bin"
    file.write_bytes(os.urandom(4 * MIB))
    call("/dev/nowhere", "flash", file, fails="no flash image")
    file.write_bytes(b"\xff" * 1000)
    call("/dev/nowhere", "flash", file, fails="1000 bytes")
    call("/dev/nowhere", "flash", tmp_path / "none.bin", fails="There is no")


@dataclasses.dataclass(frozen=True)
class Locked(Chip):
    """A chip of the others, whose ROM says of itself what an ESP32 shows in its eFuses."""

    told: bytes = bytes(12)

    def security_info(self) -> bytes:
        return self.told + super().security_info()[12:]


ENCRYPTED, SECURE_BOOT = b"\0\0\0\0\1" + bytes(7), b"\1" + bytes(11)


@pytest.mark.parametrize(
    ("word", "fuses"),
    [
        ("esp32", {0x00: 1 << 20}),
        ("esp32", {0x18: 1 << 5}),
        ("esp32s3", ENCRYPTED),
        ("esp32c3", SECURE_BOOT),
    ],
)
def test_a_board_that_is_locked_to_encrypted_or_signed_flash_is_refused(
    word, fuses, board, tmp_path, monkeypatch
):
    plain = CHIPS[word]
    if isinstance(fuses, dict):
        locked = dataclasses.replace(plain, fixed=plain.fixed | fuses)
    else:
        told = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
        locked = Locked(**told, told=fuses)
    monkeypatch.setitem(CHIPS, word, locked)
    image, sentence = small_image(tmp_path), "encryption or secure boot"
    with served(board, "outpost32", chip=word) as port:
        flash(port, image, "--erase", fails=sentence)
        call(port, "erase", "--yes", fails=sentence)
        assert port.machine.operations == 0


def test_what_is_written_is_written_in_the_order_that_is_given(board):
    """On which it stands that half of an NVS is never taken for a whole one."""
    with served(board, "outpost32", cut=Cut(25, "clean")) as port:
        with pytest.raises(OutpostError, match="connection to the board was lost"):
            with loader.opened(port.url, stub=False) as chip:
                chip.write([(0x11000, b"a" * 4096), (0x10000, b"b" * 4096)])
    there = board.read_bytes()[0x10000:0x12000]
    assert there[4096:] == b"a" * 4096 and there[:4096] != b"b" * 4096


@pytest.mark.parametrize(
    ("sent", "operations"),
    [
        pytest.param(signal.SIGTERM, 0, marks=pytest.mark.exhaustive),
        (signal.SIGINT, 40),
    ],
)
def test_a_flash_that_is_stopped_says_how_the_board_is_left(sent, operations, board, tmp_path):
    image = small_image(tmp_path)
    with served(board, "outpost32") as port:
        words = [str(Path(sys.executable).parent / "outpost"), "flash", str(image)]
        going = subprocess.Popen(
            [*words, "--wait", "0", "--port", port.url], stderr=subprocess.PIPE, text=True
        )
        ends = time.monotonic() + 60
        while port.machine.operations < operations or port.machine.mode != "download":
            assert time.monotonic() < ends and going.poll() is None
            time.sleep(0.005)
        going.send_signal(sent)
        said = going.communicate(timeout=30)[1]
        assert going.returncode == 1 and "Traceback" not in said
        if operations:
            assert "while the board was being written: run the same command again" in said
        else:
            assert "nothing was written" in said or "before anything was written" in said
            assert port.machine.operations == 0
        # esptool has gone with it: the port is free, and nothing more is written.
        flash(port, image)
    assert board.read_bytes() == image.read_bytes()


def test_no_code_of_esptool_is_loaded_it_is_run_as_a_program():
    source = "\n".join(path.read_text() for path in (REPO / "tools").rglob("*.py"))
    assert not re.findall(r"^\s*(?:import|from) esptool\b.*", source, re.M)


# ---------------------------------------------------------------- the cable is pulled

WRITING = 70_000  # of 80,000 bytes; the last 15,000 are the writing


def pulled(board: Path, image: Path, after: int) -> bool:
    """Whether it was in time to disturb; the next flash must mend it whatever it was."""
    with served(board, "outpost32") as port:
        port.pull_cable(after)
        done = CliRunner().invoke(outpost, ["flash", str(image), "--wait", "0", "--port", port.url])
        assert "Traceback" not in done.output
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        if done.exit_code:
            assert done.output.strip().splitlines()[-1].startswith("outpost: ")
    with served(board, "outpost32") as port:
        flash(port, image)
    assert board.read_bytes() == image.read_bytes()
    return bool(done.exit_code)


def test_the_next_flash_mends_what_a_pulled_cable_left(board, tmp_path):
    pulled(board, small_image(tmp_path), WRITING)


@pytest.mark.exhaustive
@pytest.mark.parametrize("after", [1, *range(100, 82_000, 997)])
def test_the_next_flash_mends_what_a_pulled_cable_left_anywhere(after, board, tmp_path):
    pulled(board, small_image(tmp_path), after)


@pytest.mark.parametrize(
    "operation", [*(pytest.param(n, marks=pytest.mark.exhaustive) for n in (1, 12)), 150]
)
def test_the_next_flash_mends_what_a_power_cut_left(operation, board, tmp_path):
    image = small_image(tmp_path)
    with served(board, "outpost32", cut=Cut(operation)) as port:
        done = CliRunner().invoke(outpost, ["flash", str(image), "--wait", "0", "--port", port.url])
        assert done.exit_code in (0, 1) and "Traceback" not in done.output
    with served(board, "outpost32") as port:
        flash(port, image)
    assert board.read_bytes() == image.read_bytes()


# ---------------------------------------------------------------- deploy


MAIN = b"""print('main runs')
with open('/starts', 'a') as starts:
    starts.write('x')
"""


@pytest.fixture
def running(request, world, board):
    """A board with a prompt, and nobody to connect to."""
    # It notes each start: a start is what a board is left with, whatever was refused.
    files = {"/main.py": MAIN}
    if "full" in request.node.name:
        files["/fills.bin"] = bytes(1_720_000)  # so that little more goes in
    image = world.image(1, "127.0.0.1:1", files=files)
    board.write_bytes(image.read_bytes())
    with served(board, world.leg, heapsize="160K") as port:
        yield port


def started(board: Path, times: int) -> None:
    ends = time.monotonic() + 60
    while True:
        with contextlib.suppress(OutpostError):  # in the middle of its writing
            if len(files_on(board).get("/starts", b"")) >= times:
                return
        assert time.monotonic() < ends
        time.sleep(0.2)


def app_with(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "app"


def test_only_changed_files_are_deployed_each_whole(running, board, tmp_path):
    files = {"main.py": b"print('one')\n", "a/b/c.bin": bytes(range(256)) * 40, "empty.txt": b""}
    app = app_with(tmp_path, files)
    done = json.loads(call(running, "deploy", app, "--wait", 0, "--json"))
    assert done["sent"] == ["/a/b/c.bin", "/empty.txt", "/main.py"] and done["same"] == 1
    (app / "main.py").write_bytes(b"print('two')\n")
    done = json.loads(call(running, "deploy", app, "--wait", 0, "--json"))
    assert done["sent"] == ["/main.py"] and done["bytes"] == 13
    assert files_on(board)["/a/b/c.bin"] == files["a/b/c.bin"]


def test_the_boards_own_files_are_not_deployed(running, board, tmp_path):
    started(board, 1)
    before = board.read_bytes()
    for name in ("trust/factory.bin", "trust/a.bin", "config.json", "stage/x.bin", "app/a/main.py"):
        app = app_with(tmp_path / name.replace("/", "-"), {name: b"x"})
        call(running, "deploy", app, fails="is the board's own")
    assert board.read_bytes() == before


def test_compiled_python_of_another_version_is_not_deployed(running, board, tmp_path):
    wrong = bytes([0x4D, emitted()[0] - 1, 0, 31]) + bytes(10)
    app = app_with(tmp_path, {"pump.mpy": wrong, "main.py": b"import pump\n"})
    call(running, "deploy", app, fails=f"version {emitted()[0] - 1}")
    assert files_on(board)["/main.py"] == MAIN


def test_a_board_that_is_another_device_gets_no_files(running, board, tmp_path):
    app = app_with(tmp_path, {"main.py": b"x = 1\n"})
    started(board, 1)
    call(running, "deploy", app, "--device", "other", fails=f"The board is {DEVICE_ID}, not other")
    started(board, 2)  # the prompt stopped what ran there: it runs again
    assert files_on(board)["/main.py"] == MAIN


def test_a_full_file_system_is_one_sentence_and_the_old_files_stay(running, board, tmp_path):
    app = app_with(tmp_path, {"main.py": b"x = 1\n", "zz.bin": os.urandom(80_000)})
    call(running, "deploy", app, fails="file system is full")
    files = files_on(board)
    assert files["/main.py"] == MAIN and not [f for f in files if f.startswith("/deploy")]


def test_what_is_gone_from_the_folder_is_named_and_goes_when_told(running, board, tmp_path):
    app = app_with(tmp_path, {"main.py": MAIN, "old/pump.py": b"x = 1\n", "notes.txt": b"n"})
    call(running, "deploy", app, "--wait", 0)
    before = files_on(board)
    assert "/old/pump.mpy" in before
    (app / "old" / "pump.py").unlink()
    (app / "notes.txt").unlink()
    said = call(running, "deploy", app, "--wait", 0)
    assert "left on the board: /notes.txt, /old/pump.mpy" in said and "--prune" in said
    assert "/old/pump.mpy" in files_on(board)
    said = call(running, "deploy", app, "--wait", 0, "--prune")
    assert "/old/pump.mpy: removed" in said
    # The board's own stay.
    gone = {"/notes.txt", "/old/pump.mpy"}
    assert set(files_on(board)) - {"/starts"} == set(before) - gone - {"/starts"}


def test_source_of_an_earlier_deployment_does_not_go_before_the_compiled_module(
    running, board, tmp_path
):
    from serialside import mpremote

    mpremote(running, "exec", "open('/pump.py','w').write('SPEED = 1\\n')")
    app = app_with(tmp_path, {"main.py": b"import pump\nprint('speed', pump.SPEED)\n"})
    app_with(tmp_path, {"pump.py": b"SPEED = 2\n"})
    done = json.loads(call(running, "deploy", app, "--wait", 0, "--json"))
    assert done["removed"] == ["/pump.py"] and "/pump.mpy" in done["sent"]
    assert "speed 2" in call(running, "console", "--reset", "--run-for", 3)


def test_the_library_can_be_deployed_compiled(running, board, tmp_path):
    app = app_with(tmp_path, {"main.py": b"import outpost.agreed\n"})
    call(running, "deploy", app, "--library", "flash", "--wait", 0)
    files = files_on(board)
    assert files["/lib/outpost/agreed.mpy"][:2] == bytes([0x4D, emitted()[0]])


def test_a_board_that_ran_an_update_runs_what_is_deployed(running, board, tmp_path):
    from serialside import mpremote

    mpremote(
        running,
        "exec",
        "import os,esp32\nos.mkdir('/app'); os.mkdir('/app/a')\n"
        "open('/app/a/main.py','w').write('print(1)')\n"
        "n=esp32.NVS('outpost'); n.set_i32('app-cur',0); n.commit()",
    )
    app = app_with(tmp_path, {"main.py": b"print('deployed')\n"})
    done = json.loads(call(running, "deploy", app, "--wait", 0, "--json"))
    assert done["left_slot"] and ("outpost", "app-cur") not in held(board)
    assert "deployed" in call(running, "console", "--reset", "--run-for", 3)


def test_a_board_in_production_mode_gets_no_files(world, board, tmp_path):
    main = b"import time\nwhile True: time.sleep(1)\n"
    image = world.image(1, "127.0.0.1:1", files={"/main.py": main}, production=True)
    board.write_bytes(image.read_bytes())
    app = app_with(tmp_path, {"main.py": b"print('mine')\n"})
    with served(board, world.leg, heapsize="160K") as port:
        call(port, "deploy", app, fails="takes signed software only")
    assert files_on(board)["/main.py"] == main


def test_no_board_is_one_sentence(tmp_path):
    app = app_with(tmp_path, {"main.py": b""})
    call("rfc2217://127.0.0.1:1", "deploy", app, fails="does not open")
