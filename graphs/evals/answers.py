"""One evaluated answer as a record: right or wrong, confidence and cost.

Everything but rightness is read from the trajectory, so a replay gives the same record.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reflux.agents.budget import Price
from reflux.graphs.amplify.direct_answer import step_and_retries
from reflux.graphs.ask_options import Origin
from reflux.graphs.evals.eval_task import EvalTask
from reflux.graphs.traces.store import TraceStore, chains
from reflux.graphs.traces.tree import Node, load_tree

CERTAIN = math.inf
"""Confidence of a part that adds no doubt."""
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


def confidence(store: TraceStore, root_id: str, root: Node) -> float | None:
    """How confident the answer at the root is, 0 to 1; None where the log doesn't tell.

    An answer is as confident as its least confident part:

        several votes     the share of the votes that the answer has
        several experts   the share of experts that agree
        one copy          the probability of its least certain token
        a combination     the least confident part of the last attempt
        external graph    the `confidence` that it returned

    The overseer's own answers and tools add no doubt. Where a part is unknown, so is the whole.
    """
    if root.answer is None:
        return None
    logprobs: dict[tuple[str, int, int], float | None] = {}
    for row in store.select(
        "SELECT path, step, attempt, logprobs FROM calls WHERE question=? AND error IS NULL AND "
        "kind='model' AND role LIKE 'answer%' ORDER BY id",
        (root_id,),
    ):
        tokens: list[list[Any]] = json.loads(row["logprobs"] or "[]")
        key = (row["path"], row["step"], row["attempt"])
        logprobs[key] = min((token[1] for token in tokens), default=None)
    direct: dict[str, tuple[str | None, float | None]] = {}
    stated: float | None = None
    for row in store.select(
        "SELECT path, kind, key, detail FROM judgements WHERE question=? AND "
        "(kind='direct' OR (kind='outcome' AND path='')) ORDER BY id",
        (root_id,),
    ):
        detail = json.loads(row["detail"])
        if row["kind"] == "direct":
            logprob = logprobs.get((row["path"], *step_and_retries(row["key"])))
            direct[row["path"]] = detail["answer"], _of_direct(detail, logprob)
        else:
            stated = detail.get("confidence")
    value = _of_node(root, direct) if stated is None else stated
    return None if value == CERTAIN else value


def _of_node(node: Node, direct: Mapping[str, tuple[str | None, float | None]]) -> float | None:
    """Confidence of a subtree; `direct` holds the newest direct (answer, confidence) by path."""
    if node.path in direct:
        answer, value = direct[node.path]
        if not node.children or answer == node.answer:
            return value
    if not node.children:
        return CERTAIN if node.answered_by == "H" else None
    last = max(map(_attempt, node.children))
    parts = [_of_node(child, direct) for child in node.children if _attempt(child) == last]
    known = [part for part in parts if part is not None]
    return min(known) if len(known) == len(parts) else None


def _of_direct(detail: Mapping[str, Any], logprob: float | None) -> float | None:
    if "disagreement" in detail:
        return 1.0 - detail["disagreement"]
    votes = detail.get("votes", 0)
    if votes == 0:
        return CERTAIN  # A tool.
    if votes > 1:
        return dict(detail.get("tally", ())).get(detail["answer"], 0) / votes
    return None if logprob is None else math.exp(min(0.0, logprob))


def _attempt(child: Node) -> int:
    """The parent's attempt with which the last part of a node's path begins."""
    return int(child.path.rpartition("/")[2].split(".")[0])
