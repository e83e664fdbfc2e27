"""Several experts' answers to one question become one: by count, by weight, or by a model.

Implements section 8.4.1 of the AI Safety Atlas (aggregation).
"""

import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from reflux.agents.types import ChatRequest, Completion, Sampling


@dataclass(frozen=True)
class Expert:
    """A model or persona that answers in place of a plain copy of the agent."""

    name: str
    model: str = ""
    """The endpoint's name of its model or adapter; the agent where empty."""
    system: str = ""
    """Its persona, as the system message; the context's where empty."""
    weight: float = 1.0
    """Weight of its vote, where votes are weighted."""


@dataclass(frozen=True)
class ExpertAnswer:
    """One expert's answer."""

    expert: Expert
    text: str
    """Normalized."""
    ok: bool
    """False where the check refused it; it has no vote then."""


Asker = Callable[[ChatRequest], Awaitable[Completion]]
"""Makes one recorded call on behalf of a combiner."""


class Combiner(Protocol):
    """Makes one answer of several."""

    async def combine(
        self, question: str, answers: Sequence[ExpertAnswer], ask: Asker
    ) -> str | None:
        """The answer, or None where no answer passed the check."""
        ...


@dataclass(frozen=True)
class PluralityVote:
    """The most frequent answer, or the heaviest by the experts' weights; the first among equals."""

    weighted: bool = False

    async def combine(
        self, question: str, answers: Sequence[ExpertAnswer], ask: Asker
    ) -> str | None:
        totals = weigh(answers, self.weighted)
        return max(totals, key=lambda text: totals[text]) if totals else None


CONSENSUS = """\
Several experts answered one question. Find what most of them say, and answer with that alone: \
no new claims, no mention of the experts.

Question: {question}

{answers}

Consensus:"""


@dataclass(frozen=True)
class Consensus:
    """A model finds what free-form answers agree on (universal self-consistency, arXiv 2311.17311).

    Equal answers need no call.
    """

    model: str = ""
    """The agent where empty."""
    max_tokens: int = 256

    async def combine(
        self, question: str, answers: Sequence[ExpertAnswer], ask: Asker
    ) -> str | None:
        texts = [one.text for one in answers if one.ok]
        if len(set(texts)) < 2:
            return texts[0] if texts else None
        listed = "\n\n".join(f"Expert {i}: {text}" for i, text in enumerate(texts, start=1))
        prompt = CONSENSUS.format(question=question, answers=listed)
        request = ChatRequest(
            self.model, (("system", ""), ("user", prompt)), Sampling(max_tokens=self.max_tokens)
        )
        return (await ask(request)).text.strip() or None


def weigh(answers: Sequence[ExpertAnswer], weighted: bool = False) -> dict[str, float]:
    """Weight of each answer that passed the check, in order of appearance."""
    totals: defaultdict[str, float] = defaultdict(float)
    for one in answers:
        if one.ok:
            totals[one.text] += one.expert.weight if weighted else 1.0
    return totals


def disagreement(answers: Sequence[ExpertAnswer]) -> float:
    """Share of the answers that differ from the most frequent one, 0 to 1; refused ones differ from
    all."""
    if not answers:
        return 0.0
    agreeing = max(weigh(answers).values(), default=0.0)
    return 1.0 - agreeing / len(answers)


def learned_weights(
    past: Iterable[tuple[Mapping[str, str], str]], prior: float = 1.0
) -> dict[str, float]:
    """Weights by past accuracy: the log-odds that an expert is right, at least zero. They are the
    optimal weights of independent voters (Nitzan and Paroush 1982).

    Args:
        past: (answers by expert, the right or accepted answer) of earlier questions.
        prior: right and wrong answers that each expert starts with.
    """
    results: defaultdict[str, list[bool]] = defaultdict(list)
    for answers, truth in past:
        for name, text in answers.items():
            results[name].append(text == truth)
    return {
        name: max(0.0, math.log((each.count(True) + prior) / (each.count(False) + prior)))
        for name, each in results.items()
    }
