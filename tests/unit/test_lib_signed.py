"""Signed commands: what is taken, once, and every reason to refuse, each a sentence."""

from __future__ import annotations

import json
import time
import types

import pytest
from chip import CLEAN, ODD, TORN, Chip
from commands import DEVICE, FLEET, Signer, b64, payload, signers_json
from devicelib import Library
from legs import VIRTUAL
from storekeys import Nvs, PowerGone

SIGNER = Signer()
WHO = types.SimpleNamespace(device_id=DEVICE)


class Clock:
    """Vouched for by a server unless it is said that nobody does."""

    def __init__(self, vouched: bool = True, floor: int = 0) -> None:
        self.vouched = lambda: vouched
        self.floor = floor


class Desk:
    """A device's side of it: signed.py over the virtual board's NVS."""

    def __init__(self, folder, *signers: Signer, edits=None, **options) -> None:
        self.chip = Chip(folder / "flash.bin")
        assert self.chip.start() == 0
        self.lib = Library(types.SimpleNamespace(NVS=lambda name: Nvs(self.chip, name)), edits)
        path = folder / "signers.json"
        path.write_bytes(signers_json(*(signers or (SIGNER,)), **options))
        self.path = path
        Nvs(self.chip, "outpost")  # as on every board that is provisioned

    def check(self, token, clock=None):
        signed = self.lib.signed
        return signed.check(token, WHO, clock or Clock(), signed.signers(str(self.path)))

    def refuses(self, token, words: str, clock=None) -> None:
        before = self.chip.nvs_bytes
        with pytest.raises(self.lib.errors.SignedError, match=words):
            self.check(token, clock)
        assert self.chip.nvs_bytes == before, "a refused command changed the flash"


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def test_a_good_command_is_taken_once(desk):
    token = SIGNER.command(op="rotate", args={"n": [1, "two"]})
    taken = desk.check(token)
    assert taken["op"] == "rotate" and taken["args"] == {"n": [1, "two"]}
    assert desk.lib.signed.counter("keys") == 1
    desk.refuses(token, "taken before")


def test_a_replay_is_refused_after_a_restart_too(desk):
    token = SIGNER.command(ctr=5)
    desk.check(token)
    desk.chip.restart()
    desk.refuses(token, "taken before")
    desk.refuses(SIGNER.command(ctr=4), "taken before, or a later one")
    desk.check(SIGNER.command(ctr=6))


def test_counters_of_two_roles_are_apart(desk):
    desk.check(SIGNER.command(ctr=9))
    desk.check(SIGNER.command(ctr=1, role="trust"))
    desk.refuses(SIGNER.command(ctr=9), "taken before")


def test_a_command_for_every_device_of_the_fleet_is_taken(desk):
    assert desk.check(SIGNER.command(device="*"))["device"] == "*"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "press-8"}, "another device"),
        ({"device": "PRESS-7"}, "another device"),
        ({"device": ""}, "another device"),
        ({"device": ["press-7"]}, "another device"),
        ({"fleet": "yard"}, "another fleet"),
        ({"fleet": None}, "another fleet"),
        ({"role": "root"}, "role that this device does not know"),
        ({"role": ["keys"]}, "role that this device does not know"),
        ({"exp": int(time.time()) - 1}, "expired at 20"),
        ({"exp": 0}, "expired at"),
        ({"exp": 1e12}, "not what it must be"),
        ({"exp": True}, "not what it must be"),
        ({"exp": "9999999999"}, "not what it must be"),
        ({"ctr": 0}, "not what it must be"),
        ({"ctr": -1}, "not what it must be"),
        ({"ctr": 2**31}, "not what it must be"),
        ({"ctr": 1.0}, "not what it must be"),
        ({"ctr": True}, "not what it must be"),
        ({"op": 7}, "not what it must be"),
        ({"args": []}, "not what it must be"),
        ({"args": ...}, "must hold fleet"),
        ({"more": 1}, "must hold fleet"),
        ({"ctr": ..., "count": 1}, "must hold fleet"),
    ],
)
def test_a_command_that_is_not_for_here_and_now_is_refused(desk, changes, words):
    desk.refuses(SIGNER.command(**changes), words)


def test_a_signer_is_held_to_its_roles(tmp_path):
    trusted = Signer("trust")
    desk = Desk(tmp_path, trusted, SIGNER)
    desk.refuses(trusted.command(role="keys"), "may not sign for the role")
    desk.check(trusted.command(role="trust"))


def test_a_key_that_the_device_does_not_know_is_refused(desk):
    stranger = Signer()
    desk.refuses(stranger.command(), "does not know")
    body = json.dumps(payload()).encode()
    claims = {"alg": "ES256", "kid": SIGNER.kid}
    desk.refuses(stranger.token(body, claims), "signature is wrong")


def by_hand(header: dict | str, body: bytes | None = None, signature: bytes = bytes(64)) -> str:
    text = header if isinstance(header, str) else json.dumps(header)
    body = json.dumps(payload()).encode() if body is None else body
    return ".".join((b64(text.encode()), b64(body), b64(signature)))


def signed_by_hand(header: str, body: bytes) -> str:
    """Signed rightly over whatever it says: only its form can be wrong."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    text = f"{b64(header.encode())}.{b64(body)}"
    der = SIGNER.key.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
    r, s = decode_dss_signature(der)
    return f"{text}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


KID = SIGNER.kid
HEADER = json.dumps({"alg": "ES256", "kid": KID})
BODY = json.dumps(payload()).encode()


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (by_hand({"alg": "none", "kid": KID}, signature=b""), "not signed with ES256"),
        (by_hand({"alg": "None", "kid": KID}), "not signed with ES256"),
        (by_hand({"alg": "HS256", "kid": KID}), "not signed with ES256"),
        (by_hand({"alg": "ES384", "kid": KID}), "not signed with ES256"),
        (by_hand({"alg": ["ES256"], "kid": KID}), "not signed with ES256"),
        (by_hand({"kid": KID}), "not signed with ES256"),
        (by_hand({"alg": "ES256"}), "must hold alg and kid"),
        (by_hand({"alg": "ES256", "kid": 5}), "must hold alg and kid"),
        (by_hand({"alg": "ES256", "kid": KID, "crit": ["b64"]}), "must hold alg and kid"),
        (by_hand({"alg": "ES256", "kid": KID, "jwk": {}}), "must hold alg and kid"),
        (by_hand(f'{{"alg":"none","alg":"ES256","kid":"{KID}"}}'), "a name twice"),
        (by_hand({"alg": "ES256", "kid": KID}), "signature is wrong"),
        (by_hand({"alg": "ES256", "kid": KID}, signature=b""), "signature is wrong"),
        (by_hand({"alg": "ES256", "kid": KID}, signature=bytes(63)), "signature is wrong"),
        (signed_by_hand(HEADER, b'{"fleet":"a","fleet":"b"}'), "a name twice"),
        (signed_by_hand(HEADER, BODY[:-1] + b',"ctr":99}'), "a name twice"),
        (signed_by_hand(HEADER, BODY[:-1]), "content cannot be read"),
        (signed_by_hand(HEADER, BODY + b"{}"), "content cannot be read"),
        (signed_by_hand(HEADER, b"\xff\xfe"), "content cannot be read"),
        (signed_by_hand(HEADER, b""), "content cannot be read"),
        (signed_by_hand(HEADER, b"[]"), "not a JSON object"),
        (signed_by_hand(HEADER, b'{"a":' * 500), "content cannot be read"),
        ("", "a text"),
        (None, "a text"),
        (b"x.y.z", "cannot be read"),
        (7, "a text"),
        ({"jws": "x"}, "a text"),
        ("a.b", "not three parts"),
        ("a.b.c.d", "not three parts"),
        ("..", "cannot be read"),
        ("é.é.é", "cannot be read"),
        ("x" * 4097, "more than the 4096"),
    ],
)
def test_what_is_no_signed_command_is_refused(desk, token, words):
    desk.refuses(token, words)


def test_base64url_has_one_spelling(desk):
    token = SIGNER.command()
    head, body, signature = token.split(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    # The last character of 64 bytes' base64url has four bits that mean nothing.
    other = alphabet[alphabet.index(signature[-1]) ^ 1]
    for bad in (signature[:-1] + other, signature + "=", signature + "==", signature + "\n"):
        desk.refuses(f"{head}.{body}.{bad}", "cannot be read")
    desk.refuses(f"{head} .{body}.{signature}", "cannot be read")
    desk.refuses(f"{head}=.{body}.{signature}", "cannot be read")
    desk.check(token)


def test_any_changed_character_is_refused(desk):
    token = SIGNER.command()
    for at, was in enumerate(token):
        other = "A" if was != "A" else "B"
        desk.refuses(token[:at] + other + token[at + 1 :], "the command")
    desk.check(token)


def test_expiry_is_judged_by_the_floor_while_nobody_vouches_for_the_clock(desk):
    soon = int(time.time()) + 60
    doubted = Clock(vouched=False, floor=soon + 1)
    desk.refuses(SIGNER.command(exp=soon), "expired", doubted)
    # The board's clock is wrong (years ahead) and nobody vouches for it: the floor is what counts.
    desk.check(SIGNER.command(exp=1_000_000_000), Clock(vouched=False, floor=999_999_999))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"fleet": "x", "signers": []}',
        b'{"fleet": "", "signers": [{"point": "AA", "roles": ["keys"]}]}',
        b'{"fleet": "x", "signers": [{"point": "AA", "roles": ["keys"]}]}',
        b'{"fleet": "x", "signers": [{"roles": ["keys"]}]}',
        b'{"fleet": "x", "signers": 7}',
        signers_json(SIGNER).replace(b'"keys"', b'"root"'),
        signers_json(SIGNER).replace(b'["keys", "trust", "software"]', b'"keys"'),
        signers_json(*[Signer() for _ in range(9)]),
        signers_json(SIGNER) + b" " * 2048,
    ],
)
def test_a_damaged_list_of_signers_is_no_list(desk, content):
    desk.path.write_bytes(content)
    desk.refuses(SIGNER.command(), "signers.json")


def test_a_board_without_signers_takes_no_command_and_says_why(desk):
    desk.path.unlink()
    desk.refuses(SIGNER.command(), "knows no signer")


def test_a_full_nvs_takes_no_command(desk):
    ns = desk.chip.namespace("outpost")
    n = 0
    with pytest.raises(Exception):  # noqa: B017 - whichever error says that it is full
        while True:
            desk.chip.set_i32(ns, f"fill{n}", n)
            n += 1
    desk.refuses(SIGNER.command(), "NVS took no counter")


# Power cuts. A command's run is a mark that the test sets when check() has returned.


def cut_runs(folder, operation: int, mode: int, edits=None) -> tuple[int, bool]:
    """(how often the command ran, whether the power went) with a cut and then a replay."""
    folder.mkdir(exist_ok=True)
    (folder / "flash.bin").unlink(missing_ok=True)
    desk = Desk(folder, edits=edits)
    for ctr in range(1, 4):
        desk.check(SIGNER.command(ctr=ctr))
    token, runs, gone = SIGNER.command(ctr=9), 0, False
    desk.chip.cut_after(operation, mode, seed=operation + 1)
    try:
        desk.check(token)
        runs += 1
    except PowerGone:
        gone = True
    assert desk.chip.restart() == 0
    for _ in range(2):
        try:
            desk.check(token)
            runs += 1
        except desk.lib.errors.SignedError:
            pass
    # Whatever happened, the next command is taken, and the ones before are not.
    desk.refuses(SIGNER.command(ctr=3), "taken before")
    desk.check(SIGNER.command(ctr=10))
    desk.chip.close()
    return runs, gone


@pytest.mark.parametrize("mode", [CLEAN, TORN, ODD])
def test_power_cut_at_every_flash_operation_around_the_counter_runs_no_command_twice(
    tmp_path, mode
):
    operation = 1
    while True:
        runs, gone = cut_runs(tmp_path / str(operation), operation, mode)
        assert runs <= 1
        if not gone:
            break
        operation += 1
    assert operation > 2 and runs == 1


# Each writes the counter wrongly, and says nothing of it.
CARELESS = [
    ('    _count(payload["role"], payload["ctr"])\n', ""),
    ("    if counter(role) != ctr:\n", "    if nvs.erase_key(agreed.NVS_COUNTER_PREFIX + role):\n"),
]


@pytest.mark.parametrize("edit", CARELESS)
def test_a_counter_that_is_not_kept_is_caught_by_the_same_loop(tmp_path, edit):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        runs, _ = cut_runs(tmp_path / "careless", 99, CLEAN, edits={"signed": edit})
        assert runs <= 1


def test_where_nvs_says_yes_and_keeps_nothing_the_command_is_refused(tmp_path):
    edit = ("        nvs.set_i32(agreed.NVS_COUNTER_PREFIX + role, ctr)\n", "")
    desk = Desk(tmp_path, edits={"signed": edit})
    with pytest.raises(desk.lib.errors.SignedError, match="kept no counter"):
        desk.check(SIGNER.command())


@pytest.mark.parametrize("leg", VIRTUAL, indirect=True)
def test_device_takes_and_refuses_as_cpython_does(micropython, tmp_path):
    from chip import MIB, table

    image = bytearray(b"\xff" * (4 * MIB))
    entries = [(1, 2, 0x9000, 0x6000, "nvs"), (0, 0, 0x10000, 0x1F0000, "factory")]
    image[0x8000 : 0x8000 + len(table(entries))] = table(entries)
    flash = tmp_path / "flash.bin"
    flash.write_bytes(image)
    (tmp_path / "signers.json").write_bytes(signers_json(SIGNER))
    good = SIGNER.command(exp=4_000_000_000)
    tokens = [good, good, Signer().command(), SIGNER.command(device="x", ctr=2), good[:-1]]
    printed = micropython(
        "from outpost import signed, errors\n"
        "class Who: device_id = 'press-7'\n"
        "class When:\n"
        "    floor = 0\n"
        "    def vouched(self): return False\n"
        "known = signed.signers('signers.json')\n"
        f"for token in {tokens!r}:\n"
        "    try:\n"
        "        print('taken', signed.check(token, Who, When(), known)['op'])\n"
        "    except errors.SignedError as e:\n"
        "        print('refused', e)\n",
        "--flash",
        str(flash),
    ).splitlines()
    said = ["taken status", "taken before", "does not know", "another device", "cannot be read"]
    assert len(printed) == 5
    for line, words in zip(printed, said, strict=True):
        assert words in line, printed
    assert FLEET not in "".join(printed)
