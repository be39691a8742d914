"""A trust bundle in the making: the file that goes from signer to signer until enough have signed.

It owns the draft's format, JSON: the bundle as it will be, with the signatures so far; the bundle
that is in force, so that each signer sees what changes; and what people call the keys, which no
signature covers. A change of the bundle takes every signature off it. It holds no secret.
"""

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from outpost_tools import agreed, bundle, envelope
from outpost_tools.bundle import Bundle
from outpost_tools.envelope import Envelope, Keys
from outpost_tools.errors import OutpostError
from outpost_tools.paths import write_whole

FORMAT = 1
WHAT = "outpost trust draft"
FILE_MAX_BYTES = 65536
DAY_S = 86400
CLOCK_S = DAY_S  # so far the clocks of two signers may be apart


@dataclass(frozen=True)
class Draft:
    """`envelope` is the bundle with its signatures so far, `present` the one in force, if any."""

    envelope: Envelope
    present: Envelope | None = None
    names: Mapping[str, str] = field(default_factory=dict)  # key id in hex: what people call it

    @property
    def bundle(self) -> Bundle:
        return Bundle.of(self.envelope)

    @property
    def before(self) -> Bundle | None:
        return Bundle.of(self.present) if self.present else None

    @property
    def present_keys(self) -> Keys:
        return self.present.keys if self.present else Keys()

    @property
    def signed_by(self) -> list[str]:
        """Ids of the keys that have signed; each signature has been found right."""
        done = envelope.signers(self.envelope, self.present_keys, self.envelope.keys)
        return [one.key.hex() for one in self.envelope.signatures if one.key in done]

    def missing(self) -> tuple[int, int]:
        """How many signatures are still needed: (of the present keys, of those it names)."""
        return envelope.missing(self.envelope, self.present_keys)

    @property
    def complete(self) -> bool:
        return self.missing() == (0, 0)

    def who_is_missing(self) -> tuple[list[str], list[str]]:
        """Ids of the keys that have not signed and whose signature would count: present, new."""
        old, new = self.missing()
        done = set(self.signed_by)
        present = [one.hex() for one in self.present_keys.ids if one.hex() not in done]
        named = [one.hex() for one in self.envelope.keys.ids if one.hex() not in done]
        return (present if old else []), (named if new else [])

    def name(self, key: str) -> str:
        return f"{self.names[key]} ({key})" if key in self.names else key

    # Changes

    def edited(self, names: Mapping[str, str] | None = None, **changes: Any) -> "Draft":
        """With another content, issued now, and so without signatures."""
        now = int(time.time())
        old = self.bundle
        if old.issued >= now:
            now = old.issued
        changes.setdefault("expires", now + old.expires - old.issued)
        made = replace(old, issued=now, **changes)
        if made.version and not made.keys.points:
            raise OutpostError(
                "A bundle names the keys that sign the next one: make one with `outpost sign new "
                "NAME --role trust`, or give its public key with --key."
            )
        if self.present is not None and made.floor < self.present.floor:
            raise OutpostError(
                f"The floor never falls: it is {self.present.floor} in the present bundle."
            )
        return replace(self, envelope=made.unsigned(), names={**self.names, **(names or {})})

    def signed(self, key: ec.EllipticCurvePrivateKey, name: str = "") -> "Draft":
        """With the signature of one more key, which must be one whose signature counts."""
        mine = envelope.key_id(envelope.point_of(key))
        if mine not in (*self.present_keys.ids, *self.envelope.keys.ids):
            raise OutpostError(
                f"The key {mine.hex()} may not sign this: it is neither of the present bundle nor "
                "of this one."
            )
        if self.envelope.issued > time.time() + CLOCK_S:
            raise OutpostError(
                "The draft was issued in the future, by this machine's clock: devices take that "
                "date for a time that has been. Set the clock that is wrong."
            )
        names = {mine.hex(): name, **self.names} if name else self.names
        return replace(self, envelope=bundle.sign(self.envelope, [key]), names=names)

    # The file

    def save(self, path: Path) -> None:
        content = {
            "what": WHAT,
            "format": FORMAT,
            "fleet": self.envelope.fleet,
            "version": self.envelope.version,
            "bundle": _text(self.envelope.encode()),
            "present": _text(self.present.encode()) if self.present else None,
            "names": dict(self.names),
        }
        write_whole(path, json.dumps(content, indent=1).encode() + b"\n", mode=0o644)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def is_draft(data: bytes) -> bool:
    return data.lstrip()[:1] == b"{"


def read(path: Path) -> Draft:
    """A draft from its file; every signature in it is right, or an OutpostError says otherwise."""
    return parse(_content(path), str(path))


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise OutpostError(f"{path} is too long for a draft or a trust bundle.")
        return path.read_bytes()
    except OSError as why:
        raise OutpostError(f"Cannot read {path} ({why.strerror}).") from None


def parse(data: bytes, name: str) -> Draft:
    try:
        content = json.loads(data)
        if content["what"] != WHAT:
            raise ValueError
        if content["format"] != FORMAT:
            raise OutpostError(f"{name} is of another format: use the newer `outpost`.")
        made = base64.b64decode(content["bundle"], validate=True)
        before = content["present"]
        present = None if before is None else base64.b64decode(before, validate=True)
        names = {str(key): _printable(str(value)) for key, value in content["names"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise OutpostError(f"{name} is no draft of a trust bundle, or it is damaged.") from None
    draft = Draft(_alone(made, name), _alone(present, name) if present else None, names)
    _check(draft, name)
    return draft


def _printable(text: str) -> str:
    if not text.isprintable() or len(text) > 64:
        raise ValueError
    return text


def _alone(data: bytes, name: str) -> Envelope:
    found, delivered = bundle.read(data)
    if delivered.links or found.version == 0:
        raise OutpostError(f"{name} holds something else than one trust bundle.")
    return delivered.envelope


def _check(draft: Draft, name: str) -> None:
    """What no honest draft has, said before anybody signs."""
    present = draft.present
    if present is not None:
        if present.fleet != draft.envelope.fleet:
            raise OutpostError(f"{name} is for another fleet than the bundle before it.")
        if draft.envelope.version <= present.version:
            raise OutpostError(
                f"{name} has version {draft.envelope.version}, and {present.version} is in force: "
                "versions only rise."
            )
        if draft.envelope.floor < present.floor:
            raise OutpostError(f"{name} lowers the floor: that is never done.")
    _ = draft.signed_by


def first(fleet: str, roots: tuple[bytes, ...], keys: Keys, days: int, **more: Any) -> Draft:
    """The draft of a fleet's first bundle, which images carry."""
    now = int(time.time())
    made = Bundle(fleet, 1, roots, keys, issued=now, expires=_end(now, days), **more)
    return Draft(made.unsigned())


def following(present: Envelope, days: int, version: int | None = None) -> Draft:
    """A draft of the bundle after `present`, with the same content so far."""
    now = max(int(time.time()), present.issued)
    version = present.version + 1 if version is None else version
    if not present.version < version <= agreed.VERSION_MAX:
        raise OutpostError(f"Versions only rise: this one must be above {present.version}.")
    made = replace(Bundle.of(present), version=version, issued=now, expires=_end(now, days))
    return Draft(made.unsigned(), present)


def _end(now: int, days: int) -> int:
    if not 1 <= days <= 36500:
        raise OutpostError("A bundle may be installed for 1 to 36500 days.")
    return min(now + days * DAY_S, bundle.NEVER_EXPIRES)


def bundle_or_draft(path: Path) -> Draft | Envelope:
    """What is in a file: a draft, or a bundle without the changes of keys before it."""
    data = _content(path)
    if is_draft(data):
        return parse(data, str(path))
    return bundle.read(data)[1].envelope
