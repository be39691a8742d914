"""Which hub the operator's commands go to, and with which right: a service connection string.

It owns the choice: what was given, else $OUTPOST_CONNECTION_STRING, else the hub that runs on the
data folder, with its policy `iothubowner`. The string holds a key: it is never shown.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from outpost_tools.errors import OutpostError
from outpost_tools.hub import running
from outpost_tools.paths import write_whole
from outpost_tools.pki import DevCA
from outpost_tools.registry import Registry, check_key

VARIABLE = "OUTPOST_CONNECTION_STRING"
OWNER = "iothubowner"
# Hosts of the real service: there commands and telemetry go over AMQP.
AZURE = (".azure-devices.net", ".azure-devices.cn", ".azure-devices.us")


@dataclass(frozen=True)
class Connection:
    """`host` as in HostName, with its port where it has one; `roots` where they are not public."""

    host: str
    policy: str
    key: str = field(repr=False)
    roots: Path | None = None

    @property
    def text(self) -> str:
        return f"HostName={self.host};SharedAccessKeyName={self.policy};SharedAccessKey={self.key}"

    @property
    def is_azure(self) -> bool:
        return self.host.lower().endswith(AZURE)


def parse(text: str, roots: Path | None = None) -> Connection:
    """A service connection string; what is wrong with it is said without quoting it."""
    fields: dict[str, str] = {}
    for part in text.strip().rstrip(";").split(";"):
        name, equals, value = part.partition("=")
        if not equals or name in fields:
            raise OutpostError("The connection string is not Name=value;Name=value: copy it whole.")
        fields[name] = value
    if "DeviceId" in fields:
        raise OutpostError(
            "That is a device's connection string: these commands need the one of a shared access "
            "policy, with SharedAccessKeyName in it."
        )
    wanted = ("HostName", "SharedAccessKeyName", "SharedAccessKey")
    if any(not fields.get(name) for name in wanted):
        raise OutpostError(f"The connection string needs {', '.join(wanted)}: copy it whole.")
    check_key(fields["SharedAccessKey"], "key of the connection string")
    return Connection(fields["HostName"], fields["SharedAccessKeyName"], fields["SharedAccessKey"])


def roots_of(data: Path) -> Path | None:
    """The development roots in one file, as HTTPS clients take them; None where there are none."""
    if not DevCA.exists(data):
        return None
    ca = DevCA(data)
    content = b"".join(ca.root_file(kind).read_bytes() for kind in ca.kinds)
    path = ca.folder / "roots.pem"
    if not path.is_file() or path.read_bytes() != content:
        write_whole(path, content, mode=0o644)
    return path


def of_local_hub(data: Path, policy: str = OWNER) -> Connection | None:
    """The hub that runs on this data folder; None where none does."""
    found = running.find(data)
    if found is None:
        return None
    with Registry(data) as registry:
        held = registry.policy(policy)
    if held is None:
        raise OutpostError(
            f"The local hub has no policy {policy!r}: make it with `outpost policy new`."
        )
    return Connection(found.service, held.name, held.primary_key, roots_of(data))


def given(text: str | None) -> str | None:
    """The connection string itself, from an option (text, or the name of a file) or $VARIABLE."""
    text = text or os.environ.get(VARIABLE)
    if not text or "=" in text:
        return text or None
    try:
        return Path(text).read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise OutpostError(
            "--connection is neither a connection string nor a file that can be read."
        ) from None


def choose(text: str | None, data: Path) -> Connection | None:
    """The connection to use; None where nothing was given and no local hub runs."""
    chosen = given(text)
    if chosen is None:
        return of_local_hub(data)
    parsed = parse(chosen)
    if parsed.is_azure:
        return parsed
    return Connection(parsed.host, parsed.policy, parsed.key, roots_of(data))


def need(text: str | None, data: Path) -> Connection:
    found = choose(text, data)
    if found is None:
        raise OutpostError(
            f"No hub runs on {data}: start it with `outpost hub run`, or give the connection "
            "string of another with --connection."
        )
    return found
