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
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import load_der_x509_csr
from stockboard import blank_flash

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
        issuers = {1: [self.root], 2: [self.lower, self.upper], 3: [self.lower, self.upper]}
        issuer = issuers[length][0] if length > 1 else self.root
        leaf = leaf_for(point, issuer)
        rest = {1: b"", 2: self.lower.der, 3: self.lower.der + self.upper.der}
        return leaf + rest[length]


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
    # A chain of two lets the last issuer out: the server has that one.
    trusted = {1: fleet.root, 2: fleet.upper, 3: fleet.root}[length]
    script = CONNECT + (
        "tlspolicy.max_fragment_length(size)\n"
        "chain = read(chain)\n"
        "tlspolicy.client(chain, 1)\n"
        "error = attempt(lambda: report(data=connect(port)))\n"
        "report(error=error, facts=last())\n"
    )
    with demanding(tmp_path, fleet.root) as (server, root):
        if length == 2:
            both = fleet.root.pem + fleet.upper.pem
            del both, trusted
            chain = fleet.chain(point, 3)
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
