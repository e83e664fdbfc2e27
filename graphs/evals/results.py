"""Where in its trees a system is right, and where its calls go: by depth and by kind of node.

    copy       answered by copies of X, experts, or somebody else's graph
    tool       answered by a tool
    H          answered by H alone, from what it knows
    combined   put together by H out of sub-answers

All nodes count, those of attempts that a check refused among them: they were paid for.

Systems side by side: each one's accuracy and price, and every pair's difference.

What an evaluation found: a record for each answer, and all that follows from them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from reflux.agents.budget import Price
from reflux.agents.errors import RefluxError, UsageError
from reflux.graphs.amplify.state import is_accepted
from reflux.graphs.evals.answers import Answered, Ledger, answers_of
from reflux.graphs.evals.best_of import EqualTokens
from reflux.graphs.evals.eval_task import EvalTask
from reflux.graphs.evals.metrics import (
    RESAMPLES,
    Calibration,
    Difference,
    calibration,
    difference,
    wilson,
)
from reflux.graphs.evals.runner import EvalRun
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node, load_tree

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
        accepted=sum(is_accepted(node.status) for node in nodes) / len(nodes),
        calls=sum(node.calls for node in nodes),
        tokens=sum(node.tokens for node in nodes),
        marked=len(known),
        accuracy=sum(known) / len(known) if known else None,
        # Around the accuracy: a mean over questions lies elsewhere where some are asked often.
        ci95=wilson(sum(known) * different / len(known), different) if known else None,
    )


@dataclass(frozen=True)
class Summary:
    """How one system did."""

    model: str
    accuracy: float
    n: int
    """Answers: questions times seeds, as far as each seed asks the same ones."""
    questions: int
    """Different questions."""
    ci95: tuple[float, float]
    """Wilson's over the questions, however often each was asked."""
    calls: int
    cached: int
    tokens: int
    seconds: float
    """Of all model calls, added up."""
    cost: float | None
    statuses: Mapping[str, int]
    calibration: Calibration | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        calibrated = self.calibration.to_json() if self.calibration else None
        return {**asdict(self), "ci95": list(self.ci95), "calibration": calibrated}


def summary(model: str, answers: Sequence[Answered]) -> Summary:
    """Add up the answers of one system.

    Raises:
        UsageError: there are none.
    """
    if not answers:
        raise UsageError("0 questions were asked: an interval needs at least 1; raise --limit")
    questions = len({answer.id for answer in answers})
    right = sum(answer.right for answer in answers)
    statuses: dict[str, int] = {}
    for answer in answers:
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
    costs = [answer.cost for answer in answers]
    known = [cost for cost in costs if cost is not None]
    return Summary(
        model=model,
        accuracy=right / len(answers),
        n=len(answers),
        questions=questions,
        # Around the accuracy, whichever questions were asked more often than others.
        ci95=wilson(right * questions / len(answers), questions),
        calls=sum(answer.calls for answer in answers),
        cached=sum(answer.cached for answer in answers),
        tokens=sum(answer.tokens for answer in answers),
        seconds=sum(answer.seconds for answer in answers),
        cost=sum(known) if len(known) == len(costs) else None,
        statuses=dict(sorted(statuses.items())),
        calibration=calibration([(answer.confidence, answer.right) for answer in answers]),
    )


def differences(answers: Mapping[str, Sequence[Answered]], seed: int) -> list[Difference]:
    """Every two systems on the same questions, in the order in which they were named; the later
    one minus the earlier one."""
    return [
        difference(second, first, _pairs(answers[second], answers[first]), seed)
        for first, second in combinations(answers, 2)
    ]


def _pairs(
    first: Sequence[Answered], second: Sequence[Answered]
) -> dict[str, list[tuple[bool, bool]]]:
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    if [(a.seed, a.question) for a in first] != [(b.seed, b.question) for b in second]:
        raise RefluxError("two systems were asked different questions; please report this")
    for one, other in zip(first, second, strict=True):
        pairs.setdefault(one.id, []).append((one.right, other.right))
    return pairs


@dataclass(frozen=True)
class Results:
    """All of one evaluation; systems in the order in which they were named."""

    eval_task: str
    split: str
    rule: str
    """What made an answer right."""
    seeds: Sequence[int]
    """Of the questions of a task, and of whatever is sampled; the first also of the bootstrap."""
    answers: Mapping[str, Sequence[Answered]]
    summaries: Mapping[str, Summary]
    differences: Sequence[Difference]
    levels: Mapping[str, Sequence[Level]]
    equal: EqualTokens | None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        """All but the single answers, as plain JSON types."""
        return {
            "exam": self.eval_task,
            "split": self.split,
            "score": self.rule,
            "seeds": list(self.seeds),
            "resamples": RESAMPLES,
            "settings": dict(self.settings),
            "systems": {key: found.to_json() for key, found in self.summaries.items()},
            "differences": [found.to_json() for found in self.differences],
            "equal_tokens": asdict(self.equal) if self.equal else None,
            "breakdown": {
                key: [level.to_json() for level in levels] for key, levels in self.levels.items()
            },
        }


def results(
    eval_task: EvalTask,
    eval_runs: Mapping[str, EvalRun],
    equal: EqualTokens | None,
    store: TraceStore,
    prices: Mapping[str, Price],
    settings: Mapping[str, Any],
) -> Results:
    """Mark what every system answered and compare them; no model is asked.

    Raises:
        UsageError: there are no questions.
        RefluxError: the exam's marker failed.
    """
    ledger = Ledger(store, prices)
    answers = {
        key: [
            answer
            for seed_result in eval_run.seed_results
            for answer in answers_of(
                ledger,
                store,
                eval_task,
                key,
                seed_result.seed,
                seed_result.asked,
                seed_result.questions,
                seed_result.outcomes,
            )
        ]
        for key, eval_run in eval_runs.items()
    }
    seeds = [seed_result.seed for seed_result in next(iter(eval_runs.values())).seed_results]
    return Results(
        eval_task=eval_task.name,
        split=eval_task.split,
        rule=eval_task.rule,
        seeds=seeds,
        answers=answers,
        summaries={
            key: summary(eval_runs[key].system_spec.model, found) for key, found in answers.items()
        },
        differences=differences(answers, seeds[0]),
        levels={
            key: breakdown((load_tree(store, a.trajectory) for a in found), eval_task.part_right)
            for key, found in answers.items()
        },
        equal=equal,
        settings=settings,
    )
