"""Words in the order of their Unicode characters, ascending or descending.

    … sort these words in ascending order … : inform, absolute, Vanilla   →   Vanilla, absolute, …

H runs a merge sort. Which of two words comes first is the Python tool's work: SmolLM2-135M cannot
spell a word, so it cannot compare two.
"""

import json
from collections.abc import Sequence

from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.tasks.gym import Gym, GymTask
from reflux.tasks.replies import matched, said, word_list
from reflux.tasks.sorting import Pair, merge_sort

PARAMETERS = (
    {"min_words": 3, "max_words": 3},
    {"min_words": 4, "max_words": 5},
    {"min_words": 6, "max_words": 8},
)


def read(question: str) -> tuple[list[str], bool]:
    """The words, and whether they are to ascend."""
    found = matched(r"sort these words in (a|de)scending order [^:]*: (\w+(?:, \w+)*)$", question)
    return found[2].split(", "), found[1] == "a"


def act(parts: tuple[list[str], bool], transcript: Sequence[Exchange]) -> Step:
    """Ask for the comparisons that the merge sort needs next."""
    words, ascending = parts
    known: dict[Pair, bool] = {}
    for exchange in transcript:
        left, right = json.loads(f"[{exchange.question.replace(' < ', ', ')}]")
        before = {"True": True, "False": False}.get(said(exchange))
        if before is None:
            raise ValueError(f"{exchange.answer!r} is neither True nor False")
        known[left, right] = before == ascending
    order = merge_sort(words, known)
    if isinstance(order, list):
        return Answer(", ".join(order))
    return Ask(
        tuple(
            SubQuestion(f"{json.dumps(a)} < {json.dumps(b)}", to="tool:python")
            for a, b in sorted(order)
        )
    )


def word_sorting() -> GymTask:
    """The task; the order of the words and the direction make no other question."""
    return GymTask(
        "word_sorting",
        Gym("word_sorting", PARAMETERS),
        act,
        read,
        lambda question, reply: word_list(reply),
        leaves="tool: Python compares two words",
        canonical_parts=lambda parts: sorted(parts[0]),
        answer_room=64,
    )
