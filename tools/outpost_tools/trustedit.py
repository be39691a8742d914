"""What `outpost trust new`, `add` and `remove` do to a draft.

It owns the parts that a person named, read and judged before anything is changed. It keeps nothing.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from outpost_tools import trustdraft, trustparts
from outpost_tools.envelope import Keys
from outpost_tools.errors import OutpostError
from outpost_tools.fleet import Fleet
from outpost_tools.pki import DevCA
from outpost_tools.signing import Signers
from outpost_tools.trustdraft import Draft
from outpost_tools.trustshelf import Shelf


class Parts:
    """The parts that the options of `new` and `add` name, read and judged."""

    def __init__(
        self,
        folder: Path,
        root: list[str] | None,
        key: list[Path] | None,
        threshold: int | None,
        host: list[str] | None,
        recovery: list[str] | None,
        software: list[Path] | None,
        software_threshold: int | None,
    ) -> None:
        self.folder, self.root = folder, root or []
        self.keys = [trustparts.read_key(path) for path in key or []]
        self.threshold, self.hosts = threshold, host or []
        self.recovery = [trustparts.read_recovery(text) for text in recovery or []]
        self.software = [trustparts.read_key(path) for path in software or []]
        self.software_threshold = software_threshold

    @property
    def empty(self) -> bool:
        parts = (self.root, self.keys, self.hosts, self.recovery, self.software)
        return not any(parts) and self.threshold is None and self.software_threshold is None

    def names(self) -> dict[str, str]:
        return {key.id: key.name for key in (*self.keys, *self.software)}

    def first(self, days: int) -> Draft:
        """The fleet's first bundle: signed by this folder's signers unless keys are given."""
        own = Signers(self.folder).all()
        keys = self.keys or [
            trustparts.NamedKey(one.name, one.point[1:]) for one in own if "trust" in one.roles
        ]
        if not keys:
            raise OutpostError(
                "Nobody could sign the next bundle: make a signer with `outpost sign new NAME "
                "--role trust`, or give public keys with --key."
            )
        with Fleet(self.folder) as fleet:
            name = fleet.name
        roots = trustparts.add_roots((), self.root or self._usual())
        draft = trustdraft.first(
            name, roots, trustparts.add_keys(Keys(), keys, self.threshold), days
        )
        self.root, self.keys, self.threshold = [], [], None
        return replace(self.added(draft), names={key.id: key.name for key in keys} | self.names())

    def _usual(self) -> list[str]:
        """As for an image: the development roots where there are any, else Azure's."""
        if not DevCA.exists(self.folder):
            return ["azure"]
        ca = DevCA(self.folder)
        return [str(ca.root_file(kind)) for kind in ca.kinds]

    def added(self, draft: Draft) -> Draft:
        old = draft.bundle
        changes: dict[str, Any] = {}
        if self.root:
            changes["roots"] = trustparts.add_roots(old.roots, self.root)
        if self.keys or self.threshold:
            changes["keys"] = trustparts.add_keys(old.keys, self.keys, self.threshold)
        if self.hosts:
            changes["hosts"] = more(old.hosts, self.hosts, "host")
        if self.recovery:
            changes["recovery"] = more(old.recovery, self.recovery, "recovery endpoint")
        if self.software or self.software_threshold:
            changes["software"] = trustparts.add_keys(
                old.software or Keys(), self.software, self.software_threshold
            )
        return draft.edited({**Shelf(self.folder).names(), **self.names()}, **changes)

    def with_signers(self, draft: Draft) -> Draft:
        content = Signers(self.folder).for_devices(draft.envelope.fleet)
        if content is None:
            raise OutpostError("There is no signer to name: `outpost sign new`.")
        return draft.edited(signers=content)


def more(old: tuple[Any, ...], added: list[Any], what: str) -> tuple[Any, ...]:
    for number, one in enumerate(added):
        if one in old or one in added[:number]:
            raise OutpostError(f"The {what} {getattr(one, 'host', one)} is in the bundle already.")
    return (*old, *added)


def without(old: tuple[str, ...], names: list[str], what: str) -> tuple[str, ...]:
    for name in names:
        if name not in old:
            raise OutpostError(f"{name!r} is no {what} of the bundle: {', '.join(old) or 'none'}.")
    return tuple(one for one in old if one not in names)


def spare(output: Path | None, draft: Draft, folder: Path) -> Path:
    """Where a new draft goes: over nothing but a draft that nobody has signed, or that is kept."""
    path = output or Path(f"trust-{draft.envelope.version}.draft")
    if not path.exists():
        return path
    try:
        old = trustdraft.read(path).envelope
    except OutpostError:
        raise OutpostError(f"{path} is there, and is no draft: give another -o.") from None
    kept = Shelf(folder).find(old.version)
    if old.signatures and (kept is None or kept.head() != old.head()):
        raise OutpostError(
            f"{path} is there, and somebody has signed it: remove it, or give another -o."
        )
    return path
