"""Every wrong or missing field of the configuration is named, in one sentence."""

import json

import pytest

GOOD = {"hub": "hub.example", "wifi": {"ssid": "net", "key": "12345678"}}

RUN = """
from outpost import config
from outpost.errors import ConfigError
import json
try:
    c = config.load("config.json")
    print("ok", c.hub, c.port, c.record_size, c.ecc_only, c.keepalive_s, c.sntp, end=" ")
    print(c.backoff_s, c.queue)
except ConfigError as e:
    print("refused", e)
"""


@pytest.fixture
def load(micropython, tmp_path):
    def load(content: bytes | dict) -> str:
        if isinstance(content, dict):
            content = json.dumps(content).encode()
        (tmp_path / "config.json").write_bytes(content)
        printed = micropython(RUN).strip()
        assert "\n" not in printed
        return printed

    return load


def test_defaults_are_filled_in(load):
    assert load(GOOD) == "ok hub.example 8883 auto False 240 [('pool.ntp.org', 123)] (1, 300) 32"


def test_every_wrong_field_is_named_at_once(load):
    said = load(
        {
            "port": "8883",
            "wifi": {"ssid": "", "key": "short", "pass": "x"},
            "sntp": ["a:b", 5],
            "record_size": 513,
            "suites": "none",
            "keepalive_s": True,
            "backoff_s": [5, 1],
            "queue": 0,
            "hbu": 1,
        }
    )
    assert said.startswith("refused config.json: ")
    for name in (
        "hub is missing",
        "port must",
        "wifi.ssid",
        "wifi.key",
        "wifi.pass",
        "sntp must",
        "record_size must",
        "suites must",
        "keepalive_s must",
        "backoff_s[1] must",
        "queue must",
        "hbu is not a field",
    ):
        assert name in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b'{"hub": "h", "wifi": {"ssid": "a"}', "is not JSON"),
        (b'{"hub": "h", "wifi": {"ssid": "a"}, "x": "}', "is not JSON"),
        (b"\xff\xfe", "is not"),
        (b"[" * 3000, "is not JSON"),
        (b"[]", "must hold a JSON object"),
        (b" " * 5000, "longer than 4,096"),
        ({**GOOD, "hub": "mqtts://hub"}, "hub must be a host name alone"),
        ({**GOOD, "hub": "a\nb"}, "control character"),
        ({**GOOD, "hub": 5}, "hub must be a text"),
        ({"hub": "h"}, "wifi is missing"),
    ],
)
def test_bad_file_is_one_sentence(load, content, words):
    assert words in load(content)


def test_missing_file_says_what_to_do(micropython):
    assert "outpost image" in micropython(RUN)


def test_the_wifi_key_is_never_repeated(load):
    said = load({**GOOD, "wifi": {"ssid": "net", "key": "hunter2"}})
    assert said.startswith("refused") and "hunter2" not in said


@pytest.mark.parametrize("size", [512, 1024, 2048, 4096, "none", "auto"])
def test_each_record_size_is_taken(load, size):
    assert f" {0 if size == 'none' else size} " in load({**GOOD, "record_size": size})
