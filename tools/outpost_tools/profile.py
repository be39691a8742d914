"""A factory profile: what all devices of one run have in common, in a TOML file.

It owns the words of that file and says in one sentence what is wrong with it. It holds no secret
but the Wi-Fi key and a DPS group's key, which it takes from files of their own and never prints.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outpost_tools.errors import OutpostError
from outpost_tools.image import DEFAULT_SNTP, Dps, Settings
from outpost_tools.proof import check_common_name
from outpost_tools.registry import check_device_id, check_key

KEYS = ("symmetric", "x509", "born")
OUTPUTS = ("nvs", "image")
BY = ("thumbprint", "ca")
FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "device": {"id": str, "first": int, "keys": str, "by": str, "days": int, "tags": dict},
    "image": {
        "output": str,
        "encrypt_nvs": bool,
        "library": str,
        "app": str,
        "flash_mib": int,
        "roots": list,
        "build_time": int,
    },
    "settings": {
        "hub": str,
        "port": int,
        "wifi": str,
        "wifi_key_file": str,
        "sntp": list,
        "record_size": (str, int),
        "suites": str,
        "keepalive_s": int,
        "rotation_days": int,
    },
    "dps": {"id_scope": str, "host": str, "csr": bool, "group_key_file": str},
}


@dataclass(frozen=True)
class Profile:
    """What a run makes.

    pattern   device ids, with {n} or {n:05} where the number goes
    keys      "symmetric"; "x509", made here; "born": the board makes its own
    by        how the hub knows a device with a certificate: by "thumbprint" or by the "ca"
    output    "nvs": one partition a device and one image for all; "image": one image a device
    """

    source: Path
    pattern: str
    first: int = 1
    keys: str = "symmetric"
    by: str = "thumbprint"
    days: int = 3650
    tags: Mapping[str, Any] = field(default_factory=dict)
    output: str = "nvs"
    encrypt_nvs: bool = False
    library: str = "frozen"
    app: Path | None = None
    flash_mib: int = 4
    roots: tuple[str, ...] = ()
    build_time: int | None = None
    settings: Settings = field(default_factory=Settings)
    group_key: str = field(default="", repr=False)

    def device_id(self, number: int) -> str:
        """The id of the device at place `number` of the run, from 0 on."""
        return self.pattern.format(n=self.first + number)

    def digest(self) -> str:
        """A hash of all that decides what the run makes: a resumed run must have the same."""
        content = {name: str(value) for name, value in vars(self).items() if name != "source"}
        content["group_key"] = hashlib.sha256(self.group_key.encode()).hexdigest()
        content["settings"] = hashlib.sha256(self.settings.to_json()).hexdigest()
        if self.app is not None:
            # By content: a file that was edited between two runs would make two kinds of device.
            for path in sorted(p for p in self.app.rglob("*") if p.is_file()):
                content[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> Profile:
    """The profile in a file, every word of it checked."""
    try:
        raw = tomllib.loads(path.read_text())
    except OSError as why:
        raise OutpostError(f"Cannot read the profile {path} ({why.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as why:
        raise OutpostError(f"The profile {path} is not TOML: {why}.") from None
    for section, content in raw.items():
        if section not in FIELDS or not isinstance(content, dict):
            raise OutpostError(f"{path}: there is no [{section}] in a profile.")
        for name, value in content.items():
            wanted = FIELDS[section].get(name)
            # bool is an int in Python, but `first = true` is a mistake.
            if wanted is None or not isinstance(value, wanted) or type(value) is bool is not wanted:
                raise OutpostError(f"{path}: {section}.{name} is not a field, or not of its kind.")
    return _profile(path, raw)


def _profile(path: Path, raw: Mapping[str, Any]) -> Profile:
    device, image = raw.get("device", {}), raw.get("image", {})
    made = Profile(
        source=path,
        pattern=device.get("id", ""),
        **{
            name: device[name] for name in ("first", "keys", "by", "days", "tags") if name in device
        },
        **{
            name: image[name]
            for name in ("output", "encrypt_nvs", "library", "flash_mib", "build_time")
            if name in image
        },
        app=path.parent / image["app"] if "app" in image else None,
        roots=tuple(map(str, image.get("roots", ()))),
        settings=_settings(path, raw.get("settings", {}), raw.get("dps", {})),
        group_key=_group_key(path, raw.get("dps", {})),
    )
    if made.settings.dps is not None and made.keys == "symmetric" and not made.group_key:
        raise OutpostError(
            f"{path}: with DPS, symmetric keys come from its group's: give dps.group_key_file."
        )
    for name, value, allowed in (
        ("device.keys", made.keys, KEYS),
        ("device.by", made.by, BY),
        ("image.output", made.output, OUTPUTS),
        ("image.library", made.library, ("frozen", "flash")),
    ):
        if value not in allowed:
            raise OutpostError(f"{path}: {name} is one of {', '.join(allowed)}, not {value!r}.")
    if made.first < 0:
        raise OutpostError(f"{path}: device.first is a number from 0 on.")
    _check_pattern(made)
    return made


def _check_pattern(profile: Profile) -> None:
    try:
        one, other = profile.device_id(0), profile.device_id(1)
    except (KeyError, IndexError, ValueError, AttributeError):
        one = other = ""
    if one == other:
        raise OutpostError(
            f'{profile.source}: device.id needs {{n}} where the number goes, e.g. "pump-{{n:05}}".'
        )
    (check_device_id if profile.keys == "symmetric" else check_common_name)(one)
    if set("+#/") & set(one):
        raise OutpostError(f"{profile.source}: MQTT does not allow + and # in a device id.")


def _group_key(path: Path, raw: Mapping[str, Any]) -> str:
    if "group_key_file" not in raw:
        return ""
    file = path.parent / raw["group_key_file"]
    try:
        return check_key(file.read_text().strip(), "group key")
    except (OSError, UnicodeDecodeError):
        raise OutpostError(f"Cannot read the group key in {file}.") from None


def _settings(path: Path, raw: Mapping[str, Any], dps: Mapping[str, Any]) -> Settings:
    wifi_key = ""
    if "wifi_key_file" in raw:
        file = path.parent / raw["wifi_key_file"]
        try:
            wifi_key = file.read_text().strip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise OutpostError(f"Cannot read the Wi-Fi key in {file}.") from None
    names = ("hub", "port", "record_size", "suites", "keepalive_s", "rotation_days")
    plain = {name: raw[name] for name in names if name in raw}
    named = {name: value for name, value in dps.items() if name != "group_key_file"}
    if dps and "id_scope" not in dps:
        raise OutpostError(f"{path}: [dps] needs its id_scope, e.g. 0ne0000ABCD.")
    made = Settings(
        **plain,
        wifi_ssid=raw.get("wifi", "Espressif"),
        wifi_key=wifi_key,
        sntp=tuple(map(str, raw.get("sntp", DEFAULT_SNTP))),
        dps=Dps(**named) if dps else None,
    )
    if made.suites not in ("all", "ecc"):
        raise OutpostError(f"{path}: settings.suites is all or ecc.")
    made.check()
    return made
