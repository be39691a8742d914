"""Every error the library raises, each a sentence that says what to do.

`person` is True where trying again cannot help until somebody acts; the device
then slows down to its longest interval but never gives up. No sentence ever
holds a key, a token or a password.
"""


class OutpostError(Exception):
    """A failure that the library understood. str() is one sentence."""

    stage = "device"

    def __init__(self, sentence, person=False):
        super().__init__(sentence)
        self.person = person


class ConfigError(OutpostError):
    stage = "config"


class IdentityError(OutpostError):
    stage = "identity"


class LinkError(OutpostError):
    stage = "link"


class ClockError(OutpostError):
    stage = "clock"


class TrustError(OutpostError):
    stage = "trust"


class TlsError(OutpostError):
    """The connection could not be made or was not trusted.

    `climb` is True where a larger record size may cure it (see tls.Ladder).
    """

    stage = "tls"

    def __init__(self, sentence, person=False, climb=False):
        super().__init__(sentence, person)
        self.climb = climb


class MqttError(OutpostError):
    """The peer broke MQTT 3.1.1, stopped answering, or closed the connection."""

    stage = "mqtt"


class Refused(MqttError):
    """CONNACK with a return code other than 0 (MQTT 3.1.1, table 3.1)."""

    stage = "hub"

    def __init__(self, code, sentence, person):
        super().__init__(sentence, person)
        self.code = code


class OutboxFull(OutpostError):
    """send() was refused: nothing was accepted, so nothing is lost silently."""

    stage = "outbox"
