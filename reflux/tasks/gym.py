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
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from reflux.agents.errors import MissingError, UsageError, pip_install
from reflux.agents.overseers.protocol import PASS, Overseer
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.tools.calculator import Calculator
from reflux.agents.tools.protocol import Tool
from reflux.agents.tools.python_sandbox import Sandbox
from reflux.agents.types import Ask, Exchange, Step, SubQuestion
from reflux.agents.verifiers import Checker, RuleChecker
from reflux.graphs.evals.task import Split, Task, is_held_out, read_by

NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)")
COUNTS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen",
)  # fmt: skip
Entry = Mapping[str, Any]
"""One generated question: `question`, `answer`, and what its scorer needs."""


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


def ranges(**by_level: Sequence[tuple[int, int]]) -> list[dict[str, int]]:
    """`min_NAME` and `max_NAME` of each level, from a (min, max) by level for each name."""
    return [
        {
            f"{end}_{name}": pair[index]
            for name, pair in zip(by_level, pairs, strict=True)
            for index, end in enumerate(("min", "max"))
        }
        for pairs in zip(*by_level.values(), strict=True)
    ]


class GymTask(Task):
    """A task on the data set of reasoning-gym that has its name: a script and readers of text."""

    parameters: Sequence[Mapping[str, Any]]
    """Of the data set; level i has those at position i - 1."""
    form: str
    """The pattern of a whole question."""
    answered_by: str
    """What answers the sub-questions: `model: …`, `tool: …` or both."""
    reader: Callable[[str], str]
    """Takes the answer out of a reply, where that needs no question."""
    max_answer_tokens = 48
    """Maximum tokens for a whole question asked directly."""
    max_part_tokens = 24
    """Maximum tokens for a sub-question."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def read(self, question: str) -> Any:
        """The parts of a question: by default the groups of `form`.

        Raises:
            ValueError: it is not one of this task's.
        """
        match = re.search(self.form, question, re.DOTALL)
        if match is None:
            raise ValueError(f"{question[:80]!r} does not have the form of this task's questions")
        return match.groups()

    @abstractmethod
    def script(self, parts: Any, transcript: Sequence[Exchange]) -> Step:
        """H's next step, from the parts of a question and the sub-answers so far. A `ValueError`
        means an unusable sub-answer; the graph makes another attempt."""

    def extract(self, question: str, reply: str) -> str:
        """The answer in the scorer's form; `ValueError` where there is none."""
        return type(self).reader(reply)

    def equivalence(self, parts: Any) -> Any:
        """What equivalent questions share, where that is less than their text; else None."""
        return None

    def keep(self, entry: Entry) -> bool:
        """False for an entry whose key is wrong."""
        return True

    def draw(self, level: int, seed: int) -> Iterator[Entry]:
        """Entries of one level in the order of the package's own indices, the same for the same
        seed."""
        entries = self._dataset(level, seed)
        return filter(self.keep, (entries[i] for i in range(len(entries))))

    def right(self, answer: str, entry: Entry) -> bool:
        """Whether the package's `score_answer` gives full marks; partial marks count as wrong."""
        return self._scorer.score_answer(answer, dict(entry)) == 1.0

    @cached_property
    def _scorer(self) -> Any:
        return self._dataset(1, 0)

    def _dataset(self, level: int, seed: int) -> Any:
        options = {"seed": seed, "size": 1_000_000, **self.parameters[level - 1]}
        return offline_package("reasoning_gym").create_dataset(self.name, **options)

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
        return self.max_answer_tokens if self._reads(question) else self.max_part_tokens

    def checker(self) -> Checker:
        """Tests the form only: of a whole question's answer; other answers must not be empty."""

        def has_form(question: str, answer: str) -> bool:
            return not self._reads(question) or bool(self.extract(question, answer))

        rules = {"empty": lambda _, answer: bool(answer.strip()), "form": has_form}
        return RuleChecker(rules, form_only=True)

    def sample(self, n: int, level: int, split: Split, seed: int) -> Sequence[str]:
        """Distinct questions of one split; `score` needs the entries that this stores.

        Raises:
            UsageError: there is no such level.
            MissingError: the package that makes the questions is not installed.
        """
        levels = len(self.parameters)
        if not 1 <= level <= levels:
            raise UsageError(f"{self.name!r} has levels 1 to {levels}; {level} was asked for")
        digest = hashlib.sha256(f"{self.name}:{level}:{split}:{seed}".encode()).digest()
        questions: dict[str, str] = {}
        for entry in islice(self.draw(level, int.from_bytes(digest[:4]) >> 2), 200 * n):
            if len(questions) == n:
                break
            question = entry["question"].strip()
            if is_held_out(self, question) == (split == "held_out"):
                questions.setdefault(self.canonical(question), question)
                self._entries[question] = entry
        return list(questions.values())

    def canonical(self, question: str) -> str:
        """What equivalent questions share; of other texts, the words."""
        shared = self.equivalence(self.read(question)) if self._reads(question) else None
        return " ".join(question.split()) if shared is None else repr(shared)

    def from_user(self, text: str) -> str:
        """A question in the words of its source.

        Raises:
            UsageError: it has another form.
        """
        return read_by(self.read, text, f"{self.name!r} takes its questions word for word")

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
        return self.right(extracted, self._entries[question])


def ask_tool(name: str, questions: Iterable[str]) -> Ask:
    """Independent sub-questions to a tool of the overseer."""
    return Ask(tuple(SubQuestion(question, to=f"tool:{name}") for question in questions))


def text_of(exchange: Exchange) -> str:
    """The answer to a sub-question.

    Raises:
        ValueError: it is empty, or the sub-question failed.
    """
    text = (exchange.answer or "").strip()
    if exchange.error is not None or not text:
        raise ValueError(f"no usable answer to {exchange.question!r}: {exchange.error or 'empty'}")
    return text


def number_of(
    exchange: Exchange, form: str = r"-?[0-9]+(?:\.[0-9]+)?", noun: str = "number"
) -> str:
    """The sub-answer, which must be one number and nothing else."""
    text = text_of(exchange)
    if not re.fullmatch(form, text):
        raise ValueError(f"{text[:80]!r} is not a {noun}; {exchange.question!r} asks for one")
    return text


def whole_number_of(exchange: Exchange) -> int:
    """The sub-answer, which must be one whole number of at least zero."""
    return int(number_of(exchange, r"[0-9]{1,15}", "whole number"))


def last_of(found: Sequence[str], noun: str, reply: str) -> str:
    """The last of what was found in a reply: explanations come before the result."""
    if not found:
        raise ValueError(f"no {noun} in {reply[:80]!r}")
    return found[-1]


def last_number(reply: str) -> str:
    """The last number of a reply, without commas."""
    number = last_of(NUMBER.findall(reply), "number", reply)
    return number.replace(",", "").replace("−", "-").lstrip("+")


def last_count(reply: str) -> str:
    """The last number of a reply, in digits or in words up to fifteen."""
    pattern = rf"(?<![\w.])\d+(?!\w)|\b(?:{'|'.join(COUNTS)})\b"
    last = last_of(re.findall(pattern, reply, re.IGNORECASE), "count", reply).lower()
    return str(COUNTS.index(last)) if last in COUNTS else last


def number_list(reply: str) -> str:
    """A list of numbers as `['1', '2.5']`: the last in brackets, else the last line with any."""
    lists = re.findall(r"\[([^\[\]]*)\]", reply)
    lists = lists or [line for line in reply.splitlines() if NUMBER.search(line)]
    return str(re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", last_of(lists, "list of numbers", reply)))


def word_list(reply: str) -> str:
    """A comma-separated list: the last line with a comma, after any colon."""
    lines = [line for line in reply.splitlines() if "," in line]
    items = last_of(lines, "list of words", reply).rpartition(":")[2].split(",")
    return ", ".join(re.sub(r"^and\s+", "", item.strip(" \t.\"'`*")) for item in items)


def last_word(reply: str) -> str:
    """The last word of the first line, without punctuation."""
    return last_of(re.findall(r"[^\W_]+", reply.strip().split("\n")[0]), "word", reply)


def last_clock(reply: str) -> str:
    """The last time of day or duration, such as 07:12:37 or 07:12:37.250."""
    pattern = r"(?<![\d:])\d{1,2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?(?![\d:])"
    return last_of(re.findall(pattern, reply), "duration", reply)


def first_name(names: Sequence[str], reply: str) -> str:
    """The name that a reply mentions first; the longest of those that begin there."""
    patterns = {name: re.escape(name) for name in sorted(names, key=len, reverse=True)}
    pattern = "|".join(patterns.values())
    match = re.search(rf"(?<!\w)(?:{pattern})(?!\w)", reply, re.IGNORECASE) if pattern else None
    if match is None:
        raise ValueError(f"none of {', '.join(names)[:80]!r} in {reply[:80]!r}")
    # Lower case would not do: "ſon" matches "son" and differs from it in lower case.
    return next(n for n, each in patterns.items() if re.fullmatch(each, match[0], re.IGNORECASE))
