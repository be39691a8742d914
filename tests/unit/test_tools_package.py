"""`outpost app build`, `sign` and `inspect`: from a folder to a package that k of n have signed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import bundles
import packages
import pytest
from legs import REPO
from outpost_tools import agreed
from outpost_tools.cli import app
from outpost_tools.errors import OutpostError
from outpost_tools.fleet import Fleet
from outpost_tools.package import build
from outpost_tools.signing import Signers
from outpost_tools.software import Software, keys_of
from typer.testing import CliRunner

WORDS = "a passphrase for tests"


def put(folder: Path, **files: bytes) -> Path:
    for name, content in files.items():
        target = folder / name.replace("__", "/").replace("_py", ".py")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


def outpost(*words: object, data: Path, fails: bool = False) -> str:
    done = CliRunner().invoke(
        app, [*map(str, words), "--data", str(data)], env={"OUTPOST_SIGNER_PASSPHRASE": WORDS}
    )
    assert (done.exit_code != 0) == fails, done.output
    return done.output


def test_the_same_sources_give_the_same_bytes(tmp_path):
    one = put(tmp_path / "one", main_py=b"import b", b_py=b"x = 1")
    other = put(tmp_path / "other", b_py=b"x = 1", main_py=b"import b")
    assert build(one).encode() == build(other).encode()


def test_main_py_runs_what_it_was_compiled_from_and_only_that_is_source(tmp_path):
    package = build(put(tmp_path, main_py=b"print(1)", lib__a_py=b"x = 1", __pycache___py=b""))
    assert package.files["main.py"] == b"import _main\n"
    assert {"_main.mpy", "lib/a.mpy"} <= set(package.files)
    assert all(c[:2] == b"M\x06" for p, c in package.files.items() if p.endswith(".mpy"))


def test_a_main_py_that_asks_for_its_name_stays_as_it_is(tmp_path):
    source = b'if __name__ == "__main__":\n    print(1)\n'
    assert build(put(tmp_path, main_py=source)).files == {"main.py": source}


def test_machine_code_is_built_for_the_arch_that_was_asked_for(tmp_path):
    source = b"import micropython\n@micropython.native\ndef f():\n    return 1\n"
    folder = put(tmp_path, main_py=source)
    package = build(folder, arch="xtensawin")
    assert package.mpy_flags >> 2 == 10 and package.files["_main.mpy"][2] == package.mpy_flags
    with pytest.raises(OutpostError, match="does not compile"):
        build(folder)
    with pytest.raises(OutpostError, match="no arch"):
        build(folder, arch="z80")


MISTAKES = {
    "no main.py": ({"a_py": b""}, "it has no main.py"),
    "no Python": ({"main_py": b"def"}, "is no Python"),
    "boot.py": ({"main_py": b"1", "boot_py": b"1"}, "boot.py stays the image's own"),
    "a name with a space": ({"main_py": b"1", "a b_py": b"1"}, "cannot be in a package"),
    "too deep": ({"main_py": b"1", "a__b__c__d__e_py": b"1"}, "cannot be in a package"),
    "half a library": ({"main_py": b"1", "outpost__mqtt_py": b"1"}, "brings outpost/ in part"),
    "half a library in lib": (
        {"main_py": b"1", "lib__outpost__mqtt_py": b"1"},
        "brings lib/outpost/ in part",
    ),
    "our own name": ({"main_py": b"1", "_main_py": b"1"}, "the package's own name"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_one_sentence(tmp_path, name):
    files, words = MISTAKES[name]
    folder = put(tmp_path, **files)
    with pytest.raises(OutpostError, match=re.escape(words)):
        build(folder)


def test_two_signers_on_two_machines_sign_one_after_the_other(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    file, trust = tmp_path / "app.opk", tmp_path / "trust.bin"
    outpost("sign", "new", "anna", "--role", "software", data=first)
    outpost("sign", "new", "bert", "--role", "software", data=second)
    outpost("sign", "new", "carl", "--role", "keys", data=second)
    points = [Signers(first).find("anna").point, Signers(second).find("bert").point]
    with Fleet(first) as fleet:
        named = bundles.make(fleet=fleet.name, software=bundles.Keys.of(2, points))
    trust.write_bytes(bundles.signed(named).encode())
    folder = put(tmp_path / "app", main_py=packages.main())
    outpost("app", "build", folder, "-o", file, "--version", 7, "--label", "1.4", data=first)
    inspect = ("app", "inspect", file, "--trust", trust, "--json")
    assert json.loads(outpost(*inspect, data=first, fails=True))["missing"] == 2
    assert "1 more must sign" in outpost("app", "sign", file, "--trust", trust, data=first)
    # The same one once more does not count twice.
    assert "1 more must sign" in outpost("app", "sign", file, "--trust", trust, data=first)
    assert "may not sign for 'software'" in outpost(
        "app", "sign", file, "--signer", "carl", data=second, fails=True
    )
    said = outpost("app", "sign", file, data=second)
    assert "not known here" in said  # without the bundle it cannot tell whether it is enough
    facts = json.loads(outpost(*inspect, data=second))
    assert facts["missing"] == 0 and len(facts["signed"]) == 2 and facts["version"] == 7
    assert Software.read(file).missing(keys_of(second, trust)) == 0


def test_what_is_no_package_is_said_in_one_sentence(tmp_path):
    outpost("sign", "new", "anna", "--role", "software", data=tmp_path)
    good = packages.signed(packages.application())
    for name, content in {
        "a trust bundle": bundles.data(),
        "cut off": good[:-1],
        "changed": good[:-1] + b"x",
        "empty": b"",
    }.items():
        file = tmp_path / "file"
        file.write_bytes(content)
        said = outpost("app", "inspect", file, data=tmp_path, fails=True)
        assert said.startswith("outpost: ") and said.count("\n") == 1, (name, said)
    assert "signed with a key" in outpost(
        "app", "inspect", write(tmp_path / "good", good), data=tmp_path, fails=True
    )


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_package_that_no_device_takes_is_not_made(tmp_path):
    (tmp_path / "big.bin").write_bytes(bytes(agreed.APP_MAX_BYTES))
    package = build(put(tmp_path, main_py=b"1"))
    with pytest.raises(OutpostError, match="leave something out"):
        Software.around(package, "harbour", 1)
    for version in (0, 2**31):
        with pytest.raises(OutpostError, match="A version is a number"):
            Software.around(packages.application(), "harbour", version)
    for days in (0, -1, 36501, 1e12, float("nan"), float("inf")):
        with pytest.raises(OutpostError, match="may be installed for"):
            Software.around(packages.application(), "harbour", 1, days)


def test_boot_py_means_the_entries_that_the_library_means():
    source = (REPO / "boot.py").read_text()
    running, device = agreed._device, agreed._slots
    for name in (device.NVS_APP_CURRENT, device.NVS_APP_TRIAL, device.NVS_APP_LIVES):
        assert f'"{name}"' in source
    assert f'"{device.NVS_APP_LAST}"' in source and f'"{device.NVS_APP_OUTCOME}"' in source
    assert f'NVS("{running.NVS_NAMESPACE}")' in source and f"lives < {device.APP_LIVES}" in source
    assert device.NVS_APP_SLOTS == ("app-a", "app-b") and '"app-" + "ab"' in source
    assert source.count(f"timeout={running.WATCHDOG_S * 1000}") == 2


def test_what_stays_in_memory_of_updates_means_the_same_kinds_and_entries():
    source = (REPO / "lib" / "outpost" / "updates.py").read_text()
    slots = agreed._slots
    assert f'_KIND = "{slots.APP_KIND}"' in source and f'_TRIAL = "{slots.NVS_APP_TRIAL}"' in source
    assert f"_MAX_BYTES = const({slots.APP_MAX_BYTES})" in source
    assert f'"{slots.FIRMWARE_KIND}", place' in source
