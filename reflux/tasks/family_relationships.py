"""What one member of a family is to another.

    Samuel is married to Susan. They have a child called Ethan. Ethan is married to Hannah. They
    have a child called David. What is David to Ethan? …   →   son

H reads the marriages and births, follows them from one person to the other, and knows what such
a path is called for a man and for a woman; who is which, it has to ask. That is a copy's work:
SmolLM2-135M tells men's names from women's.

Left out are questions that reasoning-gym 0.1.25 has a wrong key for: nieces and nephews take the
sex of the other person there, and parents-in-law are told for children-in-law.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reflux.agents.types import Answer, Ask, Exchange, Step
from reflux.tasks.gym import Gym, GymTask
from reflux.tasks.replies import first_of, matched, said

PARAMETERS = (
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
"""What a path is called, for a man and for a woman."""
STORY = r"(\w+) is married to (\w+)\.(?: They have (?:a child|children) called ([^.]+)\.)?"
FORMS = r"\n(?:What is|How is|What relation is) (\w+) (?:related )?to (\w+)\?"


@dataclass(frozen=True)
class Family:
    """A story and the two people that it is asked about."""

    person: str
    other: str
    couples: tuple[tuple[str, str], ...]
    parents: dict[str, tuple[str, str]]

    def path(self) -> str:
        """How the person stands to the other, whichever sex; `ValueError` for what `KIN`
        lacks."""
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


def read(question: str) -> Family:
    """The story as couples and children."""
    asked = matched(FORMS, question)
    couples: list[tuple[str, str]] = []
    parents: dict[str, tuple[str, str]] = {}
    for one, two, children in re.findall(STORY, question):
        couples.append((one, two))
        for child in re.findall(r"\w+", children.replace(" and ", ", ")):
            parents[child] = (one, two)
    if not couples:
        raise ValueError(f"no marriage is told in {question[:80]!r}")
    return Family(asked[1], asked[2], tuple(couples), parents)


def act(family: Family, transcript: Sequence[Exchange]) -> Step:
    """Ask for the sex of the person, then name the path."""
    names = KIN[family.path()]
    if not transcript:
        return Ask.of(f"Is {family.person} a male or a female name? Answer male or female.")
    return Answer(
        names[("male", "female").index(first_of(("male", "female"), said(transcript[0])))]
    )


def word(question: str, reply: str) -> str:
    """The relation that a reply names first."""
    return first_of([name for pair in KIN.values() for name in pair], reply)


def family_relationships() -> GymTask:
    """The task."""
    source = Gym(
        "family_relationships",
        PARAMETERS,
        keep=lambda entry: entry["answer"] not in WRONG_KEYS,
    )
    return GymTask(
        "family_relationships",
        source,
        act,
        read,
        word,
        leaves="model: whether a name is a man's",
        leaf_room=12,
    )
