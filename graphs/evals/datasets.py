"""Questions with their true answers from a JSONL file, in any of the forms that TRL takes.

    {"question": "17 + 4?", "answer": "21"}          or several: "answer": ["21", "twenty-one"]
    {"prompt": "17 + 4?", "completion": "21"}        texts, or lists of messages
    {"messages": [{"role": "user", …}, {"role": "assistant", …}]}

A line that is none of these ends all, with its number: a score over what is left of a broken file
would be one of other questions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

from reflux.agents.errors import UsageError
from reflux.agents.redaction import redact

FORMS = (
    'each line is a JSON object with "question" and "answer", "prompt" and "completion", or '
    '"messages"'
)


@dataclass(frozen=True)
class Row:
    """One question and all answers to it that are right."""

    question: str
    answers: tuple[str, ...]
    line: int
    """Where it stands in its file, from 1."""


@dataclass(frozen=True)
class QuestionFile:
    """What a file asks."""

    path: Path
    rows: tuple[Row, ...]
    system: str = ""
    """The system message that all rows share."""
    repeats: int = 0
    """Rows left out because they say what an earlier one says."""


def read_questions(path: Path) -> QuestionFile:
    """Read a file of questions.

    Raises:
        UsageError: no file, no questions, or a line that is none or contradicts another; the
            message has its number.
    """
    rows: dict[str, Row] = {}
    systems: dict[str, int] = {}
    repeats = 0
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            question, answers, system = _row(_parsed(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(
                f"{path}, line {number}: {error}; {FORMS}. Correct or remove the line"
            ) from error
        row = Row(redact(question), answers, number)
        systems.setdefault(system, number)
        known = rows.setdefault(row.question, row)
        if set(known.answers) != set(answers):
            raise UsageError(
                f"{path}, line {number}: the question of line {known.line} with another answer, so "
                "no answer to it could be scored; remove one, or give both as a list in one line"
            )
        repeats += known is not row
    if not rows:
        raise UsageError(f"{path} holds no questions; {FORMS}")
    if len(systems) > 1:
        raise UsageError(
            f"{path}, line {list(systems.values())[1]}: its system message is not that of line "
            f"{next(iter(systems.values()))}; a file has one, so split the file"
        )
    return QuestionFile(path, tuple(rows.values()), next(iter(systems)), repeats)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        kind = "it is a pipe or a device" if path.exists() else "no such file"
        why = "it is a folder" if path.is_dir() else kind
        raise UsageError(f"there are no questions in {path}: {why}; name a JSONL file")
    try:
        # Not `splitlines`: JSON texts may hold what it takes for an end of line.
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{path}, line {line}: not UTF-8 (byte {error.start}); save the file as UTF-8"
        ) from error


def _parsed(line: str) -> Mapping[str, Any]:
    # Decimal: an answer is compared as it is written, 1e999 and forty digits of pi among them.
    found = json.loads(line, parse_float=Decimal, parse_constant=_refuse_constant)
    if not isinstance(found, dict):
        raise TypeError(f"a JSON {type(found).__name__}, no object")
    return cast(Mapping[str, Any], found)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON; write a number, or a text in quotes")


def _row(found: Mapping[str, Any]) -> tuple[str, tuple[str, ...], str]:
    """(question, answers, system message) of one object."""
    if "question" in found or "answer" in found:
        return _text(found, "question"), _answers(found), ""
    if "messages" in found:
        turns = _turns(found["messages"], "messages")
        return _conversation(turns[:-1], turns[-1:])
    if "prompt" not in found or "completion" not in found:
        raise ValueError(f"it has only {', '.join(sorted(found)) or 'no keys'}")
    prompt, completion = found["prompt"], found["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return _text(found, "prompt"), (_text(found, "completion"),), ""
    return _conversation(_turns(prompt, "prompt"), _turns(completion, "completion"))


def _conversation(
    asked: Sequence[tuple[str, str]], said: Sequence[tuple[str, str]]
) -> tuple[str, tuple[str, ...], str]:
    roles = [role for role, _ in (*asked, *said)]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise ValueError(
            f"messages of {', '.join(roles) or 'nobody'}: a question is one user message and one "
            "of the assistant, after one system message or none"
        )
    return asked[-1][1], (said[0][1],), asked[0][1] if len(asked) == 2 else ""


def _turns(found: Any, key: str) -> list[tuple[str, str]]:
    if isinstance(found, str):
        return [("user" if key == "prompt" else "assistant", found)]
    if not isinstance(found, list):
        raise TypeError(f'"{key}" is no list of messages')
    turns: list[tuple[str, str]] = []
    for message in cast(list[Any], found):
        if not isinstance(message, dict):
            raise TypeError(f'"{key}" holds what is no message')
        body = cast(Mapping[str, Any], message)
        role = body.get("role")
        turns.append((str(role), _text(body, "content", blank=role == "system")))
    return turns


def _answers(found: Mapping[str, Any]) -> tuple[str, ...]:
    given = found.get("answer")
    if not isinstance(given, list):
        return (_text(found, "answer"),)
    answers = tuple(_text({"answer": each}, "answer") for each in cast(list[Any], given))
    if not answers:
        raise ValueError('"answer" is an empty list')
    return tuple(dict.fromkeys(answers))


def _text(found: Mapping[str, Any], key: str, blank: bool = False) -> str:
    """A text, or a number as one."""
    if key not in found:
        raise ValueError(f'it lacks "{key}"')
    value = found[key]
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise TypeError(f'"{key}" is no text')
    if not value.strip() and not blank:
        raise ValueError(f'"{key}" is empty')
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError(f'"{key}" is no Unicode text: it holds half a surrogate pair')
    return value
