"""Short sub-questions with a shared prefix, like those that an overseer sends to copies."""

import random

SYSTEM = (
    "You are one of many copies of a careful assistant. Somebody has split a long task into small "
    "questions, and each copy gets one of them, without seeing the others. Answer the question "
    "that you are given and nothing else: no greeting, no explanation, no second question. Give "
    "the answer in as few words as you can. If you do not know the answer, say so."
)
COUNTRIES = (
    "France Japan Kenya Peru Norway Egypt India Brazil Canada Spain Italy Poland Chile Ghana Nepal "
    "Cuba Iran Iraq Laos Mali"
)
WORDS = (
    "apple river stone music garden window yellow planet doctor bridge candle forest island jacket "
    "kitten ladder mirror needle orange pepper"
)


def subquestions(n: int, seed: int) -> list[str]:
    """Sample `n` different questions of 8 to 20 tokens by `seed`."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < n:
        a, b = rng.sample(range(10, 1000), 2)
        one, other = rng.sample(COUNTRIES.split(), 2)
        word, second = rng.sample(WORDS.split(), 2)
        forms = (
            f"Which of these two numbers is larger, {a} or {b}?",
            f"What is {a} plus {b}?",
            f"Which country lies farther north, {one} or {other}?",
            f"Which word comes first in a dictionary, {word} or {second}?",
            f"How many letters are in the words {word} and {second}?",
            f"Is the number {a} odd or even?",
            f"Name one thing that {one} and {other} both have.",
        )
        found[rng.choice(forms)] = None
    return list(found)


def messages(question: str) -> list[dict[str, str]]:
    """One chat: the shared system message and the question."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
