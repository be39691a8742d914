"""A session is taken up by the server that it was made with, and by no other; whatever is wrong
with it, a full handshake takes place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pki
import pytest
import servers
import tlsdevice

PAIR = """
def connect(to, name="localhost", asked=512, roots=roots):
    tlspolicy.max_fragment_length(asked)
    tlspolicy.keep_session(True)
    s = context(*roots).wrap_socket(tcp(to), server_hostname=name)
    facts = last()
    session = tlspolicy.session()
    s.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
    got = s.read(100)
    assert got.startswith(b"HTTP"), got
    s.close()
    return facts, session
full, session = connect(port)
"""


@pytest.fixture(scope="module")
def chain() -> pki.Chain:
    return pki.chain("ecdsa")


@pytest.fixture(scope="module")
def files(chain: pki.Chain, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    directory = tmp_path_factory.mktemp("server")
    return (directory, *chain.write(directory))


@pytest.fixture(scope="module")
def port(files: tuple[Path, Path, Path]) -> Iterator[int]:
    directory, certificate, key = files
    with servers.s_server(directory / "server", certificate, key, "-tls1_2") as port:
        yield port


@pytest.fixture
def root(chain: pki.Chain, tmp_path: Path) -> str:
    path = tmp_path / "root.der"
    path.write_bytes(chain.root.der)
    return str(path)


def run(leg: str, tmp_path: Path, script: str, **parameters) -> dict:
    return tlsdevice.one(leg, tmp_path, PAIR + script, **parameters)


@pytest.mark.parametrize(
    ("leg", "kind", "size", "options"),
    [
        ("outpost64", "rsa", 512, ()),
        ("outpost32", "rsa", None, ("-no_ticket",)),
        ("outpost64", "ecdsa", 4096, ("-no_ticket",)),
        ("outpost32", "ecdsa", 512, ()),
        ("outpost32", "ecdsa", None, ()),
    ],
)
def test_second_connection_needs_no_certificates(leg, kind, size, options, tmp_path) -> None:
    chain = pki.chain(kind)
    certificate, key = chain.write(tmp_path)
    root = tmp_path / "root.der"
    root.write_bytes(chain.root.der)
    with (
        servers.s_server(tmp_path / "server", certificate, key, "-tls1_2", *options) as port,
        servers.Proxy(port) as proxy,
    ):
        found = run(
            leg,
            tmp_path,
            f"""
first, session = connect(through, asked={size})
assert tlspolicy.session(session) is True
again, newer = connect(through, asked={size})
tlspolicy.session(newer)
third, _ = connect(through, asked={size})
report(first=first, again=again, third=third, size=len(session))
""",
            port=port,
            through=proxy.port,
            roots=[str(root)],
        )
    first, again = found["first"], found["again"]
    assert first["resumed"] is False and again["resumed"] and found["third"]["resumed"]
    assert again["rx"] < 500 < first["rx"]
    assert again["granted"] == first["granted"] == size
    assert again["suite"] == first["suite"] and again["root"] == first["root"]
    assert found["size"] < 1024


def test_session_is_not_offered_to_another_name_or_with_another_record_size(
    chain, port, root, tmp_path
) -> None:
    found = run(
        "outpost32",
        tmp_path,
        """
tlspolicy.session(session)
said = attempt(lambda: connect(port, name="127.0.0.1"))     # judged by its certificate
size, _ = connect(port, asked=1024)
none, _ = connect(port, asked=None)
same, _ = connect(port)
found = [facts["resumed"] for facts in (size, none, same)]
report(other="does not match" in said, size=found[0], none=found[1], same=found[2])
""",
        port=port,
        roots=[root],
    )
    assert found == {"other": True, "size": False, "none": False, "same": True}


def test_session_that_was_changed_in_any_byte_is_not_offered(chain, port, root, tmp_path) -> None:
    found = run(
        "outpost64",
        tmp_path,
        """
taken = []
for at in range(len(session)):
    for bit in (1, 128):
        changed = bytearray(session)
        changed[at] ^= bit
        if tlspolicy.session(changed):
            taken.append(at)
for cut in (0, 1, 4, 36, 101, 102, 103, len(session) - 1):
    if tlspolicy.session(session[:cut]):
        taken.append(cut)
assert tlspolicy.session(session + b"x") is False and tlspolicy.session(b"\\xff" * 800) is False
facts, _ = connect(port)
report(taken=taken, resumed=facts["resumed"])
""",
        port=port,
        roots=[root],
    )
    assert found == {"taken": [], "resumed": False}


FORGE = """
import hashlib
def tcp(port):
    s = socket.socket()
    s.settimeout(3)
    s.connect(socket.getaddrinfo("127.0.0.1", port)[0][-1])
    return s
def forged(at, value):
    changed = bytearray(session)
    changed[at] ^= value
    changed[4:36] = hashlib.sha256(bytes(changed[36:])).digest()
    return changed
"""


def test_session_of_another_secret_never_makes_a_connection(chain, port, root, tmp_path) -> None:
    """Whoever can compute the digest can break a session, and gets no connection for it."""
    found = run(
        "outpost64",
        tmp_path,
        FORGE
        + """
opened = []
for at in range(102, len(session), 8):
    if tlspolicy.session(forged(at, 0x55)):
        try:
            facts, _ = connect(port)
        except (OSError, ValueError, AssertionError):
            facts = last()
            assert facts["error"] != 0 and not facts["resumed"]
            continue
        if facts["resumed"]:
            opened.append(at)
report(opened=opened, length=len(session))
""",
        port=port,
        roots=[root],
        timeout=240,
    )
    # Times, id and what the certificate was say nothing of the secret, and may differ. The master
    # secret (48 bytes) and the ticket (160 and more) lie in one piece each, and may not.
    tried = range(102, found["length"], 8)
    marks = "".join("+" if at in found["opened"] else "-" for at in tried)
    closed = sorted(8 * len(piece) for piece in marks.split("+"))
    assert closed[-1] >= 152 and closed[-2] >= 40, marks


def test_another_server_under_the_same_name_cannot_use_the_session(
    chain, files, port, root, tmp_path
) -> None:
    directory, _, _ = files
    evil = pki.chain("ecdsa", root_number=7)
    certificate, key = evil.write(tmp_path / "evil")
    with servers.s_server(tmp_path / "evil-server", certificate, key, "-tls1_2") as impostor:
        found = run(
            "outpost32",
            tmp_path,
            """
tlspolicy.session(session)
said = attempt(lambda: connect(impostor))
facts = last()
report(said=said, resumed=facts["resumed"], version=facts["version"])
""",
            port=port,
            impostor=impostor,
            roots=[root],
        )
    assert "not correctly signed" in found["said"]
    assert found["resumed"] is False and found["version"] is None


def test_none_is_kept_or_offered_unless_asked_for(chain, port, root, tmp_path) -> None:
    found = run(
        "outpost32",
        tmp_path,
        """
tlspolicy.session(session)
tlspolicy.session(None)
tlspolicy.keep_session(False)
again = tlspolicy.session()
s = context(*roots).wrap_socket(tcp(port), server_hostname="localhost")
facts = last()
report(again=again, resumed=facts["resumed"], kept=tlspolicy.session(), first=full["resumed"])
""",
        port=port,
        roots=[root],
    )
    assert found == {"again": None, "resumed": False, "kept": None, "first": False}


def test_sessions_leak_no_memory(chain, port, root, tmp_path) -> None:
    found = run(
        "outpost32",
        tmp_path,
        """
held = []
for n in range(12):
    tlspolicy.session(session)
    facts, session = connect(port)
    assert facts["resumed"]
    tlspolicy.session(None)
    gc.collect()
    held.append(tlspolicy.heap()[0])
report(held=held[4:])
""",
        port=port,
        roots=[root],
    )
    assert len(set(found["held"])) == 1
