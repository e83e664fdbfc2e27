"""Accuracy, correlation and red flags of the recorded votes.

Whether a vote is right is known where its question is held out and the task can score it. For other
questions only the accepted answer is known; measured against it a shared error looks right, so such
measurements say so.
"""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from reflux.agents.errors import UsageError
from reflux.agents.types import Completion
from reflux.agents.verifiers import RedFlags
from reflux.graphs.amplify.direct_answer import step_and_retries
from reflux.graphs.amplify.state import is_accepted
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.evals.task import Task, is_held_out
from reflux.graphs.traces.store import TraceStore

RESAMPLES = 1_000


@dataclass(frozen=True)
class Votes:
    """Accuracy and error correlation of the votes on many questions."""

    accuracy: float
    correlation: float
    """Intraclass correlation of being right: 0 where votes err independently, 1 where all copies
    are right or wrong together, which no vote can correct."""
    ci95: tuple[float, float]
    """Of the correlation: the union of a bootstrap over questions and the large-sample interval."""
    questions: int
    votes: int
    left_out: int
    """Questions with fewer votes."""


def correlation(right: Sequence[Sequence[bool]], seed: int = 0) -> Votes:
    """Accuracy and correlation of the votes of each question, by analysis of variance (Ridout,
    Demétrio and Firth 1999, equation 2.1).

    Questions whose first votes disagree have more votes, so later votes are a biased sample: the
    estimate uses the smallest number of votes among the questions with two or more.

    Raises:
        UsageError: fewer than two questions have two votes.
    """
    usable = [votes for votes in right if len(votes) >= 2]
    if len(usable) < 2:
        raise UsageError(
            f"{len(usable)} questions have two votes or more: the correlation of errors needs at "
            "least 2; have every question voted on (votes.min_logprob: null)"
        )
    size = min(map(len, usable))
    counts = [sum(votes[:size]) for votes in usable]
    draw = random.Random(seed)
    estimates = sorted(
        _intraclass(draw.choices(counts, k=len(counts)), size) for _ in range(RESAMPLES)
    )
    estimate = _intraclass(counts, size)
    half = 1.96 * _standard_error(estimate, size, len(counts))
    # The bootstrap alone is too narrow where no two votes were wrong together.
    low = min(estimates[int(0.025 * RESAMPLES)], estimate - half)
    high = max(estimates[int(0.975 * RESAMPLES) - 1], estimate + half)
    return Votes(
        sum(counts) / (size * len(counts)),
        estimate,
        (max(-1.0, low), min(1.0, high)),
        len(counts),
        size,
        len(right) - len(usable),
    )


def _intraclass(counts: Sequence[int], size: int) -> float:
    """ICC of `len(counts)` questions with `size` votes each; 0 where all votes are alike."""
    n = len(counts)
    mean = sum(counts) / (n * size)
    between = sum((count / size - mean) ** 2 for count in counts) * size / (n - 1)
    within = sum(count * (1 - count / size) for count in counts) / (n * (size - 1))
    whole = between + (size - 1) * within
    return (between - within) / whole if whole else 0.0


def _standard_error(icc: float, size: int, n: int) -> float:
    """Of an intraclass correlation of `n` questions (Fisher 1925, section 39)."""
    spread = (1 - icc) * (1 + (size - 1) * icc)
    return abs(spread) * (2 / (size * (size - 1) * (n - 1))) ** 0.5


Right = Callable[[str, str], bool | None]
"""(question, raw reply) → right; None where that is unknown."""


@dataclass(frozen=True)
class VotedQuestion:
    """A question that copies of the agent answered, with their replies in the order of votes."""

    question: str
    root: str
    """Id of the root question."""
    answer: str | None
    """The chosen one."""
    replies: tuple[Completion, ...]
    accepted: bool = True
    """Whether the vote and the check accepted the answer."""


VOTES = """
SELECT c.question, c.path, c.step, c.attempt, c.vote, c.completion, c.finish_reason,
  c.prompt_tokens, c.completion_tokens
FROM calls c JOIN questions q ON q.id = c.question
WHERE c.kind = 'model' AND c.error IS NULL AND (c.role = 'answer' OR c.role LIKE 'answer~%')
  AND (:system IS NULL OR q.system = :system) AND q.revises IS NULL
ORDER BY c.question, c.path, c.step, c.attempt, c.vote, c.id
"""
DIRECT = """
SELECT j.question, j.path, j.key, j.detail FROM judgements j JOIN questions q ON q.id = j.question
WHERE j.kind = 'direct' AND (:system IS NULL OR q.system = :system) AND q.revises IS NULL
ORDER BY j.id
"""


def voted_questions(store: TraceStore, system: str | None = None) -> Iterator[VotedQuestion]:
    """Every question that copies answered, of one system where it is named. Revisions are left
    out, because they share replies with the trajectory that they revise."""
    replies: dict[tuple[str, str, tuple[int, int]], dict[int, Completion]] = defaultdict(dict)
    for row in store.select(VOTES, {"system": system}):
        node = row["question"], row["path"], (row["step"], row["attempt"])
        # The last reply of a conversation with tools is the vote.
        replies[node][row["vote"]] = Completion(
            row["completion"],
            row["prompt_tokens"],
            row["completion_tokens"],
            finish_reason=row["finish_reason"],
        )
    for row in store.select(DIRECT, {"system": system}):
        node = row["question"], row["path"], step_and_retries(row["key"])
        if (votes := replies.pop(node, None)) is not None:
            detail: dict[str, Any] = json.loads(row["detail"])
            yield VotedQuestion(
                detail["question"],
                row["question"],
                detail["answer"],
                tuple(votes.values()),
                is_accepted(detail["status"]),
            )


def by_task(task: Task) -> Right:
    """The task's own score, for held-out questions only."""

    def right(question: str, reply: str) -> bool | None:
        if not (is_held_out(task, question) and task.has_truth(question)):
            return None
        try:
            return task.score(question, task.normalise(reply))
        except ValueError:
            return False

    return right


def by_acceptance(voted: Sequence[VotedQuestion], normalise: Callable[[str], str]) -> Right:
    """Agreement with the accepted answer: shared errors count as right."""
    accepted = {one.question: one.answer for one in voted if one.answer is not None}

    def right(question: str, reply: str) -> bool | None:
        answer = accepted.get(question)
        return None if answer is None else normalise(reply) == answer

    return right


@dataclass(frozen=True)
class Measured:
    """Figures of one vote."""

    accuracy: float
    ci95: tuple[float, float]
    questions: int
    """Questions whose first vote could be scored."""
    steps: float
    """Mean number of questions that copies answered in one tree."""
    tokens: float
    """Of one vote, prompt and completion."""
    marked: tuple[tuple[bool, ...], ...]
    """Whether each vote of each question is right, in order."""
    wrong_answers: float
    """Share of the questions whose chosen answer is wrong."""


def measure(voted: Sequence[VotedQuestion], right: Right) -> Measured | None:
    """Figures of first votes; None where no vote could be scored.

    First votes alone are an unbiased sample: doubtful questions have more votes.
    """
    marked: list[tuple[bool, ...]] = []
    wrong = 0
    for question in voted:
        scores = [right(question.question, reply.text) for reply in question.replies]
        if any(score is None for score in scores) or not scores:
            continue
        marked.append(tuple(bool(score) for score in scores))
        wrong += question.answer is None or not right(question.question, question.answer)
    if not marked:
        return None
    first = sum(scores[0] for scores in marked)
    roots = {question.root for question in voted}
    tokens = [reply.tokens for question in voted for reply in question.replies]
    return Measured(
        first / len(marked),
        wilson(first, len(marked)),
        len(marked),
        len(voted) / len(roots),
        fmean(tokens),
        tuple(marked),
        wrong / len(marked),
    )


@dataclass(frozen=True)
class FlagEffect:
    """The effect of one red-flag rule on the recorded votes."""

    rule: str
    flagged: int
    accuracy_flagged: float | None
    """Of the votes that the rule discards; None without any."""
    accuracy_kept: float | None
    n: int


def flag_effects(
    voted: Sequence[VotedQuestion], flags: RedFlags, right: Right
) -> Sequence[FlagEffect]:
    """The effect of each rule alone: it helps if it discards wrong votes more often than others."""
    effects: list[FlagEffect] = []
    for name, value in vars(flags).items():
        if value == getattr(RedFlags(), name):
            continue
        rule = RedFlags(**{name: value})
        scores: dict[bool, list[bool]] = {True: [], False: []}
        for question in voted:
            for reply in question.replies:
                if (score := right(question.question, reply.text)) is not None:
                    scores[rule.of(reply) != ""].append(score)
        flagged, kept = scores[True], scores[False]
        n = len(flagged) + len(kept)
        effects.append(FlagEffect(name, len(flagged), _share(flagged), _share(kept), n))
    return effects


def _share(scores: Sequence[bool]) -> float | None:
    return sum(scores) / len(scores) if scores else None
