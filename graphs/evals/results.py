"""The results of an evaluation: the score of each system, their differences, and a breakdown."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from reflux.agents.budget import Price
from reflux.agents.errors import RefluxError
from reflux.graphs.amplify.state import Spent, is_accepted
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
from reflux.graphs.evals.runner import EvalRun, Score
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node, load_tree

KINDS = ("combined", "H", "copy", "tool")
"""A combination of sub-answers by the overseer; an answer of the overseer alone; an answer of
copies, experts or an external graph; an answer of a tool."""
PartRight = Callable[[str, str | None], bool | None]
"""(question, answer) → right; None where that is unknown."""


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


def breakdown(trees: Iterable[Node], part_right: PartRight) -> list[Level]:
    """The nodes of many trees, by depth and kind, from the root down."""
    nodes: dict[tuple[int, str], list[Node]] = {}
    for tree in trees:
        for node in tree.walk():
            nodes.setdefault((node.path.count("/"), kind_of(node)), []).append(node)
    order = sorted(nodes, key=lambda key: (key[0], KINDS.index(key[1])))
    return [_level(depth, kind, nodes[depth, kind], part_right) for depth, kind in order]


def _level(depth: int, kind: str, nodes: list[Node], part_right: PartRight) -> Level:
    scores = [(node.question, part_right(node.question, node.answer)) for node in nodes]
    known = [score for _, score in scores if score is not None]
    questions = len({question for question, score in scores if score is not None})
    return Level(
        depth=depth,
        kind=kind,
        nodes=len(nodes),
        accepted=sum(is_accepted(node.status) for node in nodes) / len(nodes),
        calls=sum(node.calls for node in nodes),
        tokens=sum(node.tokens for node in nodes),
        marked=len(known),
        accuracy=sum(known) / len(known) if known else None,
        # Around the accuracy: a mean over questions differs where some are asked more often.
        ci95=wilson(sum(known) * questions / len(known), questions) if known else None,
    )


@dataclass(frozen=True)
class Summary(Score):
    """The score of one system of an evaluation, with its price and calibration."""

    model: str
    questions: int
    seconds: float
    cost: float | None
    calibration: Calibration | None


def summary(model: str, answers: Sequence[Answered]) -> Summary:
    """Add up the answers of one system.

    Raises:
        UsageError: there are none.
    """
    costs = [answer.cost for answer in answers]
    known = [cost for cost in costs if cost is not None]
    questions = len({answer.id for answer in answers})
    spent = [Spent(calls=a.calls, cached=a.cached, tokens=a.tokens) for a in answers]
    return Summary.of(
        ((a.right, a.status, cost) for a, cost in zip(answers, spent, strict=True)),
        questions,
        model=model,
        questions=questions,
        seconds=sum(answer.seconds for answer in answers),
        cost=sum(known) if len(known) == len(costs) else None,
        calibration=calibration([(answer.confidence, answer.right) for answer in answers]),
    )


def differences(answers: Mapping[str, Sequence[Answered]], seed: int) -> list[Difference]:
    """Each pair of systems on the same questions: the later named minus the earlier named."""
    compared: list[Difference] = []
    for first, second in combinations(answers, 2):
        right: dict[str, list[tuple[bool, bool]]] = {}
        for one, other in zip(answers[second], answers[first], strict=True):
            if (one.seed, one.question) != (other.seed, other.question):
                raise RefluxError(
                    "two systems were asked different questions; please report this bug"
                )
            right.setdefault(one.id, []).append((one.right, other.right))
        compared.append(difference(second, first, right, seed))
    return compared


@dataclass(frozen=True)
class Results:
    """All of one evaluation; systems in the order in which they were named."""

    eval_task: str
    split: str
    rule: str
    seeds: Sequence[int]
    """Of a task's questions and of the samples; the first is also that of the bootstrap."""
    answers: Mapping[str, Sequence[Answered]]
    summaries: Mapping[str, Summary]
    differences: Sequence[Difference]
    levels: Mapping[str, Sequence[Level]]
    equal: EqualTokens | None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        """All but the single answers, for `json.dumps`."""
        return {
            "eval_task": self.eval_task,
            "split": self.split,
            "score": self.rule,
            "seeds": list(self.seeds),
            "resamples": RESAMPLES,
            "settings": dict(self.settings),
            "systems": {key: asdict(summary) for key, summary in self.summaries.items()},
            "differences": [asdict(difference) for difference in self.differences],
            "equal_tokens": asdict(self.equal) if self.equal else None,
            "breakdown": {key: [*map(asdict, levels)] for key, levels in self.levels.items()},
        }


def results(
    eval_task: EvalTask,
    eval_runs: Mapping[str, EvalRun],
    equal: EqualTokens | None,
    store: TraceStore,
    prices: Mapping[str, Price],
    settings: Mapping[str, Any],
) -> Results:
    """Score and compare the answers of all systems; no model is called.

    Raises:
        UsageError: there are no questions.
        RefluxError: the scorer failed.
    """
    ledger = Ledger(store, prices)
    answers = {
        key: [
            answer
            for result in eval_run.seed_results
            for answer in answers_of(ledger, eval_task, key, result)
        ]
        for key, eval_run in eval_runs.items()
    }
    seeds = [result.seed for result in next(iter(eval_runs.values())).seed_results]
    return Results(
        eval_task=eval_task.name,
        split=eval_task.split,
        rule=eval_task.rule,
        seeds=seeds,
        answers=answers,
        summaries={
            key: summary(eval_runs[key].system_spec.model, rows) for key, rows in answers.items()
        },
        differences=differences(answers, seeds[0]),
        levels={
            key: breakdown((load_tree(store, a.trajectory) for a in rows), eval_task.part_right)
            for key, rows in answers.items()
        },
        equal=equal,
        settings=settings,
    )
