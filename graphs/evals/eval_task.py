"""Eval tasks: questions of a task or a file, and how an answer to them is scored.

A file's answers are compared by a rule of `reflux.graphs.evals.scoring.scorers`, by a function of
the user, or by a model (`judge:MODEL`), whose grades `reflux.graphs.evals.runner` asks for.
"""

import asyncio
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

from reflux.agents.errors import RefluxError, UsageError
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.evals.questions.files import QuestionFile, Row
from reflux.graphs.evals.scoring.math_worker import check_math_installed
from reflux.graphs.evals.scoring.scorers import FORMS, can_compare, normalised, same
from reflux.graphs.evals.task import Task, check_held_out, is_held_out, score_held_out, task_context
from reflux.graphs.external.user_code import load_object

Scorer = Callable[[str, str, str], object]
"""A user's scorer: (question, answer, true answer) → right, as a bool, 0 or 1; a coroutine function
may be one, too."""
JUDGE = "judge:"
"""How a rule begins that asks a model."""


@dataclass(frozen=True)
class LevelEvalTask:
    """Held-out questions of one level of a task."""

    task: Task
    level: int
    limit: int
    """Questions of each seed."""

    split = "held_out"
    """Recorded with each question."""
    judge = ""
    rule = "the task's own"
    """The scorer's name."""

    @property
    def name(self) -> str:
        """Recorded with each question."""
        return self.task.name

    def questions(self, seed: int) -> Sequence[str]:
        """The different questions of one seed.

        Raises:
            UsageError: there are none.
        """
        questions = self.task.sample(self.limit, self.level, "held_out", seed)
        if not questions:
            raise UsageError(
                f"{self.name} holds out no question at --level {self.level}; name another level"
            )
        for question in questions:
            check_held_out(self.task, question)
        scored = [question for question in questions if self.task.has_truth(question)]
        if not scored:
            raise UsageError(
                f"no held-out question of {self.name} has a true answer, so nothing can be scored: "
                "give it answers, or a scorer"
            )
        return scored

    def same_question(self, question: str) -> str:
        """The text that equivalent questions share; they count as one."""
        return self.task.canonical(question)

    def same_answer(self, answer: str) -> str:
        """The text that equivalent answers share; votes are counted by it."""
        return self.task.normalise(answer)

    def right(self, question: str, answer: str) -> bool:
        """Score an answer.

        Raises:
            RefluxError: the scorer failed.
        """
        return run_scorer(self.name, question, lambda: score_held_out(self.task, question, answer))

    def true_answers(self, question: str) -> Sequence[str]:
        """The true answers that may be shown; of a held-out question none."""
        return ()

    def choices(self, question: str) -> Sequence[str]:
        return ()

    def part_right(self, question: str, answer: str | None) -> bool | None:
        """Score a node within a tree; a missing answer is wrong. None where it isn't a held-out
        question of the task, or its true answer is unknown."""
        try:
            if not (is_held_out(self.task, question) and self.task.has_truth(question)):
                return None
            # Also without an answer: the scorer tells whether the true answer is known.
            return self.right(question, answer or "") and answer is not None
        except (RefluxError, ValueError):  # Not of the task's form, or the true answer is unknown.
            return None

    def context(self, context: AmplifyContext) -> AmplifyContext:
        """The context with overseers, checker, tools and texts of the task."""
        return task_context(context, self.task)


@dataclass(frozen=True)
class FileEvalTask:
    """Questions of a file, scored by a rule of `FORMS` or by a function."""

    file: QuestionFile
    rule: str
    scorer: Scorer | None = None
    limit: int | None = None
    """Size of a random sample of the questions; None for all."""

    split = "file"

    def __post_init__(self) -> None:
        """Detect answers that cannot be compared before any question is asked.

        Raises:
            UsageError: there is no such rule, or a true answer has no form under it.
            MissingError: the rule needs a package that is not installed.
            RefluxError: the scorer fails on the first question.
        """
        if self.scorer is not None:
            first = self.file.rows[0]
            self.right(first.question, first.answers[0])
            return
        if self.judge:
            return
        if self.rule not in FORMS:
            raise UsageError(
                f"there is no score {self.rule!r}; there are: {', '.join(FORMS)}, {JUDGE}MODEL, "
                "or a function as module:function"
            )
        if self.rule == "math":
            check_math_installed()
        for row in self.file.rows:
            if not any(can_compare(self.rule, answer, row.choices) for answer in row.answers):
                raise UsageError(
                    f"{self.file.path}, line {row.line}: the answer {row.answers[0][:80]!r} has no "
                    f"form that the score {self.rule} can compare; correct the line, or use "
                    "another score"
                )

    @property
    def name(self) -> str:
        return self.file.path.stem

    @property
    def judge(self) -> str:
        """The model that grades the answers; empty where a rule or a function does."""
        return self.rule.removeprefix(JUDGE) if self.rule.startswith(JUDGE) else ""

    def has_truth(self, question: str) -> bool:
        """True for the questions of the file."""
        return question in self._rows

    @cached_property
    def _rows(self) -> Mapping[str, Row]:
        return {row.question: row for row in self.file.rows}

    def questions(self, seed: int) -> Sequence[str]:
        """The same for every seed: only the systems' samples differ."""
        questions = list(self._rows)
        if self.limit is None or self.limit >= len(questions):
            return questions
        draw = random.Random(f"{self.name}:{self.limit}")
        return [questions[i] for i in sorted(draw.sample(range(len(questions)), self.limit))]

    def same_question(self, question: str) -> str:
        """Exact except for white space: `3 + 2` and `3 - 2` have the same words."""
        return " ".join(question.split())

    def same_answer(self, answer: str) -> str:
        return FORMS.get(self.rule, normalised)(answer) or answer

    def right(self, question: str, answer: str) -> bool:
        """Right if it equals one of the true answers. A judge's grades are not known here.

        Raises:
            RefluxError: the scorer failed.
        """
        return any(self._equals(question, answer, truth) for truth in self.true_answers(question))

    def _equals(self, question: str, answer: str, truth: str) -> bool:
        if (scorer := self.scorer) is None:
            return same(self.rule, answer, truth, self._rows[question].choices)
        return run_scorer(self.rule, question, lambda: scorer(question, answer, truth))

    def true_answers(self, question: str) -> Sequence[str]:
        return self._rows[question].answers

    def choices(self, question: str) -> Sequence[str]:
        """The choices of a question; none where it is open."""
        return self._rows[question].choices

    def part_right(self, question: str, answer: str | None) -> bool | None:
        """Questions of the file alone are scored; a scorer never receives a missing answer."""
        if question not in self._rows or self.judge:
            return None
        return answer is not None and self.right(question, answer)

    def context(self, context: AmplifyContext) -> AmplifyContext:
        """The file's system message; the overseer and the rest are the caller's."""
        return replace(context, system_prompt=self.file.system)


EvalTask = LevelEvalTask | FileEvalTask
"""What systems are compared on."""


def file_eval_task(file: QuestionFile, score: str = "", limit: int | None = None) -> FileEvalTask:
    """The eval task of a file.

    Args:
        score: a rule, `judge:MODEL`, or a function as FILE.py:NAME; by default `choice` where all
            questions have choices, else `normalised`.

    Raises:
        UsageError, MissingError, RefluxError: as `FileEvalTask`, or the function cannot be loaded.
    """
    score = score or ("choice" if all(row.choices for row in file.rows) else "normalised")
    scorer: Scorer | None = None
    if ":" in score and not score.startswith(JUDGE):
        scorer, _ = load_object(score)
        if not callable(scorer):
            raise UsageError(
                f"{score} is no function; a scorer takes (question, answer, true answer) and "
                "returns True or False"
            )
    return FileEvalTask(file, score, scorer, limit)


def run_scorer(name: str, question: str, scorer: Callable[[], object]) -> bool:
    """A scorer's result, which must be a bool.

    Raises:
        RefluxError: the scorer fails, or returns something else.
    """
    remedy = "every answer is recorded, so correct it and repeat the command: no call is repeated"
    try:
        right = scorer()
        if inspect.iscoroutine(right):  # In a thread, because answers are scored on a loop.
            with ThreadPoolExecutor(1) as thread:
                right = thread.submit(asyncio.run, right).result()
    except RefluxError:
        raise
    except (Exception, SystemExit) as error:
        raise RefluxError(
            f"the scorer {name!r} failed on {question[:80]!r}: {type(error).__name__}: "
            f"{str(error)[:300]}; {remedy}"
        ) from error
    if callable(item := getattr(right, "item", None)):  # A boolean of NumPy or PyTorch.
        right = item()
    if isinstance(right, int | float) and right in (0, 1):
        right = bool(right)
    if not isinstance(right, bool):
        raise RefluxError(
            f"the scorer {name!r} says {repr(right)[:80]} of the answer to {question[:80]!r}, not "
            f"True or False; {remedy}"
        )
    return right
