"""Who a CONNECT to the provisioning service is from, and whether it may.

It owns the rules of DPS's user names, tokens and certificates, and asks the enrolments for the
rest. A device's name is the one that its enrolment, its key or its certificate gives it: a name in
other upper case is never a second device. A refusal carries the CONNACK code and a reason that is
safe to log.
"""

from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from outpost_tools import sas
from outpost_tools.enrolment import (
    REGISTRATION_ID_MAX,
    REGISTRATION_ID_PATTERN,
    Enrolment,
    derive_key,
)
from outpost_tools.enrolments import Enrolments
from outpost_tools.hub import attest, auth, packets


@dataclass(frozen=True)
class Who:
    """A device that has shown who it is."""

    registration_id: str
    enrolment: Enrolment
    api_version: str
    expires_s: float | None
    proof: attest.Proof = field(repr=False)


def split_user_name(user_name: str | None) -> tuple[str, str, dict[str, str]] | None:
    """Id scope, registration id and options of a DPS user name; None where it is none."""
    parts = (user_name or "").split("/", 3)
    if len(parts) != 4 or parts[1].lower() != "registrations" or parts[2].startswith("?"):
        return None
    options = parse_qsl(parts[3].removeprefix("?"), keep_blank_values=True)
    return parts[0], parts[2], dict(options)


def admit(
    connect: packets.Connect, certificates: list[bytes], enrolments: Enrolments, now_s: float
) -> Who:
    """Who this CONNECT is from, or a Refusal."""
    if connect.protocol != ("MQTT", 4):
        raise auth.Refusal(auth.BAD_PROTOCOL, "the protocol is not MQTT 3.1.1")
    named = split_user_name(connect.username)
    assert named is not None
    scope, registration_id, options = named
    api_version = options.get("api-version", "")
    if not api_version:
        raise auth.Refusal(auth.BAD_USER_OR_PASSWORD, "the user name has no api-version")
    if connect.client_id.lower() != registration_id.lower():
        raise auth.Refusal(auth.BAD_IDENTIFIER, "the client id is another than the registration id")
    if not (
        len(registration_id) <= REGISTRATION_ID_MAX
        and REGISTRATION_ID_PATTERN.fullmatch(registration_id)
    ):
        raise auth.Refusal(auth.BAD_IDENTIFIER, "the client id is not a registration id")
    if scope.lower() != enrolments.id_scope.lower():
        raise auth.Refusal(auth.NOT_AUTHORISED, "the id scope is of another service")
    if not connect.password:
        return _by_certificate(enrolments, registration_id, certificates, now_s, api_version)
    try:
        token = sas.parse(connect.password.decode("ascii"))
    except UnicodeDecodeError:
        raise auth.Refusal(auth.BAD_USER_OR_PASSWORD, "the password is not a SAS token") from None
    except sas.Refused as why:
        raise auth.Refusal(auth.BAD_USER_OR_PASSWORD, why.reason) from None
    if token.policy not in (None, "registration"):
        raise auth.Refusal(auth.NOT_AUTHORISED, "the token's policy is not `registration`")
    return _by_token(enrolments, scope, registration_id, token, now_s, api_version)


def _by_token(
    enrolments: Enrolments,
    scope: str,
    registration_id: str,
    token: sas.Token,
    now_s: float,
    api_version: str,
) -> Who:
    reason = "there is no enrolment for it"
    resource = f"{scope}/registrations/{registration_id}"
    own = enrolments.find(registration_id)
    for enrolment in [own] if own else enrolments.all(group=True):
        if enrolment.attestation != "symmetricKey":
            continue
        primary, secondary = enrolment.keys
        if enrolment.is_group:
            primary = derive_key(primary, registration_id)
            secondary = derive_key(secondary, registration_id)
        try:
            sas.check(token, resource, (primary, secondary), now_s)
        except sas.Refused as why:
            reason = why.reason
        else:
            name = registration_id if enrolment.is_group else enrolment.name
            proof = attest.Proof(keys=(primary, secondary))
            return Who(name, enrolment, api_version, token.expiry_s, proof)
    raise auth.Refusal(auth.NOT_AUTHORISED, reason)


def _by_certificate(
    enrolments: Enrolments,
    registration_id: str,
    certificates: list[bytes],
    now_s: float,
    api_version: str,
) -> Who:
    if not certificates:
        raise auth.Refusal(auth.NOT_AUTHORISED, "there is neither a token nor a certificate")
    try:
        shown = attest.read(certificates, registration_id, now_s)
        own = enrolments.find(registration_id)
        if own is not None:
            return Who(own.name, own, api_version, None, attest.as_individual(shown, own))
        groups = [e for e in enrolments.all(group=True) if e.attestation == "x509"]
        group, proof = attest.in_group(shown, groups)
    except attest.Unproven as why:
        raise auth.Refusal(auth.NOT_AUTHORISED, str(why)) from None
    return Who(shown.name, group, api_version, None, proof)
