"""A fixed suite of general abilities, for any base, offline: what a student forgot shows here.

Short questions of reasoning-gym and capitals of countryinfo (extra `tasks`), the same each time, of
which even a small base answers some: the default one about a quarter. Replies are read as people
read them: the last number, the first word that can be an answer, a name anywhere.
"""

import importlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SEED = 20
RELATIONS = (
    "mother", "father", "wife", "husband", "sister", "brother", "daughter", "son", "grandmother",
    "grandfather", "aunt", "uncle", "niece", "nephew", "cousin",
)  # fmt: skip
MIN_PEOPLE = 5_000_000
"""Of a country whose capital is asked for."""
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
        return match[1] if match else ""

    return read


@dataclass(frozen=True)
class Ability:
    """One kind of questions."""

    dataset: str
    """Of reasoning-gym."""
    read: Callable[[str], str]
    """Takes the answer out of a reply."""
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])


SUITE: tuple[Ability, ...] = (
    Ability("syllogism", first_of("Yes", "No")),
    Ability("letter_counting", last_number, {"min_words": 2, "max_words": 4}),
    Ability("basic_arithmetic", last_number, {"max_terms": 2, "max_digits": 1}),
    Ability(
        "family_relationships",
        first_of(*(f"{each}(?:-in-law)?" for each in RELATIONS)),
        {"min_family_size": 3, "max_family_size": 4},
    ),
)
CAPITALS = "capitals"
"""A kind of `countryinfo`: what even a small base knows."""


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
    """`n` questions of each ability, always the same; None where the extra is not installed."""
    try:
        gym: Any = importlib.import_module("reasoning_gym")
        countries: Any = importlib.import_module("countryinfo")
    except ModuleNotFoundError:
        return None
    found: list[General] = []
    for ability in SUITE:
        entries = gym.create_dataset(ability.dataset, size=n, seed=SEED, **ability.parameters)
        found += [
            General(ability.dataset, entry["question"].strip(), entry["answer"], ability.read)
            for entry in (entries[index] for index in range(n))
        ]
    capitals = sorted(
        (str(country.name()).title(), str(country.capital()))
        for country in countries.all_countries()
        if country.capital() and (country.population() or 0) > MIN_PEOPLE
    )
    random.Random(SEED).shuffle(capitals)
    found += [
        General(CAPITALS, f"What is the capital of {name}?", capital, first_of(re.escape(capital)))
        for name, capital in capitals[:n]
    ]
    return found
