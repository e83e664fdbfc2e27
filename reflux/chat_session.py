"""A conversation with the amplified agent: each message is a trajectory, and can be stopped."""

import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from agents.errors import EndpointError, UsageError
from agents.screen import redact
from finetune.run_folder import OpenRun
from graphs.amplify import begin, screened
from graphs.events import Event
from graphs.patient import Patient, Progressed, open_patient
from graphs.state import AmplifyContext
from graphs.systems import Asked
from reflux.conversations import Conversation, Turn
from reflux.freely import How, free_context
from reflux.persons import converse
from reflux.tasks import task_named

CAPS = ("depth", "calls", "tokens", "seconds", "max_tokens")
"""What `/budget` sets."""


@dataclass
class ChatSession:
    """Who is asked, in what way, and what was said so far."""

    opened: OpenRun
    conversation: Conversation
    how: How
    trajectory: str = ""
    """Of the message that was asked last."""

    async def ask(self, text: str, hear: Callable[[Event], None], hush: Callable[[], None]) -> Turn:
        """Answer one message and keep the turn, that of a message that was stopped, too.

        Args:
            hear: hears of the growing tree.
            hush: called before a person is asked in the terminal.

        Raises:
            UsageError: the message cannot be asked.
            EndpointError: nobody answered at the endpoint.
        """
        question = self._question(text)
        name = f"chat-{self.conversation.id}-{uuid.uuid4().hex[:6]}"
        asked = Asked(self.opened.folder.name, -1, name, self.how.task, "asked")
        self.trajectory = asked.question_id(question)
        async with free_context(self.opened, self.how, hear) as context:
            if (reason := screened(begin(question, "", context), context)) is not None:
                raise UsageError(f"{reason}; ask another")
            store = self.opened.store
            await store.add_question({"id": self.trajectory, "text": question, **vars(asked)})
            how = asdict(self.how)
            await store.add_judgement(self.trajectory, "", "how", None, how, key="0")
            turn = self._turn(text, None, "stopped")
            try:
                turn = await self._answered(context, text, question, hush)
            finally:
                self.conversation.add(turn)
        if turn.status == "failed" and self.opened.caller.outage is not None:
            raise EndpointError(self.opened.caller.outage)
        return turn

    async def _answered(
        self, context: AmplifyContext, text: str, question: str, hush: Callable[[], None]
    ) -> Turn:
        path = self.opened.folder.checkpoints_path
        async with open_patient(context, path) as patient:
            progressed = await patient.ask(question, self.trajectory)
            if progressed.pending:
                hush()
                progressed = await self._heard(patient, progressed)
        outcome = progressed.outcome
        if outcome is None:
            return self._turn(text, None, "waiting")
        answer = outcome["answer"]
        if self.how.task and answer is not None:
            answer = task_named(self.how.task).to_user(question, answer)
        spent = outcome["spent"]
        turn = self._turn(text, answer if outcome["status"] == "ok" else None, outcome["status"])
        return replace(turn, calls=spent["calls"], tokens=spent["tokens"])

    async def _heard(self, patient: Patient, progressed: Progressed) -> Progressed:
        return await converse(patient, self.trajectory, progressed)

    def _question(self, text: str) -> str:
        """A task's questions stand alone; any other is asked with what was said before."""
        if self.how.task:
            return task_named(self.how.task).from_user(text)
        return redact(self.conversation.question(text))

    def _turn(self, text: str, answer: str | None, status: str) -> Turn:
        overseer = self.how.overseer or self.how.task
        return Turn(text, answer, status, self.trajectory, overseer, self.how.model)

    def set_cap(self, name: str, value: str) -> None:
        """Set one limit of the messages to come.

        Raises:
            UsageError: there is no such limit, or it is no number from 0 up.
        """
        if name not in CAPS:
            raise UsageError(f"there is no limit {name!r}; there are: {', '.join(CAPS)}")
        try:
            number = float(value) if name == "seconds" else int(value)
        except ValueError:
            number = -1
        if not 0 <= number < 2**31:
            raise UsageError(f"{name} must be a number from 0 up, not {value!r}")
        self.how = replace(self.how, **{name: number})
