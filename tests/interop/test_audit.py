"""`outpost audit` over servers that we did not write, and beside what sslscan sees of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pki
import pytest
import servers
from devca import put_ca
from outpost_tools.audit import Target, suites, survey, verdict
from outpost_tools.audit.finish import openssl_name
from outpost_tools.bundle import Bundle, factory
from outpost_tools.cli import app
from outpost_tools.hub import Hub
from outpost_tools.pki import DevCA
from test_hub_tls_scan import sslscan
from typer.testing import CliRunner

CHAIN = pki.chain("rsa")
SIZES = [512, 1024, 2048, 4096]
WEAK = ("-cipher", "ALL:@SECLEVEL=0")


def audit(port: int, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit status and report of the command."""
    done = CliRunner().invoke(app, ["audit", f"localhost:{port}", "--json", *options])
    return done.exit_code, json.loads(done.stdout)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, str]:
    """Chain and key of a server, and its root as a file."""
    chain, key = CHAIN.write(tmp_path)
    root = tmp_path / "root.pem"
    root.write_bytes(CHAIN.root.pem)
    return chain, key, str(root)


@pytest.mark.parametrize("ignoring", [False, True])
def test_our_hub_is_found_as_it_was_started(ignoring: bool, tmp_path: Path) -> None:
    put_ca(tmp_path / "data")
    bundle = tmp_path / "trust.bin"
    bundle.write_bytes(factory(DevCA(tmp_path / "data").roots_der(), 1))
    with Hub(tmp_path / "data", ignore_record_size=ignoring) as hub:
        status, seen = audit(hub.port, "--bundle", str(bundle))
    assert status == 0 and seen["connects"] and seen["bundle"]["version"] == 0
    sizes = {size["asked"]: size for size in seen["record_sizes"]}
    if ignoring:
        assert [sizes[n]["granted"] for n in SIZES] == [None] * 4
        assert seen["verdicts"]["all"]["record_size"] is None
        assert any("ignores the record size" in note for note in seen["notes"])
        return
    assert [sizes[n]["granted"] for n in SIZES] == SIZES
    assert sizes[512]["kept"] and sizes[512]["largest_record"] == 512
    assert seen["verdicts"]["all"]["record_size"] == 512
    assert sizes[None]["largest_record"] > 600
    assert seen["versions"] == {f"TLSv1.{n}": n == 2 for n in range(4)}
    assert [s["name"] for s in seen["suites"]] == [s.name for s in suites.OFFERED]
    assert set(seen["chains"]) == {"rsa", "ecdsa"}
    assert seen["chains"]["rsa"]["root"]["sha256"] != seen["chains"]["ecdsa"]["root"]["sha256"]
    assert seen["verdicts"]["ecc"]["connects"]
    assert seen["client_certificate"] == "may be left out"
    assert 0 < seen["first_expiry"]["days"] <= 90


def test_mosquitto_connects_devices_until_it_wants_a_certificate(
    files: tuple[Path, Path, str], tmp_path: Path
) -> None:
    chain, key, root = files
    with servers.mosquitto(tmp_path / "m", chain, key) as port:
        status, seen = audit(port, "--root", root)
        assert status == 0 and seen["client_certificate"] == "not asked for"
        assert audit(port, "--root", root, "--ecc")[0] == 1
        assert audit(port, "--root", root, "--sni", "other.example")[0] == 1
        status, seen = audit(port, "--root", "azure")
        assert status == 1 and "not among the device's roots" in seen["stops"][0]
    more = f"cafile {root}\nrequire_certificate true\n"
    with servers.mosquitto(tmp_path / "n", chain, key, more) as port:
        status, seen = audit(port, "--root", root)
        assert (status, seen["client_certificate"]) == (1, "required")
        assert len(seen["stops"]) == 1 and "wants a certificate" in seen["stops"][0]
        assert audit(port, "--root", root, "--x509")[0] == 0


def test_nats_server_ignores_the_record_size_and_connects(
    files: tuple[Path, Path, str], tmp_path: Path
) -> None:
    chain, key, root = files
    with servers.nats(tmp_path / "n", chain, key) as port:
        status, seen = audit(port, "--root", root)
    assert status == 0
    assert {size["granted"] for size in seen["record_sizes"]} == {None}
    assert all(size["usable"] for size in seen["record_sizes"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("-tls1", *WEAK), {"TLSv1.0"}),
        (("-tls1_1", *WEAK), {"TLSv1.1"}),
        (("-no_tls1_3", *WEAK), {"TLSv1.0", "TLSv1.1", "TLSv1.2"}),
        (("-tls1_3",), {"TLSv1.3"}),
        (("-tls1_2",), {"TLSv1.2"}),
        ((), {"TLSv1.2", "TLSv1.3"}),
    ],
)
def test_each_protocol_version_is_found(
    options: tuple[str, ...], expected: set[str], files: tuple[Path, Path, str], tmp_path: Path
) -> None:
    chain, key, root = files
    with servers.s_server(tmp_path / "s", chain, key, *options) as port:
        status, seen = audit(port, "--root", root)
    assert {name for name, offered in seen["versions"].items() if offered} == expected
    assert status == (0 if "TLSv1.2" in expected else 1)
    if "TLSv1.2" not in expected:
        assert seen["stops"] == ["localhost does not speak TLS 1.2: turn it on there."]
    assert {s["version"] for s in seen["suites"]} == expected


@pytest.mark.parametrize("ciphers", ["ALL:COMPLEMENTOFALL:@SECLEVEL=0", "AES128-SHA", "DEFAULT"])
def test_the_suites_are_those_that_sslscan_sees(
    ciphers: str, files: tuple[Path, Path, str], tmp_path: Path
) -> None:
    chain, key, root = files
    options = ("-no_tls1_3", "-cipher", ciphers)
    with servers.s_server(tmp_path / "s", chain, key, *options) as port:
        _, seen = audit(port, "--root", root)
        scanned = sslscan(port, "--no-groups")
    asked = {s.code: s for s in suites.CLASSIC.values()}
    for version in ("1.0", "1.1", "1.2"):
        theirs = {
            int(c.get("id", "0"), 16)
            for c in scanned.findall("cipher")
            if c.get("sslversion") == f"TLSv{version}"
        }
        ours = {s["code"] for s in seen["suites"] if s["version"] == f"TLSv{version}"}
        assert ours == theirs & set(asked), version
    assert any(s["kind"] == "forbidden" for s in seen["suites"])
    if ciphers == "AES128-SHA":
        assert "none of the eight suites" in seen["stops"][0]


def test_a_server_that_sends_small_records_unasked_is_seen_to(
    files: tuple[Path, Path, str], tmp_path: Path
) -> None:
    chain, key, root = files
    with servers.s_server(tmp_path / "s", chain, key, "-max_send_frag", "600") as port:
        _, seen = audit(port, "--root", root)
    assert seen["record_sizes"][-1] == {
        **seen["record_sizes"][-1],
        "asked": None,
        "largest_record": 600,
    }


def test_the_short_way_comes_to_the_same_verdict(
    files: tuple[Path, Path, str], tmp_path: Path
) -> None:
    chain, key, _ = files
    with servers.s_server(tmp_path / "s", chain, key) as port:
        target = Target("localhost", port, "localhost")
        for roots in ([CHAIN.root.der], [pki.chain("rsa", root_number=5).root.der]):
            whole = survey(target, roots).verdicts
            for policy in ("all", "ecc"):
                short = verdict(target, roots, policy)
                assert (short.stops, short.record_size) == (
                    whole[policy].stops,
                    whole[policy].record_size,
                )


def test_openssl_knows_the_designs_suites_by_the_names_that_are_used() -> None:
    for suite in suites.DESIGN:
        command = [servers.need("openssl", "openssl"), "ciphers", "-tls1_2", openssl_name(suite)]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert openssl_name(suite) in listed.strip().split(":")


def test_what_ends_in_the_bundle_is_pointed_out_whether_the_endpoint_needs_it_or_not(
    files: tuple[Path, Path, str], tmp_path: Path
) -> None:
    chain, key, _ = files
    short = pki.make("Short CA", pki.key("p256"), ends=100 * pki.DAY)
    bundle = tmp_path / "trust.bin"
    made = Bundle("", 0, (CHAIN.root.der, short.der), issued=1)
    bundle.write_bytes(made.unsigned().encode())
    with servers.s_server(tmp_path / "s", chain, key) as port:
        said = CliRunner().invoke(app, ["audit", f"localhost:{port}", "--bundle", str(bundle)])
    assert said.exit_code == 0
    assert "Note: The root Short CA ends on" in said.stdout
    assert "Note: 'localhost' expires in 364 days." in said.stdout
