"""What the tasks of reasoning-gym share: entries, levels, the package's scorer, readers of text.

A task adds its levels and a script as H, which splits a question, sends the parts to copies of the
agent or to a tool, and joins the replies. The readers at the end take an answer out of the text
around it, and raise `ValueError` where there is none; they know forms and words, not what is right.

`reasoning_gym` (extra `tasks`) is imported when the first question is drawn. Left out, because
their scorers accept wrong answers or refuse right ones: rubiks_cube, rush_hour,
propositional_logic, boxnet, graph_color, game_of_life_halting and prime_factorization.
"""

import hashlib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

from reflux.agents.errors import MissingError, UsageError, pip_install
from reflux.agents.overseers.protocol import PASS, Overseer
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.tools.calculator import Calculator
from reflux.agents.tools.protocol import Tool
from reflux.agents.tools.python_sandbox import Sandbox
from reflux.agents.types import Ask, Exchange, Step, SubQuestion
from reflux.agents.verifiers import Checker, RuleChecker
from reflux.graphs.evals.task import Split, Task, is_held_out

NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)")
COUNTS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen",
)  # fmt: skip
Entry = Mapping[str, Any]
"""One generated question: `question`, `answer`, and what its scorer needs."""


class Source(Protocol):
    """A generator of questions with a scorer."""

    @property
    def levels(self) -> int: ...

    def draw(self, level: int, seed: int) -> Iterator[Entry]:
        """Entries of one level, the same for the same seed."""
        ...

    def right(self, answer: str, entry: Entry) -> bool:
        """True for full marks by the source's scorer."""
        return answer == entry["answer"]


@dataclass(frozen=True)
class Gym(Source):
    """One data set of reasoning-gym; level i has the parameters at position i - 1."""

    dataset: str
    parameters: Sequence[Mapping[str, Any]]
    keep: Callable[[Entry], bool] = lambda entry: True
    """False for an entry whose key is wrong."""

    @property
    def levels(self) -> int:
        return len(self.parameters)

    def draw(self, level: int, seed: int) -> Iterator[Entry]:
        """Entries in the order of the package's own indices."""
        entries = self._dataset(level, seed)
        return filter(self.keep, (entries[i] for i in range(len(entries))))

    def right(self, answer: str, entry: Entry) -> bool:
        """Whether the package's `score_answer` gives full marks; partial marks count as wrong."""
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
        raise MissingError(f"this task needs {name}: {pip_install('tasks')}") from error


@dataclass(frozen=True, eq=False)
class GymTask(Task):
    """A task made of a source, a script and two readers of text."""

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
    _entries: dict[str, Entry] = field(default_factory=dict, init=False, repr=False)

    def overseers(self) -> Sequence[Overseer]:
        """The one script; a retry samples the copies with other seeds."""
        return (ScriptedOverseer(self.name, self._act),)

    def tools(self) -> Mapping[str, Tool]:
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
        return self.answer_room if self._reads(question) else self.part_room

    def checker(self) -> Checker:
        """Tests the form only: of a whole question's answer; other answers must not be empty."""
        return RuleChecker({"empty": lambda _, answer: bool(answer.strip()), "form": self._formed})

    def _formed(self, question: str, answer: str) -> bool:
        return not self._reads(question) or bool(self.extract(question, answer))

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


def ask_tool(name: str, questions: Iterable[str]) -> Ask:
    """Independent sub-questions to a tool of the overseer."""
    return Ask(tuple(SubQuestion(question, to=f"tool:{name}") for question in questions))


def text_of(exchange: Exchange) -> str:
    """The answer to a sub-question.

    Raises:
        ValueError: it is empty, or the sub-question failed.
    """
    if exchange.error is not None or not (exchange.answer or "").strip():
        raise ValueError(f"no usable answer to {exchange.question!r}: {exchange.error or 'empty'}")
    return (exchange.answer or "").strip()


def number_of(exchange: Exchange) -> str:
    """The sub-answer, which must be one number and nothing else."""
    text = text_of(exchange)
    if not re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?", text):
        raise ValueError(f"{text[:80]!r} is not a number; {exchange.question!r} asks for one")
    return text


def whole_number_of(exchange: Exchange) -> int:
    """The sub-answer, which must be one whole number of at least zero."""
    text = text_of(exchange)
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise ValueError(f"{text[:80]!r} is not a whole number; {exchange.question!r} asks for one")
    return int(text)


def last_number(reply: str) -> str:
    """The last number of a reply, without commas: explanations come before the result."""
    numbers = NUMBER.findall(reply)
    if not numbers:
        raise ValueError(f"no number in {reply[:80]!r}")
    return numbers[-1].replace(",", "").replace("−", "-").lstrip("+")


def last_count(reply: str) -> str:
    """The last number of a reply, in digits or in words up to fifteen."""
    words = "|".join(COUNTS)
    counts = re.findall(rf"(?<![\w.])\d+(?!\w)|\b(?:{words})\b", reply, re.IGNORECASE)
    if not counts:
        raise ValueError(f"no count in {reply[:80]!r}")
    last = counts[-1].lower()
    return str(COUNTS.index(last)) if last in COUNTS else last


def number_list(reply: str) -> str:
    """A list of numbers as `['1', '2.5']`: the last in brackets, else the last line with any."""
    brackets = re.findall(r"\[([^\[\]]*)\]", reply)
    lines = [line for line in reply.splitlines() if NUMBER.search(line)]
    if not brackets and not lines:
        raise ValueError(f"no list of numbers in {reply[:80]!r}")
    numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", brackets[-1] if brackets else lines[-1])
    return str(numbers)


def word_list(reply: str) -> str:
    """A comma-separated list: the last line with a comma, after any colon."""
    lines = [line for line in reply.splitlines() if "," in line]
    if not lines:
        raise ValueError(f"no list of words in {reply[:80]!r}")
    words = [word.strip(" \t.\"'`*") for word in lines[-1].rpartition(":")[2].split(",")]
    return ", ".join(re.sub(r"^and\s+", "", word) for word in words)


def last_word(reply: str) -> str:
    """The last word of the first line, without punctuation."""
    words = re.findall(r"[^\W_]+", reply.strip().split("\n")[0])
    if not words:
        raise ValueError(f"no word in {reply[:80]!r}")
    return words[-1]


def last_clock(reply: str) -> str:
    """The last time of day or duration, such as 07:12:37 or 07:12:37.250."""
    clocks = re.findall(r"(?<![\d:])\d{1,2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?(?![\d:])", reply)
    if not clocks:
        raise ValueError(f"no duration in {reply[:80]!r}")
    return clocks[-1]


def first_name(names: Sequence[str], reply: str) -> str:
    """The name that a reply mentions first; the longest of those that begin there."""
    patterns = {name: re.escape(name) for name in sorted(names, key=len, reverse=True)}
    pattern = "|".join(patterns.values())
    match = re.search(rf"(?<!\w)(?:{pattern})(?!\w)", reply, re.IGNORECASE) if pattern else None
    if match is None:
        raise ValueError(f"none of {', '.join(names)[:80]!r} in {reply[:80]!r}")
    # Lower case would not do: "ſon" matches "son" and differs from it in lower case.
    return next(n for n, each in patterns.items() if re.fullmatch(each, match[0], re.IGNORECASE))


def reader_of(
    pattern: str, parts: Callable[[re.Match[str]], Any] = lambda match: match.groups()
) -> Callable[[str], Any]:
    """A `GymTask.read`: the parts of a question that has the form."""
    return lambda question: parts(match_question(pattern, question))


def match_question(pattern: str, question: str) -> re.Match[str]:
    """The parts of a question.

    Raises:
        ValueError: it has another form.
    """
    match = re.search(pattern, question, re.DOTALL)
    if match is None:
        raise ValueError(f"{question[:80]!r} does not have the form of this task's questions")
    return match


def answer_of(reader: Callable[[str], str]) -> Callable[[str, str], str]:
    """A reader of replies as a `GymTask.extract`, which also gets the question."""
    return lambda question, reply: reader(reply)
