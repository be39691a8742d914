"""The development CA: what it makes, keeps, renews, and who can read it."""

import datetime as dt
import ipaddress
import stat
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from devca import put_ca
from outpost_tools.errors import OutpostError
from outpost_tools.pki import DevCA

KINDS = ["rsa", "ecdsa"]


def chain_of(leaf):
    return x509.load_pem_x509_certificates(leaf.chain.read_bytes())


def verify(root, chain, host, at=None):
    builder = PolicyBuilder().store(Store([root]))
    if at is not None:
        builder = builder.time(at)
    return builder.build_server_verifier(x509.DNSName(host)).verify(chain[0], chain[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_strict_verifier_accepts_the_chain_for_its_hosts_and_no_other(tmp_path, kind):
    ca = put_ca(tmp_path)
    chain = chain_of(ca.server(kind, ["127.0.0.1", "localhost"]))
    assert len(chain) == 2, "the root is not sent"
    verify(ca.root(kind), chain, "localhost")
    with pytest.raises(VerificationError):
        verify(ca.root(kind), chain, "example.com")
    names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]


def test_keys_have_the_sizes_of_a_public_chain(tmp_path):
    ca = put_ca(tmp_path)
    leaf, intermediate = chain_of(ca.server("rsa", ["localhost"]))
    sizes = []
    for certificate in (ca.root("rsa"), intermediate, leaf):
        key = certificate.public_key()
        assert isinstance(key, rsa.RSAPublicKey)
        sizes.append(key.key_size)
    assert sizes == [4096, 2048, 2048]
    for certificate in (ca.root("ecdsa"), *chain_of(ca.server("ecdsa", ["localhost"]))):
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1"


def test_the_same_ca_is_there_the_next_time(tmp_path):
    first = put_ca(tmp_path)
    leaf = chain_of(first.server("ecdsa", ["localhost"]))
    second = DevCA(tmp_path)
    assert second.roots_der() == first.roots_der()
    assert chain_of(second.server("ecdsa", ["localhost"])) == leaf


def test_other_hosts_get_a_new_certificate(tmp_path):
    ca = put_ca(tmp_path)
    first = chain_of(ca.server("ecdsa", ["localhost"]))
    second = chain_of(ca.server("ecdsa", ["localhost", "hub.test"]))
    assert first[0] != second[0] and first[1] == second[1]
    verify(ca.root("ecdsa"), second, "hub.test")


def test_only_the_owner_can_read_the_keys(tmp_path):
    ca = put_ca(tmp_path)
    ca.server("ecdsa", ["localhost"])
    keys = list((tmp_path / "ca").glob("*.key"))
    assert len(keys) == 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_ca_is_one_sentence_and_is_not_replaced(tmp_path, damage):
    put_ca(tmp_path)
    key = tmp_path / "ca" / "root-ecdsa.key"
    if damage == "cut":
        key.write_bytes(key.read_bytes()[:50])
    else:
        key.unlink()
    before = (tmp_path / "ca" / "root-ecdsa.pem").read_bytes()
    with pytest.raises(OutpostError, match="damaged"):
        DevCA(tmp_path)
    assert (tmp_path / "ca" / "root-ecdsa.pem").read_bytes() == before


def test_a_damaged_server_certificate_is_made_anew(tmp_path):
    ca = put_ca(tmp_path)
    leaf = ca.server("ecdsa", ["localhost"])
    leaf.chain.write_bytes(b"junk")
    verify(ca.root("ecdsa"), chain_of(ca.server("ecdsa", ["localhost"])), "localhost")


def test_an_expired_certificate_can_be_asked_for(tmp_path):
    ca = put_ca(tmp_path)
    now = dt.datetime.now(dt.UTC)
    minute = dt.timedelta(minutes=1)
    leaf = ca.leaf("ecdsa", ["localhost"], now - 50 * minute, now - 10 * minute)
    with pytest.raises(VerificationError):
        verify(ca.root("ecdsa"), chain_of(leaf), "localhost")
    verify(ca.root("ecdsa"), chain_of(leaf), "localhost", at=now - 30 * minute)


def test_two_processes_that_start_at_once_make_one_ca(tmp_path):
    script = (
        "import sys, hashlib; from pathlib import Path; from outpost_tools.pki import DevCA\n"
        "ca = DevCA(Path(sys.argv[1]), ['ecdsa'])\n"
        "print(hashlib.sha256(ca.roots_der()[0]).hexdigest())"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    assert len({run.communicate()[0] for run in runs}) == 1
    assert [run.returncode for run in runs] == [0] * 4
