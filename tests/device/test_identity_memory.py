"""What an identity costs: the whole device, with the provisioning service and a certificate, in the
heap that a board has."""

from __future__ import annotations

import re

import pytest
from dpsworld import DpsWorld
from world import World, line_number

MAIN = b"""
import gc, tlspolicy
from outpost import Device
d = Device()
d.send(b"one")
@d.every(seconds=0.1)
def say():
    if d.acked:
        now = gc.mem_alloc()
        gc.collect()
        print("HEAP", now, gc.mem_alloc(), gc.mem_free(), *tlspolicy.heap())
d.run()
"""


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
@pytest.mark.parametrize("heapsize", ["56K", "64K"])
def test_device_with_an_issued_certificate_runs_in_this_heap(world: World, heapsize):
    service = DpsWorld(world)
    made = service.enrol(credentialPolicyName="default")
    flash = service.image(*made.keys, csr=True, files={"/main.py": MAIN})
    board = world.board(flash, heapsize=heapsize)
    at = line_number(board, r"the new key works")
    at = line_number(board, r"^HEAP", at)
    print(heapsize, board.lines[at].text)
    print(next(x.text for x in reversed(board.lines) if "tls_heap_peak" in x.text))
    assert "memory" not in board.text
    service.hub.disconnect(world.device.device_id, "test")
    at = line_number(board, r"hub +connected .*credential=certificate", at)
    peak = int(re.search(r"tls_heap_peak=(\d+)", board.lines[at - 1].text)[1])
    assert peak < 32 * 1024
