"""A bad network between two hosts of our own, packet by packet.

Two network namespaces, each with one TUN interface; between them a thread that loses, delays,
reorders, doubles and throttles the IP packets, so that both ends' real TCP has to cope. It owns
the namespaces, which it makes and removes, and touches no interface of the machine. This is what
`tc netem` does where a kernel has it; many have not.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from servers import need

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_CLONE_NEWNET = 0x40000000
_MTU = 1500

_numbers = itertools.count(1)


@dataclass
class Weather:
    """What the network does to each packet; change it while it runs.

    loss, twice, late   the share (0 to 1) that is lost, doubled, or overtaken by later ones
    delay_s             one way; `jitter_s` more or less of it keeps the order
    bytes_s             each way, with a queue of a quarter of a second; None: no limit
    dark                nothing passes, and nobody is told
    """

    loss: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_s: float | None = None
    dark: bool = False


@dataclass
class Host:
    """One end: `within` runs a command there, `address` is where it is reached."""

    name: str
    address: str
    tun: int = -1

    @property
    def within(self) -> tuple[str, ...]:
        return (need("ip", "iproute2"), "netns", "exec", self.name)


@dataclass
class Network:
    device: Host
    hub: Host
    weather: Weather
    passed: int = 0
    lost: int = 0
    doubled: int = 0
    overtaken: int = 0  # held back, so that later ones go first
    _stopping: threading.Event = field(default_factory=threading.Event)

    def serve(self, seed: int) -> None:
        """Carry packets until stopped; the seed fixes what happens to which."""
        chance = random.Random(seed)
        ends = {self.device.tun: self.hub.tun, self.hub.tun: self.device.tun}
        order = itertools.count()
        waiting: list[tuple[float, int, int, bytes]] = []
        free_at = dict.fromkeys(ends, 0.0)
        last_at = dict.fromkeys(ends, 0.0)
        while not self._stopping.is_set():
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, out, packet = heapq.heappop(waiting)
                with contextlib.suppress(OSError):
                    os.write(out, packet)
                    self.passed += 1
            pause = min(0.05, waiting[0][0] - now) if waiting else 0.05
            ready, _, _ = select.select(list(ends), [], [], max(0.0, pause))
            for tun in ready:
                packet = os.read(tun, 2 * _MTU)
                weather, out, now = self.weather, ends[tun], time.monotonic()
                if weather.dark or chance.random() < weather.loss:
                    self.lost += 1
                    continue
                start = max(now, free_at[tun])
                if weather.bytes_s:
                    if start - now > 0.25:
                        self.lost += 1
                        continue
                    free_at[tun] = start + len(packet) / weather.bytes_s
                at = start + weather.delay_s + chance.uniform(0, weather.jitter_s)
                if chance.random() < weather.late:
                    at += 0.01 + 2 * weather.delay_s
                    self.overtaken += 1
                else:
                    at = last_at[tun] = max(at, last_at[tun])
                copies = 2 if chance.random() < weather.twice else 1
                self.doubled += copies - 1
                for _ in range(copies):
                    heapq.heappush(waiting, (at, next(order), out, packet))


def _ip(*words: str) -> None:
    done = subprocess.run([need("ip", "iproute2"), *words], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"`ip {' '.join(words)}` failed: {done.stderr.strip()} (is this root?)")


def _open_tun(host: Host) -> None:
    """The TUN interface of a namespace: made there, by a thread that goes there for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    errors: list[OSError] = []

    def inside() -> None:
        space = os.open(Path("/run/netns") / host.name, os.O_RDONLY)
        try:
            if libc.setns(space, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            tun = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH", b"tun0", _IFF_TUN_NO_PI))
            host.tun = tun
        except OSError as e:
            errors.append(e)
        finally:
            os.close(space)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if errors:
        pytest.fail(f"no TUN interface in a network namespace: {errors[0]} (is this root?)")


@contextlib.contextmanager
def network(weather: Weather, seed: int = 1) -> Iterator[Network]:
    """Two hosts, 10.77.0.1 (the device's) and 10.77.0.2 (the hub's), with `weather` between."""
    tag = f"outpost-{os.getpid()}-{next(_numbers)}"
    device, hub = Host(f"{tag}-device", "10.77.0.1"), Host(f"{tag}-hub", "10.77.0.2")
    made: list[Host] = []
    result = Network(device, hub, weather)
    thread: threading.Thread | None = None
    try:
        for host in (device, hub):
            _ip("netns", "add", host.name)
            made.append(host)
            _open_tun(host)
            _ip("-n", host.name, "link", "set", "lo", "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "tun0")
            _ip("-n", host.name, "link", "set", "tun0", "up")
        thread = threading.Thread(target=result.serve, args=(seed,), daemon=True)
        thread.start()
        yield result
    finally:
        result._stopping.set()
        if thread is not None:
            thread.join(5)
        for host in made:
            if host.tun >= 0:
                os.close(host.tun)
            _ip("netns", "del", host.name)
