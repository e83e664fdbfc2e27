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
    Entry,
    GymTask,
    ask_tool,
    first_name,
    last_count,
    last_word,
    ranges,
    text_of,
    whole_number_of,
)

RUN_WORDS = 4
PIECE_LETTERS = 3
PAGE = 8
NO_MATCH = "not here"
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


class NeedleHaystack(GymTask):
    """Who did something, among many statements.

    Josef blasts butterflies. Breandan disdains playing basketball. … Who disdains playing
    basketball? Reply only with a name.   →   Breandan
    """

    name = "needle_haystack"
    parameters = ranges(num_statements=[(6, 8), (14, 18), (30, 40)])
    form = r"^(.+\.)\s*\nWho (.+)\? Reply only with a name\.$"
    answered_by = "tool: Python finds the statement; model: whom it is about"
    max_part_tokens = 20

    def read(self, question: str) -> tuple[list[str], str]:
        """The statements, and the phrase that is asked about: `disdains playing basketball`."""
        statements, phrase = super().read(question)
        return re.findall(r"\S[^.]*\.", statements), phrase

    def script(self, parts: tuple[list[str], str], transcript: Sequence[Exchange]) -> Step:
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

    def extract(self, question: str, reply: str) -> str:
        statements, _ = self.read(question)
        return first_name([statement.split()[0] for statement in statements], reply)


def search_program(page: Sequence[str], phrase: str) -> str:
    """Python that finds a statement on one page."""
    lines = json.dumps(list(page), ensure_ascii=False)
    ending = json.dumps(f" {phrase}.", ensure_ascii=False)
    return f'([s for s in {lines} if s.endswith({ending})] + ["{NO_MATCH}"])[0]'


@dataclass(frozen=True)
class Family:
    """A story and the two people that the question is about."""

    person: str
    other: str
    couples: list[set[str]]
    parents: dict[str, tuple[str, str]]

    def path(self) -> str:
        """The relation of the person to the other, of either sex.

        Raises:
            ValueError: `KIN` lacks it.
        """
        own, above = (self.parents.get(name, ()) for name in (self.person, self.other))
        if self.person in above:
            return "parent"
        if self.other in own:
            return "child"
        if {self.person, self.other} in self.couples:
            return "spouse"
        if own and own == above:
            return "sibling"
        grandparents = [self.parents[parent] for parent in above if parent in self.parents]
        if any(self.person in pair for pair in grandparents):
            return "grandparent"
        if own in grandparents:
            return "parent's sibling"
        raise ValueError(f"no word is known here for what {self.person} is to {self.other}")


class FamilyRelationships(GymTask):
    """What one member of a family is to another.

        Samuel is married to Susan. They have a child called Ethan. Ethan is married to Hannah. They
        have a child called David. What is David to Ethan? …   →   son

    Left out are questions whose key is wrong in reasoning-gym 0.1.25: nieces and nephews have the
    sex of the other person there, and parents-in-law stand for children-in-law.
    """

    name = "family_relationships"
    parameters = ranges(family_size=[(3, 4), (5, 7), (9, 12)])
    form = r"\n(?:What is|How is|What relation is) (\w+) (?:related )?to (\w+)\?"
    answered_by = "model: whether a name is a man's"
    max_part_tokens = 12

    def keep(self, entry: Entry) -> bool:
        return entry["answer"] not in WRONG_KEYS

    def read(self, question: str) -> Family:
        person, other = super().read(question)
        couples: list[set[str]] = []
        parents: dict[str, tuple[str, str]] = {}
        for one, two, children in re.findall(STORY, question):
            couples.append({one, two})
            for child in re.findall(r"\w+", children.replace(" and ", ", ")):
                parents[child] = (one, two)
        if not couples:
            raise ValueError(f"no marriage is told in {question[:80]!r}")
        return Family(person, other, couples, parents)

    def script(self, parts: Family, transcript: Sequence[Exchange]) -> Step:
        """Ask for the sex of the person, then name the path."""
        path = parts.path()
        names = KIN[path]
        if not transcript:
            return Ask.of(f"Is {parts.person} a male or a female name? Answer male or female.")
        sex = first_name(SEXES, text_of(transcript[0]))
        told = f"{parts.person} is the {path} of {parts.other}, and {sex}."
        return Answer(names[SEXES.index(sex)], told)

    def extract(self, question: str, reply: str) -> str:
        return first_name([name for pair in KIN.values() for name in pair], reply)


class LetterCounting(GymTask):
    """How often a letter stands in a text.

    How many times does the letter "d" appear in the text: "the second part of the …"?   →   1
    """

    name = "letter_counting"
    parameters = ranges(words=[(3, 4), (6, 9), (12, 20)])
    form = r'^How many times does the letter "(\w)" appear in the text: "([^"]+)"\?$'
    answered_by = "tool: Python counts in four words, the calculator adds"
    reader = last_count

    def script(self, parts: tuple[str, str], transcript: Sequence[Exchange]) -> Step:
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


class SpellBackward(GymTask):
    """A word from its last letter to its first.

    Spell this word backward (example: sun -> nus): Brodiaea   →   aeaidorB
    """

    name = "spell_backward"
    parameters = ranges(word_len=[(3, 4), (5, 7), (8, 10)])
    form = r"^Spell this word backward \(example: sun -> nus\): (\w+)$"
    answered_by = "tool: Python reverses three letters"
    reader = last_word
    max_answer_tokens = 32

    def script(self, parts: tuple[str], transcript: Sequence[Exchange]) -> Step:
        """Reverse the word in pieces of three letters, then join them from the last to the
        first."""
        (word,) = parts
        starts = range(0, len(word), PIECE_LETTERS)
        pieces = [word[start : start + PIECE_LETTERS] for start in starts]
        if not transcript:
            return ask_tool("python", (f"{json.dumps(piece)}[::-1]" for piece in pieces))
        replies = [text_of(exchange) for exchange in transcript]
        for piece, text in zip(pieces, replies, strict=True):
            if not re.fullmatch(rf"\w{{{len(piece)}}}", text):
                raise ValueError(f"{text!r} is not as long as {piece!r}")
        return Answer("".join(reversed(replies)))
