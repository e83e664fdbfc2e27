"""An exam: questions, whatever their source, and what makes an answer right.

A task's questions are held out and marked by the task; a file's bring their true answers with
them. A marker that fails is an error and never a wrong answer.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from reflux.agents.errors import RefluxError, UsageError
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.ask import task_context
from reflux.graphs.evals.datasets import QuestionFile, Row
from reflux.graphs.evals.scorers import FORMS, normalised, same
from reflux.graphs.evals.task import Task, check_held_out, is_held_out, score_held_out

Scorer = Callable[[str, str, str], object]
"""A scorer of the user's: (question, answer, true answer) → right? It must return a bool."""


class EvalTask(Protocol):
    """What systems are compared on."""

    @property
    def name(self) -> str:
        """Recorded with each question."""
        ...

    @property
    def split(self) -> str:
        """Recorded with each question: `held_out`, or `file`."""
        ...

    @property
    def rule(self) -> str:
        """What makes an answer right, in a word."""
        ...

    def questions(self, seed: int) -> Sequence[str]:
        """Those of one seed, each once.

        Raises:
            UsageError: there are none.
        """
        ...

    def same_question(self, question: str) -> str:
        """The text that equivalent questions share: they count as one."""
        ...

    def same_answer(self, answer: str) -> str:
        """The text that answers share which say the same: they are votes for one."""
        ...

    def right(self, question: str, answer: str) -> bool:
        """Is the answer right?

        Raises:
            RefluxError: the marker failed.
        """
        ...

    def true_answers(self, question: str) -> Sequence[str]:
        """Where they may be shown, otherwise none."""
        ...

    def part_right(self, question: str, answer: str | None) -> bool | None:
        """Is an answer within a tree right? No answer is a wrong one. None where nobody may or can
        tell."""
        ...

    def context(self, context: AmplifyContext) -> AmplifyContext:
        """The context with all that belongs to these questions."""
        ...


@dataclass(frozen=True)
class LevelEvalTask:
    """Held-out questions of one level of a task."""

    task: Task
    level: int
    limit: int
    """Questions for each seed."""

    split = "held_out"
    rule = "the task's own"

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    def questions(self, seed: int) -> Sequence[str]:
        """The seed draws them."""
        questions = self.task.sample(self.limit, self.level, "held_out", seed)
        if not questions:
            raise UsageError(
                f"{self.name} holds out no question at --level {self.level}; take another"
            )
        for question in questions:
            check_held_out(self.task, question)
        return questions

    def same_question(self, question: str) -> str:
        """The task's canonical text."""
        return self.task.canonical(question)

    def same_answer(self, answer: str) -> str:
        """The task's normal text."""
        return self.task.normalise(answer)

    def right(self, question: str, answer: str) -> bool:
        """The task's own scorer says it."""
        return marked(self.name, question, lambda: score_held_out(self.task, question, answer))

    def true_answers(self, question: str) -> Sequence[str]:
        """A task has a scorer and no list of answers."""
        return ()

    def part_right(self, question: str, answer: str | None) -> bool | None:
        """Held-out questions of the task alone are marked, at whatever depth they are asked."""
        try:
            if not is_held_out(self.task, question):
                return None
            # Without an answer, too: the scorer says whether its key is known.
            return score_held_out(self.task, question, answer or "") and answer is not None
        except (UsageError, ValueError):  # Not of the task's form, or without a known key.
            return None

    def context(self, context: AmplifyContext) -> AmplifyContext:
        """H, checker, tools and texts are the task's."""
        return task_context(context, self.task)


@dataclass(frozen=True)
class FileEvalTask:
    """Questions of a file, marked by a rule of `reflux.graphs.evals.scorers` or by a function."""

    file: QuestionFile
    rule: str
    scorer: Scorer | None = None
    limit: int | None = None
    """So many of them, drawn by chance; None for all."""

    split = "file"

    def __post_init__(self) -> None:
        """Find what cannot be compared before anything is asked.

        Raises:
            UsageError: no such rule, or a true answer without its form.
            RefluxError: the marker fails on the first question.
        """
        if self.scorer is not None:
            first = self.file.rows[0]
            self.right(first.question, first.answers[0])
            return
        if self.rule not in FORMS:
            raise UsageError(
                f"there is no score {self.rule!r}; there are: {', '.join(FORMS)}, or a function of "
                "your own, module:function"
            )
        for row in self.file.rows:
            for answer in row.answers:
                if FORMS[self.rule](answer) is None:
                    raise UsageError(
                        f"{self.file.path}, line {row.line}: the answer {answer[:80]!r} has no "
                        f"form that --score {self.rule} can compare; correct the line, or take "
                        "another --score"
                    )

    @property
    def name(self) -> str:
        """The file's, without its ending."""
        return self.file.path.stem

    @cached_property
    def _rows(self) -> Mapping[str, Row]:
        return {row.question: row for row in self.file.rows}

    def questions(self, seed: int) -> Sequence[str]:
        """The same for every seed: only how systems sample differs."""
        questions = list(self._rows)
        if self.limit is None or self.limit >= len(questions):
            return questions
        chosen = random.Random(f"{self.name}:{self.limit}").sample(
            range(len(questions)), self.limit
        )
        return [questions[at] for at in sorted(chosen)]

    def same_question(self, question: str) -> str:
        """To the letter, white space apart: `3 + 2` and `3 - 2` have the same words."""
        return " ".join(question.split())

    def same_answer(self, answer: str) -> str:
        """By the rule's form, or in words where a function marks."""
        return FORMS.get(self.rule, normalised)(answer) or answer

    def right(self, question: str, answer: str) -> bool:
        """Right where it is as good as any of the true answers."""
        return any(self._as_good(question, answer, truth) for truth in self._rows[question].answers)

    def _as_good(self, question: str, answer: str, truth: str) -> bool:
        scorer = self.scorer
        if scorer is None:
            return same(self.rule, answer, truth)
        return marked(self.rule, question, lambda: scorer(question, answer, truth))

    def true_answers(self, question: str) -> Sequence[str]:
        """Those of the file."""
        return self._rows[question].answers

    def part_right(self, question: str, answer: str | None) -> bool | None:
        """The file tells of its own questions only; a scorer of the user's never sees the answer
        that is missing."""
        if question not in self._rows:
            return None
        return answer is not None and self.right(question, answer)

    def context(self, context: AmplifyContext) -> AmplifyContext:
        """The file's system message; H and the rest are the caller's."""
        return replace(context, system_prompt=self.file.system)


def marked(who: str, question: str, mark: Callable[[], object]) -> bool:
    """What a marker says, which must be a bool.

    Raises:
        RefluxError: it fails, or says something else.
    """
    kept = "every answer is recorded, so correct it and give the same command again: no call is \
repeated"
    try:
        found = mark()
    except RefluxError:
        raise
    except (Exception, SystemExit) as error:
        raise RefluxError(
            f"the scorer {who!r} failed on {question[:80]!r}: {type(error).__name__}: "
            f"{str(error)[:300]}; {kept}"
        ) from error
    if not isinstance(found, bool):
        raise RefluxError(
            f"the scorer {who!r} says {repr(found)[:80]} of the answer to {question[:80]!r}, not "
            f"True or False; {kept}"
        )
    return found
