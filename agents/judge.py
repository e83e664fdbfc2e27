"""Whether two free answers say the same: where no rule can tell, a model does.

Numbers, sets and texts are made equal by the task's `normalise`, which costs nothing; a judge is
for answers whose wordings differ, such as sentences.
"""

from dataclasses import dataclass
from typing import Protocol

from agents.overseer import Desk
from agents.prompts import same_prompt, yes_in
from agents.types import ChatRequest, Sampling


class Equivalence(Protocol):
    """Tells whether two answers to a question are one."""

    async def same(self, desk: Desk, question: str, one: str, other: str) -> bool:
        """Are these the same answer? Asked only where their texts differ.

        Raises:
            EndpointError: a model that it needs does not answer.
        """
        ...


@dataclass(frozen=True)
class Judge:
    """A model that compares two answers. Where it says neither yes nor no, they differ: a vote is
    then asked too many, and no wrong answer is taken for a right one."""

    model: str = ""
    """X where empty."""
    max_tokens: int = 16

    async def same(self, desk: Desk, question: str, one: str, other: str) -> bool:
        """Ask once, greedily."""
        sampling = Sampling(max_tokens=self.max_tokens)
        prompt = same_prompt(question, one, other)
        reply = await desk.ask(ChatRequest(self.model or desk.model, prompt, sampling))
        return yes_in(reply.text) is True
