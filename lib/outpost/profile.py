"""Profile: what the other side of MQTT calls things, in two modules of one shape.

iothub.py speaks IoT Hub's topics, generic.py plain topics for any broker: docs/topics.md. Both have

    user_name(hub, device_id, model, certificate)    password(credential, hub, now)
    TOKEN_TTL_S, RENEW_BEFORE_S         0 where a password does not end
    events_topic(device_id, number, made, more)
    subscriptions(device_id, methods, messages, twin) -> list of (filter, qos)
    incoming(topic, device_id) -> (METHOD, name, rid), (MESSAGE, bag), (ANSWER, status, rid),
                                  (DESIRED, version), (WHOLE, None) or (None,); bytes and numbers
    message(bag) -> (properties, id, expiry)
    method_reply(device_id, rid, status), REPLY_QOS
    twin_get(rid)                       None where the whole state comes by itself
    twin_report(device_id, rid), REPORT_QOS    at QoS 1 the PUBACK is the answer
"""

from micropython import const

METHOD = const(1)  # a direct method
MESSAGE = const(2)  # a cloud-to-device message
ANSWER = const(3)  # to a question of ours about the twin
DESIRED = const(4)  # a change of the desired properties
WHOLE = const(5)  # all desired properties


def load(name):
    if name == "generic":
        from . import generic

        return generic
    from . import iothub

    return iothub
