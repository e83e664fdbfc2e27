"""A task: questions, and where it has them a scorer, a check and a scripted overseer.

Which questions are held out is decided by a hash of the canonical question, so that equivalent
questions (a+b and b+a) fall on the same side, at every depth of a tree.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal, Protocol

from reflux.agents.errors import UsageError
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.tools.protocol import Tool
from reflux.agents.verifiers import Checker, RuleChecker
from reflux.graphs.amplify.context import AmplifyContext

Split = Literal["train", "held_out"]
HELD_OUT_SHARE = 0.2
"""Share of all questions that no student may learn from."""


class Task(Protocol):
    """Questions, how they are decomposed, and how answers to them are checked and scored.

    A subclass has to state its questions alone: by `questions` where they are a list, else by
    `sample`.
    """

    name: str
    """Recorded with each question, and part of what is held out; by default the class's name."""
    system_prompt: str = ""
    """The system message of every question."""
    checks_parts: bool = True
    """Whether `checker` judges sub-answers, too."""
    tool_names: Sequence[str] = ()
    """Tools of the copies, as `--tool` takes them."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not getattr(cls, "name", ""):
            cls.name = cls.__name__.lower()

    def overseers(self) -> Sequence[Overseer]:
        """One overseer for each decomposition; retries take them in turn."""
        return (ModelOverseer(),)

    def tools(self) -> Mapping[str, Tool]:
        """The overseer's tools by name, for `SubQuestion(text, to="tool:NAME")`; may be none."""
        return {}

    def answer_tokens(self, question: str) -> int:
        """Maximum tokens of an answer to the question."""
        return 256

    def checker(self) -> Checker:
        """Tests answers without knowing the true one."""
        return RuleChecker({})

    def primitives(self) -> Sequence[str]:
        """Questions that the overseer answers itself; may be none. They are never held out."""
        return ()

    def questions(self) -> Sequence[str]:
        """All questions, where they are a list; empty where `sample` makes them."""
        return ()

    def size(self, split: Split) -> int | None:
        """Different questions of a split; None where `sample` makes them without end."""
        return len(_listed(self, split)) if self.questions() else None

    def sample(self, n: int, level: int, split: Split, seed: int) -> Sequence[str]:
        """Draw up to `n` different questions of one level (for example: digits) and split; a task
        without levels ignores the level.

        Training questions cover all that a copy may be asked; held-out questions are typical of the
        level. A level with fewer than `n` questions returns fewer.
        """
        questions = _listed(self, split)
        order = random.Random(f"{self.name}:{split}:{seed}").sample(questions, len(questions))
        return order[:n]

    def check_levels(self, levels: Sequence[int]) -> None:
        """Check the levels of a run's rounds, in their order.

        Raises:
            UsageError: a round could not learn from the one before.
        """

    def canonical(self, question: str) -> str:
        """The text that all equivalent questions share."""
        return question.strip()

    def normalise(self, answer: str) -> str:
        """The text that all equal answers share."""
        return answer.strip()

    def from_user(self, text: str) -> str:
        """A question that a user typed, in the task's form.

        Raises:
            UsageError: it is not a question of this task.
        """
        return text.strip()

    def to_user(self, question: str, answer: str) -> str:
        """An answer in the form that users read."""
        return answer

    def same_answer(self, question: str, one: str, other: str) -> bool:
        """Whether two answers to a question say the same."""
        return self.normalise(one) == self.normalise(other)

    def has_truth(self, question: str) -> bool:
        """Whether `score` knows the true answer; by default, whether the task has a scorer."""
        return type(self).score is not Task.score

    def score(self, question: str, answer: str) -> bool:
        """Whether the answer is right. Called only for held-out questions that have a truth."""
        raise UsageError(f"{self.name} knows no true answer to {question!r:.80}")


def writing_of(task: Task) -> str:
    """The task's optional `writing`: how its notation differs from the users'; or empty."""
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


@lru_cache(maxsize=16)
def _listed(task: Task, split: Split) -> tuple[str, ...]:
    """The listed questions of a split; of equivalent ones the first."""
    questions: dict[str, str] = {}
    for question in task.questions():
        questions.setdefault(task.canonical(question), question)
    held_out = split == "held_out"
    return tuple(each for each in questions.values() if is_held_out(task, each) == held_out)


def hashed_out(text: str) -> bool:
    """True for a fixed `HELD_OUT_SHARE` of all texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) < HELD_OUT_SHARE * 2**64


def check_held_out(task: Task, question: str) -> None:
    """Check that a question is held out.

    Raises:
        UsageError: it is a training question.
    """
    if not is_held_out(task, question):
        raise UsageError(
            f"{question!r} is a training question of {task.name!r}: only held-out ones are scored"
        )


def score_held_out(task: Task, question: str, answer: str | None) -> bool:
    """Score one held-out answer, whose truth is known; a missing answer is wrong.

    Raises:
        UsageError: it is a training question, whose true answer must not be used.
    """
    check_held_out(task, question)
    return answer is not None and task.score(question, answer)


def draw_questions(
    task: Task,
    n: int,
    level: int,
    split: Split,
    seed: int,
    draw: Callable[[random.Random], str],
    max_draws: int = 200,
) -> list[str]:
    """Up to `n` distinct questions of one split, in the order drawn, or fewer after `max_draws`
    draws per question. `draw` returns a random question, or an empty text to skip."""
    generator = random.Random(f"{task.name}:{level}:{split}:{seed}")
    questions: dict[str, None] = {}
    for _ in range(max_draws * n):
        if len(questions) == n:
            break
        question = draw(generator)
        if question and is_held_out(task, question) == (split == "held_out"):
            questions[question] = None
    return list(questions)


def read_by(read: Callable[[str], object], text: str, remedy: str) -> str:
    """A question that a user typed in the task's own form, which `read` reads.

    Raises:
        UsageError: it has another form; the message ends with `remedy`.
    """
    try:
        read(text.strip())
    except ValueError as error:
        raise UsageError(f"{error}; {remedy}") from error
    return text.strip()


def task_context(context: AmplifyContext, task: Task) -> AmplifyContext:
    """The context with the task's overseers, checker and texts.

    A tool of the context replaces the task's tool of the same name.
    """
    return replace(
        context,
        overseers=task.overseers(),
        tools={**task.tools(), **context.tools},
        checker=task.checker(),
        checks_parts=task.checks_parts,
        max_tokens=task.answer_tokens,
        system_prompt=task.system_prompt,
        normalise=task.normalise,
        canonical=task.canonical,
    )
