"""Who it is that does what was asked, among many statements.

    Josef blasts butterflies. Breandan disdains playing basketball. … Who disdains playing
    basketball? Reply only with a name.   →   Breandan

H cuts the statements into pages of eight. The Python tool finds the statement on its page, and a
copy of X reads whom it is about: SmolLM2-135M gets lost in more than one statement.
"""

import json
import re
from collections.abc import Sequence

from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.tasks.gym import Gym, GymTask
from reflux.tasks.replies import first_of, matched, said

PARAMETERS = (
    {"min_num_statements": 6, "max_num_statements": 8},
    {"min_num_statements": 14, "max_num_statements": 18},
    {"min_num_statements": 30, "max_num_statements": 40},
)
PAGE = 8
NOT_HERE = "not here"


def read(question: str) -> tuple[list[str], str]:
    """The statements, and what was asked about: `disdains playing basketball`."""
    found = matched(r"^(.+\.)\s*\nWho (.+)\? Reply only with a name\.$", question)
    return re.findall(r"\S[^.]*\.", found[1]), found[2]


def search(page: Sequence[str], phrase: str) -> str:
    """The program that finds a statement on one page."""
    lines = json.dumps(list(page), ensure_ascii=False)
    ending = json.dumps(f" {phrase}.", ensure_ascii=False)
    return f'([s for s in {lines} if s.endswith({ending})] + ["{NOT_HERE}"])[0]'


def act(parts: tuple[list[str], str], transcript: Sequence[Exchange]) -> Step:
    """Find the statement, then ask whom it is about."""
    statements, phrase = parts
    pages = [statements[at : at + PAGE] for at in range(0, len(statements), PAGE)]
    if not transcript:
        return Ask(tuple(SubQuestion(search(p, phrase), to="tool:python") for p in pages))
    found = [text for text in map(said, transcript[: len(pages)]) if text != NOT_HERE]
    if len(found) != 1:
        raise ValueError(f"{len(found)} pages hold {phrase!r}; one was to be found")
    if len(transcript) == len(pages):
        return Ask.of(f"Who is this sentence about? {found[0]} Answer with the name only.")
    named = [word for word in re.findall(r"[\w’'-]+", found[0]) if word[0].isupper()]
    return Answer(first_of(named, said(transcript[-1])))


def who(question: str, reply: str) -> str:
    """The first of the question's people whom a reply names."""
    statements, _ = read(question)
    return first_of([statement.split()[0] for statement in statements], reply)


def needle_haystack() -> GymTask:
    """The task."""
    return GymTask(
        "needle_haystack",
        Gym("needle_haystack", PARAMETERS),
        act,
        read,
        who,
        leaves="tool: Python finds the statement; model: whom it is about",
        leaf_room=20,
    )
