"""What the tasks of reasoning-gym share: entries, levels, the package's scorer, and defaults.

A task adds its levels and a script as H, which splits a question, sends the parts to copies of the
agent or to a tool, and joins the replies.

`reasoning_gym` (extra `tasks`) is imported when the first question is drawn. Left out, because
their scorers accept wrong answers or refuse right ones: rubiks_cube, rush_hour,
propositional_logic, boxnet, graph_color, game_of_life_halting and prime_factorization.
"""

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

from reflux.agents.errors import MissingError, UsageError
from reflux.agents.overseers.protocol import PASS, Overseer
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.tools.calculator import Calculator
from reflux.agents.tools.protocol import Tool
from reflux.agents.tools.python_sandbox import Sandbox
from reflux.agents.types import Exchange, Step
from reflux.agents.verifiers import Checker, RuleChecker
from reflux.graphs.evals.task import Split, is_held_out

INSTALL = "pip install 'reflux-ida[tasks]'"
Entry = Mapping[str, Any]
"""One generated question: `question`, `answer`, and what its scorer needs."""


class Source(Protocol):
    """A generator of questions with a scorer."""

    @property
    def levels(self) -> int:
        """The number of levels; the first is 1."""
        ...

    def draw(self, level: int, seed: int) -> Iterator[Entry]:
        """Entries of one level, the same for the same seed."""
        ...

    def right(self, answer: str, entry: Entry) -> bool:
        """True for full marks by the source's scorer."""
        ...


@dataclass(frozen=True)
class Gym:
    """One data set of reasoning-gym; level i has the parameters at position i - 1."""

    dataset: str
    parameters: Sequence[Mapping[str, Any]]
    keep: Callable[[Entry], bool] = lambda entry: True
    """False for an entry whose key is wrong."""

    @property
    def levels(self) -> int:
        """One per set of parameters."""
        return len(self.parameters)

    def draw(self, level: int, seed: int) -> Iterator[Entry]:
        """Entries in the order of the package's own indices."""
        entries = self._dataset(level, seed)
        return filter(self.keep, (entries[i] for i in range(len(entries))))

    def right(self, answer: str, entry: Entry) -> bool:
        """The package's `score_answer`; partial marks count as wrong."""
        return self._scorer.score_answer(answer, dict(entry)) == 1.0

    @cached_property
    def _scorer(self) -> Any:
        return self._dataset(1, 0)

    def _dataset(self, level: int, seed: int) -> Any:
        package = offline_package("reasoning_gym")
        return package.create_dataset(
            self.dataset, seed=seed, size=1_000_000, **self.parameters[level - 1]
        )


def offline_package(name: str) -> Any:
    """A package of the extra `tasks`.

    Raises:
        MissingError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise MissingError(f"this task needs {name}, which is not installed: {INSTALL}") from error


@dataclass(frozen=True, eq=False)
class GymTask:
    """A `reflux.graphs.evals.task.Task` made of a source, a script and two readers of text."""

    name: str
    source: Source
    script: Callable[[Any, Sequence[Exchange]], Step]
    """H's next step, from the parts of a question and the sub-answers so far. A `ValueError` means
    an unusable sub-answer; the graph makes another attempt."""
    read: Callable[[str], Any]
    """The parts of a question; `ValueError` where it is not one of this task's."""
    extract: Callable[[str, str], str]
    """(question, reply) to the answer in the scorer's form; `ValueError` where there is none."""
    answered_by: str
    """What answers the sub-questions: `model: …`, `tool: …` or both."""
    canonical_parts: Callable[[Any], Any] | None = None
    """What equivalent questions share, where that is less than their text."""
    answer_room: int = 48
    """Maximum tokens for a whole question asked directly."""
    part_room: int = 24
    """Maximum tokens for a sub-question."""
    system_prompt: str = ""
    _entries: dict[str, Entry] = field(default_factory=dict, init=False, repr=False)

    def overseers(self) -> Sequence[Overseer]:
        """The one script; a retry samples the copies with other seeds."""
        return (ScriptedOverseer(self.name, self._act),)

    def tools(self) -> Mapping[str, Tool]:
        """The tools that the scripts of all these tasks use."""
        return {"calculator": Calculator(), "python": Sandbox()}

    def _act(self, question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        if not may_ask or not self._reads(question):
            return PASS
        return self.script(self.read(question), transcript)

    def _reads(self, question: str) -> bool:
        try:
            self.read(question)
        except ValueError:
            return False
        return True

    def answer_tokens(self, question: str) -> int:
        """Maximum tokens for a whole question, or for a sub-question."""
        return self.answer_room if self._reads(question) else self.part_room

    def checker(self) -> Checker:
        """Tests the form only: of a whole question's answer; other answers must not be empty."""
        return RuleChecker({"empty": lambda _, answer: bool(answer.strip()), "form": self._formed})

    def _formed(self, question: str, answer: str) -> bool:
        return not self._reads(question) or bool(self.extract(question, answer))

    def primitives(self) -> Sequence[str]:
        """None: H answers nothing without asking."""
        return ()

    def sample(self, n: int, level: int, split: Split, seed: int) -> Sequence[str]:
        """Distinct questions of one split; `score` needs the entries that this stores.

        Raises:
            UsageError: there is no such level.
            MissingError: the package that makes the questions is not installed.
        """
        if not 1 <= level <= self.source.levels:
            raise UsageError(
                f"{self.name!r} has levels 1 to {self.source.levels}; {level} was asked for"
            )
        digest = hashlib.sha256(f"{self.name}:{level}:{split}:{seed}".encode()).digest()
        entries = self.source.draw(level, int.from_bytes(digest[:4]) >> 2)
        questions: dict[str, str] = {}
        for entry in islice(entries, 200 * n):
            if len(questions) == n:
                break
            question = entry["question"].strip()
            if is_held_out(self, question) == (split == "held_out"):
                questions.setdefault(self.canonical(question), question)
                self._entries[question] = entry
        return list(questions.values())

    def canonical(self, question: str) -> str:
        """The parts that equivalent questions share; of other texts, the words."""
        if self.canonical_parts is not None and self._reads(question):
            return repr(self.canonical_parts(self.read(question)))
        return " ".join(question.split())

    def normalise(self, answer: str) -> str:
        """Strips white space; scoring calls `extract`."""
        return answer.strip()

    def from_user(self, text: str) -> str:
        """A question in the words of its source.

        Raises:
            UsageError: it has another form.
        """
        try:
            self.read(text.strip())
        except ValueError as error:
            raise UsageError(f"{error}; {self.name!r} takes its questions word for word") from error
        return text.strip()

    def to_user(self, question: str, answer: str) -> str:
        """The extracted answer, or the whole reply where there is none."""
        try:
            return self.extract(question, answer)
        except ValueError:
            return answer

    def score(self, question: str, answer: str) -> bool:
        """True for full marks by the source's scorer; an answer in another form is wrong.

        Raises:
            UsageError: `sample` did not draw the question, so its key is unknown.
        """
        if question not in self._entries:
            raise UsageError(
                f"{question[:80]!r} was not drawn by {self.name!r}: call sample() before score()"
            )
        try:
            extracted = self.extract(question, answer)
        except ValueError:
            return False
        return self.source.right(extracted, self._entries[question])
