"""The DTDL models in docs/model, held to Microsoft's parser as npm has it, and to main.py."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from legs import REPO

HERE = Path(__file__).parent / "dtdl"
MODELS = sorted((REPO / "docs" / "model").glob("*.json"))
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def parse():
    folder = REPO / "build" / "dtdl"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:  # tests run side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        for file in HERE.iterdir():
            shutil.copy(file, folder)
        if not (folder / "node_modules").exists():
            subprocess.run(
                [BIN / "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
                cwd=folder,
                check=True,
                capture_output=True,
                timeout=300,
            )

    def run(*models: Path) -> list[dict]:
        command = [BIN / "node", "check.mjs", *models]
        done = subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=120
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_every_model_is_one_that_microsofts_parser_takes(parse):
    assert MODELS
    for path, found in zip(MODELS, parse(*MODELS), strict=True):
        assert found["ok"], (path, found)


def test_parser_would_say_what_is_wrong(parse, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text(MODELS[0].read_text().replace('"integer"', '"integr"', 1))
    assert not parse(bad)[0]["ok"]


def test_model_is_what_the_example_implements_and_announces(parse):
    found = parse(REPO / "docs" / "model" / "board-1.json")[0]["named"]
    main = (REPO / "main.py").read_text()
    assert f'"{json.loads(MODELS[0].read_text())["@id"]}"' in main
    names = {kind: {n for k, n in found if k == kind} for kind, _ in found}
    assert set(re.findall(r'@device\.method\("(\w+)"\)', main)) == names["Command"]
    assert set(re.findall(r'@device\.desired\("(\w+)"\)', main)) <= names["Property"]
    sent = re.search(r"device\.send\((\{.*?\})\)", main, re.S)[1]
    assert set(re.findall(r'"(\w+)":', sent)) == names["Telemetry"]
