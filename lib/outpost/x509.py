"""X.509: the little that trust asks of a certificate, read from its DER (RFC 5280).

Whether it is a root, an authority's that was issued by its own name, and until when it is valid.
Judges no signature: that is the TLS stack's. Every length is checked. Keeps nothing.
"""

_AUTHORITY = b"\x55\x1d\x13"  # 2.5.29.19, basicConstraints


def _part(b, at, end, kind=None):
    """(kind, begin, end) of the DER value at a place; ValueError where it does not fit."""
    if at + 2 > end:
        raise ValueError
    length = b[at + 1]
    start = at + 2
    if length & 0x80:
        n = length & 0x7F
        if not 1 <= n <= 2 or start + n > end:
            raise ValueError
        length = int.from_bytes(b[start : start + n], "big")
        start += n
    if start + length > end or (kind is not None and b[at] != kind):
        raise ValueError
    return b[at], start, start + length


def _parts(der):
    """The (begin, end) of serial number, algorithm, issuer, validity, subject and key; and where
    what stands behind them begins and ends."""
    _, at, end = _part(der, 0, len(der), 0x30)
    if end != len(der):
        raise ValueError
    _, at, end = _part(der, at, end, 0x30)
    kind, _, after = _part(der, at, end)
    if kind == 0xA0:  # version
        at = after
    parts = []
    for kind in (0x02, 0x30, 0x30, 0x30, 0x30, 0x30):
        _, begin, at = _part(der, at, end, kind)
        parts.append((begin, at))
    return parts, at, end


def _moments(der, at, end):
    """A validity's first and last moment, each YYYYMMDDHHMMSS."""
    found = []
    for _ in range(2):
        kind, begin, at = _part(der, at, end)
        text = str(der[begin:at], "utf-8")
        if kind == 0x17:
            text = ("20" if text[:2] < "50" else "19") + text
        if len(text) != 15 or text[14] != "Z":
            raise ValueError
        int(text[:14])
        found.append(text[:14])
    return found


def _facts(der):
    """(whether its issuer is its subject, whether it is an authority's, its last moment)."""
    parts, at, end = _parts(der)
    issuer, validity, subject = parts[2], parts[3], parts[4]
    same = der[issuer[0] : issuer[1]] == der[subject[0] : subject[1]]
    return same, _authority(der, at, end), _moments(der, *validity)[1]


def _authority(der, at, end):
    while at < end:
        kind, begin, at = _part(der, at, end)
        if kind == 0xA3:
            _, begin, last = _part(der, begin, at, 0x30)
            while begin < last:
                _, inner, begin = _part(der, begin, last, 0x30)
                _, name, inner = _part(der, inner, begin, 0x06)
                if der[name:inner] != _AUTHORITY:
                    continue
                kind, name, after = _part(der, inner, begin)
                if kind == 0x01:  # critical
                    kind, name, after = _part(der, after, begin)
                _, name, after = _part(der, name, after, 0x30)
                return der[name : name + 3] == b"\x01\x01\xff"
    return False


def is_root(der):
    """Whether it is the certificate of an authority that was issued by its own name."""
    try:
        same, authority, _ = _facts(der)
    except (ValueError, IndexError, UnicodeError):
        return False
    return same and authority


def is_certificate(der):
    try:
        _facts(der)
    except (ValueError, IndexError, UnicodeError):
        return False
    return True


def last_moment(der):
    """When it expires, as YYYYMMDDHHMMSS; None where that cannot be read."""
    try:
        return _facts(der)[2]
    except (ValueError, IndexError, UnicodeError):
        return None


def validity(der):
    """Its first and its last moment, as YYYYMMDDHHMMSS; ValueError where they cannot be read."""
    return _moments(der, *_parts(der)[0][3])
