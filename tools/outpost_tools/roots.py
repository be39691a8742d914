"""The trust roots in certs/: which there are, and that they are exactly those.

The fingerprints below are the pins: certs/ is written from certifi by `make roots` and read back
only where every file matches. Nothing else gets in, whatever certs/ or certifi say. It never
downloads.
"""

import datetime as dt
import hashlib
import importlib.metadata
import re
import tomllib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from outpost_tools import agreed
from outpost_tools.errors import OutpostError
from outpost_tools.paths import tree, write_whole

PEM_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class Pin:
    name: str
    file: str
    sha256: str
    key: str


PINS = (
    Pin(
        "DigiCert Global Root G2",
        "digicert-global-root-g2.pem",
        "cb3ccbb76031e5e0138f8dd39a23f9de47ffc35e43c1144cea27d46a5ab1cb5f",
        "RSA 2048",
    ),
    Pin(
        "Microsoft RSA Root Certificate Authority 2017",
        "microsoft-rsa-root-2017.pem",
        "c741f70f4b2a8d88bf2e71c14122ef53ef10eba0cfa5e64cfa20f418853073e0",
        "RSA 4096",
    ),
    Pin(
        "DigiCert Global Root G3",
        "digicert-global-root-g3.pem",
        "31ad6648f8104138c738f39ea4320133393e3a18cc02296ef97c2ac9ef6731d0",
        "EC P-384",
    ),
    Pin(
        "Microsoft ECC Root Certificate Authority 2017",
        "microsoft-ecc-root-2017.pem",
        "358df39d764af9e1b766e9c972df352ee15cfac227af6ad1d70e8e4a6edcba02",
        "EC P-384",
    ),
)

# Known, and kept out: an old list that still names one gets this sentence instead of a silent yes.
EXCLUDED = {
    "16af57a9f676b0ab126095aa5ebadef22ab31119d644ac95cd4b93dbf3f26aeb": (
        "Baltimore CyberTrust Root",
        "it expired on 2025-05-12",
    ),
}

BUNDLES: dict[str, tuple[str, ...]] = {
    # Hubs with RSA certificates.
    "azure-rsa": ("DigiCert Global Root G2", "Microsoft RSA Root Certificate Authority 2017"),
    # Hubs with ECC certificates; Microsoft's own advice names the RSA root beside G3.
    "azure-ecc": (
        "DigiCert Global Root G3",
        "Microsoft ECC Root Certificate Authority 2017",
        "Microsoft RSA Root Certificate Authority 2017",
    ),
    "azure": tuple(pin.name for pin in PINS),
}


def sha256(certificate: x509.Certificate) -> str:
    return hashlib.sha256(_der(certificate)).hexdigest()


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()


def certs_dir() -> Path:
    return tree() / "certs"


def take(source: Path | None = None, folder: Path | None = None) -> list[Pin]:
    """Write the pinned roots out of `source` (certifi's file by default) into `folder`.

    All or nothing: a root that is missing there, or that has another fingerprint, ends it.
    """
    if source is None:
        import certifi

        source = Path(certifi.where())
        origin = f"certifi {importlib.metadata.version('certifi')}"
    else:
        origin = source.name
    folder = folder or certs_dir()
    by_print = {sha256(cert): cert for cert in _read_pem(source, skip_bad=True)}
    by_name = {_common_name(cert): print_ for print_, cert in by_print.items()}
    found = []
    for pin in PINS:
        certificate = by_print.get(pin.sha256)
        if certificate is None:
            other = by_name.get(pin.name)
            raise OutpostError(
                f"{origin} has {pin.name!r} with the fingerprint {other}, not the pinned "
                f"{pin.sha256}: nothing was written; find out why before going on."
                if other
                else f"{origin} has no {pin.name!r}: nothing was written; pin certifi to a "
                "version that has it."
            )
        found.append((pin, certificate))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise OutpostError(f"Cannot make the folder {folder} ({why.strerror}).") from None
    for pin, certificate in found:
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        write_whole(folder / pin.file, pem, mode=0o644)
    write_whole(folder / "roots.toml", _describe(found, origin).encode(), mode=0o644)
    return list(PINS)


def _read_pem(path: Path, skip_bad: bool = False) -> list[x509.Certificate]:
    """The certificates of a PEM or DER file. A store of many may hold one that does not parse."""
    try:
        content = path.read_bytes()
    except OSError as why:
        raise OutpostError(f"Cannot read {path} ({why.strerror}).") from None
    found = []
    for block in PEM_BLOCK.findall(content) or [content]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of certificates that nobody here asked for
                if block is content:
                    found.append(x509.load_der_x509_certificate(block))
                else:
                    found.append(x509.load_pem_x509_certificate(block))
        except ValueError:
            if not skip_bad:
                raise OutpostError(f"{path} holds no certificate in PEM or DER.") from None
    return found


def _describe(found: Sequence[tuple[Pin, x509.Certificate]], origin: str) -> str:
    lines = [
        "# The trust roots beside this file, written by `make roots`. The fingerprints are pinned",
        "# in tools/outpost_tools/roots.py: a change here or there alone is refused.",
    ]
    for pin, certificate in found:
        lines += [
            "",
            "[[root]]",
            f'name = "{pin.name}"',
            f'file = "{pin.file}"',
            f'sha256 = "{pin.sha256}"',
            f'key = "{pin.key}"',
            f"bytes = {len(_der(certificate))}",
            f"not_before = {certificate.not_valid_before_utc:%Y-%m-%d}",
            f"not_after = {certificate.not_valid_after_utc:%Y-%m-%d}",
            f'source = "{origin}"',
        ]
    for print_, (name, why) in EXCLUDED.items():
        lines += [
            "",
            "[[excluded]]",
            f'name = "{name}"',
            f'sha256 = "{print_}"',
            f'reason = "{why}"',
        ]
    for bundle, names in BUNDLES.items():
        lines += ["", f"[bundle.{bundle}]", "roots = ["]
        lines += [f'    "{name}",' for name in names] + ["]"]
    return "\n".join(lines) + "\n"


def read(folder: Path | None = None) -> dict[str, bytes]:
    """DER by name, of every root in certs/, after each is held against its pin."""
    folder = folder or certs_dir()
    try:
        listed = tomllib.loads((folder / "roots.toml").read_text())["root"]
        listed = [dict(entry) for entry in listed]
    except (OSError, KeyError, TypeError, ValueError):
        raise OutpostError(
            f"{folder / 'roots.toml'} is missing or damaged: run `make roots`."
        ) from None
    pins = {pin.name: pin for pin in PINS}
    roots = {}
    for entry in listed:
        pin = pins.get(entry.get("name"))
        if pin is None or entry.get("sha256") != pin.sha256 or entry.get("file") != pin.file:
            raise OutpostError(
                f"{folder / 'roots.toml'} lists {entry.get('name')!r} otherwise than pinned: "
                "run `make roots`."
            )
        certificates = _read_pem(folder / pin.file)
        if len(certificates) != 1 or sha256(certificates[0]) != pin.sha256:
            raise OutpostError(
                f"{folder / pin.file} is not {pin.name!r} by its fingerprint: run `make roots`."
            )
        roots[pin.name] = _der(certificates[0])
    missing = [pin.name for pin in PINS if pin.name not in roots]
    if missing:
        raise OutpostError(f"{folder} lacks {missing[0]!r}: run `make roots`.")
    return roots


def bundle(name: str, folder: Path | None = None) -> list[bytes]:
    """DER of the roots of one bundle, in its order."""
    if name not in BUNDLES:
        raise OutpostError(f"There is no bundle {name!r}; there is {', '.join(BUNDLES)}.")
    roots = read(folder)
    return [roots[member] for member in BUNDLES[name]]


def choose(names: Sequence[str], folder: Path | None = None) -> list[bytes]:
    """DER of bundles by name and of PEM or DER files by path, each root once."""
    chosen: list[bytes] = []
    for name in names:
        if name in BUNDLES:
            found = bundle(name, folder)
        elif Path(name).is_file():
            found = [_usable(cert, name) for cert in _read_pem(Path(name))]
        else:
            raise OutpostError(
                f"{name!r} is neither a file nor a bundle of roots ({', '.join(BUNDLES)})."
            )
        chosen += [root for root in found if root not in chosen]
    return chosen


def _usable(certificate: x509.Certificate, source: str) -> bytes:
    """DER of a root that a person brings; a sentence for what can never anchor a connection."""
    name = _common_name(certificate)
    if sha256(certificate) in EXCLUDED:
        raise OutpostError(f"{name} in {source} is kept out: {EXCLUDED[sha256(certificate)][1]}.")
    if certificate.not_valid_after_utc < dt.datetime.now(dt.UTC):
        raise OutpostError(
            f"{name} in {source} expired on {certificate.not_valid_after_utc:%Y-%m-%d}: "
            "no server with it can be verified."
        )
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        authority = constraints.ca
    except x509.ExtensionNotFound:
        authority = False
    if not authority or certificate.issuer != certificate.subject:
        raise OutpostError(
            f"{name} in {source} is not a root: leaf and intermediate pins are not supported."
        )
    return _der(certificate)


def pack(roots: Sequence[bytes]) -> bytes:
    """The device's file of roots: for each, its length in two bytes (big-endian) and the DER."""
    if not roots:
        raise OutpostError("An image needs at least one root: give --root.")
    if len(roots) > agreed.ROOTS_MAX:
        raise OutpostError(
            f"A device holds at most {agreed.ROOTS_MAX} roots; these are {len(roots)}."
        )
    packed = b"".join(len(root).to_bytes(2, "big") + root for root in roots)
    if len(packed) > agreed.ROOTS_MAX_BYTES:
        raise OutpostError(
            f"The roots are {len(packed)} bytes together; a device holds {agreed.ROOTS_MAX_BYTES}."
        )
    return packed
