"""`outpost enrol …`: who may provision itself at the local hub's provisioning service."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from outpost_tools.cli.common import DataOption, JsonOption, answer, group, print_json
from outpost_tools.errors import OutpostError
from outpost_tools.paths import data_dir, write_whole

enrol_app = group("enrol", "Enrolments for device provisioning (DPS) at the local hub.")

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Registration id, or the group's name.")
]
GroupOption = Annotated[bool, typer.Option("--group", help="It is an enrolment group.")]


class Allocation(StrEnum):
    hashed = "hashed"
    static = "static"
    custom = "custom"


@enrol_app.command("new", epilog="Example: outpost enrol new pumps --group --keys-to pumps.json")
def enrol_new(
    name: NameArgument,
    is_group: GroupOption = False,
    certificate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Its certificate (PEM), or for a group the CA's; twice for a secondary. "
            "Without it: symmetric keys.",
        ),
    ] = None,
    device_id: Annotated[
        str | None, typer.Option(metavar="ID", help="The device's id, if not its registration id.")
    ] = None,
    hub: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="Hub to assign to; may be repeated.")
    ] = None,
    allocation: Annotated[
        Allocation, typer.Option(help="How one of several hubs is chosen.")
    ] = Allocation.hashed,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="Who is asked for custom allocation.")
    ] = None,
    twin: Annotated[
        str | None, typer.Option(metavar="JSON", help="First desired properties; @FILE as well.")
    ] = None,
    credential_policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="Certificates are issued under this policy.")
    ] = None,
    disabled: Annotated[bool, typer.Option("--disabled")] = False,
    from_file: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="The rest of it in Azure's JSON form."),
    ] = None,
    keys_to: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write its keys there, readable by you alone."),
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Enrol one device, or a group of devices. The keys are made here, and not shown."""
    from outpost_tools.cli.service import json_of
    from outpost_tools.enrolments import Enrolments

    document: dict[str, Any] = {}
    if from_file is not None:
        document = json_of(f"@{from_file}", "enrolment")
        if not isinstance(document, dict):
            raise OutpostError(f"{from_file} is not a JSON object.")
    document["enrollmentGroupId" if is_group else "registrationId"] = name
    if certificate or "attestation" not in document:
        document["attestation"] = _attestation(certificate or [], is_group)
    if device_id is not None:
        if is_group:
            raise OutpostError("The devices of a group are named by their registration ids.")
        document["deviceId"] = device_id
    if hub:
        document["iotHubs"] = hub
    if allocation is not Allocation.hashed or "allocationPolicy" not in document:
        document["allocationPolicy"] = allocation.value
    if webhook is not None:
        document["customAllocationDefinition"] = {"webhookUrl": webhook}
    if twin is not None:
        document["initialTwin"] = {"properties": {"desired": json_of(twin, "twin")}}
    if credential_policy is not None:
        document["credentialPolicyName"] = credential_policy
    if disabled:
        document["provisioningStatus"] = "disabled"
    with Enrolments(data_dir(data)) as enrolments:
        enrolment = enrolments.put(document)
        scope = enrolments.id_scope
    if keys_to is not None and enrolment.attestation == "symmetricKey":
        _write_keys(keys_to, scope, name, enrolment.keys)
    answer(
        as_json,
        enrolment.to_json() | {"idScope": scope},
        f"{name} is enrolled; its devices use the id scope {scope}.",
    )


def _attestation(files: list[Path], is_group: bool) -> dict[str, Any]:
    if not files:
        return {"type": "symmetricKey"}
    if len(files) > 2:
        raise OutpostError("An enrolment has one certificate, or a primary and a secondary one.")
    held = {}
    for which, file in zip(("primary", "secondary"), files, strict=False):
        try:
            held[which] = {"certificate": file.read_text()}
        except (OSError, UnicodeDecodeError):
            raise OutpostError(f"{file} is not a certificate in PEM form.") from None
    kind = "signingCertificates" if is_group else "clientCertificates"
    return {"type": "x509", "x509": {kind: held}}


def _write_keys(path: Path, scope: str, name: str, keys: tuple[str, str]) -> None:
    content = {"idScope": scope, "name": name, "primaryKey": keys[0], "secondaryKey": keys[1]}
    write_whole(path, json.dumps(content, indent=2).encode() + b"\n")


@enrol_app.command("list", epilog="Example: outpost enrol list --json")
def enrol_list(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Show the enrolments and the id scope, without keys."""
    from outpost_tools.enrolments import Enrolments

    with Enrolments(data_dir(data)) as enrolments:
        held, scope = enrolments.all(), enrolments.id_scope
    if as_json:
        print_json({"idScope": scope, "enrolments": [e.to_json() for e in held]})
        return
    typer.echo(f"id scope {scope}")
    for e in held:
        status = "enabled" if e.enabled else "disabled"
        kind = "group" if e.is_group else "device"
        typer.echo(f"{e.name}  {kind}  {status}  {e.attestation}  {e.allocation}")


@enrol_app.command("show", epilog="Example: outpost enrol show pumps --group")
def enrol_show(
    name: NameArgument,
    is_group: GroupOption = False,
    keys_to: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write its keys there, readable by you alone."),
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show an enrolment and what became of its registrations."""
    from outpost_tools.enrolments import Enrolments

    with Enrolments(data_dir(data)) as enrolments:
        enrolment = enrolments.get(name, is_group)
        scope = enrolments.id_scope
        if is_group:
            registrations = enrolments.registrations(name)
        else:
            one = enrolments.registration(name)
            registrations = [one] if one else []
    if keys_to is not None:
        if enrolment.attestation != "symmetricKey":
            raise OutpostError(f"{name} is enrolled with a certificate: it has no keys.")
        _write_keys(keys_to, scope, name, enrolment.keys)
    shown = enrolment.to_json() | {"registrations": [r.to_json() for r in registrations]}
    answer(as_json, shown, json.dumps(shown, indent=2, ensure_ascii=False))


def _set_status(name: str, status: str, is_group: bool, data: Path | None, as_json: bool) -> None:
    from outpost_tools.enrolments import Enrolments

    with Enrolments(data_dir(data)) as enrolments:
        enrolment = enrolments.set_status(name, status, is_group)
    answer(as_json, enrolment.to_json(), f"The enrolment {name} is {status}.")


@enrol_app.command("disable", epilog="Example: outpost enrol disable pumps --group")
def enrol_disable(
    name: NameArgument,
    is_group: GroupOption = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse its registrations; devices that a hub has already stay there."""
    _set_status(name, "disabled", is_group, data, as_json)


@enrol_app.command("enable", epilog="Example: outpost enrol enable pumps --group")
def enrol_enable(
    name: NameArgument,
    is_group: GroupOption = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take its registrations again."""
    _set_status(name, "enabled", is_group, data, as_json)


@enrol_app.command("remove", epilog="Example: outpost enrol remove pumps --group")
def enrol_remove(
    name: NameArgument,
    is_group: GroupOption = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget an enrolment; devices that a hub has already stay there."""
    from outpost_tools.enrolments import Enrolments

    with Enrolments(data_dir(data)) as enrolments:
        enrolments.remove(name, is_group)
    answer(as_json, {"enrolment": name, "removed": True}, f"The enrolment {name} is removed.")


@enrol_app.command("key", epilog="Example: outpost enrol key pumps pump-7 -o pump-7.json")
def enrol_key(
    name: Annotated[str, typer.Argument(metavar="GROUP", help="An enrolment group with keys.")],
    registration_id: Annotated[str, typer.Argument(metavar="ID", help="The device's own id.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE", help="The file; only you can read it."),
    ],
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Derive the keys of one device of a group, into a file."""
    from outpost_tools.enrolment import check_registration_id, derive_key
    from outpost_tools.enrolments import Enrolments

    check_registration_id(registration_id)
    with Enrolments(data_dir(data)) as enrolments:
        enrolment = enrolments.get(name, group=True)
        scope = enrolments.id_scope
    if enrolment.attestation != "symmetricKey":
        raise OutpostError(f"The group {name!r} is enrolled with a certificate: it has no keys.")
    first, second = (derive_key(key, registration_id) for key in enrolment.keys)
    _write_keys(output, scope, registration_id, (first, second))
    answer(
        as_json,
        {"registrationId": registration_id, "idScope": scope, "file": str(output)},
        f"The keys of {registration_id} in {name} are in {output}.",
    )


@enrol_app.command("hub", epilog="Example: outpost enrol hub hub-b.local --hub-data ../hub-b")
def enrol_hub(
    host: Annotated[str, typer.Argument(metavar="HOST", help="As devices are to call it.")],
    hub_data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data folder of that hub.")
    ] = None,
    weight: Annotated[int, typer.Option(min=0, max=1000, help="Its share.")] = 1,
    unlink: Annotated[bool, typer.Option("--unlink", help="Assign to it no longer.")] = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let devices be assigned to another hub, too."""
    from outpost_tools.enrolments import Enrolments

    with Enrolments(data_dir(data)) as enrolments:
        if unlink:
            enrolments.unlink_hub(host)
        elif hub_data is None:
            raise OutpostError("Give the data folder of that hub with --hub-data.")
        else:
            enrolments.link_hub(host, hub_data.resolve(), weight)
        held = [{"host": h.host, "weight": h.weight} for h in enrolments.hubs()]
    answer(as_json, held, *[f"{row['host']}  weight {row['weight']}" for row in held])


@enrol_app.command("policy", epilog="Example: outpost enrol policy short --days 7")
def enrol_policy(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="As in --credential-policy; without it: show all."),
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, max=90, help="How long certificates live.")
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how long the certificates live that are issued under a policy, or show the policies."""
    from outpost_tools.enrolments import Enrolments

    if (name is None) is not (days is None):
        raise OutpostError("Give a policy's name and its --days, or neither to see them all.")
    with Enrolments(data_dir(data)) as enrolments:
        if name is not None and days is not None:
            enrolments.put_credential_policy(name, days)
        held = enrolments.credential_policies()
    answer(as_json, held, *[f"{policy}  {lives} days" for policy, lives in held.items()])
