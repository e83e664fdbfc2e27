"""One evaluated answer as a record: right or wrong, confidence and cost.

Everything but rightness is read from the trajectory, so a replay gives the same record.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reflux.agents.budget import Price
from reflux.graphs.ask_options import Origin
from reflux.graphs.evals.eval_task import EvalTask
from reflux.graphs.recorded_confidence import confidence
from reflux.graphs.traces.store import TraceStore, chains
from reflux.graphs.traces.tree import Node, load_tree

Mark = Callable[[str, str | None], bool | None]
"""(question, answer) → right; None without a score."""


@dataclass(frozen=True)
class SeedResult:
    """The questions of one seed that a system answered, and where the answers are recorded."""

    seed: int
    origin: Origin
    questions: Sequence[str]


@dataclass(frozen=True)
class Answered:
    """A system's answer to one question."""

    system: str
    seed: int
    id: str
    """Of the question, the same for every system and for equivalent questions (hex, 16)."""
    question: str
    answer: str | None
    right: bool | None
    """None where the scorer or the judge gave no verdict."""
    status: str
    error: str | None
    confidence: float | None
    calls: int
    cached: int
    tokens: int
    seconds: float
    """Sum over the model calls. A cache hit counts the time of the call that it repeats, so that
    the order of the systems doesn't matter."""
    cost: float | None
    """Cache hits at full price, for the same reason; None where a model has no price."""
    depth: int
    trajectory: str


def answers_of(
    ledger: "Ledger", eval_task: EvalTask, system: str, result: SeedResult, mark: Mark
) -> Iterator[tuple[Answered, Node]]:
    """The record and the tree of each answer of one system and seed, in the order of the
    questions."""
    for question in result.questions:
        trajectory = result.origin.question_id(question)
        tree = load_tree(ledger.store, trajectory)
        text = f"{eval_task.name}:{eval_task.same_question(question)}"
        answer = Answered(
            system=system,
            seed=result.seed,
            id=hashlib.sha256(text.encode()).hexdigest()[:16],
            question=question,
            answer=tree.answer,
            right=mark(question, tree.answer),
            status=tree.status,
            error=tree.error,
            confidence=confidence(ledger.store, trajectory, tree),
            depth=max(node.path.count("/") for node in tree.walk()),
            trajectory=trajectory,
            **ledger.of(trajectory),
        )
        yield answer, tree


class Ledger:
    """Reads the cost of answers from the call log and the links of chains."""

    def __init__(self, store: TraceStore, prices: Mapping[str, Price]) -> None:
        self.store = store
        self.models: set[str] = set()
        """Names of the models that were called, as far as answers are read."""
        self._prices = prices

    def of(self, trajectory: str) -> dict[str, Any]:
        """`calls`, `cached`, `tokens`, `seconds` and `cost` of one tree."""
        spent: dict[str, Any] = {"calls": 0, "cached": 0, "tokens": 0, "seconds": 0.0}
        costs: list[float | None] = []
        for row in self.store.select(
            "SELECT kind, model, request_digest, prompt_tokens, completion_tokens, seconds, cached,"
            " CASE kind WHEN 'graph' THEN completion ->> 'calls' ELSE 1 END AS made FROM calls"
            " WHERE question=? AND error IS NULL AND kind IN ('model', 'graph') ORDER BY id",
            (trajectory,),
        ):
            spent["calls"] += row["made"]
            spent["cached"] += row["cached"]
            spent["tokens"] += row["prompt_tokens"] + row["completion_tokens"]
            if row["cached"]:
                spent["seconds"] += self._uncached_seconds.get(row["request_digest"], 0.0)
            else:
                spent["seconds"] += row["seconds"]
            self.models.add(row["model"])
            price = self._prices.get(row["model"])
            # Where an endpoint counts no tokens, or a graph's model is none of LangChain's, the
            # cost is unknown.
            counted = row["prompt_tokens"] + row["completion_tokens"] > 0
            costs.append(
                price.of(row["prompt_tokens"], row["completion_tokens"])
                if price and counted
                else None
            )
        # Links keep the sum of their tokens alone: their cost is known where a model charges
        # prompt and completion alike. Their time is unknown.
        for _, _, calls, tokens, model in chains(self.store, trajectory):
            spent["calls"] += calls
            spent["tokens"] += tokens
            self.models.add(model)
            price = self._prices.get(model)
            known = price is not None and price.prompt == price.completion
            costs.append(price.of(tokens, 0) if price and known else None)
        known_costs = [cost for cost in costs if cost is not None]
        return spent | {"cost": sum(known_costs, 0.0) if len(known_costs) == len(costs) else None}

    @cached_property
    def _uncached_seconds(self) -> Mapping[str, float]:
        """Seconds of the calls that cache hits repeat, by request digest."""
        rows = self.store.select(
            "SELECT request_digest, max(seconds) FROM calls WHERE"
            " kind='model' AND cached=0 AND error IS NULL GROUP BY request_digest"
        )
        return {digest: seconds for digest, seconds in rows}
