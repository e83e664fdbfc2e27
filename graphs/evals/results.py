"""The results of an evaluation: the score of each system, their differences, and a breakdown.

Answers are scored one by one as they are read from the record. What is kept of each is its verdict,
its question's id and its confidence, some 100 bytes; the rest is read again where it is printed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from reflux.agents.budget import Price
from reflux.agents.errors import RefluxError
from reflux.graphs.amplify.state import Spent
from reflux.graphs.evals.answers import Answered, Ledger, Mark, SeedResult, answers_of
from reflux.graphs.evals.best_of import EqualTokens
from reflux.graphs.evals.confidence.curve import Both, Point, cost_curve
from reflux.graphs.evals.decisions import Decision, Differences, decide
from reflux.graphs.evals.eval_task import EvalTask
from reflux.graphs.evals.metrics import RESAMPLES, Difference, difference
from reflux.graphs.evals.scores import UNSCORED, Breakdown, Level, PartRight, Score, Tally
from reflux.graphs.evals.scoring.scorers import fitting_rule
from reflux.graphs.traces.store import TraceStore

MAX_SAMPLES = 200
"""Wrong answers of a system that are compared by other rules."""
FEW_RIGHT, MANY_HOLD = 0.1, 0.3
"""Another rule is hinted at where accuracy is below the first, and this share more by that rule."""


OF_AGENT = re.compile(r"amplified$|best-of-|cascade-")
"""Systems that ask the agent more than once."""


@dataclass(frozen=True)
class Answers:
    """The answers of one system, read from the record each time."""

    ledger: Ledger
    eval_task: EvalTask
    key: str
    results: Sequence[SeedResult]
    tally: Tally

    def __len__(self) -> int:
        return len(self.tally.verdicts)

    def __iter__(self) -> Iterator[Answered]:
        verdicts = iter(self.tally.verdicts)

        def mark(question: str, answer: str | None) -> bool | None:
            verdict = next(verdicts)
            return None if verdict == UNSCORED else bool(verdict)

        for result in self.results:
            for answer, _ in answers_of(self.ledger, self.eval_task, self.key, result, mark):
                yield answer


@dataclass(frozen=True)
class Results:
    """All of one evaluation; systems in the order in which they were named."""

    eval_task: str
    split: str
    rule: str
    seeds: Sequence[int]
    """Of a task's questions and of the samples; the first is also that of the bootstrap."""
    answers: Mapping[str, Answers]
    summaries: Mapping[str, Score]
    differences: Sequence[Difference]
    decisions: Sequence[Decision]
    levels: Mapping[str, Sequence[Level]]
    equal: EqualTokens | None
    curve: Sequence[Point]
    """Cascades of the agent alone and the amplified system, where both were evaluated."""
    record: Mapping[str, Mapping[str, int]]
    """What `EvalRun.record` tells of each system."""
    hints: Sequence[str] = ()
    failures: int = 0
    """Answers on which the scorer failed."""
    failure: str = ""
    """The first of them."""
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
            "systems": {key: score.to_json() for key, score in self.summaries.items()},
            "differences": [asdict(difference) for difference in self.differences],
            "decisions": [asdict(decision) for decision in self.decisions],
            "equal_tokens": asdict(self.equal) if self.equal else None,
            "cascade": [*map(asdict, self.curve)],
            "breakdown": {key: [*map(asdict, levels)] for key, levels in self.levels.items()},
            "record": {key: dict(counts) for key, counts in self.record.items()},
            "hints": list(self.hints),
            "scorer_failures": self.failures,
        }


class Grading:
    """Scores the answers of all systems, as they are read from the record; calls no model."""

    def __init__(
        self, eval_task: EvalTask, store: TraceStore, prices: Mapping[str, Price], mark: Mark
    ) -> None:
        """`mark` is the scorer; it may raise, which leaves the answer unscored."""
        self._ledger, self._eval_task, self._mark = Ledger(store, prices), eval_task, mark
        self._results: dict[str, list[SeedResult]] = {}
        self.tallies: dict[str, Tally] = {}
        self._breakdowns: dict[str, Breakdown] = {}
        self._samples: dict[str, list[tuple[str, Sequence[str], Sequence[str]]]] = {}
        self._failures: list[str] = []

    def add(self, key: str, results: Sequence[SeedResult]) -> None:
        """Score more answers of one system."""
        tally, task = self.tallies.setdefault(key, Tally()), self._eval_task
        nodes, samples = (
            self._breakdowns.setdefault(key, Breakdown()),
            self._samples.setdefault(key, []),
        )
        self._results.setdefault(key, []).extend(results)
        for result in results:
            for answer, tree in answers_of(self._ledger, task, key, result, self._marked):
                spent: Spent = {
                    "calls": answer.calls, "cached": answer.cached, "tokens": answer.tokens
                }  # fmt: skip
                tally.add(
                    answer.right, answer.status, spent, id=answer.id, error=answer.error,
                    seconds=answer.seconds, cost=answer.cost, confidence=answer.confidence,
                )  # fmt: skip
                nodes.add(tree, self._part_marks(answer))
                if not answer.right and answer.answer and len(samples) < MAX_SAMPLES:
                    truths, choices = task.true_answers, task.choices
                    question = answer.question
                    samples.append((answer.answer, truths(question), choices(question)))

    def _marked(self, question: str, answer: str | None) -> bool | None:
        if answer is None:
            return False
        try:
            return self._mark(question, answer)
        except RefluxError as error:
            if type(error) is not RefluxError:
                raise
            self._failures.append(str(error) if not self._failures else "")
            return None

    def _part_marks(self, root: Answered) -> PartRight:
        """The verdicts on the nodes of a tree; that on its root is known."""

        def part_right(question: str, answer: str | None) -> bool | None:
            if question == root.question and answer == root.answer:
                known = self._eval_task.part_right(question, None) is not None
                return root.right if known else None
            try:
                return self._eval_task.part_right(question, answer)
            except RefluxError:
                return None

        return part_right

    def decisions(
        self, pairs: Sequence[tuple[str, str]], margin: float, *, anytime: bool
    ) -> list[Decision]:
        """The verdict on each pair of systems, the first against the second."""
        found: dict[tuple[str, str], tuple[Differences, int]] = {}
        for first, second in pairs:
            by_id, unscored = self._pairs(first, second)
            means = [sum(a - b for a, b in each) / len(each) for each in by_id.values()]
            found[first, second] = Differences.of(means), unscored
        return decide(found, margin, anytime=anytime)

    def _pairs(self, first: str, second: str) -> tuple[dict[str, list[tuple[bool, bool]]], int]:
        """((first right, second right) by question, questions without a score)."""
        one, other = self.tallies[first], self.tallies[second]
        if one.ids != other.ids:
            raise RefluxError("two systems were asked different questions; please report this bug")
        right: dict[str, list[tuple[bool, bool]]] = {}
        unscored: set[str] = set()
        for id, a, b in zip(one.ids, one.verdicts, other.verdicts, strict=True):
            if UNSCORED in (a, b):
                unscored.add(id)
            else:
                right.setdefault(id, []).append((a == 1, b == 1))
        return right, len(unscored - right.keys())

    def results(
        self,
        models: Mapping[str, str],
        *,
        equal: EqualTokens | None = None,
        decisions: Sequence[Decision] = (),
        record: Mapping[str, Mapping[str, int]],
        settings: Mapping[str, Any],
    ) -> Results:
        """All figures, of the systems in the order of `models`.

        Raises:
            UsageError: there are no questions.
            RefluxError: no answer of a system has a score.
        """
        for key in models:
            self._check_scored(key)
        task, seeds = self._eval_task, [each.seed for each in next(iter(self._results.values()))]
        seeds = list(dict.fromkeys(seeds))
        summaries = {key: self.tallies[key].score(model) for key, model in models.items()}
        compared = [
            difference(second, first, right, seeds[0])
            for first, second in combinations(models, 2)
            if (right := self._pairs(second, first)[0])
        ]
        answers = {
            key: Answers(self._ledger, task, key, self._results[key], self.tallies[key])
            for key in models
        }
        return Results(
            eval_task=task.name,
            split=task.split,
            rule=task.rule,
            seeds=seeds,
            answers=answers,
            summaries=summaries,
            differences=compared,
            decisions=decisions,
            levels={key: self._breakdowns[key].levels() for key in models},
            equal=equal,
            curve=_curve(models, answers),
            record=record,
            hints=tuple(text for key in models for text in self._hint(key, summaries[key])),
            failures=len(self._failures),
            failure=self._failures[0] if self._failures else "",
            settings=settings,
        )

    def _check_scored(self, key: str) -> None:
        verdicts = self.tallies[key].verdicts
        if not verdicts or verdicts.count(UNSCORED) < len(verdicts):
            return
        if self._failures:
            raise RefluxError(f"{self._failures[0]}; none of the answers of {key} has a score")
        raise RefluxError(
            f"{self._eval_task.judge} gave no grade to any of the {len(verdicts)} answers of {key}:"
            " its replies end with no line GRADE: C or GRADE: I; name another model in --score, "
            "the answers are recorded"
        )

    def _hint(self, key: str, score: Score) -> Iterator[str]:
        """Another rule, where nearly all is wrong by this one and right by that."""
        samples = [sample for sample in self._samples.get(key, ()) if sample[1]]
        if self._eval_task.judge or score.accuracy > FEW_RIGHT or not samples:
            return
        rule, right = fitting_rule(samples)
        if right >= MANY_HOLD * len(samples) and rule != self._eval_task.rule:
            yield (
                f"{key}: {right} of {len(samples)} wrong answers are right by --score {rule}; see "
                "whether that is what is meant: no call is repeated"
            )


def _curve(models: Mapping[str, str], answers: Mapping[str, Answers]) -> list[Point]:
    """Cascades of the first system that is the amplified system's agent alone."""
    agent = models.get("amplified")
    alone = (key for key, model in models.items() if model == agent and not OF_AGENT.match(key))
    if agent is None or (key := next(alone, None)) is None:
        return []
    both = [
        Both(a.confidence, a.right, b.right, a.tokens, b.tokens)
        for a, b in zip(answers[key], answers["amplified"], strict=True)
        if a.right is not None and b.right is not None
    ]
    return cost_curve(both) if any(each.confidence is not None for each in both) else []
