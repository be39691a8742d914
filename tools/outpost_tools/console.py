"""What a device says on its console, read back: `SECONDS STAGE sentence key=value ...`.

It owns the counting of what one device sent and had acknowledged, and the facts of its last TLS
connection. It never decides anything.
"""

import re
from dataclasses import dataclass, field
from typing import Any

LINE = re.compile(r"\s*(?P<seconds>\d+\.\d+)\s+(?P<stage>\w+)\s+(?P<sentence>.*)")
FACT = re.compile(r"(\w+)=(\S+)")
SENT = re.compile(r"sent id=(\w+)(?!.* again=)")  # not what is sent once more
ACKED = re.compile(r"acked id=(\w+)")
TLS_FACTS = {
    "version": "tls",
    "cipher": "cipher",
    "mfl_asked": "mfl_asked",
    "mfl_granted": "mfl_granted",
    "tls_heap_peak": "tls_heap_peak",
    "tls_heap_steady": "tls_heap_steady",
    "root": "root",
    "rx": "handshake_rx",
    "tx": "handshake_tx",
    "ms": "handshake_ms",
}


@dataclass
class Tally:
    """One device's figures, kept up to date line by line."""

    device: str
    sent: int = 0
    acked: int = 0
    tls: dict[str, Any] = field(default_factory=dict)

    def take(self, text: str) -> None:
        match = LINE.fullmatch(text)
        if not match:
            return
        sentence = match["sentence"]
        if SENT.match(sentence):
            self.sent += 1
        elif ACKED.match(sentence):
            self.acked += 1
        elif match["stage"] == "tls" and "version=" in sentence:
            facts = {TLS_FACTS[k]: _value(v) for k, v in FACT.findall(sentence) if k in TLS_FACTS}
            for size in ("mfl_asked", "mfl_granted"):
                if facts.get(size) == 0:  # "not asked", "not granted"
                    facts[size] = None
            self.tls |= facts

    def summary(self, reboots: int) -> dict[str, Any]:
        names = ("tls", "cipher", "mfl_asked", "mfl_granted", "tls_heap_peak", "tls_heap_steady")
        return {
            "device": self.device,
            **{name: self.tls.get(name) for name in names},
            "sent": self.sent,
            "acked": self.acked,
            "reboots": reboots,
        }


def _value(text: str) -> Any:
    if text in ("none", "None", "null"):
        return None
    return int(text) if text.isdigit() else text


def together(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """One summary of several devices: sums, the largest memory, and what they have in common."""
    if len(summaries) == 1:
        return summaries[0]

    def common(name: str) -> Any:
        values = {summary[name] for summary in summaries}
        return values.pop() if len(values) == 1 else None

    def largest(name: str) -> Any:
        return max((s[name] for s in summaries if s[name] is not None), default=None)

    return {
        "device": ",".join(summary["device"] for summary in summaries),
        **{name: common(name) for name in ("tls", "cipher", "mfl_asked", "mfl_granted")},
        **{name: largest(name) for name in ("tls_heap_peak", "tls_heap_steady")},
        **{name: sum(s[name] for s in summaries) for name in ("sent", "acked", "reboots")},
        "devices": summaries,
    }
