"""A model's reply read as a step of H, whatever form the model gave it."""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from reflux.agents.overseers.batch import alike
from reflux.agents.overseers.loose_json import CHARS, Bare, loose_values, whole_unicode
from reflux.agents.types import SubQuestion

QUESTIONS = 500
"""Sub-questions read of one reply; more are not."""
VALUES = 64
"""JSON values looked at in one reply."""
ASK = ("ask", "asks", "subquestions", "questions", "subtasks", "decomposition")
ANSWER = ("answer", "finalanswer", "final")
REASON = ("notdecomposable", "undecomposable", "indivisible")
WRAPPER = ("step", "reply", "response", "output", "result", "action", "next")
QUESTION = ("question", "text", "subquestion", "subtask", "q", "query", "task", "ask")
NEEDS = ("needs", "need", "dependson", "dependencies", "requires", "after")
NUMBERED = re.compile(r"^[ \t]*(?:\(?\d{1,3}[.):]|Q\d{1,3}[.:])[ \t]+(\S.*)$", re.MULTILINE)
BULLETED = re.compile(r"^[ \t]*[-*•][ \t]+(\S.*)$", re.MULTILINE)
FRACTION = re.compile(r"-?[0-9.]+(?:[eE][-+]?[0-9]+)?")
ASKING = ("?", "？", "؟")


@dataclass(frozen=True)
class Reading:
    """What a reply says; all empty where it says nothing that H can use."""

    questions: tuple[SubQuestion, ...] = ()
    """As the model gave them: they may repeat one another and need what is not there."""
    answer: str | None = None
    reason: str | None = None
    """Why the question cannot be decomposed."""


NOTHING = Reading()


def read_step(text: str) -> Reading:
    """Read a reply: JSON in any of the forms that models give it, else a plain list of questions.

    The first JSON value that holds a step counts; a reasoning model's `<think>` does not. Never
    raises, whatever the text.
    """
    text = _spoken(text)
    loose: list[Any] = []
    for value in islice(loose_values(text), VALUES):
        reading = _reading(value)
        if reading != NOTHING:
            return reading
        loose += value if isinstance(value, list) else [value]
    quoted = [item for item in loose if not isinstance(item, Bare)]
    return Reading(_questions(quoted) or _listed(text))


def read_answer(text: str) -> str | None:
    """Read a reply to a plain request for an answer: its JSON answer, or else all that it says;
    None where that is nothing, or a step of another kind."""
    spoken = _spoken(text)
    for value in islice(loose_values(spoken), VALUES):
        reading = _reading(value)
        if reading != NOTHING:
            return reading.answer
    return _text(spoken)


def _spoken(text: str) -> str:
    """What a reply says aloud, up to so many characters."""
    text = whole_unicode(text[:CHARS]).replace("\0", "").rpartition("</think>")[2]
    return text.partition("<think>")[0].strip()


def _reading(value: Any, depth: int = 0) -> Reading:
    """The step that a JSON value is; NOTHING where it is none, or one of a list of questions."""
    if isinstance(value, list):
        found = (_reading(item, depth + 1) for item in cast(list[Any], value)[:VALUES])
        return next((reading for reading in found if reading != NOTHING), NOTHING)
    if not isinstance(value, dict) or depth > 3:
        return NOTHING
    fields = _fields(cast(dict[str, Any], value))
    asked = _first(fields, ASK)
    if depth and isinstance(asked, str):
        asked = None
    reading = Reading(
        _questions(asked) or _questions(_numbered(fields)),
        _answer(_first(fields, ANSWER)),
        _reason(fields),
    )
    return reading if reading != NOTHING else _reading(_first(fields, WRAPPER), depth + 1)


def _fields(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object's fields under the letters and digits of their names."""
    return {re.sub(r"[\W_]", "", key).lower(): item for key, item in value.items()}


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first field that is there under one of its names, and not empty."""
    return next((fields[n] for n in names if fields.get(n) not in (None, "", [], {})), None)


def _numbered(fields: Mapping[str, Any]) -> list[Any]:
    """Questions under names such as `1`, `q1` or `question_2`."""
    named = re.compile(r"(?:(?:sub)?(?:q|question))?\d{1,3}")
    return [item for name, item in fields.items() if named.fullmatch(name)]


def _questions(value: Any) -> tuple[SubQuestion, ...]:
    items = list(islice(_items(value), QUESTIONS))
    at: dict[str, int] = {}
    for index, (text, _) in enumerate(items):
        at.setdefault(alike(text), index)
    return tuple(SubQuestion(text, tuple(_needs(needs, at))) for text, needs in items)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Each question with what it says it needs, however deep the lists are nested."""
    if isinstance(value, Bare) and FRACTION.fullmatch(value):
        return
    if isinstance(value, str):
        # An empty one keeps its number, which others may need.
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


def _needs(value: Any, at: Mapping[str, int]) -> Iterator[int]:
    """Positions named by number or by the text of their question; anything else is nothing."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield value
    elif isinstance(value, list):
        for item in cast(list[Any], value):
            yield from _needs(item, at)
    elif isinstance(value, str):
        number = re.fullmatch(r"\D{0,20}(\d{1,6})\D?", value)
        if alike(value) in at:
            yield at[alike(value)]
        elif number is not None:
            yield int(number[1])


def _answer(value: Any) -> str | None:
    """An answer as text; a list of plain values as an enumeration, other things as JSON."""
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
    """The text without control characters; None where a model left the dots of its pattern."""
    kept = (c for c in value if c in "\n\t" or unicodedata.category(c) != "Cc")
    shown = "".join(kept).strip()
    return shown if shown.strip(".… ") else None


def _listed(text: str) -> tuple[SubQuestion, ...]:
    """A plain list of questions; where none asks, of numbered lines, if there are several."""
    numbered = [found[1] for found in islice(NUMBERED.finditer(text), QUESTIONS)]
    lines = numbered or [found[1] for found in islice(BULLETED.finditer(text), QUESTIONS)]
    asking = [line for line in lines if line.rstrip(" *_\"'").endswith(ASKING)]
    if not asking and len(numbered) > 1:
        asking = numbered
    return _questions([line.strip(" *_") for line in asking])
