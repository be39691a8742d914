# The application: yours to replace. This one measures what every board has, its free memory and
# its uptime, and sends it every few seconds; the hub can say how often, and say hello.
import gc

import outpost
from outpost.log import uptime_ms

device = outpost.Device(model="dtmi:outpost:example:Board;1")  # docs/model/board-1.json
count = 0
interval_s = 2


@device.every(seconds=0.1)
def measure():
    global count
    count += 1
    device.send({"n": count, "uptime_s": uptime_ms() // 1000, "free_bytes": gc.mem_free()})
    yield interval_s * 1000  # not called again before that


@device.desired("interval")
def interval(value):
    global interval_s
    interval_s = max(1, min(3600, value or 2))
    return interval_s


@device.method("blink")
def blink(times):
    for n in range(times):
        print("hello", n + 1)
        yield 1000
    return times


@device.message
def message(body, properties):
    print("message:", bytes(body))


device.report({"software": outpost.__version__})
device.run()
