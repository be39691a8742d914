"""The audit asks as a device asks: its ClientHello is, byte for byte, the device's."""

from __future__ import annotations

from pathlib import Path

import pytest
import servers
import tlsdevice
from outpost_tools.audit import hello, suites

CONNECT = """
tlspolicy.suites(mode)
tlspolicy.max_fragment_length(size)
attempt(lambda: context().wrap_socket(tcp(port), server_hostname="hub.example"))
"""
RANDOM = slice(5 + 4 + 2, 5 + 4 + 2 + 32)


def without_random(record: bytes) -> bytes:
    return record[: RANDOM.start] + record[RANDOM.stop :]


@pytest.mark.parametrize("size", [None, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("mode", ["all", "ecc"])
@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_the_audit_sends_the_client_hello_of_a_device(
    leg: str, mode: str, size: int | None, tmp_path: Path
) -> None:
    sent = servers.client_hello(
        lambda port: tlsdevice.run(leg, tmp_path, CONNECT, port=port, mode=mode, size=size)
    )
    offered = suites.OFFERED if mode == "all" else suites.DESIGN_ECC
    record = hello.device_hello("hub.example", offered, size)
    assert len(record) == 5 + len(sent)
    assert parts(without_random(record)[5:]) == parts(
        without_random(b"\x16\x03\x03\0\0" + sent)[5:]
    )


def parts(message: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """What stands before the extensions, and those by their kind: their order means nothing."""
    at = 4 + 2 + 1  # the random bytes and, as none is resumed, the session are out of it
    at += 2 + int.from_bytes(message[at : at + 2], "big") + 2
    head, found = message[:at], {}
    at += 2
    while at < len(message):
        size = int.from_bytes(message[at + 2 : at + 4], "big")
        assert message[at : at + 2] not in found
        found[message[at : at + 2]] = message[at + 4 : at + 4 + size]
        at += 4 + size
    return head, found


def test_each_suite_is_listed_once_and_judged() -> None:
    assert [s.name for s in suites.DESIGN] == list(suites.OURS)
    assert len({s.name for s in suites.CLASSIC.values()}) == len(suites.CLASSIC)
    kinds = {s.name: s.kind for s in suites.CLASSIC.values()}
    for name, kind in kinds.items():
        if name.startswith("TLS_RSA_") or name.endswith(("_SHA", "_MD5")) or "3DES" in name:
            assert kind == "forbidden", name
    assert kinds["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"] == "other"
    assert kinds["TLS_DH_anon_WITH_AES_128_GCM_SHA256"] == "forbidden"
    assert kinds["TLS_ECDH_RSA_WITH_AES_128_GCM_SHA256"] == "forbidden"
    assert {s.kind for s in suites.TLS_1_3.values()} == {"other"}
