"""What an operator does to one device through the hub: calls, messages, its twin.

It owns nothing; the hub is the test's.
"""

from __future__ import annotations

from typing import Any

from hubs import eventually
from outpost_tools.hub import Hub


class Operator:
    def __init__(self, hub: Hub, device_id: str) -> None:
        self.core = hub.core
        self.device_id = device_id

    def invoke(self, name: str, payload: Any = None, timeout_s: float = 20) -> tuple[int, Any]:
        return self.core.wait(
            self.core.invoke_method(self.device_id, name, payload, 60, timeout_s), 120
        )

    def send(self, body: bytes, **options: Any) -> str:
        command = self.core.wait(self.core.send_command(self.device_id, body, **options))
        return command.message_id

    def waiting(self) -> list[str]:
        found = self.core.wait(self.core.commands_waiting(self.device_id))
        return [command.message_id for command in found]

    def all_taken(self, timeout_s: float = 30) -> bool:
        return bool(eventually(lambda: not self.waiting(), timeout_s))

    def desire(self, patch: dict[str, Any]) -> None:
        self.core.wait(self.core.twin_patch(self.device_id, desired=patch))

    def reported(self) -> dict[str, Any]:
        twin = self.core.wait(self.core.twin_get(self.device_id))
        return {name: value for name, value in twin.reported.items() if name[0] != "$"}

    def until_reported(self, timeout_s: float = 30, **wanted: Any) -> dict[str, Any]:
        """The reported properties, once they hold all of `wanted`; else what there was."""
        eventually(lambda: wanted.items() <= self.reported().items(), timeout_s)
        return self.reported()
