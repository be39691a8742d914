"""What the device reads of an application package, and every way in which a body can be wrong."""

from __future__ import annotations

import hashlib
import io

import packages
import pytest
from devicelib import Library
from hypothesis import given, settings
from hypothesis import strategies as st
from outpost_tools.errors import OutpostError
from outpost_tools.package import Package, check_path

XTENSA = 11014  # what stock MicroPython 1.25 for ESP32 says of itself
MPY = b"M\x06\x00\x1f"
GOOD = [(b"lib/x.mpy", MPY + b"code"), (b"main.py", b"import x")]


LIBRARY = Library()
LIBRARY.package._OURS = XTENSA


def read(body: bytes, at: int = 0) -> dict[str, bytes]:
    """What the device would write; raises its UpdateError."""
    package = LIBRARY.package.Reader(io.BytesIO(body), at, len(body) - at)
    package.check()
    found = {}
    for path, _, digest in package.entries():
        content = b""
        while part := bytes(package.read(bytearray(7))):
            content += part
        assert hashlib.sha256(content).digest() == digest
        found[path] = content
    return found


def refusal(body: bytes) -> str:
    with pytest.raises(LIBRARY.errors.UpdateError) as err:
        read(body)
    return str(err.value)


def test_device_reads_what_the_host_wrote():
    package = packages.application(packages.main(), (("a/b.py", b"x = 1"), ("data.txt", b"")))
    assert set(package.files) == {"main.py", "_main.mpy", "a/b.mpy", "data.txt"}
    assert read(b"junk" + package.encode(), 4) == package.files
    assert Package.decode(package.encode()) == package


def test_space_is_known_before_anything_is_written():
    body = packages.raw([(b"big.bin", bytes(9000)), *GOOD])
    package = LIBRARY.package.Reader(io.BytesIO(body), 0, len(body))
    package.check()
    assert package.needs >= 3 * 4096 + 3 * 4096


WRONG = {
    "nothing": (b"", "cut off"),
    "no package": (b"OPTB" + bytes(60), "no application package"),
    "another format": (packages.raw(GOOD, head=b"OPAP\x02\x06\x00"), "no application package"),
    "another mpy version": (packages.raw(GOOD, head=b"OPAP\x01\x05\x00"), "compiled for mpy 5.0"),
    "another arch": (packages.raw(GOOD, head=b"OPAP\x01\x06\x0b"), "compiled for mpy 6.3 arch 2"),
    "another sub-version": (packages.raw(GOOD, head=b"OPAP\x01\x06\x2a"), "compiled for mpy 6.2"),
    "no files": (packages.raw([]), "no files"),
    "too many files": (
        packages.raw([(b"%03d" % n, b"") for n in range(129)]),
        "no files, or more than 128",
    ),
    "more files promised": (packages.raw(GOOD, count=3), "cut off"),
    "fewer files promised": (packages.raw(GOOD, count=1), "goes on after its last file"),
    "something behind": (packages.raw(GOOD, tail=b"x"), "goes on after its last file"),
    "a file as long as 4 GiB": (packages.raw(GOOD, sizes={0: 0xFFFFFFFF}), "longer than"),
    "a file that takes in the next": (packages.raw(GOOD, sizes={0: 60}), ""),
    "no main.py": (packages.raw(GOOD[:1]), "has no main.py"),
    "an empty main.py": (packages.raw([(b"main.py", b"")]), "has no main.py"),
    "one path twice": (packages.raw([GOOD[1], GOOD[1]]), "out of order or twice"),
    "out of order": (packages.raw(GOOD[::-1]), "out of order or twice"),
    "a file that is a folder": (
        packages.raw([(b"lib", b"x"), *GOOD]),
        "out of order or twice",
    ),
    "no .mpy file": (packages.raw([(b"a.mpy", b"X\x06\x00\x1f"), GOOD[1]]), "is no .mpy file"),
    "an .mpy cut off": (packages.raw([(b"a.mpy", b"M\x06"), GOOD[1]]), "is no .mpy file"),
    "an older .mpy": (packages.raw([(b"a.mpy", b"M\x05\x00\x1f"), GOOD[1]]), "compiled for mpy 5"),
    "an .mpy of x64": (packages.raw([(b"a.mpy", b"M\x06\x0b\x1f"), GOOD[1]]), "arch 2"),
    "an .mpy of 63 bits": (packages.raw([(b"a.mpy", b"M\x06\x00\x3f"), GOOD[1]]), "more bits"),
    "source": (packages.raw([(b"a.py", b"x = 1"), GOOD[1]]), "a.py is source"),
    "boot.py": (packages.raw([(b"boot.py", b"x = 1"), GOOD[1]]), "path that it may not have"),
    "a label that is no text": (packages.raw(GOOD, label=b"\xff\xfe"), "is no text"),
    "a label that is too long": (packages.raw(GOOD, label=b"x" * 33), "more than 32"),
}
PATHS = (
    b"",
    b"/main.py",
    b"/config.json",
    b"../boot.py",
    b"a/../../boot.py",
    b"a/..",
    b".",
    b"./main.py",
    b"a//b",
    b"a/",
    b".hidden",
    b"a/.b",
    b"a\x00b",
    b"a\nb",
    b"a b",
    b"a\\b",
    b"C:b",
    "ä".encode(),
    b"a/b/c/d/e",
    b"x" * 65,
    b"\xff",
)


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_body_is_refused_before_anything_is_written(name):
    body, words = WRONG[name]
    assert words in refusal(body)
    with pytest.raises(OutpostError):
        host = Package.decode(body)
        # The host knows of no board: versions and arches are the device's to judge.
        assert "mpy" in words or "bits" in words or "arch" in words, host
        raise OutpostError("")


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_leads_out_of_the_slot_or_has_two_spellings_is_refused(path):
    refusal(packages.raw(sorted([(path, b"x"), GOOD[1]])))
    try:
        text = path.decode()
    except UnicodeDecodeError:
        return
    with pytest.raises(OutpostError):
        check_path(text)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_only_what_it_stands_for(at, flip):
    good = packages.raw(GOOD)
    body = bytearray(good)
    body[at % len(body)] ^= flip
    try:
        package = LIBRARY.package.Reader(io.BytesIO(bytes(body)), 0, len(body))
        package.check()
    except LIBRARY.errors.UpdateError as e:
        assert len(str(e)) > 20
        return
    for path, size, _ in package.entries():
        check_path(path)
        assert size < len(body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_whatever_comes_is_read_or_refused_with_a_sentence(junk, headed):
    body = (b"OPAP\x01\x06\x00" if headed else b"") + junk
    try:
        read(body)
    except LIBRARY.errors.UpdateError as e:
        assert str(e)
    except AssertionError:
        pass  # a hash that does not match: update.py looks at it


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_a_body_that_is_cut_off_is_refused(size):
    good = packages.raw(GOOD)
    refusal(good[: size % len(good)])
