"""A board's software called from a test, piece by piece, over its flash image.

It owns no file but a script in a folder of its own. The image must not be in use by a board.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from legs import BIN, LEGS

TAIL = """
import json as _json
def tell(**facts):
    print("TOLD " + _json.dumps({k: v.hex() if isinstance(v, bytes) else v
                                 for k, v in facts.items()}))
"""


class Calls:
    """`run(script)` gives what the script told by tell(name=value); `.printed` has all of it."""

    def __init__(self, flash: Path, leg: str) -> None:
        self.flash, self.leg = flash, leg
        self.printed = ""

    def run(self, script: str, *options: str) -> dict:
        with tempfile.TemporaryDirectory(prefix="outpost-calls-") as folder:
            path = Path(folder) / "script.py"
            path.write_text(TAIL + script)
            command = [str(BIN / self.leg), "-X", f"heapsize={LEGS[self.leg]}"]
            command += ["--flash", str(self.flash), *options, str(path)]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        self.printed += done.stdout + done.stderr
        if done.returncode not in (0, 73):  # 73: the power was cut, as asked
            raise AssertionError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        told: dict = {}
        for line in done.stdout.splitlines():
            if line.startswith("TOLD "):
                told |= json.loads(line[5:])
        return told

    def csr(self, *arguments: str) -> bytes:
        script = f"from outpost import provision\ntell(csr=provision.csr({', '.join(arguments)}))"
        return bytes.fromhex(self.run(script)["csr"])

    def install(self, chain: bytes, now: int | None = None, *options: str) -> str:
        """The sentence of the refusal; empty where it was taken."""
        script = f"""
from outpost import provision
from outpost.errors import IdentityError
try:
    provision.install(bytes.fromhex({chain.hex()!r}), {now})
    tell(refused="")
except IdentityError as e:
    tell(refused=str(e))
"""
        return self.run(script, *options).get("refused", "the power went")

    def born(self) -> bytes:
        script = "from outpost import provision\ntell(born=provision.born())"
        return bytes.fromhex(self.run(script)["born"])
