"""How sure a system was of an answer, out of what is logged; no model is asked.

An answer is as sure as the least sure thing that it is made of:

    several votes     the share of the votes that the answer has
    several experts   the share of them that agree
    one copy          the probability of its least certain token
    H's combination   the least sure of the parts that its last attempt asked for
    a foreign graph   the `confidence` that it returned

What H or a tool says alone brings no doubt of its own. Where part of this is unknown, so is the
whole.

One evaluated question as a record: what was answered, whether it is right, what it cost.

Everything but rightness is read from the trajectory, so a replay gives the same record.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from reflux.agents.budget import Price
from reflux.graphs.amplify.sampling import node_of_key
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Origin
from reflux.graphs.evals.eval_task import EvalTask
from reflux.graphs.traces.chain_links import chains
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node, load_tree

NO_DOUBT = math.inf
"""Of a part that nobody could have been unsure of."""


@dataclass
class _Logged:
    """What the log holds of the nodes of one tree, by path."""

    leaves: dict[str, tuple[Mapping[str, Any], int, int]] = field(
        default_factory=dict[str, tuple[Mapping[str, Any], int, int]]
    )
    """The newest judgement of a question answered without H, its step and its try."""
    least: dict[tuple[str, int, int], float | None] = field(
        default_factory=dict[tuple[str, int, int], float | None]
    )
    """Log-probability of the least certain token, by path, step and try."""
    stated: float | None = None


def confidence(store: TraceStore, root_id: str, root: Node) -> float | None:
    """How sure the answer at the root is, 0 to 1; None where nothing that is logged
    tells."""
    if root.answer is None:
        return None
    logged = _Logged()
    for row in store.select(
        "SELECT path, kind, key, detail FROM judgements WHERE question=? AND "
        "(kind='leaf' OR (kind='outcome' AND path='')) ORDER BY id",
        (root_id,),
    ):
        detail = json.loads(row["detail"])
        if row["kind"] == "outcome":
            logged.stated = detail.get("confidence")
            continue
        logged.leaves[row["path"]] = (detail, *node_of_key(row["key"]))
    if logged.stated is not None:
        return logged.stated
    for row in store.select(
        "SELECT path, step, attempt, logprobs FROM calls WHERE question=? AND error IS NULL AND "
        "kind='model' AND role LIKE 'answer%' ORDER BY id",
        (root_id,),
    ):
        tokens: list[list[Any]] = json.loads(row["logprobs"] or "[]")
        place = (row["path"], row["step"], row["attempt"])
        logged.least[place] = min((token[1] for token in tokens), default=None)
    found = _of(root, logged)
    return None if found is None or found == NO_DOUBT else found


def _of(node: Node, logged: _Logged) -> float | None:
    leaf = logged.leaves.get(node.path)
    if leaf is not None and (not node.children or leaf[0].get("answer") == node.answer):
        return _of_leaf(node.path, *leaf, logged)
    if not node.children:
        return NO_DOUBT if node.answered_by == "H" else None
    last = max(_attempt(child) for child in node.children)
    parts = [_of(child, logged) for child in node.children if _attempt(child) == last]
    known = [part for part in parts if part is not None]
    return min(known) if len(known) == len(parts) else None


def _of_leaf(
    path: str, detail: Mapping[str, Any], step: int, tried: int, logged: _Logged
) -> float | None:
    if "disagreement" in detail:
        return 1.0 - detail["disagreement"]
    votes = detail.get("votes", 0)
    if votes == 0:
        return NO_DOUBT  # A tool.
    if votes > 1:
        tally = dict(detail.get("tally", ()))
        return tally.get(detail["answer"], 0) / votes
    least = logged.least.get((path, step, tried))
    return None if least is None else math.exp(min(0.0, least))


def _attempt(child: Node) -> int:
    """The attempt at its parent that asked for a node: the last part of its path begins with it."""
    return int(child.path.rpartition("/")[2].split(".")[0])


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
    """0 to 1; see `reflux.graphs.evals.answers`. None where unknown."""
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
    eval_task: EvalTask,
    system: str,
    seed: int,
    asked: Origin,
    questions: Sequence[str],
    outcomes: Sequence[Outcome],
) -> list[Answered]:
    """The records of one system and seed, in the order of the questions.

    Raises:
        RefluxError: the exam's marker failed.
    """
    return [
        _answered(ledger, store, eval_task, system, seed, asked, question, outcome)
        for question, outcome in zip(questions, outcomes, strict=True)
    ]


def _answered(
    ledger: Ledger,
    store: TraceStore,
    eval_task: EvalTask,
    system: str,
    seed: int,
    asked: Origin,
    question: str,
    outcome: Outcome,
) -> Answered:
    answer = outcome["answer"]
    trajectory = asked.question_id(question)
    tree = load_tree(store, trajectory)
    shared = f"{eval_task.name}:{eval_task.same_question(question)}"
    return Answered(
        system=system,
        seed=seed,
        id=hashlib.sha256(shared.encode()).hexdigest()[:16],
        question=question,
        answer=answer,
        right=answer is not None and eval_task.right(question, answer),
        status=outcome["status"],
        error=outcome["error"],
        confidence=confidence(store, trajectory, tree),
        depth=max(node.path.count("/") for node in tree.walk()),
        trajectory=trajectory,
        **ledger.of(trajectory),
    )
