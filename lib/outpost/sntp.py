"""SNTP (RFC 4330): asks the time servers, and says what they agree on.

An answer can be forged, so two servers must agree. Loaded only to ask: at a start, then once a day.
Owns no flash, and sets nothing: that is clock.py's.
"""

import os
import socket
import struct
import time

from . import log, watchdog
from .clock import AGREE_S, text
from .errors import ClockError

_NTP_TO_UNIX = 2208988800
_ERA = 1 << 32


def ask(servers, possible, floor):
    """Ask the servers one after the other, until two agree (one, where there is but one).

    (what each answer says the time was at uptime 0, names of those that agree or None);
    the last answer is one of those.
    """
    answers = []
    names = []
    for host, port in servers:
        watchdog.feed()  # each has its own time-out, and the board's name look-up another
        try:
            unix_s = query(host, port)
        except (OSError, ClockError) as e:
            log.say("clock", "no time from %s: %s" % (host, e))
            continue
        # Below the floor: a forgery or a broken server. The next one may do better.
        if not possible(unix_s):
            log.say(
                "clock",
                "%s says %s, but it is at least %s: not believed"
                % (host, text(unix_s), text(floor)),
            )
            continue
        began = unix_s - log.uptime_ms() // 1000
        if len(servers) == 1:
            return [began], host
        for i, other in enumerate(answers):
            if abs(other - began) <= AGREE_S:
                return [began], "%s,%s" % (names[i], host)
        answers.append(began)
        names.append(host)
    if answers:
        up = log.uptime_ms() // 1000
        said = ", ".join(["%s %s" % (names[i], text(a + up)) for i, a in enumerate(answers)])
        log.say(
            "clock",
            "of %d time servers no two agree (%s): the time is tried, and not vouched for"
            % (len(servers), said),
        )
    return answers, None


def query(host, port=123, timeout_ms=4000):
    """Unix seconds from one SNTP server; OSError or ClockError where it gives none.

    The answer must echo a random number of ours (its originate timestamp), so
    that only one who saw the question can answer it, come from a synchronised
    server, and arrive in time. One lost packet must not cost a connection: it asks
    again after half of the time-out (2 s, the spacing of a burst in RFC 5905).
    """
    try:
        address = socket.getaddrinfo(host, port)[0][-1]
    except (OSError, IndexError):
        raise ClockError("the name does not resolve")
    nonce = os.urandom(8)
    packet = bytearray(48)
    packet[0] = 0x23  # no leap warning, version 4, client
    packet[40:48] = nonce
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        for _ in range(2):
            s.sendto(packet, address)
            answer = _echoing(s, nonce, timeout_ms // 2)
            if answer:
                return _seconds(answer)
    finally:
        s.close()
    raise ClockError("no answer in %d ms" % timeout_ms)


def _echoing(s, nonce, timeout_ms):
    """The first answer to this question within timeout_ms, or None."""
    start = time.ticks_ms()
    while True:
        left = timeout_ms - time.ticks_diff(time.ticks_ms(), start)
        if left <= 0:
            return None
        s.settimeout(left / 1000)
        try:
            answer = s.recv(68)
        except OSError:
            return None  # nothing came in time, or nobody listens there
        if len(answer) >= 48 and answer[24:32] == nonce:
            return answer


def _seconds(answer):
    """Unix seconds of the transmit timestamp of an answer."""
    if answer[0] & 7 != 4 or answer[0] >> 6 == 3 or not 1 <= answer[1] <= 15:
        raise ClockError("it is not synchronised itself")
    seconds = struct.unpack("!I", answer[40:44])[0]
    if not seconds:
        raise ClockError("its answer holds no time")
    # Era 0 ended in 2036: a small number is of era 1 (RFC 4330, section 3).
    return seconds - _NTP_TO_UNIX + (_ERA if seconds < 0x80000000 else 0)
