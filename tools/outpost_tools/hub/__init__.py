"""The local hub: IoT Hub's device side on loopback, for trying and testing with no cloud account.

    auth     who a CONNECT is from, and whether it may
    packets  MQTT packets in and out, checked before they are believed
    session  one device's connection
    server   the TLS listener and what all sessions share
    ignoring a TLS server that ignores the record size asked for, for tests
    store    telemetry on disk, before it is acknowledged

`Hub` runs the whole in a thread of its own, for tests and for the command line.
"""

from outpost_tools.hub.server import Hub
from outpost_tools.hub.session import Telemetry

__all__ = ["Hub", "Telemetry"]
