"""Two tasks of reasoning-gym about letters, which SmolLM2-135M does not see inside its tokens.

H cuts the text into pieces, sends each to the tool `python`, and joins the results.
"""

import json
import re
from collections.abc import Sequence

from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.tasks.gym import Gym, GymTask
from reflux.tasks.replies import (
    answer_of,
    last_count,
    last_word,
    match_question,
    text_of,
    whole_number_of,
)

COUNTS = (
    {"min_words": 3, "max_words": 4},
    {"min_words": 6, "max_words": 9},
    {"min_words": 12, "max_words": 20},
)
SPELLINGS = (
    {"min_word_len": 3, "max_word_len": 4},
    {"min_word_len": 5, "max_word_len": 7},
    {"min_word_len": 8, "max_word_len": 10},
)
RUN_WORDS = 4
PIECE_LETTERS = 3


def read_count(question: str) -> tuple[str, list[str]]:
    """The letter, and the text in runs of four words."""
    form = r'^How many times does the letter "(\w)" appear in the text: "([^"]+)"\?$'
    match = match_question(form, question)
    words = match[2].split()
    starts = range(0, len(words), RUN_WORDS)
    return match[1], [" ".join(words[start : start + RUN_WORDS]) for start in starts]


def step_count(parts: tuple[str, list[str]], transcript: Sequence[Exchange]) -> Step:
    """Count in each run, then add."""
    letter, runs = parts
    if not transcript:
        programs = (f"{json.dumps(run)}.lower().count({json.dumps(letter)})" for run in runs)
        return Ask(tuple(SubQuestion(program, to="tool:python") for program in programs))
    if len(transcript) == len(runs):
        counts = " + ".join(str(whole_number_of(exchange)) for exchange in transcript)
        return Ask((SubQuestion(counts, to="tool:calculator"),))
    return Answer(str(whole_number_of(transcript[-1])))


def letter_counting() -> GymTask:
    """How often a letter stands in a text.

    How many times does the letter "d" appear in the text: "the second part of the …"?   →   1
    """
    return GymTask(
        "letter_counting",
        Gym("letter_counting", COUNTS),
        step_count,
        read_count,
        answer_of(last_count),
        answered_by="tool: Python counts in four words, the calculator adds",
    )


def read_spelling(question: str) -> list[str]:
    """The word in pieces of three letters."""
    form = r"^Spell this word backward \(example: sun -> nus\): (\w+)$"
    word = match_question(form, question)[1]
    return [word[start : start + PIECE_LETTERS] for start in range(0, len(word), PIECE_LETTERS)]


def step_spelling(pieces: list[str], transcript: Sequence[Exchange]) -> Step:
    """Reverse each piece, then join them from the last to the first."""
    if not transcript:
        programs = (f"{json.dumps(piece)}[::-1]" for piece in pieces)
        return Ask(tuple(SubQuestion(program, to="tool:python") for program in programs))
    replies = [text_of(exchange) for exchange in transcript]
    for piece, text in zip(pieces, replies, strict=True):
        if not re.fullmatch(rf"\w{{{len(piece)}}}", text):
            raise ValueError(f"{text!r} is not as long as {piece!r}")
    return Answer("".join(reversed(replies)))


def spell_backward() -> GymTask:
    """A word from its last letter to its first.

    Spell this word backward (example: sun -> nus): Brodiaea   →   aeaidorB
    """
    return GymTask(
        "spell_backward",
        Gym("spell_backward", SPELLINGS),
        step_spelling,
        read_spelling,
        answer_of(last_word),
        answered_by="tool: Python reverses three letters",
        answer_room=32,
    )
