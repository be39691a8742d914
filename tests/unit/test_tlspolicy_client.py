"""The client's certificate in the handshake: a key of the device's own, or an external signer.

The servers are OpenSSL's, through Python's ssl module and s_server; they demand the certificate.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pki
import pytest
import tlsdevice
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.x509 import load_der_x509_certificate, load_der_x509_csr
from stockboard import blank_flash, flash_with, raw_prompt

SIZES = [None, 512, 1024, 2048, 4096]

MAKE = """
tlspolicy.key_new(1)
report(csr=tlspolicy.key_csr(1, "pump-7").hex())
"""

CONNECT = """
def connect(port, ctx=None):
    ctx = ctx or context(root)
    s = ctx.wrap_socket(tcp(port), server_hostname="localhost")
    s.write(b"hello")
    data = s.read(5).decode()
    s.close()
    return data

def read(path):
    with open(path, "rb") as f:
        return f.read()
"""


@dataclass
class Server:
    port: int = 0
    seen: list[str] = field(default_factory=list)  # thumbprints of who came, or the error
    certificates: list[bytes | None] = field(default_factory=list)


@contextmanager
def demanding(
    directory: Path, trusted: pki.Signer, suites: str | None = None, optional: bool = False
) -> Iterator[tuple[Server, Path]]:
    """A server that wants a client certificate from `trusted`; with the root to trust it by."""
    chain = pki.chain("ecdsa")
    certificate, key = chain.write(directory / "server")
    ca = directory / "clients.pem"
    ca.write_bytes(trusted.pem)
    root = directory / "root.der"
    root.write_bytes(chain.root.der)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    tls.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
    tls.load_cert_chain(certificate, key)
    tls.load_verify_locations(ca)
    if suites:
        tls.set_ciphers(suites)
    server = Server()

    def serve(plain: socket.socket) -> None:
        plain.settimeout(15)
        try:
            with tls.wrap_socket(plain, server_side=True) as secure:
                server.certificates.append(secure.getpeercert(True))
                secure.sendall(secure.recv(100))
        except OSError as error:
            server.seen.append(str(error))
        plain.close()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.port = listener.getsockname()[1]
        threading.Thread(target=accept, daemon=True).start()
        yield server, root
        listener.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Fleet:
    """A root, two intermediates, and chains for a device's key."""

    root: pki.Signer
    upper: pki.Signer
    lower: pki.Signer

    @classmethod
    def make(cls, extra_bytes: int = 0) -> Fleet:
        root = pki.make("Fleet root", pki.key("p256", 301))
        upper = pki.make("Fleet upper", pki.key("p256", 302), root, extra_bytes=extra_bytes)
        return cls(root, upper, pki.make("Fleet lower", pki.key("p256", 303), upper))

    def chain(self, point: ec.EllipticCurvePublicKey, length: int = 1) -> bytes:
        """The device's certificate and those that lead to the root, but for the root."""
        issuers = {1: [self.root], 2: [self.upper], 3: [self.lower, self.upper]}[length]
        between = [issuer.der for issuer in issuers if issuer is not self.root]
        return leaf_for(point, issuers[0]) + b"".join(between)


def leaf_for(point: ec.EllipticCurvePublicKey, issuer: pki.Signer, name: str = "pump-7") -> bytes:
    class Borrowed:  # pki.make asks the key for its public half alone
        def public_key(self) -> ec.EllipticCurvePublicKey:
            return point

    return pki.make(name, Borrowed(), issuer, hosts=[name]).der  # type: ignore[arg-type]


def device_key(leg: str, directory: Path, flash: Path) -> ec.EllipticCurvePublicKey:
    made = tlsdevice.one(leg, directory, MAKE, flash=flash)
    request = load_der_x509_csr(bytes.fromhex(made["csr"]))
    assert request.is_signature_valid
    return request.public_key()  # type: ignore[return-value]


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_a_server_that_demands_a_certificate_gets_the_device_s_at_every_record_size(
    leg: str, size: int | None, length: int, tmp_path: Path
) -> None:
    flash = blank_flash(tmp_path / "flash.bin")
    point = device_key(leg, tmp_path, flash)
    fleet = Fleet.make()
    chain = fleet.chain(point, length)
    script = CONNECT + (
        "tlspolicy.max_fragment_length(size)\n"
        "chain = read(chain)\n"
        "tlspolicy.client(chain, 1)\n"
        "error = attempt(lambda: report(data=connect(port)))\n"
        "report(error=error, facts=last())\n"
    )
    with demanding(tmp_path, fleet.root) as (server, root):
        done = tlsdevice.run(
            leg,
            tmp_path,
            script,
            flash=flash,
            size=size,
            port=server.port,
            root=root,
            chain=put(tmp_path / "chain.der", chain),
        )
    assert done[0] == {"data": "hello"}, (done, server.seen)
    assert done[1]["error"] == "" and done[1]["facts"]["granted"] == size
    assert server.certificates[0] is not None and chain.startswith(server.certificates[0])


@pytest.mark.parametrize("part", [1, 5, 7, 511, 600])
def test_a_socket_that_takes_a_few_bytes_at_a_time_gets_the_same_records(
    part: int, tmp_path: Path
) -> None:
    flash = blank_flash(tmp_path / "flash.bin")
    point = device_key("outpost64", tmp_path, flash)
    fleet = Fleet.make()
    script = (
        CONNECT
        + """
import io, errno

class Slow(io.IOBase):
    # Takes `part` bytes of every second write, and nothing of the others.
    def __init__(self, s):
        self.s, self.turn, self.calls = s, 0, 0
    def write(self, data):
        self.turn ^= 1
        self.calls += 1
        return self.s.write(bytes(data[:part])) if self.turn else None
    def readinto(self, buf):
        return self.s.readinto(buf)
    def ioctl(self, request, argument):
        return 0

tlspolicy.max_fragment_length(512)
tlspolicy.client(read(chain), 1)
slow = Slow(tcp(port))
s = context(root).wrap_socket(slow, server_hostname="localhost")
rest = b"hello"
while rest:
    rest = rest[s.write(rest) or 0:]
report(data=s.read(5).decode(), calls=slow.calls, tx=last()["tx"])
"""
    )
    with demanding(tmp_path, fleet.root) as (server, root):
        done = tlsdevice.one(
            "outpost64",
            tmp_path,
            script,
            flash=flash,
            port=server.port,
            root=root,
            part=part,
            chain=put(tmp_path / "chain.der", fleet.chain(point, 3)),
        )
    assert done["data"] == "hello" and done["calls"] > 2 * 1300 // part, server.seen


# ---------------------------------------------------------------- the signer

SIGNER = (
    CONNECT
    + """
hashes = []

def signer(digest):
    hashes.append(digest)
    # Stands for the secure element: another of the device's keys, and a DER writer.
    return sign(digest)

tlspolicy.client(read(chain), signer)
error = attempt(lambda: report(data=connect(port)))
report(error=error, asked=len(hashes), size=len(hashes[0]) if hashes else 0)
"""
)

# A signer that talks to its element: a process on the host, over a socket.
ELEMENT = """
def sign(digest):
    s = tcp(element)
    s.write(digest)
    answer = s.read(80)
    s.close()
    return answer
"""


@contextmanager
def element(key: ec.EllipticCurvePrivateKey) -> Iterator[int]:
    """A software stand-in for a secure element: signs each hash that it is sent."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = listener.accept()[0]
                with connection:
                    digest = connection.recv(100)
                    connection.sendall(key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256()))))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("suites", [None, "ECDHE-ECDSA-AES256-GCM-SHA384"])
@pytest.mark.parametrize("size", [None, 512])
@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_an_external_signer_signs_the_handshake(
    leg: str, size: int | None, suites: str | None, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    fleet = Fleet.make()
    chain = put(tmp_path / "chain.der", fleet.chain(key.public_key(), 3))
    script = f"tlspolicy.max_fragment_length({size})\n" + ELEMENT + SIGNER
    with demanding(tmp_path, fleet.root, suites) as (server, root), element(key) as port:
        done = tlsdevice.run(
            leg, tmp_path, script, port=server.port, root=root, chain=chain, element=port
        )
    assert done == [{"data": "hello"}, {"error": "", "asked": 1, "size": 32}], server.seen


@pytest.mark.parametrize(
    "body, expected",
    [
        ("raise RuntimeError('the element is gone')", "RuntimeError: the element is gone"),
        ("return b''", "ValueError: the signer's answer is no DER signature of P-256"),
        ("return digest + digest", "ValueError: the signer's answer is no DER signature of P-256"),
        ("return bytes(4000)", "ValueError: the signer's answer is no DER signature of P-256"),
        ("return None", "TypeError: object with buffer protocol required"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt: "),
        ("tlspolicy.client(None); return None", "TypeError: object with buffer protocol required"),
    ],
)
def test_a_signer_that_fails_ends_the_handshake_and_the_next_connection_works(
    body: str, expected: str, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    fleet = Fleet.make()
    chain = put(tmp_path / "chain.der", fleet.chain(key.public_key()))
    script = (
        CONNECT
        + f"""
def bad(digest):
    {body}

def tell(run):
    try:
        run()
        return ""
    except BaseException as e:
        return "%s: %s" % (type(e).__name__, e)

gc.collect()
tlspolicy.client(read(chain), bad)
first = tell(lambda: connect(port))
gc.collect()
"""
        + ELEMENT
        + """
tlspolicy.client(read(chain), sign)
report(first=first, then=connect(port))
tlspolicy.client(None)
gc.collect()
report(left=tlspolicy.heap()[0])
"""
    )
    with demanding(tmp_path, fleet.root) as (server, root), element(key) as port:
        done = tlsdevice.run(
            "outpost64", tmp_path, script, port=server.port, root=root, chain=chain, element=port
        )
    assert done[0] == {"first": expected, "then": "hello"}, server.seen


def test_a_signer_may_open_and_close_connections_of_its_own(tmp_path: Path) -> None:
    """Also its own connection, from inside: the handshake then ends, and nothing breaks."""
    key = ec.generate_private_key(ec.SECP256R1())
    fleet = Fleet.make()
    chain = put(tmp_path / "chain.der", fleet.chain(key.public_key()))
    script = (
        CONNECT
        + ELEMENT
        + """
depth, inner = [0], []

def nested(digest):
    depth[0] += 1
    if depth[0] == 1:
        inner.append(connect(port))     # the same chain and signer, one level down
    return sign(digest)

tlspolicy.client(read(chain), nested)
report(data=connect(port), inner=inner, depth=depth[0])

holder = []
def closing(digest):
    holder[0].close()
    return sign(digest)

tlspolicy.client(read(chain), closing)
ctx = context(root)
plain = tcp(port)
s = ctx.wrap_socket(plain, server_hostname="localhost", do_handshake_on_connect=False)
holder.append(s)
report(error=attempt(lambda: s.write(b"hello")) != "")
tlspolicy.client(read(chain), sign)
report(after=connect(port))
"""
    )
    with demanding(tmp_path, fleet.root) as (server, root), element(key) as port:
        done = tlsdevice.run(
            "outpost64", tmp_path, script, port=server.port, root=root, chain=chain, element=port
        )
    assert done[0] == {"data": "hello", "inner": ["hello"], "depth": 2}
    assert done[1:] == [{"error": True}, {"after": "hello"}]


# ---------------------------------------------------------------- whose certificate is sent


def test_client_takes_it_away_again_and_the_context_s_own_comes_back(tmp_path: Path) -> None:
    flash = blank_flash(tmp_path / "flash.bin")
    point = device_key("outpost64", tmp_path, flash)
    fleet = Fleet.make()
    own = pki.make("plain", pki.key("p256", 310), fleet.root, hosts=["plain"])
    private = own.key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    script = (
        CONNECT
        + """
def try_it(ctx):
    return attempt(lambda: connect(port, ctx))

plain, loaded = context(root), context(root)
loaded.load_cert_chain(read(cert), read(key))
said = [tlspolicy.client(), try_it(plain), try_it(loaded)]
tlspolicy.client(read(chain), 1)
said += [tlspolicy.client(), try_it(plain), try_it(loaded)]
tlspolicy.client(None)
said += [tlspolicy.client(), try_it(plain), try_it(loaded)]
del plain, loaded
gc.collect()
report(said=said)
"""
    )
    with demanding(tmp_path, fleet.root, optional=True) as (server, root):
        done = tlsdevice.one(
            "outpost64",
            tmp_path,
            script,
            flash=flash,
            port=server.port,
            root=root,
            chain=put(tmp_path / "chain.der", fleet.chain(point)),
            cert=put(tmp_path / "own.der", own.der),
            key=put(tmp_path / "own.key", private),
        )
    assert done["said"] == [False, "", "", True, "", "", False, "", ""], server.seen
    device = fleet_leaf_name(fleet.chain(point))
    names = [der and fleet_leaf_name(der) for der in server.certificates]
    assert names == [None, "plain", device, device, None, "plain"]


def fleet_leaf_name(der: bytes) -> str:
    length = 4 + int.from_bytes(der[2:4], "big")
    return load_der_x509_certificate(der[:length]).subject.rfc4514_string().removeprefix("CN=")


def test_a_certificate_for_another_key_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    flash = blank_flash(tmp_path / "flash.bin")
    point = device_key("outpost64", tmp_path, flash)
    fleet = Fleet.make()
    stranger = fleet.chain(ec.generate_private_key(ec.SECP256R1()).public_key())
    good = fleet.chain(point, 2)
    p384 = pki.make("p384", pki.key("p384", 311), fleet.root, hosts=["p"]).der
    rsa = pki.make("rsa", pki.key("rsa2048", 312), fleet.root, hosts=["r"]).der
    large = fleet.chain(point) + Fleet.make(extra_bytes=4000).upper.der
    cases = {
        "stranger": (stranger, "ValueError: the certificate is for another key"),
        "order": (fleet.lower.der + good, "ValueError: the certificate is for another key"),
        "p384": (p384, "ValueError: the certificate's key is not one of P-256"),
        "rsa": (rsa, "ValueError: the certificate's key is not one of P-256"),
        "large": (large, "ValueError: the chain is longer than 4 KiB"),
        "cut": (good[:-1], "ValueError: a certificate cannot be read"),
        "more": (good + b"\0", "ValueError: a certificate cannot be read"),
        "none": (b"", "ValueError: a certificate cannot be read"),
        "many": (fleet.chain(point) * 7, "ValueError: a certificate cannot be read"),
    }
    script = """
tlspolicy.client(bytes.fromhex(good), 1)
before = tlspolicy.heap()[0]
errors = [attempt(lambda: tlspolicy.client(bytes.fromhex(x), 1)) for x in bad]
report(errors=errors, still=tlspolicy.client(), left=tlspolicy.heap()[0] - before)
for call in (lambda: tlspolicy.client(bytes.fromhex(good)), lambda: tlspolicy.client(b"", None),
             lambda: tlspolicy.client(None, None, None), lambda: tlspolicy.client(7, 1),
             lambda: tlspolicy.client(bytes.fromhex(good), "1")):
    report(error=attempt(call))
"""
    done = tlsdevice.run(
        "outpost32",
        tmp_path,
        script,
        flash=flash,
        good=good.hex(),
        bad=[chain.hex() for chain, _ in cases.values()],
    )
    assert done[0] == {
        "errors": [error for _, error in cases.values()],
        "still": True,
        "left": 0,
    }
    assert all(said["error"].startswith("TypeError") for said in done[1:]), done


def test_a_key_that_was_replaced_no_longer_signs_for_its_certificate(tmp_path: Path) -> None:
    flash = blank_flash(tmp_path / "flash.bin")
    point = device_key("outpost64", tmp_path, flash)
    fleet = Fleet.make()
    script = (
        CONNECT
        + """
tlspolicy.client(read(chain), 1)
tlspolicy.key_new(1, True)
report(error=attempt(lambda: connect(port)) != "")
tlspolicy.key_erase(1)
report(error=attempt(lambda: connect(port)) != "")
"""
    )
    with demanding(tmp_path, fleet.root) as (server, root):
        done = tlsdevice.run(
            "outpost64",
            tmp_path,
            script,
            flash=flash,
            port=server.port,
            root=root,
            chain=put(tmp_path / "chain.der", fleet.chain(point)),
        )
    assert done == [{"error": True}] * 2 and server.certificates == []


def test_nothing_is_left_after_a_soft_reset(tmp_path: Path) -> None:
    fleet = Fleet.make()
    key = ec.generate_private_key(ec.SECP256R1())
    chain = fleet.chain(key.public_key()).hex()
    flash = flash_with(tmp_path / "flash.bin")
    before = f"""
import tlspolicy
tlspolicy.client(bytes.fromhex("{chain}"), lambda digest: None)
print(tlspolicy.client())
"""
    after = "import tlspolicy, gc\ngc.collect()\nprint(tlspolicy.client(), tlspolicy.heap()[0])\n"
    with raw_prompt("outpost64", flash) as board:
        assert board.run(before).strip() == "True"
        board.send(b"\x04")
        board.until(b"soft reboot\r\n")
        board.until(b"raw REPL; CTRL-B to exit\r\n>")
        assert board.run(after).strip() == "False 0"
