"""What an evaluation found: a record for each answer, and all that follows from them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from agents.purse import Price
from graphs.answers import Answered, Ledger, answers_of
from graphs.best_of import EqualTokens
from graphs.breakdown import Level, breakdown
from graphs.comparison import Summary, differences, summary
from graphs.exam import Exam
from graphs.sitting import Sitting
from graphs.statistics import RESAMPLES, Difference
from graphs.traces import TraceStore
from graphs.tree import load_tree


@dataclass(frozen=True)
class Results:
    """All of one evaluation; systems in the order in which they were named."""

    exam: str
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
            "exam": self.exam,
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
    exam: Exam,
    sittings: Mapping[str, Sitting],
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
            for paper in sitting.papers
            for answer in answers_of(
                ledger, store, exam, key, paper.seed, paper.asked, paper.questions, paper.outcomes
            )
        ]
        for key, sitting in sittings.items()
    }
    seeds = [paper.seed for paper in next(iter(sittings.values())).papers]
    return Results(
        exam=exam.name,
        split=exam.split,
        rule=exam.rule,
        seeds=seeds,
        answers=answers,
        summaries={
            key: summary(sittings[key].entrant.model, found) for key, found in answers.items()
        },
        differences=differences(answers, seeds[0]),
        levels={
            key: breakdown((load_tree(store, a.trajectory) for a in found), exam.part_right)
            for key, found in answers.items()
        },
        equal=equal,
        settings=settings,
    )
