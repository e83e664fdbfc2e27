"""Experts: several models, adapters or personas on one question, and one answer of theirs.

Implements the seed's 8.4.1 (aggregation). Every expert's answer is recorded, and how far they
disagree: what they share no vote can mend.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from reflux.agents.types import ChatRequest, Completion, Sampling
from reflux.graphs.traces.store import TraceStore


@dataclass(frozen=True)
class Expert:
    """Who answers in place of a plain copy of X."""

    name: str
    model: str = ""
    """The endpoint's name of its model or adapter; X where empty."""
    system: str = ""
    """Its persona, as the system message; the context's where empty."""
    weight: float = 1.0
    """Of its vote, where votes are weighted."""


@dataclass(frozen=True)
class Said:
    """What one expert answered."""

    expert: Expert
    text: str
    """Normalised."""
    ok: bool
    """False where the check refused it: it has no vote."""


class Asker(Protocol):
    """Makes one recorded call on behalf of a combiner."""

    async def __call__(self, request: ChatRequest) -> Completion: ...


class Combiner(Protocol):
    """Makes one answer of several."""

    async def combine(self, question: str, said: Sequence[Said], ask: Asker) -> str | None:
        """The answer, or None where nobody's passed the check."""
        ...


@dataclass(frozen=True)
class Vote:
    """The most frequent answer, or the heaviest by the experts' weights; among equals the first."""

    weighted: bool = False

    async def combine(self, question: str, said: Sequence[Said], ask: Asker) -> str | None:
        """Count; no model is asked."""
        totals = weigh(said, self.weighted)
        return max(totals, key=lambda text: totals[text]) if totals else None


CONSENSUS = """\
Several experts answered one question. Find what most of them say, and answer with that alone: \
no new claims, no mention of the experts.

Question: {question}

{answers}

Consensus:"""


@dataclass(frozen=True)
class Consensus:
    """A model finds what free-form answers agree on (universal self-consistency, 2311.17311).

    Where all say the same, nobody is asked.
    """

    model: str = ""
    """X where empty."""
    max_tokens: int = 256

    async def combine(self, question: str, said: Sequence[Said], ask: Asker) -> str | None:
        """Ask the model once, greedily."""
        texts = [one.text for one in said if one.ok]
        if len(set(texts)) < 2:
            return texts[0] if texts else None
        answers = "\n\n".join(f"Expert {i}: {text}" for i, text in enumerate(texts, start=1))
        prompt = CONSENSUS.format(question=question, answers=answers)
        request = ChatRequest(
            self.model, (("system", ""), ("user", prompt)), Sampling(max_tokens=self.max_tokens)
        )
        return (await ask(request)).text.strip() or None


def weigh(said: Sequence[Said], weighted: bool = False) -> dict[str, float]:
    """Weight of each answer that passed the check, in order of appearance."""
    totals: dict[str, float] = {}
    for one in said:
        if one.ok:
            totals[one.text] = totals.get(one.text, 0.0) + (one.expert.weight if weighted else 1.0)
    return totals


def disagreement(said: Sequence[Said]) -> float:
    """Share of the votes that are not for the most frequent answer, 0 to 1; refused ones differ
    from all."""
    if not said:
        return 0.0
    max_votes = max(weigh(said).values(), default=0.0)
    return 1.0 - max_votes / len(said)


PAST_PANELS = (
    "SELECT j.detail FROM judgements j JOIN questions q ON q.id = j.question"
    " WHERE j.kind='panel' AND q.revises IS NULL ORDER BY j.id"
)
"""A revision's panels are those of the trajectory that it revises."""


def past_answers(store: TraceStore) -> Iterator[tuple[str, Mapping[str, str], str | None]]:
    """(question, answers by expert, combined answer) of every recorded panel, in order."""
    for row in store.select(PAST_PANELS):
        detail: dict[str, Any] = json.loads(row["detail"])
        yield detail["question"], detail["answers"], detail["answer"]


def learned_weights(
    past: Iterable[tuple[Mapping[str, str], str]], prior: float = 1.0
) -> dict[str, float]:
    """Weights by past accuracy: the log-odds that an expert is right, the optimal weights of
    independent voters (Nitzan and Paroush 1982); never below zero.

    Args:
        past: (answers by expert, the right or accepted answer) of earlier questions.
        prior: right and wrong answers that each expert is granted from the start.
    """
    right: dict[str, float] = {}
    asked: dict[str, float] = {}
    for answers, truth in past:
        for name, text in answers.items():
            asked[name] = asked.get(name, 0.0) + 1.0
            right[name] = right.get(name, 0.0) + (text == truth)
    return {
        name: max(0.0, math.log((right[name] + prior) / (asked[name] - right[name] + prior)))
        for name in asked
    }
