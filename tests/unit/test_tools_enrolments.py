"""Enrolments: their form, their file, and what a certificate shows."""

import base64
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from outpost_tools.enrolment import complete, derive_key
from outpost_tools.enrolments import Enrolments, LinkedHub
from outpost_tools.errors import OutpostError
from outpost_tools.hub import attest, issuing
from outpost_tools.hub.assign import Impossible, hashed

from certs import DAY, holder, request

WRITER = """
import sys
from outpost_tools.enrolments import Enrolments
with Enrolments(sys.argv[1]) as held:
    number = 0
    while True:
        name = f"{sys.argv[2]}-{number}"
        held.put({"registrationId": name, "attestation": {"type": "symmetricKey"}})
        print(name, flush=True)
        number += 1
"""


def individual(name="pump-7", **more):
    return {"registrationId": name, "attestation": {"type": "symmetricKey"}, **more}


def group(name="pumps", **more):
    return {"enrollmentGroupId": name, "attestation": {"type": "symmetricKey"}, **more}


def signed_by(name, *signers):
    kept = dict(
        zip(("primary", "secondary"), ({"certificate": s.pem} for s in signers), strict=False)
    )
    return {
        "enrollmentGroupId": name,
        "attestation": {"type": "x509", "x509": {"signingCertificates": kept}},
    }


# The file


def test_an_enrolment_is_kept_with_keys_made_for_it_and_shown_without_them(tmp_path):
    with Enrolments(tmp_path) as held:
        made = held.put(individual(initialTwin={"tags": {"hall": 3}}))
        scope = held.id_scope
    with Enrolments(tmp_path) as held:
        again = held.get("PUMP-7")  # registration ids have no case
        assert held.id_scope == scope and scope.startswith("0ne")
    assert again == made and again.enabled and len(set(again.keys)) == 2
    assert again.allocation == "hashed" and again.updates_hub and again.migrates_data
    for text in (repr(again), json.dumps(again.to_json())):
        assert not any(key in text for key in again.keys)
    assert again.to_json(secret=True)["attestation"]["symmetricKey"]["primaryKey"] == again.keys[0]


def test_the_file_is_its_owners_alone(tmp_path):
    Enrolments(tmp_path).close()
    assert (tmp_path / "enrolments.db").stat().st_mode & 0o077 == 0


def test_an_enrolment_is_replaced_only_by_who_read_the_last_one(tmp_path):
    with Enrolments(tmp_path) as held:
        first = held.put(group())
        with pytest.raises(OutpostError, match="already"):
            held.put(group())
        second = held.put(first.document, if_match=first.etag)
        with pytest.raises(OutpostError, match="changed meanwhile"):
            held.put(first.document, if_match=first.etag)
        third = held.put({**first.document, "provisioningStatus": "disabled"}, if_match="*")
        assert second.keys == first.keys == third.keys and not third.enabled
        assert third.created_s == first.created_s < third.updated_s
        held.remove("pumps", group=True)
        with pytest.raises(OutpostError, match="no enrolment"):
            held.put(group(), if_match="*")


def test_an_individual_and_a_group_may_have_one_name(tmp_path):
    with Enrolments(tmp_path) as held:
        held.put(individual("a"))
        held.put(group("a"))
        assert [e.is_group for e in held.all()] == [False, True]
        assert held.set_status("a", "disabled", group=True).enabled is False
        assert held.get("a").enabled


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([], "JSON object"),
        ({}, "either"),
        ({**individual(), "enrollmentGroupId": "g"}, "either"),
        (individual("-x"), "cannot be"),
        (individual("x."), "cannot be"),
        (individual("x" * 129), "cannot be"),
        (individual(attestation={"type": "tpm"}), "one of"),
        (individual(attestation={"type": "x509", "x509": {}}), "clientCertificates"),
        (
            individual(
                attestation={
                    "type": "x509",
                    "x509": {"clientCertificates": {"primary": {"certificate": "!"}}},
                }
            ),
            "neither PEM",
        ),
        (
            individual(attestation={"type": "symmetricKey", "symmetricKey": {"primaryKey": "QQ"}}),
            "not base64",
        ),
        (individual(provisioningStatus="perhaps"), "enabled or disabled"),
        (individual(allocationPolicy="nearest"), "one of"),
        (individual(allocationPolicy="custom"), "customAllocationDefinition"),
        (individual(reprovisionPolicy={"updateHubAssignment": "yes"}), "truth"),
        (individual(initialTwin={"tags": []}), "tags"),
        (individual(deviceId="a/b"), "IoT Hub takes"),
        (individual(iotHubs=[7]), "host names"),
        (individual(optionalDeviceInformation="x" * 70000), "at most"),
    ],
)
def test_a_wrong_enrolment_is_one_sentence_and_nothing_is_kept(tmp_path, document, reason):
    with Enrolments(tmp_path) as held:
        with pytest.raises(OutpostError, match=reason):
            held.put(document)
        assert held.all() == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
MEMBERS = ("attestation", "provisioningStatus", "initialTwin", "iotHubs", "reprovisionPolicy")


@given(st.sampled_from(MEMBERS), JSON)
@settings(max_examples=150, deadline=None)
def test_any_json_in_any_place_is_taken_or_refused_in_a_sentence(member, value):
    try:
        _, _, kept = complete({**individual(), member: value})
    except OutpostError:
        return
    assert complete(kept)[2] == kept


def test_kill_9_loses_no_enrolment_that_was_reported(tmp_path):
    reported = []
    for number in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), f"r{number}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        first = writer.stdout.readline()
        time.sleep(0.03 + 0.02 * number)
        os.kill(writer.pid, signal.SIGKILL)
        lines = [first, *writer.stdout.read().splitlines(keepends=True)]
        writer.wait()
        reported += [line.strip() for line in lines if line.endswith("\n")]
    assert len(reported) >= 3
    with Enrolments(tmp_path) as held:
        assert {e.name for e in held.all()} >= set(reported)


def test_a_file_of_a_newer_program_or_of_none_is_one_sentence(tmp_path):
    (tmp_path / "enrolments.db").write_bytes(b"this is not SQLite" * 100)
    with pytest.raises(OutpostError, match="cannot be opened"):
        Enrolments(tmp_path)


def test_a_groups_key_gives_every_device_its_own():
    # The answer that Azure's documents give for their example key and registration id's form:
    # base64 of HMAC-SHA256, here checked against OpenSSL's command line.
    key = "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw=="
    raw = base64.b64decode(key).hex()
    shown = subprocess.run(
        ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{raw}", "-binary"],
        input=b"sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6",
        capture_output=True,
        check=True,
    ).stdout
    expected = base64.b64encode(shown).decode()
    assert derive_key(key, "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6") == expected
    assert derive_key(key, "another") != expected


# Which hub


def test_a_device_always_gets_the_same_hub_and_the_hubs_share_by_weight(tmp_path):
    hubs = [LinkedHub("a", tmp_path, 1), LinkedHub("b", tmp_path, 3), LinkedHub("c", tmp_path, 0)]
    chosen = {f"pump-{n}": hashed(f"pump-{n}", hubs).host for n in range(2000)}
    counts = {host: list(chosen.values()).count(host) for host in "abc"}
    assert counts["c"] == 0 and 400 < counts["a"] < 600
    assert all(hashed(name.upper(), hubs).host == host for name, host in chosen.items())
    # Whoever was on "b" stays there when "a" goes.
    assert all(hashed(name, hubs[1:]).host == "b" for name, host in chosen.items() if host == "b")
    with pytest.raises(Impossible):
        hashed("pump-7", hubs[2:])


# Certificates


def test_a_device_of_a_group_is_known_through_its_intermediates(tmp_path):
    root = holder("root", authority=True)
    middle = holder("middle", root, authority=True)
    leaf = holder("pump-7", middle)
    shown = attest.read(leaf.chain, "Pump-7", time.time())
    with Enrolments(tmp_path) as held:
        far = held.put(signed_by("far", root))
        near = held.put(signed_by("near", holder("other", authority=True), middle))
        assert attest.in_group(shown, [far])[0].name == "far"
        found, proof = attest.in_group(shown, [far, near])
        assert found.name == "near" and proof.certificate == leaf.certificate
        alone = attest.read(leaf.chain[:1], "pump-7", time.time())
        with pytest.raises(attest.Unproven, match="no enrolment group"):
            attest.in_group(alone, [far])


@pytest.mark.parametrize("case", ["not a CA", "expired middle", "same name", "future"])
def test_a_chain_that_does_not_hold_is_refused(tmp_path, case):
    root = holder("root", authority=True)
    middle = holder("middle", root, authority=True)
    if case == "not a CA":
        middle = holder("middle", root)
    elif case == "expired middle":
        middle = holder("middle", root, authority=True, starts=-3 * DAY, ends=-DAY)
    elif case == "same name":
        root = holder("root", authority=True)
    leaf = holder("pump-7", middle)
    now_s = time.time() - (5 * 86400 if case == "future" else 0)
    with Enrolments(tmp_path) as held, pytest.raises(attest.Unproven):
        group = held.put(signed_by("g", root))
        attest.in_group(attest.read(leaf.chain, "pump-7", now_s), [group])


def test_the_common_name_is_the_registration_id():
    with pytest.raises(attest.Unproven, match="common name"):
        attest.read(holder("pump-8").chain, "pump-7", time.time())
    with pytest.raises(attest.Unproven, match="cannot be read"):
        attest.read([b"no certificate"], "pump-7", time.time())
    with pytest.raises(attest.Unproven, match="has expired"):
        attest.read(holder("pump-7", ends=-DAY / 2).chain, "pump-7", time.time())


# Issuing


def test_a_request_becomes_a_certificate_for_its_key_alone(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    ca = issuing.DeviceCA(tmp_path)
    leaf, issuer = ca.issue(issuing.read_request(request("pump-7", key), "pump-7"), days=7)
    leaf.verify_directly_issued_by(issuer)
    issuer.verify_directly_issued_by(ca.root("ecdsa"))
    assert leaf.public_key() == key.public_key()
    assert leaf.subject.rfc4514_string() == "CN=pump-7"
    assert DAY * 7 <= leaf.not_valid_after_utc - leaf.not_valid_before_utc <= DAY * 8
    # A second start has the same authority.
    assert issuing.DeviceCA(tmp_path).root_pem == ca.root_pem


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (7, "base64"),
        ("x" * 20000, "base64"),
        ("!!!", "base64"),
        ("AAAA", "in DER"),
        (request("pump-8"), "common name"),
        (request("pump-7", ec.generate_private_key(ec.SECP521R1())), "P-256"),
        (request("pump-7", rsa.generate_private_key(65537, 1024)), "P-256"),
    ],
)
def test_a_bad_request_is_refused_in_a_sentence(text, reason):
    with pytest.raises(issuing.BadRequest, match=reason):
        issuing.read_request(text, "pump-7")


def test_a_request_with_a_broken_signature_is_refused():

    raw = bytearray(base64.b64decode(request("pump-7")))
    raw[-1] ^= 1
    with pytest.raises(issuing.BadRequest):
        issuing.read_request(base64.b64encode(raw).decode(), "pump-7")


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_as_a_request_are_a_sentence(raw):

    with pytest.raises(issuing.BadRequest):
        issuing.read_request(base64.b64encode(raw).decode(), "pump-7")
