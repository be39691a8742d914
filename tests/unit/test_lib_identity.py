"""The identity in NVS: every way it can be wrong is one sentence, and none shows the key."""

import base64

import chip
import pytest
from legs import VIRTUAL

LEGS_HERE = VIRTUAL

TABLE = [(1, 2, 0x9000, 0x6000, "nvs"), (0, 0, 0x10000, 0x1F0000, "factory")]
KEY = base64.b64encode(bytes(range(32)))

RUN = """
import esp32
nvs = esp32.NVS("outpost")
for name, value in ENTRIES.items():
    (nvs.set_i32 if isinstance(value, int) else nvs.set_blob)(name, value)
nvs.commit()
from outpost import identity
from outpost.errors import IdentityError
try:
    who = identity.load()
    print("ok", who.device_id, who)
except IdentityError as e:
    assert e.person
    print("refused", e)
"""


@pytest.fixture
def load(micropython, tmp_path):
    def load(entries: dict[str, bytes | int]) -> str:
        image = bytearray(b"\xff" * (4 * chip.MIB))
        table = chip.table(TABLE)
        image[0x8000 : 0x8000 + len(table)] = table
        flash = tmp_path / "flash.bin"
        flash.write_bytes(image)
        printed = micropython(f"ENTRIES = {entries!r}{RUN}", "--flash", str(flash)).strip()
        assert "\n" not in printed
        for value in entries.values():
            if isinstance(value, bytes) and value != entries.get("id"):
                assert value.decode(errors="replace") not in printed or not value
        return printed

    return load


@pytest.mark.parametrize("name", ["a", "d" * 128, "Az09-:.+%_#*?!(),=@;$'"])
def test_every_id_that_iot_hub_takes_is_loaded(load, name):
    assert load({"id": name.encode(), "sas1": KEY}) == f"ok {name} <Identity {name}>"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({}, "no device id"),
        ({"sas1": KEY}, "no device id"),
        ({"id": b"d"}, "device d has no key"),
        ({"id": b"", "sas1": KEY}, "id in NVS is empty"),
        ({"id": b"d" * 129, "sas1": KEY}, "entry 'id' in NVS is too long"),
        ({"id": 5, "sas1": KEY}, "no device id"),
        ({"id": b"d", "sas1": 5}, "has no key"),
        ({"id": b"d", "sas1": b"A" * 129}, "entry 'sas1' in NVS is too long"),
        ({"id": b"d", "sas1": b""}, "has 0 bytes, not 16 to 64"),
        ({"id": b"d", "sas1": b"!" * 44}, "not base64"),
        ({"id": b"d", "sas1": KEY[:-1]}, "not base64"),
        ({"id": b"d", "sas1": KEY[:-4] + b"\n" + KEY[-4:]}, "not base64"),
        ({"id": b"d", "sas1": b"\xff" * 44}, "not base64"),
        ({"id": b"d", "sas1": base64.b64encode(bytes(15))}, "has 15 bytes, not 16 to 64"),
        ({"id": b"d", "sas1": base64.b64encode(bytes(65))}, "has 65 bytes, not 16 to 64"),
    ],
)
def test_wrong_entry_is_named_and_the_key_never_shown(load, entries, words):
    printed = load(entries)
    assert printed.startswith("refused ") and words in printed and "provision" in printed


@pytest.mark.parametrize(
    "character", [b" ", b"/", b"\n", b"\x00", b"\x7f", b"\xc3\xa9", b'"', b"&", b"\xb2", b"\\"]
)
def test_character_that_iot_hub_does_not_take_is_refused(load, character):
    printed = load({"id": b"a" + character + b"b", "sas1": KEY})
    assert printed.startswith("refused ") and "character" in printed


def test_error_without_a_number_is_still_a_sentence(micropython):
    micropython("""
import sys
class esp32:
    class NVS:
        def __init__(self, name):
            raise OSError
sys.modules["esp32"] = esp32
from outpost import identity
from outpost.errors import IdentityError
try:
    identity.load()
except IdentityError as e:
    assert "cannot be opened" in str(e)
else:
    raise AssertionError
""")
