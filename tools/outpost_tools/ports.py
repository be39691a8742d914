"""The serial port of a board: found where there is one, opened so that nobody else has it.

It owns the rule which port is meant. It never guesses between two.
"""

from typing import Any

from outpost_tools.errors import OutpostError

CONSOLE_BAUD = 115200
# The time-out that esptool's commands have: over RFC 2217 each change of it costs a negotiation.
TIMEOUT_S = 3


def find_port(given: str | None) -> str:
    """The port that was given, or the one board that is plugged in."""
    from serial.tools import list_ports

    if given:
        return given
    # What has no USB behind it is a port of the machine's own, or a modem that is not there.
    found = sorted(port.device for port in list_ports.comports() if port.vid is not None)
    if not found:
        raise OutpostError(
            "No board is plugged in (no USB serial port): plug it in, or name its port with "
            "--port, e.g. --port /dev/ttyUSB0."
        )
    if len(found) > 1:
        raise OutpostError(f"There are {len(found)} ports, {', '.join(found)}: say --port.")
    return found[0]


def is_network(name: str) -> bool:
    return name.startswith("rfc2217://")


def open_port(name: str) -> Any:
    """The open port, ours alone, at the console's speed. Opening it resets no board."""
    import serial

    try:
        port = serial.serial_for_url(name, CONSOLE_BAUD, timeout=TIMEOUT_S, do_not_open=True)
        if not is_network(name):
            port.exclusive = True
            port.write_timeout = 10
        port.open()
        return port
    except (serial.SerialException, ValueError, OSError) as why:
        raise OutpostError(_why_not(name, str(why))) from None


def _why_not(name: str, why: str) -> str:
    text = why.lower()
    if "lock" in text or "busy" in text or "does not seem to support" in text:
        return (
            f"The port {name} is in use: close the other program that holds it (a console, "
            "another flash)."
        )
    if "permission" in text:
        return f"You may not use the port {name}: join the group that owns it (often dialout)."
    return f"The port {name} does not open: is the board plugged in?"
