"""Any MQTT 3.1.1 broker: plain topics below outpost/{device id}/ (docs/topics.md, profile.py).

The device id is percent-encoded in topics, because `+`, `#` and `/` mean something there.
"""

import binascii

from . import bag, sas
from .profile import MESSAGE, METHOD, WHOLE

TOKEN_TTL_S = 0
RENEW_BEFORE_S = 0
REPLY_QOS = 1
REPORT_QOS = 1


def user_name(hub, device_id, model=None, certificate=False):
    """The device id; none with a certificate, which names the device."""
    return "" if certificate else device_id


def password(identity, hub, now):
    """Derived, so that the key itself is never sent: base64 of HMAC-SHA256(key, device id)."""
    return binascii.b2a_base64(identity.sign(identity.device_id.encode())).decode().strip()


def _quote(text):
    # NATS before 2.10 ends the connection of whoever has a dot in a topic.
    return sas.quote(text).replace(".", "%2E")


def _base(device_id):
    return "outpost/%s/" % _quote(device_id)


def events_topic(device_id, number, made=None, more=()):
    topic = "%stelemetry/id=%s" % (_base(device_id), number)
    if made:
        topic += "&made=" + _quote(made)
    for name, text in more:
        topic += "&%s=%s" % (name, _quote(text))
    return topic


def subscriptions(device_id, methods, messages, twin):
    base = _base(device_id)
    wanted = []
    if methods:
        wanted.append((base + "methods/#", 1))
    if messages:
        wanted.append((base + "messages/#", 1))
    if twin:
        wanted.append((base + "state/desired", 1))
    return wanted


def incoming(topic, device_id):
    base = _base(device_id).encode()
    if not topic.startswith(base):
        return (None,)
    parts = topic[len(base) :].split(b"/")
    if parts[0] == b"methods" and len(parts) == 3:
        return METHOD, bag.unquote(parts[1]).encode(), parts[2]
    if parts[0] == b"messages" and len(parts) <= 2:
        return MESSAGE, parts[1] if len(parts) == 2 else b""
    if parts == [b"state", b"desired"]:
        return WHOLE, None
    return (None,)


def message(raw):
    properties = bag.parse(raw)
    mid = properties.get("id")
    return properties, mid and mid.encode(), bag.unix(properties.get("exp", ""))


def method_reply(device_id, rid, status):
    return "%sreplies/%s/%d" % (_base(device_id), rid, status)


def twin_get(rid):
    return None


def twin_report(device_id, rid):
    return _base(device_id) + "state/reported"
