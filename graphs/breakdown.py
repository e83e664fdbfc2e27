"""Where in its trees a system is right, and where its calls go: by depth and by kind of node.

    copy       answered by copies of X, experts, or somebody else's graph
    tool       answered by a tool
    H          answered by H alone, from what it knows
    combined   put together by H out of sub-answers

All nodes count, those of attempts that a check refused among them: they were paid for.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from graphs.statistics import wilson
from graphs.tree import Node

KINDS = ("combined", "H", "copy", "tool")
PartRight = Callable[[str, str | None], bool | None]
"""(question, answer) → right? None where nobody may or can tell."""


@dataclass(frozen=True)
class Level:
    """The nodes of one kind at one depth."""

    depth: int
    """Levels below the root, which is 0."""
    kind: str
    nodes: int
    accepted: float
    """Share whose answer the check accepted, or that needed none: their status is `ok`."""
    calls: int
    """Model calls of these nodes, without those below them: H's for what it combined."""
    tokens: int
    marked: int
    """Nodes whose answer could be marked: held-out questions of the task, or those of the file."""
    accuracy: float | None
    """Of the marked ones; None where there are none."""
    ci95: tuple[float, float] | None
    """Wilson's over the different questions among the marked ones."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "ci95": list(self.ci95) if self.ci95 else None}


def kind_of(node: Node) -> str:
    """Who answered a node, one of `KINDS`."""
    if node.children:
        return "combined"
    if node.answered_by == "H":
        return "H"
    return "tool" if node.answered_by.startswith("tool:") else "copy"


def breakdown(trees: Iterable[Node], part_right: PartRight) -> list[Level]:
    """The nodes of many trees, by depth and kind, from the root down."""
    found: dict[tuple[int, str], list[Node]] = {}
    for tree in trees:
        for node in tree.walk():
            found.setdefault((node.path.count("/"), kind_of(node)), []).append(node)
    order = sorted(found, key=lambda place: (place[0], KINDS.index(place[1])))
    return [_level(depth, kind, found[depth, kind], part_right) for depth, kind in order]


def _level(depth: int, kind: str, nodes: list[Node], part_right: PartRight) -> Level:
    marks = [(node.question, part_right(node.question, node.answer)) for node in nodes]
    known = [mark for _, mark in marks if mark is not None]
    different = len({question for question, mark in marks if mark is not None})
    return Level(
        depth=depth,
        kind=kind,
        nodes=len(nodes),
        accepted=sum(node.status == "ok" for node in nodes) / len(nodes),
        calls=sum(node.calls for node in nodes),
        tokens=sum(node.tokens for node in nodes),
        marked=len(known),
        accuracy=sum(known) / len(known) if known else None,
        # Around the accuracy: a mean over questions lies elsewhere where some are asked often.
        ci95=wilson(sum(known) * different / len(known), different) if known else None,
    )
