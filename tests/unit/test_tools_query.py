"""The query language, over a few twins."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outpost_tools.hub.faults import ArgumentInvalid, ServiceError
from outpost_tools.hub.query import compile_query

TWINS = [
    {
        "deviceId": f"pump-{n}",
        "status": "disabled" if n == 3 else "enabled",
        "connectionState": "Connected" if n % 2 else "Disconnected",
        "tags": {"hall": n % 3, "site": "Nantes'" if n == 4 else "Lyon"} if n else {},
        "properties": {
            "desired": {"interval": 10 * n},
            "reported": {"fw": {"version": f"1.{n}"}, "list": [n, {"a": n}]},
        },
    }
    for n in range(6)
]


def ids(text):
    return [int(t["deviceId"][-1]) for t in compile_query(text).run(TWINS)]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("deviceId = 'pump-2'", [2]),
        ('deviceId = "pump-2"', [2]),
        ("status != 'enabled'", [3]),
        ("status <> 'enabled'", [3]),
        ("tags.hall = 1", [1, 4]),
        ("tags.hall > 0 AND tags.hall <= 1", [1, 4]),
        ("tags.site = 'Nantes'''", [4]),
        (r"tags.site = 'Nantes\''", [4]),
        ("NOT is_defined(tags.hall)", [0]),
        ("is_defined(tags.hall) and tags.hall = 0", [3]),
        ("tags.hall != 1", [2, 3, 5]),
        ("tags['hall'] = 2", [2, 5]),
        ("deviceId IN ['pump-1', 'pump-5', 7]", [1, 5]),
        ("deviceId NIN ['pump-1', 'pump-5']", [0, 2, 3, 4]),
        ("startswith(deviceId, 'pump-') AND endswith(deviceId, '4')", [4]),
        ("contains(properties.reported.fw.version, '.5')", [5]),
        ("properties.reported.list[0] = 3", [3]),
        ("properties.reported.list[1].a >= 4", [4, 5]),
        ("(tags.hall = 1 OR tags.hall = 2) AND connectionState = 'Connected'", [1, 5]),
        ("tags.hall = 1 OR tags.hall = 2 AND connectionState = 'Connected'", [1, 4, 5]),
        ("properties.desired.interval = 2e1", [2]),
        ("properties.desired.interval < 'x'", []),
        ("properties.desired.interval = '20'", []),
        ("is_number(tags.hall) and is_string(tags.site) and tags.hall = 0", [3]),
        ("tags.nothing = null", []),
        ("tags = 3", []),
    ],
)
def test_conditions(condition, expected):
    assert ids(f"SELECT * FROM devices WHERE {condition}") == expected


def test_what_is_selected():
    def run(text):
        return compile_query(text).run(TWINS)

    assert run("select * from devices") == TWINS
    assert run("SELECT TOP 2 * FROM devices") == TWINS[:2]
    assert run("SELECT deviceId AS id, tags.hall FROM devices WHERE deviceId = 'pump-1'") == [
        {"id": "pump-1", "hall": 1}
    ]
    assert run("SELECT tags.hall FROM devices WHERE deviceId = 'pump-0'") == [{}]
    assert run("SELECT COUNT() AS n FROM devices") == [{"n": 6}]
    assert run("SELECT count(*) AS n FROM devices WHERE status = 'x'") == [{"n": 0}]
    assert run("SELECT COUNT(tags.hall) AS n, SUM(tags.hall) AS s FROM devices") == [
        {"n": 5, "s": 6}
    ]
    assert run("SELECT AVG(properties.desired.interval) AS a FROM devices") == [{"a": 25}]
    assert run("SELECT MIN(tags.hall) AS a, MAX(tags.hall) AS b FROM devices") == [{"a": 0, "b": 2}]
    assert run("SELECT MIN(tags.x) AS a FROM devices") == [{"a": None}]
    assert run("SELECT status, COUNT() AS n FROM devices GROUP BY status") == [
        {"status": "enabled", "n": 5},
        {"status": "disabled", "n": 1},
    ]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        7,
        "x" * 10000,
        "SELECT",
        "SELECT * FROM",
        "SELECT * FROM modules",
        "SELECT * FROM devices.modules",
        "SELECT * FROM devices WHERE",
        "SELECT * FROM devices WHERE a =",
        "SELECT * FROM devices WHERE a = 'x",
        "SELECT * FROM devices WHERE (a = 1",
        "SELECT * FROM devices WHERE a = 1 b",
        "SELECT * FROM devices GROUP BY status",
        "SELECT TOP x * FROM devices",
        "SELECT nope(a) FROM devices",
        "SELECT * FROM devices WHERE nope(a)",
        "DELETE FROM devices",
        "SELECT * FROM devices; DROP TABLE device",
        "SELECT * FROM devices WHERE " + "(" * 1000 + "a" + ")" * 1000,
        "SELECT * FROM devices WHERE " + "NOT " * 1000 + "a",
    ],
)
def test_what_is_no_query_is_one_sentence(text):
    with pytest.raises(ArgumentInvalid) as caught:
        compile_query(text)
    assert caught.value.message.endswith(".")


WORDS = st.sampled_from(
    "SELECT * FROM devices WHERE AND OR NOT IN ( ) [ ] = < a.b 'x' 1 , TOP GROUP BY COUNT".split()
)


@given(st.lists(WORDS, max_size=14))
@settings(max_examples=300, deadline=None)
def test_any_words_are_a_query_or_a_sentence(words):
    try:
        compile_query(" ".join(["SELECT * FROM devices", *words])).run(TWINS)
    except ServiceError:
        pass
