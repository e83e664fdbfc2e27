"""Answers in the words of another model: what an agent's choice of words carries is lost.

A rewriting stands only if it says the same: it keeps every number and name of the answer, and the
task's check accepts it. Answers of three words or fewer have no other words, and stay.
"""

import re

MAX_SHORT = 3
"""Words of an answer that is not rewritten."""
REWRITE = "Say the following in other words, with the same meaning, and nothing else:\n{answer}"
FACTS = re.compile(r"\d+(?:[.,]\d+)*|(?<=[a-z,;] )[A-Z]\w+")
"""Numbers, and capitalized words within a sentence."""


def can_rewrite(answer: str) -> bool:
    """Whether an answer has other words."""
    return len(answer.split()) > MAX_SHORT


def says_the_same(answer: str, rewritten: str) -> bool:
    """Whether a rewriting differs, keeps numbers and names, and is not three times as long."""
    kept = set(FACTS.findall(answer)) <= set(re.findall(r"\d+(?:[.,]\d+)*|\w+", rewritten))
    differs = rewritten.strip() not in ("", answer.strip())
    return kept and differs and len(rewritten) <= 3 * len(answer)
