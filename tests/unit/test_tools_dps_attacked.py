"""The provisioning service under attack: nobody comes in by another name, later, or for more."""

import base64
import datetime as dt
import json
import socket
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from dpsclient import REGISTER, STATUS
from dpshub import WebHook, World
from hubs import eventually
from outpost_tools.enrolment import derive_key
from outpost_tools.hub.dps import CSR_SINCE
from outpost_tools.registry import Registry

from certs import Holder, holder, request

DAY = dt.timedelta(days=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("dps") / "data")
    yield world
    world.close()


@pytest.fixture
def hook():
    hook = WebHook()
    yield hook
    hook.close()


def certificate_group(world, name, signer):
    kept = {"signingCertificates": {"primary": {"certificate": signer.pem}}}
    return world.group(name, attestation={"type": "x509", "x509": kept})


# By another name


def test_a_device_cannot_take_another_that_is_named_as_it_but_for_upper_case(world, tmp_path):
    """Registration ids know no case, device ids do."""
    maker = holder("Case maker", authority=True)
    certificate_group(world, "case", maker)
    with Registry(world.data) as registry:
        registry.add("PRESS-77")
    before = world.hub_device("PRESS-77")
    files = holder("press-77", maker).write(tmp_path, "press")
    state = world.register("PRESS-77", cert=files)["registrationState"]
    assert state["deviceId"] == "press-77"
    assert world.hub_device("PRESS-77") == before


def test_an_enrolment_of_its_own_is_known_in_any_case_and_names_the_device(world):
    made = world.enrol("Boiler-1")
    state = world.register("bOILER-1", made.keys[0])["registrationState"]
    assert state["deviceId"] == state["registrationId"] == "Boiler-1"


@pytest.mark.parametrize("name", ["x" * 129, "-x", "a b", "a\x1b[2Jb", "a+b", "ä", "."])
def test_a_group_lets_nobody_in_by_a_name_that_is_no_registration_id(world, name):
    group = world.enrolments.find("names", True) or world.group("names")
    with world.client(name, derive_key(group.keys[0], name), client_id=name) as client:
        assert client.code in (2, 5)
    assert "\x1b" not in "".join(json.dumps(e, default=str) for e in world.hub.events)
    from outpost_tools.hub.server import in_words

    assert all(line.isprintable() for line in map(in_words, world.hub.events))


def test_a_groups_key_opens_no_id_but_the_one_it_was_derived_for(world):
    group = world.group("derived")
    with world.client("victim", derive_key(group.keys[0], "attacker")) as client:
        assert client.code == 5
    with world.client("victim", group.keys[0]) as client:
        assert client.code == 5


def test_an_operation_of_another_device_is_no_operation(world):
    first, second = world.enrol(), world.enrol()
    with world.client(first.name, first.keys[0]) as one:
        answer = one.ask(REGISTER.format(1), b"{}")[2]
        with world.client(second.name, second.keys[0]) as two:
            status, _, said = two.ask(STATUS.format(2, answer["operationId"]))
            assert (status, said["errorCode"]) == (404, 404203)


# Later: the enrolment has changed since the device connected


def test_a_connection_made_with_a_key_that_was_replaced_registers_nobody(world):
    made = world.enrol()
    with world.client(made.name, made.keys[0]) as client:
        world.enrolments.put(
            {**made.document, "attestation": {"type": "symmetricKey"}}, if_match="*"
        )
        status, _, answer = client.ask(REGISTER.format(1), b"{}")
    assert status == 401 and answer["errorCode"] == 401002
    assert world.hub_device(made.name) is None


@pytest.mark.parametrize("enabled", [True, False])
def test_a_device_of_a_group_is_shut_out_by_an_enrolment_of_its_own(world, enabled):
    """How one device of a group is blocked: also where it is connected already."""
    name = world.name()
    group = world.group(f"group-of-{name}")
    with world.client(name, derive_key(group.keys[0], name)) as client:
        status = "enabled" if enabled else "disabled"
        world.enrol(name, provisioningStatus=status)
        code, _, answer = client.ask(REGISTER.format(1), b"{}")
    assert code == 401 if enabled else answer["status"] == "disabled"
    assert world.hub_device(name) is None


@pytest.mark.parametrize("how", ["disabled", "removed", "replaced"])
def test_an_enrolment_that_ends_while_the_web_hook_thinks_assigns_nobody(world, hook, how):
    made = world.enrol(
        allocationPolicy="custom", customAllocationDefinition={"webhookUrl": hook.url}
    )
    hook.answer = {"iotHubHostName": world.hub.names[0]}
    hook.thinks = threading.Event()
    with world.client(made.name, made.keys[0]) as client:
        answer = client.ask(REGISTER.format(1), b"{}")[2]
        assert eventually(lambda: hook.asked)
        if how == "removed":
            world.enrolments.remove(made.name)
        elif how == "disabled":
            world.enrolments.set_status(made.name, "disabled")
        else:
            fresh = {**made.document, "attestation": {"type": "symmetricKey"}}
            world.enrolments.put(fresh, if_match="*")
        hook.thinks.set()

        def outcome():
            code, _, said = client.ask(STATUS.format(2, answer["operationId"]))
            return said if code == 200 else None

        said = eventually(outcome)
    assert said["status"] == ("disabled" if how == "disabled" else "failed")
    assert world.hub_device(made.name) is None


def test_a_web_hooks_answer_may_come_in_pieces(world):
    listener = socket.create_server(("127.0.0.1", 0))
    body = json.dumps({"iotHubHostName": world.hub.names[0]}).encode()

    def answer():
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 7):
            threading.Event().wait(0.05)
            connection.sendall(body[at : at + 7])
        connection.close()

    threading.Thread(target=answer, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    made = world.enrol(allocationPolicy="custom", customAllocationDefinition={"webhookUrl": url})
    answer = world.register(made.name, made.keys[0])
    listener.close()
    assert answer["status"] == "assigned", answer


# For more: certificates


def signed(name, issuer, extensions=()):
    """A certificate by `issuer` with the extensions that a test wants."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    above = () if issuer.certificate.issuer == issuer.certificate.subject else issuer.chain
    above = tuple(x509.load_der_x509_certificate(der) for der in above)
    return Holder(builder.sign(issuer.key, hashes.SHA256()), key, above)


def ca(path_length=None):
    return x509.BasicConstraints(ca=True, path_length=path_length)


def usage(sign):
    others = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(digital_signature=True, key_cert_sign=sign, **others)


@pytest.mark.parametrize(
    "case", ["leaf signs", "path length", "no keyCertSign", "server's", "constrained"]
)
def test_a_chain_that_x509_does_not_allow_opens_no_group(world, tmp_path, case):
    name = world.name()
    root = holder(f"Root of {name}", authority=True)
    end = x509.BasicConstraints(ca=False, path_length=None)
    if case == "leaf signs":
        above = signed("other device", root, [end])
        leaf = signed(name, above, [end])
    elif case == "path length":
        first = signed("first", root, [ca(0)])
        leaf = signed(name, signed("second", first, [ca()]), [end])
    elif case == "no keyCertSign":
        leaf = signed(name, signed("middle", root, [ca(), usage(sign=False)]), [end])
    elif case == "server's":
        only = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH])
        leaf = signed(name, root, [end, only])
    else:
        allowed = x509.NameConstraints([x509.DNSName("example.org")], None)
        alternative = x509.SubjectAlternativeName([x509.DNSName("elsewhere.net")])
        leaf = signed(name, signed("middle", root, [ca(), allowed]), [end, alternative])
    certificate_group(world, f"chain-{name}", root)
    files = leaf.write(tmp_path, "leaf")
    with world.client(name, cert=files) as client:
        assert client.code == 5
    assert world.hub_device(name) is None


def test_a_good_chain_with_every_extension_in_place_opens_its_group(world, tmp_path):
    name = world.name()
    root = holder(f"Root of {name}", authority=True)
    middle = signed("middle", root, [ca(0), usage(sign=True)])
    client_use = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH])
    leaf = signed(name, middle, [x509.BasicConstraints(ca=False, path_length=None), client_use])
    certificate_group(world, f"chain-{name}", root)
    assert world.register(name, cert=leaf.write(tmp_path, "leaf"))["status"] == "assigned"


# For more: requests


def write(made):
    return base64.b64encode(made.public_bytes(serialization.Encoding.DER)).decode()


def bad_request(case, name):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if case == "weak key":
        return write(builder.sign(rsa.generate_private_key(65537, 1024), hashes.SHA256()))
    if case == "small curve":
        return write(builder.sign(ec.generate_private_key(ec.SECP192R1()), hashes.SHA256()))
    if case == "broken signature":
        der = bytearray(base64.b64decode(request(name)))
        der[-1] ^= 1
        return base64.b64encode(der).decode()
    if case == "another's key":
        der = base64.b64decode(request(name))
        other = base64.b64decode(request(name))
        return base64.b64encode(der[: len(der) - 60] + other[-60:]).decode()
    if case == "version":
        der = bytearray(base64.b64decode(request(name)))
        at = der.index(b"\x02\x01\x00")
        der[at + 2] = 7
        return base64.b64encode(der).decode()
    if case == "other id":
        return request(f"{name}-2")
    assert case == "two names"
    names = [x509.NameAttribute(NameOID.COMMON_NAME, n) for n in (name, "other")]
    return write(
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name(names))
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )


@pytest.mark.parametrize(
    "case",
    [
        "weak key",
        "small curve",
        "broken signature",
        "another's key",
        "version",
        "other id",
        "two names",
    ],
)
def test_a_request_for_more_than_ones_own_good_key_is_refused_as_the_devices_fault(world, case):
    made = world.enrol(credentialPolicyName="default")
    body = {"csr": bad_request(case, made.name)}
    answer = world.register(made.name, made.keys[0], body, api=CSR_SINCE)
    state = answer["registrationState"]
    assert (answer["status"], state["errorCode"]) == ("failed", 400004), state
    assert world.hub_device(made.name) is None


def test_a_name_too_long_for_a_certificate_is_said_to_be(world):
    made = world.enrol("n" * 100, credentialPolicyName="default")
    body = {"csr": request("n" * 64)}
    answer = world.register(made.name, made.keys[0], body, api=CSR_SINCE)
    state = answer["registrationState"]
    assert state["errorCode"] == 400004 and "64" in state["errorMessage"]


def test_what_a_request_asks_for_besides_its_name_is_not_granted(world):
    made = world.enrol(credentialPolicyName="default")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, made.name)])
    wanted = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(ca(), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    body = {"csr": write(wanted)}
    answer = world.register(made.name, made.keys[0], body, api=CSR_SINCE)
    leaf = x509.load_der_x509_certificate(
        base64.b64decode(answer["registrationState"]["issuedCertificateChain"][0])
    )
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):
        leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)


@pytest.mark.parametrize("text", ['{"payload": NaN}', '{"payload": 1e999}'])
def test_what_is_no_json_to_most_readers_is_400(world, text):
    made = world.enrol()
    with world.client(made.name, made.keys[0]) as client:
        status, _, answer = client.ask(REGISTER.format(1), text.encode())
    assert (status, answer["errorCode"]) == (400, 400003)
