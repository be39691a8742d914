"""Where firmware/build.py finds MicroPython's sources: the machine's apt configuration, a clone.

Nothing is downloaded here; the mirror's names are made up.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "firmware" / "build.py"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("firmware_build", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/some/key.gpg] http://mirror.example/debian bookworm main contrib # x
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian bookworm-updates main
deb http://security.example/debian-security bookworm-security main
deb https://packages.example/tool stable main-of-tool
"""

DEB822 = """\
Types: deb
# the main archive
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb
URIs: http://security.example/debian-security
Suites: bookworm-security
Components: main
"""


@pytest.mark.parametrize("form", ["one_line", "deb822"])
def test_the_mirror_is_the_one_that_the_machine_uses(build: ModuleType, form: str) -> None:
    parse, text = {
        "one_line": (build.parse_one_line, ONE_LINE),
        "deb822": (build.parse_deb822, DEB822),
    }[form]
    assert build.debian_mirrors(list(parse(text)), "bookworm") == (
        "http://mirror.example/debian",
        "http://security.example/debian-security",
    )


def test_a_machine_without_a_security_archive_still_builds(build: ModuleType) -> None:
    entries = list(build.parse_one_line("deb http://mirror.example/debian bookworm main"))
    assert build.debian_mirrors(entries, "bookworm") == ("http://mirror.example/debian", None)


def test_no_debian_mirror_says_to_use_a_clone(build: ModuleType) -> None:
    entries = list(build.parse_one_line("deb http://mirror.example/ubuntu noble main"))
    with pytest.raises(build.BuildError, match="Set MICROPYTHON_DIR"):
        build.debian_mirrors(entries, "bookworm")


@pytest.mark.parametrize("version", ["3.6.2", "3.5.9", "2.28.8", "4.0.0"])
def test_an_mbedtls_that_will_not_do_is_refused(build: ModuleType, version: str) -> None:
    with pytest.raises(build.BuildError, match="will not do"):
        build.check_mbedtls(build.version_numbers(version))
    build.check_mbedtls(build.version_numbers("mbedtls_3.6.10.orig.tar.bz2"))


def test_a_clone_without_mbedtls_is_told_the_command_that_fetches_it(
    build: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(build.BuildError, match="is not a clone of MicroPython"):
        build.clone_state(tmp_path)
    (tmp_path / "ports" / "unix").mkdir(parents=True)
    (tmp_path / "ports" / "unix" / "Makefile").touch()
    with pytest.raises(build.BuildError, match="submodule update --init lib/mbedtls"):
        build.clone_state(tmp_path)


def test_the_version_is_micropythons_and_not_this_repositorys(build: ModuleType) -> None:
    for name in build.VARIANTS:
        shown = subprocess.run(
            [build.BIN / name, "-c", "import os; print(os.uname()[2], os.uname()[3])"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        version = build.VERSIONS["micropython"]["version"]
        assert shown.startswith(f"{version} v{version} on "), (name, shown)


def test_a_full_disk_is_one_sentence(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_names: list[str]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")

    monkeypatch.setattr(build, "build", full)
    monkeypatch.setattr(sys, "argv", ["build.py"])
    assert build.main() == 1
    assert capsys.readouterr().err == "error: No space left on device (some/file).\n"


def test_jobs_that_are_no_number_are_refused(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTPOST_JOBS", "many")
    with pytest.raises(build.BuildError, match="OUTPOST_JOBS=many"):
        build.jobs()


def test_a_tree_with_a_blank_in_its_path_is_built_through_a_link_without_one(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "my tree"
    root.mkdir()
    monkeypatch.setattr(build, "ROOT", root)
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    with pytest.raises(build.BuildError, match="path without blanks"):
        build.plain(root / "build")
    (tmp_path / "tmp").mkdir()
    link = Path(build.plain(root / "build")).parent
    assert " " not in str(link) and link.resolve() == root
    assert build.plain(root) == str(link)  # the same each time
    link.unlink()
    link.symlink_to(tmp_path)  # somebody else's
    with pytest.raises(build.BuildError, match="path without blanks"):
        build.plain(root)
    with pytest.raises(build.BuildError, match="without blanks"):
        build.plain("/elsewhere/a clone")


def test_a_file_that_came_with_an_old_date_is_built_all_the_same(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []

    def make(_label: str, _directory: Path, arguments: list[str], _log: Path) -> None:
        told.append([arguments[i + 1] for i, word in enumerate(arguments) if word == "-W"])
        if interrupted:
            raise KeyboardInterrupt

    firmware, library = tmp_path / "firmware", tmp_path / "lib" / "outpost"
    (firmware / "virtual").mkdir(parents=True)
    library.mkdir(parents=True)
    for path in (
        firmware / "virtual" / "mpconfigvariant.mk",
        firmware / "board.c",
        library / "clock.py",
        tmp_path / "boot.py",
    ):
        path.write_text("first")
    for name, value in (
        ("ROOT", tmp_path),
        ("FIRMWARE", firmware),
        ("WORK", tmp_path / "work"),
        ("BIN", tmp_path / "bin"),
        ("STAMPS", tmp_path / "stamps"),
        ("run_make", make),
        ("need_tools", lambda force_32bit: None),
        ("install", lambda built, name: (tmp_path / "bin" / name).touch()),
    ):
        monkeypatch.setattr(build, name, value)
    (tmp_path / "bin").mkdir()
    variant = build.VARIANTS["outpost64"]
    frozen = tmp_path / "work" / "outpost64" / "frozen_mpy"

    def run() -> None:
        frozen.mkdir(parents=True, exist_ok=True)
        build.make_variant(variant, "source", "cross", "umqtt")

    def change(path: Path, text: str) -> str:
        path.write_text(text)
        os.utime(path, (0, 0))
        return str(path)

    interrupted = False
    run()
    run()
    assert len(told) == 1
    one = change(firmware / "board.c", "second")
    run()
    assert told[-1] == [one] and frozen.exists()
    two = change(library / "clock.py", "second")
    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        run()
    assert told[-1] == [two] and not frozen.exists()
    interrupted = False
    change(library / "clock.py", "first")  # as it was: but what was built of it is not
    run()
    assert told[-1] == [two] and not frozen.exists()
    count = len(told)
    run()
    assert len(told) == count


def test_the_release_legs_board_is_a_link_that_moves_with_the_tree(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BIN", build.ROOT / "build" / "tests" / tmp_path.name)
    try:
        build.link_release()
        build.link_release()
        link = build.BIN / "stock-release"
        assert not Path(os.readlink(link)).is_absolute()
        assert link.resolve() == SCRIPT.parent / "virtual" / "release" / "board"
    finally:
        shutil.rmtree(build.BIN)
