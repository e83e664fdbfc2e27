"""Files of demonstrations, which people write by hand or `reflux demos make` writes.

One JSON object a line. Each sub-question stands in `ask`; `{0}` stands for the answer to the first
one of the same step, `{1}` for the second. `answers` and `answer` may be left out; without them the
demonstration shows how to divide, not how to combine.

    {"question": "Which is older, the Eiffel Tower or Big Ben?",
     "ask": ["When was the Eiffel Tower built?", "When was Big Ben built?"],
     "answers": ["1889", "1859"], "answer": "Big Ben"}

`reason`, such as `"1859 is earlier than 1889."`, says how the answer follows. A learned overseer
writes it before the answer, and so learns to combine from fewer demonstrations.

A sub-question may go to a tool of the overseer: `{"to": "calculator", "question": "205 - 838"}`.
`"steps": [{"ask": …, "answers": …}, …]` in the place of `ask` and `answers` are several steps one
after the other. An empty `ask` is a question that is not to be divided.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from reflux.agents.errors import UsageError
from reflux.agents.files import read_text, write_whole
from reflux.agents.overseers.batch import alike, settle
from reflux.agents.overseers.demonstrations import Demonstration, Demonstrations, DemoStep
from reflux.agents.prompts import is_unicode
from reflux.agents.types import REFERENCE, SubQuestion

FORM = '{"question": "…", "ask": ["…", "…"], "answers": ["…", "…"], "answer": "…"}'
KEYS = {"question", "ask", "answers", "steps", "reason", "answer"}


def read_demonstrations(path: Path | str) -> Demonstrations:
    """Read a file of demonstrations.

    Raises:
        UsageError: there is no such file, it holds none, or a line has another form; the message
            names the line.
    """
    path = Path(path)
    if not path.is_file():
        why = "it is a folder" if path.is_dir() else "no such file"
        raise UsageError(f"there are no demonstrations at {path}: {why}")
    items: list[Demonstration] = []
    text = read_text(path)
    # `splitlines` would also split at U+2028, which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            items.append(demonstration_of(json.loads(line)))
        except (ValueError, RecursionError) as error:
            why = "no JSON" if isinstance(error, json.JSONDecodeError) else error
            raise UsageError(
                f"{path}, line {number}: not a demonstration ({why}); each line is like {FORM}"
            ) from error
    if not items:
        raise UsageError(
            f"{path} holds no demonstrations: write one a line, like {FORM}, or have `reflux demos "
            "make` write them"
        )
    return Demonstrations(tuple(items), hashlib.sha256(text.encode()).hexdigest())


def write_demonstrations(path: Path, items: Iterable[Demonstration]) -> None:
    """Write a file that `read_demonstrations` reads."""
    lines = (json.dumps(item.to_json(), ensure_ascii=False) for item in items)
    write_whole(path, "".join(f"{line}\n" for line in lines))


def demonstration_of(body: Any) -> Demonstration:
    """The demonstration of a line's object.

    Raises:
        ValueError: it has another form.
    """
    if not isinstance(body, dict):
        raise ValueError("no JSON object")
    fields = cast(dict[str, Any], body)
    _check_keys(fields, KEYS)
    question = _text(fields.get("question"), "question")
    if not question:
        raise ValueError("the question is empty")
    if ("steps" in fields) == ("ask" in fields):
        raise ValueError("it needs either `ask` or `steps`")
    if "steps" in fields and "answers" in fields:
        raise ValueError("`answers` belong into the `steps`")
    raw: Any = fields["steps"] if "steps" in fields else [_without_rest(fields)]
    if not isinstance(raw, list):
        raise ValueError("`steps` is no list")
    steps = [_step(each, question) for each in cast(list[Any], raw)]
    if steps[1:] and not all(step.ask for step in steps):
        raise ValueError("one of several steps asks nothing")
    answer, reason = (_text(fields.get(name, ""), name) for name in ("answer", "reason"))
    if reason and not answer:
        raise ValueError("it has a `reason` and no `answer`")
    return Demonstration(question, tuple(step for step in steps if step.ask), answer, reason)


def _without_rest(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fields[name] for name in ("ask", "answers") if name in fields}


def _step(value: Any, question: str) -> DemoStep:
    if not isinstance(value, dict):
        raise ValueError("a step is no JSON object")
    fields = cast(dict[str, Any], value)
    _check_keys(fields, {"ask", "answers"})
    asked, answers = _asked(fields.get("ask", [])), _texts(fields.get("answers", []), "answers")
    texts = [sub.text for sub in asked]
    if len(answers) > len(texts):
        raise ValueError(f"{len(answers)} answers to {len(texts)} sub-questions")
    for number, text in enumerate(texts, 1):
        for match in REFERENCE.finditer(text):
            if int(match[1]) > len(texts):
                raise ValueError(
                    f"sub-question {number} refers to {match[0]}, and its step has {len(texts)}"
                )
    settled = settle(asked, [question], len(texts))
    if [alike(REFERENCE.sub("", sub.text)) for sub in settled.subquestions] != [
        alike(REFERENCE.sub("", text)) for text in texts
    ]:
        raise ValueError(
            "a sub-question is empty, repeats the question or another one, or refers to one that "
            "is not before it"
        )
    return DemoStep(settled.subquestions, tuple(answers))


def _check_keys(fields: Mapping[str, Any], known: Collection[str]) -> None:
    for name in fields:
        if name not in known:
            raise ValueError(f"unknown key {name!r:.40}")


def _asked(value: Any) -> list[SubQuestion]:
    """The sub-questions of a step: texts, or objects that name a tool as well."""
    if not isinstance(value, list):
        raise ValueError("`ask` is no list of texts")
    asked: list[SubQuestion] = []
    for item in cast(list[Any], value):
        fields = cast(dict[str, Any], item) if isinstance(item, dict) else {"question": item}
        _check_keys(fields, {"to", "question"})
        tool = _text(fields.get("to", ""), "to")
        to = f"tool:{tool}" if tool else ""
        asked.append(SubQuestion(_text(fields.get("question", ""), "ask"), to=to))
    return asked


def _texts(value: Any, name: str) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"`{name}` is no list of texts")
    return [_text(item, name) for item in cast(list[Any], value)]


def _text(value: Any, name: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"`{name}` holds no text")
    if not is_unicode(value):
        raise ValueError(f"`{name}` holds half a surrogate pair")
    return " ".join(value.split()) if name == "ask" else value.strip()
