#!/usr/bin/env python3
"""Builds MicroPython for the host into build/: what `make micropython` calls.

It fetches the sources that versions.toml pins (Debian's signed source packages, by apt in a
private directory, or a clone named by MICROPYTHON_DIR), and builds mpy-cross and the three
binaries that the tests and `make run` use. What is up to date is left alone: each step keeps
a stamp made of hashes of everything that went into it.

It owns build/micropython and build/bin. It uses the standard library alone (and `pypi-simple`
for one small download), never touches the system's own package lists, holds no mirror's
address, and changes nothing in MicroPython's or mbedtls's sources.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FIRMWARE = Path(__file__).resolve().parent
ROOT = FIRMWARE.parent
BUILD = ROOT / "build"
WORK = BUILD / "micropython"
BIN = BUILD / "bin"
SOURCE = WORK / "src"
DOWNLOADS = WORK / "downloads"
STAMPS = WORK / "stamps"
UMQTT = WORK / "umqtt"
RESCUE_BOOT = WORK / "rescue" / "rescueboot.py"

VERSIONS = tomllib.loads((FIRMWARE / "versions.toml").read_text(encoding="utf-8"))

DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SET_CLONE = "Set MICROPYTHON_DIR to a clone of MicroPython (with lib/mbedtls) instead."


class BuildError(Exception):
    """What went wrong and what to do, in one sentence."""


@dataclass(frozen=True)
class Variant:
    """One binary of ours."""

    name: str
    leg: str
    force_32bit: bool
    defines: tuple[str, ...] = field(default=())


VARIANTS = {
    v.name: v
    for v in (
        Variant("outpost64", "outpost", False),
        Variant("outpost32", "outpost", True),
        Variant("stock32", "stock", True),
    )
}
RELEASE = "stock-release"  # an unmodified MicroPython: its board is a program in the tree
STEPS = ("source", "mpy-cross", *VARIANTS, RELEASE)


def one_line(why: BaseException) -> str:
    return " ".join(str(why).split())[:300].rstrip(".")


def say(text: str) -> None:
    print(text, flush=True)


# ---------------------------------------------------------------------------------- hashes


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hashes(*roots: Path) -> dict[str, str]:
    """The content of each file under the given places, by its path."""
    return {
        str(path): file_hash(path)
        for root in roots
        for path in sorted(root.rglob("*"))
        if "__pycache__" not in path.parts and path.is_file()
    }


def text_hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read_stamp(name: str) -> dict[str, str]:
    try:
        stamp = json.loads((STAMPS / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(name: str, stamp: dict[str, str]) -> None:
    STAMPS.mkdir(parents=True, exist_ok=True)
    path = STAMPS / f"{name}.json"
    path.with_suffix(".new").write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".new").replace(path)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """A second run waits for the first and then finds everything done."""
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another build is running here: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ----------------------------------------------------------------- sources, Debian's by apt


@dataclass(frozen=True)
class AptEntry:
    """One archive that the machine's apt configuration names."""

    uri: str
    suite: str
    components: tuple[str, ...]


def parse_one_line(text: str) -> Iterator[AptEntry]:
    """Entries of a sources.list: `deb [options] URI SUITE COMPONENT...`."""
    for line in text.splitlines():
        line = line.split("#", 1)[0].strip()
        match = re.match(r"deb(?:-src)?\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s*(.*)$", line)
        if match:
            yield AptEntry(match[1], match[2], tuple(match[3].split()))


def parse_deb822(text: str) -> Iterator[AptEntry]:
    """Entries of a .sources file: paragraphs of `Field: value`, continued by a blank."""
    for paragraph in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        last = ""
        for line in paragraph.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0] in " \t" and last:
                fields[last] += " " + line.strip()
            elif ":" in line:
                last, value = line.split(":", 1)
                last = last.strip().lower()
                fields[last] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "0", "off"):
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield AptEntry(uri, suite, tuple(fields.get("components", "").split()))


def apt_directory(name: str) -> Path:
    """A path out of apt's own configuration, such as Dir::Etc::sourcelist."""
    shell = subprocess.run(
        ["apt-config", "shell", "VALUE", f"{name}/f"], capture_output=True, text=True, check=True
    ).stdout
    words = shlex.split(shell)
    return Path(words[0].split("=", 1)[1]) if words else Path("/nonexistent")


def apt_entries() -> list[AptEntry]:
    entries: list[AptEntry] = []
    files = [apt_directory("Dir::Etc::sourcelist")]
    parts = apt_directory("Dir::Etc::sourceparts")
    if parts.is_dir():
        files += sorted(parts.iterdir())
    for path in files:
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".list":
            entries += parse_one_line(text)
        elif path.suffix == ".sources":
            entries += parse_deb822(text)
    return entries


def os_release() -> dict[str, str]:
    try:
        lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {name: value.strip("\"'") for name, value in pairs}


def debian_mirrors(entries: list[AptEntry], codename: str) -> tuple[str, str | None]:
    """The machine's own mirror of Debian, and of its security archive if it names one."""
    names = {codename, "stable", "oldstable", "testing", "unstable", "sid"} - {""}
    component = VERSIONS["debian"]["component"]
    usable = [e for e in entries if component in e.components]
    main = [e for e in usable if e.suite in names]
    security = [e for e in usable if re.split(r"[-/]", e.suite, maxsplit=1)[-1] == "security"]
    security += [e for e in usable if e.suite.endswith("/updates")]
    if not main:
        raise BuildError(f"This machine's apt configuration names no Debian mirror. {SET_CLONE}")
    return main[0].uri, security[0].uri if security else None


APT_CONF = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::Etc::sourcelist "{base}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::Lists "{base}/lists";
Dir::Cache "{base}/cache";
APT::Sandbox::User "";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Languages "none";
Acquire::Retries "3";
"""


class Apt:
    """apt with lists and caches of its own, in a directory that is thrown away."""

    def __init__(self, base: Path, mirror: str, security: str | None) -> None:
        self.base = base
        debian = VERSIONS["debian"]
        signed = f"[signed-by={DEBIAN_KEYRING}] " if DEBIAN_KEYRING.is_file() else ""
        lines = [f"deb-src {signed}{mirror} {debian['suite']} {debian['component']}"]
        if security:
            lines.append(
                f"deb-src {signed}{security} {debian['security_suite']} {debian['component']}"
            )
        for directory in ("lists/partial", "cache/archives/partial", "files"):
            (base / directory).mkdir(parents=True)
        (base / "sources.list").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (base / "apt.conf").write_text(APT_CONF.format(base=base), encoding="utf-8")

    def run(self, *arguments: str) -> str:
        command = ["apt-get", "-q", "-y", "-c", str(self.base / "apt.conf"), *arguments]
        result = subprocess.run(
            command,
            cwd=self.base / "files",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        if result.returncode != 0:
            tail = " / ".join(result.stdout.strip().splitlines()[-3:])
            raise BuildError(f"apt could not fetch the sources ({tail}). {SET_CLONE}")
        return result.stdout


def fetch_debian() -> tuple[Path, Path]:
    """The two tarballs, downloaded and checked once, then kept in build/micropython/downloads."""
    micropython = DOWNLOADS / VERSIONS["micropython"]["orig"]
    kept = read_stamp("downloads")
    mbedtls = DOWNLOADS / kept.get("mbedtls", "none")
    wanted = VERSIONS["micropython"]["sha256"]
    if (
        micropython.is_file()
        and mbedtls.is_file()
        and file_hash(micropython) == wanted
        and file_hash(mbedtls) == kept.get("sha256")
    ):
        return micropython, mbedtls

    if not shutil.which("apt-get"):
        raise BuildError(f"There is no apt on this machine to fetch sources with. {SET_CLONE}")
    release = os_release()
    codename = release.get("VERSION_CODENAME", "") if release.get("ID") == "debian" else ""
    mirror, security = debian_mirrors(apt_entries(), codename)
    package = f"{VERSIONS['micropython']['package']}={VERSIONS['micropython']['package_version']}"
    say("source: fetching MicroPython and mbedtls (Debian's signed source packages, 11 MB)")
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="apt-", dir=WORK) as directory:
        apt = Apt(Path(directory) / "a", mirror, security)
        try:
            apt.run("update")
        except BuildError:
            if security is None:
                raise
            say("source: no security archive for that release here, going on without it")
            apt = Apt(Path(directory) / "b", mirror, None)
            apt.run("update")
        apt.run("source", "--download-only", package, VERSIONS["mbedtls"]["package"])
        files = apt.base / "files"
        found = sorted(files.glob("mbedtls_*.orig.tar.*"))
        found = [path for path in found if not path.name.endswith(".asc")]
        if len(found) != 1 or not (files / micropython.name).is_file():
            raise BuildError(f"apt fetched something else than was asked for. {SET_CLONE}")
        if file_hash(files / micropython.name) != wanted:
            raise BuildError(f"{micropython.name} is not the file that versions.toml pins.")
        check_mbedtls(version_numbers(found[0].name))
        mbedtls = DOWNLOADS / found[0].name
        shutil.copyfile(files / micropython.name, micropython)
        shutil.copyfile(found[0], mbedtls)
    write_stamp("downloads", {"mbedtls": mbedtls.name, "sha256": file_hash(mbedtls)})
    return micropython, mbedtls


def version_numbers(text: str) -> tuple[int, ...]:
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    if not match:
        raise BuildError(f"There is no version number in {text!r}.")
    return tuple(int(part) for part in match.groups())


def check_mbedtls(version: tuple[int, ...]) -> None:
    minimum = version_numbers(VERSIONS["mbedtls"]["minimum"])
    series = VERSIONS["mbedtls"]["series"]
    if version < minimum or ".".join(map(str, version[:2])) != series:
        shown = ".".join(map(str, version))
        raise BuildError(
            f"mbedtls {shown} will not do: it must be {VERSIONS['mbedtls']['minimum']} "
            f"or a later {series}."
        )


def unpack(archive: Path, into: Path) -> None:
    """Unpack a tarball whose files all lie in one directory, as `into`."""
    with tempfile.TemporaryDirectory(prefix="unpack-", dir=WORK) as directory:
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(directory, filter="data")
            else:
                for member in tar.getmembers():
                    if member.name.startswith("/") or ".." in Path(member.name).parts:
                        raise BuildError(f"{archive.name} holds an unsafe path.")
                tar.extractall(directory)
        tops = list(Path(directory).iterdir())
        if len(tops) != 1:
            raise BuildError(f"{archive.name} is not laid out as a source package is.")
        if into.is_dir():
            shutil.rmtree(into)
        into.parent.mkdir(parents=True, exist_ok=True)
        tops[0].rename(into)


def clone_directory() -> Path | None:
    value = os.environ.get("MICROPYTHON_DIR", "").strip()
    return Path(value).expanduser().resolve() if value else None


def source_directory() -> Path:
    """Where MicroPython's sources lie: the clone that was named, or the unpacked packages."""
    return clone_directory() or SOURCE


def clone_state(clone: Path) -> str:
    """What a clone holds now, so that a change in it is noticed."""
    if not (clone / "ports" / "unix" / "Makefile").is_file():
        raise BuildError(f"MICROPYTHON_DIR={clone} is not a clone of MicroPython.")
    header = clone / "lib" / "mbedtls" / "include" / "mbedtls" / "build_info.h"
    if not header.is_file():
        raise BuildError(
            f"The clone has no lib/mbedtls: run `git -C {clone} submodule update --init "
            "lib/mbedtls lib/micropython-lib`."
        )
    match = re.search(r'MBEDTLS_VERSION_STRING\s+"([^"]+)"', header.read_text(encoding="utf-8"))
    check_mbedtls(version_numbers(match[1] if match else ""))
    config = (clone / "py" / "mpconfig.h").read_text(encoding="utf-8")
    parts = [
        match[1] if (match := re.search(rf"VERSION_{name}\s+(\d+)", config)) else "0"
        for name in ("MAJOR", "MINOR", "MICRO")
    ]
    minimum = VERSIONS["micropython"]["minimum"]
    if version_numbers(".".join(parts)) < version_numbers(minimum):
        raise BuildError(f"The clone is MicroPython {'.'.join(parts)}: it must be {minimum} on.")
    state = [str(clone)]
    for command in (["rev-parse", "HEAD"], ["diff", "HEAD"]):
        result = subprocess.run(["git", "-C", str(clone), *command], capture_output=True)
        state.append(hashlib.sha256(result.stdout).hexdigest())
    return text_hash(*state)


def make_source() -> str:
    """Make the sources ready; the answer is a hash that changes when they do."""
    clone = clone_directory()
    if clone:
        return clone_state(clone)
    stamp = read_stamp("source")
    pinned = text_hash(json.dumps(VERSIONS, sort_keys=True))
    if stamp.get("versions") == pinned and (SOURCE / "lib/mbedtls/library/ssl_tls.c").is_file():
        return stamp["hash"]
    micropython, mbedtls = fetch_debian()
    say("source: unpacking")
    unpack(micropython, SOURCE)
    unpack(mbedtls, SOURCE / "lib" / "mbedtls")
    (SOURCE / "lib" / "micropython-lib").mkdir(exist_ok=True)
    (SOURCE / "lib" / "micropython-lib" / "README.md").touch()
    made = text_hash(file_hash(micropython), file_hash(mbedtls))
    write_stamp("source", {"versions": pinned, "hash": made})
    names = (path.name.split(".orig")[0].replace("_", " ") for path in (micropython, mbedtls))
    say(f"source: {' and '.join(names)}")
    return made


# ------------------------------------------------------------------------------ umqtt.simple


def make_umqtt() -> str:
    """umqtt/simple.py as the ESP32's own build freezes it; the answer is its hash."""
    pin = VERSIONS["umqtt_simple"]
    target = UMQTT / "umqtt" / "simple.py"
    stamp = read_stamp("umqtt")
    if stamp.get("sdist") == pin["sdist_sha256"] and target.is_file():
        return file_hash(target)
    try:
        from pypi_simple import PyPISimple
    except ImportError:
        raise BuildError(
            "The Python package pypi-simple is missing: run `make micropython`, which uses the "
            "virtual environment in build/venv."
        ) from None
    say(f"source: fetching {pin['project']} {pin['version']}")
    try:
        fetch_umqtt(PyPISimple, pin, target)
    except (OSError, ValueError) as why:  # what requests and pypi-simple raise
        raise BuildError(f"{pin['project']} could not be fetched: {one_line(why)}.") from None
    write_stamp("umqtt", {"sdist": pin["sdist_sha256"]})
    return file_hash(target)


def make_rescue_boot() -> Path:
    """boot.py under the name by which it is frozen: one called boot.py would go before a file."""
    content = (ROOT / "boot.py").read_bytes()
    if not RESCUE_BOOT.is_file() or RESCUE_BOOT.read_bytes() != content:
        RESCUE_BOOT.parent.mkdir(parents=True, exist_ok=True)
        RESCUE_BOOT.write_bytes(content)
    return RESCUE_BOOT


def fetch_umqtt(client_type: Any, pin: dict[str, str], target: Path) -> None:
    """The one file of the sdist that is frozen, whole or not at all."""
    with client_type() as client, tempfile.TemporaryDirectory(dir=WORK) as directory:
        page = client.get_project_page(pin["project"])
        packages = [
            p for p in page.packages if p.version == pin["version"] and p.package_type == "sdist"
        ]
        if not packages:
            raise BuildError(f"{pin['project']} {pin['version']} is not to be had any more.")
        archive = Path(directory) / "sdist.tar.gz"
        client.download_package(packages[0], archive, verify=True)
        if file_hash(archive) != pin["sdist_sha256"]:
            raise BuildError(f"{pin['project']} is not the file that versions.toml pins.")
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                if member.name.endswith("/umqtt/simple.py"):
                    content = tar.extractfile(member)
                    break
            else:
                content = None
            if content is None:
                raise BuildError(f"{pin['project']} holds no umqtt/simple.py.")
            target.parent.mkdir(parents=True, exist_ok=True)
            new = target.with_suffix(".new")
            new.write_bytes(content.read())
            new.replace(target)


# ------------------------------------------------------------------------------------ make


def need_tools(force_32bit: bool) -> None:
    missing = [name for name in ("make", "gcc") if not shutil.which(name)]
    if missing:
        raise BuildError(f"{' and '.join(missing)} missing: run `apt-get install build-essential`.")
    if force_32bit:
        test = subprocess.run(
            ["gcc", "-m32", "-x", "c", "-", "-o", "/dev/null"],
            input='#include <stdio.h>\nint main(void) { return puts("") < 0; }\n',
            text=True,
            capture_output=True,
        )
        if test.returncode != 0:
            raise BuildError(
                "gcc cannot build 32-bit programs here: run `apt-get install gcc-multilib`."
            )


UNTAKEN_BY_MAKE = re.compile(r"[^A-Za-z0-9_./+,@=~-]")


def plain_root() -> Path:
    """The tree by a path that make takes: where its own has a blank, a link without one.

    The link's name is the same each time, so that make finds again what it built.
    """
    if not UNTAKEN_BY_MAKE.search(str(ROOT)):
        return ROOT
    name = f"outpost-{os.getuid()}-{text_hash(str(ROOT))[:12]}"
    link = Path(tempfile.gettempdir()) / name
    try:
        if not link.is_symlink():
            link.symlink_to(ROOT)
        if link.lstat().st_uid != os.getuid() or os.readlink(link) != str(ROOT):
            raise OSError
    except OSError:
        raise BuildError(
            f"make cannot build in {ROOT}, and {link} cannot stand in for it: "
            "move the tree to a path without blanks."
        ) from None
    return link


def plain(path: Path | str) -> str:
    """A path of ours, or of MicroPython's clone, as make is told it."""
    text = str(path)
    if text == str(ROOT) or text.startswith(f"{ROOT}/"):
        text = str(plain_root()) + text.removeprefix(str(ROOT))
    if UNTAKEN_BY_MAKE.search(text):
        raise BuildError(f"make cannot build with {text}: move it to a path without blanks.")
    return text


def jobs() -> int:
    asked = os.environ.get("OUTPOST_JOBS", "")
    if asked and not asked.isdigit():
        raise BuildError(f"OUTPOST_JOBS={asked} is not a number of jobs.")
    return int(asked or 0) or os.cpu_count() or 1


def make_command(directory: Path, arguments: list[str]) -> list[str]:
    python = f"PYTHON={plain(sys.executable)}"
    return ["make", f"-j{jobs()}", "-C", plain(directory), python, *arguments]


def make_environment() -> dict[str, str]:
    # What a surrounding make passes down is not meant for this one.
    kept = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    # MicroPython asks git for its version: the repository around build/ is not its own.
    return {**kept, "GIT_CEILING_DIRECTORIES": str(WORK)}


def run_make(label: str, directory: Path, arguments: list[str], log: Path) -> None:
    """Run make, show how far it is, keep everything it printed in a log."""
    command = make_command(directory, arguments)
    live = sys.stdout.isatty()
    done = 0
    started = shown = time.monotonic()
    tail: list[str] = []
    with log.open("w", encoding="utf-8") as kept:
        kept.write(shlex.join(command) + "\n")
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=make_environment(),
        )
        assert process.stdout is not None
        for line in process.stdout:
            kept.write(line)
            tail = [*tail[-19:], line.rstrip()]
            if line.startswith("CC "):
                done += 1
                now = time.monotonic()
                if now - shown > (0.2 if live else 10):
                    shown = now
                    print(f"{label}: {done} files compiled", end="\r" if live else "\n", flush=True)
    if process.wait() != 0:
        say("\n".join(tail))
        raise BuildError(f"{label} did not build: the whole output is in {log.relative_to(ROOT)}.")
    say(f"{label}: {done} files compiled in {time.monotonic() - started:.0f} s")


def install(built: Path, name: str) -> None:
    BIN.mkdir(parents=True, exist_ok=True)
    new = BIN / f".{name}.new"
    shutil.copy2(built, new)
    new.replace(BIN / name)


def make_mpy_cross(source_hash: str) -> str:
    inputs = text_hash(source_hash, "mpy-cross-1")
    if read_stamp("mpy-cross").get("inputs") == inputs and (BIN / "mpy-cross").is_file():
        return inputs
    need_tools(force_32bit=False)
    build = WORK / "mpy-cross"
    shutil.rmtree(build, ignore_errors=True)
    build.mkdir(parents=True)
    run_make(
        "mpy-cross",
        source_directory() / "mpy-cross",
        [f"BUILD={plain(build)}"],
        WORK / "mpy-cross.log",
    )
    install(build / "mpy-cross", "mpy-cross")
    write_stamp("mpy-cross", {"inputs": inputs})
    return inputs


def variant_arguments(variant: Variant, build: Path) -> list[str]:
    arguments = [
        f"BUILD={plain(build)}",
        f"MICROPY_MPYCROSS={plain(BIN / 'mpy-cross')}",
        f"MICROPY_MPYCROSS_DEPENDENCY={plain(BIN / 'mpy-cross')}",
        f"VARIANT_DIR={plain(FIRMWARE / 'virtual')}",
        f"OUTPOST_LEG={variant.leg}",
        f'MBEDTLS_CONFIG_FILE=\\"mbedtls_config_{variant.leg}.h\\"',
        "PROG=micropython",
        "MICROPY_STANDALONE=0",
        "MICROPY_PY_FFI=0",
        "MICROPY_PY_BTREE=0",
        "MICROPY_SSL_AXTLS=0",
        "MICROPY_SSL_MBEDTLS=1",
    ]
    if variant.leg == "outpost":
        arguments.append(f"USER_C_MODULES={plain(FIRMWARE / 'modules')}")
        arguments.append("TLSPOLICY_CLOCK=board_mbedtls_time")
    if variant.force_32bit:
        arguments.append("MICROPY_FORCE_32BIT=1")
    return arguments


def make_variant(variant: Variant, source_hash: str, mpy_cross: str, umqtt: str) -> None:
    build = WORK / variant.name
    arguments = variant_arguments(variant, build)
    # What make does not follow by itself: then everything is built anew.
    makefiles = sorted(FIRMWARE.rglob("*.mk"))
    base = text_hash(
        source_hash, mpy_cross, *arguments, *(f"{p.name} {file_hash(p)}" for p in makefiles)
    )
    library = ROOT / "lib" / "outpost"
    roots = [FIRMWARE] + ([library] if library.is_dir() and variant.leg == "outpost" else [])
    files = file_hashes(*roots)
    if variant.leg == "outpost":
        files |= file_hashes(make_rescue_boot().parent)
    inputs = text_hash(base, umqtt, json.dumps(files, sort_keys=True))
    stamp = read_stamp(variant.name)
    if stamp.get("inputs") == inputs and (BIN / variant.name).is_file():
        return
    if not (FIRMWARE / "virtual" / "mpconfigvariant.mk").is_file():
        raise BuildError("firmware/virtual/mpconfigvariant.mk is missing from this tree.")
    need_tools(variant.force_32bit)
    if stamp.get("base") != base:
        shutil.rmtree(build, ignore_errors=True)
    build.mkdir(parents=True, exist_ok=True)
    write_stamp(variant.name, {"base": base})
    # make goes by the time of a file, which a copy or a checkout may set back: what has another
    # content than in the last build counts as new, and until this one is done as not built.
    built = f"{variant.name}-files"
    known = read_stamp(built)
    changed = [path for path, digest in files.items() if known.get(path) != digest]
    write_stamp(built, {path: known[path] for path in files if path not in changed})
    if any(path.endswith(".py") for path in changed):
        shutil.rmtree(build / "frozen_mpy", ignore_errors=True)
        (build / "frozen_content.c").unlink(missing_ok=True)
    run_make(
        variant.name,
        source_directory() / "ports" / "unix",
        [*arguments, *(word for path in changed for word in ("-W", plain(path)))],
        WORK / f"{variant.name}.log",
    )
    install(build / "micropython", variant.name)
    write_stamp(built, files)
    write_stamp(variant.name, {"base": base, "inputs": inputs})


def link_release() -> None:
    """Put the release leg's board beside the others, by a link that moves with the tree."""
    program = FIRMWARE / "virtual" / "release" / "board"
    if not os.access(program, os.X_OK):
        raise BuildError(f"{program.relative_to(ROOT)} is missing from this tree, or cannot run.")
    target = os.path.relpath(program, BIN)
    link = BIN / RELEASE
    if link.is_symlink() and os.readlink(link) == target:
        return
    BIN.mkdir(parents=True, exist_ok=True)
    new = BIN / f".{RELEASE}.new"
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)


def build(names: list[str]) -> None:
    wanted = set(names)
    with one_at_a_time():
        if RELEASE in wanted:
            link_release()
        if wanted == {RELEASE}:
            return
        source = make_source()
        if wanted == {"source"}:
            return
        mpy_cross = make_mpy_cross(source)
        variants = [VARIANTS[name] for name in VARIANTS if name in wanted]
        umqtt = make_umqtt() if variants else ""
        for variant in variants:
            make_variant(variant, source, mpy_cross, umqtt)


STRICT = ("-Wall", "-Wextra", "-Werror", "-Wunused-parameter", "-fsyntax-only")


def lint() -> None:
    """Check our C with every warning an error, as each binary compiles it (64 and 32 bits)."""
    sources = sorted([*FIRMWARE.glob("modules/**/*.c"), *FIRMWARE.glob("virtual/*.c")])
    ours = [plain(path) for path in sources]
    bad: list[str] = []
    with one_at_a_time():
        for variant in VARIANTS.values():
            command = make_command(
                source_directory() / "ports" / "unix",
                [*variant_arguments(variant, WORK / variant.name), "V=1", "-n"],
            )
            command += [word for path in ours for word in ("-W", path)]
            shown = subprocess.run(command, capture_output=True, text=True, env=make_environment())
            checked = 0
            for line in shown.stdout.splitlines():
                words = shlex.split(line.split("||")[0]) if " -c " in line else []
                if not words or words[-1] not in ours:
                    continue
                at = words.index("-o")
                # MicroPython's own headers are not ours to judge.
                words = [f"-isystem{w[2:]}" if w.startswith("-I.") else w for w in words]
                check = [*words[:at], *words[at + 2 :], *STRICT]
                result = subprocess.run(check, cwd=source_directory() / "ports" / "unix")
                checked += 1
                if result.returncode != 0:
                    bad.append(f"{Path(words[-1]).name} in {variant.name}")
            if checked == 0:
                raise BuildError(f"no file of ours was checked: build {variant.name} first.")
            say(f"{variant.name}: {checked} C files checked")
    if bad:
        raise BuildError(f"warnings in {', '.join(bad)}.")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Builds MicroPython for the host into build/.",
        epilog="example: python3 firmware/build.py --only outpost32",
    )
    parser.add_argument("--only", nargs="+", choices=STEPS, metavar="NAME", help=", ".join(STEPS))
    parser.add_argument("--lint", action="store_true", help="check our C, compile nothing")
    options = parser.parse_args()
    try:
        if options.lint:
            lint()
        else:
            build(options.only or list(STEPS))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        # No room, no rights, a folder in the way: the system's own words say it best.
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror or one_line(error)}{where}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
