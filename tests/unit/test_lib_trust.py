"""A damaged roots file is refused, whole, before any connection is made with it."""

import pytest

RUN = """
from outpost import trust
from outpost.errors import TrustError
try:
    print("ok", [len(der) for der in trust.roots("roots.bin")])
except TrustError as e:
    assert e.person
    print("refused", e)
"""


def der(size: int) -> bytes:
    return b"\x30\x82" + (size - 4).to_bytes(2, "big") + b"\x11" * (size - 4)


def entry(size: int) -> bytes:
    return size.to_bytes(2, "big") + der(size)


GOOD = entry(914) + entry(579)


def test_roots_come_one_by_one(micropython, tmp_path):
    (tmp_path / "roots.bin").write_bytes(GOOD)
    assert micropython(RUN).strip() == "ok [914, 579]"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there are no roots"),
        (b"", "holds no root"),
        (GOOD[:-1], "damaged at root 2"),
        (GOOD + b"\x00", "damaged at root 3"),
        (GOOD + b"\x00\x00", "damaged at root 3"),
        (b"\x00\x04junk" + GOOD, "damaged at root 1"),
        (b"\x03\x92" + b"\x30\x82\x00\x01" + b"x" * 910, "damaged at root 1"),
        (b"\xff\xff" + b"\x30\x82\xff\xfb" + b"x" * 100, "larger than it may be"),
        (entry(500) * 7, "larger than it may be"),
        (entry(2000) * 5, "larger than it may be"),
    ],
)
def test_damaged_roots_file_is_refused(micropython, tmp_path, content, words):
    if content is not None:
        (tmp_path / "roots.bin").write_bytes(content)
    said = micropython(RUN).strip()
    assert said.startswith("refused") and words in said
