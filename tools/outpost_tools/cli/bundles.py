"""`outpost trust new|add|remove|revoke|sign|inspect`: trust bundles and their signatures."""

from pathlib import Path
from typing import Annotated, Any

import typer

from outpost_tools.cli.common import DataOption, JsonOption, answer
from outpost_tools.cli.sign import SignerPassphraseOption, signer_secret
from outpost_tools.cli.trust import trust_app
from outpost_tools.errors import OutpostError
from outpost_tools.paths import data_dir, write_whole

DraftArgument = Annotated[
    Path, typer.Argument(metavar="DRAFT", help="The draft that goes from signer to signer.")
]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A draft or a bundle.")]
OutputOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="[trust-VERSION.draft]")
]
RootOption = Annotated[
    list[str] | None,
    typer.Option(
        "--root", metavar="NAME|FILE", help="azure-rsa, azure-ecc, azure, or PEM or DER; repeat."
    ),
]
KeyOption = Annotated[
    list[Path] | None,
    typer.Option("--key", metavar="FILE", help="Public key that signs the next bundle; repeat.  "),
]
ThresholdOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="K", help="So many keys must sign the next one."),
]
HostOption = Annotated[
    list[str] | None,
    typer.Option("--host", metavar="HOST", help="Host that downloads may come from; repeat."),
]
RecoveryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--recovery",
        metavar="HOST[:PORT]=FILE",
        help="Recovery endpoint and its pin: the root, or its self-signed certificate; repeat.",
    ),
]
SoftwareOption = Annotated[
    list[Path] | None,
    typer.Option("--software", metavar="FILE", help="Public key that signs software; repeat."),
]
SoftwareThresholdOption = Annotated[
    int | None, typer.Option(min=1, metavar="K", help="So many of them must sign a package.")
]
SignersOption = Annotated[
    bool,
    typer.Option("--signers", help="Who may sign commands: this folder's `outpost sign list`."),
]
DaysOption = Annotated[
    int, typer.Option(metavar="DAYS", help="How long it may be installed; it never stops working.")
]


@trust_app.command("new", epilog="Example: outpost trust new --root azure -o spring.draft")
def trust_new(
    output: OutputOption = None,
    present: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="The bundle in force.  [the newest in DATA/trust]"
        ),
    ] = None,
    root: RootOption = None,
    key: KeyOption = None,
    threshold: ThresholdOption = None,
    host: HostOption = None,
    recovery: RecoveryOption = None,
    software: SoftwareOption = None,
    software_threshold: SoftwareThresholdOption = None,
    signers: SignersOption = False,
    version: Annotated[
        int | None, typer.Option(metavar="N", help="[one above the present one]")
    ] = None,
    days: DaysOption = 1095,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Begin the draft of the next bundle: the present one's content, and what is added here.

    Where there is no bundle yet, of the fleet's first, which images carry.
    """
    from outpost_tools import trustdraft
    from outpost_tools.trustedit import Parts, spare
    from outpost_tools.trustshelf import Shelf, complete_in

    folder = data_dir(data)
    before = Shelf(folder).newest() if present is None else complete_in(present)
    parts = Parts(folder, root, key, threshold, host, recovery, software, software_threshold)
    if before is None:
        draft = parts.first(days)
        if version not in (None, 1):
            raise OutpostError("A fleet's first bundle is version 1.")
    else:
        draft = parts.added(trustdraft.following(before, days, version))
    draft = parts.with_signers(draft) if signers else draft
    _save(draft, spare(output, draft, folder), folder, as_json)


@trust_app.command("add", epilog="Example: outpost trust add spring.draft --root new-ca.pem")
def trust_add(
    path: DraftArgument,
    root: RootOption = None,
    key: KeyOption = None,
    threshold: ThresholdOption = None,
    host: HostOption = None,
    recovery: RecoveryOption = None,
    software: SoftwareOption = None,
    software_threshold: SoftwareThresholdOption = None,
    signers: SignersOption = False,
    again: Annotated[
        bool, typer.Option("--again", help="Signatures that it has are dropped.")
    ] = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add roots, keys, hosts or recovery endpoints to a draft."""
    from outpost_tools.trustedit import Parts

    draft, folder = _open_to_change(path, again), data_dir(data)
    parts = Parts(folder, root, key, threshold, host, recovery, software, software_threshold)
    if parts.empty and not signers:
        raise OutpostError("Say what is to be added, e.g. --root new-ca.pem.")
    draft = parts.added(draft)
    _save(parts.with_signers(draft) if signers else draft, path, folder, as_json)


@trust_app.command("remove", epilog="Example: outpost trust remove autumn.draft --root 'Old CA'")
def trust_remove(
    path: DraftArgument,
    root: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|SHA256|FILE", help="Root, by its common name, ...; repeat."),
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(metavar="NAME|ID", help="Signing key; repeat.")
    ] = None,
    threshold: ThresholdOption = None,
    host: HostOption = None,
    recovery: Annotated[
        list[str] | None, typer.Option(metavar="HOST[:PORT]", help="Recovery endpoint; repeat.")
    ] = None,
    software: Annotated[
        list[str] | None, typer.Option(metavar="NAME|ID", help="Software key; repeat.")
    ] = None,
    software_threshold: SoftwareThresholdOption = None,
    again: Annotated[
        bool, typer.Option("--again", help="Signatures that it has are dropped.")
    ] = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove roots, keys, hosts or recovery endpoints from a draft."""
    from outpost_tools import trustparts
    from outpost_tools.envelope import Keys
    from outpost_tools.trustedit import without

    draft = _open_to_change(path, again)
    old, called = draft.bundle, dict(draft.names)
    changes: dict[str, Any] = {}
    if root:
        changes["roots"] = trustparts.remove_roots(old.roots, root)
    if key or threshold:
        changes["keys"] = trustparts.remove_keys(old.keys, key or [], called, threshold)
    if host:
        changes["hosts"] = without(old.hosts, host, "host for downloads")
    if recovery:
        there = {f"{point.host}:{point.port}": point for point in old.recovery}
        named = [one if ":" in one else f"{one}:443" for one in recovery]
        left = without(tuple(there), named, "recovery endpoint")
        changes["recovery"] = tuple(there[one] for one in left)
    if software or software_threshold:
        software = software or []
        held = old.software or Keys()
        ids = [one.hex() for one in held.ids]
        names = [called.get(one, one) for one in ids]
        if software and (set(software) >= set(ids) or set(software) >= set(names)):
            changes["software"] = None
        else:
            changes["software"] = trustparts.remove_keys(
                held, software, called, software_threshold, "software-threshold"
            )
    if not changes:
        raise OutpostError("Say what is to be removed, e.g. --root 'Old CA'.")
    _save(draft.edited(**changes), path, data_dir(data), as_json)


@trust_app.command("revoke", epilog="Example: outpost trust revoke -o revoke.draft --below 4")
def trust_revoke(
    output: OutputOption = None,
    below: Annotated[
        int | None,
        typer.Option(metavar="N", help="The lowest version that stays usable.  [this one]"),
    ] = None,
    present: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="The bundle in force.  [the newest in DATA/trust]"
        ),
    ] = None,
    days: DaysOption = 1095,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Begin a draft that raises the floor: older bundles are not used even for recovery.

    The factory's bundle is among them. It is signed and rolled out as every other.
    """
    from outpost_tools import trustdraft
    from outpost_tools.trustedit import spare
    from outpost_tools.trustshelf import Shelf, complete_in

    folder = data_dir(data)
    before = Shelf(folder).newest() if present is None else complete_in(present)
    if before is None:
        raise OutpostError("There is no bundle yet, so nothing to revoke: `outpost trust new`.")
    draft = trustdraft.following(before, days)
    floor = draft.envelope.version if below is None else below
    if not before.floor < floor <= draft.envelope.version:
        raise OutpostError(
            f"The floor is {before.floor}; it can rise to {draft.envelope.version} at the most."
        )
    draft = draft.edited(Shelf(folder).names(), floor=floor)
    _save(draft, spare(output, draft, folder), folder, as_json)


@trust_app.command("sign", epilog="Example: outpost trust sign spring.draft --signer anna")
def trust_sign(
    path: DraftArgument,
    signer: Annotated[
        str | None, typer.Option(metavar="NAME", help="[the one with the role trust]")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The bundle too, once enough have signed."
        ),
    ] = None,
    passphrase_file: SignerPassphraseOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a draft holds and changes, then sign it with a key of this machine.

    When enough have signed, the bundle is kept in DATA/trust: `outpost trust push` finds it there.
    """
    from outpost_tools import trustdraft, trustwords
    from outpost_tools.signing import Signers
    from outpost_tools.trustshelf import Shelf

    folder = data_dir(data)
    draft, shelf = trustdraft.read(path), Shelf(folder)
    shelf.check(draft)
    signers = Signers(folder)
    who = signers.find(signer) if signer else signers.for_role("trust")
    if "trust" not in who.roles:
        raise OutpostError(f"The signer {who.name!r} may not sign for trust.")
    for line in trustwords.lines(trustwords.draft_facts(draft)):
        typer.echo(line, err=True)  # before the passphrase is asked for
    if not shelf.knows(draft):
        typer.echo(
            "Note: this machine does not have the bundle in force: what changes is as the draft "
            "says. `outpost trust keep` it first, from somebody you trust.",
            err=True,
        )
    secret = signer_secret(who.token is not None, passphrase_file)
    with signers.unlocked(who, secret) as pen:
        draft = pen.endorse(draft)
    draft.save(path)
    where = "; pass it on"
    if draft.complete and shelf.knows(draft):
        shelf.take(path)
        if output is not None:
            write_whole(output, shelf.deliverable(draft.envelope), mode=0o644)
        there = f"; {output} is for devices" if output else ""
        where = f" and is kept in {shelf.folder}{there}"
    elif draft.complete:
        where = ". Take it to where the fleet's bundles are: `outpost trust keep`"
    facts = trustwords.draft_facts(draft)
    state = "Enough have signed: it is complete" if draft.complete else _still(facts)
    answer(as_json, facts, f"{who.name} has signed {path}. {state}{where}.")


def _still(facts: dict[str, Any]) -> str:
    missing = facts["missing"]
    parts = [
        f"{missing[which]['signatures']} of the {which} keys"
        for which in ("present", "new")
        if missing[which]["signatures"]
    ]
    return f"Still missing: {' and '.join(parts)}"


@trust_app.command("keep", epilog="Example: outpost trust keep spring.draft -o spring.bin")
def trust_keep(
    path: FileArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The file for a device, changes of keys and all."
        ),
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a complete bundle that was signed elsewhere into DATA/trust, among the former ones."""
    from outpost_tools import bundle, trustwords
    from outpost_tools.trustshelf import Shelf

    shelf = Shelf(data_dir(data))
    made = shelf.take(path)
    if output is not None:
        write_whole(output, shelf.deliverable(made), mode=0o644)
    ending = trustwords.ending(bundle.Bundle.of(made))
    kept = f"Version {made.version} is kept in {shelf.folder}"
    answer(
        as_json,
        {"version": made.version, "file": str(output or shelf.folder), "ending": ending},
        *(f"Note: {one}" for one in ending),
        f"{kept}, and is in {output} for devices." if output else f"{kept}.",
    )


@trust_app.command("inspect", epilog="Example: outpost trust inspect spring.draft")
def trust_inspect(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="A draft or a bundle.  [the newest in DATA/trust]"),
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is in a draft or a bundle: roots, keys, what ends soon, who signed, who has yet to.

    A bundle is held against the former ones in DATA/trust: the exit status says whether a device
    of the fleet would take it.
    """
    from outpost_tools import bundle, trustdraft, trustwords
    from outpost_tools.trustshelf import Shelf

    shelf = Shelf(data_dir(data))
    if path is None:
        found: Any = shelf.newest()
        if found is None:
            raise OutpostError("There is no bundle yet: begin with `outpost trust new`.")
    else:
        found = trustdraft.bundle_or_draft(path)
    if isinstance(found, trustdraft.Draft):
        facts = trustwords.draft_facts(found)
        answer(as_json, facts, *trustwords.lines(facts))
        return
    names = shelf.names()
    facts = trustwords.bundle_facts(bundle.Bundle.of(found), names)
    facts |= shelf.judged(found)
    answer(as_json, facts, *trustwords.lines(facts), *facts["judged"])
    raise typer.Exit(0 if facts["good"] else 1)


# What the commands share


def _open_to_change(path: Path, again: bool) -> Any:
    from outpost_tools import trustdraft

    draft = trustdraft.read(path)
    if draft.envelope.signatures and not again:
        raise OutpostError(
            f"{path} is signed already: a change drops the signatures. Say --again if that is "
            "meant."
        )
    return draft


def _save(draft: Any, path: Path, folder: Path, as_json: bool) -> None:
    from outpost_tools import trustwords

    draft.save(path)
    facts = trustwords.draft_facts(draft)
    answer(as_json, facts, *trustwords.lines(facts), f"{path}: sign it with `outpost trust sign`.")
