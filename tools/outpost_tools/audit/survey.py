"""All the questions of an audit, in order, and what the answers mean for a device.

About thirty connections, one after the other, each with a deadline; a server that leaves several
in a row without an answer is not asked further, and what was not asked is reported as unknown. It
owns no socket, no file and no clock but the one that it is given.
"""

import datetime as dt
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from outpost_tools import agreed
from outpost_tools.audit import chain as chains
from outpost_tools.audit import hello as hellos
from outpost_tools.audit import suites as table
from outpost_tools.audit.finish import finish
from outpost_tools.audit.suites import Suite
from outpost_tools.audit.wire import Flight, ask
from outpost_tools.errors import OutpostError

VERSIONS = {
    "TLSv1.0": hellos.TLS_1_0,
    "TLSv1.1": hellos.TLS_1_1,
    "TLSv1.2": hellos.TLS_1_2,
    "TLSv1.3": hellos.TLS_1_3,
}
SILENT_IN_A_ROW = 3
POLICIES = {"all": table.OFFERED, "ecc": table.DESIGN_ECC}


class NotAsked(OutpostError):
    """The endpoint could not be asked: nothing is known of it."""


@dataclass(frozen=True)
class Target:
    """Where to connect, and the name that devices ask for and verify."""

    host: str
    port: int
    sni: str
    patience_s: float = 5.0
    limit_s: float = 90.0


@dataclass
class Size:
    """What came of asking for one record size (None: for none)."""

    asked: int | None
    granted: int | None = None
    largest: int = 0
    answered: bool = False
    why: str = ""

    @property
    def kept(self) -> bool | None:
        """Whether its records kept to what it granted; None: nothing granted, or none was long."""
        if self.granted is None:
            return None
        if self.largest > self.granted:
            return False
        # A record cut at the size shows that it is kept; shorter messages show nothing.
        return True if self.largest == self.granted else None

    @property
    def usable(self) -> bool:
        """A device that asks for this gets on: granted and not broken, or plainly ignored."""
        return self.answered and self.granted in (None, self.asked) and self.kept is not False


@dataclass
class Verdict:
    """What a device of one policy finds.

    judgements  of each chain that was shown: behind one name there may be several servers
    """

    policy: str
    flight: Flight
    judgements: list[chains.Judgement]
    record_size: int | None = None
    stops: list[str] = field(default_factory=list)

    @property
    def connects(self) -> bool:
        return not self.stops

    @property
    def judgement(self) -> chains.Judgement:
        """Of the chain that was shown last."""
        return self.judgements[0]


@dataclass
class Survey:
    target: Target
    address: str
    at: dt.datetime
    versions: dict[str, bool | None] = field(default_factory=dict)
    suites: list[tuple[str, Suite]] = field(default_factory=list)  # accepted, by version
    refused: list[Suite] = field(default_factory=list)  # of the design's
    unknown: list[Suite] = field(default_factory=list)  # of the design's
    sizes: list[Size] = field(default_factory=list)
    flights: dict[str, list[Flight]] = field(default_factory=dict)  # whole, by policy
    dated: bool = True
    shown: dict[str, chains.Judgement] = field(default_factory=dict)  # rsa, ecdsa
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    certificate: str = "not asked for"
    complete: bool = True


class _Asker:
    """Counts what went unanswered, and stops asking in time."""

    def __init__(self, target: Target, address: tuple[str, int]) -> None:
        self._target, self._address = target, address
        self._end = time.monotonic() + target.limit_s
        self._silent = 0
        self.complete = True

    def patience_s(self) -> float | None:
        left = self._end - time.monotonic()
        if left < 0.1 or self._silent >= SILENT_IN_A_ROW:
            self.complete = False
            return None
        return min(self._target.patience_s, left)

    def __call__(self, hello: bytes, only_hello: bool = False) -> Flight | None:
        patience_s = self.patience_s()
        if patience_s is None:
            return None
        flight = ask(self._address, hello, patience_s, only_hello)
        self._silent = self._silent + 1 if flight.outcome in ("silent", "unreachable") else 0
        return flight

    def as_device(
        self, found: "Survey", policy: str, record_size: int | None = None
    ) -> Flight | None:
        """As a device of that policy asks; whole answers are kept in the survey."""
        hello = hellos.device_hello(self._target.sni, POLICIES[policy], record_size)
        flight = self(hello)
        if flight is not None and flight.whole:
            found.flights.setdefault(policy, []).append(flight)
        return flight


def survey(
    target: Target,
    roots: Sequence[bytes],
    with_certificate: bool = False,
    now: dt.datetime | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Survey:
    """Ask everything. NotAsked where there is no TLS server, or none that answers."""
    at = now or dt.datetime.now(dt.UTC)
    address = _resolve(target)
    asker = _Asker(target, address)
    found = Survey(target, address[0], at)
    trusted = [chains.read(der) for der in roots]

    progress("is there a TLS server")
    first = _first(target, asker)
    progress("record sizes")
    _sizes(asker, found, "all")
    progress("protocol versions")
    _versions(target, asker, found)
    progress("suites")
    _suites(target, asker, found)
    progress("certificates")
    rsa = asker(hellos.device_hello(target.sni, table.DESIGN_RSA))
    for kind, flight in (("rsa", rsa), ("ecdsa", asker.as_device(found, "ecc"))):
        if flight is not None and flight.whole:
            found.shown[kind] = chains.judge(flight.certificates, trusted, target.sni, at)
    for policy in POLICIES:
        progress(f"a whole handshake ({policy})")
        found.verdicts[policy] = _verdict(policy, first, trusted, asker, found, with_certificate)
    found.complete = asker.complete
    return found


def verdict(
    target: Target,
    roots: Sequence[bytes],
    policy: str = "all",
    with_certificate: bool = False,
    now: dt.datetime | None = None,
    dated: bool = True,
) -> Verdict:
    """Only whether devices will connect, in about twelve connections. NotAsked as in survey().

    dated  whether dates count: at a recovery endpoint they do not
    """
    address = _resolve(target)
    asker = _Asker(target, address)
    found = Survey(target, address[0], now or dt.datetime.now(dt.UTC), dated=dated)
    first = _first(target, asker)
    _sizes(asker, found, policy)
    _versions(target, asker, found)
    trusted = [chains.read(der) for der in roots]
    return _verdict(policy, first, trusted, asker, found, with_certificate)


def _verdict(
    policy: str,
    first: Flight,
    roots: Sequence[chains.Seen],
    asker: _Asker,
    found: Survey,
    with_certificate: bool,
) -> Verdict:
    flight = asker.as_device(found, policy) or first
    shown = reversed(found.flights.get(policy, []))
    sent = dict.fromkeys(tuple(one.certificates) for one in shown)
    judgements = [chains.judge(one, roots, found.target.sni, found.at, found.dated) for one in sent]
    made = Verdict(policy, flight, judgements or [chains.Judgement()])
    made.stops = _stops(made, found)
    if flight.whole:
        _finish(asker, made, found, with_certificate)
    return made


def _resolve(target: Target) -> tuple[str, int]:
    try:
        info = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise NotAsked(f"The name {target.host} does not resolve: check it.") from None
    # As create_connection does, the first one that answers.
    last = "nothing answers"
    for *_, address in info[:4]:
        try:
            with socket.create_connection(address[:2], target.patience_s):
                return address[0], address[1]
        except OSError as why:
            last = (why.strerror or str(why)).lower()
    raise NotAsked(
        f"{target.host} port {target.port} cannot be reached ({last}): check host and port, and "
        "whether a firewall stands between."
    )


def _first(target: Target, asker: _Asker) -> Flight:
    """The first ClientHello: a device's. Where it gets no TLS back, others are tried."""
    everything = list(table.CLASSIC.values())
    first = None
    for hello in (
        hellos.device_hello(target.sni, table.OFFERED),
        hellos.any_hello(target.sni, hellos.TLS_1_3, list(table.TLS_1_3.values())),
        hellos.any_hello(target.sni, hellos.TLS_1_0, [*everything]),
    ):
        flight = asker(hello)
        if flight is None:
            break
        first = first or flight
        if flight.outcome == "alert" or flight.chosen:
            return first
    assert first is not None
    raise NotAsked(
        f"{target.host} port {target.port} does not speak TLS as far as can be seen: "
        f"{first.why or first.outcome}."
    )


def _sizes(asker: _Asker, found: Survey, policy: str) -> None:
    for asked in (*agreed.RECORD_SIZES, None):
        size = Size(asked)
        flight = asker.as_device(found, policy, asked)
        if flight is not None:
            size.answered, size.granted = flight.whole, flight.granted
            size.largest, size.why = max(flight.records, default=0), flight.why
        found.sizes.append(size)


def _versions(target: Target, asker: _Asker, found: Survey) -> None:
    for name, version in VERSIONS.items():
        offered = {
            hellos.TLS_1_3: list(table.TLS_1_3.values()),
            hellos.TLS_1_2: list(table.CLASSIC.values()),
        }.get(version, list(table.OLD))
        flight = asker(hellos.any_hello(target.sni, version, offered), only_hello=True)
        found.versions[name] = None if flight is None else flight.version == version


def _suites(target: Target, asker: _Asker, found: Survey) -> None:
    """The design's one by one; of the others, what is taken is left out of the next question."""
    for suite in table.OFFERED:
        flight = asker(hellos.device_hello(target.sni, [suite]), only_hello=True)
        if flight is None:
            found.unknown.append(suite)
        elif flight.suite == suite.code:
            found.suites.append(("TLSv1.2", suite))
        else:
            found.refused.append(suite)
    rest = {
        "TLSv1.2": table.REST,
        "TLSv1.3": tuple(table.TLS_1_3.values()),
        "TLSv1.1": table.OLD,
        "TLSv1.0": table.OLD,
    }
    for version, offered in rest.items():
        left = {suite.code: suite for suite in offered} if found.versions.get(version) else {}
        while left:
            hello = hellos.any_hello(target.sni, VERSIONS[version], list(left.values()))
            flight = asker(hello, only_hello=True)
            taken = left.pop(flight.suite, None) if flight and flight.suite else None
            if taken is None:
                break
            found.suites.append((version, taken))


def _stops(verdict: Verdict, found: Survey) -> list[str]:
    """Why a device of this policy does not connect; none: it does."""
    flight, sni = verdict.flight, found.target.sni
    if not flight.whole:
        if found.versions.get("TLSv1.2") is False:
            return [f"{sni} does not speak TLS 1.2: turn it on there."]
        if flight.outcome in ("alert", "answered") and found.versions.get("TLSv1.2"):
            which = "the four ECDSA suites" if verdict.policy == "ecc" else "the eight suites"
            return [f"{sni} takes none of {which} that devices offer ({flight.why})."]
        return [f"The handshake of a device ends early: {flight.why or flight.outcome}."]
    stops = list(verdict.judgement.stops)
    for other in verdict.judgements[1:]:
        stops += [f"Some connections get another chain: {stop}" for stop in other.stops]
    if flight.certificate_bytes > chains.MAX_MESSAGE_BYTES:
        stops.append(
            f"The certificate message has {flight.certificate_bytes} bytes; a device takes "
            f"{chains.MAX_MESSAGE_BYTES}: send fewer or smaller certificates."
        )
    if flight.group not in hellos.DEVICE_GROUPS or flight.signature not in hellos.DEVICE_SIGNATURES:
        stops.append(f"{sni} takes a curve or signature that the device has not offered.")
    # The ladder of a device climbs to the first size that works.
    usable = [size for size in found.sizes if size.usable]
    if not usable:
        stops.append(f"{sni} completes a handshake with no record size that a device asks for.")
    else:
        verdict.record_size = usable[0].granted
    return stops


def _finish(asker: _Asker, verdict: Verdict, found: Survey, with_certificate: bool) -> None:
    patience_s = asker.patience_s()
    if patience_s is None:
        verdict.stops.append(
            "The whole handshake could not be tried: the server stopped answering."
        )
        return
    target = found.target
    address = (found.address, target.port)
    why = finish(address, target.sni, POLICIES[verdict.policy], patience_s)
    asked_for = verdict.flight.wants_certificate
    if asked_for:
        found.certificate = "required" if why else "may be left out"
    if why is None:
        return
    if not asked_for:
        verdict.stops.append(f"The handshake does not complete: {why}.")
    elif not with_certificate:
        verdict.stops.append(
            f"{target.sni} wants a certificate of the device ({why}): devices with symmetric keys "
            "do not get in; for devices with certificates say --x509."
        )
