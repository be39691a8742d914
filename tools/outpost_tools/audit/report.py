"""What an audit tells: as a dict for programs, as lines for a person. It asks nothing itself."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

from outpost_tools.audit.chain import Judgement
from outpost_tools.audit.suites import Suite
from outpost_tools.audit.survey import Size, Survey, Verdict

YEAR_DAYS = 365


def as_dict(found: Survey, policy: str, bundle: dict[str, Any]) -> dict[str, Any]:
    verdict = found.verdicts[policy]
    return {
        "host": found.target.host,
        "port": found.target.port,
        "address": found.address,
        "sni": found.target.sni,
        "at": found.at.isoformat(timespec="seconds"),
        "bundle": bundle,
        "policy": policy,
        "connects": verdict.connects,
        "stops": verdict.stops,
        "complete": found.complete,
        "versions": found.versions,
        "suites": [_suite(version, suite) for version, suite in found.suites],
        "suites_refused": [suite.name for suite in found.refused],
        "suites_unknown": [suite.name for suite in found.unknown],
        "record_sizes": [_size(size) for size in found.sizes],
        "client_certificate": found.certificate,
        "chains": {kind: _chain(judged, found.at) for kind, judged in found.shown.items()},
        "verdicts": {name: _verdict(one, found.at) for name, one in found.verdicts.items()},
        "first_expiry": first_expiry(verdict.judgement, found.at),
        "notes": notes(found, verdict),
    }


def _suite(version: str, suite: Suite) -> dict[str, Any]:
    return {"version": version, "code": suite.code, "name": suite.name, "kind": suite.kind}


def _size(size: Size) -> dict[str, Any]:
    return {
        "asked": size.asked,
        "granted": size.granted,
        "kept": size.kept,
        "largest_record": size.largest,
        "answered": size.answered,
        "usable": size.usable,
        "why": size.why,
    }


def _chain(judged: Judgement, at: dt.datetime) -> dict[str, Any]:
    return {
        "path": [one.about() for one in judged.path],
        "root": judged.root.about() if judged.root else None,
        "stops": judged.stops,
        "first_expiry": first_expiry(judged, at),
    }


def _verdict(verdict: Verdict, at: dt.datetime) -> dict[str, Any]:
    from outpost_tools.audit.suites import name_of

    flight = verdict.flight
    return {
        "connects": verdict.connects,
        "stops": verdict.stops,
        "suite": name_of(flight.suite) if flight.suite is not None else None,
        "record_size": verdict.record_size,
        "root": verdict.judgement.root.sha256 if verdict.judgement.root else None,
        "first_expiry": first_expiry(verdict.judgement, at),
    }


def first_expiry(judged: Judgement, at: dt.datetime) -> dict[str, Any] | None:
    """Which certificate of the path (the root is one) ends first."""
    if not judged.path:
        return None
    first = min(judged.path, key=lambda one: one.x509.not_valid_after_utc)
    end = first.x509.not_valid_after_utc
    return {"subject": first.name, "not_after": end.isoformat(), "days": (end - at).days}


def notes(found: Survey, verdict: Verdict) -> list[str]:
    """What stops nobody today and is worth knowing."""
    said = []
    if not found.complete:
        said.append("The server stopped answering: not everything was asked.")
    weak = sorted({suite.name for _, suite in found.suites if suite.kind == "forbidden"})
    if weak:
        said.append(f"It takes {len(weak)} suites that no device offers and nobody should.")
    old = [name for name in ("TLSv1.0", "TLSv1.1") if found.versions.get(name)]
    if old:
        said.append(f"It still speaks {' and '.join(old)}; devices do not.")
    broken = [str(size.asked) for size in found.sizes if size.kept is False]
    if broken:
        said.append(f"It grants record sizes and does not keep to them: {', '.join(broken)}.")
    if verdict.flight.whole and all(size.granted is None for size in found.sizes):
        said.append("It ignores the record size: a device holds 16 KiB more for this connection.")
    if len(verdict.judgements) > 1:
        said.append(
            f"It shows {len(verdict.judgements)} different chains: there are several servers "
            "behind it."
        )
    path = {one.sha256: one for judged in verdict.judgements for one in judged.path}
    for one in path.values():
        days = (one.x509.not_valid_after_utc - found.at).days
        if 0 <= days < YEAR_DAYS:
            said.append(f"{one.name!r} expires in {days} day{'' if days == 1 else 's'}.")
    return said


def as_lines(found: Survey, policy: str, bundle: dict[str, Any]) -> Iterator[str]:
    target, verdict = found.target, found.verdicts[policy]
    asked = "" if target.sni == target.host else f", asked for {target.sni}"
    yield f"{target.host} port {target.port} ({found.address}{asked})"
    yield f"roots: {bundle['source']} ({len(bundle['roots'])})"
    yield ""
    yield "Protocol versions"
    words = {True: "offered", False: "not offered", None: "not asked"}
    for name, offered in found.versions.items():
        yield f"  {name}  {words[offered]}"
    yield "Suites that it takes"
    marks = {"ours": "devices'", "other": "", "forbidden": "FORBIDDEN"}
    for version, suite in found.suites:
        yield f"  {version}  {suite.name:46} {marks[suite.kind]}".rstrip()
    for suite in found.refused:
        yield f"  -        {suite.name:46} devices', refused"
    yield "Record sizes"
    for size in found.sizes:
        yield f"  {size.asked or 'none'!s:>5}  {_said(size)}"
    yield f"Certificate of the device: {found.certificate}"
    for kind, judged in found.shown.items():
        yield f"Chain for {kind.upper()} suites"
        for one in judged.path:
            mark = "root" if one is judged.root else "    "
            yield (
                f"  {mark} {one.name}  {one.key}, {one.signature}, "
                f"to {one.x509.not_valid_after_utc:%Y-%m-%d}"
            )
        if judged.root:
            yield f"       root's SHA-256 {judged.root.sha256}"
    if expiry := first_expiry(verdict.judgement, found.at):
        yield f"First to expire: {expiry['subject']} on {expiry['not_after'][:10]}"
    yield from (f"Note: {note}" for note in notes(found, verdict))
    # What ends in the bundle, whether this endpoint needs it or not.
    yield from (f"Note: {note}" for note in bundle.get("ending", ()))
    yield ""
    for name, one in found.verdicts.items():
        offer = "all suites" if name == "all" else "ECC only"
        if one.connects:
            size = f"records of {one.record_size}" if one.record_size else "full records"
            yield f"Devices with {offer}: will connect, with {size}"
        else:
            yield f"Devices with {offer}: will NOT connect"
            yield from (f"  {stop}" for stop in one.stops)


def _said(size: Size) -> str:
    if not size.answered:
        return f"no handshake ({size.why or 'not asked'})"
    longest = f"longest record {size.largest}"
    if size.asked is None:
        return longest
    if size.granted is None:
        return f"ignored, {longest}"
    if size.granted != size.asked:
        return f"answered with {size.granted}, {longest}"
    kept = {True: "and kept", False: "and NOT kept", None: "and nothing was long enough to see"}
    return f"granted {kept[size.kept]}, {longest}"
