"""TLS: one verified connection, and the ladder of record sizes.

The server is always verified: chain to one of our roots, host name, dates.
With the C module `tlspolicy` (our firmware) the floor is kept below Python, the
record size is negotiated and a root is in RAM only while it is compared; without it
(stock MicroPython) the suites, the verification and the roots are set here, and
`policy` is None. Owns one i32 in NVS per endpoint: the record size that worked there.
"""

import binascii
import gc
import hashlib
import socket
import time

import tls

from . import agreed, log
from .errors import OutpostError, TlsError
from .parts import do, let_go
from .stream import Stream

try:
    import tlspolicy as policy

    from . import resumption
except ImportError:
    policy = None


class Ladder:
    """Which record size to ask an endpoint for next.

    Starts at the size that last worked there (NVS) or at 512; climbs one rung per
    failure that a larger size may cure; rests on 0 ("do not ask") for a server
    that ignores the extension. A fixed size in the configuration is kept to.
    """

    def __init__(self, host, port, wanted="auto"):
        name = hashlib.sha256(("%s:%d" % (host, port)).encode()).digest()[:4]
        self._entry = agreed.NVS_RECORD_SIZE_PREFIX + binascii.hexlify(name).decode()
        self._wanted = wanted
        self._stored = self._load()
        self.size = agreed.RECORD_SIZES[0]
        if wanted != "auto":
            self.size = wanted
        elif self._stored is not None:
            self.size = self._stored
        # Whether the endpoint is known to ignore the request: full buffers (16 KiB)
        # are then set up from the start. Where it is not known yet, tlspolicy finds out
        # in the ServerHello and grows the buffers in place.
        self.ignored = self.size == 0
        self._least = agreed.RECORD_SIZES[0]

    def at_least(self, message_bytes):
        """Ask for no less than the device's own certificate message needs: mbedtls does not
        cut a handshake message of its own into several records."""
        self._least = 4096
        for size in agreed.RECORD_SIZES:
            if size >= message_bytes:
                self._least = size
                break
        if self.size and self.size < self._least:
            if self._wanted != "auto":
                raise TlsError(
                    "this device's certificate does not fit a record of %d bytes: set record_size "
                    'in config.json to %d or "auto"' % (self.size, self._least),
                    True,
                )
            self.size = self._least

    def _load(self):
        import esp32

        try:
            size = esp32.NVS(agreed.NVS_NAMESPACE).get_i32(self._entry)
        except OSError:
            return None
        return size if size == 0 or size in agreed.RECORD_SIZES else None

    def worked(self, granted):
        """Remember what worked; writes flash only when it is news."""
        if self._wanted != "auto":
            return
        size = granted or 0
        self.size = size
        self.ignored = not size
        if size == self._stored:
            return
        import esp32

        try:
            nvs = esp32.NVS(agreed.NVS_NAMESPACE)
            nvs.set_i32(self._entry, size)
            nvs.commit()
            self._stored = size
        except OSError:
            pass  # a full NVS costs one more handshake after a restart, no more

    def failed(self):
        """Climb: the next larger size, "not asked" above 4096, then 512 again."""
        if self._wanted != "auto":
            return
        if self.size == 0:
            self.size = self._least
        else:
            at = agreed.RECORD_SIZES.index(self.size) + 1
            self.size = agreed.RECORD_SIZES[at] if at < len(agreed.RECORD_SIZES) else 0
        self.ignored = self.size == 0


def context(roots, ecc_only=False):
    """A client context that trusts `roots` and nothing else; roots() gives an iterable of DER.

    With tlspolicy none is loaded: open_stream() hands `roots` over, and the handshake
    reads them one by one. They are read through here once, so that a damaged file
    raises TrustError before there is a connection. Without it all are loaded, and take
    1.5 to 3 KB of C heap each.
    """
    ctx = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
    ctx.verify_mode = tls.CERT_REQUIRED
    if policy:
        policy.suites("ecc" if ecc_only else "all")
        for _ in roots():
            pass
        return ctx
    from . import suites

    names = suites.SUITES_ECDSA if ecc_only else suites.SUITES_ECDSA + suites.SUITES_RSA
    let_go(suites)
    have = ctx.get_ciphers()
    ctx.set_ciphers([n for n in names if n in have])
    for der in roots():
        try:
            ctx.load_verify_locations(bytes(der))  # it takes no memoryview
        except ValueError as e:
            raise explained(ValueError("trusted root", e), "")
    return ctx


def explained(e, host, shown=False):
    """TlsError of what mbedtls raised; shown: whether this device showed a certificate."""
    return do("tlswords", "explain", e, host, shown)


def resolve(host, port):
    """The address of a host name; TlsError where it has none."""
    try:
        return socket.getaddrinfo(host, port)[0][-1]
    except (OSError, IndexError):
        raise TlsError(
            "the name %s does not resolve: check `hub` and `gateway_host` in config.json, or the "
            "network's DNS" % host
        )


def open_stream(host, port, ctx, roots, connect_ms=10000, pin=None):
    """A Stream to host:port whose handshake runs in its first flush, under its deadline.

    ctx is of context(roots). TCP connect waits at most connect_ms. pin: the certificate of the
    recovery endpoint, whose dates are then not judged (tlspolicy_pin.c); roots() gives it alone.
    """
    address = resolve(host, port)
    s = socket.socket()
    try:
        s.settimeout(connect_ms / 1000)
        s.connect(address)
        s.setblocking(False)
        if policy:
            policy.roots(roots)
            policy.pinned(pin)
        sock = ctx.wrap_socket(s, server_hostname=host, do_handshake_on_connect=False)
    except OSError as e:
        s.close()
        raise TlsError("%s port %d cannot be reached (%s)" % (host, port, e))
    except ValueError as e:
        s.close()
        raise explained(e, host)
    finally:
        # For this connection alone: others of the program have roots of their own.
        if policy:
            policy.roots(None)
            policy.pinned(None)
    return Stream(sock)


class Connection:
    """What connect() gives: the stream's handshake facts for log and telemetry."""

    def __init__(self):
        self.asked = 0
        self.granted = 0
        self.suite = self.version = None
        self.facts = None  # tlspolicy.last(); None on a stock MicroPython
        self.heap_peak = 0
        self.heap_steady = 0
        self.ms = 0

    def line(self):
        """What the console says of it."""
        f = self.facts
        line = "connected version=%s cipher=%s" % (self.version, self.suite)
        if not f:
            return line + (
                " ms=%d (stock MicroPython: record size, root and memory are not known here, and "
                "the TLS floor holds for this library alone)" % self.ms
            )
        root = binascii.hexlify(f["root"]).decode() if f["root"] else "none"
        return line + (
            " resumed=%d mfl_asked=%d mfl_granted=%d root=%s rx=%d tx=%d ms=%d"
            " tls_heap_peak=%d tls_heap_steady=%d"
            % (
                f["resumed"],
                self.asked,
                self.granted,
                root,
                f["rx"],
                f["tx"],
                f["ms"],
                self.heap_peak,
                self.heap_steady,
            )
        )


class _NoOffer:
    """What resumption.Offer is without tlspolicy, where there are no sessions to take up."""

    made = False

    def used(self):
        pass

    def done(self):
        pass


def connect(where, roots, first_packet, ladder, credential=None):
    """One verified connection to where.host, where the credential's certificate is shown.

    roots() gives an iterable of DER, whenever it is called. first_packet(stream) writes the first
    application data, in whose flush the handshake happens, and waits for its
    answer. Returns (that answer, Connection). TlsError says why not; the ladder has
    then moved where that can help. The session of the last connection is offered
    (resumption.py); where it does not do, a full handshake follows at once.
    """
    gc.collect()  # frees the C heap of an earlier connection's context
    offer = resumption.Offer(where, roots, credential) if policy else _NoOffer()
    try:
        return _connect(where, roots, first_packet, ladder, credential, offer)
    except OutpostError as e:
        # A refusal too: who resumes may have lost whose session it was.
        if not offer.made or not (e.refused or getattr(e, "handshake", False)):
            raise
        log.say("tls", "%s; the session is dropped" % e)
    finally:
        offer.done()
    return connect(where, roots, first_packet, ladder, credential)


def _connect(where, roots, first_packet, ladder, credential, offer):
    result = Connection()
    shown = credential is not None and not credential.symmetric
    ladder.at_least(credential.message_bytes() if shown else 0)
    if policy:
        result.asked = ladder.size
        policy.max_fragment_length(ladder.size or None)
        policy.full_buffers(ladder.ignored)
        policy.heap_reset()
    start = time.ticks_ms()
    ctx = context(roots, where.ecc_only)
    stream = None
    try:
        if shown:
            credential.arm(ctx)
        stream = open_stream(where.host, where.port, ctx, roots, pin=where.pin)
        offer.used()
        answer = first_packet(stream)
    except BaseException as e:
        if stream:
            stream.close()
        if not isinstance(e, (ValueError, OSError)):
            raise
        err = explained(e, where.host, shown)
        err.handshake = True
        if err.climb and not offer.made:
            ladder.failed()
        raise err
    finally:
        if shown:
            credential.disarm()
    result.ms = time.ticks_diff(time.ticks_ms(), start)
    result.suite, result.version = stream.cipher()
    if policy:
        result.facts = policy.last()
        result.granted = result.facts["granted"] or 0
        result.heap_steady, result.heap_peak = policy.heap()
        ladder.worked(result.granted)
        offer.kept(result.facts)
    return answer, result
