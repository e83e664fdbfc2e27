"""What the tasks of reasoning-gym share: entries, levels, the package's own scorer, the defaults.

A task's own file holds its levels and H. H is a script that splits a question, sends the parts to
copies of X or to a tool, and joins what comes back; `leaves` says who does that work.

The questions and scorers are those of `reasoning_gym` (extra `tasks`), which is imported when the
first question is drawn. Left out, because their scorers accept wrong answers or refuse right ones:
rubiks_cube, rush_hour, propositional_logic, boxnet, graph_color, game_of_life_halting and
prime_factorization.
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
from reflux.agents.verifiers.rules import Checker, RuleChecker
from reflux.graphs.evals.task import Split, is_held_out

INSTALL = "pip install 'reflux-ida[tasks]'"
Entry = Mapping[str, Any]
"""One generated question: `question`, `answer`, and whatever its scorer wants to know."""


class Source(Protocol):
    """Where questions come from."""

    @property
    def levels(self) -> int:
        """How many there are; the first is 1."""
        ...

    def draw(self, level: int, seed: int) -> Iterator[Entry]:
        """Entries of one level, the same for the same seed."""
        ...

    def right(self, answer: str, entry: Entry) -> bool:
        """Full marks, by the source's own scorer."""
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
        """One for each set of parameters."""
        return len(self.parameters)

    def draw(self, level: int, seed: int) -> Iterator[Entry]:
        """Entries in the order of the package's own indices."""
        made = self._dataset(level, seed)
        return (entry for entry in (made[i] for i in range(len(made))) if self.keep(entry))

    def right(self, answer: str, entry: Entry) -> bool:
        """The package's `score_answer`; a partial mark is a wrong answer."""
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
    """H: its next step on a question that was read, given what was answered so far. A
    `ValueError` says that a sub-answer is of no use; the graph tries again, then gives up."""
    read: Callable[[str], Any]
    """Takes a question apart; `ValueError` where it is none of this task's."""
    extract: Callable[[str, str], str]
    """The answer in a reply, in the form that the scorer takes, whoever replied: X asked directly
    or H. `ValueError` where there is none."""
    leaves: str
    """Who answers the sub-questions: `model`, `tool` or both, and what each does."""
    canonical_parts: Callable[[Any], Any] | None = None
    """What equivalent questions share, where that is less than their text."""
    answer_room: int = 48
    """Tokens for a whole question asked directly."""
    leaf_room: int = 24
    """Tokens for a sub-question."""
    system_prompt: str = ""
    _entries: dict[str, Entry] = field(default_factory=dict, init=False, repr=False)

    def overseers(self) -> Sequence[Overseer]:
        """The one script; a retry asks the copies again with other seeds."""
        return (ScriptedOverseer(self.name, self._act),)

    def tools(self) -> Mapping[str, Tool]:
        """Those that the scripts of all these tasks ask."""
        return {"calculator": Calculator(), "python": Sandbox()}

    def _act(self, question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        if not may_ask or not self._reads(question):
            return PASS  # A copy of X answers it, undivided.
        return self.script(self.read(question), transcript)

    def _reads(self, question: str) -> bool:
        try:
            self.read(question)
        except ValueError:
            return False
        return True

    def answer_tokens(self, question: str) -> int:
        """Room for a whole question, or for one of H's."""
        return self.answer_room if self._reads(question) else self.leaf_room

    def checker(self) -> Checker:
        """Form only: a whole question's answer has one that can be scored, any other some text."""
        return RuleChecker({"empty": lambda _, answer: bool(answer.strip()), "form": self._formed})

    def _formed(self, question: str, answer: str) -> bool:
        return not self._reads(question) or bool(self.extract(question, answer))

    def primitives(self) -> Sequence[str]:
        """None: H can answer nothing without asking."""
        return ()

    def sample(self, n: int, level: int, split: Split, seed: int) -> Sequence[str]:
        """Different questions of one side, remembered with their entries for `score`.

        Raises:
            UsageError: there is no such level.
            MissingError: the package that makes the questions is not installed.
        """
        if not 1 <= level <= self.source.levels:
            raise UsageError(
                f"{self.name!r} has levels 1 to {self.source.levels}; {level} was asked for"
            )
        wanted = split == "held_out"
        mixed = hashlib.sha256(f"{self.name}:{level}:{split}:{seed}".encode()).digest()
        entries = self.source.draw(level, int.from_bytes(mixed[:4]) >> 2)
        found: dict[str, str] = {}
        for entry in islice(entries, 200 * n):
            if len(found) == n:
                break
            question = entry["question"].strip()
            if is_held_out(self, question) == wanted:
                found.setdefault(self.canonical(question), question)
                self._entries[question] = entry
        return list(found.values())

    def canonical(self, question: str) -> str:
        """The parts that equivalent questions share; other texts without extra white space."""
        if self.canonical_parts is not None and self._reads(question):
            return repr(self.canonical_parts(self.read(question)))
        return " ".join(question.split())

    def normalise(self, answer: str) -> str:
        """Without white space at the ends: `extract` reads the rest, when it is scored."""
        return answer.strip()

    def from_user(self, text: str) -> str:
        """A question in the words of its source.

        Raises:
            UsageError: it is no such question.
        """
        try:
            self.read(text.strip())
        except ValueError as error:
            raise UsageError(f"{error}; {self.name!r} takes its questions word for word") from error
        return text.strip()

    def to_user(self, question: str, answer: str) -> str:
        """The answer alone, where the reply holds one."""
        try:
            return self.extract(question, answer)
        except ValueError:
            return answer

    def score(self, question: str, answer: str) -> bool:
        """Full marks by the source's own scorer; an answer without the form is wrong.

        Raises:
            UsageError: the question was not drawn by `sample`, so nobody knows its key.
        """
        if question not in self._entries:
            raise UsageError(
                f"{question[:80]!r} was not drawn by {self.name!r}: call sample() before score()"
            )
        try:
            given = self.extract(question, answer)
        except ValueError:
            return False
        return self.source.right(given, self._entries[question])
