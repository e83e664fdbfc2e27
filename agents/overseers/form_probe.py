"""Which form of replies a model keeps when it is asked to divide a question: JSON or lines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from reflux.agents.budget import Budget
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.types import Ask, ChatClient, ChatRequest, Completion, Exchange

QUESTIONS = (
    ("What are the capitals of Italy and Chile?", ("Italy", "Chile")),
    ("Which river is longer, the Rhine or the Danube?", ("Rhine", "Danube")),
)
"""Two questions that anybody divides, and what their sub-questions have to name."""
FORMS: tuple[Literal["json", "lines"], ...] = ("json", "lines")


@dataclass
class _OneStep:
    """The context of a first step whose calls are not recorded."""

    client: ChatClient
    model: str
    question: str
    transcript: Sequence[Exchange] = ()
    may_ask: bool = True
    path: str = ""
    attempt: int = 0
    asked: Sequence[str] = ()
    tools: Mapping[str, str] = field(default_factory=dict[str, str])
    budget: Budget = field(default_factory=lambda: Budget(1, 10_000))

    async def complete(self, request: ChatRequest) -> Completion:
        return await self.client.complete(request)

    def members(self, count: int) -> Sequence["_OneStep"]:
        return [self] * count


async def forms_kept(client: ChatClient, model: str) -> dict[str, int]:
    """How many of `QUESTIONS` the model divides at its first reply, by the form that it is asked
    for.

    Raises:
        EndpointError: no reply after every retry.
    """
    kept: dict[str, int] = dict.fromkeys(FORMS, 0)
    for form in FORMS:
        overseer = ModelOverseer(form=form, max_tries=1)
        for question, names in QUESTIONS:
            step = await overseer.act(_OneStep(client, model, question))
            texts = [sub.text for sub in step.subquestions] if isinstance(step, Ask) else []
            divides = len(texts) > 1 and all(any(name in text for text in texts) for name in names)
            kept[form] += divides
    return kept


def recommended(kept: dict[str, int]) -> str:
    """The form that the model keeps more often, JSON if it keeps both; empty if it keeps none."""
    best = max(FORMS, key=lambda form: kept[form])
    return best if kept[best] else ""
