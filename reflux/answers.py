"""What an answer to a chat request says, piece by piece and as a whole."""

import secrets
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agents.streaming import Delta
from agents.types import Completion
from finetune.run_folder import OpenRun
from graphs.events import Event
from graphs.systems import Asked
from reflux.openai_api import ChatRequest


@dataclass(frozen=True)
class Reply:
    """The whole answer: its choices, and the tokens that all of it took."""

    choices: Sequence[Completion]
    prompt_tokens: int
    completion_tokens: int
    streamed: bool = False
    """Whether its text was said in pieces already."""


Said = str | tuple[int, Delta] | Reply
"""A thought, a piece of the choice at a position, and last the reply."""
Emit = Callable[[Event], None]


def asked_anew(run: OpenRun, task: str = "") -> Asked:
    """Where a served question comes from: each is a trajectory of its own."""
    return Asked(run.folder.name, -1, f"serve-{uuid.uuid4().hex[:12]}", task, "asked")


def seed_of(request: ChatRequest) -> int:
    """The seed that is given; where replies are drawn and none is, one that is drawn, too."""
    if request.seed is not None:
        return request.seed
    return secrets.randbelow(2**31) if request.temperature else 0
