# The earliest code on the device. It chooses which software runs: a slot that an update put it in
# (/app/a, /app/b: docs/updates.md), or the application of the image, in /. New software is on
# trial: each start with it is counted before it runs, under a watchdog, and after the third that
# did not end in a connection the one before it runs again. Nothing here can fail, so that main.py
# is always reached; where there is none, the library alone connects and waits for one.
#
# In production mode (docs/flashing.md) it also runs main.py itself, so that the board has no
# prompt: Ctrl-C is a character like any other, and where main.py ends the board restarts.
import micropython

try:
    micropython.kbd_intr(-1)  # until it is known whether this board has a prompt
    for _n in (0, 1):
        pass  # a Ctrl-C that came before is noticed here, and is nothing
except KeyboardInterrupt:
    micropython.kbd_intr(-1)

import os
import sys

import machine


def _closed():
    """Whether this board is in production mode. Where its NVS cannot be read, it is."""
    try:
        import esp32

        return esp32.NVS("outpost").get_i32("prod") != 0
    except ImportError:
        return False
    except OSError as e:
        return e.args[0] not in (-0x1102, -0x110F)  # no such entry, no NVS at all


def _number(nvs, name):
    try:
        return nvs.get_i32(name)
    except OSError:
        return -1


def _whole(slot):
    try:
        return slot in (0, 1) and os.stat("/app/%s/main.py" % "ab"[slot])[6] > 0
    except OSError:
        return False


def _on_trial(nvs, trial, current):
    """Whether the software on trial gets this start. Where it has had its three, it is over."""
    if trial >= 16:  # new firmware, named by its partition: the bootloader gives it one start
        import esp32

        return esp32.Partition(esp32.Partition.RUNNING).info()[1] == trial
    if trial < 0 or trial == current:
        return False
    lives = max(0, _number(nvs, "app-lives"))
    if lives < 3 and _whole(trial):
        # In flash before it runs: whatever it does, this start is counted.
        nvs.set_i32("app-lives", lives + 1)
        nvs.commit()
        machine.WDT(timeout=300000)  # longer than a whole walk to the hub may take
        return True
    print("   0.000 boot     the software on trial did not hold: the one before it runs again")
    try:
        nvs.set_i32("app-last", _number(nvs, "app-" + "ab"[trial & 1]))
        nvs.set_i32("app-out", 2)
    finally:
        nvs.erase_key("app-try")
        nvs.commit()
    return False


def _choose():
    """(slot, whether new software is on trial); -1: the application of the image."""
    current, trying = -1, False
    try:
        import esp32

        nvs = esp32.NVS("outpost")
        current, trial = _number(nvs, "app-cur"), _number(nvs, "app-try")
        trying = _on_trial(nvs, trial, current)
        if trying and trial < 16:
            return trial, True
        if trying:
            machine.WDT(timeout=300000)
    except Exception as e:
        print("   0.000 boot     no trial: %s %s" % (type(e).__name__, e))
    return current if _whole(current) else -1, trying


def _library(slot):
    """Where `import outpost` will find it."""
    for path in sys.path:
        try:
            os.stat((path and path + "/") + "outpost")
            return "flash" if slot < 0 or path == "/lib" else "slot"
        except OSError:
            if path == ".frozen":
                break
    return "frozen"


def _boot():
    """Whether there is an application to run."""
    try:
        os.stat("/lib/outpost")
        # The library on the flash file system goes before the one frozen into the firmware. A list
        # of paths is searched in order; '' (the current directory) stays first.
        sys.path.remove("/lib")
        sys.path.insert(1, "/lib")
    except (OSError, ValueError):
        pass
    slot, trying = _choose()
    if slot >= 0:
        os.chdir("/app/" + "ab"[slot])
        if "lib" in os.listdir():
            sys.path.insert(1, os.getcwd() + "/lib")  # before that of the image
    print(
        "   0.000 boot     Outpost boots reset_cause=%d library=%s software=%s%s"
        % (
            machine.reset_cause(),
            _library(slot),
            "image" if slot < 0 else "ab"[slot],
            " on trial" if trying else "",
        )
    )
    return "main.py" in os.listdir()


def _ended(e):
    """main.py is over, on a board that has no prompt: what it was goes into the last words."""
    import time

    if "outpost.rtcmem" in sys.modules:
        from outpost import lastwords

        lastwords.crashed(e)
    print("   -.--- boot     main.py ended (%s): the board restarts" % type(e).__name__)
    time.sleep(3)  # so that one that ends at once does not wear the flash out


_production = _closed()
if not _production:
    micropython.kbd_intr(3)
    del globals()["_ended"]
_there = _boot()
for _name in ("_number", "_whole", "_on_trial", "_choose", "_library", "_boot", "_closed"):
    del globals()[_name]  # it would stay in memory beside main.py, which has the same globals
if not _there:
    print("   0.000 boot     there is no main.py: the library alone runs")
if _production:
    try:
        if _there:
            execfile("main.py")  # noqa: F821
        else:
            import outpost

            outpost.Device().run()
        _ended(StopIteration())
    except BaseException as e:
        _ended(e)
    finally:
        machine.reset()
if not _there:
    import outpost

    outpost.Device().run()
