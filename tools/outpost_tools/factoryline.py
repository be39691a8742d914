"""What one process of a factory run does: make a device whole, then the next.

It owns the files of the devices it was given. The order within one device is: its files, then its
record; a device without a record was never made. Every file is its owner's alone from its first
byte on (paths.replacing). It never prints; it ends when the run that started it is gone.
"""

import base64
import contextlib
import ctypes
import hashlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from outpost_tools import agreed, nvsimage, proof, provision, vault
from outpost_tools.ca import FleetCA, Signer
from outpost_tools.enrolment import derive_key
from outpost_tools.errors import OutpostError
from outpost_tools.image import build_image
from outpost_tools.nvsimage import Identity
from outpost_tools.partitions import PartitionTable
from outpost_tools.paths import write_whole
from outpost_tools.profile import Profile
from outpost_tools.registry import new_key, thumbprints

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Order:
    """What all devices of the run have in common."""

    out: Path
    profile: Profile
    trust: tuple[bytes, ...]
    build_time: int
    signers: bytes = b""  # whose commands the devices take


@dataclass
class Made:
    """One device's identity, and what is known of it outside."""

    identity: Identity
    entry: dict[str, Any] | None  # its line in the registry file
    marks: list[str]  # hashes of its keys: two devices with the same mark share a key


_order: Order | None = None
_signer: Signer | None = None
_common = b""
_open = contextlib.ExitStack()


def begin(order: Order, ca_folder: Path | None, word: str, run: int) -> None:
    """Once in each process. `run` is the number of the process that started it."""
    global _order, _signer, _common
    with contextlib.suppress(OSError, AttributeError):
        # However the run ends, this process does not outlive it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != run:
        os._exit(1)  # it had gone before it could be watched
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _order = order
    if order.profile.output == "image":
        _common = common_path(order).read_bytes()
    if ca_folder is not None:
        _signer = _open.enter_context(FleetCA(ca_folder).unlocked(lambda: word))


def record_path(out: Path, number: int) -> Path:
    return out / "work" / f"{number:07}.json"


def common_path(order: Order) -> Path:
    """What all devices have in common: a part of what is delivered, or of the work."""
    return order.out / ("common.bin" if order.profile.output == "nvs" else "work/common.bin")


def make(numbers: list[int]) -> int:
    """The devices at these places of the run. Gives how many."""
    assert _order is not None
    for number in numbers:
        _make_one(_order, number)
    return len(numbers)


def _make_one(order: Order, number: int) -> None:
    device_id = order.profile.device_id(number)
    made = _identity(order.profile, device_id)
    nvs_keys = nvsimage.new_keys() if order.profile.encrypt_nvs else None
    if nvs_keys is not None:
        made.marks.append(_mark(nvs_keys))
    files: dict[str, str] = {}
    for name, content in _files(order, made.identity, nvs_keys).items():
        path = f"devices/{device_id}{name}"
        write_whole(order.out / path, content)
        files[path] = hashlib.sha256(content).hexdigest()
    record = {
        "id": device_id,
        "files": files,
        "entry": made.entry,
        "marks": made.marks,
        "chain": base64.b64encode(made.identity.chain).decode(),
    }
    write_whole(record_path(order.out, number), json.dumps(record).encode())


def _identity(profile: Profile, device_id: str) -> Made:
    tags = {"tags": dict(profile.tags)} if profile.tags else {}
    if profile.keys == "born":
        # Its key is made on the board, and its entry by `outpost provision`.
        return Made(Identity(device_id), None, [])
    if profile.group_key:
        # DPS derives it in the same way and makes the device's entry in the hub.
        derived = derive_key(profile.group_key, device_id)
        return Made(Identity(device_id, derived), None, [_mark(base64.b64decode(derived))])
    if profile.keys == "symmetric":
        first, second = new_key(), new_key()
        keys = {"primaryKey": first, "secondaryKey": second}
        entry = _entry(device_id, {"type": "sas", "symmetricKey": keys}) | tags
        marks = [_mark(base64.b64decode(key)) for key in (first, second)]
        return Made(Identity(device_id, first, second), entry, marks)
    assert _signer is not None
    key = vault.new_key()
    chain = _signer.device(device_id, key.public_key(), profile.days)
    packed = proof.pack_chain(chain)
    thumbprint = thumbprints(chain[0].public_bytes(serialization.Encoding.DER))[0]
    by: provision.By = "ca" if profile.by == "ca" else "thumbprint"
    entry = _entry(device_id, provision.entry(device_id, by, thumbprint)["authentication"]) | tags
    identity = Identity(device_id, chain=packed, private=vault.private_der(key))
    return Made(identity, entry, [_mark(_point(key))])


def _entry(device_id: str, authentication: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": device_id,
        "importMode": "create",
        "status": "enabled",
        "authentication": authentication,
    }


def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return proof.point(key.public_key(), "The device's")


def _mark(key: bytes) -> str:
    return hashlib.sha256(b"outpost factory\0" + key).hexdigest()


def table_of(profile: Profile) -> PartitionTable:
    table = PartitionTable.for_size(profile.flash_mib)
    return table.with_nvs_keys("vfs") if profile.encrypt_nvs else table


def common_image(order: Order) -> bytes:
    """What all devices have in common: the whole flash, with an NVS that holds no identity."""
    profile = order.profile
    if profile.library not in ("frozen", "flash"):
        raise OutpostError("The library is frozen or flash.")
    blank = build_image(
        None,
        order.trust,
        profile.settings,
        build_time_s=order.build_time,
        library="flash" if profile.library == "flash" else "frozen",
        app=profile.app,
        files={agreed.SIGNERS_PATH: order.signers} if order.signers else None,
        size_mib=profile.flash_mib,
        nvs_keys=bytes(32) + b"\1" * 32 if profile.encrypt_nvs else None,
    )
    flash = bytearray(blank)
    for partition in table_of(profile):
        # Nothing of a device, and no key that is not secret, may reach a board from here.
        if partition.name in ("nvs", "nvs_keys"):
            flash[partition.offset : partition.end] = b"\xff" * partition.size
    return bytes(flash)


def _files(order: Order, identity: Identity, nvs_keys: bytes | None) -> dict[str, bytes]:
    """The device's files, by how their names end."""
    table = table_of(order.profile)
    nvs = nvsimage.nvs_partition(identity, order.build_time, table["nvs"].size, nvs_keys)
    keys = b""
    if nvs_keys is not None:
        keys = nvsimage.keys_partition(nvs_keys, table["nvs_keys"].size)
    if order.profile.output == "nvs":
        return {".nvs.bin": nvs} | ({".nvs_keys.bin": keys} if keys else {})
    flash = bytearray(_common)
    flash[table["nvs"].offset : table["nvs"].end] = nvs
    if keys:
        flash[table["nvs_keys"].offset : table["nvs_keys"].end] = keys
    return {".bin": bytes(flash)}
