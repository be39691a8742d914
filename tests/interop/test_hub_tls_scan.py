"""What scanners that we did not write see of the hub's listeners: nmap and sslscan, as they are."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from devca import put_ca
from outpost_tools import agreed
from outpost_tools.hub import Hub
from outpost_tools.hub.rest import RestServer
from servers import Proxy, need

SCAN_S = 90
# The design's suites, in its order, by the names of the IANA and of OpenSSL.
SUITES = [name.replace("TLS-", "TLS_").replace("-", "_") for name in agreed.SUITES]
OPENSSL = [
    name.removeprefix("TLS-").replace("-WITH-", "-").replace("AES-", "AES").replace("-CBC", "")
    for name in agreed.SUITES
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    data: Path = tmp_path_factory.mktemp("scan") / "data"
    put_ca(data)
    with Hub(data) as hub:
        yield hub


def scan(*command: str) -> ET.Element:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SCAN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return ET.fromstring(done.stdout)


def nmap(port: int, script: str) -> ET.Element:
    # The plus runs the script although nmap does not know the port as one of TLS.
    command = [need("nmap", "nmap"), "-Pn", "-n", "--script", f"+{script}", "-p", str(port)]
    found = scan(*command, "-oX", "-", "127.0.0.1").find(f".//script[@id='{script}']")
    assert found is not None, "nmap saw no TLS there"
    return found


def sslscan(port: int, *options: str) -> ET.Element:
    command = [need("sslscan", "sslscan"), "--no-colour", "--xml=-", *options]
    found = scan(*command, f"127.0.0.1:{port}").find("ssltest")
    assert found is not None, "sslscan saw no TLS there"
    return found


def test_nmap_sees_tls_1_2_with_the_designs_suites_in_its_order_and_no_other(hub: Hub) -> None:
    seen = nmap(hub.port, "ssl-enum-ciphers")
    versions = [table.get("key") for table in seen.findall("table")]
    assert versions == ["TLSv1.2"]
    names = [e.text for e in seen.findall(".//table[@key='ciphers']/table/elem[@key='name']")]
    assert names == SUITES
    strengths = {e.text for e in seen.findall(".//elem[@key='strength']")}
    assert strengths == {"A"}
    assert seen.findtext(".//elem[@key='cipher preference']") == "server"
    assert [e.text for e in seen.findall(".//table[@key='compressors']/elem")] == ["NULL"]
    assert seen.findtext("elem[@key='least strength']") == "A"


def test_sslscan_sees_tls_1_2_with_the_designs_suites_in_its_order_and_no_other(hub: Hub) -> None:
    seen = sslscan(hub.port)
    enabled = [(p.get("type"), p.get("version")) for p in seen.findall("protocol[@enabled='1']")]
    assert enabled == [("tls", "1.2")]
    ciphers = seen.findall("cipher")
    assert [c.get("cipher") for c in ciphers] == OPENSSL
    assert [c.get("status") for c in ciphers] == ["preferred"] + ["accepted"] * 7
    assert {c.get("sslversion") for c in ciphers} == {"TLSv1.2"}
    assert not {c.get("strength") for c in ciphers} - {"strong", "acceptable"}


def test_sslscan_finds_no_renegotiation_compression_or_heartbleed(hub: Hub) -> None:
    seen = sslscan(hub.port, "--no-ciphersuites", "--no-groups")
    renegotiation, heartbleed = seen.find("renegotiation"), seen.find("heartbleed")
    assert renegotiation is not None and renegotiation.get("supported") == "0"
    assert all(h.get("vulnerable") == "0" for h in seen.findall("heartbleed")), heartbleed
    assert all(c.get("supported") == "0" for c in seen.findall("compression"))


def s_client(port: int, *options: str) -> str:
    command = [need("openssl", "openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2"]
    done = subprocess.run(
        [*command, *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SCAN_S,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("suites", ["RSA", "ECDSA"])
def test_the_chain_shown_is_the_one_that_the_clients_suites_ask_for(hub: Hub, suites: str) -> None:
    shown = s_client(hub.port, "-cipher", f"a{suites}+ECDHE", "-showcerts")
    assert f"Outpost development issuer {suites}" in shown
    assert f"Peer signature type: {suites}" in shown


def test_a_client_certificate_is_requested_of_devices_and_may_be_left_out(hub: Hub) -> None:
    shown = s_client(hub.port)
    assert "Client Certificate Types: " in shown and "Cipher is ECDHE" in shown


@pytest.mark.parametrize("size", [512, 1024, 2048, 4096])
def test_the_record_size_that_a_client_asks_for_is_granted(hub: Hub, size: int) -> None:
    with Proxy(hub.port) as proxy:
        shown = s_client(proxy.port, "-maxfraglen", str(size), "-tlsextdebug")
    assert 'TLS server extension "max fragment length" (id=1), len=1' in shown
    assert "Cipher is ECDHE" in shown
    handshake = [length for kind, length in proxy.records if kind == 22]
    assert max(handshake) <= size + 64 and sum(handshake) > 1000


def test_the_service_side_is_as_strict_as_the_device_side(tmp_path: Path) -> None:
    put_ca(tmp_path / "data")
    rest = RestServer(host="127.0.0.1", port=0)
    with Hub(tmp_path / "data", services=[rest]):
        seen = sslscan(rest.port, "--no-groups")
        enabled = [p.get("version") for p in seen.findall("protocol[@enabled='1']")]
        assert enabled == ["1.2"]
        assert [c.get("cipher") for c in seen.findall("cipher")] == OPENSSL
        versions = nmap(rest.port, "ssl-enum-ciphers").findall("table")
        assert [table.get("key") for table in versions] == ["TLSv1.2"]


def test_the_scans_leave_the_hub_serving(hub: Hub) -> None:
    sslscan(hub.port, "--no-groups")
    nmap(hub.port, "ssl-enum-ciphers")
    assert [c.get("cipher") for c in sslscan(hub.port, "--no-groups").findall("cipher")] == OPENSSL
    assert not [e for e in hub.events if "fault" in e.get("reason", "")]
