"""The fleet's signers: who may sign commands that change keys, trust or software on a device.

It owns the folder `signers/` in the data folder: signers.json, which names each signer, its public
point, its roles and where its key is, and the keys that are files (PKCS #8 under a passphrase); a
key in a PKCS #11 token stays there. Images carry the public part. A command's counter comes from
the fleet's book, which keeps it before it is given. Nothing here prints a secret.
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from outpost_tools import agreed, proof, vault
from outpost_tools.errors import OutpostError
from outpost_tools.fleet import Fleet
from outpost_tools.nvsimage import Identity
from outpost_tools.paths import private_dir, write_whole
from outpost_tools.trustdraft import Draft
from outpost_tools.vault import TokenPlace

FOLDER = "signers"
FORMAT = 1
LIFE_S = 3600
LIFE_MAX_S = 30 * 86400

Secret = Callable[[], str]


def b64(data: bytes) -> str:
    """base64url without padding, as every part of a JWS and a JWE."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def thumbprint(point: bytes) -> str:
    """RFC 7638: what a command names its signer by."""
    x, y = b64(point[1:33]), b64(point[33:])
    text = f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'
    return b64(hashlib.sha256(text.encode()).digest())


@dataclass(frozen=True)
class Signer:
    name: str
    point: bytes
    roles: tuple[str, ...]
    token: TokenPlace | None = None  # else the key is in the file NAME.key

    @property
    def kid(self) -> str:
        return thumbprint(self.point)


class Signers:
    """The signers in the folder `data`."""

    def __init__(self, data: Path) -> None:
        self.folder = Path(data) / FOLDER
        self._path = self.folder / "signers.json"

    def all(self) -> list[Signer]:
        try:
            content = json.loads(self._path.read_text())
            if content["format"] != FORMAT:
                raise OutpostError(f"{self._path} is of another format: use the newer `outpost`.")
            return [
                Signer(
                    one["name"],
                    base64.urlsafe_b64decode(one["point"] + "=="),
                    tuple(one["roles"]),
                    TokenPlace(**one["token"]) if one["token"] else None,
                )
                for one in content["signers"]
            ]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError):
            raise OutpostError(f"{self._path} is damaged: restore it from a copy.") from None

    def find(self, name: str) -> Signer:
        for signer in self.all():
            if signer.name == name:
                return signer
        raise OutpostError(f"There is no signer {name!r}: see `outpost sign list`.")

    def for_role(self, role: str) -> Signer:
        """The one signer for a role; where there are several, one has to be named."""
        found = [signer for signer in self.all() if role in signer.roles]
        if len(found) == 1:
            return found[0]
        if not found:
            raise OutpostError(
                f"No signer has the role {role!r}: make one with `outpost sign new NAME --role "
                f"{role}`, and build the images with it."
            )
        names = ", ".join(signer.name for signer in found)
        raise OutpostError(f"Several signers have the role {role!r} ({names}): name one.")

    def add(
        self, name: str, roles: Sequence[str], secret: Secret, token: TokenPlace | None = None
    ) -> Signer:
        """A new key for a signer. Boards know it once their image, or later their trust, has it."""
        there = self._check_new(name, roles)
        word = secret()
        private_dir(self.folder)
        if token is None:
            vault.check_passphrase(word)
            key: ec.EllipticCurvePrivateKey = vault.new_key()
            vault.write_key(self._key_file(name), key, word)
            point = proof.point(key.public_key(), "The signer's")
        else:
            with vault.token_key(token, word, make=True) as made:
                point = proof.point(made.public_key(), "The signer's")
        signer = Signer(name, point, tuple(roles), token)
        self._write([*there, signer])
        return signer

    def _check_new(self, name: str, roles: Sequence[str]) -> list[Signer]:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", name):
            raise OutpostError(f"{name!r} cannot name a signer: 1 to 32 letters, digits and _ -")
        if not roles or set(roles) - set(agreed.COMMAND_ROLES):
            raise OutpostError(f"A signer has one or more of: {', '.join(agreed.COMMAND_ROLES)}.")
        there = self.all()
        if any(signer.name == name for signer in there) or self._key_file(name).exists():
            raise OutpostError(f"There is a signer {name!r} already: choose another name.")
        if len(there) >= agreed.SIGNERS_MAX:
            raise OutpostError(f"A fleet has at most {agreed.SIGNERS_MAX} signers.")
        return there

    def _key_file(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def _write(self, signers: Sequence[Signer]) -> None:
        rows = [
            {
                "name": signer.name,
                "point": b64(signer.point),
                "roles": list(signer.roles),
                "token": asdict(signer.token) if signer.token else None,
            }
            for signer in signers
        ]
        content = json.dumps({"format": FORMAT, "signers": rows}, indent=1)
        write_whole(self._path, content.encode() + b"\n")

    def for_devices(self, fleet: str) -> bytes | None:
        """/trust/signers.json of every image of the fleet; None while there is no signer."""
        signers = self.all()
        if not signers:
            return None
        rows = [{"point": b64(one.point), "roles": list(one.roles)} for one in signers]
        content = json.dumps({"fleet": fleet, "signers": rows}).encode()
        assert len(content) <= agreed.SIGNERS_MAX_BYTES
        return content

    @contextmanager
    def unlocked(self, signer: Signer, secret: Secret) -> Iterator["Pen"]:
        """The signer ready to sign, for as long as the block lasts."""
        if signer.token is not None:
            with vault.token_key(signer.token, secret()) as held:
                yield Pen(signer, held)
        else:
            yield Pen(signer, vault.read_key(self._key_file(signer.name), secret()))


class Pen:
    """A signer whose key is at hand."""

    def __init__(self, signer: Signer, key: ec.EllipticCurvePrivateKey) -> None:
        if proof.point(key.public_key(), "The signer's") != signer.point:
            raise OutpostError(f"The key of {signer.name!r} is another one than signers.json says.")
        self.signer, self._key = signer, key

    def command(
        self,
        fleet: Fleet,
        device_id: str,
        role: str,
        op: str,
        args: dict[str, Any],
        life_s: float = LIFE_S,
    ) -> str:
        """One signed command, with a counter that no other command has or had."""
        if role not in self.signer.roles:
            raise OutpostError(f"The signer {self.signer.name!r} may not sign for {role!r}.")
        if not 1 <= life_s <= LIFE_MAX_S:
            raise OutpostError("A command lives from one second to 30 days.")
        token = self.sign(
            {
                "fleet": fleet.name,
                "device": device_id,
                "role": role,
                "op": op,
                "exp": int(time.time() + life_s),
                "ctr": fleet.next_counter(role),
                "args": args,
            }
        )
        if len(token) > agreed.COMMAND_MAX_BYTES:
            raise OutpostError(
                f"The command has {len(token)} bytes; a device takes {agreed.COMMAND_MAX_BYTES}."
            )
        return token

    def endorse(self, draft: Draft) -> Draft:
        """A trust bundle's draft with this signer's signature too."""
        if "trust" not in self.signer.roles:
            raise OutpostError(f"The signer {self.signer.name!r} may not sign for trust.")
        return draft.signed(self._key, self.signer.name)

    def sign(self, payload: dict[str, Any]) -> str:
        """A JWS in compact form, ES256."""
        header = {"alg": "ES256", "kid": self.signer.kid}
        parts = [json.dumps(part, separators=(",", ":")).encode() for part in (header, payload)]
        text = ".".join(map(b64, parts))
        der = self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
        r, s = utils.decode_dss_signature(der)
        return f"{text}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def sealed_key(device: Identity) -> tuple[Identity, bytes]:
    """The identity with a key that a stock board opens sealed secrets with, and its public point.

    It is made here and written into that image alone, as a stock board's other keys are.
    """
    key = vault.new_key()
    private = key.private_numbers().private_value.to_bytes(32, "big")
    return replace(device, seal=private), proof.point(key.public_key(), "The sealing")
