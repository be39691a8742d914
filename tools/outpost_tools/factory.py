"""A factory run: N devices, their images or NVS partitions, and one file to register them with.

It owns one folder, which only its owner can read. A device is made when its record stands in
`work/`; that is written last and whole, so a run that was killed at any point goes on where it was,
and what was half made is made anew: nothing of it has left the folder. The registry file and the
manifest come from the records, when all are there, and then `work/` goes.
It never gives two devices the same key, and looks whether that is so before it says it is done.
"""

import base64
import fcntl
import hashlib
import hmac
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from outpost_tools import bulk, factoryline, proof
from outpost_tools.ca import FleetCA
from outpost_tools.errors import OutpostError
from outpost_tools.factoryline import Order
from outpost_tools.fleet import Fleet
from outpost_tools.paths import private_dir, write_whole
from outpost_tools.profile import Profile
from outpost_tools.signing import Signers

COUNT_MAX = 1_000_000
PLAN, MANIFEST, REGISTRY, COMMON = "plan.json", "manifest.json", "registry.jsonl", "common.bin"
WORK, DEVICES = "work", "devices"
FORMAT = 1

Progress = Callable[[int], None]


class Factory:
    """One run in the folder `out`. `make` may be called again until it says that all is there."""

    def __init__(self, out: Path, profile: Profile, count: int, trust: list[bytes]) -> None:
        if not 1 <= count <= COUNT_MAX:
            raise OutpostError(f"A run makes 1 to {COUNT_MAX:,} devices.")
        self.out, self.profile, self.count = Path(out), profile, count
        self._trust = trust
        proof_of = proof.check_common_name if profile.keys != "symmetric" else str
        proof_of(profile.device_id(count - 1))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        private_dir(self.out)
        with (self.out / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise OutpostError(f"Another run is at work in {self.out}.") from None
            yield

    def make(
        self,
        data: Path,
        ca: FleetCA | None,
        secret: Callable[[], str] | None,
        workers: int = 2,
        progress: Progress = lambda done: None,
    ) -> dict[str, Any]:
        """All devices that are not there yet, then the files about all. Gives the manifest."""
        if self.profile.keys == "x509" and (ca is None or secret is None):
            raise OutpostError("Devices with certificates need the fleet's CA: `outpost ca new`.")
        with self._locked():
            with Fleet(data) as fleet:
                signers = Signers(data).for_devices(fleet.name) or b""
            order = self._order(ca, signers)
            if (self.out / MANIFEST).is_file():
                self._tidy()
                return self.verify()
            for folder in (WORK, DEVICES):
                private_dir(self.out / folder)
            self._sweep()
            write_whole(factoryline.common_path(order), factoryline.common_image(order))
            missing = [n for n in range(self.count) if not self._is_made(n)]
            progress(self.count - len(missing))
            if missing:
                word = ""
                if ca is not None and secret is not None:
                    word = secret()
                    with ca.unlocked(lambda: word):
                        pass  # it opens here, so it does in the workers
                self._run(order, ca, word, missing, workers, progress)
            return self._finish(data)

    def _order(self, ca: FleetCA | None, signers: bytes) -> Order:
        """What every worker needs; the run's plan is kept, so that a second run is the same one."""
        path = self.out / PLAN
        digest = hashlib.sha256()
        digest.update(self.profile.digest().encode())
        digest.update(hashlib.sha256(signers).digest())
        for root in self._trust:
            digest.update(hashlib.sha256(root).digest())
        if ca is not None and self.profile.keys == "x509":
            digest.update(ca.root_pem.encode())
        plan = {"format": FORMAT, "count": self.count, "inputs": digest.hexdigest()}
        if path.is_file():
            kept = _read_json(path)
            if {name: kept.get(name) for name in plan} != plan:
                raise OutpostError(
                    f"{self.out} holds another run (another count, profile, root, signer or CA): "
                    "take another folder, or give what that run was begun with."
                )
            build_time = kept["build_time"]
        else:
            left = [p.name for p in self.out.iterdir() if p.name[0] != "."]
            if left:
                raise OutpostError(
                    f"{self.out} holds other files ({left[0]}): take another folder."
                )
            build_time = self.profile.build_time or int(time.time())
            write_whole(path, json.dumps(plan | {"build_time": build_time}).encode())
        return Order(self.out, self.profile, tuple(self._trust), build_time, signers)

    def _sweep(self) -> None:
        """What a killed run left half written."""
        for folder in (self.out, self.out / WORK, self.out / DEVICES):
            for path in folder.glob(".*.*"):
                if path.is_file() and path.name != ".lock":
                    path.unlink()

    def _is_made(self, number: int) -> bool:
        return factoryline.record_path(self.out, number).is_file()

    def _run(
        self,
        order: Order,
        ca: FleetCA | None,
        word: str,
        missing: list[int],
        workers: int,
        progress: Progress,
    ) -> None:
        """Processes of their own, started afresh: a PKCS #11 library does not outlive a fork."""
        folder = ca.folder if ca is not None and self.profile.keys == "x509" else None
        done = self.count - len(missing)
        size = max(1, min(32, len(missing) // (workers * 4) or 1))
        chunks = [missing[at : at + size] for at in range(0, len(missing), size)]
        with ProcessPoolExecutor(
            max_workers=max(1, min(workers, len(chunks))),
            mp_context=get_context("spawn"),
            initializer=factoryline.begin,
            initargs=(order, folder, word, os.getpid()),
        ) as pool:
            waiting = [pool.submit(factoryline.make, chunk) for chunk in chunks]
            try:
                for future in as_completed(waiting):
                    done += future.result()
                    progress(done)
            except BrokenProcessPool:
                raise OutpostError(
                    "A worker of the run ended before its time (is there memory, and room on the "
                    "disk?): start the run again, it goes on where it was."
                ) from None
            finally:
                for future in waiting:
                    future.cancel()

    def _finish(self, data: Path) -> dict[str, Any]:
        """The registry file and the manifest, from the records of all devices."""
        records = [_read_json(factoryline.record_path(self.out, n)) for n in range(self.count)]
        check_alone(records)
        with Fleet(data) as fleet, fleet.writing():
            for record in records:
                if record["chain"]:
                    chain = base64.b64decode(record["chain"])
                    fleet.remember(record["id"], made_on="host")
                    fleet.issued(record["id"], chain, "current")
                elif self.profile.keys == "born":
                    fleet.remember(record["id"], made_on="device")
        lines = bulk.lines(r["entry"] for r in records if r["entry"])
        write_whole(self.out / REGISTRY, "".join(lines).encode())
        files = {name: digest for r in records for name, digest in r["files"].items()}
        names = [REGISTRY, *([COMMON] if self.profile.output == "nvs" else [])]
        files |= {name: sha256(self.out / name) for name in names}
        manifest = {
            "format": FORMAT,
            "count": self.count,
            "keys": self.profile.keys,
            "first": records[0]["id"],
            "last": records[-1]["id"],
            "files": files,
        }
        for name, digest in files.items():
            if sha256(self.out / name) != digest:
                raise OutpostError(
                    f"{name} is not what was written there: remove {self.out} and run again."
                )
        write_whole(self.out / MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")
        self._tidy()
        return manifest

    def _tidy(self) -> None:
        """The records hold what the registry file holds: once is enough."""
        shutil.rmtree(self.out / WORK, ignore_errors=True)

    def verify(self) -> dict[str, Any]:
        """The manifest of a run that is done, after a look at every file in it."""
        return verify(self.out)


def verify(out: Path) -> dict[str, Any]:
    """The manifest of the run in `out`; OutpostError names the first file that is not its own."""
    manifest = _read_json(out / MANIFEST)
    for name, digest in manifest["files"].items():
        path = out / name
        if not path.is_file():
            raise OutpostError(f"{path} is missing: the run in {out} was changed after its end.")
        if not hmac.compare_digest(sha256(path), digest):
            raise OutpostError(f"{path} was changed after the run: its SHA-256 is another.")
    return manifest


def check_alone(records: list[dict[str, Any]]) -> None:
    """No two devices share an id or a key; the marks are hashes, so nothing is said of the keys."""
    seen: dict[str, str] = {}
    for record in records:
        for mark in (f"id {record['id']}", *record["marks"]):
            if mark in seen:
                raise OutpostError(
                    f"{seen[mark]} and {record['id']} have the same key: the random numbers of "
                    "this machine cannot be trusted, so make nothing on it."
                )
            seen[mark] = record["id"]


def sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as why:
        raise OutpostError(f"Cannot read {path} ({why.strerror}).") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict):
            return content
    except (OSError, ValueError):
        pass
    raise OutpostError(f"{path} is damaged: remove it and run again.")
