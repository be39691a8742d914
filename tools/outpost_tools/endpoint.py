"""Where devices connect, and whether devices with certain roots will connect there as it is now.

The answer is the audit's (audit/), in short: about a dozen handshakes, and nothing else is sent.
It owns how an endpoint is written, HOST or HOST:PORT.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from outpost_tools.audit import Target, Verdict, verdict
from outpost_tools.errors import OutpostError

PORT = 8883
PATIENCE_S = 5.0


@dataclass(frozen=True)
class Endpoint:
    """host is the name that the certificate must have; address is where it is, if elsewhere."""

    host: str
    port: int = PORT
    address: str | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Seen:
    """What an endpoint shows, held against some roots."""

    endpoint: Endpoint
    verdict: Verdict

    @property
    def good(self) -> bool:
        return self.verdict.connects

    @property
    def why(self) -> str:
        """Empty where devices with these roots connect, else what stops them."""
        return " ".join(self.verdict.stops)

    @property
    def roots(self) -> list[str]:
        """Names of the roots that carry the chains that it shows."""
        found = [one.root.name for one in self.verdict.judgements if one.root]
        return list(dict.fromkeys(found))

    @property
    def ends(self) -> dt.datetime | None:
        """When the first certificate of its chains expires."""
        paths = [one for judged in self.verdict.judgements for one in judged.path]
        return min((one.x509.not_valid_after_utc for one in paths), default=None)


def split(text: str) -> tuple[str, int | None]:
    """Host and port of HOST, HOST:PORT, [V6] or [V6]:PORT."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port, whole = rest.removeprefix(":"), bool(bracket) and rest[:1] in ("", ":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        rest, whole = f":{port}", True
    else:
        host, rest, port, whole = text, "", "", True
    good = whole and 0 < len(host) <= 253 and host.isascii() and host.isprintable()
    if not good or set(host) & {"/", " ", "@"}:
        raise OutpostError(
            f"{text!r} is no endpoint: give it as HOST or HOST:PORT, without a scheme."
        )
    if rest and not (
        port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536
    ):
        raise OutpostError(f"{port!r} is not a port: give 1 to 65535, as HOST:PORT.")
    return host, int(port) if rest else None


def parse(text: str) -> Endpoint:
    """HOST or HOST:PORT; the port is that of MQTT over TLS unless it is said."""
    host, port = split(text)
    return Endpoint(host, port or PORT)


def look(
    endpoint: Endpoint,
    roots: Sequence[bytes],
    *,
    ecc_only: bool = False,
    dated: bool = True,
    patience_s: float = PATIENCE_S,
) -> Seen:
    """Ask it as devices with these roots (DER) would. NotAsked where there is nobody to ask.

    dated  whether dates count: at a recovery endpoint they do not
    """
    where = endpoint.address or endpoint.host
    target = Target(where, endpoint.port, endpoint.host, patience_s, 18 * patience_s)
    # Whether a device has a certificate to show does not depend on its roots.
    policy = "ecc" if ecc_only else "all"
    return Seen(endpoint, verdict(target, roots, policy, with_certificate=True, dated=dated))
