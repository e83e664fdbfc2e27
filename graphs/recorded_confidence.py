"""How sure a recorded answer is, read from the trajectory: a replay says the same."""

import json
from collections.abc import Mapping
from typing import Any

from reflux.graphs.amplify.direct_answer import step_and_retries
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node
from reflux.graphs.voting.confidence import CERTAIN, confidence_of


def confidence(store: TraceStore, root_id: str, root: Node) -> float | None:
    """How confident the answer at the root is, 0 to 1; None where the log doesn't tell.

    An answer is as confident as its least confident part:

        one question      as `reflux.graphs.voting.confidence` says
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
            direct[row["path"]] = detail["answer"], confidence_of(detail, logprob)
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


def _attempt(child: Node) -> int:
    """The parent's attempt with which the last part of a node's path begins."""
    return int(child.path.rpartition("/")[2].split(".")[0])
