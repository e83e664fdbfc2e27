"""A conversation with the amplified agent: each message is a trajectory, and can be stopped.

With the overseer `none` the agent continues the conversation alone, and a terminal shows its words
as they come. Conversations are kept in the run folder, a file each.
"""

import fcntl
import json
import re
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from langchain_core.messages import convert_to_messages
from pydantic import TypeAdapter, ValidationError

from reflux.agents.errors import EndpointError, UsageError
from reflux.agents.files import write_whole
from reflux.agents.prompts import question_problem
from reflux.agents.redaction import redact
from reflux.agents.types import ChatRequest, Delta, Sampling
from reflux.ask_context import MAX_TOKENS
from reflux.cli.human_input import open_asking, unechoed
from reflux.cli.progress import LiveTree
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.amplify.screening import check_askable
from reflux.graphs.amplify.state import exchange_error
from reflux.graphs.ask import Origin, ask
from reflux.graphs.ask_options import ALONE, AskOptions
from reflux.graphs.conversation import answer_chat, question_of, reply_status
from reflux.tasks import task_named

FOLDER = "conversations"
MAX_CHARS = 4_000
"""Maximum characters of earlier turns that go with a new message; the newest whole turns."""
UNBOUNDED = 2**31 - 1
LIMITS = {
    "depth": (0, 16),
    "calls": (0, UNBOUNDED),
    "tokens": (0, UNBOUNDED),
    "seconds": (0, UNBOUNDED),
    "max_tokens": (1, UNBOUNDED),
}
"""Ranges of the limits that `/budget` sets; the command line has the same."""


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

    def question(self, text: str, *, marked: bool = False) -> str:
        """The new message as a question, after the newest turns, whose answers may be `marked` as
        untrusted."""
        messages = convert_to_messages([*self.messages(), ("user", text)])
        return question_of(messages, marked=marked)

    def messages(self) -> list[tuple[str, str]]:
        """(role, text) of the newest answered turns, `MAX_CHARS` together at most."""
        answered = self._answered()
        sizes = accumulate(len(user) + len(answer) for user, answer in reversed(answered))
        fitting = sum(1 for _ in takewhile(lambda size: size <= MAX_CHARS, sizes))
        return _with_roles(answered[len(answered) - fitting :])

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
            messages = [{"role": role, "content": text} for role, text in _with_roles(answered)]
            write_whole(path, json.dumps({"messages": messages}) + "\n")
            return
        parts = [f"**You**\n\n{user}\n\n**Reflux**\n\n{answer}\n" for user, answer in answered]
        write_whole(path, "\n".join(parts))


def _with_roles(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    roles = ("user", "assistant")
    return [message for turn in turns for message in zip(roles, turn, strict=True)]


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


@dataclass
class ChatSession:
    """A conversation, and the options of its next message."""

    opened: OpenRun
    conversation: Conversation
    options: AskOptions
    trajectory: str = ""
    """Of the last message."""
    unkept: OSError | None = None
    """Why the conversation file lacks turns. Answers are shown and recorded all the same."""

    async def ask(self, text: str, tree: LiveTree, say: Callable[[Delta], None]) -> Turn:
        """Answer one message and keep the turn; a message that is stopped is kept, too.

        Args:
            tree: grows with the answer, and is hidden before a human is asked in the terminal.
            say: gets the words of the agent that answers alone.

        Raises:
            UsageError: the message cannot be asked.
            EndpointError: the endpoint failed.
        """
        self.trajectory = ""
        if self.options.overseer == ALONE:
            with unechoed():
                return await self._answer_alone(text, tree, say)
        name, folder = self.options.task, self.opened.folder
        task = task_named(name, folder) if name else None
        # A task's questions stand alone; any other is asked after the conversation so far.
        marked = bool(self.options.policy)
        said = text if task else self.conversation.question(text, marked=marked)
        question = task.from_user(text) if task else redact(said)
        origin = self._origin()
        async with open_asking(self.opened, self.options, tree) as (context, saver, wait):
            check_askable(question, context)
            self.trajectory = origin.question_id(redact(question))
            turn = self._turn(text)
            try:
                answered = await ask(
                    context, question, origin, options=self.options, checkpoints=saver, wait=wait
                )
                if (outcome := answered.outcome) is None:
                    turn = replace(turn, status="waiting")
                else:
                    answer = outcome["answer"] if exchange_error(outcome) is None else None
                    if task is not None and answer is not None:
                        answer = task.to_user(question, answer)
                    spent = {key: outcome["spent"][key] for key in ("calls", "tokens")}
                    turn = replace(turn, answer=answer, status=outcome["status"], **spent)
            finally:
                self._keep(turn)
        answered.check_endpoint()
        return turn

    async def _answer_alone(self, text: str, tree: LiveTree, say: Callable[[Delta], None]) -> Turn:
        """The agent continues the conversation; what was shown of a reply cannot be recalled."""
        question = redact(self.conversation.question(text))
        if (reason := question_problem(question, self.options.limits.question_chars)) is not None:
            raise UsageError(f"{reason}; ask another")
        origin = self._origin()
        self.trajectory = origin.question_id(question)
        messages = (("system", ""), *self.conversation.messages(), ("user", text))
        sampling = Sampling(max_tokens=self.options.max_tokens or MAX_TOKENS)
        request = ChatRequest(self.options.model, messages, sampling)
        turn = self._turn(text)
        try:
            (reply,) = await answer_chat(
                self.opened.recorded_client, origin, question, [request], options=self.options,
                hear=lambda _, delta: say(delta), emit=tree,
            )  # fmt: skip
            turn = replace(
                turn, answer=reply.text or None, status=reply_status(reply), calls=1,
                tokens=reply.tokens,
            )  # fmt: skip
        except EndpointError:
            turn = replace(turn, status="failed")
            raise
        finally:
            self._keep(turn)
        return turn

    def stopped(self, text: str) -> Turn:
        """The turn of a message that was stopped, also one that had not begun."""
        turns = self.conversation.turns
        if not turns or turns[-1].trajectory != self.trajectory:
            self._keep(self._turn(text))
        return turns[-1]

    def _keep(self, turn: Turn) -> None:
        try:
            self.conversation.add(turn)
        except OSError as error:
            self.unkept = error

    def _origin(self) -> Origin:
        prefix = f"chat-{self.conversation.id}"
        return Origin.new(self.opened.folder.id, prefix, self.options.task)

    def _turn(self, text: str) -> Turn:
        overseer = self.options.overseer or self.options.task
        return Turn(text, None, "stopped", self.trajectory, overseer, self.options.model)

    def limit(self, name: str) -> str:
        """One limit of the messages to come, in words."""
        value, unset = getattr(self.options.limits, name, None), "no limit"
        if name == "max_tokens":
            value = self.options.max_tokens or (None if self.options.task else MAX_TOKENS)
            unset = "the task's"
        return unset if value is None else f"{value:,}"

    def set_limit(self, name: str, value: str) -> None:
        """Set one limit of the messages to come.

        Raises:
            UsageError: there is no such limit, or the value is out of its range.
        """
        if name not in LIMITS:
            raise UsageError(f"there is no limit {name!r}; there are: {', '.join(LIMITS)}")
        (minimum, maximum), timed = LIMITS[name], name == "seconds"
        number: float | None = -1  # No limit allows it, nor any text that is no number.
        with suppress(ValueError):
            number = float(value) if timed else int(value)
        if timed and value == "none":
            number = None
        elif not minimum <= number <= maximum:
            end = ("up" if maximum == UNBOUNDED else f"to {maximum}") + ", or none" * timed
            raise UsageError(f"{name} must be a number from {minimum} {end}, not {value!r}")
        change: dict[str, Any] = {name: number}
        if name != "max_tokens":
            change = {"limits": replace(self.options.limits, **change)}
        self.options = replace(self.options, **change)
