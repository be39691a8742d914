"""What the drill takes place in: a hub whose authority can change, boards, signers, and their words.

It owns everything that it starts and ends all of it; the folder it is given is its own. Every part is
the real one, on loopback: hub and service side, SNTP, virtual boards with their flash images.
"""

import contextlib
import datetime as dt
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outpost_tools import trustdraft
from outpost_tools.board import LEGS, Board, Line
from outpost_tools.bundle import Endpoint
from outpost_tools.connection import Connection
from outpost_tools.endpoint import Endpoint as Listener
from outpost_tools.envelope import Envelope, Keys
from outpost_tools.errors import OutpostError
from outpost_tools.hub import Hub
from outpost_tools.hub.faults import ServiceError
from outpost_tools.hub.rest import RestServer
from outpost_tools.hub.tls import server_context
from outpost_tools.image import Settings, build_image
from outpost_tools.operator import Operator
from outpost_tools.paths import private_dir, write_whole
from outpost_tools.pki import DevCA
from outpost_tools.registry import Registry
from outpost_tools.signing import Pen, Signers
from outpost_tools.sntp import SntpServer
from outpost_tools.trustcargo import Told
from outpost_tools.trustshelf import Shelf

NAMES = ("127.0.0.1", "localhost")
FLEET = "drill"
SIGNERS = ("anna", "ben", "cora")  # any two of whom sign
ANSWER_S = 10

APP = b"""
import os
from binascii import hexlify

from outpost import Device

device = Device()
life = hexlify(os.urandom(4)).decode()
n = 0
quiet = False


@device.every(seconds=1)
def measure():
    global n
    if not quiet:
        device.send({"life": life, "n": n + 1})
        n += 1


@device.method("tally")
def tally(payload):
    global quiet
    quiet = bool(payload)
    return {"life": life, "n": n}


device.run()
"""


@dataclass
class Member:
    """One device of the fleet, and what is known of it."""

    device_id: str
    flash: Path
    board: Board | None = None
    connected: bool = False
    told: Told = field(default_factory=Told)
    word: str = ""  # the last line of its console about trust
    arrived: dict[str, set[int]] = field(default_factory=dict)  # by life: the numbers
    accepted: dict[str, int] = field(default_factory=dict)  # by life: how many it said it has

    @property
    def messages(self) -> int:
        return sum(map(len, self.arrived.values()))

    @property
    def lost(self) -> int:
        """Messages that the device has accepted and that did not arrive."""
        lost = 0
        for life in {*self.arrived, *self.accepted}:
            numbers = self.arrived.get(life, set())
            last = max(self.accepted.get(life, 0), max(numbers, default=0))
            lost += len(set(range(1, last + 1)) - numbers)
        return lost


class DrillWorld:
    """`with DrillWorld(folder, 10) as world:`; nothing runs before start()."""

    def __init__(
        self,
        folder: Path,
        devices: int,
        leg: str = "outpost32",
        recovery: Sequence[Endpoint] = (),
    ) -> None:
        self.folder = private_dir(folder)
        self.leg = leg
        self.members = {
            f"drill-{n}": Member(f"drill-{n}", folder / f"drill-{n}.bin")
            for n in range(1, devices + 1)
        }
        self.shelf = Shelf(folder)
        self._stack = contextlib.ExitStack()
        self._pens: list[Pen] = []
        self.sntp = self._stack.enter_context(SntpServer())
        self._own = self.authority("Drill service")
        self.service = RestServer(port=0, context=server_context([self._leaf(self._own)]))
        self.hub: Hub
        self.operator: Operator

    def __enter__(self) -> "DrillWorld":
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members.values():
            if member.board:
                member.board.stop()
        self._stack.close()

    # Authorities and the hub

    def authority(self, title: str, life_days: int = 3650) -> DevCA:
        """A root of its own, with ECDSA alone: quick to make, and as good."""
        folder = private_dir(self.folder / hashlib.sha256(title.encode()).hexdigest()[:8])
        return DevCA(folder, ("ecdsa",), title, dt.timedelta(days=life_days))

    @staticmethod
    def root(ca: DevCA) -> bytes:
        return ca.roots_der()[0]

    @staticmethod
    def _leaf(ca: DevCA) -> tuple[Path, Path]:
        leaf = ca.server("ecdsa", NAMES)
        return leaf.chain, leaf.key

    def open_hub(self, ca: DevCA) -> None:
        with Registry(self.folder) as registry:
            for device_id in self.members:
                registry.add(device_id)
        self.hub = self._stack.enter_context(
            Hub(self.folder, on_event=self._hub_says, services=[self.service], ca=ca)
        )
        self.operator = self._stack.enter_context(Operator(self._connection()))

    def _connection(self) -> Connection:
        with Registry(self.folder) as registry:
            policy = registry.policy("iothubowner")
        assert policy is not None
        roots = self._own.root_file("ecdsa")
        address = f"{self.service.host}:{self.service.port}"
        return Connection(address, policy.name, policy.primary_key, roots)

    def move_hub(self, ca: DevCA, until: dt.datetime | None = None) -> None:
        """The hub shows another authority's certificate, and everyone has to connect anew."""
        leaf = ca.leaf("ecdsa", NAMES, not_after=until) if until else ca.server("ecdsa", NAMES)
        self.hub.show([leaf])
        for device_id in self.hub.connected:
            self.hub.disconnect(device_id, "the hub moves")

    @property
    def listener(self) -> Listener:
        return Listener("localhost", self.hub.port, self.hub.host)

    # Bundles

    def hire(self) -> Keys:
        """Signers, each with a key of their own; two are at hand."""
        signers = Signers(self.folder)
        word = hashlib.sha256(str(self.folder).encode()).hexdigest()
        for name in SIGNERS:
            made = signers.add(name, ["trust"], lambda: word)
            if len(self._pens) < 2:
                pen = self._stack.enter_context(signers.unlocked(made, lambda: word))
                self._pens.append(pen)
        return Keys.of(2, [one.point for one in signers.all()])

    def first(self, roots: Iterable[bytes], recovery: Sequence[Endpoint]) -> Envelope:
        keys = self.hire()
        draft = trustdraft.first(FLEET, tuple(roots), keys, 1095, recovery=tuple(recovery))
        return self._complete(draft)

    def next(self, roots: Iterable[bytes]) -> Envelope:
        present = self.shelf.newest()
        assert present is not None
        return self._complete(trustdraft.following(present, 1095).edited(roots=tuple(roots)))

    def _complete(self, draft: trustdraft.Draft) -> Envelope:
        for pen in self._pens:
            draft = pen.endorse(draft)
        self.shelf.put(draft.envelope)
        return draft.envelope

    # Boards

    def build(self, first: Envelope) -> None:
        settings = Settings(
            hub="localhost",
            port=self.hub.port,
            sntp=[self.sntp.address],
            more={"backoff_s": [1, 2], "trust": {"recovery_after_s": 3, "trial_s": 60}},
        )
        with Registry(self.folder) as registry:
            for member in self.members.values():
                image = build_image(
                    registry.get(member.device_id),
                    (),
                    settings,
                    build_time_s=int(time.time()) - 3600,
                    files={"/main.py": APP},
                    bundle=first.encode(),
                )
                write_whole(member.flash, image)

    def power_on(self) -> None:
        for member in self.members.values():
            member.board = Board(
                member.flash, self.leg, LEGS[self.leg], on_line=self._listen_to(member)
            ).start()

    def power_off(self) -> None:
        for member in self.members.values():
            if member.board:
                member.board.stop()

    @staticmethod
    def _listen_to(member: Member) -> Callable[[Line], None]:
        def take(line: Line) -> None:
            stage, _, text = line.text.strip().partition(" ")[2].strip().partition(" ")
            if stage in ("trust", "error") or "connect" in text:
                member.word = text.strip()

        return take

    # What is known

    def _hub_says(self, event: dict[str, Any]) -> None:
        member = self.members.get(event.get("device", ""))
        if member is None:
            return
        if event["event"] == "connected":
            member.connected = True
        elif event["event"] == "closed":
            member.connected = member.device_id in self.hub.connected

    def look(self) -> None:
        """Bring what is known of every device up to date."""
        connected = set(self.hub.connected)
        for member in self.members.values():
            member.connected = member.device_id in connected
            twin = self.hub.core.wait(self.hub.core.twin_get(member.device_id))
            reported = {**twin.reported, "$metadata": twin.reported_metadata}
            member.told = Told.of({"properties": {"reported": reported}})
        for message in list(self.hub.telemetry):
            body = _json(message.body)
            if isinstance(body, dict) and "life" in body:
                numbers = self.members[message.device_id].arrived.setdefault(body["life"], set())
                numbers.add(body["n"])

    def tally(self, quiet: bool) -> None:
        """Each device says how many messages it has accepted; quiet: and makes no more."""
        for member in self.members.values():
            call = self.hub.core.invoke_method(member.device_id, "tally", quiet, ANSWER_S, ANSWER_S)
            try:
                _, said = self.hub.core.wait(call)
            except ServiceError as why:
                raise OutpostError(f"{member.device_id} does not tell its tally: {why}") from None
            member.accepted[said["life"]] = said["n"]

    @property
    def connected(self) -> int:
        return sum(member.connected for member in self.members.values())

    @property
    def lost(self) -> int:
        return sum(member.lost for member in self.members.values())

    @property
    def messages(self) -> int:
        return sum(member.messages for member in self.members.values())


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
