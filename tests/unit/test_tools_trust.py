"""`outpost trust new|add|remove|revoke|sign|inspect|keep`: drafts that go from signer to signer."""

from __future__ import annotations

import base64
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import bundles
import pytest
from cryptography.hazmat.primitives import serialization
from outpost_tools import bundle, envelope, trustdraft, vault
from outpost_tools.cli import app
from outpost_tools.errors import OutpostError
from outpost_tools.fleet import Fleet
from outpost_tools.trustshelf import Shelf
from softtoken import PIN, make_token
from typer.testing import CliRunner

import certs

WORDS = "a passphrase for tests"


class Office:
    """Signers, each on a machine of their own, the operator's, and a stick between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "operator"
        with Fleet(self.data) as fleet:
            self.fleet = fleet.name
        self.draft = folder / "stick.draft"

    def outpost(self, *words: object, data: str = "operator", code: int = 0) -> str:
        words = (*words, "--data", self.folder / data)
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == code, (done.output, done.exception)
        return done.output

    def trust(self, *words: object, **options) -> str:
        return self.outpost("trust", *words, **options)

    def refused(self, *words: object, **options) -> str:
        return self.trust(*words, code=1, **options)

    def signer(self, name: str) -> Path:
        path = self.folder / f"{name}.pub"
        if not path.exists():
            self.outpost("sign", "new", name, "--role", "trust", data=name)
            self.outpost("sign", "public", name, "-o", path, data=name)
        return path

    def sign(self, *names: str) -> None:
        for name in names:
            self.trust("sign", self.draft, data=name)

    def keys(self, *names: str) -> list[object]:
        return [word for name in names for word in ("--key", self.signer(name))]

    def root(self, name: str, days: int = 3650) -> Path:
        path = self.folder / f"{name}.pem"
        if not path.exists():
            path.write_text(certs.holder(name, authority=True, ends=days * certs.DAY).pem)
        return path

    def new(self, *words: object, **options) -> str:
        return self.trust("new", "-o", self.draft, *words, **options)

    def first(self, *signers: str, root: str = "CA A", **options) -> None:
        """The fleet's first bundle, signed and kept."""
        self.new(*self.keys(*signers), "--root", self.root(root), **options)
        self.sign(*signers)
        self.trust("keep", self.draft)

    def next(self, *signers: str) -> None:
        self.sign(*signers)
        self.trust("keep", self.draft)

    def facts(self, *words: object) -> dict:
        return json.loads(self.trust("inspect", *words, "--json"))

    @property
    def shelf(self) -> Shelf:
        return Shelf(self.data)


@pytest.fixture
def office(tmp_path, monkeypatch) -> Office:
    monkeypatch.setenv("OUTPOST_SIGNER_PASSPHRASE", WORDS)
    monkeypatch.setattr(vault, "KDF_ROUNDS", 1000)  # signing is not to take long here
    monkeypatch.chdir(tmp_path)
    return Office(tmp_path)


def test_a_bundle_is_complete_when_k_of_n_have_signed_each_on_their_own_machine(office):
    office.first("anna", "ben", "cora")
    office.new("--root", office.root("CA B"))
    for name, complete in (("anna", False), ("cora", True)):
        office.sign(name)
        facts = office.facts(office.draft)
        assert facts["complete"] is complete
    assert [one["name"] for one in facts["signed"]] == ["anna", "cora"]
    made = trustdraft.read(office.draft).envelope
    present = bundle.Bundle.of(office.shelf.newest())
    assert bundle.verify(made.encode(), present).version == 2


def test_one_signer_signing_twice_is_one_signature(office):
    office.first("anna", "ben")
    office.new()
    office.sign("anna", "anna")
    facts = office.facts(office.draft)
    assert len(facts["signed"]) == 1 and not facts["complete"]


def test_the_draft_says_what_changes_who_signed_and_who_is_missing(office):
    office.first("anna", "ben", "cora")
    office.new("--root", office.root("CA B"), "--host", "files.example")
    office.sign("ben")
    said = office.trust("inspect", office.draft)
    assert "+ root CA B" in said and "+ host for downloads files.example" in said
    assert "Signed by ben" in said
    assert "Missing: 1 more of the present keys, of anna" in said and "cora" in said


def test_signing_shows_the_draft_before_it_asks_for_the_passphrase(office, monkeypatch):
    office.first("anna")
    office.new("--root", office.root("CA B"))
    monkeypatch.delenv("OUTPOST_SIGNER_PASSPHRASE")
    said = office.refused("sign", office.draft, data="anna")
    assert said.index("+ root CA B") < said.index("passphrase")


def test_other_signers_need_the_signatures_of_the_present_and_of_the_new_ones(office):
    office.first("anna", "ben", "cora")
    office.new(*office.keys("dora"))
    office.trust("remove", office.draft, "--key", "cora")
    office.sign("anna", "ben")
    assert office.facts(office.draft)["complete"]  # two of the new three are among them
    office.trust("keep", office.draft)
    office.new(*office.keys("emil", "fred"), "--threshold", 4)
    office.sign("anna", "dora")
    missing = office.facts(office.draft)["missing"]
    assert missing["present"]["signatures"] == 0 and missing["new"]["signatures"] == 2
    office.sign("emil", "fred")
    assert office.facts(office.draft)["complete"]


def test_a_stolen_key_is_replaced_without_it(office):
    office.first("anna", "ben", "cora")
    office.new(*office.keys("dora"))
    office.trust("remove", office.draft, "--key", "anna")
    office.next("ben", "cora")
    names = [one["name"] for one in office.facts()["keys"]]
    assert names == ["ben", "cora", "dora"]
    office.new()
    assert "may not sign this" in office.refused("sign", office.draft, data="anna")


def test_a_device_that_slept_through_changes_of_all_keys_takes_the_file_for_it(office):
    office.first("anna")
    stood = bundle.Bundle.of(office.shelf.newest())
    for old, new in (("anna", "ben"), ("ben", "cora"), ("cora", "dora")):
        office.new(*office.keys(new))
        office.trust("remove", office.draft, "--key", old)
        office.next(old, new)
    office.new("--root", office.root("CA B"))
    office.sign("dora")
    out = office.folder / "to-device.bin"
    office.trust("keep", office.draft, "-o", out)
    assert bundle.verify(out.read_bytes(), stood, int(time.time())).version == 5
    alone = office.shelf.newest().encode()
    with pytest.raises(OutpostError, match="lacks signatures|nobody named"):
        bundle.verify(alone, stood)


def test_a_key_in_a_token_signs_a_draft(office, monkeypatch):
    place = make_token()
    monkeypatch.setenv("OUTPOST_SIGNER_PIN", PIN)
    where = ("--pkcs11", place.module, "--token", place.token, "--key", place.key)
    office.outpost("sign", "new", "anna", "--role", "trust", *where, data="anna")
    office.outpost("sign", "public", "anna", "-o", office.folder / "anna.pub", data="anna")
    office.first("anna")
    assert office.shelf.newest().version == 1


def test_the_first_bundle_takes_this_folders_signers_and_more_than_half_must_sign(office):
    for name in ("x", "y", "z"):
        office.outpost("sign", "new", name, "--role", "trust")
    office.outpost("sign", "new", "w", "--role", "keys")
    office.new("--root", office.root("CA A"), "--signers")
    facts = office.facts(office.draft)
    assert [one["name"] for one in facts["keys"]] == ["x", "y", "z"]
    assert facts["threshold"] == 2 and facts["signers"]


# What is pointed out


@pytest.mark.parametrize("days", [364, 1])
def test_a_root_that_ends_within_the_year_is_pointed_out_everywhere(office, days):
    office.first("anna")
    root = office.root("Short CA", days + 1)
    said = [office.new("--root", root), office.trust("inspect", office.draft)]
    said.append(office.trust("sign", office.draft, data="anna"))
    said.append(office.trust("keep", office.draft, "-o", office.folder / "short.bin"))
    said.append(office.trust("inspect"))
    made = office.data / "trust" / "000002.bin"
    office.outpost("device", "new", "pump-7")
    said.append(office.outpost("image", "pump-7", "--bundle", made, "-o", office.folder / "i.bin"))
    for text in said:
        assert "The root Short CA ends on 20" in text and f"in {days} day" in text


def test_a_root_that_lasts_longer_than_a_year_is_not(office):
    assert "ends on" not in office.new(*office.keys("anna"), "--root", office.root("CA", 368))


def test_a_pin_that_has_ended_is_pointed_out_and_no_fault(office):
    pin = office.folder / "pin.pem"
    pin.write_text(certs.holder("old.example", ends=-certs.DAY / 2).pem)
    office.first("anna")
    said = office.new("--recovery", f"old.example={pin}")
    assert "The pin of a recovery endpoint, old.example ended on" in said


# What is refused


def leaf_of(office) -> Path:
    authority = certs.holder("CA", authority=True)
    path = office.folder / "leaf.pem"
    path.write_text(certs.holder("hub.example", authority).pem)
    return path


def with_private_key(office) -> Path:
    held = certs.holder("CA", authority=True)
    path = office.folder / "both.pem"
    key = held.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    path.write_bytes(held.pem.encode() + key)
    return path


def expired(office) -> Path:
    path = office.folder / "expired.pem"
    path.write_text(certs.holder("Old CA", authority=True, ends=-certs.DAY / 2).pem)
    return path


def twice(office) -> Path:
    path = office.folder / "twice.pem"
    path.write_text(office.root("CA B").read_text() * 2)
    return path


def nothing(office) -> Path:
    path = office.folder / "nothing.pem"
    path.write_text("no certificate\n")
    return path


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (leaf_of, "is not a root"),
        (with_private_key, "has a private key in it"),
        (expired, "expired on"),
        (twice, "given twice"),
        (nothing, "no certificate"),
        (lambda office: office.root("CA A"), "in the bundle already"),
        (lambda office: office.folder / "missing.pem", "neither a file nor a bundle"),
    ],
)
def test_what_is_no_good_as_a_root_gets_a_sentence_and_no_draft(office, bad, word):
    office.first("anna")
    office.draft.unlink()
    said = office.refused("new", "-o", office.draft, "--root", bad(office))
    assert word in said and not office.draft.exists()


def test_a_private_key_that_was_given_by_mistake_is_not_printed(office):
    path = with_private_key(office)
    body = path.read_text().split("PRIVATE KEY-----")[1][:40].strip()
    for option in ("--root", "--key", "--software"):
        assert body not in office.refused("new", option, path)


def test_more_roots_than_a_device_holds_are_refused(office):
    office.first("anna")
    words = [word for n in range(6) for word in ("--root", office.root(f"CA {n}"))]
    assert "1 to 6 roots" in office.refused("new", *words)


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (("--root", "CA A"), "without a connection"),
        (("--root", "CA X"), "none of the roots"),
        (("--key", "anna", "--key", "ben"), "nobody could sign"),
        (("--key", "anna"), "2 signatures are wanted"),
        (("--key", "nobody"), "none of the keys"),
        (("--host", "files.example"), "is no host"),
        (("--recovery", "r.example"), "is no recovery endpoint"),
        (("--software", "anna"), "give another --software-threshold"),
        ((), "Say what is to be removed"),
    ],
)
def test_a_removal_that_would_harm_or_does_nothing_gets_a_sentence(office, words, word):
    office.first("anna", "ben")
    software = [word for one in ("anna", "ben") for word in ("--software", office.signer(one))]
    office.new(*software)
    assert word in office.refused("remove", office.draft, *words)


def test_a_root_is_removed_by_its_name_its_fingerprint_or_its_file(office):
    office.first("anna")
    print_b = bundle_print(office.root("CA B"))
    for how in ("CA B", print_b, print_b[:16].upper(), office.root("CA B")):
        office.new("--root", office.root("CA B"))
        office.trust("remove", office.draft, "--root", how)
        assert [one["name"] for one in office.facts(office.draft)["roots"]] == ["CA A"]


def bundle_print(path: Path) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    return x509.load_pem_x509_certificate(path.read_bytes()).fingerprint(hashes.SHA256()).hex()


@pytest.mark.parametrize("version", [1, 0, -3, 2**31])
def test_a_version_that_does_not_rise_or_cannot_be_kept_is_refused(office, version):
    office.first("anna")
    assert "Versions only rise" in office.refused("new", "--version", version)


def test_two_different_bundles_of_one_version_do_not_both_get_out(office):
    office.first("anna")
    office.new("--root", office.root("CA B"))
    office.next("anna")
    other = office.folder / "other.draft"
    office.trust("new", "--from", office.data / "trust/000001.bin", "-o", other)
    assert "another version 2" in office.refused("sign", other, data="anna")
    assert not trustdraft.read(other).envelope.signatures
    (office.folder / "anna" / "trust" / "000002.bin").unlink()
    office.trust("sign", other, data="anna")
    assert "another version 2" in office.refused("keep", other)


def test_a_bundle_by_keys_that_the_folder_never_heard_of_asks_for_the_ones_before_it(office):
    office.first("anna")
    office.new(*office.keys("ben"))
    office.trust("remove", office.draft, "--key", "anna")
    office.sign("anna", "ben")
    assert "put it there first" in office.refused("keep", office.draft, data="ben")


def test_a_change_of_a_signed_draft_is_refused_until_it_is_meant(office):
    office.first("anna", "ben")
    office.new()
    office.sign("anna")
    words = ("add", office.draft, "--root", office.root("CA B"))
    assert "--again" in office.refused(*words)
    office.trust(*words, "--again")
    assert office.facts(office.draft)["signed"] == []


def test_who_is_named_nowhere_cannot_sign(office):
    office.first("anna")
    office.new()
    office.signer("mallory")
    assert "may not sign this" in office.refused("sign", office.draft, data="mallory")


def test_a_signer_of_another_role_cannot_sign(office):
    office.first("anna")
    office.new()
    office.outpost("sign", "new", "rotation", "--role", "keys", data="anna")
    words = ("sign", office.draft, "--signer", "rotation")
    assert "may not sign for trust" in office.refused(*words, data="anna")


def test_an_incomplete_bundle_is_not_kept(office):
    office.first("anna", "ben")
    office.new()
    office.sign("anna")
    assert "1 of the present keys" in office.refused("keep", office.draft)


def test_a_draft_that_lies_about_what_is_in_force_is_found_out(office):
    """A root that somebody slipped in would not show as a change."""
    office.first("anna")
    forged = bundles.make(1, [bundles.root("X").der], fleet=office.fleet)
    forged = envelope.Envelope.around(
        forged.body(),
        role=1,
        fleet=office.fleet,
        version=1,
        floor=0,
        issued=1,
        expires=2**32 - 1,
        keys=office.shelf.newest().keys,
    )
    trustdraft.following(forged, 100).save(office.draft)
    office.trust("keep", office.data / "trust/000001.bin", data="anna")
    assert "sign nothing" in office.refused("sign", office.draft, data="anna")


def changed(office, **fields) -> None:
    content = json.loads(office.draft.read_text())
    office.draft.write_text(json.dumps(content | fields))


def test_a_draft_with_a_false_signature_is_refused(office):
    office.first("anna", "ben")
    office.new()
    office.sign("anna")
    content = json.loads(office.draft.read_text())
    raw = bytearray(base64.b64decode(content["bundle"]))
    head = len(trustdraft.read(office.draft).envelope.head())
    raw[head + 20] ^= 1
    changed(office, bundle=base64.b64encode(raw).decode())
    assert "signature of version 2 is wrong" in office.refused("inspect", office.draft)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.exhaustive), 97])
def test_a_bit_flip_anywhere_in_a_signed_bundle_is_never_taken_for_complete(office, step):
    office.first("anna")
    office.new()
    office.sign("anna")
    raw = base64.b64decode(json.loads(office.draft.read_text())["bundle"])
    for at in range(0, len(raw), step):
        bad = bytearray(raw)
        bad[at] ^= 1 << at % 8
        changed(office, bundle=base64.b64encode(bad).decode())
        with pytest.raises(OutpostError):
            assert not trustdraft.read(office.draft).complete
            raise OutpostError("it needs other signatures")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{}", b"[1]", b"null", b'{"what": "outpost trust draft", "format": 1}', b"OPTB"],
)
def test_files_that_are_no_drafts_get_a_sentence(office, content):
    office.draft.write_bytes(content)
    for command in ("inspect", "sign", "keep"):
        office.signer("anna")
        said = office.refused(command, office.draft, data="anna")
        assert said.startswith("outpost: ") and len(said.splitlines()) == 1


def test_a_draft_of_another_format_asks_for_the_newer_program(office):
    office.first("anna")
    office.new()
    changed(office, format=2)
    assert "newer `outpost`" in office.refused("inspect", office.draft)


def test_names_that_would_play_with_the_terminal_are_refused(office):
    office.first("anna")
    office.new()
    changed(office, names={"00": "\x1b[2J"})
    assert "damaged" in office.refused("inspect", office.draft)


def test_an_endless_file_is_not_read(office):
    with office.draft.open("wb") as file:
        file.truncate(1 << 33)
    assert "too long" in office.refused("inspect", office.draft)


# Revoking, keeping, inspecting


def test_revoke_raises_the_floor_and_nothing_lowers_it(office):
    office.first("anna")
    office.new()
    office.next("anna")
    said = office.trust("revoke", "-o", office.draft)
    assert "versions below 3 are not used any more" in said and "of anna (" in said
    office.next("anna")
    assert office.facts()["floor"] == 3
    assert "can rise to 4" in office.refused("revoke", "--below", 3)
    assert "can rise to 4" in office.refused("revoke", "--below", 5)
    office.new()
    assert office.facts(office.draft)["floor"] == 3


def test_a_bundle_that_the_fleet_would_not_take_is_said_by_the_exit_status(office):
    office.first("anna")
    forged = bundles.signed(bundles.make(2, fleet=office.fleet), "z")
    path = office.folder / "forged.bin"
    path.write_bytes(forged.encode())
    assert "nobody named" in office.refused("inspect", path)
    office.new()
    office.sign("anna")
    good = office.folder / "good.bin"
    office.trust("keep", office.draft, "-o", good)
    assert "right and enough" in office.trust("inspect", good)


def test_a_bundle_on_the_shelf_that_was_damaged_is_named(office):
    office.first("anna")
    path = office.data / "trust" / "000001.bin"
    path.write_bytes(path.read_bytes()[:-1])
    assert "is damaged" in office.refused("inspect") and path.name in office.refused("inspect")


def test_nothing_that_is_kept_or_carried_has_a_secret_in_it(office):
    office.first("anna")
    office.new()
    office.sign("anna")
    key = next(iter((office.folder / "anna" / "signers").glob("*.key"))).read_bytes()
    for path in (office.draft, *(office.data / "trust").iterdir()):
        assert key.split(b"\n")[1] not in path.read_bytes()
        assert WORDS.encode() not in path.read_bytes()
    assert os.stat(office.data / "trust").st_mode & 0o077 == 0


# Nothing is overwritten that somebody would miss


def test_a_draft_that_somebody_has_signed_is_not_overwritten_by_a_new_one(office):
    office.first("anna", "ben")
    office.new()
    office.new()  # nobody had signed it
    office.sign("anna")
    before = office.draft.read_bytes()
    for words in (("new",), ("revoke",)):
        assert "somebody has signed it" in office.refused(*words, "-o", office.draft)
    assert office.draft.read_bytes() == before


def test_a_new_draft_takes_the_place_of_no_other_file(office):
    office.first("anna")
    key = office.folder / "anna" / "signers" / "anna.key"
    before = key.read_bytes()
    assert "is no draft" in office.refused("new", "-o", key)
    words = ("sign", "public", "anna", "-o", key)
    assert "is a private key" in office.outpost(*words, data="anna", code=1)
    assert "is a signer 'anna' already" in office.outpost(
        "sign", "new", "anna", "--role", "trust", data="anna", code=1
    )
    assert key.read_bytes() == before and os.stat(key).st_mode & 0o077 == 0


# Signers whose files disagree


def test_copies_of_a_draft_that_were_signed_side_by_side_are_each_one_signature(office):
    """They are not put together behind anybody's back: the draft goes from one to the next."""
    office.first("anna", "ben")
    office.new()
    copy = office.folder / "copy.draft"
    copy.write_bytes(office.draft.read_bytes())
    office.sign("anna")
    office.trust("sign", copy, data="ben")
    assert not office.facts(office.draft)["complete"] and not office.facts(copy)["complete"]
    office.trust("sign", copy, data="anna")
    assert office.facts(copy)["complete"]


def test_a_signature_for_another_draft_does_not_fit_this_one(office):
    office.first("anna", "ben")
    office.new("--root", office.root("CA B"))
    office.sign("anna")
    other = office.folder / "other.draft"
    office.trust("new", "-o", other, "--root", office.root("CA X"))
    theirs = trustdraft.read(other)
    signed = trustdraft.read(office.draft).envelope.signatures
    mixed = replace(theirs.envelope, signatures=signed)
    trustdraft.Draft(mixed, theirs.present).save(other)
    for command in ("inspect", "sign", "keep"):
        assert "signature of version 2 is wrong" in office.refused(command, other, data="ben")


@pytest.mark.parametrize("k", [0, -1, 4])
def test_a_threshold_that_could_never_be_met_is_refused(office, k):
    words = (*office.keys("anna", "ben", "cora"), "--threshold", k, "--root", office.root("CA A"))
    said = office.trust("new", "-o", office.draft, *words, code=2 if k < 1 else 1)
    assert "threshold" in said and not office.draft.exists()


def test_after_more_changes_of_keys_than_a_device_takes_a_file_is_made_all_the_same(office):
    """Only who slept through all of the first ones has to be given an older bundle first."""
    keys = [bundles.key(f"k{n}") for n in range(60)]
    shelf, before = office.shelf, None
    for n, key in enumerate(keys):
        named = envelope.Keys.of(1, [envelope.point_of(key)])
        root = bundles.root("A").der
        if before is None:
            draft = trustdraft.first(office.fleet, (root,), named, 100)
        else:
            draft = trustdraft.following(before, 100).edited(keys=named).signed(keys[n - 1])
        before = draft.signed(key).envelope
        shelf.put(before)
    data = shelf.deliverable(before)
    assert len(data) <= 16384
    stood = [bundle.Bundle.of(one) for one in shelf.history()]
    assert bundle.verify(data, stood[40]).version == 60
    with pytest.raises(OutpostError, match="nobody named"):
        bundle.verify(data, stood[0])
    middle = shelf.deliverable(shelf.find(30))
    assert bundle.verify(middle, stood[0]).version == 30


def test_a_key_that_was_exchanged_under_the_same_name_shows_as_a_change(office):
    """No signature covers names: who brings the draft says what they are."""
    office.first("anna", "ben")
    office.new(*office.keys("mallory"))
    office.trust("remove", office.draft, "--key", "ben")
    draft = trustdraft.read(office.draft)
    lied = {key: {"mallory": "ben"}.get(name, name) for key, name in draft.names.items()}
    old = next(key for key, name in draft.names.items() if name == "ben")
    new = next(key for key, name in draft.names.items() if name == "mallory")
    changed(office, names=lied)
    said = office.trust("sign", office.draft, data="anna")
    assert f"- signing key ben ({old})" in said and f"+ signing key ben ({new})" in said


def test_who_may_command_devices_from_then_on_is_shown_key_by_key(office):
    office.first("anna")
    office.outpost("sign", "new", "boss", "--role", "keys", "--role", "software")
    office.new("--signers")
    said = office.trust("sign", office.draft, data="anna")
    assert "+ command signer " in said and "for keys, software" in said


def test_thresholds_and_sections_that_change_are_shown_beside_the_keys(office):
    office.first("anna")
    keys = [word for name in ("x", "y", "z") for word in ("--software", office.signer(name))]
    office.new(*keys)
    office.next("anna")
    office.new()
    office.trust("remove", office.draft, "--software", "z", "--software-threshold", 1)
    draft = trustdraft.read(office.draft).edited(more=((7, b"what"),))
    draft.save(office.draft)
    said = office.trust("inspect", office.draft)
    assert "- software key z (" in said and "must sign software: 1 instead of 2" in said
    assert "does not know: 7 (4 bytes)" in said


def test_a_signer_who_does_not_have_the_bundle_in_force_is_told_so(office):
    office.first("anna", "ben")
    office.new()
    assert "does not have the bundle in force" in office.trust("sign", office.draft, data="anna")
    office.trust("keep", office.data / "trust" / "000001.bin", data="ben")
    assert "in force" not in office.trust("sign", office.draft, data="ben")
