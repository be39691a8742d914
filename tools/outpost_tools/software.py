"""Software packages of a fleet: signed envelopes around an application (docs/updates.md).

It owns the file that is carried from signer to signer and then pushed: an envelope of the role
software, with as many signatures as it has by then. Who may sign is what the trust bundle says, or,
for boards without one, the signers with the role software.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from outpost_tools import agreed, bundle, envelope
from outpost_tools.envelope import Envelope, Keys
from outpost_tools.errors import OutpostError
from outpost_tools.firmwarerecord import FirmwareRecord
from outpost_tools.package import Package
from outpost_tools.signing import Signers

DAYS = 90
DAYS_MAX = 36500
ROLE = "software"


@dataclass(frozen=True)
class Software:
    """A package, or the record of a firmware, in its envelope."""

    package: Package | FirmwareRecord
    envelope: Envelope

    @property
    def kind(self) -> str:
        """What delivery calls it."""
        firmware = isinstance(self.package, FirmwareRecord)
        return agreed.FIRMWARE_KIND if firmware else agreed.APP_KIND

    @property
    def version(self) -> int:
        return self.envelope.version

    @classmethod
    def around(
        cls,
        package: Package | FirmwareRecord,
        fleet: str,
        version: int,
        days: float = DAYS,
        now: int | None = None,
    ) -> "Software":
        """Unsigned. `days`: so long may it be installed; what is installed never expires."""
        if not 1 <= version <= agreed.APP_VERSION_MAX:
            raise OutpostError(f"A version is a number from 1 to {agreed.APP_VERSION_MAX}.")
        if not 0 < days <= DAYS_MAX:
            raise OutpostError(f"A package may be installed for up to {DAYS_MAX} days, not {days}.")
        issued = int(time.time()) if now is None else now
        made = Envelope.around(
            package.encode(),
            role=agreed.ROLE_SOFTWARE,
            fleet=fleet,
            version=version,
            floor=0,
            issued=issued,
            expires=issued + int(days * 86400),
        )
        return cls(package, made).checked()

    @classmethod
    def read(cls, path: Path) -> "Software":
        try:
            data = path.read_bytes()
        except OSError as why:
            raise OutpostError(f"Cannot read {path} ({why.strerror}).") from None
        return cls.decode(data)

    @classmethod
    def decode(cls, data: bytes) -> "Software":
        delivered = envelope.decode(data)
        found = delivered.envelope
        if delivered.links or found.role != agreed.ROLE_SOFTWARE:
            raise OutpostError("This is no software package: it is of another role.")
        assert found.body is not None
        firmware = found.body.startswith(agreed.FIRMWARE_MAGIC)
        return cls((FirmwareRecord if firmware else Package).decode(found.body), found).checked()

    def checked(self) -> "Software":
        firmware = isinstance(self.package, FirmwareRecord)
        most = agreed.FIRMWARE_RECORD_MAX if firmware else agreed.APP_MAX_BYTES
        if len(self.encode()) > most:
            raise OutpostError(
                f"The package has {len(self.encode())} bytes; a device takes {most}: "
                "leave something out."
            )
        return self

    def encode(self) -> bytes:
        return self.envelope.encode()

    def missing(self, keys: Keys) -> int:
        """How many signatures it still needs; OutpostError where one is wrong or unknown."""
        return envelope.missing(self.envelope, keys)[0]


def keys_of(data: Path, trust: Path | None = None) -> Keys:
    """Who signs the fleet's software: by the trust bundle's file, else the signers with that role,
    any one of them."""
    if trust is not None:
        try:
            named = bundle.read(trust.read_bytes())[0].software
        except OSError as why:
            raise OutpostError(f"Cannot read {trust} ({why.strerror}).") from None
        if named is not None:
            return named
    points = [signer.point for signer in Signers(data).all() if ROLE in signer.roles]
    if not points:
        raise OutpostError(
            "Nobody may sign software: make a signer with `outpost sign new NAME --role software`."
        )
    return Keys.of(1, points)
