"""How far copies err together, from their votes on the same questions.

The intraclass correlation of being right: 0 where each vote errs on its own, 1 where all copies
are right or wrong as one, which no vote can mend.

The votes that a run holds, and what they tell of its copies: accuracy, correlation, flags.

Whether a vote is right is known where its question is held out and the task can score it. Of other
questions only the answer that was accepted is known; against it a shared error looks right, so what
is measured that way says so.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reflux.agents.errors import UsageError
from reflux.agents.types import Completion
from reflux.agents.verifiers.red_flags import RedFlags
from reflux.graphs.amplify.sampling import step_and_retries
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.evals.task import Task, is_held_out
from reflux.graphs.traces.store import TraceStore

REPEATS = 1_000


@dataclass(frozen=True)
class Votes:
    """What was measured of the votes of many questions."""

    accuracy: float
    """Of one vote."""
    correlation: float
    """Of two votes on one question being right; below 0 where copies err less together than by
    chance."""
    ci95: tuple[float, float]
    """Of the correlation: what a bootstrap over questions and the large-sample error both cover."""
    questions: int
    votes: int
    """Of each question."""
    left_out: int
    """Questions with fewer votes."""


def correlation(right: Sequence[Sequence[bool]], seed: int = 0) -> Votes:
    """Estimate both from the votes of each question, in the order in which they were asked.

    A question has more votes where the first ones disagreed, so later votes are no fair sample:
    of all questions with two or more, only as many votes count as each of them has. Estimated by
    analysis of variance (Ridout, Demétrio and Firth 1999, equation 2.1).

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
        _intraclass(draw.choices(counts, k=len(counts)), size) for _ in range(REPEATS)
    )
    found = _intraclass(counts, size)
    half = 1.96 * _standard_error(found, size, len(counts))
    # Where no two votes were wrong together, no bootstrap ever sees that they may be.
    low = min(estimates[int(0.025 * REPEATS)], found - half)
    high = max(estimates[int(0.975 * REPEATS) - 1], found + half)
    return Votes(
        sum(counts) / (size * len(counts)),
        found,
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
    check_range = sum(count * (1 - count / size) for count in counts) / (n * (size - 1))
    whole = between + (size - 1) * check_range
    return (between - check_range) / whole if whole else 0.0


def _standard_error(found: float, size: int, n: int) -> float:
    """Of an intraclass correlation of `n` questions (Fisher 1925, section 39)."""
    spread = (1 - found) * (1 + (size - 1) * found)
    return abs(spread) * (2 / (size * (size - 1) * (n - 1))) ** 0.5


Right = Callable[[str, str], bool | None]
"""Of a question and a raw reply: is it right? None where nobody may know."""


@dataclass(frozen=True)
class VotedQuestion:
    """A question that copies of X answered, and all their replies, in the order of the votes."""

    question: str
    root: str
    """Id of the question at the root of its tree."""
    path: str
    answer: str | None
    """The one that was chosen."""
    replies: tuple[Completion, ...]


VOTES = """
SELECT c.question, c.path, c.step, c.attempt, c.vote, c.completion, c.finish_reason,
  c.prompt_tokens, c.completion_tokens
FROM calls c JOIN questions q ON q.id = c.question
WHERE c.kind = 'model' AND c.error IS NULL AND (c.role = 'answer' OR c.role LIKE 'answer~%')
  AND (:system IS NULL OR q.system = :system) AND (:split IS NULL OR q.split = :split)
  AND q.revises IS NULL
ORDER BY c.question, c.path, c.step, c.attempt, c.vote, c.id
"""
LEAVES = """
SELECT j.question, j.path, j.key, j.detail FROM judgements j JOIN questions q ON q.id = j.question
WHERE j.kind = 'direct' AND (:system IS NULL OR q.system = :system)
  AND (:split IS NULL OR q.split = :split)
  AND q.revises IS NULL ORDER BY j.id
"""


def voted_questions(
    store: TraceStore, system: str | None = None, split: str | None = None
) -> Iterator[VotedQuestion]:
    """Every question that copies answered, those of one system and split where they are named; no
    revision, whose replies are those of the trajectory that it revises."""
    where = {"system": system, "split": split}
    replies: dict[tuple[str, str, tuple[int, int]], dict[int, Completion]] = {}
    for row in store.select(VOTES, where):
        place = row["question"], row["path"], (row["step"], row["attempt"])
        # Of a conversation with tools the last reply is the vote.
        replies.setdefault(place, {})[row["vote"]] = Completion(
            row["completion"],
            row["prompt_tokens"],
            row["completion_tokens"],
            finish_reason=row["finish_reason"],
        )
    for row in store.select(LEAVES, where):
        place = row["question"], row["path"], step_and_retries(row["key"])
        if (votes := replies.pop(place, None)) is not None:
            detail: dict[str, Any] = json.loads(row["detail"])
            yield VotedQuestion(
                detail["question"], row["question"], row["path"], detail["answer"],
                tuple(votes.values()),
            )  # fmt: skip


def by_task(task: Task) -> Right:
    """The task's own score, of held-out questions alone."""

    def right(question: str, reply: str) -> bool | None:
        if not is_held_out(task, question):
            return None
        try:
            return task.score(question, task.normalise(reply))
        except ValueError:
            return False

    return right


def by_acceptance(voted: Sequence[VotedQuestion], normalise: Callable[[str], str]) -> Right:
    """Agreement with the answer that was accepted: shared errors pass for right."""
    accepted = {one.question: one.answer for one in voted if one.answer is not None}

    def right(question: str, reply: str) -> bool | None:
        answer = accepted.get(question)
        return None if answer is None else normalise(reply) == answer

    return right


@dataclass(frozen=True)
class Measured:
    """What was measured of one vote."""

    accuracy: float
    ci95: tuple[float, float]
    questions: int
    """Whose first vote was marked."""
    steps: float
    """Questions that copies answered in one tree, on average."""
    tokens: float
    """Of one vote, prompt and completion."""
    marked: tuple[tuple[bool, ...], ...]
    """Of each question, the votes in order: right or not."""
    wrong_answers: float
    """Share of the questions whose chosen answer is wrong."""


def measure(voted: Sequence[VotedQuestion], right: Right) -> Measured | None:
    """Accuracy of a first vote, and the rest; None where no vote could be marked.

    First votes alone are a fair sample: a question has more where they left doubt.
    """
    marked: list[tuple[bool, ...]] = []
    wrong = 0
    for one in voted:
        marks = [right(one.question, reply.text) for reply in one.replies]
        if any(mark is None for mark in marks) or not marks:
            continue
        marked.append(tuple(bool(mark) for mark in marks))
        wrong += one.answer is None or not right(one.question, one.answer)
    if not marked:
        return None
    first = sum(marks[0] for marks in marked)
    roots = Counter(one.root for one in voted)
    tokens = [reply.tokens for one in voted for reply in one.replies]
    return Measured(
        first / len(marked),
        wilson(first, len(marked)),
        len(marked),
        sum(roots.values()) / len(roots),
        sum(tokens) / len(tokens),
        tuple(marked),
        wrong / len(marked),
    )


@dataclass(frozen=True)
class FlagEffect:
    """What one rule does to the votes of a log."""

    rule: str
    flagged: int
    accuracy_flagged: float | None
    """Of the votes that it discards; None where it discards none."""
    accuracy_kept: float | None
    n: int
    """Votes that could be marked."""


def flag_effects(
    voted: Sequence[VotedQuestion], flags: RedFlags, right: Right
) -> Sequence[FlagEffect]:
    """Each rule by itself: it pays where it discards what is wrong more often than the rest."""
    effects: list[FlagEffect] = []
    for rule, alone in _rules(flags).items():
        marks: dict[bool, list[bool]] = {True: [], False: []}
        for one in voted:
            for reply in one.replies:
                mark = right(one.question, reply.text)
                if mark is not None:
                    marks[alone.of(reply) != ""].append(mark)
        effects.append(
            FlagEffect(
                rule,
                len(marks[True]),
                _share(marks[True]),
                _share(marks[False]),
                len(marks[True]) + len(marks[False]),
            )
        )
    return effects


def _rules(flags: RedFlags) -> Mapping[str, RedFlags]:
    """Each rule that is set, alone."""
    none = RedFlags()
    names = [name for name in vars(flags) if getattr(flags, name) != getattr(none, name)]
    return {name: replace(none, **{name: getattr(flags, name)}) for name in names}


def _share(marks: Sequence[bool]) -> float | None:
    return sum(marks) / len(marks) if marks else None
