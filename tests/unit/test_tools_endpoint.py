"""What `trust push` asks an endpoint before it sends anything: would devices with these connect?"""

from __future__ import annotations

import datetime as dt
import itertools
import socket
import time

import pki
import pytest
from outpost_tools.audit import NotAsked
from outpost_tools.endpoint import Endpoint, look, parse
from outpost_tools.errors import OutpostError
from servers import Proxy, s_server

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
    assert found.good and found.roots == ["right root"]
    left = found.ends - dt.datetime.now(dt.UTC)
    assert 39 * DAY < left <= 40 * DAY


def test_a_bundle_without_the_endpoints_root_is_found_out(tmp_path):
    _, files = chain_of(tmp_path, "right")
    other, _ = chain_of(tmp_path, "other")
    with s_server(tmp_path, *files) as port:
        found = seen(port, other)
    assert not found.good and "issued by 'right root'" in found.why and found.roots == []


def test_a_root_of_the_right_name_with_another_key_does_not_carry_it(tmp_path):
    _, files = chain_of(tmp_path, "right")
    misspelt = pki.make("right root", pki.key("p256", 9))
    with s_server(tmp_path, *files) as port:
        found = seen(port, misspelt)
    assert not found.good and "with another key" in found.why and found.roots == []


@pytest.mark.parametrize(
    ("leaf", "word"),
    [({"hosts": ("elsewhere.example",)}, "names elsewhere"), ({"ends": -DAY / 2}, "expired")],
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
    assert "does not speak TLS 1.2" in found.why or "takes none of the eight" in found.why


def test_devices_that_offer_ecdsa_alone_are_asked_for_separately(tmp_path):
    root = pki.make("rsa root", pki.key("rsa2048", 1))
    issuer = pki.make("rsa issuer", pki.key("rsa2048", 2), root)
    server = pki.make("127.0.0.1", pki.key("rsa2048", 3), issuer, hosts=("127.0.0.1",))
    files = pki.Chain(root, issuer, server).write(tmp_path / "rsa")
    with s_server(tmp_path, *files) as port:
        assert seen(port, root).good
        assert "none of the four ECDSA suites" in seen(port, root, ecc_only=True).why


def test_a_listener_that_hangs_is_given_up_and_is_no_answer(tmp_path):
    root, _ = chain_of(tmp_path, "right")
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(NotAsked, match="in time"):
        seen(silent.getsockname()[1], root, patience_s=0.3)
    assert time.monotonic() - began < 10


def test_an_endpoint_that_is_not_there_is_no_answer_at_all(tmp_path):
    root, _ = chain_of(tmp_path, "right")
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(NotAsked, match="cannot be reached"):
        seen(port, root)


def test_an_endpoint_that_goes_down_while_it_is_asked_is_never_good(tmp_path):
    root, files = chain_of(tmp_path, "right")
    with s_server(tmp_path, *files) as port, Dying(port) as proxy:
        try:
            assert not seen(proxy.port, root, patience_s=1).good
        except NotAsked:
            pass


class Dying(Proxy):
    """Four connections, then nobody is there."""

    def _accept(self) -> None:
        listener, taken = self._listener, 0

        class Few:
            def accept(_self):
                nonlocal taken
                taken += 1
                if taken > 4:
                    listener.close()
                return listener.accept()

            def shutdown(_self, how: int) -> None:
                listener.shutdown(how)

            def close(_self) -> None:
                listener.close()

        self._listener = Few()
        super()._accept()


class Balancer(Proxy):
    """Several servers behind one address, one connection each in turn."""

    upstream = property(lambda self: next(self.turn), lambda self, _: None)

    def __init__(self, *ports: int) -> None:
        self.turn = itertools.cycle(ports)
        super().__init__(0)


def test_behind_a_balancer_every_chain_that_is_shown_must_be_one_that_devices_take(tmp_path):
    """Half of the devices would be stranded, or each of them half of the time."""
    old, old_files = chain_of(tmp_path, "old")
    new, new_files = chain_of(tmp_path, "new")
    with (
        s_server(tmp_path / "a", *old_files) as first,
        s_server(tmp_path / "b", *new_files) as second,
        Balancer(first, second) as proxy,
    ):
        for alone in (old, new):
            found = seen(proxy.port, alone)
            assert not found.good and "was issued by" in found.why
        found = seen(proxy.port, old, new)
        assert found.good and sorted(found.roots) == ["new root", "old root"]


class OnSix(Proxy):
    def __enter__(self) -> Proxy:
        self._listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
        self._listener.settimeout(10)
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)
        return self


def test_an_endpoint_with_an_ipv6_address_is_asked_as_any_other(tmp_path):
    root, files = chain_of(tmp_path, "six", hosts=("::1",))
    with s_server(tmp_path, *files) as port, OnSix(port) as proxy:
        where = parse(f"[::1]:{proxy.port}")
        assert str(where) == f"[::1]:{proxy.port}"
        found = look(where, [root.der])
    assert found.good, found.why


def test_the_certificate_is_the_one_that_the_server_has_for_that_name(tmp_path):
    """The name is sent (SNI) and verified, wherever the server is."""
    _, files = chain_of(tmp_path, "by default")
    root = pki.make("named root", pki.key("p256", 1))
    server = pki.make("hub.example", pki.key("p256", 3), root, hosts=("hub.example",))
    chain, key = pki.Chain(root, root, server).write(tmp_path / "named")
    options = ("-servername", "hub.example", "-cert2", str(chain), "-key2", str(key))
    with s_server(tmp_path, *files, *options) as port:
        found = look(Endpoint("hub.example", port, "127.0.0.1"), [root.der])
        assert found.good, found.why
        assert not look(Endpoint("other.example", port, "127.0.0.1"), [root.der]).good


def test_that_devices_need_a_certificate_there_is_no_matter_of_their_roots(tmp_path):
    root, files = chain_of(tmp_path, "right")
    with s_server(tmp_path, *files, "-Verify", "1", "-verify_return_error") as port:
        assert seen(port, root).good


# A recovery endpoint: dates do not count, and its pin may be the server's own certificate


def test_a_pin_that_has_expired_still_leads_to_the_recovery_endpoint(tmp_path):
    root = pki.make("old pin", pki.key("p256", 1), starts=-3 * DAY, ends=-DAY)
    server = pki.make("127.0.0.1", pki.key("p256", 3), root, hosts=("127.0.0.1",), ends=-DAY / 2)
    files = pki.Chain(root, root, server).write(tmp_path / "expired")
    with s_server(tmp_path, *files) as port:
        assert not seen(port, root).good
        found = seen(port, root, dated=False)
    assert found.good, found.why


def test_a_servers_own_certificate_is_a_pin(tmp_path):
    own = pki.make("127.0.0.1", pki.key("p256", 3), hosts=("127.0.0.1",))
    files = pki.Chain(own, own, own).write(tmp_path / "own")
    with s_server(tmp_path, *files) as port:
        assert seen(port, own, dated=False).good
        other = pki.make("127.0.0.1", pki.key("p256", 4), hosts=("127.0.0.1",))
        assert not seen(port, other, dated=False).good


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b",
        "host:",
        "host:0",
        "host:70000",
        "host:\u0663",
        "https://host",
        "[::1",
        "[::1]x",
        "[::1]:",
        "[]:1",
        "user@host",
        "h\x1b",
    ],
)
def test_words_that_name_no_endpoint_get_a_sentence(text):
    with pytest.raises(OutpostError, match="HOST:PORT"):
        parse(text)


def test_the_port_is_that_of_mqtt_unless_said():
    assert parse("hub.example") == Endpoint("hub.example", 8883)
    assert parse("hub.example:443").port == 443
    assert parse("::1") == parse("[::1]") == Endpoint("::1", 8883)
