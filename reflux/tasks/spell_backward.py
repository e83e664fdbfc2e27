"""A word from its last letter to its first.

    Spell this word backward (example: sun -> nus): Brodiaea   →   aeaidorB

H cuts the word into syllables of three letters, has each reversed, and joins them from the last
to the first. The Python tool reverses: SmolLM2-135M cannot, not even two letters.
"""

import json
import re
from collections.abc import Sequence

from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.tasks.gym import Gym, GymTask
from reflux.tasks.replies import last_word, matched, said

PARAMETERS = (
    {"min_word_len": 3, "max_word_len": 4},
    {"min_word_len": 5, "max_word_len": 7},
    {"min_word_len": 8, "max_word_len": 10},
)
LETTERS = 3


def read(question: str) -> list[str]:
    """The word in pieces."""
    word = matched(r"^Spell this word backward \(example: sun -> nus\): (\w+)$", question)[1]
    return [word[at : at + LETTERS] for at in range(0, len(word), LETTERS)]


def act(pieces: list[str], transcript: Sequence[Exchange]) -> Step:
    """Pieces reversed, in reverse."""
    if not transcript:
        return Ask(tuple(SubQuestion(f"{json.dumps(p)}[::-1]", to="tool:python") for p in pieces))
    turned = [said(exchange) for exchange in transcript]
    for piece, text in zip(pieces, turned, strict=True):
        if not re.fullmatch(rf"\w{{{len(piece)}}}", text):
            raise ValueError(f"{text!r} is not as long as {piece!r}")
    return Answer("".join(reversed(turned)))


def spell_backward() -> GymTask:
    """The task."""
    return GymTask(
        "spell_backward",
        Gym("spell_backward", PARAMETERS),
        act,
        read,
        lambda question, reply: last_word(reply),
        leaves="tool: Python reverses three letters",
        answer_room=32,
    )
