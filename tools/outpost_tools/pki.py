"""The development certificate authority: made on first use, for the local hub alone.

It owns the folder `ca/` under the data folder: for RSA and for ECDSA a root, an intermediate and
the hub's own certificate, in the shape of a public chain (RSA 4096 above 2048; P-256 throughout).
Its root goes into the images that are built beside it. It never signs for a production host by
itself, and its private keys are readable by their owner alone.
"""

import datetime as dt
import fcntl
import ipaddress
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    PrivateKeyTypes,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from outpost_tools.errors import OutpostError
from outpost_tools.paths import private_dir, write_whole

Kind = Literal["rsa", "ecdsa"]
KINDS: tuple[Kind, ...] = ("rsa", "ecdsa")

ROOT_LIFE = dt.timedelta(days=3650)
INTERMEDIATE_LIFE = dt.timedelta(days=1825)
LEAF_LIFE = dt.timedelta(days=90)
RENEW_BEFORE = dt.timedelta(days=30)
# Certificates start a little in the past: a board whose clock is a few minutes slow connects.
BACKDATE = dt.timedelta(hours=1)

PrivateKey = CertificateIssuerPrivateKeyTypes


@dataclass(frozen=True)
class Leaf:
    """A server's certificate: files as ssl.SSLContext.load_cert_chain wants them."""

    chain: Path  # leaf, then intermediate; the root is not sent
    key: Path


def _make_key(kind: Kind, bits: int) -> PrivateKey:
    if kind == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=bits)
    return ec.generate_private_key(ec.SECP256R1())


def _key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _load_key(path: Path) -> PrivateKeyTypes:
    # The numbers of an RSA key are not proved again: we made it, and that takes half a second.
    return serialization.load_pem_private_key(
        path.read_bytes(), password=None, unsafe_skip_rsa_key_validation=True
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Outpost development"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _alternative_names(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            try:
                names.append(x509.DNSName(host))
            except ValueError:
                raise OutpostError(
                    f"{host!r} is not a host name that a certificate can hold."
                ) from None
    return x509.SubjectAlternativeName(names)


def _certificate(
    subject: str,
    key: PrivateKey,
    issuer: tuple[x509.Certificate, PrivateKey] | None,
    not_before: dt.datetime,
    not_after: dt.datetime,
    authority: int | None,
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    """One certificate. `authority` is the path length of a CA, None for a server."""
    public = key.public_key()
    issuer_name = issuer[0].subject if issuer else _name(subject)
    issuer_public = issuer[1].public_key() if issuer else public
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer_name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(
            x509.BasicConstraints(ca=authority is not None, path_length=authority), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_public), critical=False
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=authority is None,
                content_commitment=False,
                key_encipherment=authority is None and isinstance(key, rsa.RSAPrivateKey),
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=authority is not None,
                crl_sign=authority is not None,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if authority is None:
        builder = builder.add_extension(_alternative_names(hosts), critical=False).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256())


class DevCA:
    """The authority in `data`/ca. Several processes may open the same one at the same time.

    title, life  of its roots, where they are made now
    """

    FOLDER = "ca"
    TITLE = "Outpost development"

    def __init__(
        self,
        data: Path,
        kinds: Sequence[Kind] = KINDS,
        title: str | None = None,
        life: dt.timedelta | None = None,
    ) -> None:
        self._title, self._life = title or self.TITLE, life or ROOT_LIFE
        self.folder = private_dir(Path(data)) / self.FOLDER
        self.kinds = tuple(kinds)
        private_dir(self.folder)
        with self._locked():
            for kind in self.kinds:
                self._ensure(kind)

    @staticmethod
    def exists(data: Path) -> bool:
        return any((Path(data) / "ca" / f"root-{kind}.pem").is_file() for kind in KINDS)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _ensure(self, kind: Kind) -> None:
        now = dt.datetime.now(dt.UTC).replace(microsecond=0)
        # The certificate is written after its key: where it stands, the key does too.
        if not self._file("root", kind).is_file():
            key = _make_key(kind, 4096)
            root = _certificate(
                f"{self._title} root {kind.upper()}",
                key,
                None,
                now - BACKDATE,
                now + self._life,
                authority=1,
            )
            self._save("root", kind, key, [root])
            self._file("intermediate", kind).unlink(missing_ok=True)
        root, root_key = self._load("root", kind)
        if root.not_valid_after_utc - now < RENEW_BEFORE:
            raise OutpostError(
                f"The development root in {self.folder} ends on "
                f"{root.not_valid_after_utc:%Y-%m-%d}: remove that folder, start the hub again, "
                "and build the images anew."
            )
        path = self._file("intermediate", kind)
        if path.is_file():
            intermediate, _ = self._load("intermediate", kind)
            if intermediate.not_valid_after_utc - now > RENEW_BEFORE:
                return
        key = _make_key(kind, 2048)
        intermediate = _certificate(
            f"{self._title} issuer {kind.upper()}",
            key,
            (root, root_key),
            now - BACKDATE,
            now + INTERMEDIATE_LIFE,
            authority=0,
        )
        self._save("intermediate", kind, key, [intermediate])

    def _file(self, role: str, kind: str, suffix: str = "pem") -> Path:
        return self.folder / f"{role}-{kind}.{suffix}"

    def _save(
        self, role: str, kind: str, key: PrivateKey, chain: Sequence[x509.Certificate]
    ) -> None:
        write_whole(self._file(role, kind, "key"), _key_pem(key))
        write_whole(self._file(role, kind), b"".join(map(_pem, chain)), mode=0o644)

    def _load(self, role: str, kind: str) -> tuple[x509.Certificate, PrivateKey]:
        try:
            certificate = x509.load_pem_x509_certificate(self._file(role, kind).read_bytes())
            key = _load_key(self._file(role, kind, "key"))
        except (OSError, ValueError):
            raise OutpostError(
                f"The development CA in {self.folder} is damaged ({role}, {kind}): remove that "
                "folder, start the hub again, and build the images anew."
            ) from None
        assert isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
        return certificate, key

    def root(self, kind: Kind) -> x509.Certificate:
        return self._load("root", kind)[0]

    def roots_der(self) -> list[bytes]:
        """The roots that a device of this data folder trusts."""
        return [der(self.root(kind)) for kind in self.kinds]

    def root_file(self, kind: Kind) -> Path:
        return self._file("root", kind)

    def server(self, kind: Kind, hosts: Sequence[str]) -> Leaf:
        """The hub's certificate for `hosts`: kept, made anew when it ends or the hosts differ."""
        leaf = Leaf(self._file("hub", kind), self._file("hub", kind, "key"))
        with self._locked():
            if not self._still_good(leaf, kind, hosts):
                key, chain = self._issue(kind, hosts)
                self._save("hub", kind, key, chain)
        return leaf

    def leaf(
        self,
        kind: Kind,
        hosts: Sequence[str],
        not_before: dt.datetime | None = None,
        not_after: dt.datetime | None = None,
    ) -> Leaf:
        """A certificate of its own, with any validity: what tests give their servers."""
        key, chain = self._issue(kind, hosts, not_before, not_after)
        folder = Path(tempfile.mkdtemp(prefix="server-", dir=self.folder))
        leaf = Leaf(folder / f"{kind}.pem", folder / f"{kind}.key")
        write_whole(leaf.key, _key_pem(key))
        write_whole(leaf.chain, b"".join(map(_pem, chain)), mode=0o644)
        return leaf

    def _issue(
        self,
        kind: Kind,
        hosts: Sequence[str],
        not_before: dt.datetime | None = None,
        not_after: dt.datetime | None = None,
    ) -> tuple[PrivateKey, list[x509.Certificate]]:
        now = dt.datetime.now(dt.UTC).replace(microsecond=0)
        intermediate, intermediate_key = self._load("intermediate", kind)
        key = _make_key(kind, 2048)
        certificate = _certificate(
            hosts[0][:64],
            key,
            (intermediate, intermediate_key),
            not_before or now - BACKDATE,
            not_after or now + LEAF_LIFE,
            authority=None,
            hosts=hosts,
        )
        return key, [certificate, intermediate]

    def _still_good(self, leaf: Leaf, kind: Kind, hosts: Sequence[str]) -> bool:
        if not (leaf.chain.is_file() and leaf.key.is_file()):
            return False
        try:
            chain = x509.load_pem_x509_certificates(leaf.chain.read_bytes())
            key = _load_key(leaf.key)
            names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, x509.ExtensionNotFound):
            return False
        left = chain[0].not_valid_after_utc - dt.datetime.now(dt.UTC)
        return (
            names == _alternative_names(hosts)
            and left > RENEW_BEFORE
            and chain[1:] == [self._load("intermediate", kind)[0]]
            and key.public_key() == chain[0].public_key()
        )
