"""A person looks for the wrong leaf in the terminal, of `benchmarks.oversight`."""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.planted_trees import KINDS, leaves_of, planted_trees
from reflux.agents.errors import UsageError
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.traces.tree import Node
from reflux.report.terminal import OUT, escape

VIEWS = ("answer", "tree")


def judged_by_person(
    name: str, kinds: Sequence[str], sizes: Sequence[int], n: int
) -> list[dict[str, Any]]:
    """Rows of what a person found: `n` trees of each kind, size and view, half of them wrong.

    No tree is shown twice, and no two people see the same.

    Raises:
        UsageError: nobody is there to answer.
    """
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        for leaves in sizes:
            made = asyncio.run(planted_trees(KINDS[kind](), leaves, 2 * n, _seed(name)))
            for view, pairs in zip(VIEWS, (made[:n], made[n:]), strict=True):
                draw = random.Random(f"{name} {kind} {leaves} {view}")
                order = [number % 2 == 0 for number in range(n)]
                draw.shuffle(order)
                said = [
                    (wrong, pair.path, *_ask(pair.wrong if wrong else pair.clean, view))
                    for wrong, pair in zip(order, pairs, strict=True)
                ]
                rows.append(_row(name, kind, leaves, view, said))
                OUT.print(rows[-1])
    return rows


def _seed(name: str) -> int:
    return int.from_bytes(name.encode()[:6], "big")


def _ask(tree: Node, view: str) -> tuple[bool, str, float]:
    """(whether the person says that it is wrong, the leaf that they name, seconds)."""
    leaves = leaves_of(tree)
    OUT.rule()
    OUT.print(f"{escape(tree.question)} → [bold]{escape(str(tree.answer))}[/]")
    if view == "tree":
        for node in tree.walk():
            number = f"{leaves.index(node) + 1:>3}" if node in leaves else "   "
            indent = "  " * node.path.count("/")
            OUT.print(f"{number} {indent}{escape(node.question)} → {escape(str(node.answer))}")
    asks = "0 right, or the number of the wrong leaf" if view == "tree" else "0 right, 1 wrong"
    begun = time.monotonic()
    most = len(leaves) if view == "tree" else 1
    while True:
        try:
            text = input(f"{asks}: ").strip()
        except EOFError as error:
            raise UsageError("--person needs a person: run it in a terminal") from error
        if text.isdecimal() and int(text) <= most:
            named = leaves[int(text) - 1].path if view == "tree" and int(text) else ""
            return int(text) > 0, named, time.monotonic() - begun


def _row(
    name: str,
    kind: str,
    leaves: int,
    view: str,
    said: Sequence[tuple[bool, str, bool, str, float]],
) -> dict[str, Any]:
    wrong = [each for each in said if each[0]]
    right = [each for each in said if not each[0]]
    row: dict[str, Any] = {"model": f"person {name}", "kind": kind, "leaves": leaves}
    row |= {"checker": "person", "sees": view, "n": len(said)}
    for label, of in (("found", wrong), ("false alarms", right)):
        flagged = sum(each[2] for each in of)
        row[label] = round(flagged / len(of), 3) if of else None
        row[f"{label} 95%"] = [round(end, 3) for end in wilson(flagged, len(of))] if of else None
    if view == "tree" and wrong:
        row["leaf named"] = round(sum(each[3] == each[1] for each in wrong) / len(wrong), 3)
    row["seconds"] = round(sum(each[4] for each in said), 1)
    return row
