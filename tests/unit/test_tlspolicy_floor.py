"""The TLS floor of the device holds whatever Python code does: each test tries to get round it.

The servers are OpenSSL's (`openssl s_server`), with certificates made for the test.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pki
import pytest
import servers
import tlsdevice

SUITES = [0xC02B, 0xC02F, 0xC02C, 0xC030, 0xC023, 0xC027, 0xC024, 0xC028]
SUITES_ECC = [0xC02B, 0xC02C, 0xC023, 0xC024]
NO_RENEGOTIATION = 0x00FF  # the signal that secure renegotiation is understood, not a suite
DAY = dt.timedelta(days=1)

# Ways of a program to loosen its context. Each is a function body that sees `ctx`.
LOOSENED = {
    "verify_mode_none": "ctx.verify_mode = tls.CERT_NONE",
    "verify_mode_optional": "ctx.verify_mode = tls.CERT_OPTIONAL",
    "verify_callback": "ctx.verify_callback = lambda cert, depth: 0",
    "weak_ciphers": "ctx.set_ciphers(['TLS-RSA-WITH-AES-128-CBC-SHA'])",
    "everything": """\
ctx.verify_mode = tls.CERT_NONE
ctx.verify_callback = lambda cert, depth: 0
ctx.set_ciphers(['TLS-RSA-WITH-AES-128-CBC-SHA', 'TLS-ECDHE-RSA-WITH-AES-128-CBC-SHA'])""",
}

CONNECT = """
def loosen(ctx):
    {loosen}

class Meddler(__import__("io").IOBase):
    # A stream that loosens the context in the middle of the handshake.
    def __init__(self, s, ctx):
        self.s, self.ctx = s, ctx
    def readinto(self, buf):
        loosen(self.ctx)
        return self.s.readinto(buf)
    def write(self, buf):
        loosen(self.ctx)
        return self.s.write(buf)
    def ioctl(self, op, arg):
        return self.s.close() or 0 if op == 4 else 0

def get(s):
    s.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
    data = s.read(4)
    if not data:
        raise OSError("no data")
    report(data=data.decode())

def before(port):
    ctx = context(root)
    loosen(ctx)
    get(ctx.wrap_socket(tcp(port), server_hostname=name))

def after(port):
    ctx = context(root)
    s = ctx.wrap_socket(tcp(port), server_hostname=name, do_handshake_on_connect=False)
    loosen(ctx)
    get(s)

def during(port):
    ctx = context(root)
    get(ctx.wrap_socket(Meddler(tcp(port), ctx), server_hostname=name))

def unnamed(port):
    ctx = context(root)
    ctx.verify_mode = tls.CERT_NONE
    get(ctx.wrap_socket(tcp(port)))

def unnamed_late(port):
    ctx = context(root)
    ctx.verify_mode = tls.CERT_NONE
    s = ctx.wrap_socket(tcp(port), do_handshake_on_connect=False)
    loosen(ctx)
    get(s)

def as_server(port):
    get(context(root).wrap_socket(tcp(port), server_side=True))

def empty_name(port):
    get(context(root).wrap_socket(tcp(port), server_hostname=""))
"""

# As text, tlspolicy's refusals and mbedtls's.
WAYS = ["before", "after", "during"]


def script(loosen: str, way: str) -> str:
    body = CONNECT.format(loosen="\n    ".join(loosen.strip().splitlines()))
    return body + f"\nreport(error=attempt(lambda: {way}(port)), facts=last())\n"


@pytest.fixture(scope="session")
def good() -> pki.Chain:
    return pki.chain("rsa")


@pytest.fixture
def root(good: pki.Chain, tmp_path: Path) -> Path:
    path = tmp_path / "root.der"
    path.write_bytes(good.root.der)
    return path


@contextmanager
def server(chain: pki.Chain, directory: Path, *options: str) -> Iterator[int]:
    certificate, key = chain.write(directory / "server")
    with servers.s_server(directory / "server", certificate, key, *options) as port:
        yield port


def refused(leg: str, directory: Path, text: str, **parameters: object) -> dict[str, object]:
    """Runs an attack; no byte of application data may have come through."""
    reports = tlsdevice.run(leg, directory, text, **parameters)
    assert [r for r in reports if "data" in r] == [], "data came through"
    assert reports[-1]["error"] != ""
    return reports[-1]


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_a_good_server_is_reached(leg: str, good: pki.Chain, root: Path, tmp_path: Path) -> None:
    """The other tests mean something only if this one passes, meddling and all."""
    with server(good, tmp_path) as port:
        for way in WAYS:
            reports = tlsdevice.run(
                leg,
                tmp_path,
                script(LOOSENED["everything"], way),
                root=root,
                name="localhost",
                port=port,
            )
            assert reports[0] == {"data": "HTTP"}, reports
            assert reports[-1]["facts"]["version"] == "TLSv1.2"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loosen", LOOSENED)
@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_an_unknown_root_is_refused_whatever_is_set(
    leg: str, loosen: str, way: str, root: Path, tmp_path: Path
) -> None:
    stranger = pki.chain("rsa", root_number=1)
    with server(stranger, tmp_path) as port:
        found = refused(
            leg, tmp_path, script(LOOSENED[loosen], way), root=root, name="localhost", port=port
        )
    assert "not correctly signed by the trusted CA" in str(found["error"])
    assert found["facts"]["root"] is None
    assert found["facts"]["error"] != 0 and found["facts"]["flags"] & 0x08


@pytest.mark.parametrize("way", [*WAYS, "unnamed", "unnamed_late", "as_server", "empty_name"])
@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_another_hosts_certificate_is_refused_whatever_is_set(
    leg: str, way: str, good: pki.Chain, root: Path, tmp_path: Path
) -> None:
    with server(good, tmp_path) as port:
        refused(
            leg,
            tmp_path,
            script(LOOSENED["everything"], way),
            root=root,
            name="other.example",
            port=port,
        )


@pytest.mark.parametrize(
    ("starts", "ends", "words"),
    [(-3 * DAY, -2 * DAY, "has expired"), (2 * DAY, 3 * DAY, "starts in the future")],
    ids=["expired", "not_yet_valid"],
)
@pytest.mark.parametrize("way", WAYS)
def test_a_certificate_out_of_its_dates_is_refused_whatever_is_set(
    way: str, starts: dt.timedelta, ends: dt.timedelta, words: str, root: Path, tmp_path: Path
) -> None:
    stale = pki.chain("rsa", starts=starts, ends=ends)
    with server(stale, tmp_path) as port:
        found = refused(
            "outpost32",
            tmp_path,
            script(LOOSENED["everything"], way),
            root=root,
            name="localhost",
            port=port,
        )
    assert words in str(found["error"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cipher", ["AES128-SHA", "ECDHE-RSA-AES128-SHA", "AES128-GCM-SHA256"])
@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_a_weak_suite_is_never_agreed_to_whatever_is_set(
    leg: str, cipher: str, way: str, good: pki.Chain, root: Path, tmp_path: Path
) -> None:
    loosen = (
        "ctx.set_ciphers(['TLS-RSA-WITH-AES-128-CBC-SHA', 'TLS-ECDHE-RSA-WITH-AES-128-CBC-SHA', "
        "'TLS-RSA-WITH-AES-128-GCM-SHA256'])"
    )
    weak = ("-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0")
    with server(good, tmp_path, *weak) as port:
        refused(leg, tmp_path, script(loosen, way), root=root, name="localhost", port=port)


@pytest.mark.parametrize("version", ["-tls1_1", "-tls1_3"])
@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_another_version_of_tls_is_refused(
    leg: str, version: str, good: pki.Chain, root: Path, tmp_path: Path
) -> None:
    options = (version,) if version == "-tls1_3" else (version, "-cipher", "ALL:@SECLEVEL=0")
    with server(good, tmp_path, *options) as port:
        refused(leg, tmp_path, script("pass", "before"), root=root, name="localhost", port=port)


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_no_roots_at_all_is_refused(leg: str, good: pki.Chain, tmp_path: Path) -> None:
    text = """
def go():
    ctx = context()
    ctx.verify_mode = tls.CERT_NONE
    s = ctx.wrap_socket(tcp(port), server_hostname="localhost")
    s.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
    report(data=s.read(4).decode())
report(error=attempt(go))
"""
    with server(good, tmp_path) as port:
        refused(leg, tmp_path, text, port=port)


@pytest.mark.parametrize("protocol", ["TLS_SERVER", "DTLS_CLIENT", "DTLS_SERVER"])
@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_a_context_for_anything_but_a_tls_client_cannot_be_made(
    leg: str, protocol: str, tmp_path: Path
) -> None:
    text = f"report(error=attempt(lambda: tls.SSLContext(tls.PROTOCOL_{protocol})))"
    assert tlsdevice.one(leg, tmp_path, text)["error"].startswith("OSError")


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_an_exception_in_the_middle_of_the_handshake_ends_the_connection_for_good(
    leg: str, good: pki.Chain, root: Path, tmp_path: Path
) -> None:
    """A callback that raises at any call leaves no half-verified connection to go on with."""
    text = """
import io
class Breaker(io.IOBase):
    def __init__(self, s, at):
        self.s, self.left = s, at
    def readinto(self, buf):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("broken")
        return self.s.readinto(buf)
    def write(self, buf):
        return self.s.write(buf)
    def ioctl(self, op, arg):
        return self.s.close() or 0 if op == 4 else 0

def go(at):
    ctx = context(root)
    breaker = Breaker(tcp(port), at)
    s = ctx.wrap_socket(breaker, server_hostname="localhost", do_handshake_on_connect=False)
    errors = [attempt(lambda: s.write(b"GET / HTTP/1.0\\r\\n\\r\\n")) for _ in range(3)]
    if not errors[0]:
        return False    # the handshake was over before
    assert "broken" in errors[0], errors
    assert errors[1] and errors[2], errors
    assert not attempt(s.close)
    breaker.s.close()
    return True

def verify(at):
    left = [at]
    def callback(cert, depth):
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("broken")
        return 0
    ctx = context(root)
    ctx.verify_callback = callback
    raw = tcp(port)
    s = ctx.wrap_socket(raw, server_hostname="localhost", do_handshake_on_connect=False)
    errors = [attempt(lambda: s.write(b"GET / HTTP/1.0\\r\\n\\r\\n")) for _ in range(3)]
    assert all(errors), errors
    raw.close()

at = 1
while go(at):
    at += 1
for depth in (1, 2, 3):
    verify(depth)
s = context(root).wrap_socket(tcp(port), server_hostname="localhost")
s.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
report(reads=at, data=s.read(4).decode())
"""
    with server(good, tmp_path) as port:
        found = tlsdevice.one(leg, tmp_path, text, root=root, port=port)
    assert found["reads"] > 8
    assert found["data"] == "HTTP"


@pytest.mark.parametrize("action", ["read(4)", "write(b'x')", "close()"])
@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_a_stream_that_calls_back_into_its_connection_gets_no_data(
    leg: str, action: str, root: Path, tmp_path: Path
) -> None:
    text = f"""
import io
inner = []
class Recursive(io.IOBase):
    def readinto(self, buf):
        def back():
            inner.append(self.tls.{action})
        attempt(back)
        return self.s.readinto(buf)
    def write(self, buf):
        return self.s.write(buf)
    def ioctl(self, op, arg):
        return 0

stream = Recursive()
stream.s = tcp(port)
ctx = context(root)
stream.tls = ctx.wrap_socket(stream, server_hostname="localhost", do_handshake_on_connect=False)
outer = attempt(lambda: stream.tls.write(b"x"))
stream.tls = None
gc.collect()
report(outer=outer, inner=[x for x in inner if x is not None], calls=len(inner))
"""
    stranger = pki.chain("rsa", root_number=1)
    with server(stranger, tmp_path) as port:
        found = tlsdevice.one(leg, tmp_path, text, root=root, port=port)
    assert found["calls"] > 0
    assert found["inner"] == []
    assert found["outer"]


def offered(hello: bytes) -> tuple[int, list[int], dict[int, bytes]]:
    """Version, suites and extensions of a ClientHello."""
    version = int.from_bytes(hello[4:6], "big")
    at = 4 + 2 + 32
    at += 1 + hello[at]
    size = int.from_bytes(hello[at : at + 2], "big")
    suites = [int.from_bytes(hello[i : i + 2], "big") for i in range(at + 2, at + 2 + size, 2)]
    at += 2 + size
    at += 1 + hello[at] + 2
    extensions = {}
    while at < len(hello):
        kind, size = (int.from_bytes(hello[at + i : at + i + 2], "big") for i in (0, 2))
        extensions[kind] = hello[at + 4 : at + 4 + size]
        at += 4 + size
    return version, suites, extensions


@pytest.mark.parametrize("mode", ["all", "ecc"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_exactly_our_suites_are_offered_in_our_order_whatever_is_set(
    leg: str, way: str, mode: str, root: Path, tmp_path: Path
) -> None:
    text = f"tlspolicy.suites({mode!r})\ntlspolicy.max_fragment_length(1024)\n"
    text += script(LOOSENED["everything"], way)
    hello = servers.client_hello(
        lambda port: tlsdevice.run(leg, tmp_path, text, root=root, name="hub.example", port=port)
    )
    version, suites, extensions = offered(hello)
    assert version == 0x0303
    assert [s for s in suites if s != NO_RENEGOTIATION] == (SUITES if mode == "all" else SUITES_ECC)
    assert 43 not in extensions, "supported_versions: another version is offered"
    assert extensions[0].endswith(b"hub.example")
    assert extensions[1] == b"\x02", "max_fragment_length of 1024"
    # No SHA-1 and no MD5 among the signatures: the first byte of each pair is the hash.
    hashes = extensions[13][2::2]
    assert set(hashes) <= {4, 5, 6}, hashes.hex()


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_a_server_that_picks_a_suite_that_was_not_offered_is_refused(
    leg: str, root: Path, tmp_path: Path
) -> None:
    """A stream sets a weak list between the ClientHello and the ServerHello."""
    text = """
import io, struct
class Fake(io.IOBase):
    # Answers with a ServerHello that picks TLS-RSA-WITH-AES-128-CBC-SHA.
    def __init__(self):
        body = b"\\x03\\x03" + bytes(32) + b"\\x00" + b"\\x00\\x2f" + b"\\x00"
        hello = b"\\x02" + struct.pack(">I", len(body))[1:] + body
        self.data = b"\\x16\\x03\\x03" + struct.pack(">H", len(hello)) + hello
        self.data += b"\\x16\\x03\\x03\\x00\\x04\\x0e\\x00\\x00\\x00"
    def readinto(self, buf):
        ctx.set_ciphers(["TLS-RSA-WITH-AES-128-CBC-SHA"])
        n = min(len(buf), len(self.data))
        buf[:n] = self.data[:n]
        self.data = self.data[n:]
        return n
    def write(self, buf):
        return len(buf)
    def ioctl(self, op, arg):
        return 0

ctx = context(root)
report(error=attempt(lambda: ctx.wrap_socket(Fake(), server_hostname="localhost")))
"""
    found = tlsdevice.one(leg, tmp_path, text, root=root)
    assert "OSError" in found["error"]
    assert "HANDSHAKE_FAILURE" in found["error"] or "ILLEGAL_PARAMETER" in found["error"]


def test_the_renegotiation_that_a_server_asks_for_does_not_happen(
    good: pki.Chain, root: Path, tmp_path: Path
) -> None:
    """The console of s_server starts one ("R") once data has come."""
    text = """
s = context(root).wrap_socket(tcp(port), server_hostname="localhost")
first = last()
s.write(b"hello\\n")
error = attempt(lambda: s.read(4))
report(error=error, same=last() == first)
"""
    certificate, key = good.write(tmp_path / "server")
    with servers.s_server(
        tmp_path / "server", certificate, key, "-tls1_2", www=False, say={b"hello": b"R\n"}
    ) as port:
        found = tlsdevice.one("outpost32", tmp_path, text, root=root, port=port)
    assert found["same"], "a second handshake took place"
