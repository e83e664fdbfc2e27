"""A task: questions, a scorer, and if it has one a scripted overseer.

Which questions are held out is decided by a hash of the canonical question, so that equivalent
questions (a+b and b+a) fall on the same side, at every depth of a tree.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, Protocol

from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.tools.protocol import Tool
from reflux.agents.verifiers.rules import Checker

Split = Literal["train", "held_out"]
HELD_OUT_SHARE = 0.2
"""Share of all questions that no student may learn from."""


class Task(Protocol):
    """What Reflux needs to know of a task. One file each, in `reflux/tasks/`."""

    @property
    def name(self) -> str:
        """Recorded with each question, and part of what is held out."""
        ...

    @property
    def system_prompt(self) -> str:
        """What stands before every question."""
        ...

    def overseers(self) -> Sequence[Overseer]:
        """H, once for each decomposition that it knows; retries go through them in turn."""
        ...

    def tools(self) -> Mapping[str, Tool]:
        """Tools that H asks, by name: `SubQuestion(text, to="tool:NAME")`; maybe none."""
        ...

    def answer_tokens(self, question: str) -> int:
        """Tokens that an answer to the question may take: more are cut off."""
        ...

    def checker(self) -> Checker:
        """Tests answers without knowing the true one."""
        ...

    def primitives(self) -> Sequence[str]:
        """Questions that H answers itself, maybe none. They are exempt from the hold-out."""
        ...

    def sample(self, n: int, level: int, split: Split, seed: int) -> Sequence[str]:
        """Draw up to `n` different questions of one level (for example: digits) and side.

        Training questions cover all that a copy may be asked; held-out ones are what the level
        stands for. Fewer than `n` come back where a level has no more.
        """
        ...

    def canonical(self, question: str) -> str:
        """The text that all equivalent questions share."""
        ...

    def normalise(self, answer: str) -> str:
        """The text that all equal answers share."""
        ...

    def from_user(self, text: str) -> str:
        """A question as a person types it, in the task's own form.

        Raises:
            UsageError: it is not a question of this task.
        """
        ...

    def to_user(self, question: str, answer: str) -> str:
        """An answer as a person reads it."""
        ...

    def score(self, question: str, answer: str) -> bool:
        """Is the answer right? Asked of held-out questions only."""
        ...


def writing_of(task: Task) -> str:
    """How a task's trees write what persons write otherwise, its optional `writing`; or
    empty."""
    return getattr(task, "writing", "")


def is_held_out(task: Task, question: str) -> bool:
    """True where no student may learn from this question or its answer."""
    canonical = task.canonical(question)
    if canonical in _primitives(task):
        return False
    return hashed_out(f"{task.name}:{canonical}")


@lru_cache(maxsize=16)
def _primitives(task: Task) -> frozenset[str]:
    return frozenset(task.canonical(primitive) for primitive in task.primitives())


def hashed_out(text: str) -> bool:
    """True for a fixed fifth of all texts."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8]) < HELD_OUT_SHARE * 2**64


def check_held_out(task: Task, question: str) -> None:
    """Let held-out questions pass.

    Raises:
        UsageError: a training question.
    """
    if not is_held_out(task, question):
        raise UsageError(
            f"{question!r} is a training question of {task.name!r}: only held-out ones are scored"
        )


def score_held_out(task: Task, question: str, answer: str | None) -> bool:
    """Score one held-out answer; no answer is a wrong one.

    Raises:
        UsageError: a training question, whose true answer nobody may look at.
    """
    check_held_out(task, question)
    return answer is not None and task.score(question, answer)


def draw_questions(
    task: Task, n: int, split: Split, draw: Callable[[], str], max_draws: int
) -> list[str]:
    """Up to `n` distinct questions of one split, in the order drawn.

    Args:
        draw: returns a random question, or an empty text to skip.
        max_draws: draws per question before it gives up.
    """
    questions: dict[str, None] = {}
    for _ in range(max_draws * n):
        if len(questions) == n:
            break
        question = draw()
        if question and is_held_out(task, question) == (split == "held_out"):
            questions[question] = None
    return list(questions)
