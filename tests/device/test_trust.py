"""Trust over the air, whole devices with a real hub: a new bundle is tried, and kept where it
works; where it does not, the device stays with the one it has, and says why."""

from __future__ import annotations

import hashlib
import time

import bundles
import pki
import pytest
from cryptography.hazmat.primitives import serialization
from hubs import eventually
from outpost_tools import bundle
from outpost_tools.bundle import Endpoint
from outpost_tools.bundleserver import BundleServer, of_mapping, recovery_path
from outpost_tools.hub.tls import server_context
from trustworld import BACK, IN_USE, MAIN, ON_TRIAL, QUIET, TrustWorld
from world import DEVICE_ID, line_number

import certs


@pytest.fixture
def trust(world):
    return TrustWorld(world)


def mark(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()[:16]


def test_a_fleet_moves_from_root_a_to_root_b_and_nothing_is_lost(trust):
    board = trust.start()
    done = trust.push(trust.bundle(2, "ab"))
    assert (done.status, done.result) == (202, {"state": "trial", "version": 2})
    board.wait_for(IN_USE, 60)
    change = {"version": 2, "outcome": "in use"}
    found = trust.until_reported(version=2, change=change)
    assert found["roots"] == [mark(trust.a), mark(trust.b)] and 0 < found["expires_days"] < 5000
    if trust.world.leg in ("outpost32", "outpost64"):
        assert found["anchor"] == mark(trust.a)
    trust.move("b")
    assert trust.connected() and trust.alive()
    done = trust.push(trust.bundle(3, "b"))
    assert done.status == 202
    line_number(board, IN_USE, line_number(board, r"version=3 is on trial;"))
    if trust.world.leg in ("outpost32", "outpost64"):
        # What a rescue would connect with has gone over too, in this life of the device.
        assert eventually(lambda: trust.b in trust.flash.read_bytes()[0x9000:0xF000], 20)
    assert trust.alive() and board.reboots == 0 and "Traceback" not in board.text
    # What it had before is no way back.
    trust.move("a")
    line_number(board, "not trusted", len(board.lines))
    time.sleep(1)
    assert not trust.hub.connected
    trust.move("b")
    assert trust.connected() and trust.alive()
    assert trust.missing() == set()


def test_a_bundle_without_the_hubs_root_changes_nothing(trust):
    board = trust.start()
    assert trust.push(trust.bundle(2, "x")).status == 202
    assert board.wait_for(BACK, 60)[1] == "the hub is not trusted with it"
    assert trust.connected() and trust.alive()
    change = {"version": 2, "outcome": "the hub is not trusted with it"}
    assert trust.until_reported(change=change)["version"] == 1
    # A better one of the same version takes its place.
    assert trust.push(trust.bundle(2, "a")).status == 202
    board.wait_for(IN_USE, 60)
    assert trust.nvs("tr-high") == 2


def test_a_hub_that_is_away_during_the_trial_ends_it_in_time(trust):
    board = trust.start()
    assert trust.push(trust.bundle(2, "ab")).status == 202
    port = trust.hub.port
    trust.hub.stop()
    assert board.wait_for(BACK, 60)[1] == "the hub was not reached with it in time"
    trust.hub = trust.world.hub(chain="ecdsa", port=port)
    assert trust.connected() and trust.alive()
    outcome = "the hub was not reached with it in time"
    assert trust.until_reported(change={"version": 2, "outcome": outcome})["version"] == 1


def test_a_trial_needs_an_acknowledged_message_and_makes_one_itself(trust):
    board = trust.start(QUIET)
    assert trust.push(trust.bundle(2, "ab")).status == 202
    board.wait_for(IN_USE, 60)
    assert any(b'"trial"' in t.body for t in trust.hub.telemetry)


def test_a_reset_in_the_middle_of_a_trial_goes_on_with_it(trust):
    board = trust.start()
    assert trust.push(trust.bundle(2, "ab")).status == 202
    board.wait_for(ON_TRIAL, 10)
    board = trust.restart()
    board.wait_for("is on trial still", 30)
    board.wait_for(IN_USE, 60)
    assert trust.alive()


def test_a_trial_that_ends_the_device_each_time_is_given_up(trust):
    trust.move("a")
    board = trust.start(trust={"trial_s": 600})
    assert trust.push(trust.bundle(2, "x")).status == 202
    board.wait_for(ON_TRIAL, 10)
    for life in range(1, 4):
        board = trust.restart()
        board.wait_for("is on trial still", 30)
        assert life < 4
    board = trust.restart()
    assert board.wait_for(BACK, 30)[1] == "the device was restarted too often with it"
    assert trust.connected() and trust.alive()


def test_a_file_that_comes_twice_is_in_use_already(trust):
    board = trust.start()
    data = trust.bundle(2, "ab")
    assert trust.push(data).status == 202
    board.wait_for(IN_USE, 60)
    assert trust.connected()
    again = trust.push(data)
    assert (again.status, again.result) == (200, {"state": "in use", "version": 2})


def test_a_device_that_slept_through_changes_of_keys_goes_straight_to_the_newest(trust):
    roots = [trust.a, trust.b]
    history = [
        bundles.signed(trust.present),
        bundles.signed(bundles.make(2, roots, keys=bundles.keys("b")), "ab"),
        bundles.signed(bundles.make(5, roots, keys=bundles.keys("cde", 2)), "bce"),
        bundles.signed(bundles.make(6, roots, keys=bundles.keys("cde", 2)), "cd"),
    ]
    board = trust.start()
    assert trust.push(bundle.deliverable(history)).result == {"state": "trial", "version": 6}
    assert board.wait_for(IN_USE, 60)[1] == "6"
    # From now on the new keys sign, and the old ones no more.
    assert trust.connected()
    assert trust.push(trust.bundle(7, "ab", "a")).status == 409
    seven = trust.bundle(7, "ab", "ce", keys=bundles.keys("cde", 2))
    assert trust.push(seven).status == 202


@pytest.mark.parametrize("leg", ["outpost32", "stock32"], indirect=True)
def test_a_bundle_as_large_as_one_may_be_is_installed_and_lived_by(trust):
    board = trust.start(trust={"trial_s": 60})
    roots = [trust.a, trust.b, *(bundles.root(name).der for name in "CDEF")]
    fields = {"keys": bundles.keys("abcdefgh", 2)}
    room = 8192 - len(bundles.data(2, "ab", roots=roots, **fields)) - 3
    data = bundles.data(2, "ab", roots=roots, more=((6, bytes(room)),), **fields)
    assert len(data) == 8192
    # The change of keys is the bundle's own: signed by the one of before, and two of the new.
    done = trust.push(data)
    assert done.status == 202, done
    board.wait_for(IN_USE, 120)
    found = trust.until_reported(version=2)
    assert found["roots"] == [mark(der) for der in roots] and trust.alive()
    assert "out of memory" not in board.text


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_a_trial_is_a_full_handshake_even_with_the_same_roots(trust):
    board = trust.start()
    assert trust.connected()
    trust.hub.disconnect(DEVICE_ID, "test")
    at = line_number(board, "resumed=1")
    assert trust.push(trust.bundle(2, "a", hosts=("files.example",))).status == 202
    at = line_number(board, ON_TRIAL, at)
    end = line_number(board, IN_USE, at)
    tried = [line.text for line in board.lines[at:end] if "resumed=" in line.text]
    assert tried and all("resumed=0" in line for line in tried)


def test_an_expired_bundle_is_not_installed_and_one_in_use_goes_on(trust):
    now = int(time.time())
    factory = bundles.make(1, [trust.a], issued=1000, expires=2000)
    board = trust.start(factory=bundles.signed(factory).encode())
    done = trust.push(trust.bundle(2, "ab", issued=now - 900, expires=now - 100))
    assert done.status == 409 and "expired" in done.why
    done = trust.push(trust.bundle(2, "ab", issued=now + 100000, expires=now + 200000))
    assert done.status == 409 and "future" in done.why
    assert trust.push(trust.bundle(2, "ab")).status == 202
    board.wait_for(IN_USE, 60)


# Who may sign for boards that were made before there were bundles


def test_a_board_with_the_list_of_an_older_image_is_read_and_takes_its_first_bundle(trust):
    from outpost_tools import roots
    from outpost_tools.envelope import Keys, point_of
    from outpost_tools.signing import b64

    point = b"\x04" + point_of(bundles.key("a"))
    signers = b'{"fleet": "harbour", "signers": [{"point": "%s", "roles": ["trust"]}]}' % (
        b64(point).encode()
    )
    board = trust.start(factory=roots.pack([trust.a]), files={"/trust/signers.json": signers})
    assert trust.refuses(trust.bundle(1, "ab", "b"))
    first = trust.bundle(1, "ab", "ac", keys=Keys.of(1, [point_of(bundles.key("c"))]))
    assert trust.push(first).status == 202
    board.wait_for(IN_USE, 60)
    assert trust.connected()
    assert trust.refuses(trust.bundle(2, "ab", "a"))


def test_a_board_that_names_nobody_takes_no_bundle(trust):
    trust.start(factory=bundle.factory([trust.a], int(time.time())))
    assert trust.connected()
    assert trust.push(trust.bundle(1)).status == 404


# When no hub is trusted any more


def rescued(trust, data: bytes, **options):
    """A device whose bundle names two recovery endpoints: one where nobody is, and a server whose
    certificate, pinned, expired long ago. It has `data`."""
    # The release judges certificates by the clock of the machine that it runs on.
    ends = 100 if trust.world.leg == "stock-release" else -100
    pin = pki.make(
        "localhost",
        pki.key("p256", 71),
        hosts=["localhost"],
        starts=-900 * certs.DAY,
        ends=ends * certs.DAY,
    )
    folder = trust.world.folder
    (folder / "pin.pem").write_bytes(pin.pem)
    (folder / "pin.key").write_bytes(
        pin.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    trust.asked = []
    server = BundleServer(
        of_mapping({recovery_path(bundles.FLEET): data}),
        server_context([(folder / "pin.pem", folder / "pin.key")]),
        on_asked=trust.asked.append,
    )
    trust.world.held(server)
    places = (Endpoint("127.0.0.1", 1, pin.der), Endpoint("localhost", server.port, pin.der))
    present = bundles.make(1, [trust.a], recovery=places)
    return trust.start(
        options.pop("main", MAIN),
        factory=bundles.signed(present).encode(),
        trust={"recovery_after_s": 2},
        **options,
    )


def test_a_device_whose_root_is_gone_comes_back_through_the_recovery_endpoint(trust):
    board = rescued(trust, trust.bundle(4, "b"))
    assert trust.connected()
    trust.move("b")
    at = line_number(board, "no bundle from 127.0.0.1 port 1")
    at = line_number(board, "asking localhost", at)
    line_number(board, IN_USE, at)
    assert trust.connected() and trust.alive()
    assert trust.until_reported(version=4)
    assert trust.nvs("tr-since") is None and trust.nvs("tr-miss") is None


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_an_emergency_that_the_application_leaves_no_memory_for_comes_after_a_restart(trust):
    hoards = MAIN.replace(
        b"device.run()",
        b"""import gc
hoard = []

@device.method("hoard")
def take(left):
    gc.collect()
    while gc.mem_free() > left:
        hoard.append(bytearray(256))
    print("hoarded", gc.mem_free())
    return True

device.run()""",
    )
    board = rescued(trust, trust.bundle(4, "b"), main=hoards)
    assert trust.connected()
    trust.operator.invoke("hoard", 11000)
    trust.move("b")
    at = line_number(board, "another bundle is looked for after a restart")
    line_number(board, IN_USE, at)
    assert trust.connected() and trust.alive()
    assert board.boots == 2


@pytest.mark.parametrize("case", ["unsigned", "old", "another fleet", "junk"])
def test_what_the_recovery_endpoint_gives_is_believed_for_its_signatures_alone(trust, case):
    data = {
        "unsigned": lambda: bundles.make(4, [trust.b]).unsigned().encode(),
        "old": lambda: trust.bundle(1, "b"),
        "another fleet": lambda: trust.bundle(4, "b", fleet="dock"),
        "junk": lambda: b"junk",
    }[case]()
    board = rescued(trust, data)
    assert trust.connected()
    trust.move("b")
    at = line_number(board, "no bundle from localhost")
    line_number(board, "no bundle from localhost", at + 1)  # it asks again, and does not give up
    assert trust.asked
    assert not trust.hub.connected
    trust.move("a")
    assert trust.connected() and trust.alive()
    assert trust.nvs("tr-slot") is None


def test_a_short_time_without_trust_is_no_emergency(trust):
    board = rescued(trust, trust.bundle(4, "b"), config={"backoff_s": [1, 1]})
    assert trust.connected()
    trust.move("b")
    board.wait_for("not trusted", 30)
    trust.move("a")
    assert trust.connected()
    assert trust.alive() and trust.nvs("tr-slot") is None


def test_a_bundle_in_use_that_the_flash_lost_is_delivered_again_and_no_older_one_connects(trust):
    damage = MAIN.replace(
        b"device = Device()",
        b"import os\n"
        b"if 'damage' in os.listdir('/') and 'a.bin' in os.listdir('/trust'):\n"
        b"    os.remove('/damage')\n"
        b"    open('/trust/a.bin', 'wb').close()\n"
        b"device = Device()\n"
        b"@device.method('damage')\n"
        b"def damage(payload):\n"
        b"    open('/damage', 'wb').close()\n",
    )
    four = trust.bundle(4, "ab")
    board = rescued(trust, four, main=damage)
    assert trust.push(four).status == 202
    board.wait_for(IN_USE, 60)
    assert trust.connected()
    trust.operator.invoke("damage")
    board = trust.restart()
    # The factory's bundle has the hub's root, and only its recovery endpoint is used.
    at = line_number(board, "asking localhost")
    assert "hub      connected" not in "\n".join(x.text for x in board.lines[:at])
    line_number(board, IN_USE, at)
    assert trust.connected() and trust.alive()


@pytest.mark.parametrize("leg", ["outpost32"], indirect=True)
def test_a_file_system_written_anew_with_the_nvs_kept_uses_a_newer_factory_bundle(trust):
    board = trust.start()
    assert trust.push(trust.bundle(2, "a")).status == 202
    board.wait_for(IN_USE, 60)
    assert trust.connected()
    board.stop()
    kept = trust.flash.read_bytes()[0x9000:0xF000]
    newer = bundles.signed(bundles.make(7, [trust.a])).encode()
    trust.start(factory=newer, config={"backoff_s": [1, 1]}).stop()
    with trust.flash.open("r+b") as flash:
        flash.seek(0x9000)
        flash.write(kept)
    trust.hub.disconnect(DEVICE_ID, "test")
    board = trust.restart()
    board.wait_for("the factory bundle version=7 is in use", 60)
    assert trust.connected() and trust.alive()
    assert trust.nvs("tr-slot") is None and trust.nvs("tr-high") == 7
