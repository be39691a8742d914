"""What is counted out of a device's console."""

import json

from outpost_tools.console import Tally, together

LINES = """
   0.000 boot     Outpost boots reset_cause=1 library=frozen
   0.412 tls      connected version=TLSv1.2 cipher=TLS-ECDHE-ECDSA-WITH-AES-128-GCM-SHA256 \
mfl_asked=512 mfl_granted=512 root=3fa4 rx=1432 tx=402 ms=48 \
tls_heap_peak=21480 tls_heap_steady=6192
   0.530 send     sent id=1 bytes=57
   0.541 send     acked id=1
   1.541 send     sent id=2 bytes=57
""".splitlines()


def tally(lines, device="a"):
    result = Tally(device)
    for line in lines:
        result.take(line)
    return result


def test_the_summary_has_every_promised_field():
    assert tally(LINES).summary(reboots=2) == {
        "device": "a",
        "tls": "TLSv1.2",
        "cipher": "TLS-ECDHE-ECDSA-WITH-AES-128-GCM-SHA256",
        "mfl_asked": 512,
        "mfl_granted": 512,
        "tls_heap_peak": 21480,
        "tls_heap_steady": 6192,
        "sent": 2,
        "acked": 1,
        "reboots": 2,
    }


def test_a_device_that_never_connected_has_no_facts_and_no_messages():
    summary = tally(["Traceback", "   0.1 error  hub: sent id=1", ""]).summary(0)
    assert summary["tls"] is None and summary["sent"] == summary["acked"] == 0


def test_what_is_sent_again_counts_once_and_a_message_in_ram_has_a_name_of_its_own():
    summary = tally(
        [
            "   0.600 send     sent id=r7 bytes=57",
            "   0.700 send     sent id=r7 bytes=57 again=1",
            "   0.800 send     acked id=r7",
        ]
    ).summary(0)
    assert (summary["sent"], summary["acked"]) == (1, 1)


def test_no_record_size_asked_or_granted_is_null():
    for none in ("0", "none", "None"):
        line = f"   0.1 tls      connected version=TLSv1.2 mfl_asked={none} mfl_granted={none}"
        summary = tally([line]).summary(0)
        assert summary["mfl_asked"] is None and summary["mfl_granted"] is None


def test_the_last_connection_counts():
    lines = [*LINES, "   9.000 tls      connected version=TLSv1.2 mfl_asked=1024 mfl_granted=1024"]
    assert tally(lines).summary(0)["mfl_granted"] == 1024


def test_several_devices_are_summed_and_listed():
    one, two = tally(LINES, "a").summary(1), tally(LINES, "b").summary(0)
    two |= {"tls_heap_peak": 30000, "mfl_granted": 1024}
    whole = together([one, two])
    assert whole["device"] == "a,b" and whole["devices"] == [one, two]
    assert (whole["sent"], whole["acked"], whole["reboots"]) == (4, 2, 1)
    assert whole["tls"] == "TLSv1.2" and whole["mfl_granted"] is None
    assert whole["tls_heap_peak"] == 30000
    assert json.loads(json.dumps(whole)) == whole


def test_one_device_is_its_own_summary():
    one = tally(LINES).summary(0)
    assert together([one]) == one
