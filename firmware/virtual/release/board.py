# SPDX-License-Identifier: MIT
"""The release leg: boots a flash image on an unmodified MicroPython for unix.

    micropython [-X heapsize=1M] board.py --flash flash.bin [--state FILE] [--report FILE]
        [--cut N[:torn|:clean]] [--wifi SSID[:KEY]] [--mac aa:bb:cc:dd:ee:ff]
        [--cause poweron|hard|wdt|deepsleep|soft]

Puts the stand-ins of this folder where the ESP32 has its modules, takes the host's
files away, mounts the image's littlefs at '/', and runs boot.py and main.py. Exit
codes are those of the virtual board.

What differs from it, all because nothing below Python can be changed here:
- The time is the host's, right from the start, and counts from 1970: this MicroPython's
  tls judges certificates by the host's clock and takes no other, so machine.RTC()
  .datetime() is read but sets nothing, and there is no --clock.
- There is no tlspolicy: no choice of record size, no facts of the handshake, and the
  suites and verification are what Python code sets.
- Error numbers are Linux's, floats are double, objects have 64 bits, the stand-ins live
  on the GC heap: no memory figure is taken on this leg.
- Sockets and names are the host's, whether the station is connected or not; there is no
  --hosts. sys.platform is linux, and vfs.VfsPosix is there for who asks for it.
- There is no REPL. When main.py has ended, the board waits until stdin is closed.
- machine.reset() is an exception below (SystemExit): `finally` clauses still run.
- SIGTERM ends it without a report or a state file.
- A power cut takes away all that is written after it, but the program runs on until it
  next touches the flash.
"""

import json
import os
import sys
import time

sys.path.insert(0, __file__.rsplit("/", 1)[0] if "/" in __file__ else ".")

import esp32
import machine
import network
import vflash
import vfs

HOST = vfs.VfsPosix()  # the host's files, for this launcher alone
CAUSES = {"poweron": 1, "hard": 2, "wdt": 3, "deepsleep": 4, "soft": 5}
OPTIONS = ("flash", "state", "report", "cut", "wifi", "mac", "cause")
START = time.ticks_ms()


class Stop(Exception):
    """The board cannot start: one sentence."""


def options(argv):
    given = {}
    for i in range(0, len(argv), 2):
        name = argv[i][2:]
        if argv[i][:2] != "--" or name not in OPTIONS or i + 1 == len(argv):
            raise Stop(
                "board.py takes %s, each with a value" % ", ".join("--" + o for o in OPTIONS)
            )
        given[name] = argv[i + 1]
    if "flash" not in given:
        raise Stop("board.py needs --flash with the image to boot")
    if given.get("cause", "poweron") not in CAUSES:
        raise Stop("--cause is one of " + ", ".join(sorted(CAUSES)))
    return given


def load_state(given):
    """What outlives a reset; nothing of it outlives --cause poweron."""
    try:
        with HOST.open(given["state"], "r") as f:
            state = json.load(f)
        HOST.remove(given["state"])  # a board that is killed comes back cold
        machine.cause = int(state["cause"])
        machine.memory = bytes(state["memory"])
    except (KeyError, OSError, ValueError, TypeError):
        pass
    if "cause" in given:
        machine.cause = CAUSES[given["cause"]]
    if machine.cause == machine.PWRON_RESET:
        machine.memory = b""


def blank(part):
    """Empty, but for the first page of a format that the power cut short."""
    block = bytearray(vflash.SECTOR)
    empty = b"\xff" * len(block)
    for number in range(part.ioctl(4, 0)):
        part.readblocks(number, block)
        if number < 2:
            block[:256] = empty[:256]
        if block != empty:
            return False
    return True


def start(given):
    """Power the parts up and mount littlefs at '/'."""
    try:
        vflash.chip = vflash.Flash(HOST.open(given["flash"], "r+b"))
        esp32.table = vflash.partitions(vflash.chip)
    except OSError as e:
        raise Stop("cannot open the flash image %s: error %s" % (given["flash"], e.args[0]))
    except ValueError as e:
        raise Stop(str(e))
    if "cut" in given:
        n, _, how = given["cut"].partition(":")
        vflash.chip.cut_after(int(n), how != "clean")
    if "mac" in given:
        machine.mac = bytes(int(x, 16) for x in given["mac"].split(":"))
    if "wifi" in given:
        ssid, _, key = given["wifi"].partition(":")
        network.access_point = (ssid, key)
    load_state(given)
    parts = esp32.Partition.find(esp32.Partition.TYPE_DATA, label="vfs")
    if not parts:
        raise Stop("the partition table has no partition 'vfs'")
    try:
        # First, since a power cut can leave block 0 erased and all files sound by block 1.
        files = vfs.VfsLfs2(parts[0])
    except OSError:
        if not blank(parts[0]):
            raise Stop("the file system in partition 'vfs' is corrupt: write the flash image again")
        vfs.VfsLfs2.mkfs(parts[0])
        files = vfs.VfsLfs2(parts[0])
    vfs.umount("/")
    vfs.mount(files, "/")


def run():
    """boot.py, then main.py, in one namespace, as the ESP32 does."""
    sys.path[:] = ["", ".frozen", "/lib"]
    del sys.argv[:]
    names = {"__name__": "__main__"}
    for script in ("boot.py", "main.py"):
        try:
            execfile(script, names)  # noqa: F821 (MicroPython has it)
        except OSError as e:
            if script in os.listdir("/"):
                sys.print_exception(e)
        except vflash.PowerCut:
            raise
        except (Exception, KeyboardInterrupt) as e:
            if machine.WDT.bitten:
                raise
            sys.print_exception(e)
    while sys.stdin.read(1):
        pass


def finish(given, code):
    cause = machine.WDT_RESET if code == 71 else machine.next_cause
    if "state" in given and code != 73:
        with HOST.open(given["state"], "w") as f:
            json.dump({"cause": cause, "memory": list(machine.memory)}, f)
    if "report" in given and vflash.chip:
        flash = vflash.chip
        report = {
            "flash": {
                "erases": flash.erases,
                "programs": flash.programs,
                "operations": flash.erases + flash.programs,
                "bytes_programmed": flash.bytes_programmed,
                "erases_by_partition": vflash.erases_by_partition(flash, esp32.table),
            },
            "c_heap": None,
            "exit": code,
            "uptime_ms": time.ticks_diff(time.ticks_ms(), START),
            "sleep_ms": machine.sleep_ms,
        }
        with HOST.open(given["report"], "w") as f:
            json.dump(report, f)


def main():
    given = {}
    try:
        given = options(sys.argv[1:])
        start(given)
        run()
        code = 0
    except Stop as e:
        print("The board cannot start: %s." % e)
        code = 75
    except vflash.PowerCut:
        code = 73
    except KeyboardInterrupt:
        code = 71 if machine.WDT.bitten else 0
    except SystemExit as e:
        code = e.args[0] if e.args and e.args[0] in (70, 72) else 70
    if machine.WDT.bitten:
        code = 71
        print("watchdog: not fed in time, the board restarts")
    finish(given, code)
    sys.exit(code)


main()
