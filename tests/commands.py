"""Signed commands as the tests need them: signers, and tokens made with a public JOSE library.

It owns no file. The keys here sign nothing but what a test makes.
"""

from __future__ import annotations

import base64
import json
import time
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwcrypto import jwk, jws

FLEET = "harbour"
DEVICE = "press-7"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Signer:
    def __init__(self, *roles: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.roles = roles or ("keys", "trust", "software")
        self.jwk = jwk.JWK.from_pyca(self.key)
        self.kid: str = self.jwk.thumbprint()

    @property
    def point(self) -> bytes:
        return self.key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )

    def token(self, payload: bytes, header: dict[str, Any] | None = None) -> str:
        made = jws.JWS(payload)
        protected = {"alg": "ES256", "kid": self.kid} if header is None else header
        made.add_signature(self.jwk, None, json.dumps(protected))
        return made.serialize(compact=True)

    def command(self, **changes: Any) -> str:
        return self.token(json.dumps(payload(**changes)).encode())


def payload(**changes: Any) -> dict[str, Any]:
    made = {
        "fleet": FLEET,
        "device": DEVICE,
        "role": "keys",
        "op": "status",
        "exp": int(time.time()) + 3600,
        "ctr": 1,
        "args": {},
    }
    return {name: value for name, value in (made | changes).items() if value is not ...}


def signers_json(*signers: Signer, fleet: str = FLEET) -> bytes:
    entries = [{"point": b64(s.point), "roles": list(s.roles)} for s in signers]
    return json.dumps({"fleet": fleet, "signers": entries}).encode()
