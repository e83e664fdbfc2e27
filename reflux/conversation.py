"""A conversation becomes one question; conversations are kept in the run folder, a file each.

The overseer sees the whole conversation, a copy of the agent only its sub-question. A single
message is the question as it stands. With earlier turns or instructions the text is

    Instructions:
      ...

    Conversation so far:
    User: ...
    Assistant: ...

    Question:
    ...

The further lines of a turn are indented, so that no turn can imitate another.
"""

import fcntl
import json
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from pydantic import TypeAdapter, ValidationError

from reflux.agents.errors import UsageError
from reflux.agents.files import write_whole

SPEAKERS = {"human": "User", "ai": "Assistant", "tool": "Tool", "function": "Tool"}
CONTENT_TYPES = {"text", "reasoning", "thinking", "tool_call", "tool_use"}
"""Content that is text, or that an answer may hold beside its text."""


def question_of(messages: Sequence[BaseMessage]) -> str:
    """The last message as a question, after the conversation that led to it.

    Raises:
        UsageError: the last message is not the user's, or holds more than text.
    """
    if not messages or messages[-1].type != "human":
        last = f"is of type {messages[-1].type!r}" if messages else "is missing"
        raise UsageError(f"the last message {last}; it must be the user's question")
    *earlier, question = messages
    system = [_text(m) for m in earlier if m.type == "system"]
    turns = [f"{_speaker(m)}: {_indented(_text(m))}" for m in earlier if m.type != "system"]
    if not any(system) and not turns:
        return _text(question)
    parts: list[str] = []
    if any(system):
        parts.append("Instructions:\n  " + _indented("\n".join(system)))
    if turns:
        parts.append("Conversation so far:\n" + "\n".join(turns))
    parts.append(f"Question:\n{_text(question)}")
    return "\n\n".join(parts)


def last_question(text: str) -> str:
    """The last question of a text that `question_of` wrote; any other text as it is."""
    is_conversation = text.startswith(("Instructions:\n  ", "Conversation so far:\n"))
    _, separator, question = text.partition("\n\nQuestion:\n")
    return question if is_conversation and separator else text


def _speaker(message: BaseMessage) -> str:
    speaker = SPEAKERS.get(message.type, message.type)
    return f"{speaker} {message.name}" if message.name else speaker


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, list):
        for block in message.content:
            kind = "text" if isinstance(block, str) else str(block.get("type"))
            if kind not in CONTENT_TYPES:
                raise UsageError(f"a message holds {kind!r}; the amplified system reads text alone")
    text = str(message.text)
    if not text and isinstance(message, AIMessage) and message.tool_calls:
        return f"(called {', '.join(call['name'] for call in message.tool_calls)})"
    return text


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop sequences."""
    ends = (end for stop in stops if stop and (end := text.find(stop)) >= 0)
    return text[: min(ends, default=len(text))]


FOLDER = "conversations"
MAX_CHARS = 4_000
"""Maximum characters of earlier turns that go with a new message; the newest whole turns."""


@dataclass(frozen=True)
class Turn:
    """A user's message and its answer."""

    user: str
    answer: str | None
    """None if no answer was accepted, or it was stopped."""
    status: str
    """Of the outcome, or `waiting` or `stopped`."""
    trajectory: str
    overseer: str
    model: str
    calls: int = 0
    tokens: int = 0
    at: float = field(default_factory=time.time)


TURN = TypeAdapter(Turn)


@dataclass
class Conversation:
    """Turns in order; one without an answer is shown, but the overseer does not see it."""

    path: Path
    turns: list[Turn] = field(default_factory=list[Turn])

    @property
    def id(self) -> str:
        return self.path.stem

    def add(self, turn: Turn) -> None:
        """Append a turn; it is on disk when this returns.

        The rest of a turn that a kill or a full disk cut short is removed first.
        """
        self.turns.append(turn)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # Another chat may append to it, too.
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps(asdict(turn)).encode() + b"\n")

    def question(self, text: str) -> str:
        """The new message as a question, after the newest turns."""
        messages: list[BaseMessage] = []
        for user, answer in self.newest():
            messages += [HumanMessage(user), AIMessage(answer)]
        return question_of([*messages, HumanMessage(text)])

    def newest(self) -> list[tuple[str, str]]:
        """(message, answer) of the newest answered turns, `MAX_CHARS` together at most."""
        answered = self._answered()
        sizes = accumulate(len(user) + len(answer) for user, answer in reversed(answered))
        fitting = sum(1 for _ in takewhile(lambda size: size <= MAX_CHARS, sizes))
        return answered[len(answered) - fitting :]

    def _answered(self) -> list[tuple[str, str]]:
        return [(turn.user, turn.answer) for turn in self.turns if turn.answer is not None]

    def save(self, path: Path) -> None:
        """Write it as Markdown, or to a file that ends in .jsonl as one row for TRL.

        Raises:
            UsageError: no turn was answered.
        """
        if not (answered := self._answered()):
            raise UsageError("nothing was answered yet, so there is nothing to save")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jsonl":
            roles = [zip(("user", "assistant"), turn, strict=True) for turn in answered]
            messages = [{"role": role, "content": text} for turn in roles for role, text in turn]
            write_whole(path, json.dumps({"messages": messages}) + "\n")
            return
        parts = [f"**You**\n\n{user}\n\n**Reflux**\n\n{answer}\n" for user, answer in answered]
        write_whole(path, "\n".join(parts))


def begin(run: Path) -> Conversation:
    """A new conversation; its first turn creates its file."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    return Conversation(run / FOLDER / f"{name}.jsonl")


def resume(run: Path, id: str) -> Conversation:
    """A conversation of the run by its id, an unambiguous beginning of it, or `last`.

    Raises:
        UsageError: there is none, or several.
    """
    files = _files(run)
    paths = files[-1:] if id == "last" else [path for path in files if path.stem.startswith(id)]
    if len(paths) != 1 or (id != "last" and not re.fullmatch(r"[0-9a-f-]+", id)):
        known = ", ".join(path.stem for path in files[-5:]) or "none"
        raise UsageError(f"no one conversation is called {id!r}; the newest: {known}")
    return Conversation(paths[0], _turns(paths[0]))


def listed(run: Path) -> Sequence[dict[str, Any]]:
    """The conversations of the run with their first words, newest first; a damaged one with the
    reason."""
    rows: list[dict[str, Any]] = []
    for path in reversed(_files(run)):
        try:
            turns = _turns(path)
        except UsageError as error:
            rows.append({"id": path.stem, "turns": 0, "begins": f"damaged: {error}"})
            continue
        first = turns[0].user if turns else ""
        rows.append({"id": path.stem, "turns": len(turns), "begins": first})
    return rows


def _files(run: Path) -> list[Path]:
    return sorted(path for path in (run / FOLDER).glob("*.jsonl") if path.is_file())


def _turns(path: Path) -> list[Turn]:
    """The turns of a file, without a last line that a kill cut short.

    Raises:
        UsageError: another line is no turn, or the file cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    turns: list[Turn] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            turns.append(TURN.validate_json(line))
        except ValidationError as error:
            if number == len(lines):
                break
            first = error.errors()[0]
            why = ": ".join([*map(str, first["loc"]), first["msg"]])
            raise UsageError(
                f"{path}, line {number}: not a turn ({why}); remove the line, and the others are "
                "kept"
            ) from error
    return turns
