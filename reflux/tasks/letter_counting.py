"""How often a letter stands in a text.

    How many times does the letter "d" appear in the text: "the second part of the …"?   →
    1

H cuts the text into runs of four words, has the letter counted in each, and the counts added. The
Python tool counts, the calculator adds: SmolLM2-135M does not see letters inside its tokens.
"""

import json
from collections.abc import Sequence

from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.tasks.gym import Gym, GymTask
from reflux.tasks.replies import last_count, matched, whole_said

PARAMETERS = (
    {"min_words": 3, "max_words": 4},
    {"min_words": 6, "max_words": 9},
    {"min_words": 12, "max_words": 20},
)
WORDS = 4


def read(question: str) -> tuple[str, list[str]]:
    """The letter, and the text in runs of words."""
    form = r'^How many times does the letter "(\w)" appear in the text: "([^"]+)"\?$'
    found = matched(form, question)
    words = found[2].split()
    return found[1], [" ".join(words[at : at + WORDS]) for at in range(0, len(words), WORDS)]


def act(parts: tuple[str, list[str]], transcript: Sequence[Exchange]) -> Step:
    """Count in each run, then add."""
    letter, runs = parts
    if not transcript:
        counted = (f"{json.dumps(r)}.lower().count({json.dumps(letter)})" for r in runs)
        return Ask(tuple(SubQuestion(code, to="tool:python") for code in counted))
    if len(transcript) == len(runs):
        counts = " + ".join(str(whole_said(exchange)) for exchange in transcript)
        return Ask((SubQuestion(counts, to="tool:calculator"),))
    return Answer(str(whole_said(transcript[-1])))


def letter_counting() -> GymTask:
    """The task."""
    return GymTask(
        "letter_counting",
        Gym("letter_counting", PARAMETERS),
        act,
        read,
        lambda question, reply: last_count(reply),
        leaves="tool: Python counts in four words, the calculator adds",
    )
