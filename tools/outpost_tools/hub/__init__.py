"""The local hub: IoT Hub's device side on loopback, for trying and testing with no cloud account.

    server         the listener: handshake, CONNECT, and which protocol it is for
    tls            TLS 1.2 with client certificates taken as they are
    ignoring       a TLS server that ignores the record size asked for, for tests
    packets        MQTT packets in and out, checked before they are believed
    line           one connection: packets, keep-alive, its end
    auth           who a CONNECT is from, and whether it may
    session        one device's connection: what IoT Hub's topics stand for
    couriers       its commands, until they are acknowledged
    core           what the hub knows and can do, apart from how anyone reaches it
    twins, commands, methods, subscriptions, store   its parts
    limits, throttle, faults   sizes and times, rates, and what the service side is told
    dps, assign, attest, issuing   the provisioning service on the same listener
    rest, query, forms   the service side over HTTPS
    running        where a running hub can be found
    load           many devices at once

`Hub` runs the whole in a thread of its own, for tests and for the command line.
"""

from outpost_tools.hub.server import Hub
from outpost_tools.hub.session import Telemetry

__all__ = ["Hub", "Telemetry"]
