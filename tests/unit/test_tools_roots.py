"""The trust roots: the four that are pinned, and no other however it comes."""

import datetime as dt
import hashlib
import ssl
from pathlib import Path

import certifi
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from outpost_tools import roots
from outpost_tools.errors import OutpostError
from outpost_tools.paths import tree

# As in the project's facts, written a second time on purpose.
FINGERPRINTS = {
    "cb3ccbb76031e5e0138f8dd39a23f9de47ffc35e43c1144cea27d46a5ab1cb5f": 914,
    "c741f70f4b2a8d88bf2e71c14122ef53ef10eba0cfa5e64cfa20f418853073e0": 1452,
    "31ad6648f8104138c738f39ea4320133393e3a18cc02296ef97c2ac9ef6731d0": 579,
    "358df39d764af9e1b766e9c972df352ee15cfac227af6ad1d70e8e4a6edcba02": 605,
}


def forged(name: str, ends: dt.timedelta = dt.timedelta(days=365), authority: bool = True) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=3650))
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def certifi_without(name: str) -> bytes:
    with open(certifi.where()) as file:
        blocks = roots.PEM_BLOCK.findall(file.read().encode())
    wanted = {pin.sha256 for pin in roots.PINS if pin.name != name}
    kept = [
        block
        for block in blocks
        if hashlib.sha256(ssl.PEM_cert_to_DER_cert(block.decode())).hexdigest() in wanted
    ]
    assert len(kept) == 3
    return b"\n".join(kept) + b"\n"


def test_the_tree_holds_exactly_the_four_live_roots():
    held = roots.read()
    assert {hashlib.sha256(der).hexdigest(): len(der) for der in held.values()} == FINGERPRINTS


def test_they_are_certifis_and_taking_them_again_changes_nothing(tmp_path):
    roots.take(folder=tmp_path)
    for path in (tree() / "certs").iterdir():
        if path.suffix in (".pem", ".toml"):
            assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_every_root_is_live_and_baltimore_is_in_no_bundle():
    for name in roots.BUNDLES:
        for der in roots.bundle(name):
            certificate = x509.load_der_x509_certificate(der)
            assert certificate.not_valid_after_utc > dt.datetime.now(dt.UTC)
            assert "Baltimore" not in certificate.subject.rfc4514_string()


def test_bundles_are_those_of_the_recommendation():
    def names(bundle):
        ders = roots.bundle(bundle)
        return [n for der in ders for n, d in roots.read().items() if d == der]

    assert names("azure-rsa") == [
        "DigiCert Global Root G2",
        "Microsoft RSA Root Certificate Authority 2017",
    ]
    assert names("azure-ecc") == [
        "DigiCert Global Root G3",
        "Microsoft ECC Root Certificate Authority 2017",
        "Microsoft RSA Root Certificate Authority 2017",
    ]


def test_a_root_of_the_same_name_with_another_fingerprint_is_refused(tmp_path):
    source = tmp_path / "store.pem"
    source.write_bytes(
        certifi_without("DigiCert Global Root G2") + forged("DigiCert Global Root G2")
    )
    with pytest.raises(OutpostError, match="not the pinned") as caught:
        roots.take(source, tmp_path / "certs")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "certs").exists(), "nothing was written"


def test_a_store_that_lacks_a_root_is_refused(tmp_path):
    source = tmp_path / "store.pem"
    source.write_bytes(certifi_without("DigiCert Global Root G3"))
    with pytest.raises(OutpostError, match="has no 'DigiCert Global Root G3'"):
        roots.take(source, tmp_path / "certs")


def test_further_certificates_of_a_store_are_not_taken(tmp_path):
    roots.take(folder=tmp_path)
    assert len(list(tmp_path.glob("*.pem"))) == 4


def test_a_swapped_file_is_refused(tmp_path):
    roots.take(folder=tmp_path)
    (tmp_path / roots.PINS[0].file).write_bytes(forged("DigiCert Global Root G2"))
    with pytest.raises(OutpostError, match="make roots"):
        roots.read(tmp_path)


def test_a_file_swapped_together_with_its_listing_is_refused(tmp_path):
    roots.take(folder=tmp_path)
    fake = forged("DigiCert Global Root G2")
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(fake.decode())).hexdigest()
    (tmp_path / roots.PINS[0].file).write_bytes(fake)
    listing = tmp_path / "roots.toml"
    listing.write_text(listing.read_text().replace(roots.PINS[0].sha256, digest))
    with pytest.raises(OutpostError, match="otherwise than pinned"):
        roots.read(tmp_path)


@pytest.mark.parametrize("content", [None, "", "root = 5", "[[root]]", "not toml ["])
def test_a_damaged_listing_is_one_sentence(tmp_path, content):
    roots.take(folder=tmp_path)
    if content is None:
        (tmp_path / "roots.toml").unlink()
    else:
        (tmp_path / "roots.toml").write_text(content)
    with pytest.raises(OutpostError, match="make roots"):
        roots.read(tmp_path)


def test_an_own_root_can_be_chosen_beside_a_bundle_and_each_is_there_once(tmp_path):
    own = tmp_path / "own.pem"
    own.write_bytes(forged("My broker"))
    chosen = roots.choose(["azure-rsa", str(own), "azure-ecc"])
    assert len(chosen) == len(set(chosen)) == 5


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (forged("Old", ends=-dt.timedelta(days=1)), "expired on"),
        (forged("Server", authority=False), "is not a root"),
        (b"hello", "no certificate"),
        (b"", "no certificate"),
    ],
)
def test_what_can_never_anchor_a_connection_is_refused(tmp_path, content, sentence):
    path = tmp_path / "root.pem"
    path.write_bytes(content)
    with pytest.raises(OutpostError, match=sentence):
        roots.choose([str(path)])


def test_baltimore_is_refused_by_its_fingerprint():
    debian = Path("/usr/share/ca-certificates/mozilla/Baltimore_CyberTrust_Root.crt")
    if not debian.is_file():
        pytest.skip(f"{debian} is missing: install Debian 12's ca-certificates")
    with pytest.raises(OutpostError, match="kept out: it expired on 2025-05-12"):
        roots.choose([str(debian)])


def test_an_unknown_name_lists_the_bundles():
    with pytest.raises(OutpostError, match="azure-rsa, azure-ecc, azure"):
        roots.choose(["google"])


def test_packed_roots_come_apart_again():
    trust = roots.choose(["azure"])
    packed = roots.pack(trust)
    apart = []
    while packed:
        size = int.from_bytes(packed[:2], "big")
        apart.append(packed[2 : 2 + size])
        packed = packed[2 + size :]
    assert apart == trust


@pytest.mark.parametrize("trust", [[], [b"x"] * 7, [b"x" * 8191]])
def test_more_than_a_device_holds_is_refused(trust):
    with pytest.raises(OutpostError):
        roots.pack(trust)
