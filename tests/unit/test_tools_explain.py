"""`outpost image --explain`: what is where, on good images and on bad ones, and never a secret."""

import json

import espimages
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outpost_tools import bundle, roots
from outpost_tools.cli import app
from outpost_tools.errors import OutpostError
from outpost_tools.explain import explain
from outpost_tools.firmwareimage import read_firmware
from outpost_tools.image import Settings, build_image
from outpost_tools.nvsimage import Identity, new_keys
from typer.testing import CliRunner

BUILD_TIME = 1_800_000_000
SECRETS = ("c2VjcmV0LXByaW1hcnkta2V5LWtleS0x", "c2VjcmV0LXNlY29uZGFyeS1rZXktMg==")
WIFI_KEY = "open-sesame-99"


def image(**more) -> bytes:
    device = Identity("pump-7", *SECRETS)
    given_settings = Settings(wifi_key=WIFI_KEY)
    trust = roots.choose(["azure"])
    return build_image(device, trust, given_settings, build_time_s=BUILD_TIME, **more)


def told(tmp_path, content: bytes):
    file = tmp_path / "flash.bin"
    file.write_bytes(content)
    return explain(file)


def test_an_image_is_told_by_partition_key_file_and_firmware(tmp_path):
    firmware = read_firmware(espimages.release(tmp_path))
    found = told(tmp_path, image(firmware=firmware, size_mib=8, layout="ota", production=True))
    parts = {part.name: part for part in found.parts}
    assert (found.device_id, found.chip, found.production) == ("pump-7", "ESP32", True)
    keys = {(e["key"], e["type"], e["size"]) for e in parts["nvs"].facts["entries"]}
    assert keys == {
        ("id", "blob", 6),
        ("sas1", "blob", len(SECRETS[0])),
        ("sas2", "blob", len(SECRETS[1])),
        ("floor", "i32", 4),
        ("prod", "i32", 4),
    }
    assert "/config.json" in parts["vfs"].facts["files"]
    assert len(parts["vfs"].facts["trust"]["roots"]) == 4
    assert parts["otadata"].facts["starts"] == "ota_0"
    assert parts["ota_0"].facts["application"]["version"] == "v1.26.1"
    assert parts["ota_1"].used == 0 and parts["outbox"].used == 0
    text = "\n".join(found.lines())
    assert "micropython v1.26.1 for ESP32, ESP-IDF v5.4.2, checksum right" in text
    assert "production" in text and "8 MiB" in text


@pytest.mark.parametrize("encrypted", [False, True])
def test_no_secret_of_an_image_is_ever_told(encrypted, tmp_path):
    keys = new_keys() if encrypted else None
    content = image(nvs_keys=keys, production=True)
    (tmp_path / "flash.bin").write_bytes(content)
    for words in ([], ["--json"]):
        done = CliRunner().invoke(app, ["image", "--explain", str(tmp_path / "flash.bin"), *words])
        assert done.exit_code == 0, done.output
        for secret in (*SECRETS, WIFI_KEY):
            assert secret not in done.output
        if keys:
            assert keys.hex() not in done.output
    assert json.loads(done.output)["device"] == (None if encrypted else "pump-7")
    assert secret not in repr(explain(tmp_path / "flash.bin"))


def test_a_signed_bundle_is_told_by_its_version(tmp_path):
    made = bundle.factory(roots.choose(["azure"]), BUILD_TIME)
    content = made if isinstance(made, bytes) else made.encode()
    found = told(tmp_path, image(files={"/trust/factory.bin": content}))
    trust = next(part for part in found.parts if part.name == "vfs").facts["trust"]
    assert len(trust["roots"]) == 4 and isinstance(trust["version"], int)
    wrong = told(tmp_path, image(files={"/trust/factory.bin": content[:-30]}))
    assert any("bundle of the factory is damaged" in line for line in wrong.lines())


def test_an_encrypted_nvs_is_said_to_be_and_not_called_a_development_board(tmp_path):
    text = "\n".join(told(tmp_path, image(nvs_keys=new_keys())).lines())
    assert "encrypted, or damaged" in text and "mode not readable" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes"),
        (b"\xff" * (4 << 20), "blank"),
        (bytes(4 << 20), "no flash image"),
        (b"\x5a" * (4 << 20), "encrypted"),
        (b"\xe9" * 100, "100 bytes"),
    ],
    ids=["empty", "blank", "zeros", "noise", "short"],
)
def test_what_is_no_image_is_one_sentence(content, words, tmp_path):
    with pytest.raises(OutpostError, match=words):
        told(tmp_path, content)


def test_an_image_that_is_cut_short_is_one_sentence(tmp_path):
    with pytest.raises(OutpostError, match="exactly 4, 8 or 16 MiB"):
        told(tmp_path, image()[:-4096])


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(OutpostError, match="There is no"):
        explain(tmp_path / "none.bin")


WHOLE = image()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.integers(0x8000, 0x8140),
                st.integers(0x9000, 0x9400),
                st.integers(0x240000, 0x248000),
                st.integers(0, (4 << 20) - 64),
            ),
            st.binary(min_size=1, max_size=64),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_damaged_image_is_told_or_refused_with_a_sentence(tmp_path_factory, damage):
    content = bytearray(WHOLE)
    for at, data in damage:
        content[at : at + len(data)] = data
    folder = tmp_path_factory.mktemp("damaged")
    try:
        lines = told(folder, bytes(content)).lines()
    except OutpostError as why:
        lines = [str(why)]
    for line in lines:
        assert line.isprintable()
        assert not any(secret in line for secret in SECRETS)
    (folder / "flash.bin").unlink()
