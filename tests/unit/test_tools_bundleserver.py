"""The server of files: ranges to the byte, nothing outside what it is to serve, and the command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest
import requests
from hubs import roots_file
from outpost_tools.bundleserver import (
    BundleServer,
    development_context,
    of_folder,
    of_mapping,
    recovery_path,
)
from outpost_tools.errors import OutpostError

DATA = bytes(range(256)) * 20
PROGRAM = os.path.join(os.path.dirname(sys.executable), "outpost")


@pytest.fixture
def ask(tmp_path):
    roots = str(roots_file(tmp_path / "data"))
    context = development_context(tmp_path / "data", ["localhost"])
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "b.bin").write_bytes(DATA)
    (tmp_path / "secret.bin").write_bytes(b"not yours")
    read = of_folder(tmp_path / "files")
    with BundleServer(read, context) as server, requests.Session() as session:

        def get(path, span=None, method="GET"):
            headers = {"Range": span} if span else {}
            # As it is written, dots and all.
            request = requests.Request(method, f"https://localhost:{server.port}/", headers)
            prepared = session.prepare_request(request)
            prepared.url = f"https://localhost:{server.port}{path}"
            return session.send(prepared, verify=roots, timeout=10)

        yield get


def test_ranges_are_exact(ask):
    whole = ask("/b.bin")
    assert whole.status_code == 200 and whole.content == DATA
    part = ask("/b.bin", "bytes=100-299")
    assert part.status_code == 206 and part.content == DATA[100:300]
    assert part.headers["Content-Range"] == f"bytes 100-299/{len(DATA)}"
    assert part.headers["Content-Length"] == "200"
    end = ask("/b.bin", f"bytes={len(DATA) - 10}-{len(DATA) + 900}")
    assert end.content == DATA[-10:]
    assert end.headers["Content-Range"].endswith(f"-{len(DATA) - 1}/{len(DATA)}")
    assert ask("/b.bin", "bytes=10-").content == DATA[10:]
    assert ask("/b.bin", f"bytes={len(DATA)}-").status_code == 416
    assert ask("/b.bin", "bytes=20-10").status_code == 416
    # Another unit or several ranges: all of it, as RFC 9110 allows.
    assert ask("/b.bin", "bytes=0-1,5-6").status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/none", "/../secret.bin", "/%2e%2e/secret.bin", "/..%2fsecret.bin", "//etc/passwd"],
)
def test_nothing_else_is_served(ask, path):
    assert ask(path).status_code == 404
    assert ask("/b.bin", method="POST").status_code == 404


def test_link_that_leads_out_of_the_folder_is_not_followed(ask, tmp_path):
    (tmp_path / "files" / "link.bin").symlink_to(tmp_path / "secret.bin")
    assert ask("/link.bin").status_code == 404


def test_folder_that_is_not_there_and_port_in_use_are_said(tmp_path):
    with pytest.raises(OutpostError, match="is no folder"):
        of_folder(tmp_path / "none")
    roots_file(tmp_path / "data")
    context = development_context(tmp_path / "data", ["localhost"])
    with (
        BundleServer(of_mapping({}), context) as server,
        pytest.raises(OutpostError, match="in use by another program"),
    ):
        BundleServer(of_mapping({}), context, port=server.port).start()


def test_command_serves_a_bundle_at_the_recovery_path_until_it_is_told(tmp_path):
    bundle = tmp_path / "seven.bin"
    bundle.write_bytes(DATA)
    roots = str(roots_file(tmp_path / "data"))
    words = [PROGRAM, "trust", "serve", "--bundle", f"harbour & co={bundle}", "--port", "0"]
    words += ["--data", str(tmp_path / "data"), "--json"]
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process,
        contextlib.ExitStack() as ending,
    ):
        ending.callback(process.kill)
        assert process.stdout
        port = json.loads(process.stdout.readline())["port"]
        url = f"https://localhost:{port}{recovery_path('harbour & co')}"
        assert requests.get(url, verify=roots, timeout=10).content == DATA
        bundle.write_bytes(b"eight")
        assert requests.get(url, verify=roots, timeout=10).content == b"eight"
        asked = json.loads(process.stdout.readline())
        assert asked["event"] == "asked" and asked["status"] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to serve"),
        (["--bundle", "harbour"], "is not FLEET=FILE"),
        (["--bundle", "harbour=/nowhere"], "is not FLEET=FILE"),
        ([".", "--chain", "x.pem"], "go together"),
    ],
)
def test_command_says_what_is_wrong(words, said):
    done = subprocess.run([PROGRAM, "trust", "serve", *words], capture_output=True, text=True)
    assert done.returncode == 1 and said in done.stderr
