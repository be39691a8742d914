"""`outpost token`, `policy …` and `authority …`: who may ask for what, and how it is shown."""

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from outpost_tools.cli.common import (
    ConnectionOption,
    DataOption,
    JsonOption,
    Which,
    answer,
    app,
    group,
)
from outpost_tools.errors import OutpostError
from outpost_tools.paths import data_dir, write_whole

policy_app = group("policy", "Shared access policies of the local hub.")
authority_app = group("authority", "CAs whose device certificates the local hub takes.")

LIFE_MAX_S = 365 * 86400


class Right(StrEnum):
    RegistryRead = "RegistryRead"
    RegistryReadWrite = "RegistryReadWrite"
    ServiceConnect = "ServiceConnect"
    DeviceConnect = "DeviceConnect"


def device_host(connection: str | None, data: Path) -> str:
    """The host name that devices call the hub by."""
    from outpost_tools import connection as connections
    from outpost_tools.hub import running

    text = connections.given(connection)
    if text is not None:
        return connections.parse(text).host.partition(":")[0]
    found = running.find(data)
    return found.names[0] if found and found.names else "localhost"


@app.command("token", epilog="Example: outpost token pump-7 --policy device --life 15m")
def token(
    device_id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="A token for this device; without it, for a service."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Sign with this policy's key, not the device's own."),
    ] = None,
    secondary: Annotated[bool, typer.Option("--secondary", help="Sign with that key.")] = False,
    hub: Annotated[
        str | None, typer.Option(metavar="HOST", help="Host name of the hub.  [localhost]")
    ] = None,
    life: Annotated[str, typer.Option(metavar="TIME", help="E.g. 15m, 2h, 7d.")] = "1h",
    connection: ConnectionOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a SAS token: for a device from its key or a policy's, for a service from a policy's.

    With a connection string the token is signed with its key, and no hub is asked.
    """
    from outpost_tools import connection as connections
    from outpost_tools import sas
    from outpost_tools.cli.service import seconds_of
    from outpost_tools.hub import running
    from outpost_tools.registry import Registry, check_device_id

    life_s = seconds_of(life, "--life")
    if not 1 <= life_s <= LIFE_MAX_S:
        raise OutpostError("A token lives from one second to 365 days: give e.g. --life 1h.")
    if device_id is not None:
        check_device_id(device_id)
    folder = data_dir(data)
    text = connections.given(connection)
    if text is not None:
        parsed = connections.parse(text)
        name, key, host = parsed.policy, parsed.key, hub or parsed.host
        if policy not in (None, name) or secondary:
            raise OutpostError("The connection string holds one key: leave out --policy.")
        if device_id is not None:
            host = host.partition(":")[0]
    else:
        with Registry(folder) as registry:
            if device_id is not None and policy is None:
                device = registry.get(device_id)
                if not device.keys:
                    raise OutpostError(
                        f"The device {device_id!r} connects with a certificate: it has no keys."
                    )
                name, keys = None, device.keys
            else:
                name = policy or connections.OWNER
                held = registry.policy(name)
                if held is None:
                    raise OutpostError(f"There is no policy {name!r}: see `outpost policy list`.")
                keys = held.keys
                if device_id is not None and "DeviceConnect" not in held.rights:
                    raise OutpostError(
                        f"The policy {name!r} lacks DeviceConnect: no device connects with it."
                    )
        key = keys[int(secondary)]
        if device_id is None and hub is None:
            found = running.find(folder)
            host = found.service if found else "localhost"
        else:
            host = hub or device_host(None, folder)
    resource = host if device_id is None else f"{host}/devices/{device_id}"
    expiry_s = int(time.time() + life_s)
    made = sas.make(key, resource, expiry_s, name)
    answer(
        as_json, {"token": made, "resource": resource, "expires_s": expiry_s, "policy": name}, made
    )


@policy_app.command("list", epilog="Example: outpost policy list")
def policy_list(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Show the policies and their rights, without their keys."""
    from outpost_tools.registry import Registry

    with Registry(data_dir(data)) as registry:
        rows = [{"policy": p.name, "rights": sorted(p.rights)} for p in registry.policies()]
    answer(as_json, rows, *[f"{row['policy']}  {', '.join(row['rights'])}" for row in rows])


@policy_app.command("new", epilog="Example: outpost policy new tokens --right DeviceConnect")
def policy_new(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    right: Annotated[list[Right], typer.Option(help="May be repeated.")],
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a policy with two new keys. They are not shown."""
    from outpost_tools.registry import Registry

    with Registry(data_dir(data)) as registry:
        policy = registry.add_policy(name, [r.value for r in right])
    answer(
        as_json,
        {"policy": policy.name, "rights": sorted(policy.rights)},
        f"The policy {policy.name} has {', '.join(sorted(policy.rights))}.",
    )


@policy_app.command("rotate", epilog="Example: outpost policy rotate service --which primary")
def policy_rotate(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    which: Annotated[Which, typer.Option(help="Which keys are made anew.")] = Which.both,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make new keys for a policy, or exchange the two; old tokens are refused."""
    from outpost_tools.registry import Registry

    with Registry(data_dir(data)) as registry:
        registry.rotate_policy(name, which.value)
    answer(
        as_json,
        {"policy": name, "rotated": which.value},
        f"The policy {name} has other keys now ({which.value}).",
    )


@policy_app.command("remove", epilog="Example: outpost policy remove tokens")
def policy_remove(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget a policy; its tokens are refused."""
    from outpost_tools.registry import Registry

    with Registry(data_dir(data)) as registry:
        registry.remove_policy(name)
    answer(as_json, {"policy": name, "removed": True}, f"The policy {name} is removed.")


@policy_app.command("show", epilog="Example: outpost policy show service --keys-to service.json")
def policy_show(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    keys_to: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The file; only you can read it: it holds the keys."),
    ],
    hub: Annotated[
        str | None, typer.Option(metavar="HOST[:PORT]", help="Where its HTTPS side is reached.")
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a policy's keys and connection string into a file, for service programs."""
    from outpost_tools.hub import running
    from outpost_tools.registry import Registry

    folder = data_dir(data)
    with Registry(folder) as registry:
        policy = registry.policy(name)
    if policy is None:
        raise OutpostError(f"There is no policy {name!r}: see `outpost policy list`.")
    found = running.find(folder)
    host = hub or (found.service if found else "localhost:8443")
    text = f"HostName={host};SharedAccessKeyName={name};SharedAccessKey={policy.primary_key}"
    content = {
        "policy": name,
        "primaryKey": policy.primary_key,
        "secondaryKey": policy.secondary_key,
        "connectionString": text,
    }
    write_whole(keys_to, json.dumps(content, indent=2).encode() + b"\n")
    answer(
        as_json,
        {"policy": name, "rights": sorted(policy.rights), "file": str(keys_to)},
        f"The keys of the policy {name} are in {keys_to}.",
    )


@authority_app.command("add", epilog="Example: outpost authority add factory factory-ca.pem")
def authority_add(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The CA's certificate, PEM.")],
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take device certificates that this CA signed, for devices made with --ca-signed."""
    from outpost_tools.registry import Registry

    try:
        pem = file.read_text()
    except (OSError, UnicodeDecodeError):
        raise OutpostError(f"{file} is not a certificate in PEM form.") from None
    with Registry(data_dir(data)) as registry:
        registry.add_authority(name, pem)
    answer(as_json, {"authority": name}, f"Device certificates of {name} are taken.")


@authority_app.command("list", epilog="Example: outpost authority list")
def authority_list(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Show the CAs whose device certificates are taken."""
    from outpost_tools.registry import Registry

    with Registry(data_dir(data)) as registry:
        rows = [
            {
                "authority": name,
                "subject": certificate.subject.rfc4514_string(),
                "until": certificate.not_valid_after_utc.strftime("%Y-%m-%d"),
            }
            for name, certificate in registry.authorities().items()
        ]
    answer(
        as_json,
        rows,
        *[f"{row['authority']}  {row['subject']}  until {row['until']}" for row in rows],
    )


@authority_app.command("remove", epilog="Example: outpost authority remove factory")
def authority_remove(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take its device certificates no longer."""
    from outpost_tools.registry import Registry

    with Registry(data_dir(data)) as registry:
        registry.remove_authority(name)
    answer(
        as_json,
        {"authority": name, "removed": True},
        f"Device certificates of {name} are no longer taken.",
    )
