"""The fleet's certificate authority: it signs for devices, with a key that is kept offline.

It owns one folder, `fleet-ca/` in the data folder or wherever it is told (a stick that is locked
away): ca.json, which says what is there, the certificates, and the keys as PKCS #8 under a
passphrase; or no key at all, where that is in a PKCS #11 token. It is not the development CA of the
local hub, which signs for servers and whose keys have no passphrase.
It never writes a key in the clear, and it never signs what it has not checked.
"""

import datetime as dt
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from outpost_tools import proof, vault
from outpost_tools.errors import OutpostError
from outpost_tools.paths import private_dir, write_whole
from outpost_tools.pki import BACKDATE
from outpost_tools.vault import TokenPlace

FOLDER = "fleet-ca"
FORMAT = 1
ROOT_DAYS = 7300
ISSUER_DAYS = 3650
DEVICE_DAYS = 365
DAYS_MAX = 36500

# What gives the passphrase, or the token's PIN, when it is needed.
Secret = Callable[[], str]


@dataclass(frozen=True)
class Authority:
    """One certificate that signs: the root, or the intermediate below it."""

    role: str  # "root" or "issuer"
    certificate: x509.Certificate
    place: Path | TokenPlace


def days_of(days: int) -> dt.timedelta:
    if not 1 <= days <= DAYS_MAX:
        raise OutpostError(f"A certificate is valid for 1 to {DAYS_MAX} days.")
    return dt.timedelta(days=days)


def _usage(**on: bool) -> x509.KeyUsage:
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: on.get(name, False) for name in names.split()})


def _sign(
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    ends: dt.datetime,
    authority: int | None,
) -> x509.Certificate:
    """One certificate with a random serial number. `authority`: a CA's path length, else None."""
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    ca = authority is not None
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=authority), critical=True)
        .add_extension(
            _usage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if not ca:
        client = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(client, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def create(
    folder: Path,
    name: str,
    secret: Secret,
    *,
    days: int = ROOT_DAYS,
    intermediate: bool = False,
    token: TokenPlace | None = None,
) -> "FleetCA":
    """A new authority. It is there whole, or not at all."""
    if not (0 < len(name) <= 50 and name.isprintable()):
        raise OutpostError("A CA's name has 1 to 50 printable characters.")
    life = days_of(days)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutpostError(f"There is something in {folder} already: choose another folder.")
    private_dir(folder.parent)
    word = secret()
    if token is None:
        vault.check_passphrase(word)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _fill(draft, name, word, life, intermediate, token)
        try:
            draft.replace(folder)
        except OSError as why:
            raise OutpostError(f"Cannot make {folder} ({why.strerror}).") from None
        _sync(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return FleetCA(folder)


def _fill(
    draft: Path,
    name: str,
    word: str,
    life: dt.timedelta,
    intermediate: bool,
    token: TokenPlace | None,
) -> None:
    ends = dt.datetime.now(dt.UTC).replace(microsecond=0) + life
    roles = ["root", "issuer"] if intermediate else ["root"]
    with ExitStack() as open_keys:
        above: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None = None
        for depth, role in enumerate(roles):
            if token is None:
                key = vault.new_key()
                vault.write_key(draft / f"{role}.key", key, word)
            else:
                place = _in_token(token, role)
                key = open_keys.enter_context(vault.token_key(place, word, make=True))
            subject = _named(f"{name} {role}" if intermediate else name)
            if depth:
                ends = min(ends, ends - life + dt.timedelta(days=ISSUER_DAYS))
            issuer, issuer_key = above or (subject, key)
            path_length = len(roles) - 1 - depth
            made = _sign(subject, key.public_key(), issuer, issuer_key, ends, path_length)
            write_whole(draft / f"{role}.pem", pem(made), mode=0o644)
            above = (subject, key)
    about: dict[str, Any] = {"format": FORMAT, "name": name, "signs": roles[-1], "token": None}
    if token is not None:
        about["token"] = {"module": token.module, "token": token.token, "key": token.key}
    write_whole(draft / "ca.json", json.dumps(about, indent=1).encode() + b"\n", mode=0o644)


def _in_token(token: TokenPlace, role: str) -> TokenPlace:
    label = token.key if role == "root" else f"{token.key}-{role}"
    return TokenPlace(token.module, token.token, label)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FleetCA:
    """The authority in `folder`. Opening it reads certificates alone; `unlocked` needs the key."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            about = json.loads((self.folder / "ca.json").read_text())
            self.name: str = about["name"]
            self.signs: str = about["signs"]
            if about["format"] != FORMAT or self.signs not in ("root", "issuer"):
                raise OutpostError(f"{self.folder} is of another format: use the newer `outpost`.")
            self.token = TokenPlace(**about["token"]) if about["token"] else None
            self.root = self._read("root")
            self.issuer = self._read(self.signs)
        except FileNotFoundError:
            raise OutpostError(
                f"There is no CA in {self.folder}: make one with `outpost ca new`."
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            raise OutpostError(
                f"The CA in {self.folder} is damaged: restore the folder from a copy."
            ) from None

    def _read(self, role: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.folder / f"{role}.pem").read_bytes())

    @property
    def root_pem(self) -> str:
        """What a hub must trust for the certificates that are signed here."""
        return pem(self.root).decode()

    @property
    def above(self) -> list[x509.Certificate]:
        """The certificates that a device shows after its own: the intermediate, or none."""
        return [self.issuer] if self.signs == "issuer" else []

    @contextmanager
    def unlocked(self, secret: Secret) -> Iterator["Signer"]:
        """The authority ready to sign, for as long as the block lasts."""
        if self.token is not None:
            with vault.token_key(_in_token(self.token, self.signs), secret()) as key:
                yield self._signer(key)
        else:
            path = self.folder / f"{self.signs}.key"
            if not path.is_file():
                raise OutpostError(f"{path} is not there: bring the key from where it is kept.")
            yield self._signer(vault.read_key(path, secret()))

    def _signer(self, key: ec.EllipticCurvePrivateKey) -> "Signer":
        if key.public_key() != self.issuer.public_key():
            raise OutpostError(f"The key of {self.folder} does not belong to its certificate.")
        return Signer(self, key)


class Signer:
    """A CA whose key is at hand."""

    def __init__(self, ca: FleetCA, key: ec.EllipticCurvePrivateKey) -> None:
        self.ca, self._key = ca, key

    def _ends(self, days: int) -> dt.datetime:
        now = dt.datetime.now(dt.UTC).replace(microsecond=0)
        above = self.ca.issuer.not_valid_after_utc
        if above <= now:
            raise OutpostError(
                f"The CA {self.ca.name!r} ended on {above:%Y-%m-%d}: make a new one."
            )
        return min(now + days_of(days), above)

    def device(
        self, device_id: str, public: ec.EllipticCurvePublicKey, days: int = DEVICE_DAYS
    ) -> list[x509.Certificate]:
        """A device's certificate for its public key, and what the device shows after it."""
        proof.check_common_name(device_id)
        held = proof.point(public, "The device's")
        for one in (self.ca.root, self.ca.issuer):
            if held == proof.point(one.public_key(), "The CA's"):
                raise OutpostError("The request holds the CA's own key: nothing was signed.")
        issuer = self.ca.issuer.subject
        made = _sign(_named(device_id), public, issuer, self._key, self._ends(days), None)
        return [made, *self.ca.above]

    def request(
        self, data: bytes, device_id: str, days: int = DEVICE_DAYS
    ) -> list[x509.Certificate]:
        """A certificate for a request (PEM or DER) that is in order."""
        public = proof.read_request(data, device_id).public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        return self.device(device_id, public, days)

    def possession(self, code: str) -> x509.Certificate:
        """The certificate by which IoT Hub or DPS sees that the CA's key is ours: its name is the
        code that the portal shows."""
        if not (0 < len(code) <= proof.COMMON_NAME_MAX and code.isalnum() and code.isascii()):
            raise OutpostError("A verification code is letters and digits: copy it again, whole.")
        public = vault.new_key().public_key()
        return _sign(_named(code), public, self.ca.issuer.subject, self._key, self._ends(30), None)
