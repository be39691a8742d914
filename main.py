# The application: yours to replace. This one measures what every board has, its
# free memory and its uptime, and sends it every few seconds.
import gc

from outpost import Device
from outpost.log import uptime_ms

device = Device()
count = 0


@device.every(seconds=2)
def measure():
    global count
    count += 1
    device.send({"n": count, "uptime_s": uptime_ms() // 1000, "free_bytes": gc.mem_free()})


device.run()
