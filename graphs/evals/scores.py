"""The score of one system, added up answer by answer, and its breakdown by depth and kind."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import Any

from reflux.graphs.amplify.state import Spent, is_accepted
from reflux.graphs.evals.confidence.calibration import Calibration, Scaled, calibration, scaled
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.traces.tree import Node

KINDS = ("combined", "H", "copy", "tool")
"""A combination of sub-answers by the overseer; an answer of the overseer alone; an answer of
copies, experts or an external graph; an answer of a tool."""
PartRight = Callable[[str, str | None], bool | None]
"""(question, answer) → right; None where that is unknown."""
UNSCORED = 2
"""The verdict on an answer without a score, beside 0 and 1."""
MAX_REASONS = 100
"""Different reasons of failures that are counted."""


@dataclass(frozen=True)
class Score:
    """Accuracy and cost of one system."""

    accuracy: float
    """Share of the answers with a score that are right."""
    n: int
    """Answers: questions times seeds."""
    ci95: tuple[float, float]
    """Wilson's over the different questions."""
    calls: int
    """Model calls, those answered from the cache included."""
    cached: int
    tokens: int
    statuses: Mapping[str, int]
    errors: Mapping[str, int]
    """Of answers that were not accepted."""
    questions: int
    truncated: int
    """Answers that the token limit cut, right or wrong."""
    unscored: int
    """Answers on which the scorer failed, or the judge gave no grade."""
    model: str
    seconds: float
    cost: float | None
    calibration: Calibration | None
    scaled: Scaled | None = None
    """What temperature scaling makes of the confidences; None of too few."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; ci95 as a list. Without a scored answer there is no accuracy."""
        body = {**asdict(self), "ci95": list(self.ci95)}
        body |= {"scaling": self.scaled and self.scaled.to_json()}
        del body["scaled"]
        return body | ({"accuracy": None, "ci95": None} if self.unscored == self.n else {})


class Tally:
    """Adds up the answers of one system, in the order of seeds and questions."""

    def __init__(self) -> None:
        self.verdicts = bytearray()
        self.ids: list[str] = []
        self._statuses, self._errors = Counter[str](), Counter[str]()
        self._spent: Spent = {"calls": 0, "cached": 0, "tokens": 0}
        self._seconds, self._cost = 0.0, 0.0
        self._confidences = array("d")

    def add(
        self,
        right: bool | None,
        status: str,
        spent: Spent,
        *,
        id: str | None = None,
        error: str | None = None,
        seconds: float = 0.0,
        cost: float | None = None,
        confidence: float | None = None,
    ) -> None:
        """Add one answer; without an `id` its question differs from all others."""
        self.ids.append(id or str(len(self.verdicts)))
        self.verdicts.append(UNSCORED if right is None else right)
        self._statuses[status] += 1
        if error and not is_accepted(status):
            known = error in self._errors or len(self._errors) < MAX_REASONS
            self._errors[error if known else "other reasons"] += 1
        for key in ("calls", "cached", "tokens"):
            self._spent[key] += spent[key]
        self._seconds += seconds
        self._cost += nan if cost is None else cost
        self._confidences.append(nan if confidence is None else confidence)

    @property
    def right(self) -> int:
        return self.verdicts.count(1)

    def score(self, model: str = "") -> Score:
        """The sums.

        Raises:
            UsageError: there are no answers.
        """
        n, unscored = len(self.verdicts), self.verdicts.count(UNSCORED)
        scored, questions = max(1, n - unscored), len(set(self.ids))
        scored_ids = questions
        if unscored:
            pairs = zip(self.ids, self.verdicts, strict=True)
            scored_ids = max(1, len({id for id, verdict in pairs if verdict != UNSCORED}))
        known = [
            (None if isnan(confidence) else confidence, verdict == 1)
            for confidence, verdict in zip(self._confidences, self.verdicts, strict=True)
            if verdict != UNSCORED
        ]
        return Score(
            accuracy=self.right / scored,
            n=n,
            # Around the accuracy, even if some questions were asked more often than others.
            ci95=wilson(self.right * scored_ids / scored, scored_ids),
            **self._spent,
            statuses=dict(sorted(self._statuses.items())),
            errors=dict(self._errors.most_common()),
            questions=questions,
            truncated=self._statuses["truncated"],
            unscored=unscored,
            model=model,
            seconds=self._seconds,
            cost=None if isnan(self._cost) else self._cost,
            calibration=calibration(known),
            scaled=scaled(known),
        )


@dataclass(frozen=True)
class Level:
    """The nodes of one kind at one depth, those of rejected attempts included."""

    depth: int
    kind: str
    nodes: int
    accepted: float
    calls: int
    """Model calls of these nodes, without those below them."""
    tokens: int
    marked: int
    """Nodes whose answer can be scored: held-out questions of the task, or those of the file."""
    accuracy: float | None
    """Of the scored ones; None where there are none."""
    ci95: tuple[float, float] | None
    """Wilson's over the different questions among the scored ones."""


def kind_of(node: Node) -> str:
    """Who answered a node, one of `KINDS`."""
    if node.children:
        return "combined"
    if node.answered_by == "H":
        return "H"
    return "tool" if node.answered_by.startswith("tool:") else "copy"


class Breakdown:
    """Adds up the nodes of many trees, by depth and kind."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, str], Counter[str]] = {}
        self._questions: dict[tuple[int, str], set[bytes]] = {}

    def add(self, tree: Node, part_right: PartRight) -> None:
        """Add the nodes of one tree."""
        for node in tree.walk():
            key = node.path.count("/"), kind_of(node)
            sums = self._sums.setdefault(key, Counter())
            sums.update(nodes=1, calls=node.calls, tokens=node.tokens)
            sums["accepted"] += is_accepted(node.status)
            if (right := part_right(node.question, node.answer)) is not None:
                sums.update(marked=1, right=int(right))
                digest = hashlib.sha256(node.question.encode()).digest()[:8]
                self._questions.setdefault(key, set()).add(digest)

    def levels(self) -> list[Level]:
        """One row for each depth and kind, from the root down."""
        order = sorted(self._sums, key=lambda key: (key[0], KINDS.index(key[1])))
        return [self._level(key, self._sums[key]) for key in order]

    def _level(self, key: tuple[int, str], sums: Counter[str]) -> Level:
        questions, marked = len(self._questions.get(key, ())), sums["marked"]
        return Level(
            *key,
            nodes=sums["nodes"],
            accepted=sums["accepted"] / sums["nodes"],
            calls=sums["calls"],
            tokens=sums["tokens"],
            marked=marked,
            accuracy=sums["right"] / marked if marked else None,
            # Around the accuracy: a mean over questions differs where some are asked more often.
            ci95=wilson(sums["right"] * questions / marked, questions) if marked else None,
        )
