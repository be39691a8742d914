"""Provisioning a board: the whole way on real boards, and what a refusal leaves behind."""

import base64
import os
import pty
import re
import threading
import tty
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from nvs_reader import read as read_nvs
from outpost_tools import nvsimage, proof, provision, vault
from outpost_tools.board import Board
from outpost_tools.books import open_book
from outpost_tools.ca import FleetCA, create, pem
from outpost_tools.cli import app
from outpost_tools.errors import OutpostError
from outpost_tools.fleet import Fleet
from outpost_tools.nvsimage import Identity
from outpost_tools.registry import Registry, thumbprints
from outpost_tools.repl import open_prompt
from typer.testing import CliRunner
from world import World

from certs import DAY, holder

PASSPHRASE = "correct horse battery"
DEVICE = "pump-1"
DER = serialization.Encoding.DER
OURS = ("outpost64", "outpost32")


@pytest.fixture(scope="module")
def ca(tmp_path_factory) -> FleetCA:
    folder = tmp_path_factory.mktemp("ca") / "fleet-ca"
    return create(folder, "Pumps", lambda: PASSPHRASE, intermediate=True)


class Desk:
    """A board on the desk, with the fleet's books beside it."""

    def __init__(self, folder: Path, leg: str, ca: FleetCA) -> None:
        self.world = World(folder, leg)
        self.leg, self.ca, self.data = leg, ca, self.world.data

    def image(self, device_id: str = DEVICE, name: str = "flash.bin", port: int = 8883) -> Path:
        return self.world.image(port, device=Identity(device_id), name=name, sntp="127.0.0.1:9")

    def provision(self, flash: Path, device_id: str = DEVICE, wrap=lambda p: p, **options):
        with (
            open_prompt(None, flash, self.leg) as prompt,
            Fleet(self.data) as fleet,
            open_book(None, self.data) as book,
            self.ca.unlocked(lambda: PASSPHRASE) as signer,
        ):
            issue = options.pop("issue", None) or provision.signed_by(signer, device_id, 365)
            return provision.provision(wrap(prompt), device_id, fleet, book, issue, **options)

    def books(self) -> tuple:
        """What is written in the registry and of whom the fleet knows a certificate in use."""
        with Registry(self.data) as registry, Fleet(self.data) as fleet:
            rows = [(d.device_id, d.auth, d.thumbprints, d.keys) for d in registry.devices()]
            current = [c.thumbprint for c in fleet.certificates() if c.state == "current"]
        return rows, current

    def nvs(self, flash: Path) -> dict:
        return read_nvs(flash.read_bytes()[0x9000:0xF000])


@pytest.fixture
def desk(request, tmp_path, ca):
    made = Desk(tmp_path, getattr(request, "param", "outpost64"), ca)
    yield made
    made.world.close()


def on(*legs: str):
    return pytest.mark.parametrize("desk", legs, indirect=True)


# The whole way


@on(*OURS, "stock32")
@pytest.mark.parametrize("by", ["thumbprint", "ca"])
def test_a_provisioned_board_connects_as_itself(desk, by):
    hub = desk.world.hub()
    sntp = desk.world.sntp()
    flash = desk.world.image(hub.port, sntp, device=Identity(DEVICE))
    provision.trust_ca(desk.data, desk.ca)
    done = desk.provision(flash, by=by)
    assert done.made_on == ("device" if desk.leg in OURS else "host")
    board = desk.world.board(flash)
    board.wait_for(r"acked id=1", 60)
    assert hub.connected == [DEVICE]


@on("outpost32", "stock32", "stock-release")
def test_a_board_with_a_key_and_certificate_of_the_host_in_its_image_connects(desk, tmp_path):
    hub = desk.world.hub()
    provision.trust_ca(desk.data, desk.ca)
    key = vault.new_key()
    with desk.ca.unlocked(lambda: PASSPHRASE) as signer:
        chain = signer.device(DEVICE, key.public_key())
    (tmp_path / "d.pem").write_bytes(b"".join(map(pem, chain)))
    (tmp_path / "d.key").write_bytes(vault.plain_pem(key))
    with Registry(desk.data) as registry:
        registry.add(DEVICE, auth="certificateAuthority")
    held = Identity.with_certificate(DEVICE, tmp_path / "d.pem", tmp_path / "d.key")
    board = desk.world.board(desk.world.image(hub.port, device=held))
    board.wait_for(r"acked id=1", 60)
    assert hub.connected == [DEVICE]


@on(*OURS)
def test_a_board_with_an_encrypted_nvs_is_provisioned_and_connects(desk):
    hub = desk.world.hub()
    keys = nvsimage.new_keys()
    flash = desk.world.image(hub.port, device=Identity(DEVICE), nvs_keys=keys)
    done = desk.provision(flash)
    board = desk.world.board(flash)
    board.wait_for(r"acked id=1", 60)
    assert hub.connected == [DEVICE]
    board.stop()
    nvs = flash.read_bytes()[0x9000:0xF000]
    for plain in (DEVICE.encode(), b"outpost", done.chain[0].public_bytes(DER)[:32]):
        assert plain not in nvs, "it was written in the clear"


@on(*OURS)
def test_the_key_that_was_signed_is_the_boards_and_its_born_key_is_known(desk):
    flash = desk.image()
    done = desk.provision(flash)
    held = desk.nvs(flash)
    born = held["outpost", "born"]
    with Fleet(desk.data) as fleet, Registry(desk.data) as registry:
        known, device = fleet.find(DEVICE), registry.get(DEVICE)
    assert known.born_certificate == born and known.made_on == "device"
    assert device.thumbprints == (done.thumbprint, thumbprints(born)[0])
    assert proof.pack_chain(done.chain) in held["outpost", "ida"]
    assert device.auth == "selfSigned" and device.keys == ()


@on("stock32")
def test_on_a_stock_board_the_weaker_way_is_said(desk, monkeypatch):
    flash = desk.image()
    monkeypatch.setenv("OUTPOST_CA_PASSPHRASE", PASSPHRASE)
    command = ["provision", DEVICE, "--flash", flash, "--leg", "stock32", "--data", desk.data]
    done = CliRunner().invoke(app, list(map(str, [*command, "--ca", desk.ca.folder, "--json"])))
    assert done.exit_code == 0 and "weaker way" in done.stderr, done.output
    assert '"key_made_on": "host"' in done.stdout
    assert PASSPHRASE not in done.output and "PRIVATE" not in done.output


@on("stock32")
def test_a_key_that_the_host_made_shows_nowhere_but_in_the_boards_nvs(desk, capfd):
    flash = desk.image()
    seen = []

    def watch(prompt):
        seen.append(prompt)
        return prompt

    done = desk.provision(flash, wrap=watch)
    held = desk.nvs(flash)
    records = [held[at] for at in (("outpost", "ida"), ("outpost", "idb")) if at in held]
    chain = proof.pack_chain(done.chain)
    (private,) = [r.partition(chain)[2][2:-4] for r in records if chain in r]
    scalar = serialization.load_der_private_key(private, None).private_numbers().private_value
    raw = scalar.to_bytes(32, "big")
    shown = capfd.readouterr()
    text = shown.out + shown.err + seen[0]._wire.board.text + repr(done) + repr(seen[0])
    written = b"".join(p.read_bytes() for p in desk.data.rglob("*") if p.is_file())
    for form in (raw, raw.hex().encode(), private[7:39].hex().encode(), base64.b64encode(private)):
        assert form not in written and form.decode("latin-1") not in text


def test_provisioning_again_gives_another_certificate_which_is_the_one_in_use(desk):
    flash = desk.image()
    first, second = desk.provision(flash), desk.provision(flash)
    assert first.thumbprint != second.thumbprint
    assert desk.books()[1] == [second.thumbprint]
    with Registry(desk.data) as registry:
        assert second.thumbprint in registry.get(DEVICE).thumbprints
    held = desk.nvs(flash)
    records = b"".join(held.get(("outpost", name), b"") for name in ("ida", "idb"))
    assert proof.pack_chain(second.chain) in records


# Over a serial port


@contextmanager
def serial_port(flash: Path, leg: str):
    """The virtual board's console behind a pseudo-terminal."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    board = Board(flash, leg, on_bytes=lambda data: os.write(ours, data))

    def relay() -> None:
        while True:
            try:
                board.write(os.read(ours, 4096))
            except (OSError, OutpostError):
                return

    with board:
        threading.Thread(target=relay, daemon=True).start()
        yield os.ttyname(theirs)
    os.close(theirs)
    os.close(ours)


def test_over_a_serial_port(desk):
    flash = desk.image()
    with (
        serial_port(flash, desk.leg) as port,
        Fleet(desk.data) as fleet,
        open_book(None, desk.data) as book,
        desk.ca.unlocked(lambda: PASSPHRASE) as signer,
        open_prompt(port, None, "") as prompt,
    ):
        issue = provision.signed_by(signer, DEVICE, 30)
        done = provision.provision(prompt, DEVICE, fleet, book, issue)
    assert desk.books()[1] == [done.thumbprint]
    assert proof.pack_chain(done.chain) in desk.nvs(flash)["outpost", "ida"]


def test_a_port_that_is_not_there_is_said(desk):
    with pytest.raises(OutpostError, match="does not open"), open_prompt("/dev/none", None, ""):
        pass


def test_a_board_that_never_answers_is_said(monkeypatch):
    from outpost_tools import repl

    monkeypatch.setattr(repl, "ENTER_S", 1.0)
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    with pytest.raises(OutpostError, match="no prompt"), open_prompt(os.ttyname(theirs), None, ""):
        pass
    os.close(ours)
    os.close(theirs)


def test_an_empty_board_is_told_what_it_lacks(desk):
    flash = desk.world.image(8883, device=Identity(DEVICE), sntp="127.0.0.1:9", library="frozen")
    desk.leg = "stock32"  # its firmware has no library, and the image brings none
    with pytest.raises(OutpostError, match="no Outpost library"):
        desk.provision(flash)


# Refusals leave everything as it was


def test_a_board_of_another_name_is_refused(desk):
    flash = desk.image("pump-2")
    before = desk.books()
    with pytest.raises(OutpostError, match="this board is pump-2, not pump-1"):
        desk.provision(flash)
    assert desk.books() == before


def test_another_board_in_its_place_is_refused_unless_it_is_said(desk):
    desk.provision(desk.image())
    before = desk.books()
    other = desk.image(name="other.bin")
    with pytest.raises(OutpostError, match="--replace"):
        desk.provision(other)
    assert desk.books() == before
    desk.provision(other, replace=True)
    assert desk.books() != before


def test_two_boards_with_the_same_nvs_are_found(desk):
    """A copied flash: the same born key under another name."""
    flash = desk.image()
    desk.provision(flash)
    copy = flash.with_name("copy.bin")
    copy.write_bytes(flash.read_bytes())
    with open_prompt(None, copy, desk.leg) as prompt:
        prompt.run(
            "import esp32\nn = esp32.NVS('outpost')\nn.set_blob('id', b'pump-2')\n"
            "n.erase_key('born')\nn.commit()"
        )
    before = desk.books()
    with pytest.raises(OutpostError, match="of 'pump-1'"):
        desk.provision(copy, "pump-2")
    assert desk.books() == before


class Refusing:
    """A board whose flash takes no certificate."""

    def __init__(self, prompt) -> None:
        self._prompt = prompt

    def run(self, source: str) -> str:
        if "provision.install" in source:
            return self._prompt.run("raise OSError(28)")
        return self._prompt.run(source)


@pytest.mark.parametrize("before", ["new", "with keys", "with a certificate"])
def test_a_board_that_refuses_its_certificate_leaves_the_registry_as_it_was(desk, before):
    flash = desk.image()
    with Registry(desk.data) as registry:
        if before == "with keys":
            registry.add(DEVICE)
    if before == "with a certificate":
        desk.provision(flash)
    books = desk.books()
    with pytest.raises(OutpostError, match="The board says"):
        desk.provision(flash, wrap=Refusing)
    assert desk.books() == books


def test_a_full_nvs_is_said_and_nothing_is_changed(desk):
    flash = desk.image()
    with open_prompt(None, flash, desk.leg) as prompt:
        prompt.run(
            "import esp32\nn = esp32.NVS('other')\n"
            "i = 0\n"
            "try:\n"
            "    while True:\n"
            "        n.set_i32('k%d' % i, i)\n"
            "        i += 1\n"
            "except OSError:\n"
            "    n.commit()\n"
        )
    before = desk.books()
    held = desk.nvs(flash)
    with pytest.raises(OutpostError, match="NVS full"):
        desk.provision(flash)
    assert desk.books() == before and desk.nvs(flash) == held


# Another CA


def request_of(desk, flash: Path) -> x509.CertificateSigningRequest:
    with open_prompt(None, flash, desk.leg) as prompt:
        return x509.load_der_x509_csr(provision.read_request(prompt, DEVICE).der)


def test_openssl_verifies_the_boards_request(desk, tmp_path):
    import subprocess

    path = tmp_path / "r.csr"
    flash = desk.image()
    command = ["provision", DEVICE, "--flash", flash, "--csr-to", path, "--data", desk.data]
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 0, done.output
    said = subprocess.run(
        ["openssl", "req", "-in", path, "-noout", "-verify", "-subject"],
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0 and re.search("verify OK", said.stderr)
    assert said.stdout.strip().endswith("CN = " + DEVICE)


def test_a_certificate_from_another_ca_goes_in_and_a_wrong_one_does_not(desk, tmp_path):
    flash = desk.image()
    asked = request_of(desk, flash)
    other = holder("Other CA", authority=True)
    good = x509_for(asked.public_key(), other, DEVICE)
    before = desk.books()
    key_of_another = holder(DEVICE, other).certificate
    for wrong, words in (
        ([key_of_another, other.certificate], "another key"),
        ([x509_for(asked.public_key(), other, "pump-2")], "for 'pump-2'"),
        ([other.certificate, good], "wrong order"),
    ):
        path = tmp_path / "wrong.pem"
        path.write_bytes(b"".join(map(pem, wrong)))
        with pytest.raises(OutpostError, match=words):
            desk.provision(flash, issue=provision.signed_elsewhere(path))
        assert desk.books() == before
    path = tmp_path / "good.pem"
    path.write_bytes(pem(good) + pem(other.certificate))
    done = desk.provision(flash, issue=provision.signed_elsewhere(path))
    assert desk.books()[1] == [done.thumbprint]
    assert good.public_bytes(serialization.Encoding.DER) in desk.nvs(flash)["outpost", "ida"]


def x509_for(public, issuer, name: str) -> x509.Certificate:
    like = holder(name).certificate
    return (
        x509.CertificateBuilder()
        .subject_name(like.subject)
        .issuer_name(issuer.certificate.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(like.not_valid_before_utc)
        .not_valid_after(like.not_valid_before_utc + 20 * DAY)
        .sign(issuer.key, hashes.SHA256())
    )
