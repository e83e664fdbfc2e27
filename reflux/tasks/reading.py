"""Four tasks of reasoning-gym about what a text holds: people, relations, letters.

SmolLM2-135M gets lost in more than one statement, but reads whom one is about, and tells men's
names from women's: H narrows the text down to such a question. Letters it does not see inside its
tokens: H cuts the text into pieces, sends each to the tool `python`, and joins the results.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from reflux.agents.types import Answer, Ask, Exchange, Step
from reflux.tasks.gym import (
    Gym,
    GymTask,
    answer_of,
    ask_tool,
    first_name,
    last_count,
    last_word,
    match_question,
    reader_of,
    text_of,
    whole_number_of,
)

LETTER_COUNTS = (
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
STATEMENTS = (
    {"min_num_statements": 6, "max_num_statements": 8},
    {"min_num_statements": 14, "max_num_statements": 18},
    {"min_num_statements": 30, "max_num_statements": 40},
)
PAGE = 8
NO_MATCH = "not here"
FAMILIES = (
    {"min_family_size": 3, "max_family_size": 4},
    {"min_family_size": 5, "max_family_size": 7},
    {"min_family_size": 9, "max_family_size": 12},
)
WRONG_KEYS = ("niece", "nephew", "mother-in-law", "father-in-law")
KIN = {
    "parent": ("father", "mother"),
    "child": ("son", "daughter"),
    "spouse": ("husband", "wife"),
    "sibling": ("brother", "sister"),
    "grandparent": ("grandfather", "grandmother"),
    "parent's sibling": ("uncle", "aunt"),
}
"""The name of a path, for a man and for a woman."""
SEXES = ("male", "female")
STORY = r"(\w+) is married to (\w+)\.(?: They have (?:a child|children) called ([^.]+)\.)?"
RELATION = r"\n(?:What is|How is|What relation is) (\w+) (?:related )?to (\w+)\?"


def read_statements(question: str) -> tuple[list[str], str]:
    """The statements, and the phrase that is asked about: `disdains playing basketball`."""
    match = match_question(r"^(.+\.)\s*\nWho (.+)\? Reply only with a name\.$", question)
    return re.findall(r"\S[^.]*\.", match[1]), match[2]


def search_program(page: Sequence[str], phrase: str) -> str:
    """Python that finds a statement on one page."""
    lines = json.dumps(list(page), ensure_ascii=False)
    ending = json.dumps(f" {phrase}.", ensure_ascii=False)
    return f'([s for s in {lines} if s.endswith({ending})] + ["{NO_MATCH}"])[0]'


def step_statements(parts: tuple[list[str], str], transcript: Sequence[Exchange]) -> Step:
    """Find the statement, then ask whom it is about."""
    statements, phrase = parts
    pages = [statements[start : start + PAGE] for start in range(0, len(statements), PAGE)]
    if not transcript:
        return ask_tool("python", (search_program(page, phrase) for page in pages))
    matches = [text for text in map(text_of, transcript[: len(pages)]) if text != NO_MATCH]
    if len(matches) != 1:
        raise ValueError(f"{len(matches)} pages hold {phrase!r}; expected one")
    if len(transcript) == len(pages):
        return Ask.of(f"Who is this sentence about? {matches[0]} Answer with the name only.")
    names = [word for word in re.findall(r"[\w’'-]+", matches[0]) if word[0].isupper()]
    return Answer(first_name(names, text_of(transcript[-1])))


def person_named(question: str, reply: str) -> str:
    statements, _ = read_statements(question)
    return first_name([statement.split()[0] for statement in statements], reply)


def needle_haystack() -> GymTask:
    """Who did something, among many statements.

    Josef blasts butterflies. Breandan disdains playing basketball. … Who disdains playing
    basketball? Reply only with a name.   →   Breandan
    """
    return GymTask(
        "needle_haystack",
        Gym("needle_haystack", STATEMENTS),
        step_statements,
        read_statements,
        person_named,
        answered_by="tool: Python finds the statement; model: whom it is about",
        part_room=20,
    )


@dataclass(frozen=True)
class Family:
    """A story and the two people that the question is about."""

    person: str
    other: str
    couples: tuple[tuple[str, str], ...]
    parents: dict[str, tuple[str, str]]

    def path(self) -> str:
        """The relation of the person to the other, of either sex.

        Raises:
            ValueError: `KIN` lacks it.
        """
        above = self.parents.get(self.other, ())
        if self.person in above:
            return "parent"
        if self.other in self.parents.get(self.person, ()):
            return "child"
        if (self.person, self.other) in self.couples or (self.other, self.person) in self.couples:
            return "spouse"
        if above and self.parents.get(self.person) == above:
            return "sibling"
        grandparents = [self.parents[parent] for parent in above if parent in self.parents]
        if any(self.person in pair for pair in grandparents):
            return "grandparent"
        if self.parents.get(self.person) in grandparents:
            return "parent's sibling"
        raise ValueError(f"no word is known here for what {self.person} is to {self.other}")


def read_family(question: str) -> Family:
    match = match_question(RELATION, question)
    couples: list[tuple[str, str]] = []
    parents: dict[str, tuple[str, str]] = {}
    for one, two, children in re.findall(STORY, question):
        couples.append((one, two))
        for child in re.findall(r"\w+", children.replace(" and ", ", ")):
            parents[child] = (one, two)
    if not couples:
        raise ValueError(f"no marriage is told in {question[:80]!r}")
    return Family(match[1], match[2], tuple(couples), parents)


def step_family(family: Family, transcript: Sequence[Exchange]) -> Step:
    """Ask for the sex of the person, then name the path."""
    names = KIN[family.path()]
    if not transcript:
        return Ask.of(f"Is {family.person} a male or a female name? Answer male or female.")
    return Answer(names[SEXES.index(first_name(SEXES, text_of(transcript[0])))])


def relation_named(question: str, reply: str) -> str:
    return first_name([name for pair in KIN.values() for name in pair], reply)


def family_relationships() -> GymTask:
    """What one member of a family is to another.

        Samuel is married to Susan. They have a child called Ethan. Ethan is married to Hannah. They
        have a child called David. What is David to Ethan? …   →   son

    Left out are questions whose key is wrong in reasoning-gym 0.1.25: nieces and nephews have the
    sex of the other person there, and parents-in-law stand for children-in-law.
    """
    source = Gym(
        "family_relationships", FAMILIES, keep=lambda entry: entry["answer"] not in WRONG_KEYS
    )
    return GymTask(
        "family_relationships",
        source,
        step_family,
        read_family,
        relation_named,
        answered_by="model: whether a name is a man's",
        part_room=12,
    )


def step_count(parts: tuple[str, str], transcript: Sequence[Exchange]) -> Step:
    """Count in each run of four words, then add."""
    letter, words = parts[0], parts[1].split()
    starts = range(0, len(words), RUN_WORDS)
    runs = [" ".join(words[start : start + RUN_WORDS]) for start in starts]
    if not transcript:
        count = f".lower().count({json.dumps(letter)})"
        return ask_tool("python", (f"{json.dumps(run)}{count}" for run in runs))
    if len(transcript) == len(runs):
        counts = " + ".join(str(whole_number_of(exchange)) for exchange in transcript)
        return ask_tool("calculator", [counts])
    return Answer(str(whole_number_of(transcript[-1])))


def letter_counting() -> GymTask:
    """How often a letter stands in a text.

    How many times does the letter "d" appear in the text: "the second part of the …"?   →   1
    """
    return GymTask(
        "letter_counting",
        Gym("letter_counting", LETTER_COUNTS),
        step_count,
        reader_of(r'^How many times does the letter "(\w)" appear in the text: "([^"]+)"\?$'),
        answer_of(last_count),
        answered_by="tool: Python counts in four words, the calculator adds",
    )


def step_spelling(parts: tuple[str], transcript: Sequence[Exchange]) -> Step:
    """Reverse the word in pieces of three letters, then join them from the last to the first."""
    (word,) = parts
    pieces = [word[start : start + PIECE_LETTERS] for start in range(0, len(word), PIECE_LETTERS)]
    if not transcript:
        return ask_tool("python", (f"{json.dumps(piece)}[::-1]" for piece in pieces))
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
        reader_of(r"^Spell this word backward \(example: sun -> nus\): (\w+)$"),
        answer_of(last_word),
        answered_by="tool: Python reverses three letters",
        answer_room=32,
    )
