"""Demonstrations: questions with the steps of a good overseer, of which a model overseer sees the
nearest few."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reflux.agents.overseers.batch import alike, settle
from reflux.agents.overseers.nearness import Embed, TrigramIndex, installed_embedding
from reflux.agents.overseers.step_forms import asking
from reflux.agents.prompts import Example
from reflux.agents.types import REFERENCE, Exchange, SubQuestion

INDIVISIBLE = "one simple question"
CANDIDATES = 64
"""Demonstrations that are embedded for a question: the nearest by trigrams."""
MAX_CACHED = 10_000
"""Questions whose nearest demonstrations are remembered."""


@dataclass(frozen=True)
class DemoStep:
    """One batch of sub-questions, and the answers to them as far as they are known."""

    ask: tuple[SubQuestion, ...]
    answers: tuple[str, ...] = ()

    @property
    def questions(self) -> list[str]:
        """The sub-questions with the known answers in place."""
        known = dict(enumerate(self.answers))
        return [sub.filled(known) for sub in self.ask]

    @property
    def exchanges(self) -> list[Exchange]:
        """What the overseer saw after the step, as far as the answers are known."""
        pairs = zip(self.questions, self.answers, strict=False)
        return [Exchange(question, answer) for question, answer in pairs]

    def to_json(self) -> dict[str, Any]:
        texts = [
            {"to": sub.to.removeprefix("tool:"), "question": sub.text} if sub.to else sub.text
            for sub in self.ask
        ]
        body: dict[str, Any] = {"ask": texts}
        return body | ({"answers": list(self.answers)} if self.answers else {})


@dataclass(frozen=True)
class Demonstration:
    """A question and its division into steps."""

    question: str
    steps: tuple[DemoStep, ...]
    """None: the question is not to be divided."""
    answer: str = ""
    reason: str = ""
    """How the answer follows from the sub-answers."""

    @property
    def questions(self) -> list[str]:
        """The question, and the sub-questions with their answers in place."""
        return [self.question, *(sub for step in self.steps for sub in step.questions)]

    def first(self) -> list[Example]:
        """The first step as an example of a prompt."""
        if not self.steps:
            return [(self.question, (), {"not_decomposable": INDIVISIBLE})]
        return [(self.question, (), asking(self.steps[0].ask))]

    def plan(self) -> list[Example]:
        """All steps as one: what a later sub-question took from an earlier answer stands as its
        `{i}`."""
        merged: list[SubQuestion] = []
        found: dict[str, int] = {}
        """Answers that are not in the question, and their positions."""
        for step in self.steps:
            shift, earlier = len(merged), sorted(found, key=len, reverse=True)
            pattern = "|".join(map(re.escape, earlier))
            for sub in step.ask:
                text = REFERENCE.sub(lambda m, by=shift: f"{{{int(m[1]) + by}}}", sub.text)
                if earlier:
                    text = re.sub(
                        rf"\{{\d+\}}|(?<!\w)(?:{pattern})(?!\w)",
                        lambda m: f"{{{found[m[0]]}}}" if m[0] in found else m[0],
                        text,
                    )
                merged.append(replace(sub, text=text, needs=()))
            for index, answer in enumerate(step.answers, shift):
                if answer and answer not in self.question:
                    found.setdefault(answer, index)
        asked = settle(merged, [self.question], len(merged)).subquestions
        return Demonstration(self.question, (DemoStep(asked),) if asked else ()).first()

    def later(self) -> list[Example]:
        """The steps after the first, and the answer, as far as the sub-answers are known."""
        examples: list[Example] = []
        transcript: list[Exchange] = []
        for step, following in zip(self.steps, [*self.steps[1:], None], strict=False):
            transcript += step.exchanges
            if len(step.answers) < len(step.ask):
                break
            if following is not None:
                examples.append((self.question, tuple(transcript), asking(following.ask)))
            elif self.answer:
                reason = {"reason": self.reason} if self.reason else {}
                reply = reason | {"answer": self.answer}
                examples.append((self.question, tuple(transcript), reply))
        return examples

    def to_json(self) -> dict[str, Any]:
        """The object of a line."""
        steps = [step.to_json() for step in self.steps]
        body: dict[str, Any] = {"steps": steps}
        if not steps[1:]:
            body = steps[0] if steps else {"ask": []}
        ends = {"reason": self.reason, "answer": self.answer}
        ends = {name: text for name, text in ends.items() if text}
        return {"question": self.question, **body, **ends}


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Demonstrations, and which of them are nearest to a question.

    Nearness is that of their embeddings where the package of the extra `embedding` is installed,
    else that of their letter trigrams, where all digits are equal. The choice depends on question
    and demonstrations alone; of equally near ones the earlier counts.
    """

    items: tuple[Demonstration, ...]
    digest: str = ""
    """Of the file (hex, 64); empty for those of a program."""
    embed: Embed | None = None
    """In the place of that of the installed package."""
    canonical: Callable[[str], str] = alike
    """What equivalent questions share: a demonstration that holds a question, or asks it as a
    sub-question, is not shown to it."""
    _chosen: dict[tuple[str, int], tuple[Demonstration, ...]] = field(
        default_factory=dict[Any, Any], init=False, repr=False
    )
    _vectors: dict[int, NDArray[Any]] = field(
        default_factory=dict[int, Any], init=False, repr=False
    )
    _keys: dict[int, set[str]] = field(default_factory=dict[int, set[str]], init=False, repr=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)

    def nearest(self, question: str, count: int) -> tuple[Demonstration, ...]:
        """The `count` nearest demonstrations of other questions, the nearest first.

        May be called by several threads.
        """
        with self._lock:
            if (question, count) not in self._chosen:
                if len(self._chosen) >= MAX_CACHED:
                    self._chosen.clear()
                self._chosen[question, count] = self._nearest(question, count)
            return self._chosen[question, count]

    def number(self, item: Demonstration) -> int:
        """The position of a demonstration among all, from 1."""
        return self._numbers[id(item)]

    @cached_property
    def _numbers(self) -> dict[int, int]:
        return {id(item): number for number, item in enumerate(self.items, 1)}

    def _nearest(self, question: str, count: int) -> tuple[Demonstration, ...]:
        own = {alike(question), self.canonical(question)}
        likeness = self._index.likeness(question)
        order: list[int] = []
        for index in np.argsort(-likeness.round(6), kind="stable"):
            if own.isdisjoint(self._keys_of(int(index))):
                order.append(int(index))
            if len(order) == max(count, CANDIDATES):
                break
        embed = (self.embed or installed_embedding()) if len(order) > count else None
        if embed is not None:
            near = self._embedded(embed, question, order)
            order = [order[int(i)] for i in np.argsort(-near.round(4), kind="stable")]
        return tuple(self.items[index] for index in order[:count])

    def _embedded(self, embed: Embed, question: str, order: Sequence[int]) -> NDArray[Any]:
        """Cosine similarities of a question to those of some demonstrations (order,)."""
        new = [index for index in order if index not in self._vectors]
        vectors = embed([question, *(self.items[index].question for index in new)])
        self._vectors.update(zip(new, vectors[1:], strict=True))
        return np.stack([self._vectors[index] for index in order]) @ vectors[0]

    @cached_property
    def _index(self) -> TrigramIndex:
        return TrigramIndex([item.question for item in self.items])

    def _keys_of(self, index: int) -> set[str]:
        """What the questions of a demonstration share with those that are equivalent."""
        if index not in self._keys:
            questions = self.items[index].questions
            self._keys[index] = {key(each) for each in questions for key in (alike, self.canonical)}
        return self._keys[index]


@dataclass(frozen=True)
class Examples:
    """The examples of one prompt, in groups of which the first is the nearest."""

    groups: tuple[Sequence[Example], ...] = ()
    numbers: tuple[int, ...] = ()
    """Of the demonstration of each group, counted from 1 in their file."""
    chars: int = 0
    """The most that they may take together, about."""

    def within(self, share: float = 1.0) -> tuple[list[Example] | None, int]:
        """(examples, the nearest last; how many groups are left out, the farthest).

        Less than the whole `share` is that part of what fits. None in the place of no examples.
        """
        kept = self._fitting(self.chars)
        if share < 1:
            kept = self._fitting(round(share * sum(map(size_of, self.groups[:kept]))))
        examples = [each for group in reversed(self.groups[:kept]) for each in group]
        return examples or None, len(self.groups) - kept

    def note(self, left_out: int) -> str:
        """Which demonstrations a prompt showed, and how many it left out."""
        shown = self.numbers[: len(self.groups) - left_out]
        parts = [f"shown demonstrations {', '.join(map(str, shown))}"] if shown else []
        parts += [f"{left_out} demonstrations left out: too long"] if left_out else []
        return "; ".join(parts)

    def _fitting(self, chars: int) -> int:
        """How many groups take at most so many characters."""
        sizes = accumulate(map(size_of, self.groups))
        return sum(size <= chars for size in sizes)


NO_EXAMPLES = Examples()


def size_of(group: Iterable[Example]) -> int:
    """Characters of examples in a prompt, about."""
    return sum(
        len(question)
        + sum(len(e.question) + len(e.answer or "") for e in exchanges)
        + len(json.dumps(reply, ensure_ascii=False))
        for question, exchanges, reply in group
    )
