"""A plain list in a model's reply: numbered or bulleted, with bold type, labels and explanations
around what it asks."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

MAX_LINE = 4_000
"""Characters of an item; the rest of its line is left out."""
QUESTION_MARKS = ("?", "？", "؟")
EDGES = ' \t*_`"“”'
"""What may stand around a question."""
WORD = r"(?:(?:sub-?)?(?:question|task)|step|part|line|q)"
NUMBERED = re.compile(
    rf"^[ \t>#*_(+•-]*(?:{WORD}[ \t]*\#?[ \t]*(\d{{1,3}})[ \t]*(?:[.):\]*_–—-]+|$)"
    r"|\#?(\d{1,3})(?:[.):\]]+[*_]*|[*_]+[.):\]]+))(?:[ \t]+|(?=[^\W\d_])|$)(.*)$",
    re.IGNORECASE | re.MULTILINE,
)
"""`1.`, `(1)`, `Q1:`, `**Step 1:**`, `### Sub-question 1`, and the rest of the line."""
BULLETED = re.compile(r"^[ \t]*[-*•+][ \t]+(\S.*)$", re.MULTILINE)
ASKED = re.compile(r"^[^\n]*[?？؟][*_\"”]*[ \t]*$", re.MULTILINE)
NEXT_CASE = re.compile(r"^[ \t>#*_]*question[*_]*:", re.IGNORECASE | re.MULTILINE)
"""Where a model goes on to invent a question, in the form of the examples."""
ANSWER = re.compile(
    r"^[ \t>#*_]*(?:the[ \t]+)?(?:final[ \t]+)?answer[ \t*_]*(?::|is\b:?)[ \t*_]*(.*)(?:\n+(.*))?",
    re.IGNORECASE | re.MULTILINE,
)
INDIVISIBLE = re.compile(
    r"^[ \t>#*_]*(?:indivisible|not[ _-]?decomposable|cannot be (?:split|divided))\b"
    r"[ \t*_:.,-]*(.*)",
    re.IGNORECASE | re.MULTILINE,
)
BOLD = re.compile(r"^\*\*(.+?)\*\*[ \t]*[:.–—-]*[ \t]*(.*)$")
EXPLANATION = re.compile(
    r"(?<=[?？؟])[\"”*_ \t]*"
    r"(?:[(\[→:=–—-].*|[Aa]nswer[*_ \t]*:.*|(?:[A-ZÀ-Þ\d\W][\w'’.,-]*[ \t]*){1,4})$"
)
"""What follows a question on its line: a remark, or the model's own answer."""
REFERENCE = re.compile(
    rf"\{{[ \t]*(?:[a-z-]{{1,12}}[ \t]*){{0,4}}\#?(\d{{1,3}})[ \t]*\}}"
    rf"|[\[<(][ \t]*(?:the[ \t]+)?(?:answer|result)[ \t]+(?:(?:to|of|from)[ \t]+)?"
    rf"(?:{WORD}[ \t]*)?\#?(\d{{1,3}})[ \t]*[\])>]"
    rf"|\bthe (?:answer|result) (?:to|of|from) {WORD}[ \t]*\#?(\d{{1,3}})\b"
    r"|\bthe answer (?:to|of|from) \#?(\d{1,3})\b(?![.,]?\d|[ \t]*[-+*/×÷=])",
    re.IGNORECASE,
)
"""`{1}`, `{answer 1}`, `[answer to question 1]`, `the answer to step 1`, `the answer to 1`."""


@dataclass(frozen=True)
class Listing:
    """What a list holds."""

    texts: tuple[str, ...] = ()
    """Its items, whose `{i}` counts from 0."""
    numbered: bool = False
    answer: str = ""
    """After the label `Answer:`; empty without one."""
    before: str = ""
    """What stands before that label."""
    reason: str | None = None
    """After the label `Indivisible:`."""


def read_list(text: str, limit: int) -> Listing:
    """The first list of a text, up to `limit` items: its numbered lines, else its bulleted ones,
    else its questions.

    An item loses the explanation behind its question. `{1}` means the line of the number 1, and so
    do the other ways to refer to an earlier line. A list that begins again is another one.
    """
    reasons = INDIVISIBLE.search(text)
    answers = list(islice(ANSWER.finditer(text), 64))
    answer = (answers[-1][1] or answers[-1][2] or "") if answers else ""
    items = list(islice(_numbered(text), limit))
    numbered = bool(items)
    if not items:
        lines = [match[1] for match in islice(BULLETED.finditer(text), limit)]
        lines = lines or [match[0] for match in islice(ASKED.finditer(text), limit)]
        items = [(number, _bare(line)) for number, line in enumerate(lines, 1)]
    return Listing(
        tuple(_from_zero(items)),
        numbered,
        answer.strip(EDGES),
        text[: answers[-1].start()].strip() if answers else "",
        None if reasons is None else reasons[1].strip(EDGES),
    )


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    """(number, item) of the first list of numbered lines."""
    last, end = -1, len(text)
    matches = list(islice(NUMBERED.finditer(text), 1_000))
    if matches and (other := NEXT_CASE.search(text, matches[0].end())):
        end = other.start()
    for match in matches:
        number = int(match[1] or match[2])
        if number <= last or match.start() >= end:
            return
        line = match[3]
        if not line.strip(EDGES):  # A heading, whose question is the next line.
            line = text[match.end() :].lstrip("\n").partition("\n")[0]
        if item := _bare(line):
            last = number
            yield number, item


def _bare(line: str) -> str:
    """An item without what is around its question."""
    line = line.strip()[:MAX_LINE]
    if (bold := BOLD.match(line)) is not None:
        label, rest = bold[1], bold[2]
        line = rest if rest.strip(EDGES) and not label.rstrip().endswith(QUESTION_MARKS) else label
    return EXPLANATION.sub("", line).strip(EDGES)


def _from_zero(items: Sequence[tuple[int, str]]) -> Iterator[str]:
    """The items with references as `{i}`, which count positions from 0.

    If a number is that of no earlier line, the model counts otherwise, and all stay as they are.
    """
    index_of: Mapping[int, int] = {number: index for index, (number, _) in enumerate(items)}
    pairs = [
        (index, _number(match))
        for index, (_, text) in enumerate(items)
        for match in REFERENCE.finditer(text)
        if match[0].startswith("{")
    ]
    counts_lines = all(index_of.get(number, index) < index for index, number in pairs)
    for index, (_, text) in enumerate(items):

        def filled(match: re.Match[str], index: int = index) -> str:
            number = _number(match)
            if index_of.get(number, index) < index and counts_lines:
                return f"{{{index_of[number]}}}"
            return f"{{{number}}}" if match[0].startswith("{") else match[0]

        yield REFERENCE.sub(filled, text)


def _number(match: re.Match[str]) -> int:
    return int(next(group for group in match.groups() if group))
