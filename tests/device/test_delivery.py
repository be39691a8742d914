"""Files pushed to a whole device through the real hub, in pieces: however they come, what is handed
over is what was announced, and a hub that lies gains nothing but a full staging file."""

from __future__ import annotations

import base64
import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from deliveries import KIND, MAIN, Sender, sha
from fromhub import Operator
from outpost_tools import agreed
from outpost_tools.connection import Connection, roots_of
from outpost_tools.delivery import push, through
from outpost_tools.delivery import status as delivery_status
from outpost_tools.hub.rest import RestServer
from outpost_tools.operator import Operator as OperatorSide

FILE = random.Random(7).randbytes(9000)
OTHER = random.Random(8).randbytes(5000)
MARKS = itertools.count()


@pytest.fixture
def device(world):
    world.hub_here = world.hub()
    world.board_here = world.board(world.image(world.hub_here.port, files={"/main.py": MAIN}))
    world.board_here.wait_for("hub +connected", 60)
    return Sender(Operator(world.hub_here, world.device.device_id))


def parcels(world) -> list[str]:
    """What it has printed of them. An answer may be here before what was printed ahead of it, so
    something is printed behind it, and waited for."""
    name = f"mark-{next(MARKS)}"
    Operator(world.hub_here, world.device.device_id).invoke(name)
    world.board_here.wait_for(f"call of {name}: there is no such method")
    return [line.text for line in world.board_here.lines if line.text.startswith("PARCEL")]


def test_file_comes_whole_and_leaves_nothing_behind(world, device):
    seen = []
    done = device.push(FILE, lambda have, size: seen.append((have, size)))
    assert (done.status, done.result) == (200, {"state": "read", "bytes": 9000})
    assert parcels(world) == [f"PARCEL 9000 {sha(FILE)}"]
    assert seen == [(n, 9000) for n in (0, 2048, 4096, 6144, 8192, 9000)]
    assert device.operator.invoke("files") == (200, [])
    assert device.operator.invoke("modules") == (200, []), "loaded while nothing is delivered"
    assert world.board_here.running and "next attempt" not in world.board_here.text


def test_pieces_out_of_order_and_twice_are_put_right(world, device):
    assert device.begin(FILE) == (200, {"have": 0})
    assert device.begin(FILE) == (200, {"have": 0})
    assert device.write(FILE, 2048)[0] == 409
    assert device.write(FILE, 0) == (200, {"have": 2048})
    assert device.write(FILE, 0) == (200, {"have": 2048})
    assert device.write(FILE, 6144)[1]["have"] == 2048
    # Half of it is there, half is not.
    assert device.write(FILE, 1024) == (200, {"have": 3072})
    assert device.write(FILE, 3072, 100) == (200, {"have": 3172})
    assert device.call("commit", FILE)[0] == 409
    assert parcels(world) == []
    assert device.push(FILE).taken
    assert parcels(world) == [f"PARCEL 9000 {sha(FILE)}"]


def test_other_bytes_for_a_place_that_is_written_are_refused(world, device):
    device.begin(FILE)
    device.write(FILE, 0)
    status, said = device.write(FILE, 0, data=base64.b64encode(OTHER[:2048]).decode())
    assert status == 409 and said["have"] == 2048 and "other bytes" in said["error"]
    assert device.push(FILE).taken


def test_another_file_in_the_middle_begins_anew_and_pieces_of_the_old_one_are_refused(
    world, device
):
    device.begin(FILE)
    device.write(FILE, 0)
    assert device.begin(OTHER) == (200, {"have": 0})
    assert device.write(FILE, 2048) == (
        409,
        {"have": 0, "error": "begin first: this is a piece of another file"},
    )
    assert device.call("commit", FILE)[0] == 409
    assert device.push(OTHER).taken
    assert device.push(FILE).taken
    assert parcels(world) == [f"PARCEL 5000 {sha(OTHER)}", f"PARCEL 9000 {sha(FILE)}"]


def test_file_with_another_hash_than_announced_is_dropped_and_never_handed_over(world, device):
    lie = sha(b"something else")
    device.begin(OTHER, sha256=lie)
    for at in range(0, len(OTHER), 2048):
        device.write(OTHER, at, sha256=lie)
    status, said = device.call("commit", OTHER, sha256=lie)
    assert status == 422 and said["have"] == 0
    assert parcels(world) == []
    assert device.call("status")[1]["have"] == 0
    assert device.operator.invoke("files") == (200, [])


def test_file_that_is_too_large_endless_or_unknown_is_refused(world, device):
    assert device.begin(FILE, size=20001)[0] == 413
    assert device.begin(FILE, size=0)[0] == 400
    assert device.begin(FILE, size=True)[0] == 400
    assert device.begin(FILE, size=1 << 40)[0] == 400
    assert device.begin(FILE, sha256="00")[0] == 400
    assert device.begin(FILE, sha256="x" * 64)[0] == 400
    assert device.begin(FILE, kind="firmware")[0] == 404
    assert device.begin(FILE, kind=["parcel"])[0] == 404
    assert device.call("eat")[0] == 400
    assert device.operator.invoke(agreed.DELIVERY_METHOD, "words")[0] == 400
    # More than was announced.
    device.begin(OTHER)
    for at in range(0, 4096, 2048):
        device.write(OTHER, at)
    status, said = device.write(OTHER, 4096, data=base64.b64encode(FILE[:2000]).decode())
    assert status == 409 and said["have"] == 4096
    assert device.write(FILE, 0, size=2049)[0] == 409
    assert device.write(OTHER, 0, data=base64.b64encode(FILE[:2049]).decode())[0] == 400
    assert device.write(OTHER, 4096, data="A" * 1000 + "!" + "A" * 999)[0] == 400
    assert device.write(OTHER, 4096, data="A" * 999)[0] == 400
    assert device.write(OTHER, 4096, data="")[0] == 400
    assert device.write(OTHER, -1)[0] == 400
    assert device.call("write", OTHER, at="4096", data="AAAA")[0] == 400
    assert device.push(OTHER).taken
    assert parcels(world) == [f"PARCEL 5000 {sha(OTHER)}"]


def test_call_may_be_written_in_any_form_of_json(world, device):
    device.begin(OTHER)
    piece = base64.b64encode(OTHER[:2048]).decode()
    first = {"data": piece, "kind": KIND, "op": "write", "at": 0, "sha256": sha(OTHER)}
    assert device.operator.invoke(agreed.DELIVERY_METHOD, first) == (200, {"have": 2048})
    last = {"kind": KIND, "op": "write", "at": 0, "sha256": sha(OTHER).upper(), "data": piece}
    assert device.operator.invoke(agreed.DELIVERY_METHOD, last) == (200, {"have": 2048})
    assert device.push(OTHER).taken


def test_kind_says_what_it_takes_and_what_becomes_of_it(world, device):
    assert device.push(FILE, about={"version": 1}).why == "version 1 is older than what is here"
    assert device.push(FILE, about={"version": 2}).result == {"state": "have it"}
    assert device.push(b"slow" + FILE).result == {"state": "trial"}
    refused = device.push(b"bad" + OTHER)
    assert refused.status == 422 and refused.why == "not what I wanted"
    # What was refused stays, and can be offered again without being sent again.
    assert device.begin(b"bad" + OTHER) == (200, {"have": 5003})
    assert device.call("abort") == (200, {"have": 0})
    assert device.push(b"raise").why == "this one is no good"
    assert device.call("status")[1]["last"]["status"] == 409


def test_answer_to_a_commit_that_was_lost_can_be_heard_again(world, device):
    assert device.push(OTHER).taken
    assert device.call("commit", OTHER) == (200, {"state": "read", "bytes": 5000})
    assert len(parcels(world)) == 1
    assert device.call("commit", FILE)[0] == 409


def test_delivery_goes_on_after_the_connection_and_after_the_power_were_cut(world, device):
    device.begin(FILE)
    device.write(FILE, 0)
    hub = world.hub_here
    hub.stop()
    world.board_here.wait_for("error .*next attempt", 30)
    start = len(world.board_here.lines)
    hub = world.hub_here = world.hub(port=hub.port)
    sender = Sender(Operator(hub, world.device.device_id))
    world.board_here.wait_for("hub +connected", 60, start)
    assert sender.begin(FILE) == (200, {"have": 2048})
    sender.write(FILE, 2048)
    world.board_here.stop()
    board = world.board_here = world.board(world.folder / "flash.bin")
    board.wait_for("hub +connected", 60)
    seen = []
    assert sender.push(FILE, lambda have, size: seen.append(have)).taken
    assert seen[0] == 4096
    assert parcels(world) == [f"PARCEL 9000 {sha(FILE)}"]


@pytest.mark.parametrize("leg", ["outpost32", "stock32"], indirect=True)
def test_push_through_the_service_side_survives_a_power_cut_in_the_middle(world):
    rest = RestServer(port=0)
    hub = world.hub(services=[rest])
    flash = world.image(hub.port, files={"/main.py": MAIN})
    board = world.board(flash)
    board.wait_for("hub +connected", 60)
    held = world.registry.policy("iothubowner")
    where = Connection(
        f"{rest.host}:{rest.port}", held.name, held.primary_key, roots_of(world.data)
    )
    boards = [board]

    def pulled(have, size):
        if have == 4096 and len(boards) == 1:
            board.stop()
            boards.append(world.board(flash))

    with OperatorSide(where) as operator:
        invoke = through(operator, world.device.device_id)
        done = push(invoke, KIND, FILE, pulled)
        assert (done.status, done.result) == (200, {"state": "read", "bytes": 9000})
        assert delivery_status(invoke, KIND)["last"]["sha256"] == sha(FILE)
    assert len(boards) == 2 and f"PARCEL 9000 {sha(FILE)}" in boards[1].text


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_hub_that_writes_for_ever_is_stopped_before_the_flash_is_worn(world, device):
    whole = 20000
    lies = (random.Random(n).randbytes(whole) for n in range(100))
    sent = 0
    for lie in lies:
        status, said = device.begin(lie)
        for at in range(0, whole, 2048):
            if status != 429:
                status, said = device.write(lie, at)
                sent += 2048 if status == 200 else 0
        if status == 429:
            break
    assert status == 429 and 0 < said["retry_s"] <= 3601
    assert whole * 7 < sent <= whole * 8
    # What is there already is not written, and may still be said.
    assert device.call("status")[0] == 200


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_two_operators_at_once_bring_a_file_once_and_never_a_mixture(world, device):
    with ThreadPoolExecutor() as pool:
        same = list(pool.map(device.push, (FILE, FILE)))
        assert all(done.taken for done in same)
        others = list(pool.map(device.push, (FILE, OTHER, b"slow" + OTHER)))
    assert all(done.taken or "begin first" in done.why for done in others), others
    # Once more one after the other: whatever they left behind is in nobody's way.
    assert device.push(FILE).taken and device.push(OTHER).taken
    right = {f"PARCEL {len(f)} {sha(f)}" for f in (FILE, OTHER, b"slow" + OTHER)}
    assert set(parcels(world)) <= right


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_push_waits_for_the_handler_of_the_file_before(world, device):
    waits = []
    with ThreadPoolExecutor() as pool:
        first = pool.submit(device.push, b"slow" + FILE)
        world.board_here.wait_for("PARCEL", 30)
        second = device.push(OTHER, pause=lambda s: (waits.append(s), time.sleep(s)))
        assert first.result().status == 202 and second.status == 200
    assert waits and set(waits) == {1}
