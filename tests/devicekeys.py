"""The keys of tlspolicy as they lie in a flash image, for tests.

Owns nothing but the images it is told to write. Reads them with the independent NVS reader, writes
them with the board's own C code.
"""

from __future__ import annotations

from pathlib import Path

import nvs_reader
from chip import Chip
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from stockboard import blank_flash

NVS_OFFSET, NVS_SIZE = 0x9000, 0x6000
NAMESPACE = "outpost_keys"
FORM = 1


def nvs(flash: Path, after_power_cut: bool = False) -> dict[tuple[str, str], nvs_reader.Value]:
    image = flash.read_bytes()[NVS_OFFSET : NVS_OFFSET + NVS_SIZE]
    if image == b"\xff" * NVS_SIZE:
        return {}
    return nvs_reader.read(image, after_power_cut)


def stored(flash: Path, slot: int, after_power_cut: bool = False) -> bytes | None:
    """The private scalar in a slot; checks that the point beside it is its own."""
    blob = nvs(flash, after_power_cut).get((NAMESPACE, f"k{slot}"))
    if blob is None:
        return None
    assert isinstance(blob, bytes) and len(blob) == 98 and blob[0] == FORM
    assert point(private(blob[1:33])) == blob[33:]
    return blob[1:33]


def private(scalar: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256R1())


def point(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> bytes:
    public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
    return public.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


def flash_with_keys(path: Path, keys: dict[int, bytes]) -> Path:
    """A flash image with these private scalars in their slots."""
    blank_flash(path)
    chip = Chip(path)
    assert chip.start(NVS_OFFSET, NVS_SIZE) == 0
    namespace = chip.namespace(NAMESPACE)
    for slot, scalar in keys.items():
        blob = bytes([FORM]) + scalar + point(private(scalar))
        chip.set_blob(namespace, f"k{slot}", blob)
    chip.close()
    return path


def about_to_move_a_page(path: Path, slot: int) -> Path:
    """The same image, written to until the next key in the slot makes the NVS move a page."""
    chip = Chip(path)
    assert chip.start(NVS_OFFSET, NVS_SIZE) == 0
    other, keys = chip.namespace("other"), chip.namespace(NAMESPACE)
    turn = 0
    while True:
        before, erases = chip.nvs_bytes, chip.counts().erases
        chip.set_blob(keys, f"k{slot}", bytes([FORM]) + bytes(97))
        moved = chip.counts().erases > erases
        chip.nvs_bytes = before
        assert chip.restart() == 0
        if moved:
            chip.close()
            return path
        turn += 1
        # Something in every page stays, so that there is something to move.
        chip.set_i32(other, f"kept{turn}" if turn % 12 == 0 else "churn", turn)
