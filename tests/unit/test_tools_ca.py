"""The fleet's CA: its key is never in the clear, and it signs nothing that it has not judged."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from outpost_tools import ca as authority
from outpost_tools import proof, vault
from outpost_tools.ca import FleetCA, create
from outpost_tools.cli import app
from outpost_tools.errors import OutpostError
from outpost_tools.fleet import Fleet
from typer.testing import CliRunner

PASSPHRASE = "correct horse battery"


def secret() -> str:
    return PASSPHRASE


@pytest.fixture(scope="module", params=[False, True], ids=["root alone", "intermediate"])
def made(request, tmp_path_factory) -> FleetCA:
    folder = tmp_path_factory.mktemp("ca") / "fleet-ca"
    return create(folder, "Pumps", secret, intermediate=request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> FleetCA:
    return create(tmp_path_factory.mktemp("ca") / "fleet-ca", "Pumps", secret)


def csr(name: str, key=None, kind=None, names: int = 1) -> bytes:
    key = key or vault.new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] * names)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, kind or hashes.SHA256()).public_bytes(serialization.Encoding.DER)


# The key


def test_the_key_is_in_no_file_in_the_clear_and_every_key_file_is_its_owners_alone(made):
    keys = list(made.folder.glob("*.key"))
    assert keys and made.folder.stat().st_mode & 0o777 == 0o700
    for path in keys:
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"ENCRYPTED PRIVATE KEY" in path.read_bytes()
        key = vault.read_key(path, PASSPHRASE)
        number = key.private_numbers().private_value.to_bytes(32, "big")
        for file in made.folder.iterdir():
            assert number not in file.read_bytes()


def test_openssl_opens_the_key_with_the_passphrase_and_only_with_it(plain):
    command = ["openssl", "pkey", "-in", plain.folder / "root.key", "-noout", "-passin"]
    right = {**os.environ, "P": PASSPHRASE}
    assert subprocess.run([*command, "env:P"], env=right, capture_output=True).returncode == 0
    wrong = {**os.environ, "P": PASSPHRASE + "x"}
    assert subprocess.run([*command, "env:P"], env=wrong, capture_output=True).returncode


def test_guessing_the_passphrase_of_a_stolen_file_is_slow(plain):
    command = ["openssl", "asn1parse", "-in", plain.folder / "root.key"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rounds = re.search(r"PBKDF2.*?INTEGER +:([0-9A-F]+)", shown, re.DOTALL)
    assert int(rounds[1], 16) >= 600_000 and "hmacWithSHA256" in shown and "aes-256-cbc" in shown


def test_a_wrong_passphrase_is_said_in_a_sentence_that_does_not_repeat_it(plain):
    with pytest.raises(OutpostError, match="passphrase is another") as why:
        with plain.unlocked(lambda: "another passphrase"):
            pass
    assert "another passphrase" not in str(why.value)


def test_a_short_passphrase_makes_no_ca(tmp_path):
    with pytest.raises(OutpostError, match="12 characters"):
        create(tmp_path / "ca", "Pumps", lambda: "short")
    assert list(tmp_path.iterdir()) == []


def test_a_second_ca_does_not_overwrite_the_first(plain):
    before = {path.name: path.read_bytes() for path in plain.folder.iterdir()}
    with pytest.raises(OutpostError, match="already"):
        create(plain.folder, "Other", secret)
    assert {path.name: path.read_bytes() for path in plain.folder.iterdir()} == before


def test_a_key_that_belongs_to_another_certificate_does_not_sign(plain, tmp_path):
    other = create(tmp_path / "other", "Other", secret)
    (other.folder / "root.key").write_bytes((plain.folder / "root.key").read_bytes())
    with pytest.raises(OutpostError, match="does not belong"), other.unlocked(secret):
        pass


def test_with_an_intermediate_the_root_key_may_be_away(tmp_path):
    made = create(tmp_path / "ca", "Pumps", secret, intermediate=True)
    (made.folder / "root.key").unlink()
    with made.unlocked(secret) as signer:
        assert len(signer.request(csr("pump-1"), "pump-1")) == 2


# What it signs


def test_openssl_verifies_the_chain_for_a_client(made, tmp_path):
    with made.unlocked(secret) as signer:
        chain = signer.request(csr("pump-1"), "pump-1")
    leaf, above = tmp_path / "leaf.pem", tmp_path / "above.pem"
    leaf.write_bytes(authority.pem(chain[0]))
    above.write_bytes(b"".join(map(authority.pem, chain[1:])) or authority.pem(made.root))
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-purpose", "sslclient"]
        + ["-CAfile", made.folder / "root.pem", "-untrusted", above, leaf],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_device_certificate_has_the_profile_that_iot_hub_wants(made):
    key = vault.new_key()
    with made.unlocked(secret) as signer:
        leaf = signer.request(csr("pump-1", key), "pump-1", 90)[0]
    extensions = leaf.extensions
    assert proof.common_name(leaf.subject) == "pump-1" and len(leaf.subject.rdns) == 1
    assert leaf.public_key() == key.public_key()
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical and not basic.value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature and not usage.value.key_cert_sign
    extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(extended) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert 90 <= life.total_seconds() / 86400 < 90.1
    assert leaf.not_valid_after_utc <= made.issuer.not_valid_after_utc


def test_serial_numbers_are_random_and_never_the_same(plain):
    with plain.unlocked(secret) as signer:
        made = [signer.request(csr("pump-1"), "pump-1")[0].serial_number for _ in range(20)]
    assert len(set(made)) == 20 and min(n.bit_length() for n in made) > 100


def test_what_else_a_request_asks_for_is_not_granted(plain):
    key = vault.new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pump-1")])
    asked = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
        .sign(key, hashes.SHA256())
    )
    with plain.unlocked(secret) as signer:
        leaf = signer.request(asked.public_bytes(serialization.Encoding.PEM), "pump-1")[0]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_certificate_never_outlives_the_ca(tmp_path):
    made = create(tmp_path / "ca", "Pumps", secret, days=10)
    with made.unlocked(secret) as signer:
        leaf = signer.request(csr("pump-1"), "pump-1", 365)[0]
    assert leaf.not_valid_after_utc == made.root.not_valid_after_utc


# What it does not sign


def tampered() -> bytes:
    der = bytearray(csr("pump-1"))
    der[-1] ^= 1
    return bytes(der)


BAD = {
    "for another device": (lambda: csr("pump-2"), "for 'pump-2', not for 'pump-1'"),
    "two names": (lambda: csr("pump-1", names=2), "not for 'pump-1'"),
    "P-384": (lambda: csr("pump-1", ec.generate_private_key(ec.SECP384R1())), "curve P-256"),
    "RSA": (lambda: csr("pump-1", rsa.generate_private_key(65537, 2048)), "curve P-256"),
    "another signature": (tampered, "not signed with its own key"),
    "cut off": (lambda: csr("pump-1")[:-20], "cut off"),
    "with more behind it": (lambda: csr("pump-1") + b"\0", "cut off, or no PKCS #10"),
    "empty": (lambda: b"", "cut off"),
    "huge": (lambda: csr("pump-1") + bytes(5000), "too long"),
    "SHA-1 or other rubbish": (lambda: b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", "cut off"),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_a_bad_request_is_refused_in_a_sentence(plain, case):
    make, words = BAD[case]
    with plain.unlocked(secret) as signer, pytest.raises(OutpostError, match=words) as why:
        signer.request(make(), "pump-1")
    assert str(why.value).count("\n") == 0


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_a_request_cut_off_anywhere_is_refused(cut):
    whole = csr("pump-1")
    with pytest.raises(OutpostError):
        proof.read_request(whole[:cut], "pump-1")


def test_the_cas_own_key_in_a_request_is_refused(plain):
    key = vault.read_key(plain.folder / "root.key", PASSPHRASE)
    with plain.unlocked(secret) as signer, pytest.raises(OutpostError, match="CA's own key"):
        signer.request(csr("pump-1", key), "pump-1")


def test_a_name_that_no_certificate_holds_is_refused():
    with pytest.raises(OutpostError, match="64 at most"):
        proof.read_request(b"", "d" * 65)


# On the command line


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPOST_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OUTPOST_CA_PASSPHRASE", PASSPHRASE)

    def run(*words, code=0):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == code, result.output
        assert PASSPHRASE not in result.output and "PRIVATE" not in result.output
        return result.output

    return run


def test_from_a_new_ca_to_a_listed_certificate(run, tmp_path):
    run("ca", "new", "Pumps", "--intermediate")
    (tmp_path / "p.csr").write_bytes(csr("pump-1"))
    run("ca", "sign", "pump-1", tmp_path / "p.csr", "-o", tmp_path / "p.pem")
    chain = proof.read_chain((tmp_path / "p.pem").read_bytes())
    proof.check_chain(chain, "pump-1", None)
    assert "pump-1  issued" in run("ca", "list")
    assert f"{chain[0].serial_number:x}" in run("ca", "list", "--device", "pump-1", "--json")
    assert "Pumps issuer" in run("ca", "show")


def test_the_same_key_under_another_name_is_refused_and_nothing_is_kept(run, tmp_path):
    key = vault.new_key()
    run("ca", "new", "Pumps")
    for name in ("pump-1", "pump-2"):
        (tmp_path / f"{name}.csr").write_bytes(csr(name, key))
    run("ca", "sign", "pump-1", tmp_path / "pump-1.csr", "-o", tmp_path / "1.pem")
    said = run("ca", "sign", "pump-2", tmp_path / "pump-2.csr", "-o", tmp_path / "2.pem", code=1)
    assert "that of 'pump-1'" in said and not (tmp_path / "2.pem").exists()
    with Fleet(tmp_path / "data") as fleet:
        assert fleet.certificates("pump-2") == []


def test_an_issued_key_is_its_owners_alone_from_its_first_byte(run, tmp_path):
    run("ca", "new", "Pumps")
    watched = tmp_path / "keys"
    watched.mkdir()
    program = "import os, sys; os.umask(0); from outpost_tools.cli import main; main()"
    trace = tmp_path / "trace"
    subprocess.run(
        ["strace", "-f", "-e", "trace=openat,chmod,fchmod,rename", "-o", trace]
        + [sys.executable, "-c", program, "ca", "issue", "gw-1"]
        + ["--key-to", watched / "gw.key", "-o", watched / "gw.pem"],
        check=True,
        capture_output=True,
    )
    assert (watched / "gw.key").stat().st_mode & 0o777 == 0o600
    opened = [line for line in trace.read_text().splitlines() if ".gw.key." in line]
    assert "O_EXCL" in opened[0] and "0600" in opened[0], opened
    assert all(", 0600)" in line for line in opened if "chmod" in line), opened


def test_nobody_to_ask_for_the_passphrase_is_said(run, monkeypatch):
    monkeypatch.delenv("OUTPOST_CA_PASSPHRASE")
    assert "nobody to ask" in run("ca", "new", "Pumps", code=1)


def test_the_passphrase_may_come_from_a_file(run, monkeypatch, tmp_path):
    monkeypatch.delenv("OUTPOST_CA_PASSPHRASE")
    file = tmp_path / "word"
    file.write_text(PASSPHRASE + "\n")
    run("ca", "new", "Pumps", "--passphrase-file", file)
    with FleetCA(Path(tmp_path / "data" / "fleet-ca")).unlocked(secret):
        pass


def test_a_damaged_ca_is_said_in_a_sentence(run, tmp_path):
    assert "There is no CA" in run("ca", "show", code=1)
    run("ca", "new", "Pumps")
    (tmp_path / "data" / "fleet-ca" / "root.pem").write_text("rubbish")
    assert "is damaged" in run("ca", "show", code=1)


def test_the_proof_of_possession_carries_the_code(run, tmp_path):
    run("ca", "new", "Pumps")
    run("ca", "prove", "4F1C22", "-o", tmp_path / "v.pem")
    shown = x509.load_pem_x509_certificate((tmp_path / "v.pem").read_bytes())
    root = FleetCA(tmp_path / "data" / "fleet-ca").root
    shown.verify_directly_issued_by(root)
    assert proof.common_name(shown.subject) == "4F1C22"
