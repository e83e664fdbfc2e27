"""A conversation with the amplified agent: each message is a trajectory, and can be stopped.

With the overseer `none` the agent goes on with the conversation alone, and its words are shown as
they come.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from reflux.agents.errors import EndpointError, UsageError
from reflux.agents.prompts import question_problem, redact
from reflux.agents.types import ChatRequest, Sampling
from reflux.ask_context import MAX_TOKENS
from reflux.cli.human_input import open_asking, unechoed
from reflux.cli.progress import LiveTree
from reflux.conversation import Conversation, Turn
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.amplify.graph import check_askable
from reflux.graphs.amplify.state import Outcome, accepted_status, exchange_error
from reflux.graphs.ask import Origin, ask
from reflux.graphs.ask_options import ALONE, AskOptions
from reflux.graphs.conversation import answer_chat
from reflux.tasks import task_named

UNBOUNDED = 2**31 - 1
LIMITS = {
    "depth": (0, 16),
    "calls": (0, UNBOUNDED),
    "tokens": (0, UNBOUNDED),
    "seconds": (0, UNBOUNDED),
    "max_tokens": (1, UNBOUNDED),
}
"""Ranges of the limits that `/budget` sets; the command line has the same."""


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

    async def ask(self, text: str, tree: LiveTree, say: Callable[[str], None]) -> Turn:
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
        task = task_named(self.options.task) if self.options.task else None
        # A task's questions stand alone; any other is asked after the conversation so far.
        question = task.from_user(text) if task else redact(self.conversation.question(text))
        origin = self._origin()
        async with open_asking(self.opened, self.options, tree) as (context, saver, wait):
            check_askable(question, context)
            self.trajectory = origin.question_id(redact(question))
            turn = self._turn(text)
            try:
                answered = await ask(
                    context, question, origin, options=self.options, checkpoints=saver, wait=wait
                )
                turn = _with_outcome(turn, answered.outcome)
                if task is not None and turn.answer is not None:
                    turn = replace(turn, answer=task.to_user(question, turn.answer))
            finally:
                self._keep(turn)
        answered.check_endpoint()
        return turn

    async def _answer_alone(self, text: str, tree: LiveTree, say: Callable[[str], None]) -> Turn:
        """The agent goes on with the conversation; what was shown of a reply cannot be recalled."""
        question = redact(self.conversation.question(text))
        if (reason := question_problem(question, self.options.limits.question_chars)) is not None:
            raise UsageError(f"{reason}; ask another")
        origin = self._origin()
        self.trajectory = origin.question_id(question)
        messages: list[tuple[str, str]] = [("system", "")]
        for user, answer in self.conversation.newest():
            messages += [("user", user), ("assistant", answer)]
        sampling = Sampling(max_tokens=self.options.max_tokens or MAX_TOKENS)
        request = ChatRequest(self.options.model, (*messages, ("user", text)), sampling)
        turn = self._turn(text)
        try:
            (reply,) = await answer_chat(
                self.opened.recorded_client, origin, question, [request], options=self.options,
                hear=lambda _, delta: say(delta.text), emit=tree,
            )  # fmt: skip
            status = accepted_status(has_check=False, truncated=reply.truncated)
            turn = replace(turn, answer=reply.text, status=status, calls=1, tokens=reply.tokens)
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
        if name != "max_tokens":
            value = getattr(self.options.limits, name)
            return "no limit" if value is None else f"{value:,}"
        value = self.options.max_tokens or (None if self.options.task else MAX_TOKENS)
        return "the task's" if value is None else f"{value:,}"

    def set_limit(self, name: str, value: str) -> None:
        """Set one limit of the messages to come.

        Raises:
            UsageError: there is no such limit, or the value is out of its range.
        """
        if name not in LIMITS:
            raise UsageError(f"there is no limit {name!r}; there are: {', '.join(LIMITS)}")
        minimum, maximum = LIMITS[name]
        number: float | None = -1  # No limit allows it, nor any text that is no number.
        with suppress(ValueError):
            number = float(value) if name == "seconds" else int(value)
        if name == "seconds" and value == "none":
            number = None
        if number is not None and not minimum <= number <= maximum:
            none = ", or none" if name == "seconds" else ""
            end = "up" if maximum == UNBOUNDED else f"to {maximum}"
            raise UsageError(f"{name} must be a number from {minimum} {end}{none}, not {value!r}")
        if name == "max_tokens":
            self.options = replace(self.options, max_tokens=number)
        else:
            limits = replace(self.options.limits, **{name: number})
            self.options = replace(self.options, limits=limits)


def _with_outcome(turn: Turn, outcome: Outcome | None) -> Turn:
    if outcome is None:
        return replace(turn, status="waiting")
    answer = outcome["answer"] if exchange_error(outcome) is None else None
    calls, tokens = outcome["spent"]["calls"], outcome["spent"]["tokens"]
    return replace(turn, answer=answer, status=outcome["status"], calls=calls, tokens=tokens)
