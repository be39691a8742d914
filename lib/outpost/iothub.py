"""IoT Hub over MQTT 3.1.1: its names for things, nothing of the connection (see profile.py).

Documented in "Communicate with an IoT hub using the MQTT protocol" (facts: port
8883, client id = device id, user name with api-version, SAS token as password).
"""

from . import agreed, bag, sas
from .profile import ANSWER, DESIRED, MESSAGE, METHOD

TOKEN_TTL_S = 3600
# A new connection with a new token is made when this part of the old one is left.
RENEW_BEFORE_S = 300
REPLY_QOS = 0
REPORT_QOS = 0

_METHOD = b"$iothub/methods/POST/"
_ANSWER = b"$iothub/twin/res/"
_DESIRED = b"$iothub/twin/PATCH/properties/desired/"
_BOUND = "devices/%s/messages/devicebound/"


def user_name(hub, device_id, model=None, certificate=False):
    """`model` is the id of a Plug and Play model, which the hub is told so."""
    name = "%s/%s/?api-version=%s" % (hub, device_id, agreed.API_VERSION)
    return name + "&model-id=" + sas.quote(model) if model else name


def password(identity, hub, now):
    """A token for TOKEN_TTL_S from `now` (Unix seconds)."""
    return sas.token(identity.sign, hub, identity.device_id, now + TOKEN_TTL_S)


def events_topic(device_id, number, made=None, more=()):
    """Topic of one telemetry message: JSON in UTF-8, marked so that the hub can route on it.

    number  message id, the same each time the message is sent: who reads can tell doubles
    made    ISO 8601 of its making, where that is known
    more    (name, text) of further properties
    """
    kind = agreed.EVENTS_SEALED if ("sealed", "dir") in more else agreed.EVENTS_PROPERTIES
    topic = agreed.EVENTS_TOPIC % device_id + kind + "&$.mid=%s" % number
    if made:
        topic += "&$.ctime=" + sas.quote(made)
    for name, text in more:
        topic += "&%s=%s" % (name, sas.quote(text))
    return topic


def subscriptions(device_id, methods, messages, twin):
    wanted = []
    if methods:
        wanted.append(("$iothub/methods/POST/#", 0))
    if messages:
        wanted.append((_BOUND % device_id + "#", 1))
    if twin:
        wanted.append(("$iothub/twin/res/#", 0))
        wanted.append(("$iothub/twin/PATCH/properties/desired/#", 0))
    return wanted


def incoming(topic, device_id):
    if topic.startswith(_METHOD):
        parts = topic[len(_METHOD) :].split(b"/?$rid=", 1)
        return (METHOD, parts[0], parts[1]) if len(parts) == 2 else (None,)
    if topic.startswith(_ANSWER):
        parts = topic[len(_ANSWER) :].split(b"/?", 1)
        options = bag.parse(parts[1]) if len(parts) == 2 else {}
        return ANSWER, _number(parts[0]), options.get("$rid", "")
    if topic.startswith(_DESIRED):
        return DESIRED, _number(bag.parse(topic[len(_DESIRED) + 1 :]).get("$version", ""))
    bound = (_BOUND % device_id).encode()
    if topic.startswith(bound):
        return MESSAGE, topic[len(bound) :]
    return (None,)


def message(raw):
    properties = bag.parse(raw)
    mid = properties.get("$.mid")
    return properties, mid and mid.encode(), bag.unix(properties.get("$.exp", ""))


def method_reply(device_id, rid, status):
    return "$iothub/methods/res/%d/?$rid=%s" % (status, rid)


def twin_get(rid):
    return "$iothub/twin/GET/?$rid=" + rid


def twin_report(device_id, rid):
    return "$iothub/twin/PATCH/properties/reported/?$rid=" + rid


def _number(raw):
    try:
        return int(raw)
    except ValueError:
        return None
