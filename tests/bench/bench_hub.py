"""The local hub under 500 devices, one QoS 1 message a second each, on the machine as it is.

Once left alone, and once killed (-9) in the middle and started again: what was acknowledged must be
in its store both times. The hub is the command `outpost hub run`, in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.table import Table
from devca import put_ca
from outpost_tools.hub.load import Result, run_load
from servers import free_port

DEVICES = 500
RUN_S = 40
OUTPOST = Path(sys.executable).parent / "outpost"


class HubProcess:
    def __init__(self, data: Path) -> None:
        self.data, self.port = data, free_port()
        self.process: subprocess.Popen[str] | None = None
        self.peak_mib = 0.0
        self.cpu_s = 0.0

    def start(self) -> None:
        command = [str(OUTPOST), "hub", "run", "--json", "--data", str(self.data)]
        command += ["--port", str(self.port), "--rest-port", "0"]
        log = (self.data / "hub.log").open("a")
        with log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, text=True)

    def look(self) -> None:
        """Memory and time of the process so far."""
        assert self.process is not None
        proc = Path(f"/proc/{self.process.pid}")
        with contextlib.suppress(OSError, StopIteration):
            status = (proc / "status").read_text().splitlines()
            peak = next(line for line in status if line.startswith("VmHWM:"))
            self.peak_mib = max(self.peak_mib, int(peak.split()[1]) / 1024)
            fields = (proc / "stat").read_text().rpartition(")")[2].split()
            self.cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)


@contextlib.contextmanager
def hub() -> Iterator[HubProcess]:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        put_ca(data)
        process = HubProcess(data)
        process.start()
        try:
            yield process
        finally:
            process.stop()


def load(kill: bool) -> tuple[dict, HubProcess]:
    killed: list[float] = []
    with hub() as process:

        def on_progress(result: Result) -> None:
            process.look()
            if kill and not killed and result.seconds > RUN_S / 2:
                killed.append(result.seconds)
                process.stop(signal.SIGKILL)
                process.start()

        result = run_load(
            process.data,
            port=process.port,
            devices=DEVICES,
            run_for_s=RUN_S,
            on_progress=on_progress,
        )
        assert bool(killed) == kill
    return result, process


def measure() -> list[Table]:
    table = Table(
        f"The local hub with {DEVICES} devices, one QoS 1 message a second each, {RUN_S} s",
        ["run", "connected", "sent", "acknowledged", "a second", "lost"]
        + ["ack ms median", "ack ms 99 %", "hub MiB", "hub CPU s"],
    )
    for name, kill in (("left alone", False), ("kill -9 in the middle", True)):
        got, process = load(kill)
        table.add(
            name,
            got["connected"],
            got["sent"],
            got["acknowledged"],
            got["per_second"],
            got["lost"],
            got["ack_ms_median"],
            got["ack_ms_99"],
            process.peak_mib,
            process.cpu_s,
        )
    table.notes.append(
        "Load and hub share the machine. Lost: acknowledged and not in the store afterwards. "
        "After the kill the devices come back by themselves and send again what was not "
        "acknowledged; CPU is that of the last process."
    )
    return [table]


if __name__ == "__main__":
    print(json.dumps(load(kill="--kill" in sys.argv)[0]))
