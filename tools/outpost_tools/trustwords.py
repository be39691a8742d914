"""A trust bundle or a draft, said to a person or a program: what is in it, what ends, who signed.

It owns the rule that whatever ends within the year is pointed out. It judges no signature by
itself and keeps nothing.
"""

import base64
import datetime as dt
import json
from collections.abc import Iterable, Mapping
from typing import Any

from cryptography import x509

from outpost_tools import agreed, envelope, trustparts
from outpost_tools.bundle import NEVER_EXPIRES, Bundle
from outpost_tools.envelope import Keys
from outpost_tools.trustdraft import Draft

SOON = dt.timedelta(days=365)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def days_until(until: dt.datetime) -> int:
    return (until - _now()).days


def _date(at_s: int) -> str:
    return dt.datetime.fromtimestamp(at_s, dt.UTC).strftime("%Y-%m-%d")


def certificate(der: bytes) -> dict[str, Any]:
    held = x509.load_der_x509_certificate(der)
    until = held.not_valid_after_utc
    return {
        "name": trustparts.common_name(der),
        "sha256": trustparts.fingerprint(der),
        "bytes": len(der),
        "until": until.strftime("%Y-%m-%d"),
        "days": days_until(until),
    }


def ending(bundle: Bundle) -> list[str]:
    """A sentence for each certificate, and for the bundle, that ends within the year."""
    found = []
    for what, ders in (
        ("The root", bundle.roots),
        ("The pin of a recovery endpoint,", [point.pin for point in bundle.recovery]),
    ):
        for der in ders:
            about = certificate(der)
            if about["days"] < SOON.days:
                found.append(f"{what} {about['name']} {_ends(about['days'], about['until'])}")
    if bundle.version and bundle.expires != NEVER_EXPIRES:
        left = (bundle.expires - int(_now().timestamp())) // 86400
        if left < 0:
            found.append(
                f"Version {bundle.version} cannot be installed any more since "
                f"{_date(bundle.expires)}: sign a new one."
            )
    return found


def _ends(days: int, until: str) -> str:
    if days < 0:
        return f"ended on {until}."
    return f"ends on {until}, in {days} day{'' if days == 1 else 's'}."


def _key(one: str, names: Mapping[str, str]) -> dict[str, str]:
    return {"id": one, "name": names.get(one, "")}


def _keys(keys: Keys, names: Mapping[str, str]) -> list[dict[str, str]]:
    return [_key(one.hex(), names) for one in keys.ids]


def bundle_facts(bundle: Bundle, names: Mapping[str, str]) -> dict[str, Any]:
    never = bundle.expires == NEVER_EXPIRES
    return {
        "fleet": bundle.fleet,
        "version": bundle.version,
        "floor": bundle.floor,
        "issued": _date(bundle.issued),
        "expires": None if never else _date(bundle.expires),
        "roots": [certificate(der) for der in bundle.roots],
        "hosts": list(bundle.hosts),
        "recovery": [
            {"endpoint": f"{p.host}:{p.port}", "pin": certificate(p.pin)} for p in bundle.recovery
        ],
        "threshold": bundle.keys.threshold,
        "keys": _keys(bundle.keys, names),
        "software": {
            "threshold": bundle.software.threshold,
            "keys": _keys(bundle.software, names),
        }
        if bundle.software
        else None,
        "signers": bundle.signers is not None,
        "bytes": len(bundle.unsigned().encode())
        + (72 * bundle.keys.threshold if bundle.version else 0),
        "ending": ending(bundle),
    }


def draft_facts(draft: Draft) -> dict[str, Any]:
    old, new = draft.missing()
    who_old, who_new = draft.who_is_missing()
    return bundle_facts(draft.bundle, draft.names) | {
        "present": draft.present.version if draft.present else None,
        "signed": [_key(one, draft.names) for one in draft.signed_by],
        "missing": {
            "present": {"signatures": old, "of": [_key(one, draft.names) for one in who_old]},
            "new": {"signatures": new, "of": [_key(one, draft.names) for one in who_new]},
        },
        "complete": old == new == 0,
        "changes": changes(draft.before, draft.bundle, draft.names),
    }


def changes(before: Bundle | None, after: Bundle, names: Mapping[str, str]) -> list[str]:
    """What a draft changes, a sentence or less for each."""
    if before is None:
        return ["It is the fleet's first bundle."]

    # With their ids, always: names are what the draft's bringer says they are.
    def called(points: Iterable[bytes]) -> set[str]:
        return {_called(_key(envelope.key_id(point).hex(), names)) for point in points}

    found = _difference("root", map(_named, before.roots), map(_named, after.roots))
    found += _difference("signing key", called(before.keys.points), called(after.keys.points))
    if before.keys.threshold != after.keys.threshold:
        found.append(
            f"how many must sign the next one: {after.keys.threshold} instead of "
            f"{before.keys.threshold}"
        )
    found += _difference("host for downloads", before.hosts, after.hosts)
    found += _difference(
        "recovery endpoint", map(_recovery, before.recovery), map(_recovery, after.recovery)
    )
    if before.software != after.software:
        old = called(before.software.points) if before.software else set()
        new = called(after.software.points) if after.software else set()
        found += _difference("software key", old, new)
        k = [one.threshold if one else 0 for one in (before.software, after.software)]
        if k[0] != k[1]:
            found.append(f"how many must sign software: {k[1]} instead of {k[0]}")
    if before.signers != after.signers:
        commanders = _difference(
            "command signer", _commanders(before, names), _commanders(after, names)
        )
        found += commanders or ["who may sign commands is written in another way"]
    if before.more != after.more:
        kinds = ", ".join(f"{kind} ({len(value)} bytes)" for kind, value in after.more)
        found.append(f"sections that this `outpost` does not know: {kinds or 'none any more'}")
    if before.floor != after.floor:
        found.append(
            f"versions below {after.floor} are not used any more, not even to reach a recovery "
            "endpoint"
        )
    return found


def _commanders(bundle: Bundle, names: Mapping[str, str]) -> list[str]:
    """Who may sign commands, and for what."""
    try:
        rows = json.loads(bundle.signers or b'{"signers": []}')["signers"]
        points = [base64.urlsafe_b64decode(row["point"] + "==") for row in rows]
        ids = [envelope.key_id(point[1:]).hex() for point in points]
        roles = [", ".join(map(str, row["roles"])) for row in rows]
    except (ValueError, KeyError, TypeError):
        return ["that cannot be read"]
    pairs = zip(ids, roles, strict=True)
    return [f"{_called(_key(one, names))} for {ascii(what)[1:-1]}" for one, what in pairs]


def _named(der: bytes) -> str:
    return f"{trustparts.common_name(der)} ({trustparts.fingerprint(der)[:16]})"


def _recovery(point: Any) -> str:
    return f"{point.host}:{point.port}, pin {trustparts.fingerprint(point.pin)[:16]}"


def _difference(what: str, before: Any, after: Any) -> list[str]:
    old, new = list(before), list(after)
    found = [f"+ {what} {one}" for one in sorted(set(new) - set(old))]
    return found + [f"- {what} {one}" for one in sorted(set(old) - set(new))]


def lines(facts: Mapping[str, Any]) -> list[str]:
    """The facts of a bundle or of a draft, for a person."""
    until = f"installable until {facts['expires']}" if facts["expires"] else "never expires"
    said = [
        f"Trust bundle of {facts['fleet']!r}, version {facts['version']}: issued "
        f"{facts['issued']}, {until}, floor {facts['floor']}, {facts['bytes']} of "
        f"{agreed.BUNDLE_MAX_BYTES} bytes."
    ]
    for one in facts["roots"]:
        said.append(f"  root       {one['name']}  until {one['until']}  {one['sha256']}")
    for host in facts["hosts"]:
        said.append(f"  downloads  {host}")
    for one in facts["recovery"]:
        pin = one["pin"]
        said.append(
            f"  recovery   {one['endpoint']}  pin {pin['name']} until {pin['until']} "
            f"{pin['sha256']}"
        )
    said.append(f"  next one   {_of(facts['threshold'], facts['keys'])}")
    if facts["software"]:
        software = facts["software"]
        said.append(f"  software   {_of(software['threshold'], software['keys'])}")
    if facts["signers"]:
        said.append("  commands   signers are named in it")
    said += [f"  change     {one}" for one in facts.get("changes", ())]
    said += [f"Note: {one}" for one in facts["ending"]]
    if "complete" in facts:
        said += _signatures(facts)
    return said


def _called(key: Mapping[str, str]) -> str:
    return f"{key['name']} ({key['id']})" if key["name"] else key["id"]


def _of(threshold: int, keys: list[dict[str, str]]) -> str:
    return f"{threshold} of {len(keys)} sign it: " + ", ".join(map(_called, keys))


def _signatures(facts: Mapping[str, Any]) -> list[str]:
    said = []
    if facts["signed"]:
        said.append("Signed by " + ", ".join(_called(one) for one in facts["signed"]) + ".")
    for which, what in (("present", "present"), ("new", "new")):
        missing = facts["missing"][which]
        if missing["signatures"]:
            who = ", ".join(map(_called, missing["of"]))
            said.append(f"Missing: {missing['signatures']} more of the {what} keys, of {who}.")
    if facts["complete"]:
        said.append("It is complete: enough have signed.")
    return said
