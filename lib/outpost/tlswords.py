"""TLS's errors in words: what was wrong with a handshake, and what to do about it.

Loaded only where a connection has failed. Owns no flash; says nothing by itself.
"""

from micropython import const

from .errors import TlsError

try:
    import tlspolicy as policy
except ImportError:
    policy = None

# mbedtls's words for what was wrong with a chain, and ours for what to do.
_EXPIRED = "has expired"
_FUTURE = "starts in the future"
_VERDICTS = (
    (
        "CN) does not match",
        "its certificate names another host than %s: check `hub` and `gateway_host` in config.json",
    ),
    (_EXPIRED, "its certificate has expired, or this device's clock is wrong"),
    (_FUTURE, "its certificate is not valid yet by this device's clock"),
    ("not correctly signed", "its certificate does not end in one of this device's roots"),
    ("unacceptable", "its certificate uses a key or signature that is too weak"),
    ("key size", "its certificate uses a key or signature that is too weak"),
)

# What tlspolicy raises where a root is not a certificate for mbedtls, and its words.
_ROOT_WORDS = "trusted root"
_ROOT_SENTENCE = "one of this device's roots cannot be read by its TLS stack"

_FATAL_ALERT = const(-0x7780)
_BAD_VERSION = const(-0x6E80)
_CONN_EOF = const(-0x7280)
# Errors that a larger record size may cure: mbedtls before 3.6.3 cannot put a
# handshake message of several records together, and some servers abort when a
# message of ours does not fit. Each of these is in the handshake layer.
_CLIMB = (_FATAL_ALERT, _CONN_EOF, -0x7200, -0x7300, -0x7100, -0x7000)

# Descriptions of alerts (RFC 5246, 7.2.2) with which a server says what it lacks.
_ALERT_VERSION = const(70)
_ALERTS_SUITE = (40, 71)
# What a server says of a client's certificate: bad, unsupported, revoked, expired, unknown,
# of no authority that it knows, access denied.
_ALERTS_CERTIFICATE = (42, 43, 44, 45, 46, 48, 49)


def _verdict(text, host):
    """What is wrong with the server's chain, or with a root of ours."""
    if _ROOT_WORDS in text:
        return _ROOT_SENTENCE
    for words, sentence in _VERDICTS:
        if words in text:
            if "%s" in sentence:
                sentence = sentence % host
            return "%s is not trusted: %s" % (host, sentence)
    return "%s is not trusted: %s" % (host, text.strip().replace("\n", ", "))


def explain(e, host, shown=False):
    """TlsError of what mbedtls raised; shown: whether this device showed a certificate."""
    if isinstance(e, ValueError):
        text = str(e)
        err = TlsError(_verdict(text, host), True)
        err.untrusted = True
        err.clock = _EXPIRED in text or _FUTURE in text
        return err
    code = e.args[0] if e.args else 0
    climb = code in _CLIMB
    if code == 12:
        return TlsError(
            "there is too little memory for a TLS connection: ask a smaller record size"
        )
    if code == _BAD_VERSION:
        return TlsError("%s does not speak TLS 1.2" % host, True)
    if code == _FATAL_ALERT:
        alert = policy.last()["alert"] if policy else None
        if alert == _ALERT_VERSION:
            return TlsError("%s does not speak TLS 1.2" % host, True)
        if shown and alert in _ALERTS_CERTIFICATE:
            return TlsError(
                "%s did not take this device's certificate (TLS alert %d): check that the device "
                "exists there, is enabled, and has this certificate" % (host, alert),
                True,
                False,
                True,
            )
        if alert in _ALERTS_SUITE:
            # Every suite of ours is of TLS 1.2: an older server finds none either.
            return TlsError(
                "%s accepts none of this device's cipher suites: it may not speak TLS 1.2" % host,
                True,
            )
        if alert is not None:
            return TlsError(
                "%s refused the handshake with TLS alert %d" % (host, alert), False, climb
            )
        return TlsError(
            "%s refused the handshake: it may speak no TLS 1.2, or none of our cipher suites"
            % host,
            False,
            climb,
        )
    if code == _CONN_EOF:
        return TlsError("%s closed the connection during the handshake" % host, False, climb)
    return TlsError("the TLS handshake with %s failed (%s)" % (host, e), False, climb)
