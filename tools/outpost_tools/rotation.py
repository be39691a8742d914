"""New keys for a device over the air, in two phases: the old ones work until the new have.

It owns the order of the steps, and keeps where it stands in the fleet's book before each, so that a
run that was killed is taken up by the next one. The hub comes first (it takes old and new), then
the device tries the new key, and only the device's connection with it retires the old one. What the
host believes of a device is what was remembered when it was provisioned: its born key seals what is
sent to it and endorses what it asks for. In an emergency the old keys are forbidden first, and the
device comes in by its born certificate. docs/rotation.md has it by task. No secret is kept or
printed: a new symmetric key is at the hub and, sealed, under way.
"""

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from jwcrypto import jwe, jwk

from outpost_tools import agreed, proof
from outpost_tools.errors import OutpostError
from outpost_tools.fleet import Fleet, Known
from outpost_tools.provision import Issue, check_key_is_alone
from outpost_tools.registry import new_key
from outpost_tools.rotationhub import HubSide, Way, key_id
from outpost_tools.signing import Pen, b64

SYMMETRIC, X509 = "symmetric", "x509"
Plain = str | int | None
KINDS = {agreed.RECORD_SYMMETRIC: SYMMETRIC, agreed.RECORD_X509: X509}
PATIENCE_S = 180.0
POLL_S = 1.0
TRIES = 5  # of one command
TRIAL_S = 600  # for so long the device keeps a key that is refused


@dataclass(frozen=True)
class Rotated:
    device_id: str
    kind: str
    key: str  # key id or thumbprint of the new one: both are public
    emergency: bool


class Rotator:
    """Rotates the keys of one device after another.

    issue  gives the certificate chain for a device's request; needed for X.509 alone
    say    is told each step in a sentence
    """

    def __init__(
        self,
        fleet: Fleet,
        hub: HubSide,
        pen: Pen,
        issue: Callable[[str], Issue] | None = None,
        *,
        say: Callable[[str], None] = lambda text: None,
        patience_s: float = PATIENCE_S,
        poll_s: float = POLL_S,
    ) -> None:
        self._fleet, self._hub, self._pen, self._issue = fleet, hub, pen, issue
        self._say, self._patience_s, self._poll_s = say, patience_s, poll_s

    def rotate(
        self, device_id: str, *, emergency: bool = False, kind: str | None = None
    ) -> Rotated:
        """One device, from where the last run stood to its end; OutpostError where it stops."""
        known = self._known(device_id)
        with self._fleet.alone(device_id):
            return self._rotate(known, emergency, kind)

    def _rotate(self, known: Known, emergency: bool, kind: str | None) -> Rotated:
        device_id = known.device_id
        standing = self._fleet.rotation(device_id)
        if standing and standing.detail.get("emergency"):
            emergency = True
        run = _Run(self, known, emergency)
        if emergency:
            return run.emergency(kind or (standing.kind or None if standing else None), standing)
        facts = run.facts()
        found = KINDS.get(facts.get("kind", 0))
        if found is None or (kind and kind != found):
            raise OutpostError(
                f"{device_id} has keys of another kind than {kind or 'those that can be rotated'}: "
                "only an emergency rotation changes the kind."
            )
        detail = dict(standing.detail) if standing else {}
        return run.symmetric(facts, detail) if found == SYMMETRIC else run.x509(facts, detail)

    def due(self, device_id: str, patience_s: float = 1) -> str | None:
        """Why the device says that its keys are due: "age", "expiry" or None."""
        facts = _Run(self, self._known(device_id), False).facts(patience_s)
        return facts.get("due") if facts.get("due") in ("age", "expiry") else None

    def _known(self, device_id: str) -> Known:
        known = self._fleet.find(device_id)
        if known is None or known.born_point is None:
            raise OutpostError(
                f"No born key is known of {device_id!r}, so nothing can be sealed to it: provision "
                "it once with `outpost provision`, or build its image with --seal-key."
            )
        return known


class _Run:
    """One device's rotation under way."""

    def __init__(self, rotator: Rotator, known: Known, emergency: bool) -> None:
        assert known.born_point is not None
        self._r, self._known, self._emergency = rotator, known, emergency
        self._id, self._born = known.device_id, known.born_point
        self._fleet, self._hub, self._say = rotator._fleet, rotator._hub, rotator._say

    # What both sides say

    def facts(self, patience_s: float | None = None) -> dict[str, Any]:
        patience_s = self._r._patience_s if patience_s is None else patience_s
        status, said = self._hub.ask(self._id, agreed.IDENTITY_METHOD, None, patience_s)
        good = status == 200 and isinstance(said, dict) and said.get("device") == self._id
        if not good or not all(isinstance(v, Plain) for v in said.values()):
            raise OutpostError(
                f"{self._id} does not say which keys it has ({status}): does it run Outpost?"
            )
        return said

    def _command(self, op: str, **args: Any) -> tuple[dict[str, Any], int]:
        """(the device's answer, the command's counter); OutpostError when it refuses."""
        for _ in range(TRIES):
            token = self._r._pen.command(self._fleet, self._id, "keys", op, args)
            status, said = self._hub.ask(
                self._id, agreed.COMMAND_METHOD, token, self._r._patience_s
            )
            if status == 200 and isinstance(said, dict):
                payload = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
                return said, payload["ctr"]
            why = said.get("error") if isinstance(said, dict) else None
            text = why if isinstance(why, str) and why.isprintable() else f"status {status}"
            # Its answer was lost on the way, and the hub's own repetition got this one; or the
            # board's memory was in pieces just then. Every command may be given twice.
            if "taken before" not in text and "memory" not in text:
                break
            time.sleep(self._r._poll_s)
        raise OutpostError(f"{self._id} did not do keys.{op}: {text[:300]}")

    def _keep(self, kind: str, phase: str, **detail: Any) -> None:
        self._fleet.rotating(self._id, kind, phase, emergency=self._emergency, **detail)

    def _wait_for(self, key: str) -> None:
        """Until the device says that it uses that key: only then the old one goes."""
        ends = time.monotonic() + self._r._patience_s
        with self._patience(ends):
            while True:
                facts = self.facts(max(1.0, ends - time.monotonic()))
                if facts.get("key") == key:
                    return
                if facts.get("dropped") == key:
                    raise OutpostError(
                        f"{self._id} tried the new key, was refused and dropped it; its old keys "
                        "work. Try again."
                    )
                if time.monotonic() > ends:
                    state = "it was refused so far" if facts.get("refused") else "it has not yet"
                    raise OutpostError(
                        f"{self._id} did not connect with the new key in time ({state}): old and "
                        "new both stay. Run the same command again to go on."
                    )
                time.sleep(self._r._poll_s)

    @contextmanager
    def _patience(self, ends: float) -> Iterator[None]:
        try:
            yield
        except OutpostError as why:
            if time.monotonic() < ends or "Run the same" in str(why):
                raise
            raise OutpostError(f"{why} Run the same command again to go on.") from None

    def _done(self, kind: str, key: str) -> Rotated:
        self._fleet.rotated(self._id)
        self._say(f"{self._id}: the new key is the only one now.")
        return Rotated(self._id, kind, key, self._emergency)

    # Symmetric keys

    def _seal(self, **keys: str) -> str:
        """The keys (base64) as a JWE that only the device's born key opens."""
        plain = {"device": self._id} | {
            name: b64(base64.b64decode(key)) for name, key in keys.items()
        }
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), self._born)
        token = jwe.JWE(
            json.dumps(plain).encode(), json.dumps({"alg": "ECDH-ES", "enc": "A128CBC-HS256"})
        )
        token.add_recipient(jwk.JWK.from_pyca(point))
        return str(token.serialize(compact=True))

    def symmetric(self, facts: dict[str, Any], detail: dict[str, Any]) -> Rotated:
        way = self._hub.way(self._id)
        if way.auth != "sas":
            raise OutpostError(
                f"The hub knows {self._id} by a certificate, but it uses a symmetric key: an "
                "emergency rotation puts that right."
            )
        by_id = {key_id(key): key for key in way.values if key}
        used = facts.get("key")
        fresh = detail.get("new")
        if fresh in by_id and used == fresh:
            return self._retire(by_id[fresh])
        if used not in by_id and facts.get("secondary") in by_id:
            used = facts["secondary"]  # its primary is not the hub's any more
        if used not in by_id:
            raise OutpostError(
                f"{self._id} uses a key that the hub does not have for it: nothing was changed."
            )
        if fresh in by_id:
            new = by_id[fresh]
        else:
            new = new_key()
            # In the book first: a key at the hub that the book does not name is written over.
            self._keep(SYMMETRIC, "at the hub", new=key_id(new))
            self._hub.change(self._id, way.with_other(by_id[used], new))
            self._say(f"{self._id}: the hub takes the old key and a new one.")
        self._offer(new, eager=True)
        self._wait_for(key_id(new))
        return self._retire(new)

    def _offer(self, new: str, eager: bool) -> None:
        said, _ = self._command("symmetric", jwe=self._seal(primary=new), wait=TRIAL_S, eager=eager)
        # Only who opened it can name it.
        if said.get("key") != key_id(new):
            raise OutpostError(f"{self._id} did not open the new key: nothing was retired.")
        self._say(f"{self._id}: the device has the new key, and tries it.")

    def _retire(self, new: str) -> Rotated:
        """The device connected with the new key: both old ones go, at the hub first."""
        way = self._hub.way(self._id)
        second = way.second if way.first == new and self._phase() == "retired" else new_key()
        if (way.first, way.second) != (new, second):
            self._hub.change(self._id, Way("sas", new, second))
            self._keep(SYMMETRIC, "retired", new=key_id(new))
        self._command("secondary", jwe=self._seal(primary=new, secondary=second))
        return self._done(SYMMETRIC, key_id(new))

    def _phase(self) -> str:
        standing = self._fleet.rotation(self._id)
        return standing.phase if standing else ""

    # Certificates

    def x509(self, facts: dict[str, Any], detail: dict[str, Any]) -> Rotated:
        way = self._hub.way(self._id)
        if way.auth == "sas":
            raise OutpostError(
                f"The hub knows {self._id} by symmetric keys, but it uses a certificate: an "
                "emergency rotation puts that right."
            )
        fresh = detail.get("new")
        used = facts.get("key")
        if not fresh or fresh not in (used, facts.get("trial")):
            if way.auth == "selfSigned" and not self._emergency and used not in way.values:
                raise OutpostError(
                    f"{self._id} uses a certificate that the hub does not know: nothing was "
                    "changed."
                )
            if (
                self._emergency or facts.get("credential") == "born"
            ) and self._known.born_thumbprint:
                used = self._known.born_thumbprint  # what it came in by is what must stay
            fresh = self._new_certificate(way, str(used))
        self._wait_for(fresh)
        if way.auth == "selfSigned":
            born = self._known.born_thumbprint
            self._hub.change(self._id, Way("selfSigned", fresh, born or ""))
        self._fleet.in_use(self._id, fresh)
        return self._done(X509, fresh)

    def _new_certificate(self, way: Way, used: str) -> str:
        """Thumbprint of a new certificate that hub and device have; the old one stays."""
        if self._r._issue is None:
            raise OutpostError(f"{self._id} needs a certificate: say which CA signs it, with --ca.")
        said, counter = self._command("request")
        csr = self._endorsed(said, counter)
        asked = proof.point(proof.read_request(csr, self._id).public_key(), "The request's")
        check_key_is_alone(self._fleet, self._id, asked)
        if asked == self._born:
            raise OutpostError(f"{self._id} asks with its born key: nothing was signed.")
        chain = self._r._issue(self._id)(csr)
        proof.check_chain(chain, self._id, asked)
        packed = proof.pack_chain(chain)
        fresh = self._fleet.issued(self._id, packed).thumbprint
        self._keep(X509, "issued", new=fresh)
        if way.auth == "selfSigned":
            self._hub.change(self._id, Way("selfSigned", used, fresh))
        self._say(f"{self._id}: the hub takes the old certificate and a new one.")
        self._command("certificate", chain=b64(packed), wait=TRIAL_S)
        self._say(f"{self._id}: the device has the new certificate, and tries it.")
        return fresh

    def _endorsed(self, said: dict[str, Any], counter: int) -> bytes:
        """The request, once its endorsement by the born key is seen to be right."""
        try:
            csr, raw = (
                base64.urlsafe_b64decode(said[name] + "==") for name in ("csr", "endorsement")
            )
            x509.load_der_x509_csr(csr)
            if len(raw) != 64:
                raise ValueError
            der = utils.encode_dss_signature(
                int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
            )
            text = agreed.ENDORSEMENT % (self._fleet.name, self._id, counter)
            public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), self._born)
            public.verify(der, text.encode() + csr, ec.ECDSA(hashes.SHA256()))
        except (KeyError, TypeError, ValueError, InvalidSignature):
            raise OutpostError(
                f"The request is not endorsed by the key that {self._id} was born with: it may "
                "come from whoever has its TLS key. Nothing was signed."
            ) from None
        return csr

    # Emergency

    def emergency(self, kind: str | None, standing: Any) -> Rotated:
        """Forbid the old keys at once, let the device in by its born certificate, and go on."""
        born = self._known.born_thumbprint
        if born is None:
            raise OutpostError(
                f"No born certificate is known of {self._id}, so there is no other way in for it: "
                f"forbid its keys with `outpost device disable {self._id}`, and give the board "
                "new ones by hand."
            )
        if standing and not standing.detail.get("emergency"):
            standing = None  # of a normal one that stopped: its new key may be the stolen one
        way = self._hub.way(self._id)
        if standing and standing.phase in ("storing", "stored") and way.auth == "sas":
            new = next((k for k in way.values if k and key_id(k) == standing.detail["new"]), None)
            if new is not None:
                if standing.phase == "storing":
                    self._store(new, way)
                return self._finish_symmetric(new)
        if not self._locked(way, born, standing):
            # In two steps: a device that a killed run left cut off is let in by the next one, and
            # one that somebody disabled is not.
            self._keep(kind or "", "locking")
            self._hub.change(self._id, Way("selfSigned", born), cut=True)
            self._keep(kind or "", "locked")
            self._say(f"{self._id}: its old keys are forbidden; it comes in by its born key.")
        elif not way.enabled:
            raise OutpostError(
                f"{self._id} is disabled at the hub: `outpost device enable {self._id}` first."
            )
        facts = self.facts()
        kind = kind or KINDS.get(facts.get("kind", 0), SYMMETRIC)
        if kind == X509:
            return self.x509(facts, dict(standing.detail) if standing else {})
        new = new_key()
        self._offer(new, eager=False)
        self._store(new, Way("sas", new, new_key()))
        return self._finish_symmetric(new)

    def _store(self, new: str, way: Way) -> None:
        """The hub takes the new key and nothing else, and whoever is connected is thrown out."""
        self._keep(SYMMETRIC, "storing", new=key_id(new))
        self._hub.change(self._id, replace(way, enabled=True), cut=True)
        self._keep(SYMMETRIC, "stored", new=key_id(new))

    def _locked(self, way: Way, born: str, standing: Any) -> bool:
        """Whether a run before has forbidden all but the born certificate and the new one."""
        allowed = {born, standing.detail.get("new") if standing else None, ""}
        return bool(
            standing
            and standing.phase != "locking"
            and way.auth == "selfSigned"
            and born in way.values
            and set(way.values) <= allowed
        )

    def _finish_symmetric(self, new: str) -> Rotated:
        try:
            self._wait_for(key_id(new))
        except OutpostError:
            # It may have lost the new key: the next run lets it in by its born key again.
            self._keep(SYMMETRIC, "locked")
            raise
        return self._retire(new)
