"""Property bags: `name=value&name=value` at the end of a topic, percent-encoded. Keeps nothing."""

from . import clock


def _digit(b):
    """The value of a hexadecimal digit, or -1."""
    return b"0123456789abcdef".find(bytes((b | 32 if b > 64 else b,)))


def unquote(raw):
    """The text of percent-encoded bytes. What is no escape stays; what is no UTF-8 becomes `?`."""
    out = bytearray()
    at = 0
    while at < len(raw):
        b = raw[at]
        if b == 37 and at + 2 < len(raw):
            high, low = _digit(raw[at + 1]), _digit(raw[at + 2])
            if high >= 0 and low >= 0:
                b = high << 4 | low
                at += 2
        out.append(b)
        at += 1
    try:
        return str(out, "utf-8")
    except UnicodeError:
        return "".join([chr(b) if b < 128 else "?" for b in out])


def parse(raw):
    """dict of texts; a name alone has the value ""."""
    bag = {}
    for part in raw.split(b"&"):
        if part:
            pair = part.split(b"=", 1)
            bag[unquote(pair[0])] = unquote(pair[1]) if len(pair) > 1 else ""
    return bag


def unix(text):
    """Unix seconds of ISO 8601 in UTC, or of a whole number; None where it is neither, or a time
    that is none of this board's calendar (2000 to 2067)."""
    try:
        if len(text) < 12:
            found = int(text)
        elif text[4] != "-" or text[10] not in "T " or text[-6] in "+-":
            return None
        elif not 2000 <= int(text[:4]) <= 2067:
            return None
        else:
            found = clock.unix(
                *[
                    int(text[a:b])
                    for a, b in ((0, 4), (5, 7), (8, 10), (11, 13), (14, 16), (17, 19))
                ]
            )
        return found if 0 <= found <= clock.LAST else None
    except (ValueError, IndexError, OverflowError):
        return None
