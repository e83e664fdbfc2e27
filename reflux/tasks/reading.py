"""Two tasks of reasoning-gym about people in a text: who did something, and how two are related.

SmolLM2-135M gets lost in more than one statement, but reads whom one is about, and tells men's
names from women's. H narrows the text down to such a question.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.tasks.gym import Gym, GymTask
from reflux.tasks.replies import first_name, match_question, text_of

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
        programs = (search_program(page, phrase) for page in pages)
        return Ask(tuple(SubQuestion(program, to="tool:python") for program in programs))
    matches = [text for text in map(text_of, transcript[: len(pages)]) if text != NO_MATCH]
    if len(matches) != 1:
        raise ValueError(f"{len(matches)} pages hold {phrase!r}; expected one")
    if len(transcript) == len(pages):
        return Ask.of(f"Who is this sentence about? {matches[0]} Answer with the name only.")
    names = [word for word in re.findall(r"[\w’'-]+", matches[0]) if word[0].isupper()]
    return Answer(first_name(names, text_of(transcript[-1])))


def person_named(question: str, reply: str) -> str:
    """The first of the question's people whom a reply names."""
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
    """The story as couples and children."""
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
    """The relation that a reply names first."""
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
