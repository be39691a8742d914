"""The fleet's bundles, from the first on: what links for stragglers are made of.

It owns the folder `trust/` in the data folder: each bundle that was complete as NNNNNN.bin, and
names.json, what people call the signing keys. A bundle gets in only where the one before it has
signed for it, and is never changed afterwards. Two different bundles of one version are refused:
half a fleet would have the one, half the other. It holds no secret.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outpost_tools import bundle, envelope, trustdraft
from outpost_tools.bundle import Bundle
from outpost_tools.envelope import Envelope, Keys
from outpost_tools.errors import OutpostError
from outpost_tools.paths import private_dir, write_whole
from outpost_tools.trustdraft import Draft

FOLDER = "trust"
NAMES = "names.json"


class Shelf:
    """The bundles in the folder `data`/trust, or in another folder."""

    def __init__(self, data: Path, folder: Path | None = None) -> None:
        self.folder = folder or Path(data) / FOLDER

    def history(self) -> list[Envelope]:
        """Every bundle, oldest first, each signed by the keys of the one before."""
        try:
            paths = sorted(p for p in self.folder.iterdir() if re.fullmatch(r"\d+\.bin", p.name))
        except OSError:
            return []
        found: list[Envelope] = []
        for path in paths:
            one = _read(path)
            if int(path.stem) != one.version:
                raise OutpostError(f"{path} holds version {one.version}: give it its own name.")
            _check_follows(found[-1] if found else None, one)
            found.append(one)
        return found

    def newest(self) -> Envelope | None:
        history = self.history()
        return history[-1] if history else None

    def find(self, version: int) -> Envelope | None:
        return next((one for one in self.history() if one.version == version), None)

    def put(self, made: Envelope) -> Path:
        """Keep a complete bundle; one that is there already is no error."""
        history = self.history()
        path = self.folder / f"{made.version:06}.bin"
        for one in history:
            if one.version == made.version:
                if one.head() != made.head():
                    raise self._another(made.version)
                return path
        if history and made.version < history[-1].version:
            raise OutpostError(
                f"Version {made.version} is older than {history[-1].version}, the newest in "
                f"{self.folder}: versions only rise."
            )
        _check_follows(history[-1] if history else None, made)
        private_dir(self.folder)
        write_whole(path, made.encode(), mode=0o644)
        return path

    def knows(self, draft: Draft) -> bool:
        """Whether the bundle that the draft follows is here, or it is a fleet's first."""
        if draft.present is None:
            return True
        return self.find(draft.present.version) is not None

    def check(self, draft: Draft) -> None:
        """OutpostError where what is here tells that the draft should not be signed."""
        if draft.present is not None:
            known = self.find(draft.present.version)
            if known is not None and known.head() != draft.present.head():
                raise OutpostError(
                    f"The draft says that another version {known.version} is in force than the "
                    f"one in {self.folder}: ask who made it, and sign nothing."
                )
        same = self.find(draft.envelope.version)
        if same is not None and same.head() != draft.envelope.head():
            raise self._another(same.version)

    def _another(self, version: int) -> OutpostError:
        return OutpostError(
            f"There is another version {version} in {self.folder}: a version is used once. Make "
            "the next one with `outpost trust new`."
        )

    def take(self, path: Path) -> Envelope:
        """Keep what is in a file, a draft that is complete or a bundle."""
        found = trustdraft.bundle_or_draft(path)
        if isinstance(found, Draft):
            self.put(found.envelope)
            self.name(found.names)
            return found.envelope
        self.put(found)
        return found

    def judged(self, found: Envelope) -> dict[str, Any]:
        """Whether the bundle before it, as far as this folder knows that, has signed for it."""
        if not found.version:
            said = (
                "It is the unsigned bundle of an image: it cannot be delivered, and signs nothing."
            )
            return {"good": True, "judged": [said]}
        older = [one for one in self.history() if one.version < found.version]
        before = older[-1] if older else None
        try:
            old, new = envelope.missing(found, before.keys if before else Keys())
        except OutpostError as why:
            return {"good": False, "judged": [f"Its signatures: {why}"]}
        after = f"the keys of version {before.version}" if before else "its own keys alone"
        if old or new:
            said = f"It lacks {old + new} signatures; judged by {after}."
            return {"good": False, "judged": [said]}
        return {"good": True, "judged": [f"Its signatures are right and enough, by {after}."]}

    def deliverable(self, made: Envelope) -> bytes:
        """What a device at any of the bundles before it takes: changes of keys, then the bundle."""
        return bundle.deliverable([*(o for o in self.history() if o.version < made.version), made])

    # Names of keys

    def names(self) -> dict[str, str]:
        try:
            found = json.loads((self.folder / NAMES).read_text())
            return {str(key): str(name) for key, name in found.items()}
        except (OSError, ValueError, AttributeError):
            return {}  # names are for people: without them keys are called by their ids

    def name(self, names: Mapping[str, str]) -> None:
        private_dir(self.folder)
        content = json.dumps({**self.names(), **names}, indent=1).encode()
        write_whole(self.folder / NAMES, content + b"\n", mode=0o644)


def _read(path: Path) -> Envelope:
    try:
        _, delivered = bundle.read(path.read_bytes())
    except OSError as why:
        raise OutpostError(f"Cannot read {path} ({why.strerror}).") from None
    except OutpostError as why:
        raise OutpostError(f"{path} is damaged ({why}): restore it from a copy.") from None
    return delivered.envelope


def _check_follows(before: Envelope | None, made: Envelope) -> None:
    present = before.keys if before else Keys()
    if not made.version:
        raise OutpostError("This is the unsigned bundle of an image: it cannot be delivered.")
    if before is not None and before.fleet != made.fleet:
        raise OutpostError(
            f"The bundle is for the fleet {made.fleet!r}; this folder is of {before.fleet!r}."
        )
    try:
        old, new = envelope.missing(made, present)
    except OutpostError as why:
        if before is not None:
            raise
        raise OutpostError(
            f"{why} The bundle before it is not in this folder: put it there first, with "
            "`outpost trust keep`."
        ) from None
    if old or new:
        raise OutpostError(
            f"Version {made.version} is not complete: {old} of the present keys and {new} of the "
            "new ones have yet to sign (`outpost trust sign`)."
        )
    Bundle.of(made)


def complete_in(path: Path) -> Envelope:
    """The bundle in a file, which must be complete if it is a draft."""
    found = trustdraft.bundle_or_draft(path)
    if not isinstance(found, Draft):
        return found
    if not found.complete:
        raise OutpostError(f"{path} is not in force: it lacks signatures.")
    return found.envelope
