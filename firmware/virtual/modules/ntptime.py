# Time from one SNTP server, as stock boards have it. Unsigned: whoever answers is believed.
#
# Owns `host` and `timeout` (seconds). Never used by the outpost library, which asks several
# servers and keeps a floor.
import socket
import struct
from time import gmtime

host = "pool.ntp.org"
timeout = 1

_FROM_1900_TO_2000 = 3155673600
_WRAP = 1 << 32


def time():
    query = bytearray(48)
    query[0] = 0x1B  # version 3, client
    address = socket.getaddrinfo(host, 123)[0][-1]
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.settimeout(timeout)
        sock.sendto(query, address)
        answer = sock.recv(48)
    finally:
        sock.close()
    seconds = struct.unpack("!I", answer[40:44])[0]
    if seconds < _FROM_1900_TO_2000:
        seconds += _WRAP  # after February 2036
    return seconds - _FROM_1900_TO_2000


def settime():
    from machine import RTC

    now = gmtime(time())
    RTC().datetime((now[0], now[1], now[2], now[6] + 1, now[3], now[4], now[5], 0))
