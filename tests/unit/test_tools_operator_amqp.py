"""What of the AMQP side can be known without a real IoT Hub: the form that messages are given."""

from __future__ import annotations

import pytest
import uamqp
from outpost_tools.connection import Connection, parse
from outpost_tools.errors import OutpostError
from outpost_tools.operator import Message, Operator
from outpost_tools.operator_amqp import event_of

KEY = "A" * 43 + "="
REAL = f"HostName=nowhere.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey={KEY}"


def test_an_amqp_message_is_shown_as_the_local_hub_shows_telemetry():
    message = uamqp.Message(
        b'{"t": 21}',
        application_properties={b"alarm": b"high"},
        annotations={
            b"iothub-connection-device-id": b"pump-7",
            b"iothub-enqueuedtime": 1700000000500,
            b"x-opt-sequence-number": 7,
        },
    )
    event = event_of(message)
    assert event["event"] == "telemetry" and event["device"] == "pump-7"
    assert event["body"] == '{"t": 21}' and event["properties"] == {"alarm": "high"}
    assert event["received_s"] == 1700000000.5 and event["number"] == 7


def test_commands_to_a_real_hub_go_through_the_sdk_with_all_that_was_said(monkeypatch):
    sent = []
    with Operator(parse(REAL)) as operator:
        monkeypatch.setattr(operator._sdk, "send_c2d_message", lambda *a: sent.append(a))
        operator.send(
            "pump-7",
            Message(b"x", {"zone": "3"}, message_id="m", expiry_s=1700000000.5, ack="full"),
        )
    assert sent == [
        (
            "pump-7",
            b"x",
            {
                "zone": "3",
                "messageId": "m",
                "expiryTimeUtc": 1700000000500,
                "iothub-ack": "full",
            },
        )
    ]


def test_a_command_that_cannot_be_sent_is_one_sentence_without_the_key(monkeypatch):
    def fail(*_):
        raise Exception(f"C2D message send failure {KEY}")

    with Operator(parse(REAL)) as operator:
        monkeypatch.setattr(operator._sdk, "send_c2d_message", fail)
        with pytest.raises(OutpostError) as caught:
            operator.send("pump-7", Message(b"x"))
    assert "5671" in str(caught.value) and KEY not in str(caught.value)


@pytest.mark.parametrize(
    "host, real",
    [
        ("a.azure-devices.net", True),
        ("A.Azure-Devices.NET", True),
        ("a.azure-devices.cn", True),
        ("localhost:8443", False),
        ("azure-devices.net.example", False),
        ("127.0.0.1", False),
    ],
)
def test_only_azures_own_host_names_are_taken_for_the_real_service(host, real):
    connection = Connection(host, "service", KEY)
    assert connection.is_azure is real
    assert KEY not in repr(connection)
