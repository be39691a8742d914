"""Signing keys of P-256: in a file under a passphrase (PKCS #8), or in a PKCS #11 token.

It owns how a passphrase or a token's PIN is come by: from a file, from an environment variable, or
asked for, never from the command line. A key that is in a token stays there: `TokenKey` hands it
the hash and gets the signature. Neither passphrase nor key is ever printed or logged.
"""

import getpass
import hashlib
import hmac
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7

from outpost_tools.errors import OutpostError
from outpost_tools.paths import write_whole

PASSPHRASE_MIN_CHARS = 12
PASSPHRASE_ENV = "OUTPOST_CA_PASSPHRASE"
PIN_ENV = "OUTPOST_CA_PIN"
SECRET_FILE_MAX_BYTES = 1024
KDF_ROUNDS = 600_000  # of PBKDF2 with SHA-256: OWASP's figure, a fraction of a second


def secret_of(what: str, file: Path | None, variable: str, again: bool = False) -> str:
    """A passphrase or a PIN: from the file, else the environment variable, else asked for."""
    if file is not None:
        try:
            if file.stat().st_size > SECRET_FILE_MAX_BYTES:
                raise OutpostError(f"{file} is too long for a {what}.")
            text = file.read_text().strip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise OutpostError(f"Cannot read the {what} in {file}.") from None
    elif variable in os.environ:
        text = os.environ[variable]
    elif not sys.stdin.isatty():
        raise OutpostError(
            f"There is nobody to ask for the {what}: give a file that holds it, or set {variable}."
        )
    else:
        text = getpass.getpass(f"The {what}: ")
        if again and getpass.getpass("Once more: ") != text:
            raise OutpostError(f"These are two different ones: the {what} was not taken.")
    if not text:
        raise OutpostError(f"The {what} is empty.")
    return text


def check_passphrase(text: str) -> str:
    """A passphrase for a new key: long enough that a stolen file is not yet a stolen key."""
    if len(text) < PASSPHRASE_MIN_CHARS:
        raise OutpostError(
            f"The passphrase needs at least {PASSPHRASE_MIN_CHARS} characters: it is all that "
            "keeps the key in a file that was copied."
        )
    return text


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def write_key(path: Path, key: ec.EllipticCurvePrivateKey, passphrase: str) -> None:
    """PKCS #8 under the passphrase, readable by its owner alone from its first byte on."""
    plain = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_whole(path, _locked(plain, passphrase))


def _locked(plain: bytes, passphrase: str) -> bytes:
    """PKCS #8 encrypted as PBES2: PBKDF2 with SHA-256, AES-256 in CBC mode.

    `cryptography` would take 2,048 rounds, which a stolen file's new owner tries quickly.
    """
    from asn1crypto import algos, core, keys, pem

    salt, vector = secrets.token_bytes(16), secrets.token_bytes(16)
    derived = hashlib.pbkdf2_hmac("sha256", passphrase.encode(), salt, KDF_ROUNDS, 32)
    padding = PKCS7(128).padder()
    encryptor = Cipher(AES(derived), CBC(vector)).encryptor()
    content = encryptor.update(padding.update(plain) + padding.finalize()) + encryptor.finalize()
    hashed = algos.HmacAlgorithm({"algorithm": "sha256", "parameters": core.Null()})
    kdf = {"algorithm": "pbkdf2"}
    kdf["parameters"] = algos.Pbkdf2Params(
        {
            "salt": algos.Pbkdf2Salt(name="specified", value=salt),
            "iteration_count": KDF_ROUNDS,
            "prf": hashed,
        }
    )
    cipher = {"algorithm": "aes256_cbc", "parameters": vector}
    scheme = {"key_derivation_func": kdf, "encryption_scheme": cipher}
    made = keys.EncryptedPrivateKeyInfo(
        {
            "encryption_algorithm": {"algorithm": "pbes2", "parameters": scheme},
            "encrypted_data": content,
        }
    )
    return pem.armor("ENCRYPTED PRIVATE KEY", made.dump())


def private_der(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as a record holds it: SEC 1, which every mbedtls reads."""
    return key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def plain_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A device's key for a file of its own, which must be its owner's alone: no passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def read_key(path: Path, passphrase: str) -> ec.EllipticCurvePrivateKey:
    try:
        content = path.read_bytes()
    except OSError as why:
        raise OutpostError(f"Cannot read the key {path} ({why.strerror}).") from None
    try:
        key = serialization.load_pem_private_key(content, passphrase.encode())
    except TypeError:
        raise OutpostError(f"The key in {path} has no passphrase: it is not one of ours.") from None
    except ValueError:
        raise OutpostError(f"{path} does not open: the passphrase is another one.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise OutpostError(f"The key in {path} is not of the curve P-256.")
    return key


@dataclass(frozen=True)
class TokenPlace:
    """Where a key is: the PKCS #11 library, the token's label, and the key's."""

    module: str
    token: str
    key: str

    def __str__(self) -> str:
        return f"the key {self.key!r} in the token {self.token!r}"


class TokenKey(ec.EllipticCurvePrivateKey):
    """A private key of P-256 that is in a token. It signs; it cannot be taken out."""

    def __init__(self, place: TokenPlace, private: Any, public: ec.EllipticCurvePublicKey) -> None:
        self._place, self._private, self._public = place, private, public

    def sign(self, data: Any, signature_algorithm: Any) -> bytes:
        from pkcs11 import Mechanism, PKCS11Error

        algorithm = signature_algorithm.algorithm
        if isinstance(algorithm, utils.Prehashed):
            digest = bytes(data)
        elif isinstance(algorithm, hashes.SHA256):
            digest = hashlib.sha256(data).digest()
        else:
            raise OutpostError("A token signs with SHA-256 here.")
        try:
            raw = self._private.sign(digest, mechanism=Mechanism.ECDSA)
        except PKCS11Error as why:
            raise OutpostError(f"{self._place} does not sign ({_said(why)}).") from None
        half = len(raw) // 2
        return utils.encode_dss_signature(
            int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
        )

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public.curve

    @property
    def key_size(self) -> int:
        return self._public.key_size

    def exchange(self, algorithm: Any, peer_public_key: Any) -> bytes:
        raise OutpostError(f"{self._place} is for signing alone.")

    def private_numbers(self) -> Any:
        raise OutpostError(f"{self._place} cannot be taken out.")

    def private_bytes(self, *_: Any, **__: Any) -> bytes:
        raise OutpostError(f"{self._place} cannot be taken out.")

    def __copy__(self) -> "TokenKey":
        return self

    def __deepcopy__(self, memo: Any) -> "TokenKey":
        return self

    def __repr__(self) -> str:
        return f"<TokenKey {self._place}>"


def _said(why: Exception) -> str:
    """A PKCS #11 error by its name: its text is often empty."""
    return str(why) or type(why).__name__


@dataclass
class _Login:
    session: Any
    pin: str = field(repr=False)
    users: int = 0


# A token knows one login for a whole process, so all that use one at the same time share it.
_logins: dict[tuple[str, str], _Login] = {}


@contextmanager
def _session(place: TokenPlace, pin: str, writing: bool) -> Iterator[Any]:
    at = (place.module, place.token)
    login = _logins.get(at)
    if login is None:
        login = _logins[at] = _Login(_log_in(place, pin, writing), pin)
    elif not hmac.compare_digest(login.pin, pin):
        raise OutpostError(f"The token {place.token!r} does not take that PIN.")
    login.users += 1
    try:
        yield login.session
    finally:
        login.users -= 1
        if not login.users:
            del _logins[at]
            login.session.close()


def _log_in(place: TokenPlace, pin: str, writing: bool) -> Any:
    import pkcs11

    try:
        library = pkcs11.lib(place.module)
    except (pkcs11.PKCS11Error, RuntimeError, OSError) as why:
        raise OutpostError(
            f"{place.module} is no PKCS #11 library that opens ({_said(why)})."
        ) from None
    try:
        token = library.get_token(token_label=place.token)
    except (pkcs11.NoSuchToken, pkcs11.MultipleTokensReturned) as why:
        many = isinstance(why, pkcs11.MultipleTokensReturned)
        raise OutpostError(
            f"There is {'more than one' if many else 'no'} token {place.token!r} behind "
            f"{place.module}: see `pkcs11-tool --list-slots`."
        ) from None
    try:
        return token.open(rw=writing, user_pin=pin)
    except pkcs11.PinIncorrect:
        raise OutpostError(f"The token {place.token!r} does not take that PIN.") from None
    except pkcs11.PKCS11Error as why:
        raise OutpostError(f"The token {place.token!r} does not open ({_said(why)}).") from None


@contextmanager
def token_key(place: TokenPlace, pin: str, make: bool = False) -> Iterator[TokenKey]:
    """The key, for as long as the block lasts; with `make` a new one, made in the token."""
    import pkcs11
    from pkcs11 import KeyType, ObjectClass

    with _session(place, pin, make) as session:
        wanted = {"label": place.key, "key_type": KeyType.EC}
        try:
            if make:
                if list(session.get_objects({pkcs11.Attribute.LABEL: place.key})):
                    raise OutpostError(f"There is {place} already: choose another label.")
                _make(session, place.key)
            private = session.get_key(object_class=ObjectClass.PRIVATE_KEY, **wanted)
            public = session.get_key(object_class=ObjectClass.PUBLIC_KEY, **wanted)
        except pkcs11.NoSuchKey:
            raise OutpostError(f"There is no {str(place).removeprefix('the ')}.") from None
        except pkcs11.PKCS11Error as why:
            raise OutpostError(f"{place} cannot be used ({_said(why)}).") from None
        yield TokenKey(place, private, _public(place, public))


def _make(session: Any, label: str) -> None:
    from pkcs11 import Attribute, KeyType
    from pkcs11.util.ec import encode_named_curve_parameters

    parameters = session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True
    )
    kept = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
    parameters.generate_keypair(
        store=True, label=label, id=secrets.token_bytes(8), private_template=kept
    )


def _public(place: TokenPlace, public: Any) -> ec.EllipticCurvePublicKey:
    from pkcs11.util.ec import encode_ec_public_key

    try:
        key = serialization.load_der_public_key(encode_ec_public_key(public))
    except ValueError:
        raise OutpostError(f"{place} cannot be read.") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise OutpostError(f"{place} is not of the curve P-256.")
    return key
