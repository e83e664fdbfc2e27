"""One evaluated question as a record: what was answered, whether it is right, what it cost.

Everything but rightness is read from the trajectory, so a replay gives the same record.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agents.purse import Price
from graphs.confidence import confidence
from graphs.exam import Exam
from graphs.links import chains
from graphs.state import Outcome
from graphs.systems import Asked
from graphs.traces import TraceStore
from graphs.tree import load_tree


@dataclass(frozen=True)
class Answered:
    """How one system did on one question."""

    system: str
    seed: int
    id: str
    """Of the question, the same for every system; equivalent questions share it (hex, 16)."""
    question: str
    answer: str | None
    right: bool
    status: str
    error: str | None
    confidence: float | None
    """0 to 1; see `graphs.confidence`. None where unknown."""
    calls: int
    """Model calls, those that the cache answered among them."""
    cached: int
    tokens: int
    seconds: float
    """Of the model calls, added up as if one followed another. A cached one counts what the call
    took that it repeats, so that it does not matter which system was asked first."""
    cost: float | None
    """At the prices given, cached calls at full price for the same reason; None where a model has
    no price."""
    depth: int
    """Levels of sub-questions; 0 where none were asked."""
    trajectory: str
    """Id of the tree, for `reflux traces show`."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


class Ledger:
    """Reads what answers cost from the call log of one run, and from the links of its chains."""

    def __init__(self, store: TraceStore, prices: Mapping[str, Price]) -> None:
        self._store = store
        self._prices = prices
        self._took: dict[str, float] | None = None

    def of(self, trajectory: str) -> dict[str, Any]:
        """`calls`, `cached`, `tokens`, `seconds` and `cost` of one tree."""
        spent: dict[str, Any] = {"calls": 0, "cached": 0, "tokens": 0, "seconds": 0.0, "cost": 0.0}
        for row in self._store.select(
            "SELECT kind, model, request_digest, prompt_tokens, completion_tokens, seconds, cached,"
            " CASE kind WHEN 'graph' THEN completion ->> 'calls' ELSE 1 END AS made FROM calls"
            " WHERE question=? AND error IS NULL AND kind IN ('model', 'graph') ORDER BY id",
            (trajectory,),
        ):
            spent["calls"] += row["made"]
            spent["cached"] += row["cached"]
            spent["tokens"] += row["prompt_tokens"] + row["completion_tokens"]
            took = self._first(row["request_digest"]) if row["cached"] else row["seconds"]
            spent["seconds"] += took
            price = self._prices.get(row["model"])
            if price is None:
                spent["cost"] = None
            elif spent["cost"] is not None:
                spent["cost"] += price.of(row["prompt_tokens"], row["completion_tokens"])
        self._add_links(trajectory, spent)
        return spent

    def _add_links(self, trajectory: str, spent: dict[str, Any]) -> None:
        """Votes on the links of chains. Of their tokens only the sum is kept, so that their cost is
        known where nothing of a model is charged for, or all of it alike; of their time nothing."""
        for _, _, calls, tokens, model in chains(self._store, trajectory):
            spent["calls"] += calls
            spent["tokens"] += tokens
            price = self._prices.get(model)
            if price is None or price.prompt != price.completion:
                spent["cost"] = None
            elif spent["cost"] is not None:
                spent["cost"] += price.of(tokens, 0)

    def _first(self, digest: str) -> float:
        """Seconds of the call that a cached one repeats."""
        if self._took is None:
            self._took = {
                row["request_digest"]: row["seconds"]
                for row in self._store.select(
                    "SELECT request_digest, max(seconds) AS seconds FROM calls WHERE"
                    " kind='model' AND cached=0 AND error IS NULL GROUP BY request_digest"
                )
            }
        return self._took.get(digest, 0.0)


def answers_of(
    ledger: Ledger,
    store: TraceStore,
    exam: Exam,
    system: str,
    seed: int,
    asked: Asked,
    questions: Sequence[str],
    outcomes: Sequence[Outcome],
) -> list[Answered]:
    """The records of one system and seed, in the order of the questions.

    Raises:
        RefluxError: the exam's marker failed.
    """
    return [
        _answered(ledger, store, exam, system, seed, asked, question, outcome)
        for question, outcome in zip(questions, outcomes, strict=True)
    ]


def _answered(
    ledger: Ledger,
    store: TraceStore,
    exam: Exam,
    system: str,
    seed: int,
    asked: Asked,
    question: str,
    outcome: Outcome,
) -> Answered:
    answer = outcome["answer"]
    trajectory = asked.question_id(question)
    tree = load_tree(store, trajectory)
    shared = f"{exam.name}:{exam.same_question(question)}"
    return Answered(
        system=system,
        seed=seed,
        id=hashlib.sha256(shared.encode()).hexdigest()[:16],
        question=question,
        answer=answer,
        right=answer is not None and exam.right(question, answer),
        status=outcome["status"],
        error=outcome["error"],
        confidence=confidence(store, trajectory, tree),
        depth=max(node.path.count("/") for node in tree.walk()),
        trajectory=trajectory,
        **ledger.of(trajectory),
    )
