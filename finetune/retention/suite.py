"""A fixed suite of general abilities, for any base, offline: what a student forgot shows here.

Questions of reasoning-gym (extra `tasks`), made by fixed seeds, of kinds that no shipped task
trains. Most have few possible answers, so that a small base is right often enough to lose
something. Replies are read as people would: a number, or the first word that can be an answer.
"""

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SEED = 20
TOKENS = 24
"""Maximum tokens of a reply."""


def last_number(reply: str) -> str:
    """The last number of a reply; empty without one."""
    return next(iter(re.findall(r"-?\d+", reply.replace(",", ""))[::-1]), "")


def first_of(*words: str) -> Callable[[str], str]:
    """A reader of the first of these words in a reply; empty without one."""
    pattern = re.compile(rf"\b({'|'.join(words)})\b", re.IGNORECASE)

    def read(reply: str) -> str:
        match = pattern.search(reply)
        return match[1].capitalize() if match else ""

    return read


@dataclass(frozen=True)
class Ability:
    """One kind of questions."""

    dataset: str
    """Of reasoning-gym."""
    read: Callable[[str], str]
    """Takes the answer out of a reply."""
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])


SUITE: tuple[Ability, ...] = (Ability("syllogism", first_of("Yes", "No")),)


@dataclass(frozen=True)
class General:
    """One question of the suite."""

    ability: str
    question: str
    answer: str
    read: Callable[[str], str]

    def is_right(self, reply: str | None) -> bool:
        return self.read(reply or "").casefold() == self.answer.casefold()


def general_questions(n: int) -> Sequence[General] | None:
    """`n` questions of each ability, always the same; None where reasoning-gym is not installed."""
    try:
        package: Any = importlib.import_module("reasoning_gym")
    except ModuleNotFoundError:
        return None
    found: list[General] = []
    for ability in SUITE:
        entries = package.create_dataset(ability.dataset, size=n, seed=SEED, **ability.parameters)
        found += [
            General(ability.dataset, entry["question"].strip(), entry["answer"], ability.read)
            for entry in (entries[index] for index in range(n))
        ]
    return found
