"""How sure a system was of an answer, out of what is logged; no model is asked.

An answer is as sure as the least sure thing that it is made of:

    several votes     the share of the votes that the answer has
    several experts   the share of them that agree
    one copy          the probability of its least certain token
    H's combination   the least sure of the parts that its last attempt asked for
    a foreign graph   the `confidence` that it returned

What H or a tool says alone brings no doubt of its own. Where part of this is unknown, so is the
whole.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graphs.copies import leaf_place
from graphs.traces import TraceStore
from graphs.tree import Node

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
    """How sure the answer at the root is, 0 to 1; None where nothing that is logged tells."""
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
        logged.leaves[row["path"]] = (detail, *leaf_place(row["key"]))
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
