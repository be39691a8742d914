"""IoT Hub's bulk form: what is taken, what is refused and how, and that nothing is half done."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outpost_tools import bulk
from outpost_tools.books import FolderBook
from outpost_tools.errors import OutpostError
from outpost_tools.registry import Registry, new_key

# As Microsoft's documents show a line of an export.
DOCUMENTED = {
    "id": "Device1",
    "eTag": "MA==",
    "status": "enabled",
    "authentication": {"symmetricKey": {"primaryKey": new_key(), "secondaryKey": new_key()}},
    "twinETag": "AAAAAAAAAAI=",
    "tags": {"Location": "LivingRoom"},
    "properties": {
        "desired": {
            "Thermostat": {"Temperature": 75.1, "Unit": "F"},
            "$metadata": {"$lastUpdated": "2017-03-09T18:30:52.3167248Z"},
            "$version": 2,
        },
        "reported": {"$metadata": {"$lastUpdated": "2017-03-09T18:30:51Z"}, "$version": 1},
    },
}


def line(**changes) -> str:
    return json.dumps({"id": "pump-7", **changes})


@pytest.fixture
def book(tmp_path):
    with FolderBook(tmp_path / "data") as book:
        yield book


def test_a_documented_line_is_taken_with_its_keys_and_its_twin(book, tmp_path):
    assert book.take(bulk.read([json.dumps(DOCUMENTED), "", "\n"])) == {}
    (entry,) = book.export()
    keys = DOCUMENTED["authentication"]["symmetricKey"]
    assert entry["authentication"]["symmetricKey"] == keys
    assert entry["tags"] == {"Location": "LivingRoom"}
    assert entry["properties"]["desired"]["Thermostat"] == {"Temperature": 75.1, "Unit": "F"}


@pytest.mark.parametrize(
    "text, word",
    [
        ("{", "JSON"),
        ("[1]", "object"),
        ("[" * 100000, "JSON"),
        (line(id="a b"), "' '"),
        (line(id=""), "character"),
        (line(id=7), "text"),
        (line(importMode="replace"), "importMode"),
        (line(status="asleep"), "status"),
        (line(moduleId="m"), "module"),
        (line(authentication=[]), "object"),
        (line(authentication={"type": "magic"}), "type"),
        (line(authentication={"symmetricKey": {"primaryKey": "c2hvcnQ="}}), "bytes"),
        (line(authentication={"symmetricKey": {"primaryKey": "secret!"}}), "base64"),
        (line(authentication={"x509Thumbprint": {"primaryThumbprint": "12"}}), "thumbprint"),
        (line(tags="north"), "object"),
        (line(properties={"desired": 1}), "object"),
    ],
)
def test_a_line_that_is_wrong_is_named_and_nothing_at_all_is_taken(text, word):
    with pytest.raises(OutpostError) as caught:
        bulk.read([line(id="fine"), text])
    said = str(caught.value)
    assert said.startswith("Line 2") and word in said and "secret" not in said
    assert "othing was imported" in said


@given(
    st.lists(
        st.one_of(
            st.text(max_size=60),
            st.dictionaries(
                st.sampled_from(
                    ["id", "importMode", "status", "authentication", "tags", "properties"]
                ),
                st.recursive(
                    st.none() | st.booleans() | st.text(max_size=8) | st.integers(),
                    lambda inner: st.dictionaries(
                        st.sampled_from(["type", "symmetricKey", "primaryKey", "desired"]),
                        inner,
                        max_size=3,
                    ),
                    max_leaves=5,
                ),
            ).map(json.dumps),
        ),
        max_size=4,
    )
)
def test_whatever_a_file_holds_it_is_taken_or_refused_in_a_sentence(lines):
    try:
        for entry in bulk.read(lines):
            assert entry["id"] and entry["importMode"] in bulk.MODES
            bulk.fields_of(entry)
            bulk.twin_of(entry)
    except OutpostError as why:
        assert str(why).startswith("Line ")


@pytest.mark.parametrize(
    "mode, there, result",
    [
        ("create", False, "taken"),
        ("create", True, "already"),
        ("createOrUpdate", False, "taken"),
        ("createOrUpdate", True, "taken"),
        ("update", False, "no device"),
        ("update", True, "taken"),
        ("updateTwin", False, "no device"),
        ("updateTwin", True, "taken"),
        ("delete", False, "no device"),
        ("delete", True, "taken"),
        ("CREATEORUPDATE", True, "taken"),
    ],
)
def test_each_import_mode_does_what_it_says(tmp_path, mode, there, result):
    data = tmp_path / "data"
    if there:
        with Registry(data) as registry:
            registry.add("pump-7")
    with FolderBook(data) as book:
        refused = book.take(
            bulk.read([line(importMode=mode, status="disabled", tags={"site": "north"})])
        )
        held = {row["device"]: row for row in book.rows()}
        twins = {entry["id"]: entry["tags"] for entry in book.export()}
    if result != "taken":
        assert result in refused["pump-7"]
        return
    assert refused == {}
    assert ("pump-7" in held) is (mode != "delete")
    if mode != "delete":
        expected = "enabled" if mode == "updateTwin" else "disabled"
        assert held["pump-7"]["status"] == expected and twins["pump-7"] == {"site": "north"}


@pytest.mark.parametrize(
    "mode", ["createOrUpdateIfMatchETag", "updateIfMatchETag", "deleteIfMatchETag"]
)
def test_an_etag_that_is_old_is_refused_and_changes_nothing(tmp_path, mode):
    data = tmp_path / "data"
    with Registry(data) as registry:
        etag = registry.add("pump-7").etag
    with FolderBook(data) as book:
        old = bulk.read([line(importMode=mode, eTag="b2xk", status="disabled")])
        assert "changed by someone else" in book.take(old)["pump-7"]
        assert book.show("pump-7")["etag"] == etag
        new = bulk.read([line(importMode=mode, eTag=etag, status="disabled")])
        assert book.take(new) == {}


def test_one_that_is_refused_does_not_keep_the_others_out(book):
    first = bulk.read([line(id="a"), line(id="b", importMode="update"), line(id="c")])
    assert set(book.take(first)) == {"b"}
    assert [row["device"] for row in book.rows()] == ["a", "c"]


def test_keys_stay_when_an_update_does_not_name_them(book):
    book.take(bulk.read([line()]))
    before = book.secrets("pump-7")
    book.take(bulk.read([line(status="disabled")]))
    assert book.secrets("pump-7") == before


@pytest.mark.parametrize("auth", ["sas", "selfSigned", "certificateAuthority"])
def test_an_update_of_tags_leaves_a_device_disabled_and_its_certificate_in_place(book, auth):
    first = "AB" * 32 if auth == "selfSigned" else ""
    book.add("pump-8", auth, first, "", disabled=True)
    book._registry.set_status("pump-8", "disabled", "stolen")
    before = book._registry.get("pump-8")
    line = '{"id": "pump-8", "importMode": "update", "tags": {"hall": 3}}'
    assert book.take(bulk.read([line])) == {}
    after = book._registry.get("pump-8")
    assert (after.status, after.status_reason, after.auth) == ("disabled", "stolen", auth)
    assert (after.keys, after.thumbprints) == (before.keys, before.thumbprints)
    with pytest.raises(OutpostError):
        bulk.read(['{"id": "x", "status": "open"}'])
