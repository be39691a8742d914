"""Signers in files and in a real PKCS #11 token, the command line for them, and what images get."""

from __future__ import annotations

import base64
import json
import os
import time

import pytest
from commands import b64
from jwcrypto import jwk, jws
from outpost_tools import agreed
from outpost_tools.cli import app
from outpost_tools.errors import OutpostError
from outpost_tools.fleet import Fleet
from outpost_tools.signing import Signers, thumbprint
from softtoken import PIN, make_token
from typer.testing import CliRunner

WORDS = "a passphrase for tests"
LONG = "x" * 4096


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPOST_SIGNER_PASSPHRASE", WORDS)
    return tmp_path / "data"


def outpost(data, *words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--data", str(data)])
    assert done.exit_code == 0, done.output
    return done.output


def refused(data, *words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--data", str(data)])
    assert done.exit_code == 1, done.output
    return done.output


def public(signer) -> jwk.JWK:
    x, y = b64(signer.point[1:33]), b64(signer.point[33:])
    return jwk.JWK(kty="EC", crv="P-256", x=x, y=y)


def content_of(token: str, key: jwk.JWK) -> dict:
    """The payload, once a public JOSE library has found the signature right."""
    opened = jws.JWS()
    opened.deserialize(token, key, "ES256")
    return json.loads(opened.payload)


def test_a_command_made_here_is_right_for_a_public_jose_library(data):
    made = json.loads(outpost(data, "sign", "new", "rotation", "--role", "keys", "--json"))
    token = outpost(data, "sign", "command", "pump-7", "keys", "drop", "--life", "10m").strip()
    signer = Signers(data).find("rotation")
    key = public(signer)
    assert made["kid"] == signer.kid == key.thumbprint() == thumbprint(signer.point)
    payload = content_of(token, key)
    with Fleet(data) as fleet:
        assert payload["fleet"] == fleet.name
    assert abs(payload["exp"] - time.time() - 600) < 30
    assert (payload["device"], payload["role"], payload["op"]) == ("pump-7", "keys", "drop")
    again = outpost(data, "sign", "command", "*", "keys", "drop").strip()
    assert content_of(again, key)["ctr"] > payload["ctr"]


def test_a_signer_in_a_token_signs_there(data):
    place = make_token()
    signer = Signers(data).add("releases", ["software"], lambda: PIN, place)
    with Fleet(data) as fleet, Signers(data).unlocked(signer, lambda: PIN) as pen:
        made = pen.command(fleet, "*", "software", "install", {"n": 1})
        with pytest.raises(OutpostError, match="may not sign for 'keys'"):
            pen.command(fleet, "*", "keys", "drop", {})
    assert content_of(made, public(signer))["args"] == {"n": 1}
    assert not list((data / "signers").glob("*.key"))
    with pytest.raises(OutpostError, match="does not take that PIN"):
        with Signers(data).unlocked(signer, lambda: "999999"):
            pass


def test_key_files_are_encrypted_and_of_their_owner_alone(data):
    outpost(data, "sign", "new", "one", "--role", "keys", "--role", "trust")
    path = data / "signers" / "one.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in path.read_bytes()
    assert "one  keys,trust  a file under a passphrase" in outpost(data, "sign", "list")


def test_an_image_names_the_signers_and_nothing_of_their_keys(data):
    outpost(data, "device", "new", "pump-7")
    image = data / "pump-7.bin"
    outpost(data, "image", "pump-7", "-o", str(image))
    assert b"signers.json" not in image.read_bytes()
    outpost(data, "sign", "new", "rotation", "--role", "keys")
    outpost(data, "image", "pump-7", "-o", str(image), "--root", "azure")
    signer = Signers(data).find("rotation")
    with Fleet(data) as fleet:
        wanted = {"fleet": fleet.name, "signers": [{"point": b64(signer.point), "roles": ["keys"]}]}
    assert json.loads(Signers(data).for_devices(wanted["fleet"])) == wanted
    assert b64(signer.point).encode() in image.read_bytes()


def test_a_sealing_key_is_in_the_image_alone(data):
    outpost(data, "device", "new", "pump-7")
    image = data / "pump-7.bin"
    outpost(data, "image", "pump-7", "-o", str(image), "--seal-key", "--root", "azure")
    with Fleet(data) as fleet:
        first = fleet.born("pump-7")
        assert fleet.find("pump-7").made_on == "host"
    assert first not in image.read_bytes()  # the private half is what is in there
    outpost(data, "image", "pump-7", "-o", str(image), "--seal-key", "--root", "azure")
    with Fleet(data) as fleet:
        assert fleet.born("pump-7") not in (None, first)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sign", "new", "no/name", "--role", "keys"), "cannot name a signer"),
        (("sign", "new", "one", "--role", "keys"), "already"),
        (("sign", "new", "two", "--role", "keys", "--token", "x"), "takes both"),
        (("sign", "command", "pump-7", "trust", "x"), "No signer has the role 'trust'"),
        (("sign", "command", "pump-7", "keys", "x", "--signer", "who"), "no signer 'who'"),
        (("sign", "command", "pump-7", "keys", "x", "--args", "[]"), "are a JSON object"),
        (("sign", "command", "pump-7", "keys", "x", "--life", "90d"), "30 days"),
        (("sign", "command", "pump 7", "keys", "x"), "has ' ' in it"),
        (
            ("sign", "command", "pump-7", "keys", "x", "--args", '{"a":"' + "x" * 4096 + '"}'),
            "takes",
        ),
        (("rotate",), "Name the devices to rotate"),
        (("rotate", "pump-7", "--due"), "Name the devices to rotate"),
        (("rotate", "pump-7"), "No hub runs on"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(data, words, said):
    outpost(data, "sign", "new", "one", "--role", "keys")
    output = refused(data, *words)
    assert said in output and "Traceback" not in output and WORDS not in output


def test_a_wrong_passphrase_signs_nothing_and_takes_no_counter(data, monkeypatch):
    outpost(data, "sign", "new", "one", "--role", "keys")
    monkeypatch.setenv("OUTPOST_SIGNER_PASSPHRASE", "quite another one")
    assert "does not open" in refused(data, "sign", "command", "pump-7", "keys", "drop")
    with Fleet(data) as fleet:
        assert not fleet._one("SELECT * FROM counter")


@pytest.mark.parametrize("content", ["", "{}", '{"format": 9}', '{"format": 1, "signers": [1]}'])
def test_a_damaged_list_of_signers_is_one_sentence(data, content):
    (data / "signers").mkdir(parents=True)
    (data / "signers" / "signers.json").write_text(content)
    assert "signers.json is" in refused(data, "sign", "list")


def test_signers_fit_into_what_a_board_reads(data):
    signers = Signers(data)
    for n in range(agreed.SIGNERS_MAX):
        signers.add(f"signer-{n}", agreed.COMMAND_ROLES, lambda: WORDS)
    content = signers.for_devices("f" * 64)
    assert len(content) <= agreed.SIGNERS_MAX_BYTES
    assert len(base64.urlsafe_b64decode(json.loads(content)["signers"][0]["point"] + "==")) == 65
    with pytest.raises(OutpostError, match="at most 8"):
        signers.add("one-more", ["keys"], lambda: WORDS)
    assert os.listdir(data / "signers").count("one-more.key") == 0
