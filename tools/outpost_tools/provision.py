"""Provisioning one board: its request is read, judged, signed, and the certificate written back.

The board makes its keys itself, and none ever comes here; an unmodified MicroPython cannot, and
gets a key that is made here, which is the weaker way (`Result.made_on` says so). It owns the order
of the steps: nothing is written to the board or to the registry before all that can be checked is,
and a board that refuses its certificate leaves the registry as it was.
"""

import base64
import binascii
import datetime as dt
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from outpost_tools import bulk, proof, vault
from outpost_tools.books import Book
from outpost_tools.ca import FleetCA, Signer
from outpost_tools.errors import OutpostError
from outpost_tools.fleet import Fleet, first_der, point_of
from outpost_tools.registry import Registry, thumbprints
from outpost_tools.repl import Prompt

By = Literal["thumbprint", "ca"]
WEAKER = (
    "this MicroPython makes no keys, so the device's key was made on this machine: whoever reads "
    "this machine or the port could have it. That is the weaker way; our firmware makes its own."
)
# How many characters of base64 go to the board in one piece: its raw prompt compiles each whole.
PIECE_CHARS = 512

_ASK = """
try:
    import outpost.agreed
except ImportError:
    print('none')
else:
    try:
        import tlspolicy
        print('device')
    except ImportError:
        print('host')
"""
_REQUEST = """
import binascii
from outpost import provision
print(binascii.b2a_base64(provision.csr(%r)).decode().strip())
print(binascii.b2a_base64(provision.born()).decode().strip())
"""
_INSTALL = """
from outpost import provision
provision.install(bytes(_held), %d)
"""
# A stock board has no slot for a key: it lies beside the chain, in the record.
_INSTALL_BOTH = """
from outpost import agreed, identity, keystore
_s = keystore.Store()
_id = identity.device_id(_s.nvs, %(device)r)
if _id != %(device)r:
    raise identity.IdentityError('this board is ' + _id + ', not ' + %(device)r)
if keystore.blob(_s.nvs, agreed.NVS_DEVICE_ID, (agreed.DEVICE_ID_MAX,)) is None:
    keystore.write(
        lambda: (_s.nvs.set_blob(agreed.NVS_DEVICE_ID, _id.encode()), _s.nvs.commit())
    )
_first = _s.current() is None and not identity.Identity(_id, _s, '').credentials()
_s.candidate(keystore.Record(agreed.RECORD_X509, chain=bytes(_held[:%(chain)d]),
                             private=bytes(_held[%(chain)d:])))
if _first:
    _s.commit()
"""


@dataclass(frozen=True)
class Request:
    """What a board gave: its request, and the certificate of the key it was born with."""

    device_id: str
    der: bytes
    born: bytes

    @property
    def pem(self) -> bytes:
        return x509.load_der_x509_csr(self.der).public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True)
class Result:
    device_id: str
    made_on: str  # "device", or "host" for the weaker way
    chain: list[x509.Certificate]
    place: str  # where it is registered

    @property
    def thumbprint(self) -> str:
        return thumbprints(self.chain[0].public_bytes(serialization.Encoding.DER))[0]


def makes_keys(prompt: Prompt) -> bool:
    """Whether the board makes its own keys; OutpostError where it has no Outpost at all."""
    said = prompt.run(_ASK).strip()
    if said not in ("device", "host"):
        raise OutpostError(
            "The board has no Outpost library: flash its image first (`outpost image`)."
        )
    return said == "device"


def read_request(prompt: Prompt, device_id: str) -> Request:
    """The board's request and born certificate, both judged."""
    lines = prompt.run(_REQUEST % device_id).split()
    try:
        der, born = (base64.b64decode(line, validate=True) for line in lines)
    except (ValueError, binascii.Error):
        raise OutpostError("The board's answer is no request: try again.") from None
    proof.read_request(der, device_id)
    point_of(born)
    certificate = x509.load_der_x509_certificate(born)
    try:
        certificate.verify_directly_issued_by(certificate)
    except Exception:
        raise OutpostError("The board's born certificate is not signed with its key.") from None
    if proof.common_name(certificate.subject) != device_id:
        raise OutpostError(f"The board's born certificate is not for {device_id!r}.")
    return Request(device_id, der, born)


def check_key_is_alone(fleet: Fleet, device_id: str, point: bytes) -> None:
    """No two devices have the same key: a copied NVS is found here."""
    for known in fleet.devices():
        if known.device_id != device_id and known.born_point == point:
            raise OutpostError(
                f"This key is the born key of {known.device_id!r}: nothing was signed."
            )
    for one in fleet.certificates():
        if one.device_id != device_id and point_of(first_der(one.chain)) == point:
            raise OutpostError(f"This key is that of {one.device_id!r}: nothing was signed.")


def _send(prompt: Prompt, data: bytes) -> None:
    """Put bytes into `_held` on the board, in pieces that its prompt takes."""
    prompt.run("import binascii\n_held = bytearray()")
    text = base64.b64encode(data).decode()
    for start in range(0, len(text), PIECE_CHARS):
        prompt.run(f"_held.extend(binascii.a2b_base64('{text[start : start + PIECE_CHARS]}'))")


def _forget(prompt: Prompt) -> None:
    with suppress(OutpostError):
        prompt.run("_held = None\nimport gc\ngc.collect()")


Issue = Callable[[bytes], list[x509.Certificate]]


def provision(
    prompt: Prompt,
    device_id: str,
    fleet: Fleet,
    book: Book,
    issue: Issue,
    by: By = "thumbprint",
    replace: bool = False,
) -> Result:
    """One board from its request to its entry in the registry.

    `issue` gives the chain for a request in DER: a CA's of ours, or one that was signed elsewhere.
    `replace` takes a board with another born key for the device: the old board is gone.
    """
    proof.check_common_name(device_id)
    own = makes_keys(prompt)
    private = b""
    born = None
    if own:
        request = read_request(prompt, device_id)
        der, born = request.der, request.born
    else:
        key = vault.new_key()
        der, private = _host_request(device_id, key)
    asked = proof.point(x509.load_der_x509_csr(der).public_key(), "The request's")
    check_key_is_alone(fleet, device_id, asked)
    if born is not None:
        check_key_is_alone(fleet, device_id, point_of(born))
        known = fleet.born(device_id)
        if known not in (None, point_of(born)) and not replace:
            raise OutpostError(
                f"This board has another born key than {device_id} had: it is another board, or "
                "its NVS was erased. Where that is so, say --replace."
            )
    chain = issue(der)
    proof.check_chain(chain, device_id, asked)
    packed = proof.pack_chain(chain)
    fleet.remember(
        device_id, born_certificate=born, made_on="device" if own else "host", replace=replace
    )
    kept = fleet.issued(device_id, packed)
    undo = _register(book, device_id, by, kept.thumbprint, born)
    try:
        _send(prompt, packed + private)
        now = int(time.time())
        prompt.run(
            _INSTALL % now if own else _INSTALL_BOTH % {"device": device_id, "chain": len(packed)}
        )
    except BaseException:
        undo()
        raise
    finally:
        _forget(prompt)
    fleet.in_use(device_id, kept.thumbprint)
    return Result(device_id, "device" if own else "host", chain, book.place)


def _host_request(device_id: str, key: ec.EllipticCurvePrivateKey) -> tuple[bytes, bytes]:
    """A request, and the key in the form that the record holds."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.DER), vault.private_der(key)


def signed_by(signer: Signer, device_id: str, days: int) -> Issue:
    return lambda der: signer.request(der, device_id, days)


def signed_elsewhere(path: Path) -> Issue:
    """The chain in a file (PEM or DER), which another CA made of a request that we gave it."""
    try:
        content = path.read_bytes()
    except OSError as why:
        raise OutpostError(f"Cannot read {path} ({why.strerror}).") from None
    chain = proof.read_chain(content)
    return lambda _: chain


def entry(
    device_id: str, by: By, thumbprint: str, born_thumbprint: str | None = None
) -> dict[str, Any]:
    """The device's line in IoT Hub's bulk form. The born certificate is its way in when the other
    one is forbidden, so it takes the second place."""
    if by == "ca":
        authentication: dict[str, Any] = {"type": "certificateAuthority"}
    else:
        prints = {"primaryThumbprint": thumbprint}
        if born_thumbprint:
            prints["secondaryThumbprint"] = born_thumbprint
        authentication = {"type": "selfSigned", "x509Thumbprint": prints}
    return {"id": device_id, "status": "enabled", "authentication": authentication}


def _register(
    book: Book, device_id: str, by: By, thumbprint: str, born: bytes | None
) -> Callable[[], None]:
    """Put the device into the registry; gives what undoes that."""
    before = next((row for row in book.rows() if row["device"] == device_id), None)
    restore: dict[str, Any] = {}
    if before is not None:
        restore = {"id": device_id, "importMode": "update", "status": before["status"]}
        restore["authentication"] = _before(book, device_id, before)
    made = entry(device_id, by, thumbprint, thumbprints(born)[0] if born else None)
    if before is not None:
        made["status"] = before["status"]
    _take(book, made)

    def undo() -> None:
        if before is None:
            book.remove(device_id)
        else:
            _take(book, restore)

    return undo


def _before(book: Book, device_id: str, row: dict[str, Any]) -> dict[str, Any]:
    if row["auth"] == "sas":
        primary, secondary = book.secrets(device_id)
        return {
            "type": "sas",
            "symmetricKey": {"primaryKey": primary, "secondaryKey": secondary},
        }
    shown = book.show(device_id)
    prints = {
        name: shown[name]
        for name in ("primaryThumbprint", "secondaryThumbprint")
        if shown.get(name)
    }
    return {"type": row["auth"], "x509Thumbprint": prints}


def _take(book: Book, one: dict[str, Any]) -> None:
    for why in book.take([bulk.check(one)]).values():
        raise OutpostError(f"The registry does not take the device: {why}")


def trust_ca(data: Path, ca: FleetCA) -> str:
    """Let the local hub take the devices of the CA; gives the authority's name."""
    with Registry(data) as registry:
        for name, certificate in registry.authorities().items():
            if certificate == ca.root:
                return name
        der = ca.root.public_bytes(serialization.Encoding.DER)
        name = f"fleet-{thumbprints(der)[0][:8].lower()}"
        registry.add_authority(name, ca.root_pem)
        return name


def until(chain: list[x509.Certificate]) -> dt.datetime:
    return chain[0].not_valid_after_utc
