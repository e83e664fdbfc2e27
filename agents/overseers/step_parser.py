"""A model's reply read as a step, whatever form the model gave it.

Sound JSON is read by `json`, broken JSON by `json_repair` (single quotes, missing quotes and
brackets, Python literals). Two rules of `json_repair` do not suit a step and are undone here: it
completes what the token limit cut off, and it turns fractions into floats.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import json_repair

from reflux.agents.clients.reasoning import split_reasoning
from reflux.agents.overseers.batch import alike
from reflux.agents.overseers.line_parser import QUESTION_MARKS, read_list
from reflux.agents.redaction import valid_unicode
from reflux.agents.types import SubQuestion

MAX_CHARS = 100_000
MAX_REPAIR_CHARS = 20_000
"""Longer broken JSON stays unread: repairing 100,000 hostile characters takes a second."""
MAX_DEPTH = 12
"""Objects and lists within one another; a deeper value is not read."""
MAX_BROKEN = 64
"""Opening brackets of one reply that may begin no sound JSON."""
MAX_QUESTIONS = 500
MAX_VALUES = 64
ASK = ("ask", "asks", "subquestions", "questions", "subtasks", "decomposition")
ANSWER = ("answer", "finalanswer", "final")
REASON = ("notdecomposable", "undecomposable", "indivisible")
WRAPPER = ("step", "reply", "response", "output", "result", "action", "next")
QUESTION = ("question", "text", "subquestion", "subtask", "q", "query", "task", "ask")
NEEDS = ("needs", "need", "dependson", "dependencies", "requires", "after")
OPENING = re.compile(r"[\[{]")
REPAIRABLE = re.compile(r"""\{|\[\s*["'“{\[]""")
"""Where broken JSON may begin; not at `[sic]` in prose."""


class NumberText(str):
    """A number that stays as the model wrote it: 3.10 is not 3.1."""

    __slots__ = ()


DECODER = json.JSONDecoder(
    parse_float=NumberText,
    parse_int=lambda digits: int(digits) if len(digits) <= 16 else NumberText(digits),
    parse_constant=NumberText,
    strict=False,
)


@dataclass(frozen=True)
class Reading:
    """What a reply says; empty if it holds nothing that an overseer can use."""

    questions: tuple[SubQuestion, ...] = ()
    """As the model gave them: they may repeat one another and need what is not there."""
    answer: str | None = None
    reason: str | None = None
    """Why the question is not to be divided."""
    before: str = ""
    """What stands before the answer: how the model came to it."""


NOTHING = Reading()


def read_step(text: str) -> Reading:
    """Read a reply: JSON in any of the forms that models give it, else a plain list of questions.

    The first JSON value that holds a step counts; a reasoning model's `<think>` does not. Never
    raises, whatever the text.
    """
    content = _content(text)
    values = list(islice(loose_values(content), MAX_VALUES))
    readings = (each for each in map(_reading, values) if each != NOTHING)
    return next(readings, None) or Reading(_questions(values) or _listed(content))


def read_lines(text: str) -> Reading:
    """Read a reply that was asked for as numbered lines; JSON is understood as well.

    Never raises, whatever the text.
    """
    content = _content(text)
    readings = map(_reading, islice(loose_values(content), MAX_VALUES))
    reading = next((each for each in readings if each != NOTHING), NOTHING)
    if reading != NOTHING:
        return reading
    listing = read_list(content, MAX_QUESTIONS)
    reason = None if listing.reason is None else _text(listing.reason) or "no reason given"
    before = "" if listing.texts else listing.before
    return Reading(_questions(list(listing.texts)), _text(listing.answer), reason, before)


def read_answer(text: str) -> str | None:
    """Read a reply to a plain request for an answer: its JSON answer, or else its whole text; None
    if it is empty, or a step of another kind."""
    content = _content(text)
    readings = map(_reading, islice(loose_values(content), MAX_VALUES))
    return next((each.answer for each in readings if each != NOTHING), _text(content))


def loose_values(text: str) -> Iterator[Any]:
    """Every sound JSON object and list of a text, in order, then the first broken one, repaired.

    Never raises, and takes time in proportion to the text. Values are those of JSON, except that
    fractions stay text.
    """
    text = text[:MAX_CHARS]
    index, broken = 0, 0
    first_broken: int | None = None
    while broken < MAX_BROKEN and (opening := OPENING.search(text, index)):
        index = opening.end()
        try:
            value, index = DECODER.raw_decode(text, opening.start())
            yield _clean(value)
        except RecursionError:
            broken += 1
            while text[index : index + 1] == opening[0]:
                index += 1
        except ValueError:
            broken += 1
            if first_broken is None and REPAIRABLE.match(text, opening.start()):
                first_broken = opening.start()
    if first_broken is None or len(text) - first_broken > MAX_REPAIR_CHARS:
        return
    try:
        value = _clean(json_repair.loads(text[first_broken:], skip_json_loads=True))
    except Exception:  # noqa: BLE001 - what cannot be repaired holds no step
        return
    if isinstance(value, dict | list) and not _drop_cut(value, text.rstrip()):
        yield value


def _drop_cut(value: Any, end: str) -> bool:
    """Remove the last value of a repaired one if the text ends within it; True if it is all."""
    if isinstance(value, dict | list):
        parts = cast(Any, value)
        last = len(parts) - 1 if isinstance(value, list) else next(reversed(parts), None)
        if parts and _drop_cut(parts[last], end):
            del parts[last]
        return False
    tail = str(value)[-8:]
    return end.endswith((tail, json.dumps(tail)[1:-1]))


def _clean(value: Any, depth: int = 0) -> Any:
    """The value with valid Unicode, and with fractions as text.

    Raises:
        RecursionError: it is nested deeper than `MAX_DEPTH`.
    """
    if isinstance(value, float):
        return NumberText(value)
    if isinstance(value, str):
        return type(value)(valid_unicode(value))
    if isinstance(value, list | dict) and depth == MAX_DEPTH:
        raise RecursionError
    if isinstance(value, list):
        return [_clean(item, depth + 1) for item in cast(list[Any], value)]
    if isinstance(value, dict):
        fields = cast(dict[str, Any], value)
        return {valid_unicode(name): _clean(item, depth + 1) for name, item in fields.items()}
    return value


def _content(text: str) -> str:
    """A reply without its reasoning, cut to `MAX_CHARS`."""
    return split_reasoning(valid_unicode(text[:MAX_CHARS]).replace("\0", "")).content.strip()


def _reading(value: Any, depth: int = 0) -> Reading:
    """A JSON value read as a step; `NOTHING` for any other value, and for an item of a list."""
    if isinstance(value, list):
        readings = (_reading(item, depth + 1) for item in cast(list[Any], value)[:MAX_VALUES])
        return next((each for each in readings if each != NOTHING), NOTHING)
    if not isinstance(value, dict) or depth > 3:
        return NOTHING
    fields = _fields(cast(dict[str, Any], value))
    questions = _first(fields, ASK)
    if depth and isinstance(questions, str):
        questions = None
    reading = Reading(
        _questions(questions) or _questions(_numbered(fields)),
        _answer(_first(fields, ANSWER)),
        _reason(fields),
    )
    return reading if reading != NOTHING else _reading(_first(fields, WRAPPER), depth + 1)


def _fields(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object's fields by the letters and digits of their names."""
    return {re.sub(r"[\W_]", "", key).lower(): item for key, item in value.items()}


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[n] for n in names if fields.get(n) not in (None, "", [], {})), None)


def _numbered(fields: Mapping[str, Any]) -> list[Any]:
    """Questions under names such as `1`, `q1` or `question_2`."""
    name = r"(?:(?:sub)?(?:q|question))?\d{1,3}"
    return [item for field, item in fields.items() if re.fullmatch(name, field)]


def _questions(value: Any) -> tuple[SubQuestion, ...]:
    items = list(islice(_items(value), MAX_QUESTIONS))
    # Of equal texts the first counts.
    positions = {alike(text): index for index, (text, _) in reversed(list(enumerate(items)))}
    return tuple(SubQuestion(text, tuple(_needs(needs, positions))) for text, needs in items)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Each question with what it says it needs, however deep the lists are nested."""
    if isinstance(value, NumberText):
        return
    if isinstance(value, str):
        # An empty question keeps its number, which others may need.
        yield _text(" ".join(value.split())) or "", None
    elif isinstance(value, list):
        for item in cast(list[Any], value):
            yield from _items(item)
    elif isinstance(value, dict):
        fields = _fields(cast(dict[str, Any], value))
        question = _first(fields, QUESTION)
        if isinstance(question, str):
            yield _text(" ".join(question.split())) or "", _first(fields, NEEDS)
        elif question is not None:
            yield from _items(question)
        else:
            yield from _items(_first(fields, ASK) or _numbered(fields))


def _needs(value: Any, positions: Mapping[str, int]) -> Iterator[int]:
    """Positions named by number or by the text of their question; other values are ignored."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield value
    elif isinstance(value, list):
        for item in cast(list[Any], value):
            yield from _needs(item, positions)
    elif isinstance(value, str):
        number = re.fullmatch(r"\D{0,20}(\d{1,6})\D?", value)
        if alike(value) in positions:
            yield positions[alike(value)]
        elif number is not None:
            yield int(number[1])


def _answer(value: Any) -> str | None:
    """An answer as text; a list of plain values as an enumeration, other values as JSON."""
    if value is None or isinstance(value, str):
        return _text(value or "")
    if isinstance(value, list):
        parts = cast(list[Any], value)
        if all(isinstance(part, str | int) and not isinstance(part, bool) for part in parts):
            return _text(", ".join(map(str, parts)))
    return json.dumps(value, ensure_ascii=False)


def _reason(fields: Mapping[str, Any]) -> str | None:
    if fields.get("decomposable") is False:
        return _answer(fields.get("reason")) or "no reason given"
    reason = _first(fields, REASON)
    return "no reason given" if reason is True else _answer(reason or None)


def _text(value: str) -> str | None:
    """The text without control characters; None if it is empty or the dots of the prompt's
    pattern."""
    text = "".join(c for c in value if c in "\n\t" or unicodedata.category(c) != "Cc").strip()
    return text if text.strip(".… ") else None


def _listed(text: str) -> tuple[SubQuestion, ...]:
    """The questions of a plain list; if no line is a question, all numbered lines of several."""
    listing = read_list(text, MAX_QUESTIONS)
    questions = [line for line in listing.texts if line.endswith(QUESTION_MARKS)]
    if not questions and listing.numbered and len(listing.texts) > 1:
        questions = list(listing.texts)
    return _questions(questions)
