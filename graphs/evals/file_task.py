"""The task of a question file: its questions, and how answers to them are checked and scored."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

from reflux.agents.errors import UsageError
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.verifiers import Checker, RuleChecker
from reflux.graphs.evals.eval_task import JUDGE, FileEvalTask, file_eval_task
from reflux.graphs.evals.questions.files import read_questions
from reflux.graphs.evals.questions.forms import Form, Keys
from reflux.graphs.evals.scoring.scorers import FORMS, normalised
from reflux.graphs.evals.scoring.scorers import same as same_by
from reflux.graphs.evals.task import Task

MAX_TOKENS = 256
"""Default maximum tokens of an answer."""
UNTESTED = RuleChecker({})
MODEL: Sequence[Overseer] = (ModelOverseer(),)


class FileTask(Task):
    """Questions of a file, of which all, some or none have true answers.

    Its check is for whole answers: sub-answers have their own forms.
    """

    checks_parts = False

    def __init__(
        self,
        name: str,
        source: str,
        keys: Keys,
        *,
        score: str = "",
        checker: Checker = UNTESTED,
        normalise: Callable[[str], str] = str.strip,
        overseers: Sequence[Overseer] = MODEL,
        tool_names: Sequence[str] = (),
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        """
        Args:
            score: compares answers with true ones, as `file_eval_task` takes it; by default
                `choice` or `normalised` where the file has answers.

        Raises:
            UsageError, MissingError: as `read_questions` and `file_eval_task`, or there is a score
                and no answer.
        """
        self.name = name
        self.file = read_questions(source, replace(keys, optional=True))
        self.system_prompt = self.file.system
        self._form, self._checker, self._normalise = Form(keys), checker, normalise
        self._overseers, self.tool_names, self._max_tokens = overseers, tool_names, max_tokens
        self._choices = {row.question: row.choices for row in self.file.rows}
        answered = tuple(row for row in self.file.rows if row.answers)
        if score and not answered:
            raise UsageError(
                f"score: {score}, and no line of {source} has an answer: name its column by "
                f"{keys.options[1]}, or leave the score out"
            )
        self.scored: FileEvalTask | None = None
        """The questions that have true answers."""
        if score.startswith(JUDGE):
            raise UsageError(
                f"score: {score} is for `reflux eval`; a run takes a rule or FILE.py:NAME"
            )
        if answered:
            self.scored = file_eval_task(replace(self.file, rows=answered), score)
        self.rule = self.scored.rule if self.scored else "normalised"

    def questions(self) -> Sequence[str]:
        return tuple(self._choices)

    def overseers(self) -> Sequence[Overseer]:
        return self._overseers

    def answer_tokens(self, question: str) -> int:
        return self._max_tokens

    def checker(self) -> Checker:
        return self._checker

    def canonical(self, question: str) -> str:
        return " ".join(question.split())

    def normalise(self, answer: str) -> str:
        return self._normalise(answer)

    def from_user(self, text: str) -> str:
        """A question of the file as it is; any other by the template, where this needs nothing but
        the question."""
        known = self.canonical(text) in self._canonical
        return text.strip() if known else self._form.from_text(text.strip())

    @cached_property
    def _canonical(self) -> frozenset[str]:
        return frozenset(map(self.canonical, self._choices))

    def same_answer(self, question: str, one: str, other: str) -> bool:
        if one == other:
            return True
        if self.rule in FORMS and self.rule != "contains":
            return same_by(self.rule, one, other, self._choices.get(question, ()))
        return normalised(one) == normalised(other)

    def has_truth(self, question: str) -> bool:
        return self.scored is not None and self.scored.has_truth(question)

    def score(self, question: str, answer: str) -> bool:
        if self.scored is None:
            return super().score(question, answer)
        return self.scored.right(question, answer)
