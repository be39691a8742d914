"""DPS: ask the provisioning service which hub this device belongs to, and for a certificate.

    register -> (202: wait as told, ask again) ... -> 200: assigned, failed or disabled

`Registration` is the state machine, without a connection; `ask()` runs it over one Session.
Every answer is checked: an answer to no question of ours, or a lie in one, changes nothing.
Owns the blob "hub" in the NVS namespace: what was assigned, and under which scope and name.
"""

import binascii
import gc
import json
import time

from micropython import const

from . import agreed, identity, keystore, sas
from .errors import IdentityError, ProvisioningError
from .json_in import parse

RESPONSES = "$dps/registrations/res/#"
_ANSWERS = "$dps/registrations/res/"
_REGISTER = "$dps/registrations/PUT/iotdps-register/?$rid=%d"
_STATUS = "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=%d&operationId=%s"

TOKEN_TTL_S = 600
LIMIT_BYTES = 5120  # of one answer: a chain of CHAIN_MAX_BYTES in base64, and what is around it
_ANSWER_MS = 20000
_WHOLE_MS = 180000
_WAIT_S = (1, 3, 30)  # least, usual and most between two questions
_LATER_MAX_S = 3600  # the longest that the service can send this device away for
_HOST_MAX = 253
_OPERATION_MAX = 256
_STATUS_THROTTLED = const(429)


class Assigned:
    """hub, device_id, and chain (DER of the issued certificates, leaf first) or None."""

    def __init__(self, hub, device_id, chain=None):
        self.hub = hub
        self.device_id = device_id
        self.chain = chain


def user_name(dps, name):
    version = agreed.DPS_API_VERSION_CSR if dps.csr else agreed.DPS_API_VERSION
    return "%s/registrations/%s/api-version=%s" % (dps.id_scope, name, version)


def password(credential, dps, name, now):
    """A token for one registration; empty where a certificate is shown."""
    if not credential.symmetric:
        return ""
    resource = "%s/registrations/%s" % (dps.id_scope, name)
    return sas.signature(credential.sign, resource, now + TOKEN_TTL_S, "registration")


# What was assigned, over a restart


def remembered(dps, name):
    """Assigned of an earlier registration with this scope and name, or None."""
    try:
        raw = keystore.blob(keystore.open_nvs(), agreed.NVS_HUB, (640,))
        hub, device_id, scope, kept = raw.decode().split("\n")
        if (scope, kept) != (dps.id_scope, name):
            return None
        return Assigned(_host(hub), identity.check_device_id(device_id.encode()))
    except (IdentityError, ProvisioningError, ValueError, AttributeError):
        return None


def remember(assigned, dps, name):
    """One write, and none where it is known already."""
    before = remembered(dps, name)
    if before and (before.hub, before.device_id) == (assigned.hub, assigned.device_id):
        return
    text = "\n".join((assigned.hub, assigned.device_id, dps.id_scope, name))
    nvs = keystore.open_nvs()
    keystore.write(lambda: (nvs.set_blob(agreed.NVS_HUB, text.encode()), nvs.commit()))


# One registration


def ask(session, name, csr):
    """Register over a Session that the service has accepted. Returns Assigned."""
    registration = Registration(name, csr)
    session.limit = LIMIT_BYTES

    def received(topic, body, pid):
        registration.answer(topic, body)  # where it lies: a chain is long
        if pid is not None:
            session.puback(pid)

    def too_long(topic, size):
        # No answer of the service's is: waiting for a shorter one would be for nothing.
        raise ProvisioningError(
            "the provisioning service sent a packet of %d bytes, more than the %d this device takes"
            % (size, LIMIT_BYTES)
        )

    session.received = received
    session.too_long = too_long
    session.subscribe(RESPONSES, 1)
    while registration.assigned is None:
        question = registration.question(time.ticks_ms())
        if question:
            session.publish(question[0], question[1], qos=1)
            question = None
        if session.check_msg() is None:
            session.sock.wait(min(session.service(_ANSWER_MS), 200))
    return registration.assigned


class Registration:
    """The state of one registration. assigned is an Assigned once it has come to its end."""

    def __init__(self, name, csr=None, now_ms=None):
        self.assigned = None
        self._name = name
        self._csr = csr
        self._start = self._asked = time.ticks_ms() if now_ms is None else now_ms
        self._wait_ms = 0  # from _asked until the next question
        self._rid = 0
        self._open = False  # whether an answer is due
        self._operation = None

    def question(self, now_ms):
        """(topic, body) to publish now, or None. ProvisioningError past a deadline."""
        waited = time.ticks_diff(now_ms, self._asked)
        if time.ticks_diff(now_ms, self._start) > _WHOLE_MS:
            raise ProvisioningError(
                "the provisioning service assigned no hub in %d s" % (_WHOLE_MS // 1000)
            )
        if self._open:
            if waited > _ANSWER_MS:
                raise ProvisioningError(
                    "the provisioning service did not answer within %d s" % (_ANSWER_MS // 1000)
                )
            return None
        if waited < self._wait_ms:
            return None
        self._asked = now_ms
        self._open = True
        self._rid += 1
        if self._operation:
            return _STATUS % (self._rid, sas.quote(self._operation)), b" "
        body = {"registrationId": self._name}
        if self._csr:
            body["csr"] = binascii.b2a_base64(self._csr).strip().decode()
        return _REGISTER % self._rid, json.dumps(body).encode()

    def answer(self, topic, body):
        """One message of the service: late, twice or of another question, it is left alone."""
        status, options = _topic(topic)
        if not self._open or options.get("$rid") != str(self._rid):
            return
        self._open = False
        told = _object(body)
        if status == 202:
            self._operation = self._operation_of(told)
            self._wait_ms = _seconds(options, _WAIT_S[0], _WAIT_S[2], _WAIT_S[1]) * 1000
        elif status == 200:
            self.assigned = self._outcome(told)
        else:
            raise self._error(status, options, told)

    def _operation_of(self, told):
        operation = told.get("operationId")
        if (
            not isinstance(operation, str)
            or not 0 < len(operation) <= _OPERATION_MAX
            or not all(33 <= ord(c) < 127 for c in operation)
            or operation != (self._operation or operation)
        ):
            raise ProvisioningError(
                "the provisioning service answered with an operation that is not ours"
            )
        return operation

    def _outcome(self, told):
        state = told.get("registrationState")
        state = state if isinstance(state, dict) else {}
        if self._operation and told.get("operationId") != self._operation:
            raise ProvisioningError("the provisioning service answered for another operation")
        named = state.get("registrationId", "" if told.get("status") == "assigned" else self._name)
        if not isinstance(named, str) or named.lower() != self._name.lower():
            raise ProvisioningError("the provisioning service answered for another device")
        if told.get("status") == "assigned":
            device_id = state.get("deviceId", self._name)
            if not isinstance(device_id, str) or len(device_id) > agreed.DEVICE_ID_MAX:
                raise ProvisioningError("the provisioning service assigned no usable device id")
            try:
                identity.check_device_id(device_id.encode())
            except IdentityError:
                raise ProvisioningError("the provisioning service assigned no usable device id")
            chain = _chain(state.get("issuedCertificateChain")) if self._csr else None
            return Assigned(_host(state.get("assignedHub")), device_id, chain)
        if told.get("status") == "disabled":
            err = ProvisioningError(
                "this device's enrolment is disabled: enable it with the provisioning service", True
            )
            err.refused = True
            raise err
        raise ProvisioningError(
            "the provisioning service did not assign a hub (%s: %s)"
            % (_word(state.get("errorCode")), _word(state.get("errorMessage"))),
            True,
        )

    def _error(self, status, options, told):
        if status == _STATUS_THROTTLED or status >= 500:
            err = ProvisioningError(
                "the provisioning service is busy (status %d): this device waits" % status
            )
            err.later_s = _seconds(options, 1, _LATER_MAX_S, _WAIT_S[1])
            return err
        err = ProvisioningError(
            "the provisioning service refused the registration (status %d, %s: %s)"
            % (status, _word(told.get("errorCode")), _word(told.get("message"))),
            True,
        )
        err.refused = status in (401, 403)
        return err


def _topic(topic):
    """(status, options) of an answer's topic; (0, {}) where it is none."""
    try:
        text = topic.decode()
        path, query = text.split("?", 1)
        if not path.startswith(_ANSWERS):
            return 0, {}
        status = int(path[len(_ANSWERS) :].strip("/"))
        return status, dict([part.split("=", 1) for part in query.split("&")])
    except ValueError:  # UnicodeError is one
        return 0, {}


def _object(body):
    gc.collect()
    try:
        told = parse(body)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise ProvisioningError("the provisioning service answered no JSON object")
    return told


def _seconds(options, least, most, usual):
    text = options.get("retry-after", "")
    if not text.isdigit() or len(text) > 9:
        return usual if len(text) < 10 else most
    return min(max(int(text), least), most)


def _word(value):
    """Of what the service says: short, and never the whole of it."""
    return str(value)[:80]


def _host(host):
    """A host name, and nothing that could be more in a user name, a log or a certificate."""
    good = isinstance(host, str) and 0 < len(host) <= _HOST_MAX and host[0] not in "-."
    for c in host if good else "":
        if not ("a" <= c.lower() <= "z" or "0" <= c <= "9" or c in "-._"):
            good = False
    if not good:
        raise ProvisioningError("the provisioning service assigned a hub that is no host name")
    return host


def _chain(issued):
    """DER of the issued certificates, one after another."""
    chain = b""
    try:
        for text in issued:
            chain += binascii.a2b_base64(text)
            if len(chain) > agreed.CHAIN_MAX_BYTES:
                raise ValueError
        for _ in identity.certificates(chain):
            pass
    except (ValueError, TypeError):
        chain = b""
    if not chain:
        raise ProvisioningError(
            "the provisioning service issued no certificate that this device can use", True
        )
    return chain
