"""What baskets of fruit cost: a task with a script as overseer, without levels and primitives.

    A basket holds 3 apples at 4 cents, 7 pears at 6 cents. What does it cost?   →   54

The script asks copies of the agent for one product each, and adds up what they answer; a retry asks
for the products the other way round.

    reflux run --config examples/baskets/baskets.yaml --run runs/baskets
"""

import random
import re
from collections.abc import Sequence
from functools import partial

import reflux

FRUIT = ("apples", "pears", "plums", "figs", "limes")


def products_of(question: str) -> list[tuple[int, int]]:
    """(number, price) of each kind of fruit."""
    return [(int(n), int(price)) for n, price in re.findall(r"(\d+) \w+ at (\d+) cents", question)]


def number_in(text: str) -> str:
    """The last number of a reply; the whole reply where it has none."""
    return (re.findall(r"\d+", text) or [text.strip()])[-1]


def divide(
    question: str, transcript: Sequence[reflux.Exchange], may_ask: bool, *, swapped: bool
) -> reflux.Step:
    """Ask for one product after another at once, then add them up."""
    products = products_of(question)
    if not products or not may_ask:
        return reflux.PASS
    if not transcript:
        pairs = [(b, a) if swapped else (a, b) for a, b in products]
        return reflux.Ask.of(*(f"What is {a} times {b}? Reply with a number." for a, b in pairs))
    return reflux.Answer(str(sum(int(number_in(each.answer or "")) for each in transcript)))


def is_possible(question: str, answer: str) -> bool:
    """All that can be checked without a product: no basket is cheaper than its dearest fruit."""
    prices = [price for _, price in products_of(question)]
    return answer.isdecimal() and int(answer) >= max(prices, default=0)


class Baskets(reflux.Task):
    def questions(self) -> Sequence[str]:
        draw, questions = random.Random(1), dict[str, None]()
        while len(questions) < 300:
            kinds = draw.sample(FRUIT, 2)
            fruit = [f"{draw.randint(2, 9)} {kind} at {draw.randint(2, 9)} cents" for kind in kinds]
            questions[f"A basket holds {', '.join(fruit)}. What does it cost? Reply in cents."] = (
                None
            )
        return list(questions)

    def overseers(self) -> Sequence[reflux.Overseer]:
        return [
            reflux.ScriptedOverseer("baskets", partial(divide, swapped=False)),
            reflux.ScriptedOverseer("baskets-swapped", partial(divide, swapped=True)),
        ]

    def checker(self) -> reflux.Checker:
        return reflux.RuleChecker({"possible": is_possible})

    def normalise(self, answer: str) -> str:
        return number_in(answer)

    def answer_tokens(self, question: str) -> int:
        return 24

    def score(self, question: str, answer: str) -> bool:
        return answer == str(sum(number * price for number, price in products_of(question)))
