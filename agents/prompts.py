"""The words sent to models. Every prompt states its system message, empty if need be.

Chat templates differ in what they add when none is given (SmolLM2's adds some 20 tokens), so a
missing system message would make the prompt depend on the model.
"""

import json
from collections.abc import Sequence
from typing import Any

from reflux.agents.types import Exchange, Step, Turn, step_to_json


def answer_prompt(question: str, system: str = "") -> tuple[tuple[str, str], ...]:
    """Ask one copy of X one question."""
    return (("system", system), ("user", question))


OVERSEE = """\
You split questions for assistants that know little. Each assistant sees one sub-question only.
Reply with one JSON object:
"""
KINDS = {
    "ask": (
        '{"ask": [{"question": "...", "needs": []}]} asks simpler sub-questions. {0} in a '
        "sub-question stands for the answer to the first one, {1} for the second; list these "
        'numbers in "needs".'
    ),
    "answer": '{"answer": "..."} ends with the answer, once you have all that it takes.',
    "not_decomposable": '{"not_decomposable": "why"} where simpler questions would not help.',
}
"""What H may reply, by the key of its JSON object."""

Example = tuple[str, Sequence[Exchange], dict[str, Any]]
"""Question, transcript, and the reply that H is to give."""

TWO_PARTS: Example = (
    "Who invented the telephone, and who the radio?",
    (),
    {
        "ask": [
            {"question": "Who invented the telephone?", "needs": []},
            {"question": "Who invented the radio?", "needs": []},
        ]
    },
)
DEPENDENT: Example = (
    "Which is older, the Eiffel Tower or Big Ben?",
    (),
    {
        "ask": [
            {"question": "When was the Eiffel Tower built?", "needs": []},
            {"question": "When was Big Ben built?", "needs": []},
            {"question": "Which year is earlier, {0} or {1}?", "needs": [0, 1]},
        ]
    },
)
COMBINED: Example = (
    "Name the colours of grass and snow.",
    (Exchange("What colour is grass?", "Green"), Exchange("What colour is snow?", "White")),
    {"answer": "Grass is green and snow is white."},
)

ANSWER_NOW = "Answer the question in few words. Use the answers that were found."
PRIMITIVE = "Answer the question in few words. If you are not sure, reply PASS."


def step_prompt(
    question: str, transcript: Sequence[Exchange], kinds: Sequence[str], most: int, chars: int
) -> tuple[Turn, ...]:
    """Ask H for its next step, one of these `KINDS`, with at most `most` sub-questions.

    The transcript takes `chars` characters at the most, shared evenly.
    """
    turns: list[Turn] = [("system", OVERSEE + "\n".join(KINDS[kind] for kind in kinds))]
    for asked, said, reply in (DEPENDENT, COMBINED) if transcript else (DEPENDENT, TWO_PARTS):
        turns += [("user", _case(asked, said, most, chars)), ("assistant", json.dumps(reply))]
    return (*turns, ("user", _case(question, transcript, most, chars)))


def answer_now_prompt(
    question: str, transcript: Sequence[Exchange], chars: int
) -> tuple[Turn, ...]:
    """Ask H for its answer as plain text; it may ask no more."""
    system = ANSWER_NOW if transcript else PRIMITIVE
    body = f"{said_so_far(transcript, chars)}\n\nQuestion: {question}"
    return (("system", system), ("user", body.strip()))


def choice_prompt(
    question: str, transcript: Sequence[Exchange], proposals: Sequence[Step], chars: int
) -> tuple[Turn, ...]:
    """Ask a judge which of several next steps is best, by its number from 1."""
    listed = "\n".join(
        f"{number}. {cut(json.dumps(step_to_json(step), ensure_ascii=False), chars)}"
        for number, step in enumerate(proposals, 1)
    )
    parts = (f"Question: {question}", said_so_far(transcript, chars), f"Steps:\n{listed}")
    system = 'Which next step serves the question best? Reply with JSON: {"choice": its number}'
    return (("system", system), ("user", "\n\n".join(part for part in parts if part)))


def _case(question: str, transcript: Sequence[Exchange], most: int, chars: int) -> str:
    said = said_so_far(transcript, chars) or "Answers so far: none"
    may = f"You may ask up to {most} sub-questions." if most > 1 else "You may ask 1 sub-question."
    return f"Question: {question}\n{said}\n{may}"


def said_so_far(transcript: Sequence[Exchange], chars: int) -> str:
    """The transcript in a line for each exchange, within so many characters; empty if it is."""
    if not transcript:
        return ""
    each = max(20, chars // (2 * len(transcript)) - CUT_CHARS)
    lines = [f"- {cut(said.question, each)} {cut(_came_back(said), each)}" for said in transcript]
    return "\n".join(["Answers so far:", *lines])


def _came_back(said: Exchange) -> str:
    if said.answer is None:
        return f"(no answer: {said.error or 'failed'})"
    return f"{said.answer} (in doubt: {said.error})" if said.error else said.answer


CUT_CHARS = 30
"""What the words about a cut, and a line's dash, may take."""


def cut(text: str, chars: int) -> str:
    """A text on one line, and what is cut of it by name."""
    line = " ".join(text.split())
    return line if len(line) <= chars else f"{line[:chars]} [{len(line) - chars} characters cut]"


CRITIC = """\
You check answers. Look for a mistake in the proposed answer. End with one word on a line of its \
own: RIGHT, or WRONG if you found a mistake."""


def critic_prompt(
    question: str, answer: str, transcript: Sequence[Exchange], chars: int = 4_000
) -> tuple[Turn, ...]:
    """Ask a critic whether an answer is right."""
    parts = (f"Question: {question}", said_so_far(transcript, chars), f"Proposed answer: {answer}")
    return (("system", CRITIC), ("user", "\n\n".join(part for part in parts if part)))


def verdict_in(reply: str) -> bool | None:
    """What a critic says: the last of the two words; None where it says neither."""
    said = [word for word in _words(reply) if word in ("RIGHT", "WRONG")]
    return said[-1] == "RIGHT" if said else None


SAME = "Do two answers to a question say the same? Wording does not matter. Reply YES or NO."


def same_prompt(question: str, one: str, other: str) -> tuple[Turn, ...]:
    """Ask whether two answers say the same."""
    body = f"Question: {question}\n\nFirst answer: {one}\n\nSecond answer: {other}"
    return (("system", SAME), ("user", body))


def yes_in(reply: str) -> bool | None:
    """The first YES or NO of a reply; None where there is neither."""
    return next((word == "YES" for word in _words(reply) if word in ("YES", "NO")), None)


def _words(reply: str) -> list[str]:
    """The words of a reply in capitals, without what stands around them."""
    return [word.strip(".,:;!*\"'()") for word in reply.upper().split()]
