"""The fleet's CA with its key in a PKCS #11 token: the key is made there and stays there."""

import pytest
from cryptography.hazmat.primitives import serialization
from outpost_tools import proof, vault
from outpost_tools.ca import FleetCA, create
from outpost_tools.errors import OutpostError
from outpost_tools.vault import TokenPlace, token_key
from softtoken import PIN, make_token
from test_tools_ca import csr


@pytest.fixture(scope="module")
def place() -> TokenPlace:
    return make_token()


@pytest.fixture(scope="module")
def made(place, tmp_path_factory) -> FleetCA:
    folder = tmp_path_factory.mktemp("ca") / "fleet-ca"
    return create(folder, "Pumps", lambda: PIN, intermediate=True, token=place)


def test_it_signs_a_chain_that_holds(made):
    with made.unlocked(lambda: PIN) as signer:
        chain = signer.request(csr("pump-1"), "pump-1")
    proof.check_chain([*chain, made.root], "pump-1", None)


def test_there_is_no_key_in_its_folder(made):
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "ca.json",
        "issuer.pem",
        "root.pem",
    ]


def test_the_key_does_not_come_out_of_the_token(place, made):
    from pkcs11 import Attribute

    with token_key(place, PIN) as key:
        with pytest.raises(OutpostError, match="cannot be taken out"):
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        assert key._private[Attribute.SENSITIVE] and not key._private[Attribute.EXTRACTABLE]


def test_a_wrong_pin_is_refused_and_not_repeated(made):
    with pytest.raises(OutpostError, match="does not take that PIN") as why:
        with made.unlocked(lambda: "000000"):
            pass
    assert "000000" not in str(why.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"module": "/nonexistent.so"}, "no PKCS #11 library"),
        ({"token": "other"}, "no token 'other'"),
        ({"key": "other"}, "no key 'other'"),
    ],
    ids=["library", "token", "key"],
)
def test_what_is_missing_is_named(place, made, changed, words):
    wrong = TokenPlace(**{**vars(place), **changed})
    with pytest.raises(OutpostError, match=words), token_key(wrong, PIN):
        pass


def test_a_label_that_is_taken_is_not_used_twice(place, made, tmp_path):
    with pytest.raises(OutpostError, match="already"):
        create(tmp_path / "ca", "Other", lambda: PIN, token=place)
    assert not (tmp_path / "ca").exists()


def test_the_token_and_the_file_sign_alike(made, tmp_path):
    other = create(tmp_path / "ca", "Pumps", lambda: "correct horse battery")
    key = vault.new_key()
    with made.unlocked(lambda: PIN) as one, other.unlocked(lambda: "correct horse battery") as two:
        in_token = one.request(csr("pump-1", key), "pump-1")[0]
        in_file = two.request(csr("pump-1", key), "pump-1")[0]
    assert [e.oid for e in in_token.extensions] == [e.oid for e in in_file.extensions]
    assert in_token.public_key() == in_file.public_key()
