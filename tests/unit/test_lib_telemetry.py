"""What send() takes: what JSON has, or bytes; all else is refused before it is queued."""

import json

import pytest

GOOD = [None, True, 0, -5, 2**40, 1.5, "é\n", [], {}, [1, [2, {"a": None}]], {"a": {"b": [1]}}]


def test_each_value_that_json_has_arrives_as_it_was(micropython):
    printed = micropython(
        "from outpost import telemetry\n"
        f"for value in {GOOD!r} + [(1, 2)]:\n"
        "    print(telemetry.encode(value))\n"
    )
    values = [json.loads(eval(line)) for line in printed.splitlines()]
    assert values == [*GOOD, [1, 2]]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("object()", "object"),
        ("[1, {'a': object()}]", "object"),
        ("{'a': b'x'}", "bytes"),
        ("{1: 2}", "key"),
        ("{None: 2}", "key"),
        ("float('nan')", "nan"),
        ("[float('inf')]", "inf"),
        ("-float('inf')", "inf"),
        ("{1, 2}", "set"),
        ("print", "function"),
        ("endless", "levels"),
        ("'x' * 999", "1001 bytes is too long: 1000"),
        ("bytes(1001)", "1001 bytes is too long: 1000"),
    ],
)
def test_value_that_json_has_not_is_refused(micropython, value, words):
    printed = micropython(
        "from outpost import telemetry\ntelemetry.MAX_BYTES = 1000\n"
        "endless = []\nendless.append(endless)\n"
        f"try:\n    print(telemetry.encode({value}))\n"
        "except ValueError as e:\n    print('refused', e)\n"
    )
    assert printed.startswith("refused") and words in printed


def test_the_limit_is_that_of_the_design(micropython):
    assert micropython("from outpost import telemetry\nprint(telemetry.MAX_BYTES)") == "65536\n"


def test_a_buffer_is_copied_so_that_it_can_be_filled_again(micropython):
    micropython("""
from outpost import telemetry
buffer = bytearray(b"one")
kept = [telemetry.encode(buffer), telemetry.encode(memoryview(buffer)[1:])]
buffer[:] = b"two"
assert kept == [b"one", b"ne"], kept
""")
