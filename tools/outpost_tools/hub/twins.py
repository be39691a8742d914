"""Device twins: tags and desired properties from the service, reported ones from the device.

It owns the table `twin` in the registry's file, so that a removed device's twin goes with it. Each
change is one transaction and raises the version of its part by one. A twin that nobody has written
to has no row. Its calls reach the disk and may block: the hub makes them outside its event loop.
"""

import base64
import copy
import datetime as dt
import json
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from outpost_tools.hub import faults, limits
from outpost_tools.hub.commands import Transaction, open_table

Json = dict[str, Any]
# device id, what is new in its desired properties (null: gone), their version
OnDesired = Callable[[str, Json, int], None]


@dataclass(frozen=True)
class Twin:
    """One device's twin. The parts are without "$metadata" and "$version": see `properties`."""

    device_id: str
    etag: str
    version: int
    tags: Json
    desired: Json
    desired_metadata: Json
    desired_version: int
    reported: Json
    reported_metadata: Json
    reported_version: int

    @property
    def properties(self) -> Json:
        """As the service API shows it."""
        return {
            "desired": {
                **self.desired,
                "$metadata": self.desired_metadata,
                "$version": self.desired_version,
            },
            "reported": {
                **self.reported,
                "$metadata": self.reported_metadata,
                "$version": self.reported_version,
            },
        }

    @property
    def for_device(self) -> Json:
        """As the device gets it: without metadata and tags."""
        return {
            "desired": {**self.desired, "$version": self.desired_version},
            "reported": {**self.reported, "$version": self.reported_version},
        }


def iso(at_s: float) -> str:
    """A time as IoT Hub writes it in twins: UTC with seven decimals."""
    moment = dt.datetime.fromtimestamp(at_s, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}0Z"


def parse_json(body: bytes | str) -> Any:
    """JSON in the strict sense; ArgumentInvalid for anything else, bombs included."""
    try:
        return json.loads(body, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        raise faults.ArgumentInvalid("It is not JSON.") from None


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number that is none to most readers")
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):  # 1e999 would be written again as Infinity
        raise ValueError("a number is beyond all floats")
    return number


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


class TwinStore:
    """`on_desired` is called after each change of desired properties, in the order of versions."""

    def __init__(
        self, data: Path, now_s: Callable[[], float], on_desired: OnDesired | None = None
    ) -> None:
        self.now_s, self.on_desired = now_s, on_desired
        self._lock = threading.Lock()
        self._db = open_table(data)

    def get(self, device_id: str) -> Twin:
        with self._lock:
            return self._get(device_id)

    def all(self) -> list[Twin]:
        with self._lock:
            ids = self._db.execute("SELECT device_id FROM device ORDER BY device_id").fetchall()
            rows = {row[0]: row for row in self._db.execute("SELECT * FROM twin")}
            made = dict(self._db.execute("SELECT device_id, created_s FROM device"))
        return [_twin(i, rows.get(i), made.get(i, 0)) for (i,) in ids]

    def change(
        self,
        device_id: str,
        tags: Json | None = None,
        desired: Json | None = None,
        if_match: str | None = None,
        whole: bool = False,
    ) -> Twin:
        """The service's side: merge, or with `whole` put in the place of what is there."""
        tags = None if tags is None else check(_plain(tags), "tags")
        desired = None if desired is None else check(_plain(desired), "desired")
        with self._lock:
            with Transaction(self._db):
                old = self._get(device_id)
                if if_match not in (None, "*", old.etag):
                    raise faults.PreconditionFailed(
                        "The twin was changed by someone else: read it again."
                    )
                changed: Json = {"etag": _next_etag(old.etag), "version": old.version + 1}
                news: Json | None = None
                if whole or tags is not None:
                    base = {} if whole else copy.deepcopy(old.tags)
                    changed["tags"] = _merge(base, tags or {})
                    _check_size(changed["tags"], "tags", limits.TWIN_TAGS_MAX_BYTES)
                if whole or desired is not None:
                    news = desired or {}
                    if whole:
                        news = {**dict.fromkeys(old.desired.keys() - news.keys()), **news}
                    changed |= self._section(
                        "desired",
                        {} if whole else old.desired,
                        {} if whole else old.desired_metadata,
                        old.desired_version + 1,
                        desired or {},
                    )
                twin = Twin(**{**vars(old), **changed})
                self._put(twin)
            if news is not None and self.on_desired is not None:
                self.on_desired(device_id, news, twin.desired_version)
        return twin

    def report(self, device_id: str, patch: Json) -> Twin:
        """The device's side: merge into the reported properties."""
        check(patch, "reported")
        with self._lock, Transaction(self._db):
            old = self._get(device_id)
            changed = self._section(
                "reported", old.reported, old.reported_metadata, old.reported_version + 1, patch
            )
            twin = Twin(**{**vars(old), **changed, "version": old.version + 1})
            self._put(twin)
        return twin

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _section(self, name: str, value: Json, metadata: Json, version: int, patch: Json) -> Json:
        value, metadata = copy.deepcopy(value), copy.deepcopy(metadata)
        stamp: Json = {"$lastUpdated": iso(self.now_s())}
        if name == "desired":
            stamp["$lastUpdatedVersion"] = version
        _merge(value, patch, metadata, stamp)
        metadata |= stamp
        _check_size(value, name, limits.TWIN_SECTION_MAX_BYTES)
        return {name: value, f"{name}_metadata": metadata, f"{name}_version": version}

    def _get(self, device_id: str) -> Twin:
        made = self._db.execute(
            "SELECT created_s FROM device WHERE device_id = ?", (device_id,)
        ).fetchone()
        if made is None:
            raise faults.DeviceNotFound(f"There is no device {device_id!r} in this hub.")
        row = self._db.execute("SELECT * FROM twin WHERE device_id = ?", (device_id,)).fetchone()
        return _twin(device_id, row, made[0])

    def _put(self, twin: Twin) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO twin VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                twin.device_id,
                twin.etag,
                twin.version,
                json.dumps(twin.tags),
                json.dumps({**twin.desired, "$version": twin.desired_version}),
                json.dumps(twin.desired_metadata),
                json.dumps({**twin.reported, "$version": twin.reported_version}),
                json.dumps(twin.reported_metadata),
            ),
        )


def _twin(device_id: str, row: Any, made_s: float) -> Twin:
    if row is None:
        stamp = {"$lastUpdated": iso(made_s)}
        first = _etag(1)
        return Twin(device_id, first, 2, {}, {}, dict(stamp), 1, {}, dict(stamp), 1)
    tags, desired, desired_meta, reported, reported_meta = map(json.loads, row[3:])
    return Twin(
        device_id=device_id,
        etag=row[1],
        version=row[2],
        tags=tags,
        desired_version=desired.pop("$version"),
        desired=desired,
        desired_metadata=desired_meta,
        reported_version=reported.pop("$version"),
        reported=reported,
        reported_metadata=reported_meta,
    )


def _etag(number: int) -> str:
    return base64.b64encode(number.to_bytes(8, "big")).decode()


def _next_etag(etag: str) -> str:
    return _etag(int.from_bytes(base64.b64decode(etag), "big") + 1)


def _plain(part: Any) -> Any:
    """Without what the service adds to a part by itself, which whoever read it may send back."""
    if not isinstance(part, dict):
        return part
    return {name: value for name, value in part.items() if name not in ("$metadata", "$version")}


def _merge(
    target: Json, patch: Json, metadata: Json | None = None, stamp: Json | None = None
) -> Json:
    """Null takes away, an object goes into what is there, everything else replaces it."""
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
            if metadata is not None:
                metadata.pop(name, None)
            continue
        below: Json | None = None
        if metadata is not None and stamp is not None:
            below = metadata.setdefault(name, {})
            if not (isinstance(value, dict) and isinstance(target.get(name), dict)):
                below.clear()
            below |= stamp
        if isinstance(value, dict):
            if not isinstance(target.get(name), dict):
                target[name] = {}
            _merge(target[name], value, below, stamp)
        else:
            target[name] = value
    return target


def _check_size(value: Json, name: str, limit: int) -> None:
    size = len(compact(value))
    if size > limit:
        raise faults.TooLarge(f"The twin's {name} would have {size} bytes; {limit} are the limit.")


def check(patch: Any, name: str) -> Json:
    """The patch itself, or ArgumentInvalid for what IoT Hub does not take in a twin."""
    if not isinstance(patch, dict):
        raise faults.ArgumentInvalid(f"The {name} of a twin are a JSON object.")
    _check_value(patch, 1, name)
    return patch


def _check_value(value: Any, depth: int, where: str) -> None:
    if depth > limits.TWIN_DEPTH_MAX + 1:
        raise faults.ArgumentInvalid(f"The {where} are nested deeper than ten levels.")
    if isinstance(value, dict):
        for key, below in value.items():
            _check_name(key, where)
            if below is not None:
                _check_value(below, depth + 1, where)
    elif isinstance(value, list):
        for below in value:
            if below is None:
                raise faults.ArgumentInvalid(f"An array in the {where} holds null.")
            _check_value(below, depth + 1, where)
    elif isinstance(value, str):
        if len(value.encode(errors="replace")) > limits.TWIN_TEXT_MAX_BYTES:
            raise faults.ArgumentInvalid(f"A text in the {where} is longer than 4 KB.")
        _check_characters(value, where)
    elif isinstance(value, bool):
        pass
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise faults.ArgumentInvalid(f"A number in the {where} is out of range.")
    elif isinstance(value, int):
        if not limits.TWIN_INTEGER_MIN <= value <= limits.TWIN_INTEGER_MAX:
            raise faults.ArgumentInvalid(f"A number in the {where} is out of range.")
    else:
        raise faults.ArgumentInvalid(f"The {where} hold what is no JSON.")


def _check_name(name: Any, where: str) -> None:
    if not isinstance(name, str) or not name:
        raise faults.ArgumentInvalid(f"A name in the {where} is empty.")
    if len(name.encode(errors="replace")) > limits.TWIN_NAME_MAX_BYTES:
        raise faults.ArgumentInvalid(f"A name in the {where} is longer than 1 KB.")
    if set(name) & set(".$ ") or any(c < " " or "\x7f" <= c <= "\x9f" for c in name):
        raise faults.ArgumentInvalid(f"A name in the {where} has one of . $, space or controls.")
    _check_characters(name, where)


def _check_characters(text: str, where: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise faults.ArgumentInvalid(f"A text in the {where} has half a character in it.")
