"""Tools: what a copy, or H, has done instead of guessing (seed 8.4.1, assistants)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agents.types import ToolSpec


@dataclass(frozen=True)
class ToolReply:
    """What a tool says. A refusal is a reply, too: the model that asked may do better."""

    text: str
    ok: bool = True
    """False where it could not be done; the text says why, for the model to read."""


class Tool(Protocol):
    """One thing that can be done on request."""

    @property
    def spec(self) -> ToolSpec:
        """Name, description and arguments, as a model sees them."""
        ...

    async def call(self, arguments: Mapping[str, Any]) -> ToolReply:
        """Do it with the arguments that a model gave, which may be anything."""
        ...

    async def answer(self, question: str) -> ToolReply:
        """Do it for a sub-question that H sent `to="tool:NAME"`, in plain text."""
        ...


Grants = Mapping[str, Sequence[Tool]]
"""Tools by role, `answer` (a copy of X) or `overseer`; a role that is not named has none."""
