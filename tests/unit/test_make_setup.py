"""What `make` does before it can do anything: Debian's packages, and the virtual environment.

Runs the real Makefile and scripts in a tree of their own, with stand-ins for python, dpkg and apt.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from legs import REPO

PYTHON = """#!/bin/sh
case "$1" in
-c) exit 0 ;;
esac
echo "venv" >>log
mkdir -p "$3/bin"
printf '#!/bin/sh\\nsleep 0.3\\necho pip >>log\\n' >"$3/bin/pip"
chmod +x "$3/bin/pip"
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with a blank in its path, and a PATH that has what every machine has."""
    top = tmp_path / "a tree"
    (top / "tools").mkdir(parents=True)
    (top / "path").mkdir()
    shutil.copy(REPO / "Makefile", top)
    for name in ("apt.sh", "venv.sh"):
        shutil.copy(REPO / "tools" / name, top / "tools")
    (top / "tools" / "requirements.txt").touch()
    (top / "pyproject.toml").touch()
    for (
        name
    ) in "sh make mkdir touch flock dirname sleep chmod printf rm cat id mktemp tail".split():
        found = shutil.which(name)
        if found:
            (top / "path" / name).symlink_to(found)
    stand_in(top, "python3", PYTHON)
    return top


def stand_in(top: Path, name: str, text: str) -> None:
    (top / "path" / name).write_text(text)
    (top / "path" / name).chmod(0o755)


def start(tree: Path, *words: str) -> subprocess.Popen[str]:
    environment = {"PATH": str(tree / "path"), "HOME": os.environ.get("HOME", "/")}
    return subprocess.Popen(
        words, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(tree: Path, *words: str) -> tuple[int, str]:
    process = start(tree, *words)
    out, err = process.communicate(timeout=30)
    return process.returncode, out + err


READY = "build/venv/.ready"


def test_two_makes_at_once_set_the_environment_up_once(tree: Path) -> None:
    both = [start(tree, "make", READY) for _ in range(2)]
    assert [process.wait(30) for process in both] == [0, 0]
    assert (tree / "log").read_text().split() == ["venv", "pip", "pip"]
    assert (tree / READY).exists()


def test_a_set_up_that_failed_is_done_again(tree: Path) -> None:
    failing = PYTHON.replace("echo pip", "exit 1; echo pip")
    stand_in(tree, "python3", failing)
    assert run(tree, "make", READY)[0] != 0
    assert not (tree / READY).exists()
    stand_in(tree, "python3", PYTHON)
    assert run(tree, "make", READY)[0] == 0
    assert run(tree, "make", READY) == (0, "make: 'build/venv/.ready' is up to date.\n")


def test_no_debian_goes_on_and_says_what_it_takes_for_granted(tree: Path) -> None:
    code, said = run(tree, "tools/apt.sh", "gcc-multilib", "make")
    assert code == 0
    assert (
        said == "No dpkg here: taking it that the equivalents of gcc-multilib make are installed.\n"
    )


def test_packages_that_are_there_need_neither_apt_nor_root(tree: Path) -> None:
    stand_in(tree, "dpkg-query", "#!/bin/sh\nprintf 'install ok installed'\n")
    assert run(tree, "tools/apt.sh", "make", "xz-utils") == (0, "")


def test_a_missing_package_without_apt_is_one_sentence(tree: Path) -> None:
    stand_in(tree, "dpkg-query", "#!/bin/sh\nexit 1\n")
    code, said = run(tree, "tools/apt.sh", "make")
    assert code == 1 and said.count("\n") == 1 and "no apt-get" in said


def test_a_missing_package_for_who_is_not_root_is_the_command_to_run(tree: Path) -> None:
    stand_in(tree, "dpkg-query", "#!/bin/sh\nexit 1\n")
    stand_in(tree, "apt-get", "#!/bin/sh\ntouch called\n")
    (tree / "path" / "id").unlink()
    stand_in(tree, "id", "#!/bin/sh\necho 1000\n")
    code, said = run(tree, "tools/apt.sh", "make", "xz-utils")
    assert code == 1 and "sudo apt-get install make xz-utils" in said
    assert not (tree / "called").exists()
