"""The device's keys: made on the board, kept in its NVS, used, and never given out.

Held against OpenSSL and `cryptography`; the private keys are taken from the flash image.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import devicekeys
import pytest
import tlsdevice
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import NameOID
from legs import BIN
from stockboard import blank_flash, flash_with, raw_prompt

LEGS = tlsdevice.OURS
FULL = 'OSError: (-4357, "ESP_ERR_NVS_NOT_ENOUGH_SPACE")'.replace('"', "'")


@pytest.fixture
def flash(tmp_path: Path) -> Path:
    return blank_flash(tmp_path / "flash.bin")


def one(leg: str, flash: Path, script: str, **parameters):
    return tlsdevice.one(leg, flash.parent, script, flash=flash, **parameters)


def openssl(*words: str) -> str:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# ---------------------------------------------------------------- slots


@pytest.mark.parametrize("leg", LEGS)
def test_a_new_key_lies_in_its_slot_and_nowhere_else(leg: str, flash: Path) -> None:
    made = one(
        leg,
        flash,
        "before = tlspolicy.key_public(3)\n"
        "answer = tlspolicy.key_new(3)\n"
        "report(before=before, answer=answer, point=tlspolicy.key_public(3).hex())\n",
    )
    scalar = devicekeys.stored(flash, 3)
    assert scalar is not None and made["before"] is None and made["answer"] is None
    assert bytes.fromhex(made["point"]) == devicekeys.point(devicekeys.private(scalar))
    assert list(devicekeys.nvs(flash)) == [("outpost_keys", "k3")]
    again = one(leg, flash, "report(point=tlspolicy.key_public(3).hex())")
    assert again["point"] == made["point"], "another key after a restart"


def test_a_key_is_replaced_only_when_that_is_said(flash: Path) -> None:
    script = """
first = tlspolicy.key_new(0) or tlspolicy.key_public(0)
error = attempt(lambda: tlspolicy.key_new(0))
error_false = attempt(lambda: tlspolicy.key_new(0, False))
kept = tlspolicy.key_public(0) == first
tlspolicy.key_new(0, True)
report(error=error, again=error_false, kept=kept, new=tlspolicy.key_public(0) != first)
"""
    done = one("outpost64", flash, script)
    assert done["error"] == done["again"] == "OSError: [Errno 17] EEXIST"
    assert done["kept"] and done["new"]


def test_erasing_a_key_leaves_the_others_and_may_be_done_twice(flash: Path) -> None:
    script = """
errors = [attempt(lambda: tlspolicy.key_erase(1))]
tlspolicy.key_new(0)
tlspolicy.key_new(1)
errors += [attempt(lambda: tlspolicy.key_erase(1)) for _ in range(2)]
report(errors=errors, gone=tlspolicy.key_public(1) is None, kept=tlspolicy.key_public(0) != None)
"""
    assert one("outpost64", flash, script) == {"errors": [""] * 3, "gone": True, "kept": True}
    assert devicekeys.stored(flash, 0) and devicekeys.stored(flash, 1) is None


def test_what_needs_a_key_says_that_there_is_none(flash: Path) -> None:
    script = """
point = tlspolicy.key_new(0) or tlspolicy.key_public(0)
born = tlspolicy.self_signed(0, "a", "20260101000000", "20270101000000")
calls = (
    lambda: tlspolicy.key_csr(1, "a"),
    lambda: tlspolicy.key_sign(1, b"a"),
    lambda: tlspolicy.key_agree(1, point),
    lambda: tlspolicy.self_signed(1, "a", "20260101000000", "20270101000000"),
    lambda: tlspolicy.client(born, 1),
)
report(errors=[attempt(call) for call in calls])
"""
    assert set(one("outpost64", flash, script)["errors"]) == {"OSError: [Errno 2] ENOENT"}


@pytest.mark.parametrize("slot", ["-1", "8", "None", "'0'", "1.0", "2**70", "True"])
def test_a_slot_that_is_not_one_is_refused(flash: Path, slot: str) -> None:
    script = f"""
slot = {slot}
point = tlspolicy.key_new(0) or tlspolicy.key_public(0)
calls = (
    lambda: tlspolicy.key_new(slot),
    lambda: tlspolicy.key_public(slot),
    lambda: tlspolicy.key_erase(slot),
    lambda: tlspolicy.key_csr(slot, "a"),
    lambda: tlspolicy.key_sign(slot, b"a"),
    lambda: tlspolicy.key_agree(slot, point),
)
report(errors=[attempt(call) for call in calls])
"""
    errors = one("outpost32", flash, script)["errors"]
    assert set(errors) == {"ValueError: slot must be 0 to 7"}
    assert list(devicekeys.nvs(flash)) == [("outpost_keys", "k0")]


@pytest.mark.parametrize("leg", LEGS)
def test_a_full_nvs_is_said_and_the_old_key_stays(leg: str, flash: Path) -> None:
    script = """
import esp32
tlspolicy.key_new(0)
point = tlspolicy.key_public(0)
nvs = esp32.NVS("fill")
n, size = 0, 2000
while size:
    n += 1
    try:
        nvs.set_blob("b%d" % n, bytes(size)) if size > 1 else nvs.set_i32("b%d" % n, n)
    except OSError:
        size //= 2
errors = [attempt(lambda: tlspolicy.key_new(0, True)), attempt(lambda: tlspolicy.key_new(1))]
report(errors=errors, same=tlspolicy.key_public(0) == point, none=tlspolicy.key_public(1))
"""
    assert one(leg, flash, script) == {"errors": [FULL] * 2, "same": True, "none": None}


def test_without_an_nvs_every_call_says_so(tmp_path: Path) -> None:
    script = """
calls = (
    lambda: tlspolicy.key_new(0), lambda: tlspolicy.key_public(0), lambda: tlspolicy.key_erase(0),
    lambda: tlspolicy.key_csr(0, "a"), lambda: tlspolicy.key_sign(0, b""),
)
report(errors=[attempt(call) for call in calls])
"""
    errors = tlsdevice.one("outpost64", tmp_path, script)["errors"]
    assert set(errors) == {"OSError: (-4353, 'ESP_ERR_NVS_NOT_INITIALIZED')"}


def test_an_entry_that_is_no_key_is_neither_used_nor_overwritten_unasked(flash: Path) -> None:
    good = devicekeys.private(b"\x11" * 32)
    chip = devicekeys.Chip(flash)
    assert chip.start() == 0
    namespace = chip.namespace("outpost_keys")
    whole = b"\x01" + b"\x11" * 32 + devicekeys.point(good)
    chip.set_blob(namespace, "k0", whole[:-1])
    chip.set_blob(namespace, "k1", b"\x02" + whole[1:])
    chip.set_blob(namespace, "k2", b"\x01" + bytes(32) + whole[33:])  # zero is no private key
    chip.close()
    script = """
errors = [attempt(lambda: tlspolicy.key_sign(slot, b"a")) for slot in range(3)]
errors += [attempt(lambda: tlspolicy.key_new(slot)) for slot in range(3)]
for slot in range(3):
    tlspolicy.key_new(slot, True)
report(errors=errors)
"""
    errors = one("outpost64", flash, script)["errors"]
    assert errors[:2] == ["OSError: (-4364, 'ESP_ERR_NVS_INVALID_LENGTH')"] * 2
    assert errors[2].startswith("ValueError") or errors[2].startswith("OSError")
    assert errors[3:] == ["OSError: [Errno 17] EEXIST"] * 3
    assert all(devicekeys.stored(flash, slot) for slot in range(3))


# ---------------------------------------------------------------- using a key


def test_signatures_are_good_and_never_the_same_twice(flash: Path) -> None:
    script = """
tlspolicy.key_new(0)
report(signed=[tlspolicy.key_sign(0, b"m%d" % n).hex() for n in range(60)],
       same=tlspolicy.key_sign(0, b"m0").hex())
"""
    done = one("outpost64", flash, script)
    public = devicekeys.private(devicekeys.stored(flash, 0)).public_key()
    for n, text in enumerate(done["signed"]):
        raw = bytes.fromhex(text)
        assert len(raw) == 64
        r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
        public.verify(encode_dss_signature(r, s), b"m%d" % n, ec.ECDSA(hashes.SHA256()))
    nonces = [text[:64] for text in [*done["signed"], done["same"]]]
    assert len(set(nonces)) == len(nonces)


@pytest.mark.parametrize("leg", LEGS)
def test_both_sides_agree_on_the_same_secret(leg: str, flash: Path) -> None:
    peer = ec.generate_private_key(ec.SECP256R1())
    script = """
tlspolicy.key_new(0)
report(z=tlspolicy.key_agree(0, bytes.fromhex(peer)).hex(), point=tlspolicy.key_public(0).hex())
"""
    done = one(leg, flash, script, peer=devicekeys.point(peer).hex())
    device = ec.EllipticCurvePublicKey.from_encoded_point(
        ec.SECP256R1(), bytes.fromhex(done["point"])
    )
    assert bytes.fromhex(done["z"]) == peer.exchange(ec.ECDH(), device)


NAMES = ["pump-7", "a", "x" * 64, "y" * 128, "a,b=c+d#;\"'\\ <>", "größe", "#0403", "CN=evil, O=x"]


@pytest.mark.filterwarnings("ignore:Attribute's length")  # 128 bytes: what a device id may have
@pytest.mark.parametrize("leg", LEGS)
def test_a_request_is_for_the_name_and_the_key_and_openssl_says_it_is_good(
    leg: str, flash: Path
) -> None:
    script = """
tlspolicy.key_new(2)
report(requests=[tlspolicy.key_csr(2, name).hex() for name in names])
"""
    done = one(leg, flash, script, names=NAMES)
    public = devicekeys.private(devicekeys.stored(flash, 2)).public_key()
    for name, text in zip(NAMES, done["requests"], strict=True):
        der = bytes.fromhex(text)
        request = x509.load_der_x509_csr(der)
        assert request.is_signature_valid and request.public_key() == public
        assert isinstance(request.signature_hash_algorithm, hashes.SHA256)
        attributes = list(request.subject)
        assert [(a.oid, a.value) for a in attributes] == [(NameOID.COMMON_NAME, name)]
        assert request.public_bytes(serialization.Encoding.DER) == der
        path = flash.parent / "request.der"
        path.write_bytes(der)
        said = openssl("req", "-inform", "DER", "-in", str(path), "-noout", "-verify")
        assert "verify OK" in said


@pytest.mark.parametrize("name", ["''", "'x' * 129", "'a\\0b'", "b'bytes'", "None", "7"])
def test_a_name_that_no_certificate_takes_is_refused(flash: Path, name: str) -> None:
    script = f"""
tlspolicy.key_new(0)
dates = "20260101000000", "20270101000000"
report(errors=[attempt(lambda: tlspolicy.key_csr(0, {name})),
               attempt(lambda: tlspolicy.self_signed(0, {name}, *dates))])
"""
    errors = one("outpost64", flash, script)["errors"]
    assert all(re.match("(ValueError|TypeError): .", error) for error in errors), errors


DATES = [
    ("20260101000000", "20270101000000"),
    ("20491231235959", "20500101000000"),
    ("20260101000000", "99991231235959"),
]


def test_a_self_signed_certificate_is_good_to_openssl_and_says_what_was_asked(flash: Path) -> None:
    script = """
tlspolicy.key_new(0)
report(made=[tlspolicy.self_signed(0, "pump-7", *pair).hex() for pair in dates])
"""
    made = [bytes.fromhex(text) for text in one("outpost64", flash, script, dates=DATES)["made"]]
    public = devicekeys.private(devicekeys.stored(flash, 0)).public_key()
    for (first, last), der in zip(DATES, made, strict=True):
        certificate = x509.load_der_x509_certificate(der)
        assert certificate.public_key() == public
        assert certificate.not_valid_before_utc.strftime("%Y%m%d%H%M%S") == first
        assert certificate.not_valid_after_utc.strftime("%Y%m%d%H%M%S") == last
        assert certificate.subject == certificate.issuer
        assert [(e.oid._name, e.critical) for e in certificate.extensions] == [
            ("basicConstraints", True),
            ("keyUsage", True),
            ("extendedKeyUsage", False),
        ]
        path = flash.parent / "born.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        epoch = str(int(certificate.not_valid_before_utc.timestamp()))
        openssl(
            "verify", "-check_ss_sig", "-x509_strict", "-attime", epoch, "-purpose", "sslclient",
            "-CAfile", str(path), str(path),
        )  # fmt: skip
    serials = {x509.load_der_x509_certificate(der).serial_number for der in made}
    assert len(serials) == len(made) and all(n.bit_length() == 127 for n in serials)


@pytest.mark.parametrize(
    "first, last",
    [
        ("2026010100000", "20270101000000"),
        ("20260101000000", "2027010100000x"),
        ("20261301000000", "20270101000000"),
        ("20260001000000", "20270101000000"),
        ("20260132000000", "20270101000000"),
        ("20260101240000", "20270101000000"),
        ("20260101006000", "20270101000000"),
        ("20270101000000", "20260101000000"),
        ("", ""),
    ],
)
def test_dates_that_are_none_are_refused(flash: Path, first: str, last: str) -> None:
    script = """
tlspolicy.key_new(0)
report(error=attempt(lambda: tlspolicy.self_signed(0, "a", first, last)))
"""
    assert one("outpost64", flash, script, first=first, last=last)["error"].startswith("ValueError")


# ---------------------------------------------------------------- never given out


def test_two_boards_with_the_same_image_make_different_keys(tmp_path: Path) -> None:
    scalars = set()
    for n in range(4):
        flash = blank_flash(tmp_path / f"{n}.bin")
        tlsdevice.run("outpost32", tmp_path, "tlspolicy.key_new(0)", flash=flash)
        scalars.add(devicekeys.stored(flash, 0))
    assert len(scalars) == 4 and None not in scalars


def test_nothing_that_a_program_can_call_gives_a_private_key_out(flash: Path) -> None:
    """Everything that the module answers, in good calls and bad ones, and every other way in."""
    script = r"""
import esp32, io
t = tlspolicy
said = open("said", "wb")
count = [0]

def say(answer):
    count[0] += 1
    said.write(answer)

def ask(call):
    try:
        answer = call()
        say(answer if isinstance(answer, bytes) else repr(answer).encode())
    except Exception as e:
        text = io.StringIO()
        sys.print_exception(e, text)
        say(text.getvalue().encode() + repr(e.args).encode())

for slot in (0, 1):
    t.key_new(slot)
point = t.key_public(0)
born = t.self_signed(0, "a", "20260101000000", "20270101000000")
things = (None, 0, 1, -1, b"", b"a", "a", point, born, b"\x30\x00", True, 1.5, [], {}, len)
for name in dir(t):
    call = getattr(t, name)
    ask(lambda: call)
    if name in ("key_new", "key_erase", "max_fragment_length", "suites", "roots"):
        continue
    ask(lambda: call())
    for a in things:
        ask(lambda: call(a))
        for b in things:
            ask(lambda: call(a, b))
            if name in ("verify", "key_sign", "key_csr"):
                for c in things:
                    ask(lambda: call(a, b, c))
t.client(born, 0)
ask(lambda: t.client())
t.client(None)

refused = []
for name in ("outpost_keys", "outpost_keys\0", "outpost_keys\0x"):
    refused.append(attempt(lambda: esp32.NVS(name)))
part = esp32.Partition("nvs")
buf = bytearray(4096)
for p in [part] + esp32.Partition.find(type=esp32.Partition.TYPE_DATA, subtype=2):
    refused.append(attempt(lambda: p.readblocks(0, buf)))
    refused.append(attempt(lambda: p.readblocks(0, buf, 8)))
    refused.append(attempt(lambda: p.writeblocks(0, buf)))
    refused.append(attempt(lambda: p.writeblocks(0, buf, 8)))
    refused.append(attempt(lambda: p.ioctl(6, 0)))
small = esp32.Partition("nvs", 512)
refused.append(attempt(lambda: small.readblocks(1, buf)))
refused.append(attempt(lambda: small.writeblocks(1, buf)))
other = esp32.NVS("outpost")
for key in ("k0", "k1"):
    ask(lambda: other.get_blob(key, buf))
say(bytes(buf))
said.close()
report(refused=refused, said=count[0])
"""
    done = one("outpost64", flash, script)
    secrets = [devicekeys.stored(flash, slot) for slot in (0, 1)]
    said = (flash.parent / "said").read_bytes()
    assert done["said"] > 10_000
    for secret in secrets:
        for form in (secret, secret[::-1]):
            for at in range(0, 32 - 8):
                assert form[at : at + 8] not in said
            assert form.hex().encode() not in said
    names = [error for error in done["refused"] if "INVALID_NAME" in error]
    closed = [error for error in done["refused"] if "ESP_ERR_NOT_ALLOWED" in error]
    assert len(names) == 3 and len(closed) == 12 and len(done["refused"]) == 15, done["refused"]


@pytest.mark.parametrize("leg", LEGS)
def test_no_copy_of_a_private_key_stays_in_ram(leg: str, tmp_path: Path) -> None:
    flash = flash_with(tmp_path / "flash.bin")
    with raw_prompt(leg, flash) as board:
        before = (
            "import tlspolicy as t\n"
            "t.key_new(0); t.key_new(1); t.key_new(1, True); p = t.key_public(0)\n"
        )
        used = (
            "t.key_sign(0, b'a'); t.key_csr(1, 'a'); t.key_agree(0, p)\n"
            "c = t.self_signed(1, 'a', '20260101000000', '20270101000000')\n"
            "t.client(c, 1); print(t.key_public(1) != p)\n"
        )
        assert board.run(before + used).strip() == "True"
        image = memory(board._process.pid, flash)
    scalars = [devicekeys.stored(flash, slot) for slot in (0, 1)]
    assert devicekeys.point(devicekeys.private(scalars[0])) in image, (
        "this looks at the wrong place"
    )
    for scalar in scalars:
        for form in (scalar, scalar[::-1]):
            for at in range(32 - 12):
                assert form[at : at + 12] not in image, at


def memory(pid: int, without: Path) -> bytes:
    """All that a process holds in memory and may write to, but not the flash."""
    found = bytearray()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            words = line.split(maxsplit=5)
            name = words[5] if len(words) > 5 else ""
            if "w" not in words[1] or name == str(without) or name.startswith("[v"):
                continue
            begin, end = (int(part, 16) for part in words[0].split("-"))
            mem.seek(begin)
            found += mem.read(end - begin)
    return bytes(found)


def test_a_stock_board_has_no_such_module_and_its_nvs_is_open_as_before(tmp_path: Path) -> None:
    flash = blank_flash(tmp_path / "flash.bin")
    script = """
import esp32
esp32.NVS("outpost_keys").set_i32("a", 1)
buf = bytearray(4096)
esp32.Partition("nvs").readblocks(0, buf)
report(module=tlspolicy is None, seen=b"outpost_keys" in buf)
"""
    assert tlsdevice.one("stock32", tmp_path, script, flash=flash) == {"module": True, "seen": True}


# ---------------------------------------------------------------- power


CUTS = {
    "the first key": ("tlspolicy.key_new(0)", {}),
    "a second key": ("tlspolicy.key_new(0)", {1: b"\x21" * 32}),
    "a replacement": ("tlspolicy.key_new(0, True)", {0: b"\x22" * 32, 1: b"\x21" * 32}),
    "a replacement that moves a page": (
        "tlspolicy.key_new(0, True)",
        {0: b"\x22" * 32, 1: b"\x21" * 32},
    ),
    "an erasure": ("tlspolicy.key_erase(0)", {0: b"\x22" * 32, 1: b"\x21" * 32}),
}


@pytest.mark.parametrize("case", CUTS)
@pytest.mark.parametrize("how", ["clean", "torn", "odd"])
def test_power_cut_at_every_flash_operation_leaves_the_old_key_or_the_new(
    case: str, how: str, tmp_path: Path
) -> None:
    call, keys = CUTS[case]
    flash = devicekeys.flash_with_keys(tmp_path / "flash.bin", keys)
    if "page" in case:
        devicekeys.about_to_move_a_page(flash, 0)
    fresh = flash.read_bytes()
    script = tmp_path / "call.py"
    script.write_text(f"import tlspolicy\n{call}\n")
    seen = set()
    number = 0
    while True:
        number += 1
        flash.write_bytes(fresh)
        command = [BIN / "outpost64", "--flash", flash, "--cut", f"{number}:{how}", script]
        code = subprocess.run(command, capture_output=True, timeout=30).returncode
        if code == 0:
            break
        assert code == 73 and number < 400, (case, number)
        # The next start mends; then the key works, or there is none.
        done = one(
            "outpost64",
            flash,
            "p = tlspolicy.key_public(0)\n"
            "good = p and tlspolicy.verify(p, b'a', tlspolicy.key_sign(0, b'a'))\n"
            "report(p=p and p.hex(), good=good)",
        )
        scalar = devicekeys.stored(flash, 0, after_power_cut=True)
        assert devicekeys.stored(flash, 1, after_power_cut=True) == keys.get(1)
        if scalar is None:
            assert 0 not in keys or "erase" in call, (number, "the old key is lost")
            assert done == {"p": None, "good": None}
        else:
            assert "erase" not in call or scalar == keys[0]
            expected = devicekeys.point(devicekeys.private(scalar)).hex()
            assert done == {"p": expected, "good": True}
        seen.add("old" if scalar == keys.get(0) else "new")
    assert "page" not in case or number > 30
    # A torn first operation of an erasure may already be the end of the key.
    assert number > 3 and ("old" in seen or how != "clean")
    after = devicekeys.stored(flash, 0)
    assert after is None if "erase" in call else after not in (None, keys.get(0))


# ---------------------------------------------------------------- memory


def test_memory_that_a_key_takes_is_bounded_and_given_back(flash: Path) -> None:
    script = """
gc.collect()
peaks, calls = {}, (
    ("key_new", lambda: tlspolicy.key_new(0, True)),
    ("key_csr", lambda: tlspolicy.key_csr(0, "pump-7")),
    ("key_sign", lambda: tlspolicy.key_sign(0, b"a")),
    ("key_agree", lambda: tlspolicy.key_agree(0, tlspolicy.key_public(0))),
    ("verify", lambda: tlspolicy.verify(tlspolicy.key_public(0), b"a", bytes(64 * [1]))),
)
left = []
for name, call in calls:
    before = tlspolicy.heap()[0]
    tlspolicy.heap_reset()
    call()
    after, peak = tlspolicy.heap()
    peaks[name] = peak - before
    left.append(after - before)
report(peaks=peaks, left=left)
"""
    done = one("outpost32", flash, script)
    assert done["left"] == [0] * 5
    assert all(peak <= 4608 for peak in done["peaks"].values()), done["peaks"]
