"""The loop: whatever a handler does, and whatever goes wrong in a step, the device goes on."""

import pytest

PRELUDE = """
import gc, sys, time
from outpost import Device, OutpostError, log
from outpost import device as module

class Walk(Device):
    '''The walk is a script: what each attempt raises.'''
    script = ()
    attempts = 0
    def _connect(self):
        self.attempts += 1
        self.script, e = self.script[1:], self.script[0]
        raise e

def spin(d, ms):
    end = log.uptime_ms() + ms
    while log.uptime_ms() < end:
        wait = d.step()
        assert isinstance(wait, int) and 0 <= wait <= 1000, wait
        time.sleep_ms(min(wait, 5))
"""


@pytest.fixture
def run(micropython):
    return lambda script: micropython(PRELUDE + script)


@pytest.mark.parametrize("seconds", ["0.001", "0.0301", "1", "86400 * 20", "1e9"])
def test_every_odd_period_is_kept(run, seconds):
    run(f"""
d = Device()
n = 0
@d.every(seconds={seconds})
def f():
    global n
    n += 1
spin(d, 120)
assert 1 <= n <= 120 // max(1, int({seconds} * 1000)) + 2, n
""")


@pytest.mark.parametrize(
    "seconds", ["0", "-1", "0.0001", "float('nan')", "float('inf')", "2e9", "True - 1"]
)
def test_period_that_is_none_is_refused_where_it_is_written(run, seconds):
    run(f"""
try:
    Device().every(seconds={seconds})
except ValueError as e:
    assert "0.001" in str(e)
else:
    raise AssertionError
""")


def test_missed_periods_are_not_made_up_for(run):
    run("""
d = Device()
n = 0
@d.every(seconds=0.01)
def f():
    global n
    n += 1
    if n == 2:
        time.sleep_ms(300)
spin(d, 330)
assert n < 10, n
""")


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("1 // 0", "raised ZeroDivisionError"),
        ("raise MemoryError", "raised MemoryError"),
        ("bytearray(1 << 30)", "raised MemoryError"),
        ("raise OSError", "raised OSError"),
        ("raise OutpostError('so it is')", "so it is"),
        ("d.send(object())", "raised ValueError"),
        ("f()", "raised RuntimeError"),
        ("d.step()", "raised RuntimeError"),
        ("d.run()", "raised RuntimeError"),
    ],
)
def test_handler_that_fails_is_named_and_the_others_go_on(run, statement, words):
    printed = run(f"""
d = Device()
n = 0
@d.every(seconds=0.02)
def f():
    {statement}
@d.every(seconds=0.02)
def other():
    global n
    n += 1
for _ in range(100):  # on a busy machine a turn may take long
    spin(d, 100)
    if n >= 3:
        break
assert n >= 3
""")
    assert words in printed


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt"])
def test_handler_can_end_the_program_and_the_connection_is_closed(run, name):
    run(f"""
d = Device()
@d.every(seconds=1)
def f():
    raise {name}
class Session:
    closed = False
    def disconnect(self):
        self.closed = True
session = d._session = Session()
d.online = True
try:
    d.run()
except {name}:
    assert session.closed and d._session is None and not d.online
else:
    raise AssertionError
try:
    d.step()            # and it can be taken up again
except {name}:
    pass
""")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("OSError()", "the network failed"),
        ("OSError(104)", "the network failed"),
        ("OSError(-0x1105, 'ESP_ERR_NVS_NOT_ENOUGH_SPACE')", "NVS_NOT_ENOUGH_SPACE"),
        ("MemoryError()", "out of memory"),
        ("ValueError('hunter2')", "a fault in the software"),
        ("IndexError()", "IndexError"),
        ("RuntimeError('hunter2')", "RuntimeError"),
        ("OverflowError()", "OverflowError"),
        ("KeyError('hunter2')", "KeyError"),
    ],
)
def test_whatever_a_step_runs_into_is_one_sentence_and_tried_again(run, error, words):
    printed = run(f"""
d = Walk()
d.script = [{error}, OutpostError("second")]
d._backoff = module.Backoff(1, 1)
end = log.uptime_ms() + 5000
while d.attempts < 2 and log.uptime_ms() < end:
    time.sleep_ms(min(10, d.step()))
assert d.attempts == 2
""")
    lines = printed.splitlines()
    assert len(lines) == 2 and words in lines[0] and "next attempt in" in lines[0]
    assert "hunter2" not in printed and "second" in lines[1]


def test_fault_that_leaves_no_memory_to_say_it_does_not_end_the_loop(run):
    printed = run("""
d = Walk()
d.script = [ValueError(), OutpostError("second")]
def failed(err):
    raise MemoryError
d._failed = failed
assert d.step() == 1000
del d._failed
d.step()
""")
    assert "device: out of memory" in printed and "second" in printed


def test_buffer_that_is_filled_again_does_not_change_a_message_that_waits(run):
    run("""
d = Device()
b = bytearray(b"one")
d.send(b, durable=False)
b[:] = b"two"
assert d._messages._ram[0][1] == b"one"
""")


def test_close_in_a_handler_ends_the_connection_after_the_slice(run):
    run("""
d = Device()
class Session:
    closed = 0
    def disconnect(self):
        self.closed += 1
session = d._session = Session()
d.online = True
served = []
def serve():
    d.close()                   # as a method's handler does, in the middle of reading
    assert d._session is session and not session.closed
    served.append(1)
    return 500
d._serve = serve
d.step()
assert served and session.closed == 1 and d._session is None and not d.online
d.close()
""")
