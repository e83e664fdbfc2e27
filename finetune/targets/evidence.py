"""What the record knows of an answer beyond its text: votes, sub-answers, log-probabilities.

votes        each answer that got votes is a row, weighted by its share of them. Where sub-answers
             got the votes, a script says what follows from the others. Where the overseer is no
             script, the answer has the product of their shares, and the rest is not known.
sub-answers  the teacher's prompt is the question behind its sub-answers
log          the reply's tokens with their alternatives
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from reflux.agents.prompts import informed_prompt
from reflux.agents.types import Exchange
from reflux.finetune.configs.targets import TargetConfig
from reflux.finetune.data.rows import Row, reply_of
from reflux.finetune.targets.recombining import Recombiner, Shares
from reflux.graphs.amplify.state import is_usable
from reflux.graphs.evals.task import Task
from reflux.graphs.traces.database import Rows
from reflux.graphs.traces.revisions import before
from reflux.graphs.traces.tree import Node, load_tree

CHARS = 4_000
"""Of the sub-answers that a teacher reads, at most."""
LEAST_SHARE = 0.02
"""Share of the votes below which an answer is no row."""
LOGGED = """
SELECT completion, logprobs FROM calls WHERE question = ? AND path = ? AND kind = 'model'
  AND error IS NULL AND logprobs IS NOT NULL ORDER BY id
"""


def with_evidence(
    store: Rows, rows: Iterable[Row], targets: TargetConfig, task: Task | None = None
) -> Iterator[Row]:
    """Rows with what the targets need of their trajectories; with votes, more of them.

    Rows of files, and of what else the store does not hold, stay as they are.

    Args:
        task: whose scripts say what follows from other sub-answers.
    """
    for row in rows:
        again = Recombiner(task) if task is not None and row.task == task.name else None
        id, path = str(row.provenance.get("trajectory", "")), row.provenance.get("path") or ""
        if not id or not _is_known(store, id):
            yield row
        elif targets.kind == "votes":
            yield from _by_votes(row, _node(store, id, path), again)
        elif targets.needs_teacher:
            yield replace(row, teacher=_informed(row, _node(store, id, path)))
        elif targets.needs_log:
            yield replace(row, logged=_logged(store, row, id, path))
        else:
            yield row


def _is_known(store: Rows, id: str) -> bool:
    return next(store.select("SELECT 1 FROM questions WHERE id = ?", (id,)), None) is not None


def _node(store: Rows, id: str, path: str) -> Node:
    """The node of a row, from the newest revision that has its sub-questions."""
    node = Node(path, "")
    for revision in (id, *before(id)):
        found = (n for n in load_tree(store, revision).walk() if n.path == path)
        other = next(found, None)
        if other is not None:
            node = node if node.question else other
            if other.children:
                return replace(node, children=other.children)
    return node


def _by_votes(row: Row, node: Node, again: Recombiner | None) -> Iterator[Row]:
    """A row for each answer that got votes; the row itself where the votes are of others."""
    shares = shares_of(node, again)
    if not any(answer == row.reply for answer, _ in shares):
        yield row
        return
    for answer, share in shares:
        if answer == row.reply:
            yield replace(row, weight=round(row.weight * share, 6))
        elif share >= LEAST_SHARE and answer.strip():
            other = {"completion": reply_of(answer), "rejected": None, "logged": ()}
            yield replace(row, weight=round(row.weight * share, 6), **other)


def shares_of(node: Node, again: Recombiner | None = None) -> Shares:
    """(answer, its share of the votes) of a node, heaviest first; shares sum to 1 at most."""
    if node.answer is None:
        return []
    if node.answered_by == "human" or node.verdict == "approved":
        return [(node.answer, 1.0)]
    candidates = [(each["answer"], float(each["weight"])) for each in node.candidates]
    votes = candidates or ([] if node.children else node.tally)
    total = sum(max(0.0, weight) for _, weight in votes)
    if total:
        return sorted(((a, max(0.0, w) / total) for a, w in votes), key=lambda pair: -pair[1])
    parts = {child.question: shares_of(child, again) for child in _used(node)}
    if again is not None and any(len(shares) > 1 for shares in parts.values()):
        shares = again.shares(node.question, _last_attempt(node), parts)
        if any(answer == node.answer for answer, _ in shares):
            return shares
    product = 1.0
    for child in _used(node):
        product *= next((share for a, share in parts[child.question] if a == child.answer), 1.0)
    return [(node.answer, product)]


def _used(node: Node) -> Sequence[Node]:
    """The sub-questions of the last attempt, with an answer that the overseer could use."""
    last = _last_attempt(node)
    return [
        child
        for child in node.children
        if _attempt(child) == last and child.answer and is_usable(child.status, child.answer)
    ]


def _last_attempt(node: Node) -> int:
    return max(map(_attempt, node.children), default=0)


def _attempt(child: Node) -> int:
    return int(child.path.rpartition("/")[2].split(".")[0])


def _informed(row: Row, node: Node) -> tuple[dict[str, Any], ...]:
    """The teacher's prompt: the row's, whose last question stands behind its sub-answers."""
    exchanges = [Exchange(child.question, child.answer) for child in _used(node)]
    if not exchanges or row.reply != node.answer or row.prompt[-1]["role"] != "user":
        return ()
    *before_it, asked = row.prompt
    text = informed_prompt(str(asked["content"]), exchanges, CHARS)
    return (*(dict(turn) for turn in before_it), {**asked, "content": text})


def _logged(store: Rows, row: Row, id: str, path: str) -> tuple[Any, ...]:
    """The tokens of the call that said the row's reply; empty without one."""
    calls = row.provenance.get("calls") or []
    if len(calls) == 1:
        sql = "SELECT completion, logprobs FROM calls WHERE id = ? AND logprobs IS NOT NULL"
        said = list(store.select(sql, (calls[0],)))
    else:
        said = [
            call
            for revision in (id, *before(id))
            for call in store.select(LOGGED, (revision, path))
            if (call["completion"] or "").strip() == row.reply.strip()
        ]
    return tuple(json.loads(said[0]["logprobs"])) if said else ()
