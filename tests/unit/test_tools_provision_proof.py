"""Chains and images from elsewhere: what is not right is refused before it is used."""

import base64
import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from nvs_reader import read as read_nvs
from outpost_tools import nvsimage, proof, vault
from outpost_tools.cli import app
from outpost_tools.errors import OutpostError
from outpost_tools.nvsimage import Identity
from typer.testing import CliRunner

from certs import DAY, Holder, holder

ROOT = holder("Root", authority=True)
ISSUER = holder("Issuer", ROOT, authority=True)
LEAF = holder("pump-1", ISSUER)


def der(*holders: Holder) -> bytes:
    return b"".join(one.der for one in holders)


def point(one: Holder) -> bytes:
    return proof.point(one.key.public_key(), "its")


def check(chain: bytes, key: Holder = LEAF) -> None:
    proof.check_chain(proof.read_chain(chain), "pump-1", point(key))


def p384() -> bytes:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pump-1")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(key.public_key()).serial_number(7)
    builder = builder.not_valid_before(now - DAY).not_valid_after(now + DAY)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("form", ["pem", "der"])
def test_a_good_chain_passes_in_both_forms_with_and_without_its_root(form):
    for holders in ((LEAF, ISSUER), (LEAF, ISSUER, ROOT)):
        text = der(*holders) if form == "der" else "".join(h.pem for h in holders).encode()
        check(text)
        packed = proof.pack_chain(proof.read_chain(text))
        assert packed == der(LEAF, ISSUER), "the root stays at home"


BAD = {
    "another device": (lambda: der(holder("pump-2", ISSUER), ISSUER), "for 'pump-2'"),
    "another key": (lambda: der(holder("pump-1", ISSUER), ISSUER), "for another key"),
    "expired": (
        lambda: der(Holder(*past(LEAF)), ISSUER),
        "ended on",
    ),
    "not yet valid": (lambda: der(Holder(*future(LEAF)), ISSUER), "not valid before"),
    "wrong order": (lambda: der(ISSUER, LEAF), "wrong order"),
    "wrong order above": (lambda: der(LEAF, ROOT, ISSUER), "wrong order"),
    "another curve": (p384, "not of the curve P-256"),
    "cut off": (lambda: der(LEAF, ISSUER)[:-30], "cut off"),
    "nothing": (lambda: b"", "cut off"),
    "rubbish behind": (lambda: der(LEAF, ISSUER) + b"\x30", "cut off|no certificate"),
    "no CA above": (lambda: der(signed_by_leaf(), holder("x")), "wrong order"),
}


def again(like: Holder, starts: dt.timedelta, ends: dt.timedelta) -> tuple:
    """A certificate for the same key with other dates."""
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(like.certificate.subject)
        .issuer_name(ISSUER.certificate.subject)
        .public_key(like.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts)
        .not_valid_after(now + ends)
    )
    return builder.sign(ISSUER.key, hashes.SHA256()), like.key


def past(like: Holder) -> tuple:
    return again(like, -2 * DAY, -DAY)


def future(like: Holder) -> tuple:
    return again(like, DAY, 2 * DAY)


def signed_by_leaf() -> Holder:
    """The right key, under an issuer that is not the next in the chain."""
    return Holder(*again(LEAF, -DAY, DAY))


@pytest.mark.parametrize("case", BAD, ids=str)
def test_a_bad_chain_is_refused_in_a_sentence(case):
    make, words = BAD[case]
    with pytest.raises(OutpostError, match=words) as why:
        check(make())
    assert "\n" not in str(why.value)


@pytest.mark.parametrize("cut", range(1, 400, 13))
def test_a_chain_cut_off_anywhere_is_refused(cut):
    issuer = len(der(ISSUER))
    if cut >= issuer:  # a signature's length varies; without the whole issuer it is a chain
        cut += 1
    with pytest.raises(OutpostError):
        check(der(LEAF, ISSUER)[:-cut])


def test_a_chain_that_no_device_holds_is_refused():
    big = [LEAF.certificate] * 16
    with pytest.raises(OutpostError, match="a device takes"):
        proof.pack_chain(big)


# Into an image


def files(folder: Path, one: Holder) -> tuple[Path, Path]:
    chain, key = one.write(folder, "device")
    return Path(chain), Path(key)


def test_a_certificate_and_its_key_go_into_the_nvs_as_a_record(tmp_path):
    made = Identity.with_certificate("pump-1", *files(tmp_path, LEAF))
    held = read_nvs(nvsimage.nvs_partition(made, 1_800_000_000, 0x6000))
    record = held["outpost", "ida"]
    assert record[:4] == b"OPK1" and made.chain in record and made.private in record
    key = serialization.load_der_private_key(made.private, None)
    assert key.private_numbers() == LEAF.key.private_numbers()
    assert held["outpost", "idcur"] == 0 and held["outpost", "id"] == b"pump-1"


def test_the_certificate_of_another_key_makes_no_image(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPOST_DATA", str(tmp_path / "data"))
    chain, _ = files(tmp_path, LEAF)
    other = tmp_path / "other.key"
    other.write_bytes(vault.plain_pem(vault.new_key()))
    command = ["image", "pump-1", "--certificate", chain, "--key", other]
    done = CliRunner().invoke(app, list(map(str, [*command, "-o", tmp_path / "x.bin"])))
    assert done.exit_code == 1 and "another key" in done.output
    assert not (tmp_path / "x.bin").exists()


def test_a_key_does_not_show_in_a_repr():
    made = Identity("pump-1", "a2V5a2V5a2V5a2V5", "c2Vjb25k", b"chain", b"private")
    assert "a2V5" not in repr(made) and "private=" not in repr(made)


def test_an_nvs_that_is_too_small_is_said_in_a_sentence(monkeypatch):
    monkeypatch.setattr(nvsimage.agreed, "CHAIN_MAX_BYTES", 20000)
    made = Identity("pump-1", chain=bytes(9000), private=bytes(121))
    with pytest.raises(OutpostError, match="do not fit into an NVS of 12 KiB"):
        nvsimage.nvs_partition(made, 1_800_000_000, 0x3000)


# Encrypted


def decrypted(partition: bytes, keys: bytes) -> bytes:
    """By Espressif's own tool, from its file form and back."""
    import subprocess
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder)
        (into / "nvs.bin").write_bytes(partition)
        (into / "keys.bin").write_bytes(nvsimage.keys_partition(keys))
        command = [sys.executable, "-m", "esp_idf_nvs_partition_gen", "decrypt"]
        subprocess.run([*command, "nvs.bin", "keys.bin", "plain.bin"], cwd=folder, check=True)
        return (into / "plain.bin").read_bytes()


def test_an_encrypted_nvs_is_read_back_by_espressifs_tool_and_shows_nothing_before():
    made = Identity(
        "pump-1", base64.b64encode(b"k" * 32).decode(), base64.b64encode(b"s" * 32).decode()
    )
    keys = nvsimage.new_keys()
    partition = nvsimage.nvs_partition(made, 1_800_000_000, 0x6000, keys)
    for word in (b"pump-1", b"outpost", b"sas1", made.primary_key.encode()):
        assert word not in partition
    assert read_nvs(decrypted(partition, keys)) == read_nvs(
        nvsimage.nvs_partition(made, 1_800_000_000, 0x6000)
    )


def test_two_images_are_encrypted_with_two_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPOST_DATA", str(tmp_path / "data"))
    seen = []
    for name in ("a.bin", "b.bin"):
        command = ["image", "pump-1", "--born", "--encrypt-nvs", "-o", str(tmp_path / name)]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        flash = (tmp_path / name).read_bytes()
        at = flash.rindex(b"\xff" * 4028)  # the keys' sector is the last one
        assert at > (4 << 20) - 8192
        seen.append(flash[-4096:][:64])
    assert seen[0] != seen[1] and len(set(seen[0])) > 20
