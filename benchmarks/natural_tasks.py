"""Questions as people ask them, whose true answers are known: four shipped tasks and four more.

`word_problems` and `countdown` are reasoning-gym's `gsm_symbolic` and `countdown`; `three_facts` is
made from `countryinfo`. For these no script divides the questions.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reflux.agents.overseers.protocol import PASS
from reflux.agents.types import Exchange, Step
from reflux.graphs.evals.task import Split
from reflux.tasks import task_named
from reflux.tasks.gym import Entry, GymTask, first_name, last_number, offline_package

EXPRESSION = re.compile(r"[\d(][\d+\-*/() ]*[\d)]")


class Unscripted(GymTask):
    """A task that nobody divides."""

    answered_by = "model"

    def script(self, parts: Any, transcript: Sequence[Exchange]) -> Step:
        """Leave the question to the agent."""
        return PASS

    def equivalence(self, parts: Any) -> Any:
        """Only equal questions are equivalent."""
        return None


class WordProblems(Unscripted):
    """Word problems in the manner of GSM8K, of one to several steps."""

    name = "gsm_symbolic"
    parameters = ({},)
    form = r"^(.+Give the result as your final answer.+)$"
    reader = staticmethod(last_number)
    max_answer_tokens = 200


class Countdown(Unscripted):
    """An expression of three or four numbers with a given value."""

    name = "countdown"
    parameters = (
        {"min_numbers": 3, "max_numbers": 4, "max_value": 25, "min_target": 10, "max_target": 99},
    )
    form = r"^(Find a way to make .+)$"
    max_answer_tokens = 48

    def extract(self, question: str, reply: str) -> str:
        found = EXPRESSION.findall(reply.replace("×", "*").replace("÷", "/").replace("\\", ""))
        if not found:
            raise ValueError("the reply holds no expression")
        return max(found, key=len)


class ThreeFacts(Unscripted):
    """Which of two countries, each named by its capital, has more people."""

    name = "three_facts"
    parameters = ({},)
    form = r"^(.+) or (.+): which of the two is the capital of the country with more people\?$"

    def draw(self, level: int, seed: int) -> Iterator[Entry]:
        known = [
            (country.capital(), country.population())
            for country in offline_package("countryinfo").all_countries()
            if country.capital() and (country.population() or 0) > 3_000_000
        ]
        generator = random.Random(seed)
        while True:
            (one, few), (other, many) = generator.sample(known, 2)
            if max(few, many) > 2 * min(few, many):  # No census decides.
                question = f"{one} or {other}: which of the two is the capital of the country with "
                answer = one if few > many else other
                yield {"question": f"{question}more people?", "answer": answer}

    def extract(self, question: str, reply: str) -> str:
        return first_name(self.read(question), reply)

    def right(self, answer: str, entry: Entry) -> bool:
        return answer == entry["answer"]


FIRST_QUESTIONS: Mapping[str, Sequence[str]] = {
    "What are the capitals of France and Japan?": ("Paris", "Tokyo"),
    "What are the capitals of Peru and Kenya?": ("Lima", "Nairobi"),
    "What are the capitals of Chile and Cuba?": ("Santiago", "Havana"),
    "What are the capitals of Italy and Chile?": ("Rome", "Santiago"),
    "What is the capital of France?": ("Paris",),
    "What is the capital of Norway?": ("Oslo",),
    "How many legs has a spider?": ("eight|8",),
    "How many days has a leap year?": ("366",),
    "What is 17 * 23?": ("391",),
    "What is 205 + 38?": ("243",),
    "What is twice 21?": ("42|forty-two",),
    "Who painted the Mona Lisa?": ("Leonardo|Vinci",),
    "Who wrote Hamlet, and who wrote Faust?": ("Shakespeare", "Goethe"),
    "Which planet is nearest to the sun?": ("Mercury",),
    "What are the chemical symbols of gold and iron?": ("Au", "Fe"),
    "What is the largest ocean?": ("Pacific",),
}
"""Questions like those of the README and the pages, and what an answer has to hold."""


class FirstQuestions(Unscripted):
    """What a newcomer asks first."""

    name = "first_questions"
    parameters = ({},)
    form = "^(.+)$"

    def sample(self, n: int, level: int, split: Split, seed: int) -> Sequence[str]:
        """The first `n` of `FIRST_QUESTIONS`, whatever the level, split and seed."""
        return list(FIRST_QUESTIONS)[:n]

    def score(self, question: str, answer: str) -> bool:
        words = FIRST_QUESTIONS[question]
        return all(re.search(rf"\b(?:{word})\b", answer, re.IGNORECASE) for word in words)

    def extract(self, question: str, reply: str) -> str:
        return reply


@dataclass(frozen=True)
class Natural:
    """A task and the level that is asked."""

    task: GymTask
    level: int = 1
    scripted: bool = True
    """Whether its own overseer divides the questions."""


def natural_tasks() -> Mapping[str, Natural]:
    """The tasks by name."""

    def shipped(name: str, level: int) -> Natural:
        task = task_named(name)
        assert isinstance(task, GymTask)  # noqa: S101
        return Natural(task, level)

    return {
        "chain_sum": shipped("chain_sum", 1),
        "two_facts": shipped("multihop", 2),
        "three_facts": Natural(ThreeFacts(), scripted=False),
        "family": shipped("family_relationships", 1),
        "word_problems": Natural(WordProblems(), scripted=False),
        "countdown": Natural(Countdown(), scripted=False),
        "look_up": shipped("needle_haystack", 1),
        "first_questions": Natural(FirstQuestions(), scripted=False),
    }
