"""The parts of a question in a record: which columns hold them, its choices, and its context."""

import json
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, cast

import regex

from reflux.graphs.evals.questions.cells import text_of

QUESTIONS = (
    "question", "input", "prompt", "messages", "conversations", "problem", "query", "instruction",
    "question_stem", "ctx", "user_input",
)  # fmt: skip
ANSWERS = (
    "answer", "answers", "target", "completion", "output", "expected", "expected_output",
    "reference", "reference_answer", "ground_truth", "answerKey", "answer_key", "correct_answer",
    "correct_answers", "final_answer", "ideal", "label", "cop", "solution", "response",
)  # fmt: skip
CHOICES = ("choices", "options", "endings")
LETTERED = (
    (("A", "B", "C", "D", "E"), "ABCDE"),
    (("a", "b", "c", "d", "e"), "ABCDE"),
    (("option_a", "option_b", "option_c", "option_d", "option_e"), "ABCDE"),
    (("choice_a", "choice_b", "choice_c", "choice_d", "choice_e"), "ABCDE"),
    (("option1", "option2", "option3", "option4", "option5"), "12345"),
    (("opa", "opb", "opc", "opd"), "ABCD"),
    (("answerA", "answerB", "answerC"), "123"),
)
"""Choices in separate columns, and their labels: of WinoGrande, MedMCQA, SocialIQa."""
CONTEXTS = ("context", "contexts", "passage", "passages", "article", "document", "documents")
"""The columns of each part of a question, the first that a record has."""
KNOWN = frozenset(QUESTIONS + ANSWERS + CHOICES + CONTEXTS).union(*(each for each, _ in LETTERED))


def columns_of(body: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """(record, original names): columns such as ` Question`, `Correct Answer` and `expectedOutput`
    also under the names of the known forms, unless the record has those, too."""
    names: dict[str, str] = {}
    for name in body.keys() - KNOWN:
        words = regex.sub(r"(?<=\p{Ll})(?=\p{Lu})|[\s-]+", "_", name.strip()).lower()
        if words in KNOWN and words not in body:
            names.setdefault(words, name)
    return {**body, **{words: body[name] for words, name in names.items()}}, names


def choices_of(body: Mapping[str, Any], used: set[str]) -> tuple[tuple[str, ...], list[str]]:
    """(texts, labels) of the choices, from one column or several."""
    for columns, labels in LETTERED:
        present = [column for column in columns if body.get(column) not in (None, "")]
        if len(present) >= 2 and present == list(columns[: len(present)]):
            used.update(present)
            return tuple(text_of(body[column], column) for column in present), list(labels)
    key = next((each for each in CHOICES if body.get(each)), "")
    if not key:
        return (), []
    used.add(key)
    value, names = body[key], list[Any]()
    if isinstance(value, str):
        try:
            value = json.loads(value.replace("'", '"') if '"' not in value else value)
        except ValueError as error:
            raise ValueError(f'"{key}" is no list of choices') from error
    if isinstance(value, Mapping):
        held = cast(Mapping[str, Any], value)
        texts = held.get("text", held.get("texts"))
        names = list(held.get("label", held.get("labels", ()))) if texts else list(held)
        value = texts or list(held.values())
    if not isinstance(value, list):
        raise TypeError(f'"{key}" is no list of choices')
    texts = [
        text_of(cast(Mapping[str, Any], each).get("text"), key) if isinstance(each, Mapping)
        else text_of(each, key)
        for each in cast(list[Any], value)
    ]  # fmt: skip
    if len(texts) > len(ascii_uppercase):
        raise ValueError(f"{len(texts)} choices are more than there are letters")
    return tuple(texts), [str(name) for name in names]


def chosen(answers: Sequence[Any], choices: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The letter of the right choice and its text, or the letters of several."""
    indices = [_index(answer, choices, labels) for answer in answers]
    if len(set(indices)) > 1:
        return [", ".join(ascii_uppercase[index] for index in sorted(set(indices)))]
    return [ascii_uppercase[indices[0]], choices[indices[0]]]


def _index(answer: Any, choices: Sequence[str], labels: Sequence[str]) -> int:
    """The number of a choice by its label, its letter, its text or its number from 0."""
    text = str(answer).strip()
    letters = list(ascii_uppercase[: len(choices)])
    for names in (labels, letters, [each.strip() for each in choices]):
        if not isinstance(answer, int) and text in names:
            return names.index(text)
    text = regex.sub(r"^(?:option|choice|op)[ _]?(?=\w$)", "", text)
    if text.upper() in letters:
        return letters.index(text.upper())
    if text.isdecimal() and int(text) < len(choices):
        return int(text)
    raise ValueError(f"its answer {text[:40]!r} is none of the {len(choices)} choices")


def context_of(body: Mapping[str, Any], used: set[str]) -> str:
    """What the question is about: a text, several, or HotpotQA's titles with their sentences."""
    key = next((each for each in CONTEXTS if body.get(each)), "")
    value = body.get(key, "")
    if isinstance(value, Mapping):
        held = cast(Mapping[str, Any], value)
        value = list(zip(held.get("title", ()), held.get("sentences", ()), strict=False))
    parts: list[str] = []
    for part in cast(list[Any], value if isinstance(value, list) else [value]):
        if isinstance(part, list | tuple) and len(cast(Sequence[Any], part)) == 2:
            title, sentences = cast(Sequence[Any], part)
            part = f"{title}: {''.join(sentences)}"
        if isinstance(part, Mapping):  # A document of LangChain, RAGAS and others.
            held = cast(Mapping[str, Any], part)
            text = next((held[k] for k in ("text", "content", "page_content") if k in held), None)
            title = held.get("title")
            part = f"{title}: {text}" if title and text else text
        if not isinstance(part, str):
            return ""
        if part.strip():
            parts.append(part)
    if parts:
        used.add(key)
    return "\n\n".join(parts)
