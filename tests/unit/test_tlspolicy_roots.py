"""Roots on demand: a provider gives the trusted roots in the handshake, and none stays in memory.

The servers are OpenSSL's; the four roots of certs/ stand for what a device in the field trusts.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pki
import pytest
import servers
import tlsdevice
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from stockboard import flash_with

CERTS = Path(__file__).resolve().parents[2] / "certs"
BUDGET_PEAK, BUDGET_STEADY = 24 * 1024, 6656

# `walks` counts the calls of the provider, `given` the roots that were taken from it.
CONNECT = """
walks, given = [0], [0]

def read(paths):
    for path in paths:
        given[0] += 1
        with open(path, "rb") as f:
            yield f.read()

def provider():
    walks[0] += 1
    return read(roots)

def connect(port, ctx=None, name="localhost"):
    ctx = ctx or tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
    s = ctx.wrap_socket(tcp(port), server_hostname=name)
    s.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
    data = s.read(4).decode()
    s.close()
    return data

"""

ONCE = (
    CONNECT
    + """
data = []
tlspolicy.roots(provider)
error = attempt(lambda: data.append(connect(port)))
report(error=error, data=data, facts=last(), walks=walks[0], given=given[0])
"""
)


@pytest.fixture(scope="session")
def good() -> pki.Chain:
    return pki.chain("rsa")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The four real roots, as DER files."""
    directory = tmp_path_factory.mktemp("bundle")
    paths = []
    for pem in sorted(CERTS.glob("*.pem")):
        path = directory / f"{pem.stem}.der"
        certificate = x509.load_pem_x509_certificate(pem.read_bytes())
        path.write_bytes(certificate.public_bytes(serialization.Encoding.DER))
        paths.append(str(path))
    assert len(paths) == 4
    return paths


@contextmanager
def server(chain: pki.Chain, directory: Path, *options: str) -> Iterator[int]:
    certificate, key = chain.write(directory / "server")
    options = options or ("-tls1_2",)
    with servers.s_server(directory / "server", certificate, key, *options) as port:
        yield port


@contextmanager
def crowd(chain: pki.Chain, directory: Path) -> Iterator[int]:
    """A server with a thread per connection: s_server serves one after the other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(*chain.write(directory / "server"))

    def serve(plain: socket.socket) -> None:
        plain.settimeout(15)
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as tls:
            if tls.recv(100):
                tls.sendall(b"HTTP")
        plain.close()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def put(directory: Path, name: str, der: bytes) -> str:
    path = directory / name
    path.write_bytes(der)
    return str(path)


def sha256(signer: pki.Signer) -> str:
    return hashlib.sha256(signer.der).hexdigest()


def with_key_ids(name: str, own: pki.Key, issuer: pki.Signer | None = None) -> pki.Signer:
    """An authority's certificate with identifiers of its own and its issuer's key."""
    plain = pki.make(name, own, issuer).certificate
    signer = issuer.key if issuer else own
    builder = (
        x509.CertificateBuilder()
        .subject_name(plain.subject)
        .issuer_name(plain.issuer)
        .public_key(own.public_key())
        .serial_number(plain.serial_number)
        .not_valid_before(plain.not_valid_before_utc)
        .not_valid_after(plain.not_valid_after_utc)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
        )
    )
    for extension in plain.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return pki.Signer(builder.sign(signer, hashes.SHA256()), own)


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_the_root_is_found_wherever_it_comes_among_others(
    leg: str, place: int, kind: str, bundle: list[str], tmp_path: Path
) -> None:
    chain = pki.chain(kind)
    roots = list(bundle)
    roots.insert(place, put(tmp_path, "own.der", chain.root.der))
    with server(chain, tmp_path) as port:
        found = tlsdevice.one(leg, tmp_path, ONCE, port=port, roots=roots)
    assert (found["error"], found["data"]) == ("", ["HTTP"])
    assert found["facts"]["root"] == sha256(chain.root)
    assert (found["facts"]["error"], found["facts"]["flags"]) == (0, 0)
    # For the leaf and for the intermediate; each time all of them.
    assert (found["walks"], found["given"]) == (2, 10)


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_a_server_of_another_root_is_refused(
    leg: str, good: pki.Chain, bundle: list[str], tmp_path: Path
) -> None:
    roots = [*bundle, put(tmp_path, "own.der", good.root.der)]
    with server(pki.chain("rsa", root_number=1), tmp_path) as port:
        found = tlsdevice.one(leg, tmp_path, ONCE, port=port, roots=roots)
    assert "not correctly signed by the trusted CA" in found["error"]
    assert (found["data"], found["facts"]["root"]) == ([], None)
    assert found["facts"]["flags"] & 0x08


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_a_root_of_the_same_name_with_another_key_does_not_vouch(
    leg: str, good: pki.Chain, tmp_path: Path
) -> None:
    name = "Test rsa root 0"
    roots = [put(tmp_path, "same-name.der", pki.make(name, pki.key("rsa2048", 900)).der)]
    with server(good, tmp_path) as port:
        found = tlsdevice.one(leg, tmp_path, ONCE, port=port, roots=roots)
    assert "not correctly signed by the trusted CA" in found["error"]
    assert (found["data"], found["facts"]["root"]) == ([], None)


@pytest.mark.parametrize("key_ids", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_of_roots_with_the_same_name_each_is_tried(
    order: tuple[int, ...], key_ids: bool, tmp_path: Path
) -> None:
    """Renewed with another key, of another kind: the one that signed anchors the chain."""
    make: Callable[..., pki.Signer] = with_key_ids if key_ids else pki.make
    name = "Renewed root"
    signing = make(name, pki.key("rsa2048", 910))
    roots = [
        make(name, pki.key("rsa2048", 911)),
        make(name, pki.key("p256", 912)),
        signing,
    ]
    intermediate = make("Below it", pki.key("rsa2048", 913), signing)
    leaf = pki.make("localhost", pki.key("rsa2048", 914), intermediate, hosts=("localhost",))
    paths = [put(tmp_path, f"{i}.der", roots[i].der) for i in order]
    with server(pki.Chain(signing, intermediate, leaf), tmp_path) as port:
        found = tlsdevice.one("outpost32", tmp_path, ONCE, port=port, roots=paths)
    assert (found["error"], found["data"]) == ("", ["HTTP"])
    assert found["facts"]["root"] == sha256(signing)


def test_a_renewed_root_counts_where_the_old_one_has_expired(tmp_path: Path) -> None:
    key = pki.key("rsa2048", 920)
    old = pki.make("Old and new", key, ends=-pki.DAY / 2)
    new = pki.make("Old and new", key)
    intermediate = pki.make("Below both", pki.key("rsa2048", 921), new)
    leaf = pki.make("localhost", pki.key("rsa2048", 922), intermediate, hosts=("localhost",))
    paths = [put(tmp_path, "old.der", old.der), put(tmp_path, "new.der", new.der)]
    with server(pki.Chain(new, intermediate, leaf), tmp_path) as port:
        both = tlsdevice.one("outpost32", tmp_path, ONCE, port=port, roots=paths)
        alone = tlsdevice.one("outpost32", tmp_path, ONCE, port=port, roots=paths[:1])
    assert (both["error"], both["facts"]["root"]) == ("", sha256(new))
    assert "has expired" in alone["error"] and alone["data"] == []


def test_a_certificate_that_is_no_authority_does_not_vouch(tmp_path: Path) -> None:
    """One of ours, with the right name and key, but made for a server."""
    key = pki.key("rsa2048", 930)
    not_a_ca = pki.make("Signs anyway", key, hosts=("other.example",))
    intermediate = pki.make("Below a server", pki.key("rsa2048", 931), not_a_ca)
    leaf = pki.make("localhost", pki.key("rsa2048", 932), intermediate, hosts=("localhost",))
    roots = [put(tmp_path, "root.der", not_a_ca.der)]
    with server(pki.Chain(not_a_ca, intermediate, leaf), tmp_path) as port:
        found = tlsdevice.one("outpost32", tmp_path, ONCE, port=port, roots=roots)
    assert "not correctly signed" in found["error"]
    assert found["data"] == []


@pytest.mark.parametrize("listed", [False, True])
def test_a_self_signed_server_certificate_is_refused_even_where_it_is_listed(
    listed: bool, good: pki.Chain, tmp_path: Path
) -> None:
    """Roots only, on purpose: a server's own certificate is never one."""
    alone = pki.make("localhost", pki.key("rsa2048", 940), hosts=("localhost",))
    roots = [put(tmp_path, "own.der", good.root.der)]
    roots += [put(tmp_path, "alone.der", alone.der)] if listed else []
    with server(pki.Chain(alone, alone, alone), tmp_path) as port:
        found = tlsdevice.one("outpost32", tmp_path, ONCE, port=port, roots=roots)
    assert "not correctly signed" in found["error"]
    assert (found["data"], found["facts"]["root"]) == ([], None)


# What the provider may do wrong: the body of `provider`, and what the connection then raises.
WRONG = {
    "raises": ("raise RuntimeError('no flash')", "RuntimeError: no flash"),
    "raises_half_way": ("return half_way()", "RuntimeError: half way"),
    "gives_none": ("return None", "TypeError: "),
    "gives_numbers": ("return (5, 6)", "TypeError: "),
    "gives_texts": ("return ('no', 'certificate')", "ValueError: a trusted root cannot be read"),
    "gives_junk": ("return (own(), b'junk')", "ValueError: a trusted root cannot be read"),
    "gives_half_a_root": ("return (own()[:500],)", "ValueError: a trusted root cannot be read"),
    "gives_nothing_in_it": ("return (b'',)", "ValueError: a trusted root cannot be read"),
    "never_ends": ("return endless()", "ValueError: more than 16 trusted roots"),
    "gives_17": ("return [own()] * 17", "ValueError: more than 16 trusted roots"),
    "stops_the_program": ("raise SystemExit(3)", "SystemExit: 3"),
    "wants_arguments": ("return need()", "TypeError: "),
    "recurses": ("return provider()", "RuntimeError: maximum recursion depth exceeded"),
    "takes_all_memory": ("return [bytearray(1 << 16) for _ in range(1000)]", "MemoryError: "),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_a_provider_that_fails_ends_the_connection_and_leaves_nothing(
    leg: str, wrong: str, good: pki.Chain, tmp_path: Path
) -> None:
    body, error = WRONG[wrong]
    text = (
        CONNECT
        + f"""
def own():
    with open(roots[0], "rb") as f:
        return f.read()

def half_way():
    yield own()
    raise RuntimeError("half way")

def endless():
    while True:
        yield own()

def need(argument):
    pass

def provider():
    {body}

data, held, errors = [], [], []
ctx = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
tlspolicy.roots(provider)
for _ in range(3):
    try:
        data.append(connect(port, ctx))
    except BaseException as e:
        errors.append("%s: %s" % (type(e).__name__, e))
    gc.collect()
    gc.collect()
    held.append(tlspolicy.heap()[0])
facts = last()
tlspolicy.roots(lambda: (own(),))
report(errors=errors, data=data, held=held, facts=facts, after=connect(port))
"""
    )
    roots = [put(tmp_path, "own.der", good.root.der)]
    with server(good, tmp_path) as port:
        found = tlsdevice.one(leg, tmp_path, text, port=port, roots=roots)
    assert len(found["errors"]) == 3
    assert all(e.startswith(error) for e in found["errors"]), found["errors"]
    assert found["data"] == []
    assert found["facts"]["error"] == -0x3000, "an X.509 fatal error"
    assert (found["facts"]["root"], found["facts"]["version"]) == (None, None)
    assert found["held"][1] == found["held"][2]
    assert found["after"] == "HTTP"


def test_sixteen_roots_are_taken(good: pki.Chain, bundle: list[str], tmp_path: Path) -> None:
    roots = [*bundle[:3] * 5, put(tmp_path, "own.der", good.root.der)]
    assert len(roots) == 16
    with server(good, tmp_path) as port:
        found = tlsdevice.one("outpost32", tmp_path, ONCE, port=port, roots=roots)
    assert (found["error"], found["data"]) == ("", ["HTTP"])


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_with_neither_roots_nor_a_provider_every_server_is_refused(
    leg: str, good: pki.Chain, tmp_path: Path
) -> None:
    text = (
        CONNECT
        + """
ctx = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
errors = [attempt(lambda: connect(port, ctx))]
tlspolicy.roots(provider)
reached = connect(port, ctx)
tlspolicy.roots(None)
errors.append(attempt(lambda: connect(port, ctx)))
tlspolicy.roots(lambda: ())
errors.append(attempt(lambda: connect(port, ctx)))
report(errors=errors, reached=reached, walks=walks[0])
"""
    )
    roots = [put(tmp_path, "own.der", good.root.der)]
    with server(good, tmp_path) as port:
        found = tlsdevice.one(leg, tmp_path, text, port=port, roots=roots)
    assert all(found["errors"]), found["errors"]
    assert (found["reached"], found["walks"]) == ("HTTP", 2)


def test_the_provider_stands_in_for_the_roots_of_the_context_and_none_gives_them_back(
    good: pki.Chain, tmp_path: Path
) -> None:
    text = (
        CONNECT
        + """
ctx = context(roots[1])
before = attempt(lambda: connect(port, ctx))
tlspolicy.roots(provider)
roots = roots[:1]
during = connect(port, ctx)
tlspolicy.roots(None)
after = attempt(lambda: connect(port, ctx))
ctx.load_verify_locations(open(roots[0], "rb").read())
own = connect(port, ctx)
tlspolicy.roots(lambda: ())
empty = attempt(lambda: connect(port, ctx))
tlspolicy.roots(None)
report(before=before, during=during, after=after, own=own, empty=empty, again=connect(port, ctx))
"""
    )
    stranger = pki.chain("rsa", root_number=1)
    roots = [
        put(tmp_path, "own.der", good.root.der),
        put(tmp_path, "other.der", stranger.root.der),
    ]
    with server(good, tmp_path) as port:
        found = tlsdevice.one("outpost32", tmp_path, text, port=port, roots=roots)
    assert "not correctly signed" in found["before"] and "not correctly signed" in found["after"]
    assert "not correctly signed" in found["empty"]
    assert (found["during"], found["own"], found["again"]) == ("HTTP", "HTTP", "HTTP")


def test_a_connection_keeps_the_provider_that_it_was_set_up_with(
    good: pki.Chain, tmp_path: Path
) -> None:
    """Also when the program holds it no longer, and when what was there is collected."""
    text = (
        CONNECT
        + """
def lazy():
    paths = list(roots)
    tlspolicy.roots(lambda: read(paths))
    ctx = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
    return ctx.wrap_socket(tcp(port), server_hostname="localhost", do_handshake_on_connect=False)

def get(s):
    s.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
    return s.read(4).decode()

def clear():
    for _ in range(3):
        gc.collect()
        [[i, i + 1] for i in range(500)]

first = lazy()
second = lazy()
tlspolicy.roots(None)
clear()
data = [get(second), get(first)]
third, fourth = lazy(), lazy()
third = None                    # collected without a handshake
tlspolicy.roots(provider)
clear()
data.append(get(fourth))
data.append(connect(port))
clear()
tlspolicy.roots(None)
report(data=data, left=tlspolicy.roots() is None, error=attempt(lambda: connect(port)))
"""
    )
    roots = [put(tmp_path, "own.der", good.root.der)]
    with crowd(good, tmp_path) as port:
        found = tlsdevice.one("outpost32", tmp_path, text, port=port, roots=roots)
    assert found["data"] == ["HTTP"] * 4
    assert found["left"] and found["error"]


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_two_handshakes_at_once_on_one_context_ask_each_their_own_provider(
    leg: str, good: pki.Chain, tmp_path: Path
) -> None:
    """The stream of the one lets the other go on in the middle of its steps, and back."""
    text = (
        CONNECT
        + """
import io
class Interleaved(io.IOBase):
    def __init__(self, s):
        self.s, self.other = s, None
    def readinto(self, buf):
        if self.other:
            attempt(lambda: self.other.write(b"GET / HTTP/1.0\\r\\n\\r\\n"))
        return self.s.readinto(buf)
    def write(self, buf):
        return self.s.write(buf)
    def ioctl(self, op, arg):
        return self.s.close() or 0 if op == 4 else 0

asked = {"good": 0, "bad": 0, "slow": 0}

def counted(name, paths):
    def provider():
        asked[name] += 1
        gc.collect()
        return read(paths)
    return provider

ctx = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)

def lazy(name, paths, stream):
    tlspolicy.roots(counted(name, paths))
    return ctx.wrap_socket(stream, server_hostname="localhost", do_handshake_on_connect=False)

def nonblocking():
    s = tcp(port)
    s.setblocking(False)
    return s

def pair(trusted_first):
    stream = Interleaved(tcp(port))
    lists = [[roots[0]], [roots[1]]] if trusted_first else [[roots[1]], [roots[0]]]
    outer = lazy("good" if trusted_first else "bad", lists[0], stream)
    stream.other = lazy("bad" if trusted_first else "good", lists[1], nonblocking())
    tlspolicy.roots(None)
    result = attempt(lambda: outer.write(b"GET / HTTP/1.0\\r\\n\\r\\n"))
    inner, stream.other = stream.other, None
    return result, inner

first, _ = pair(True)
second, inner = pair(False)
import time
for _ in range(200):
    if inner.write(b"GET / HTTP/1.0\\r\\n\\r\\n"):
        break
    time.sleep_ms(5)

# In the middle of a walk another connection makes its whole handshake.
def slow():
    asked["slow"] += 1
    tlspolicy.roots(lambda: read(roots))
    connected.append(connect(port))
    return read(roots[:1])
connected = []
tlspolicy.roots(slow)
outer = connect(port)
report(first=first, second=second, asked=asked, connected=connected, outer=outer)
"""
    )
    stranger = pki.chain("rsa", root_number=1)
    roots = [
        put(tmp_path, "own.der", good.root.der),
        put(tmp_path, "other.der", stranger.root.der),
    ]
    with crowd(good, tmp_path) as port:
        found = tlsdevice.one(leg, tmp_path, text, port=port, roots=roots)
    assert found["first"] == ""
    assert "not correctly signed" in found["second"]
    assert found["asked"]["good"] >= 2 and found["asked"]["bad"] >= 2
    assert (found["connected"], found["outer"]) == (["HTTP", "HTTP"], "HTTP")


@pytest.mark.parametrize("action", ["read(4)", "write(b'x')", "close()"])
def test_a_provider_that_calls_back_into_its_connection_gets_no_data(
    action: str, good: pki.Chain, tmp_path: Path
) -> None:
    text = (
        CONNECT
        + f"""
inner, box = [], []
def provider():
    attempt(lambda: inner.append(box[0].{action}))
    return read(roots)

tlspolicy.roots(provider)
ctx = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
box.append(ctx.wrap_socket(tcp(port), server_hostname="localhost", do_handshake_on_connect=False))
outer = attempt(lambda: box[0].write(b"x"))
box.clear()
gc.collect()
report(outer=outer, inner=[x for x in inner if x is not None])
"""
    )
    roots = [put(tmp_path, "own.der", good.root.der)]
    with server(good, tmp_path) as port:
        found = tlsdevice.one("outpost32", tmp_path, text, port=port, roots=roots)
    assert found["inner"] == []
    assert bool(found["outer"]) == (action == "close()")


def test_a_collection_at_every_step_of_the_walk_is_survived(
    good: pki.Chain, bundle: list[str], tmp_path: Path
) -> None:
    """Every root in a buffer of its own that is gone, or reused, right after it was given."""
    text = (
        CONNECT
        + """
scratch = bytearray(4096)

def careless():
    for der in read(roots):
        gc.collect()
        scratch[:len(der)] = der
        yield memoryview(scratch)[:len(der)]
        for i in range(len(scratch)):
            scratch[i] = 0xA5
        del der
        gc.collect()
        [bytearray(b"\\xff" * 900) for _ in range(20)]

tlspolicy.roots(careless)
data = [connect(port) for _ in range(3)]
report(data=data, facts=last())
"""
    )
    roots = [*bundle, put(tmp_path, "own.der", good.root.der), bundle[0]]
    with server(good, tmp_path) as port:
        found = tlsdevice.one("outpost32", tmp_path, text, heap="64K", port=port, roots=roots)
    assert found["data"] == ["HTTP"] * 3
    assert found["facts"]["root"] == sha256(good.root)


def test_only_a_callable_or_none_is_taken(tmp_path: Path) -> None:
    text = """
def f():
    pass
errors = [attempt(lambda: tlspolicy.roots(x)) for x in (5, "x", b"x", [], (), True)]
got = [tlspolicy.roots() is None, tlspolicy.roots(f) is f, tlspolicy.roots() is f]
got += [attempt(lambda: tlspolicy.roots(5)) != "", tlspolicy.roots() is f]
got += [tlspolicy.roots(f) is f, tlspolicy.roots(None) is None, tlspolicy.roots() is None]
report(errors=errors, got=got)
"""
    found = tlsdevice.one("outpost32", tmp_path, text)
    assert set(found["errors"]) == {"TypeError: roots must be a callable or None"}
    assert all(found["got"])


SOFT_RESET = """
import gc, machine, network, os, socket, tls, tlspolicy

def connect(keep=False):
    s = socket.socket()
    s.connect(socket.getaddrinfo("127.0.0.1", {port})[0][-1])
    ctx = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
    s = ctx.wrap_socket(s, server_hostname="localhost", do_handshake_on_connect=False)
    if keep:
        return s
    s.write(b"GET")
    return s.read(4).decode()

def provider():
    yield {root}

def refused():
    try:
        return connect()
    except (OSError, ValueError) as e:
        return type(e).__name__

wlan = network.WLAN(network.STA_IF)
wlan.active(True)
wlan.connect("Espressif")
while not wlan.isconnected():
    pass
# What is in flash counts the lives: only the C side outlives a soft reset.
try:
    lives = len(os.listdir("/lives"))
except OSError:
    os.mkdir("/lives")
    lives = 0
print("LIFE", lives, tlspolicy.roots() is None, tlspolicy.heap()[0], refused())
if lives < 4:
    open("/lives/%d" % lives, "w").close()
    tlspolicy.roots(provider)
    pending = connect(True)
    tlspolicy.roots(lambda: provider())
    print("DATA", connect())
    also = connect(True)
    if lives % 2:
        del pending
        gc.collect()
    machine.soft_reset()
"""


@pytest.mark.parametrize("leg", tlsdevice.OURS)
def test_a_soft_reset_leaves_no_provider_behind(leg: str, tmp_path: Path) -> None:
    """Each life sets one, leaves connections with it pending, and is reset."""
    flash, small = tmp_path / "flash.bin", pki.chain("ecdsa")
    with crowd(small, tmp_path) as port:
        main = SOFT_RESET.replace("{port}", str(port)).replace("{root}", repr(small.root.der))
        flash_with(flash, main=main)
        done = subprocess.run(
            [tlsdevice.BIN / leg, "--board", "--flash", flash, "-X", "heapsize=64K"]
            + ["--clock", str(int(time.time()))],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    lines = done.stdout.splitlines()
    lives = [line.split() for line in lines if line.startswith("LIFE")]
    assert [life[1] for life in lives] == ["0", "1", "2", "3", "4"], done.stdout
    assert all(life[2] == "True" and life[4] == "OSError" for life in lives), lives
    assert len({life[3] for life in lives}) == 1, "every byte of each life is given back"
    assert lines.count("DATA HTTP") == 4


@pytest.mark.parametrize("size", [512, 1024])
def test_five_roots_cost_nothing_after_the_handshake_and_fit_the_budget(
    size: int, good: pki.Chain, bundle: list[str], tmp_path: Path
) -> None:
    """RSA chain, 32 bit: the budget of one connection, with what a real device trusts."""
    text = (
        CONNECT
        + """
def measure():
    gc.collect()
    gc.collect()
    before = tlspolicy.heap()[0]
    tlspolicy.heap_reset()
    ctx = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
    s = ctx.wrap_socket(tcp(port), server_hostname="localhost")
    now, peak = tlspolicy.heap()
    s.close()
    return peak - before, now - before, last()["granted"]

tlspolicy.max_fragment_length(size)
tlspolicy.roots(provider)
all_roots = roots
roots = all_roots[-1:]
one = measure()
roots = all_roots
report(one=one, five=measure())
"""
    )
    roots = [*bundle, put(tmp_path, "own.der", good.root.der)]
    with server(good, tmp_path) as port:
        found = tlsdevice.one("outpost32", tmp_path, text, port=port, roots=roots, size=size)
    peak, steady, granted = found["five"]
    assert granted == size
    assert steady == found["one"][1], "no root is held after the handshake"
    assert peak <= found["one"][0] + 64, "at most one root is in memory at a time"
    assert peak <= BUDGET_PEAK
    assert steady <= BUDGET_STEADY - 512 + size
