"""What `trust push` asks an endpoint before it sends anything: would devices with these connect?"""

from __future__ import annotations

import datetime as dt
import socket

import pki
import pytest
from outpost_tools.endpoint import Endpoint, look, parse
from outpost_tools.errors import OutpostError
from servers import s_server

DAY = dt.timedelta(days=1)


def chain_of(folder, name: str, hosts=("127.0.0.1",), **leaf):
    """A root, and its server's files: P-256 throughout."""
    root = pki.make(f"{name} root", pki.key("p256", 1))
    issuer = pki.make(f"{name} issuer", pki.key("p256", 2), root)
    server = pki.make(hosts[0], pki.key("p256", 3), issuer, hosts=hosts, **leaf)
    return root, pki.Chain(root, issuer, server).write(folder / name)


def seen(port: int, *roots, **options):
    return look(Endpoint("127.0.0.1", port), [root.der for root in roots], **options)


def test_the_roots_that_carry_the_endpoint_are_named_and_so_is_its_first_expiry(tmp_path):
    root, files = chain_of(tmp_path, "right", ends=40 * DAY)
    other, _ = chain_of(tmp_path, "other")
    with s_server(tmp_path, *files) as port:
        found = seen(port, other, root)
    assert found.good and found.anchors == (1,)
    left = found.ends - dt.datetime.now(dt.UTC)
    assert 39 * DAY < left <= 40 * DAY
    assert len(found.chain) == 3


def test_a_bundle_without_the_endpoints_root_is_found_out(tmp_path):
    _, files = chain_of(tmp_path, "right")
    other, _ = chain_of(tmp_path, "other")
    with s_server(tmp_path, *files) as port:
        found = seen(port, other)
    assert not found.good and "CN=right root" in found.why and found.anchors == ()


def test_a_root_of_the_right_name_with_another_key_does_not_carry_it(tmp_path):
    _, files = chain_of(tmp_path, "right")
    misspelt = pki.make("right root", pki.key("p256", 9))
    with s_server(tmp_path, *files) as port:
        found = seen(port, misspelt)
    assert not found.good and found.anchors == ()


@pytest.mark.parametrize(
    ("leaf", "word"),
    [({"hosts": ("elsewhere.example",)}, "IP address mismatch"), ({"ends": -DAY / 2}, "expired")],
)
def test_a_name_or_a_date_that_devices_refuse_is_refused_here(tmp_path, leaf, word):
    root, files = chain_of(tmp_path, "right", **leaf)
    with s_server(tmp_path, *files) as port:
        found = seen(port, root)
    assert not found.good and word in found.why


@pytest.mark.parametrize("options", [("-tls1_3",), ("-cipher", "ECDHE-ECDSA-AES128-SHA")])
def test_an_endpoint_outside_the_devices_policy_is_refused(tmp_path, options):
    root, files = chain_of(tmp_path, "right")
    with s_server(tmp_path, *files, *options) as port:
        found = seen(port, root)
    assert "does not agree on TLS 1.2" in found.why


def test_devices_that_offer_ecdsa_alone_are_asked_for_separately(tmp_path):
    root = pki.make("rsa root", pki.key("rsa2048", 1))
    issuer = pki.make("rsa issuer", pki.key("rsa2048", 2), root)
    server = pki.make("127.0.0.1", pki.key("rsa2048", 3), issuer, hosts=("127.0.0.1",))
    files = pki.Chain(root, issuer, server).write(tmp_path / "rsa")
    with s_server(tmp_path, *files) as port:
        assert seen(port, root).good
        assert "does not agree" in seen(port, root, ecc_only=True).why


def test_a_listener_that_says_nothing_is_given_up(tmp_path):
    root, _ = chain_of(tmp_path, "right")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = seen(silent.getsockname()[1], root, patience_s=1)
    assert "ended the handshake" in found.why


def test_an_endpoint_that_is_not_there_is_no_answer_at_all(tmp_path):
    root, _ = chain_of(tmp_path, "right")
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(OutpostError, match="cannot be reached"):
        seen(port, root)


@pytest.mark.parametrize("text", ["", "a b", "host:", "host:0", "host:70000", "https://host"])
def test_words_that_name_no_endpoint_get_a_sentence(text):
    with pytest.raises(OutpostError, match="HOST:PORT"):
        parse(text)


def test_the_port_is_that_of_mqtt_unless_said():
    assert parse("hub.example") == Endpoint("hub.example", 8883)
    assert parse("hub.example:443").port == 443
