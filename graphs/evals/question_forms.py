"""One record as a question with its true answers, in the forms that data sets come in.

    {"question": "17 + 4?", "answer": "21"}          or several: "answer": ["21", "twenty-one"]
    {"prompt": "17 + 4?", "completion": "21"}        texts, or lists of messages, as TRL takes them
    {"messages": [{"role": "user", …}, {"role": "assistant", …}]}
    {"input": "…", "target": "B", "choices": […]}    Inspect
    {"question": "…", "choices": […], "answer": 2}   MMLU; ARC, HellaSwag, CommonsenseQA alike
    {"context": "…", "question": "…", "answers": {"text": […]}}   SQuAD; HotpotQA alike
    {"question": "…", "answer": "… #### 72"}         GSM8K

A question is its context, itself, and its choices by letters, apart by blank lines; `Keys` name
other columns, or write it by a Jinja template. A chat that goes before is part of the question,
each message after the name of its role. A record without question or answer is an error: a score
over the rest of a broken file would be about other questions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, cast

from jinja2 import TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from reflux.agents.errors import UsageError
from reflux.graphs.evals.cells import flat_values, text_of, value_at
from reflux.graphs.evals.scorers import final_answer

QUESTIONS = (
    "question", "input", "prompt", "messages", "conversations", "problem", "query", "instruction",
    "question_stem", "ctx",
)  # fmt: skip
ANSWERS = (
    "answer", "answers", "target", "completion", "output", "expected", "expected_output",
    "reference", "reference_answer", "ground_truth", "answerKey", "answer_key", "correct_answer",
    "correct_answers", "final_answer", "ideal", "label", "cop", "solution", "response",
)  # fmt: skip
CHOICES = ("choices", "options", "endings")
LETTERED = (
    (("A", "B", "C", "D", "E"), "ABCDE"),
    (("option1", "option2"), "12"),
    (("opa", "opb", "opc", "opd"), "ABCD"),
    (("answerA", "answerB", "answerC"), "123"),
)
"""Choices in columns of their own, and their labels: of WinoGrande, MedMCQA, SocialIQa."""
CONTEXTS = ("context", "contexts", "passage", "passages", "article", "document", "documents")
"""The columns of each part of a question, the first that a record has."""
ROLES = {"human": "user", "gpt": "assistant", "ai": "assistant", "model": "assistant"}
ASK_LETTER = "Reply with the letter of the right choice."


@dataclass(frozen=True)
class Keys:
    """Which columns hold what; empty for those of the known forms."""

    question: str = ""
    answer: str = ""
    """A column, or a path such as `answers.text`."""
    template: str = ""
    """Jinja: all columns by their names, beside `question`, `choices` and `context`."""
    optional: bool = False
    """Whether a record may lack its answer."""
    options: tuple[str, str, str] = ("--question-key", "--answer-key", "--prompt-template")
    """How the user names the three, for messages."""


@dataclass(frozen=True)
class Example:
    """A record as a question."""

    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...]
    system: str
    used: frozenset[str]


class Form:
    """Reads records as questions."""

    def __init__(self, keys: Keys) -> None:
        """Compile the template.

        Raises:
            UsageError: the template is invalid.
        """
        self.keys = keys
        self._template, self._names = None, frozenset[str]()
        if keys.template:
            environment = ImmutableSandboxedEnvironment(keep_trailing_newline=False)
            try:
                names = meta.find_undeclared_variables(environment.parse(keys.template))
                self._template = environment.from_string(keys.template)
            except TemplateError as error:
                raise UsageError(f"{keys.options[2]} is no Jinja template: {error}") from error
            if not names:
                raise UsageError(
                    f"{keys.options[2]} names no column; write it as {{{{ question }}}}, with two "
                    "braces"
                )
            self._names = frozenset(names)

    def example(self, body: Mapping[str, Any]) -> Example:
        """The question of one record.

        Raises:
            ValueError, TypeError, KeyError: it has none, or no answer.
        """
        used: set[str] = set()
        system, history, question, answers = self._question(body, used)
        if answers is None:
            answers = self._answers(body, used)
        choices, labels = _choices(body, used)
        context = _context(body, used) if not history else ""
        if choices and answers:
            answers = _chosen(answers, choices, labels)
        if self._template is not None:
            option = self.keys.options[2]
            missing = self._names - {"question", "choices", "context", *body}
            if missing:
                raise ValueError(f"{option} names {', '.join(sorted(missing))}, no column of it")
            used |= self._names
            parts = {"question": question, "choices": choices, "context": context}
            try:
                question = self._template.render(dict(body) | parts)
            except Exception as error:
                raise ValueError(f"{option}: {type(error).__name__}: {error}") from error
        else:
            listed = [f"{ascii_uppercase[i]}) {each}" for i, each in enumerate(choices)]
            asked = "\n".join([*listed, ASK_LETTER]) if listed else ""
            question = "\n\n".join(part for part in (context, history + question, asked) if part)
        texts = tuple(dict.fromkeys(text_of(each, "answer") for each in answers))
        return Example(text_of(question, "question"), texts, choices, system, frozenset(used))

    def from_text(self, text: str) -> str:
        """A question that a user typed, in the template where this needs nothing else."""
        if self._template is None or self._names - {"question", self.keys.question}:
            return text
        return self._template.render({self.keys.question or "question": text, "question": text})

    def _question(
        self, body: Mapping[str, Any], used: set[str]
    ) -> tuple[str, str, str, list[Any] | None]:
        """(system message, chat before, question, answers where the messages hold them)."""
        key = self.keys.question or next(
            (each for each in QUESTIONS if body.get(each) not in (None, [], "")), ""
        )
        if not key and self._template is not None and "question" not in self._names:
            return "", "", "", None
        if not key and (named := [each for each in QUESTIONS if each in body]):
            raise ValueError(f'"{named[0]}" is empty')
        if not key:
            no_answer = not (self.keys.answer or self.keys.optional) and not any(
                each in body for each in ANSWERS
            )
            also = " or an answer" if no_answer else ""
            by_question, by_answer, _ = self.keys.options
            remedy = (
                f"them by {by_question} and {by_answer}" if no_answer else f"it by {by_question}"
            )
            raise ValueError(
                f"it has {', '.join(sorted(body)) or 'no columns'}, and none is known to hold a "
                f"question{also}: name {remedy}"
            )
        value = value_at(body, key)
        used.add(key.partition(".")[0])
        is_parts = isinstance(value, list) and all(
            isinstance(part, dict) and "type" in part and "role" not in part
            for part in cast(list[Any], value)
        )
        if isinstance(value, Mapping | list) and not is_parts:
            answer_key = self.keys.answer or next((each for each in ANSWERS if each in body), "")
            messages = _messages(value, key)
            open_end = self.keys.optional and messages[-1:] and messages[-1][0] == "user"
            return _conversation(messages, has_answer=bool(answer_key or open_end))
        question = text_of(value, key)
        if key == "instruction" and body.get("input"):
            used.add("input")
            question += f"\n\n{text_of(body['input'], 'input')}"
        elif "instruction" in body and key == "input" and body["instruction"]:
            used.add("instruction")
            question = f"{text_of(body['instruction'], 'instruction')}\n\n{question}"
        return "", "", question, None

    def _answers(self, body: Mapping[str, Any], used: set[str]) -> list[Any]:
        key = self.keys.answer or next((each for each in ANSWERS if each in body), "")
        if not key and self.keys.optional:
            return []
        if not key:
            raise ValueError(
                f"it has {', '.join(sorted(body))}, and none is known to hold the answer: name "
                f"it by {self.keys.options[1]}"
            )
        used.add(key.partition(".")[0])
        if self.keys.optional and body.get(key.partition(".")[0]) in (None, "", []):
            return []
        value = value_at(body, key)
        if key == "completion" and isinstance(value, list):
            return [content for _, content in _messages(value, key)]
        if key == "solution" and isinstance(value, str):
            return [final_answer(value) or value]
        return flat_values(value, key)


def _messages(value: Any, key: str) -> list[tuple[str, str]]:
    """(role, content) of each message, as OpenAI, Inspect and ShareGPT write them."""
    if not isinstance(value, list):
        raise TypeError(f'"{key}" is no list of messages')
    messages: list[tuple[str, str]] = []
    for message in cast(list[Any], value):
        if not isinstance(message, dict):
            raise TypeError(f'"{key}" holds what is no message')
        body = cast(Mapping[str, Any], message)
        role = str(body.get("role", body.get("from")))
        content = body.get("content", body.get("value"))
        messages.append((ROLES.get(role, role), text_of(content, "content", role == "system")))
    return messages


def _conversation(
    messages: Sequence[tuple[str, str]], *, has_answer: bool
) -> tuple[str, str, str, list[Any] | None]:
    """(system message, chat before, question, answer where it is the last message)."""
    system = messages[0][1] if messages and messages[0][0] == "system" else ""
    turns = messages[1:] if messages and messages[0][0] == "system" else messages
    answer = None if has_answer else turns[-1:]
    asked = turns if has_answer else turns[:-1]
    roles = ", ".join(role for role, _ in messages) or "nobody"
    if not asked or asked[-1][0] != "user" or (answer and answer[0][0] != "assistant"):
        raise ValueError(
            f"messages of {roles}: the last one of the user is the question, and without a column "
            "for it the assistant's after that is the answer"
        )
    before = "".join(f"{role.capitalize()}: {content}\n\n" for role, content in asked[:-1])
    history = f"{before}User: " if before else ""
    return system, history, asked[-1][1], None if answer is None else [answer[0][1]]


def _choices(body: Mapping[str, Any], used: set[str]) -> tuple[tuple[str, ...], list[str]]:
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


def _chosen(answers: Sequence[Any], choices: Sequence[str], labels: Sequence[str]) -> list[str]:
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
    if text.upper() in letters:
        return letters.index(text.upper())
    if text.isdecimal() and int(text) < len(choices):
        return int(text)
    raise ValueError(f"its answer {text[:40]!r} is none of the {len(choices)} choices")


def _context(body: Mapping[str, Any], used: set[str]) -> str:
    """What the question is about: a text, several, or HotpotQA's titles with their sentences."""
    key = next((each for each in CONTEXTS if body.get(each)), "")
    value = body.get(key)
    if isinstance(value, Mapping):
        held = cast(Mapping[str, Any], value)
        value = list(zip(held.get("title", ()), held.get("sentences", ()), strict=False))
    parts: list[str] = []
    for part in cast(list[Any], value if isinstance(value, list) else [value]):
        if isinstance(part, list | tuple) and len(cast(Sequence[Any], part)) == 2:
            title, sentences = cast(Sequence[Any], part)
            part = f"{title}: {''.join(sentences)}"
        if isinstance(part, str) and part.strip():
            parts.append(part)
    if parts:
        used.add(key)
    return "\n\n".join(parts)
