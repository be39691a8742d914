"""What tlspolicy meets inside the device: streams that lie, and memory that ends."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pki
import pytest
import tlsdevice
from stockboard import blank_flash
from test_tlspolicy_client import CONNECT, Fleet, demanding, device_key, leaf_for, put

LYING = """
import io

class Liar(io.IOBase):
    # Says of one read, or of one write, that it took more bytes than there were.
    def __init__(self, s):
        self.s, self.turn = s, 0
    def lie(self, which, done):
        if which == what:
            self.turn += 1
            if self.turn == at:
                return (done or 0) + more
        return done
    def write(self, data):
        return self.lie("write", self.s.write(data))
    def readinto(self, buf):
        return self.lie("read", self.s.readinto(buf))
    def ioctl(self, request, argument):
        return 0

tlspolicy.max_fragment_length(512)
tlspolicy.client(read(chain), 1)
error = attempt(lambda: context(root).wrap_socket(Liar(tcp(port)), server_hostname="localhost"))
gc.collect()
report(error=error, then=connect(port))
"""


@pytest.mark.parametrize("leg", tlsdevice.OURS)
@pytest.mark.parametrize("more", [1, 600, 70_000, 2**31 - 9000])
@pytest.mark.parametrize(
    "what, at", [("read", 1), ("read", 2), ("read", 4), ("write", 1), ("write", 2), ("write", 3)]
)
def test_a_stream_that_says_it_took_more_than_there_was_ends_the_handshake(
    what: str, at: int, more: int, leg: str, tmp_path: Path
) -> None:
    flash = blank_flash(tmp_path / "flash.bin")
    point = device_key(leg, tmp_path, flash)
    fleet = Fleet.make()
    with demanding(tmp_path, fleet.root) as (server, root):
        done = tlsdevice.one(
            leg,
            tmp_path,
            CONNECT + LYING,
            flash=flash,
            port=server.port,
            root=root,
            chain=put(tmp_path / "chain.der", fleet.chain(point, 3)),
            what=what,
            at=at,
            more=more,
            timeout=20,
        )
    assert done["error"].startswith("OSError"), done
    assert done["then"] == "hello", server.seen


def test_a_stream_that_takes_no_byte_at_a_time_is_asked_again(tmp_path: Path) -> None:
    flash = blank_flash(tmp_path / "flash.bin")
    point = device_key("outpost64", tmp_path, flash)
    fleet = Fleet.make()
    script = """
import io

class Idle(io.IOBase):
    def __init__(self, s):
        self.s, self.turn = s, 0
    def write(self, data):
        self.turn += 1
        return self.s.write(bytes(data[:300])) if self.turn % 3 == 0 else 0
    def readinto(self, buf):
        return self.s.readinto(buf)
    def ioctl(self, request, argument):
        return 0

tlspolicy.max_fragment_length(512)
tlspolicy.client(read(chain), 1)
s = context(root).wrap_socket(Idle(tcp(port)), server_hostname="localhost")
rest = b"hello"
while rest:
    rest = rest[s.write(rest) or 0:]
report(data=s.read(5).decode())
"""
    with demanding(tmp_path, fleet.root) as (server, root):
        done = tlsdevice.one(
            "outpost64",
            tmp_path,
            CONNECT + script,
            flash=flash,
            port=server.port,
            root=root,
            chain=put(tmp_path / "chain.der", fleet.chain(point, 3)),
            timeout=20,
        )
    assert done["data"] == "hello", server.seen


# ---------------------------------------------------------------- no memory

# Between the program and libc: after os.urandom(1000 + n) the n-th calloc from then on, and
# all after it, answer NULL; os.urandom(1000) ends that.
SHIM = r"""
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

void *__libc_calloc(size_t count, size_t size);
static size_t left;

ssize_t getrandom(void *to, size_t len, unsigned flags) {
    if (len >= 1000 && len < 2000) {
        left = len - 1000;
        return len;
    }
    return syscall(SYS_getrandom, to, len, flags);
}

void *calloc(size_t count, size_t size) {
    if (left > 0 && --left == 0) {
        left = 1;
        return NULL;
    }
    return __libc_calloc(count, size);
}
"""

ENOMEM = "OSError: [Errno 12] ENOMEM"
SWEEP = """
import os

def without(n, call):
    # What comes of it where the n-th block of memory, and each after it, is refused.
    os.urandom(1000 + n)
    try:
        answer = call()
    except Exception as e:
        answer = "%s: %s" % (type(e).__name__, e)
    os.urandom(1000)
    return answer

def sweep(call, step=1):
    # All different answers up to the n at which memory was enough, and what stayed behind.
    gc.collect()
    before, seen, n = tlspolicy.heap()[0], [], 1
    enough = call()
    while True:
        answer = without(n, call)
        if answer not in seen:
            seen.append(answer)
        if answer == enough:
            break
        n += max(step, n // 20)     # the first ones by one: later it is arithmetic
    gc.collect()
    return seen, n, tlspolicy.heap()[0] - before
"""


@pytest.fixture(scope="session")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shim, for LD_PRELOAD."""
    folder = tmp_path_factory.mktemp("shim")
    put(folder / "shim.c", SHIM.encode())
    made = folder / "shim.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-o", str(made), str(folder / "shim.c")],
        check=True,
        capture_output=True,
    )
    return made


def test_where_memory_ends_every_call_says_that_and_keeps_nothing(
    refusing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with an RSA authority: a certificate that is good is never called unreadable."""
    flash = blank_flash(tmp_path / "flash.bin")
    point = device_key("outpost64", tmp_path, flash)
    root = pki.make("RSA root", pki.key("rsa2048"))
    chain = leaf_for(point, root) + root.der
    script = """
chain, root = bytes.fromhex(chain), bytes.fromhex(root)
tlspolicy.key_new(0, True)
p = tlspolicy.key_public(0)
signature = tlspolicy.key_sign(0, b"m")
dates = "20260101000000", "20270101000000"
calls = (
    ("certificate", lambda: tlspolicy.certificate(root)["cn"]),
    ("chain_ok", lambda: tlspolicy.chain_ok(chain)),
    ("client", lambda: tlspolicy.client(chain, 1)),
    ("verify", lambda: tlspolicy.verify(p, b"m", signature)),
    ("key_agree", lambda: len(tlspolicy.key_agree(0, p))),
    ("key_sign", lambda: len(tlspolicy.key_sign(0, b"m"))),
    ("key_csr", lambda: tlspolicy.key_csr(0, "a")[0]),
    ("self_signed", lambda: tlspolicy.self_signed(0, "a", *dates)[0]),
    ("key_new", lambda: tlspolicy.key_new(2, True)),
)
report(found=[(name,) + sweep(call) for name, call in calls])
"""
    monkeypatch.setenv("LD_PRELOAD", str(refusing))
    found = tlsdevice.one(
        "outpost64",
        tmp_path,
        SWEEP + script,
        flash=flash,
        chain=chain.hex(),
        root=root.der.hex(),
        heap="2M",
    )["found"]
    for name, seen, n, left in found:
        assert left == 0, name
        assert n > 3, name
        assert seen[0] == ENOMEM and len(seen) == 2, (name, seen)


def test_where_memory_ends_in_a_handshake_the_next_one_works(
    refusing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flash = blank_flash(tmp_path / "flash.bin")
    point = device_key("outpost64", tmp_path, flash)
    fleet = Fleet.make()
    script = """
tlspolicy.max_fragment_length(512)
tlspolicy.client(read(chain), 1)
ctx = context(root)
seen, n, left = sweep(lambda: connect(port, ctx), 7)
report(seen=seen, n=n, left=left, then=connect(port))
"""
    monkeypatch.setenv("LD_PRELOAD", str(refusing))
    with demanding(tmp_path, fleet.root) as (server, root):
        done = tlsdevice.one(
            "outpost64",
            tmp_path,
            CONNECT + SWEEP + script,
            flash=flash,
            port=server.port,
            root=root,
            chain=put(tmp_path / "chain.der", fleet.chain(point, 3)),
            heap="2M",
        )
    assert done["then"] == "hello" and done["left"] == 0, done
    assert done["n"] > 100 and done["seen"] == [ENOMEM, "hello"], done
