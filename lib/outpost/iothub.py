"""IoT Hub over MQTT 3.1.1: its names for things, nothing of the connection.

Documented in "Communicate with an IoT hub using the MQTT protocol" (facts: port
8883, client id = device id, user name with api-version, SAS token as password).
"""

from . import agreed, sas

TOKEN_TTL_S = 3600
# A new connection with a new token is made when this part of the old one is left.
RENEW_BEFORE_S = 300


def user_name(hub, device_id):
    return "%s/%s/?api-version=%s" % (hub, device_id, agreed.API_VERSION)


def password(identity, hub, now):
    """A token for TOKEN_TTL_S from `now` (Unix seconds)."""
    return sas.token(identity.sign, hub, identity.device_id, now + TOKEN_TTL_S)


def events_topic(device_id, number, made=None, more=()):
    """Topic of one telemetry message: JSON in UTF-8, marked so that the hub can route on it.

    number  message id, the same each time the message is sent: who reads can tell doubles
    made    ISO 8601 of its making, where that is known
    more    (name, text) of further properties
    """
    topic = agreed.EVENTS_TOPIC % device_id + agreed.EVENTS_PROPERTIES + "&$.mid=%s" % number
    if made:
        topic += "&$.ctime=" + sas.quote(made)
    for name, text in more:
        topic += "&%s=%s" % (name, sas.quote(text))
    return topic
