"""Every error the library raises, each a sentence that says what to do.

`person` is True where trying again cannot help until somebody acts; the device
then slows down to its longest interval but never gives up. No sentence ever
holds a key, a token or a password.
"""

import gc
import io
import sys


class OutpostError(Exception):
    """A failure that the library understood. str() is one sentence."""

    stage = "device"
    refused = (
        False  # the other side knows who this is, or says it does not: no fault of the network
    )

    busy = False  # the other side has more to do than it can
    clock = False  # this device's clock may be why

    def __init__(self, sentence, person=False):
        super().__init__(sentence)
        self.person = person

    def kind(self):
        """What to do about it: "refused" (look at the identity), "busy" (wait), "setup" (mend
        what the sentence names), "clock" (the time servers are asked again) or "network" (it comes
        back by itself)."""
        if self.clock and not self.person:
            return "clock"
        if self.refused:
            return "refused"
        return "busy" if self.busy else "setup" if self.person else "network"


def number(e):
    """The number of an OSError, 0 where it carries none."""
    return e.args[0] if e.args and isinstance(e.args[0], int) else 0


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

    `climb` is True where a larger record size may cure it (see tls.Ladder), `refused`
    where the server did not take this device's certificate, `handshake` where the
    server answered and the handshake with it went wrong, `untrusted` where its certificate is
    none that this device's roots can vouch for.
    """

    stage = "tls"
    handshake = False
    untrusted = False

    def __init__(self, sentence, person=False, climb=False, refused=False):
        super().__init__(sentence, person)
        self.climb = climb
        self.refused = refused


class MqttError(OutpostError):
    """The peer broke MQTT 3.1.1, stopped answering, or closed the connection."""

    stage = "mqtt"


class Refused(MqttError):
    """CONNACK with a return code other than 0 (MQTT 3.1.1, table 3.1)."""

    stage = "hub"

    def __init__(self, code, sentence, person):
        super().__init__(sentence, person)
        self.code = code
        self.busy = code == 3
        self.refused = code in (4, 5)  # 3 is a server that is busy: back-off, not another key


class ProvisioningError(OutpostError):
    """The provisioning service gave no hub."""

    stage = "dps"


class SignedError(OutpostError):
    """A signed command was not taken: nothing was changed."""

    stage = "signed"


class SealError(OutpostError):
    """A sealed message could not be opened, or not be made."""

    stage = "seal"


class DeliveryError(OutpostError):
    """A file could not be delivered: what of it is here stays, and the sender can go on."""

    stage = "delivery"


class OutboxFull(OutpostError):
    """send() was refused: nothing was accepted, so nothing is lost silently."""

    stage = "outbox"


def understood(e):
    """The OutpostError of whatever was raised inside step()."""
    if isinstance(e, OutpostError):
        return e
    gc.collect()
    if isinstance(e, MemoryError):
        return OutpostError("out of memory: %d bytes free" % gc.mem_free())
    if isinstance(e, OSError):
        return MqttError("the network failed (%s)" % e)
    # Nobody foresaw this one. Its type and place, never its text: that may hold a secret.
    out = io.StringIO()
    sys.print_exception(e, out)
    at = [line.strip() for line in out.getvalue().split("\n") if line.startswith("  File")]
    return OutpostError("a fault in the software, please report it: %s %s" % (type(e), at[-1:]))
