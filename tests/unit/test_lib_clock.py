"""The clock: SNTP's answer is checked, the floor only rises, and no date makes it fail."""

import time

import chip
import pytest
from legs import VIRTUAL
from outpost_tools.sntp import SntpServer

LEGS_HERE = VIRTUAL

UNIX_2000 = 946684800
TABLE = [(1, 2, 0x9000, 0x6000, "nvs"), (0, 0, 0x10000, 0x1F0000, "factory")]

# A clock over a machine of our own: `cause` is the reset cause, `answers` what SNTP gives.
PRELUDE = """
import esp32, struct, sys, machine as board
class machine:
    PWRON_RESET = board.PWRON_RESET
    RTC = board.RTC
    cause = board.PWRON_RESET
    reset_cause = classmethod(lambda cls: cls.cause)
sys.modules["machine"] = machine
from outpost import agreed, clock, rtcmem, sntp
from outpost.errors import ClockError
asked, answers = [], {}
def query(host, port):
    asked.append(host)
    answer = answers.get(host)
    if answer is None:
        raise ClockError("no answer in 3000 ms")
    if isinstance(answer, Exception):
        raise answer
    return answer
true_query, sntp.query = sntp.query, query
clock.do = lambda part, name, *args: getattr(sntp, name)(*args)
T = clock.unix(2026, 3, 1)
def keep(unix):
    nvs = esp32.NVS("outpost")
    nvs.set_i32(agreed.NVS_TIME_FLOOR, unix - agreed.UNIX_2000)
    nvs.commit()
def vouched(at, asked=None):
    pair = [x - agreed.UNIX_2000 for x in (at, asked or at)]
    rtcmem.put(rtcmem.CLOCK_VOUCHED, struct.pack("<II", *pair))
def kept():
    return esp32.NVS("outpost").get_i32(agreed.NVS_TIME_FLOOR) + agreed.UNIX_2000
clock._set(agreed.UNIX_2000)
keep(T)
ALL = [("a", 123), ("b", 123), ("d", 123)]
c = clock.Clock(ALL[:1])
"""


@pytest.fixture
def run(micropython, tmp_path):
    image = bytearray(b"\xff" * (4 * chip.MIB))
    table = chip.table(TABLE)
    image[0x8000 : 0x8000 + len(table)] = table
    flash = tmp_path / "flash.bin"
    flash.write_bytes(image)
    return lambda script: micropython(PRELUDE + script, "--flash", str(flash))


def test_floor_is_used_when_nobody_answers_and_said(run):
    printed = run("""
c.servers = ALL
assert c.settle() in (T, T + 1) and c.source == "floor" and asked == ["a", "b", "d"]
assert clock.now() >= T
c.settle()
assert c.source == "floor" and asked == ["a", "b", "d"] * 2      # asked again each time
answers["b"] = T + 5000
answers["d"] = T + 5003
assert c.settle() in (T + 5003, T + 5004) and c.source == "b,d" and c.vouched()
c.settle()
assert asked == ["a", "b", "d"] * 3                              # and then no more
""")
    assert "no time from a: no answer" in printed


@pytest.mark.parametrize(
    "answer", ["T - 1", "agreed.UNIX_2000", "0", "2**31 + agreed.UNIX_2000", "2**32 - 1", "2**33"]
)
def test_forged_answer_outside_the_possible_is_not_believed(run, answer):
    printed = run(f"""
c.servers = ALL
answers["a"] = {answer}
answers["b"] = answers["d"] = T + 60
assert c.settle() in (T + 60, T + 61) and c.source == "b,d"
""")
    assert "a says" in printed and "not believed" in printed


def test_sntp_never_raises_the_floor(run):
    run("""
answers["a"] = clock.unix(2060, 1, 1)
c.settle()
assert c.floor == T == kept()
""")


def test_floor_rises_by_days_and_never_falls(run):
    run("""
for lower in (T - 86400 * 400, 0, T, T + 86399):
    c.raise_floor(lower)
    assert c.floor == T == kept()
c.raise_floor(T + 86400)
assert c.floor == T + 86400 == kept()
assert clock.Clock([]).floor == T + 86400
c.raise_floor(agreed.UNIX_2000 + (1 << 31))       # NVS has no number for it
assert c.floor == T + 86400 == kept()
""")


def test_full_nvs_does_not_end_the_connection(run):
    printed = run("""
nvs = esp32.NVS("other")
n = 0
try:
    while True:
        nvs.set_i32("k%d" % n, n)
        n += 1
except OSError:
    pass
c.raise_floor(T + 864000)
assert c.floor == T + 864000
""")
    assert "could not be kept in NVS" in printed


@pytest.mark.parametrize("value", [-1, -(2**31) + 1])
def test_floor_in_nvs_that_is_no_date_counts_for_nothing(run, value):
    run(f"""
nvs = esp32.NVS("outpost")
nvs.set_i32(agreed.NVS_TIME_FLOOR, {value})
assert clock.Clock([]).floor == agreed.UNIX_2000
nvs.erase_key(agreed.NVS_TIME_FLOOR)
assert clock.Clock([]).floor == agreed.UNIX_2000
""")


def test_clock_kept_over_a_reset_is_used_until_it_is_doubted(run):
    run("""
machine.cause = 3
clock._set(T + 1000)
vouched(T + 900)
assert c.settle() in (T + 1000, T + 1001) and c.source == "rtc" and not asked
assert c.doubt() is True
answers["a"] = T + 99
c.settle()
assert c.source == "a" and asked == ["a"]
assert c.doubt() is False                  # asked just now: it is not the clock
answers["a"] = None
c.settle()
assert c.source == "unvouched" and clock.now() >= T + 99
assert c.doubt() is True                   # nobody answered: it may be the clock
""")


SLEPT = "DAY = 86400\nmachine.cause = 3\n"


@pytest.mark.parametrize("since", ["-1", "-400 * DAY", "30 * DAY"])
def test_clock_that_leapt_in_its_sleep_is_not_vouched_for(run, since):
    """It is earlier than it was, or later by more than anybody answers for."""
    run(f"""{SLEPT}
vouched(T + 500 * DAY)
clock._set(T + 500 * DAY + {since})
c.settle()
assert c.source == "unvouched" and asked == ["a"] and not rtcmem.get(rtcmem.CLOCK_VOUCHED)
answers["a"] = T + 500 * DAY + 7
c.settle()
assert c.source == "a" and clock.now() - T - 500 * DAY in (7, 8)
""")


def test_clock_that_was_vouched_for_a_day_ago_is_asked_for_again_and_put_right(run):
    printed = run(f"""{SLEPT}
c.servers = ALL
vouched(T)
clock._set(T + DAY - 60)
c.settle()
assert c.source == "rtc" and not asked
clock._set(T + DAY + 1)
answers["a"] = answers["b"] = T + DAY - 3600        # deep sleep went an hour wrong
c.settle()
assert c.source == "a,b" and clock.now() - T - DAY in (-3600, -3599)
again = clock.Clock(ALL)
again.settle()
assert again.source == "rtc" and len(asked) == 2
""")
    assert "it was wrong by 360" in printed


@pytest.mark.parametrize(
    "said", [(None, None, None), ("T + 99 * DAY", None, None), ("T - 1", "T + 1", "T + 9 * DAY")]
)
def test_what_nobody_confirms_does_not_undo_a_clock_that_was_vouched_for(run, said):
    run(f"""{SLEPT}
c.servers = ALL
vouched(T)
clock._set(T + DAY + 100)
answers["a"], answers["b"], answers["d"] = {", ".join(map(str, said))}
assert c.settle() - T - DAY in (100, 101) and c.source == "rtc" and len(asked) == 3
c.settle()
assert len(asked) == 3                               # not at each connection
again = clock.Clock(ALL)
again.settle()
assert again.source == "rtc" and len(asked) == 3
clock._set(T + 2 * DAY + 200)
again.settle()
assert len(asked) == 6 and again.vouched()
""")


@pytest.mark.parametrize("kept", [b"", b"\1", b"12345678", bytes(8), b"\xff" * 8, bytes(9)])
def test_rtc_memory_of_another_software_vouches_for_nothing(run, kept):
    run(f"""{SLEPT}
clock._set(T + 400 * DAY)
rtcmem.put(rtcmem.CLOCK_VOUCHED, {kept!r})
c.settle()
assert not c.vouched() and asked == ["a"], (c.source, asked)
""")


def test_refusal_by_a_clock_that_nobody_answered_for_is_soon_tried_again(run):
    run("""
c.servers = ALL
for n in range(4):
    c.settle()
    assert c.source == "floor" and c.doubt() is True
answers["a"] = answers["b"] = T + 9
c.settle()
assert c.vouched() and c.doubt() is False
""")


def test_clock_that_was_set_to_the_floor_is_never_called_kept(run):
    run("""
c.settle()
machine.cause = 3
c.settle()
assert c.source == "floor" and len(asked) == 2
again = clock.Clock(ALL[:1])                # after the reset
again.settle()
assert again.source == "unvouched" and len(asked) == 3
""")


def test_clock_that_was_vouched_for_before_a_reset_is_kept_over_it(run):
    run("""
answers["a"] = T + 77
c.settle()
machine.cause = 3
again = clock.Clock(ALL[:1])
assert again.settle() in (T + 77, T + 78) and again.source == "rtc" and len(asked) == 1
machine.cause = machine.PWRON_RESET
again = clock.Clock(ALL[:1])
again.settle()
assert again.source == "a" and len(asked) == 2
""")


@pytest.mark.parametrize(
    ("said", "source"),
    [
        (("T+50", "T+60", "None"), "a,b"),
        (("T+60", "T+50", "None"), "a,b"),
        (("T+50", "T+9999", "T+52"), "a,d"),
        (("T-9999", "T+52", "T+50"), "b,d"),
        (("OSError()", "T+52", "T+50"), "b,d"),
        (("T+50", "T+61", "T+72"), "unvouched"),
        (("T+50", "None", "None"), "unvouched"),
        (("None", "T-1", "T+50"), "unvouched"),
        (("T-1", "T-1", "T-1"), "floor"),
    ],
)
def test_two_servers_must_agree_within_ten_seconds(run, said, source):
    run(f"""
c.servers = ALL
answers["a"], answers["b"], answers["d"] = {", ".join(said)}
c.settle()
assert c.source == {source!r}, c.source
assert c.vouched() == ("," in c.source)
if c.vouched():
    assert T + 50 <= clock.now() <= T + 61
""")


def test_third_server_is_not_asked_where_two_agree(run):
    run("""
c.servers = ALL
answers["a"] = answers["b"] = T + 5
c.settle()
assert asked == ["a", "b"] and c.source == "a,b"
""")


def test_each_of_the_answers_that_disagree_is_tried_and_then_the_floor(run):
    printed = run("""
c.servers = ALL
answers["a"], answers["b"], answers["d"] = T + 10**6, T + 10**7, T + 2 * 10**7
tried = []
for n in range(5):
    tried.append((c.settle() - T + 50) // 100 * 100)
    again = c.doubt()
    assert again is (n < 3), (n, again)
assert tried == [10**6, 10**7, 2 * 10**7, 0, 10**6], tried
answers["d"] = T + 10**6 + 3
c.settle()
assert c.source == "a,d"
""")
    assert "of 3 time servers no two agree (a 2026-03-12" in printed


def test_clock_that_leaps_while_running_is_settled_again(run):
    run("""
answers["a"] = T + 60
for leap in (agreed.UNIX_2000, T - 1, agreed.UNIX_2000 + (1 << 31) + 5):
    c.settle()
    try:
        clock._set(leap)
    except OverflowError:
        board.RTC().datetime((2070, 1, 1, 0, 0, 0, 0, 0))
    del asked[:]
    assert c.settle() in (T + 60, T + 61) and c.source == "a", leap
    assert asked == ["a"]
board.RTC().datetime((2070, 1, 1, 0, 0, 0, 0, 0))
assert clock.text(clock.now()) == "2068-01-19T03:14:07Z"
answers.clear()
assert c.settle() in (T, T + 1) and c.source == "floor"
""")


def test_error_without_a_number_from_sntp_is_no_more_than_no_answer(run):
    run("""
c.servers = ALL
answers["a"] = OSError()
answers["b"] = answers["d"] = T + 1
assert c.settle() in (T + 1, T + 2)
""")


def test_dates_are_exact_whatever_the_epoch(micropython):
    printed = micropython("""
from outpost import clock
for t in ((2000, 1, 1), (2026, 2, 28, 23, 59, 59), (2036, 2, 7, 6, 28, 16), (2067, 12, 31)):
    print(clock.unix(*t), clock.text(clock.unix(*t)))
""")
    assert printed.splitlines() == [
        "946684800 2000-01-01T00:00:00Z",
        "1772323199 2026-02-28T23:59:59Z",
        "2085978496 2036-02-07T06:28:16Z",
        "3092515200 2067-12-31T00:00:00Z",
    ]


def ask(run, server: SntpServer, timeout_ms: int = 3000) -> str:
    return run(f"""
try:
    print(true_query("127.0.0.1", {server.port}, {timeout_ms}))
except ClockError as e:
    print("refused", e)
""").strip()


def test_answer_is_unix_time(run):
    with SntpServer() as server:
        assert abs(int(ask(run, server)) - time.time()) < 5


def test_one_lost_packet_costs_no_answer(run):
    with SntpServer(behaviour="first-lost") as server:
        assert abs(int(ask(run, server, 400)) - time.time()) < 5
        assert server.requests == 2


@pytest.mark.parametrize("date", [2085978490, 2085978500, 2085978496 + 86400, 3000000000])
def test_answer_after_2036_is_of_the_next_era(run, date):
    with SntpServer(offset_s=date - time.time()) as server:
        assert abs(int(ask(run, server)) - date) < 5


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("silent", "no answer in 300 ms"),
        ("garbage", "no answer in 300 ms"),
        ("short", "no answer in 300 ms"),
        ("wrong-origin", "no answer in 300 ms"),
        ("kiss", "not synchronised"),
        ("unsynchronised", "not synchronised"),
        ("zero", "holds no time"),
    ],
)
def test_answer_that_is_none_is_refused(run, behaviour, words):
    with SntpServer(behaviour=behaviour) as server:
        said = ask(run, server, 300)
    assert said.startswith("refused") and words in said


def test_name_that_does_not_resolve_is_a_sentence(run):
    assert "does not resolve" in run("""
for found in (OSError(-202), OSError(), []):
    class socket:
        def getaddrinfo(host, port):
            if found == []:
                return []
            raise found
    sntp.socket = socket
    try:
        true_query("nowhere.invalid")
    except ClockError as e:
        print(e)
""")
