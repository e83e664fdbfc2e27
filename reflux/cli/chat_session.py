"""A conversation with the amplified agent: each message is a trajectory, and can be stopped.

With the overseer `none` the agent goes on with the conversation alone, and its words are shown as
they come.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from reflux.agents.errors import EndpointError, UsageError
from reflux.agents.redaction import question_problem, redact
from reflux.agents.types import ChatRequest, Sampling
from reflux.ask_context import MAX_TOKENS
from reflux.cli.human_input import open_asking, unechoed
from reflux.cli.progress import LiveTree
from reflux.conversation import Conversation, Turn
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.amplify.graph import check_askable
from reflux.graphs.amplify.state import accepted_status, exchange_error
from reflux.graphs.ask import Answered, Origin, ask
from reflux.graphs.ask_options import ALONE, AskOptions
from reflux.graphs.conversation import answer_chat
from reflux.tasks import task_named

CAPS = ("depth", "calls", "tokens", "seconds", "max_tokens")
"""The limits that `/budget` sets."""
UNBOUNDED = 2**31 - 1
RANGES = {"depth": (0, 16), "max_tokens": (1, UNBOUNDED)}
"""Ranges of the limits that do not range from 0 up; the command line has the same."""


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

    async def ask(
        self,
        text: str,
        tree: LiveTree,
        say: Callable[[str], None],
    ) -> Turn:
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
        question, origin = self._question(text), self._origin()
        async with open_asking(self.opened, self.options, tree) as (context, saver, wait):
            check_askable(question, context)
            self.trajectory = origin.question_id(redact(question))
            turn = self._turn(text, None, "stopped")
            try:
                answered = await ask(
                    context, question, origin, options=self.options, checkpoints=saver, wait=wait
                )
                turn = self._turn_of(text, question, answered)
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
        turn = self._turn(text, None, "stopped")
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
            self._keep(self._turn(text, None, "stopped"))
        return turns[-1]

    def _keep(self, turn: Turn) -> None:
        try:
            self.conversation.add(turn)
        except OSError as error:
            self.unkept = error

    def _origin(self) -> Origin:
        prefix = f"chat-{self.conversation.id}"
        return Origin.new(self.opened.folder.id, prefix, self.options.task)

    def _question(self, text: str) -> str:
        """A task's questions stand alone; any other is asked after the conversation so far."""
        if self.options.task:
            return task_named(self.options.task).from_user(text)
        return redact(self.conversation.question(text))

    def _turn_of(self, text: str, question: str, answered: Answered) -> Turn:
        outcome = answered.outcome
        if outcome is None:
            return self._turn(text, None, "waiting")
        answer = outcome["answer"] if exchange_error(outcome) is None else None
        if self.options.task and answer is not None:
            answer = task_named(self.options.task).to_user(question, answer)
        spent = outcome["spent"]
        turn = self._turn(text, answer, outcome["status"])
        return replace(turn, calls=spent["calls"], tokens=spent["tokens"])

    def _turn(self, text: str, answer: str | None, status: str) -> Turn:
        overseer = self.options.overseer or self.options.task
        return Turn(text, answer, status, self.trajectory, overseer, self.options.model)

    def cap(self, name: str) -> str:
        """One limit of the messages to come, in words."""
        if name != "max_tokens":
            value = getattr(self.options.limits, name)
            return "no limit" if value is None else f"{value:,}"
        value = self.options.max_tokens or (None if self.options.task else MAX_TOKENS)
        return "the task's" if value is None else f"{value:,}"

    def set_cap(self, name: str, value: str) -> None:
        """Set one limit of the messages to come.

        Raises:
            UsageError: there is no such limit, or the value is out of its range.
        """
        if name not in CAPS:
            raise UsageError(f"there is no limit {name!r}; there are: {', '.join(CAPS)}")
        minimum, maximum = RANGES.get(name, (0, UNBOUNDED))
        number = None if name == "seconds" and value == "none" else _number(name, value)
        if number is not None and not minimum <= number <= maximum:
            none = ", or none" if name == "seconds" else ""
            end = "up" if maximum == UNBOUNDED else f"to {maximum}"
            raise UsageError(f"{name} must be a number from {minimum} {end}{none}, not {value!r}")
        if name == "max_tokens":
            self.options = replace(self.options, max_tokens=number)
        else:
            limits = replace(self.options.limits, **{name: number})
            self.options = replace(self.options, limits=limits)


def _number(name: str, text: str) -> float:
    """The value of a limit; -1, which no limit allows, for any other text."""
    try:
        return float(text) if name == "seconds" else int(text)
    except ValueError:
        return -1
