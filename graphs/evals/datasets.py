"""Questions with their true answers from a JSONL file, in any of the forms that TRL takes.

    {"question": "17 + 4?", "answer": "21"}          or several: "answer": ["21", "twenty-one"]
    {"prompt": "17 + 4?", "completion": "21"}        texts, or lists of messages
    {"messages": [{"role": "user", …}, {"role": "assistant", …}]}

Any other line is an error: a score over the rest of a broken file would be about other questions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

from reflux.agents.errors import UsageError
from reflux.agents.prompts import redact

FORMS = (
    'each line is a JSON object with "question" and "answer", "prompt" and "completion", or '
    '"messages"'
)


@dataclass(frozen=True)
class Row:
    """A question and its true answers."""

    question: str
    answers: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class QuestionFile:
    """The questions of a file."""

    path: Path
    rows: tuple[Row, ...]
    system: str = ""
    """The system message that all rows share."""
    repeats: int = 0


def read_questions(path: Path) -> QuestionFile:
    """Read a file of questions.

    Raises:
        UsageError: no file, no questions, or a line that is invalid or contradicts another; the
            message has its number.
    """
    rows: dict[str, Row] = {}
    systems: dict[str, int] = {}
    repeats = 0
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            question, answers, system = _row(line)
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(
                f"{path}, line {number}: {error}; {FORMS}. Correct or remove the line"
            ) from error
        row = Row(redact(question), answers, number)
        systems.setdefault(system, number)
        first = rows.setdefault(row.question, row)
        if set(first.answers) != set(answers):
            raise UsageError(
                f"{path}, line {number}: the question of line {first.line} with another answer, so "
                "no answer to it can be scored; remove one, or give both as a list in one line"
            )
        repeats += first is not row
    if not rows:
        raise UsageError(f"{path} holds no questions; {FORMS}")
    if len(systems) > 1:
        raise UsageError(
            f"{path}, line {list(systems.values())[1]}: its system message is not that of line "
            f"{next(iter(systems.values()))}; a file may have one only, so split the file"
        )
    return QuestionFile(path, tuple(rows.values()), next(iter(systems)), repeats)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        kind = "it is a pipe or a device" if path.exists() else "no such file"
        why = "it is a folder" if path.is_dir() else kind
        raise UsageError(f"there are no questions in {path}: {why}; name a JSONL file")
    try:
        # Not `splitlines`: JSON texts may contain other line separators, such as U+2028.
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{path}, line {line}: not UTF-8 (byte {error.start}); save the file as UTF-8"
        ) from error


def _raise_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON; write a number, or a text in quotes")


def _row(line: str) -> tuple[str, tuple[str, ...], str]:
    """(question, answers, system message) of one line."""
    # Decimal: an answer is compared as it is written, also 1e999 and forty digits of pi.
    body = json.loads(line, parse_float=Decimal, parse_constant=_raise_constant)
    if not isinstance(body, dict):
        raise TypeError(f"a JSON {type(body).__name__}, no object")
    body = cast(dict[str, Any], body)
    if "question" in body or "answer" in body:
        return _text(body, "question"), _answers(body), ""
    if "messages" in body:
        messages = _messages(body["messages"], "messages")
        return _conversation(messages[:-1], messages[-1:])
    if "prompt" not in body or "completion" not in body:
        raise ValueError(f"it has only {', '.join(sorted(body)) or 'no keys'}")
    prompt, completion = body["prompt"], body["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return _text(body, "prompt"), (_text(body, "completion"),), ""
    return _conversation(_messages(prompt, "prompt"), _messages(completion, "completion"))


def _conversation(
    prompt: Sequence[tuple[str, str]], completion: Sequence[tuple[str, str]]
) -> tuple[str, tuple[str, ...], str]:
    roles = [role for role, _ in (*prompt, *completion)]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise ValueError(
            f"messages of {', '.join(roles) or 'nobody'}: a question is one user message and one "
            "assistant message, with or without a system message before them"
        )
    return prompt[-1][1], (completion[0][1],), prompt[0][1] if len(prompt) == 2 else ""


def _messages(value: Any, key: str) -> list[tuple[str, str]]:
    """(role, content) of each message."""
    if isinstance(value, str):
        return [("user" if key == "prompt" else "assistant", value)]
    if not isinstance(value, list):
        raise TypeError(f'"{key}" is no list of messages')
    messages: list[tuple[str, str]] = []
    for message in cast(list[Any], value):
        if not isinstance(message, dict):
            raise TypeError(f'"{key}" holds what is no message')
        body = cast(Mapping[str, Any], message)
        role = body.get("role")
        messages.append((str(role), _text(body, "content", blank=role == "system")))
    return messages


def _answers(body: Mapping[str, Any]) -> tuple[str, ...]:
    value = body.get("answer")
    if not isinstance(value, list):
        return (_text(body, "answer"),)
    answers = tuple(_text({"answer": each}, "answer") for each in cast(list[Any], value))
    if not answers:
        raise ValueError('"answer" is an empty list')
    return tuple(dict.fromkeys(answers))


def _text(body: Mapping[str, Any], key: str, blank: bool = False) -> str:
    """A text, or a number as one."""
    if key not in body:
        raise ValueError(f'it lacks "{key}"')
    value = body[key]
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise TypeError(f'"{key}" is no text')
    if not value.strip() and not blank:
        raise ValueError(f'"{key}" is empty')
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError(f'"{key}" is no Unicode text: it holds half a surrogate pair')
    return value
