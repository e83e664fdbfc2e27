"""A prompted model as overseer: it decomposes, combines, or says that it cannot."""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError, check_choice
from reflux.agents.overseers.batch import asks_nothing_new, settle
from reflux.agents.overseers.decomposition import decomposition_problems
from reflux.agents.overseers.demonstrations import (
    NO_EXAMPLES,
    Demonstrations,
    Examples,
)
from reflux.agents.overseers.protocol import PASS, OverseerContext
from reflux.agents.overseers.step_forms import StepStyle, addressed
from reflux.agents.overseers.step_parser import NOTHING, read_answer, read_lines, read_step
from reflux.agents.policy.data import instruction
from reflux.agents.prompts import (
    answer_now_prompt,
    correction_prompt,
    cut,
    object_schema,
    step_prompt,
)
from reflux.agents.types import (
    Answer,
    Ask,
    ChatRequest,
    Completion,
    Exchange,
    Sampling,
    Step,
    Turn,
)

NOT_DECOMPOSABLE = "not decomposable"
REJECTED = "sub-questions rejected"
UNREADABLE = "unreadable"
NOTHING_NEW = "asks nothing new"
"""How the note of an `Ask` of nothing begins: why the overseer leaves a question to the agent."""
NOTE_CHARS = 300
REASON_CHARS = 1_000
FIRST = ("ask", "not_decomposable")
PRIMITIVE = ("ask", "answer", "not_decomposable")
LATER = ("ask", "answer")
"""The kinds of step that the model may reply with, before and after its first sub-questions."""


@dataclass(frozen=True)
class _Rejected:
    """A proposed batch that a copy could not answer as it stands."""

    batch: Ask
    reasons: str


@dataclass(frozen=True)
class ModelOverseer:
    """An overseer that asks a model for each step, in JSON if the endpoint supports schemas.

    Every reply becomes a step, within `max_tries` calls. Parts of a reply that make no sense are
    left out (`reflux.agents.overseers.batch.settle`), a batch over `fanout` is cut to its first
    sub-questions, and the step's `note` says so. A batch whose sub-questions lose what they need,
    or repeat the question (`reflux.agents.overseers.decomposition`), is asked for again with the
    reasons; a reply without a step is asked for again with another seed. If no reply holds a step,
    the question goes to the agent undivided, by an `Ask` of nothing whose note begins with
    `sub-questions rejected` or `unreadable`. A question that the model calls indivisible goes
    there as well; its note begins with `not decomposable`. Seed 8.4.1, task decomposition.

    Below the root, where a tree grows with each level, a batch that will not do is not asked for
    again: the agent answers. It does so, too, where all that is asked was asked before on the way
    from the root; the note then begins with `asks nothing new`.

    With `plan` the model divides a question once. If the last sub-question was asked with all that
    the others found, its answer is the answer; else the model combines the answers.
    """

    model: str = ""
    """The endpoint's name of the overseer's model; the agent's model if empty."""
    fanout: int = 8
    """Maximum sub-questions in one batch."""
    max_subquestions: int = 24
    """Maximum sub-questions on one question in all its batches; then the model must answer."""
    max_tries: int = 3
    max_tokens: int = 512
    transcript_chars: int = 4_000
    """Characters of the transcript that the model sees; longer questions and answers are cut."""
    primitives: bool = False
    """Invites the model to answer before it has asked anything. Without it the model is to
    decompose or to say that it cannot, and at the depth cap the question goes to the agent at
    once, with the agent's votes; an answer that comes uninvited is accepted."""
    validate: bool = True
    """Rejects batches whose sub-questions lose what they need, or repeat the question."""
    temperature: float = 0.0
    """Temperature of the first try. Members of a panel that share a model need a temperature above
    0 and different seeds."""
    retry_temperature: float = 0.7
    seed: int = 0
    demos: Demonstrations | None = None
    """The nearest `shots` of them are the examples of each prompt, in the place of ours."""
    shots: int = 3
    demo_chars: int = 4_000
    """Characters of the examples; the farthest beyond are left out, which the step's note says."""
    form: Literal["json", "lines", "auto"] = "json"
    """Of the replies: a JSON object, or numbered lines, which weak models keep better; `auto` asks
    for JSON, and for lines after a reply that will not do."""
    plan: bool = False
    """Asks for all steps in one reply."""
    instructions: Literal["first", "last"] = "first"
    """Before the examples, or after them."""
    brief: bool = False
    """The model has learned to divide: it gets one line of instructions and no examples, and the
    agent combines what it does not."""

    def __post_init__(self) -> None:
        check_choice("the form of replies", self.form, ("json", "lines", "auto"))
        check_choice("where the instructions stand", self.instructions, ("first", "last"))

    @property
    def name(self) -> str:
        return self.model if self.brief else f"model:{self.model or 'X'}"

    @property
    def reserve(self) -> Budget:
        """What one later step, in which the model combines the answers, costs with every try.

        Tokens are an estimate, at three characters each, for a question of one line.
        """
        prompt = step_prompt("", [Exchange("", "")], LATER, self.fanout, self.transcript_chars)
        chars = sum(len(turn[1]) for turn in prompt) + self.transcript_chars
        chars += self.demo_chars if self.demos else 0
        correction = self.max_tokens + NOTE_CHARS if self.validate else 0
        each = chars // 3 + self.max_tokens
        return Budget(self.max_tries, self.max_tries * each + correction)

    async def act(self, context: OverseerContext) -> Step:
        transcript = context.transcript
        if not (context.may_ask or transcript or self.primitives):
            return PASS
        if self.plan and (answer := concluded(transcript)) is not None:
            return Answer(answer)
        may_ask = context.may_ask and not (self.plan and transcript)
        room = min(self.fanout, self.max_subquestions - len(transcript)) if may_ask else 0
        problem = "no reply was asked for"
        rejected: _Rejected | None = None
        tries = 1 if context.path and not transcript else self.max_tries
        for retry in range(tries):
            # With sub-answers at hand the last try accepts any text as the answer.
            is_last = bool(transcript) and 0 < retry == self.max_tries - 1
            if room < 1 or is_last:
                step = await self._answer(context, retry)
            else:
                step = await self._step(context, room, retry, rejected)
            if isinstance(step, _Rejected):
                rejected = step
            elif isinstance(step, str):
                problem = step
            elif rejected is not None and isinstance(step, Ask):
                reason = f"asked again: {rejected.reasons}"
                return replace(step, note="; ".join(filter(None, (step.note, reason))))
            else:
                return step
        if rejected is not None:
            return Ask((), f"{REJECTED}: {rejected.reasons} ({_replies(tries)})")
        return Ask((), f"{UNREADABLE}: {problem} ({_replies(tries)})")

    async def _answer(self, context: OverseerContext, retry: int) -> Step | str:
        """The model's answer as plain text; a string says why its reply holds none."""
        reply = await self._reply(
            context,
            lambda chars: answer_now_prompt(context.question, context.transcript, chars),
            retry,
            model=context.model if self.brief else self.model,
        )
        labelled = None if self.form == "json" else read_lines(reply.text).answer
        answer = labelled or read_answer(reply.text)
        if answer is None:
            return self._problem(reply, "answer")
        passes = not context.transcript and answer.strip(" .\"'").upper() == "PASS"
        return PASS if passes else Answer(answer)

    async def _step(
        self, context: OverseerContext, room: int, retry: int, rejected: _Rejected | None
    ) -> Step | str | _Rejected:
        """The model's step, with at most `room` sub-questions, after the last one that was
        rejected; a string says why its reply holds none."""
        question, transcript, asked = context.question, context.transcript, context.asked
        tools = context.tools
        kinds = LATER if transcript else PRIMITIVE if self.primitives else FIRST
        in_lines = self.form == "lines" or (self.form == "auto" and retry > 0)
        form: Literal["json", "lines"] = "lines" if in_lines else "json"
        style = StepStyle(form, self.plan, self.instructions, self.brief)
        examples, left_out = await self._examples(question, bool(transcript)), 0
        correction = ()
        if rejected and not self.brief:
            correction = correction_prompt(rejected.batch, rejected.reasons, style, tools)

        def prompt(chars: int) -> tuple[Turn, ...]:
            nonlocal left_out
            shown, left_out = examples.within(chars / self.transcript_chars)
            asked = step_prompt(question, transcript, kinds, room, chars, shown, style, tools)
            # The correction is left out first where the context has no room for it.
            return (*asked, *(correction if chars == self.transcript_chars else ()))

        schema = "" if in_lines else step_schema(kinds, room)
        reply = await self._reply(context, prompt, retry, schema)
        reading = read_lines(reply.text) if in_lines else read_step(reply.text)
        if transcript and reading.answer is not None:
            return Answer(reading.answer, cut(reading.before, REASON_CHARS))
        known = [exchange.question for exchange in transcript if exchange.answer is not None]
        questions = [addressed(sub, tools) for sub in reading.questions]
        task = instruction(question)  # Its data is no part of what is divided.
        batch = settle(questions, [question, task, *known], room)
        if not batch.subquestions:
            if reading.answer is not None:
                return Answer(reading.answer)
            if reading.reason is not None and not transcript:
                return Ask((), f"{NOT_DECOMPOSABLE}: {cut(reading.reason, NOTE_CHARS)}")
        if context.path and not transcript and asks_nothing_new(questions, [task, *asked]):
            return Ask((), f"{NOTHING_NEW}: {cut(questions[0].text, NOTE_CHARS)}")
        # Where nothing of a proposal can be asked, it says more than what is left of it.
        proposed = batch.subquestions or tuple(sub for sub in questions if sub.text)
        problems = decomposition_problems(task, transcript, Ask(proposed))
        if problems and self.validate:
            return _Rejected(Ask(proposed), cut("; ".join(map(str, problems)), NOTE_CHARS))
        if batch.subquestions:
            note = examples.note(left_out)
            return replace(batch, note="; ".join(filter(None, (batch.note, note))))
        if reading == NOTHING:
            # With answers at hand a line without a label is the answer.
            answer = read_answer(reply.text) if in_lines and transcript else None
            is_line = answer is not None and "\n" not in answer and not reply.truncated
            return Answer(answer) if answer and is_line else self._problem(reply, "step")
        return batch.note or "no new sub-question"

    async def _examples(self, question: str, later: bool) -> Examples:
        """The examples of a question's first step, or of its later ones."""
        if self.demos is None:
            return NO_EXAMPLES
        # Embedding takes the processor: other questions go on.
        near = await asyncio.to_thread(self.demos.nearest, question, self.shots)
        shown = [
            (examples, self.demos.number(demo))
            for demo in near
            if (examples := demo.later() if later else demo.plan() if self.plan else demo.first())
        ]
        groups, numbers = tuple(e for e, _ in shown), tuple(n for _, n in shown)
        return Examples(groups, numbers, self.demo_chars)

    def _problem(self, reply: Completion, wanted: str) -> str:
        """Why a reply holds no step or answer."""
        if reply.truncated:
            return f"{self.max_tokens} tokens are too few for a reply: raise --max-tokens"
        return f"no {wanted} in the reply"

    async def _reply(
        self,
        context: OverseerContext,
        prompt: Callable[[int], tuple[Turn, ...]],
        retry: int,
        schema: str = "",
        model: str = "",
    ) -> Completion:
        """The reply of the overseer's model, or of another; `prompt` takes the characters of the
        transcript, which are halved as long as the request does not fit into the context."""
        again = retry + self.max_tries * context.attempt
        temperature = max(self.temperature, self.retry_temperature if again else 0.0)
        sampling = Sampling(temperature, self.max_tokens, seed=self.seed * self.max_tries + again)
        model = model or self.model or context.model
        chars = self.transcript_chars
        while True:
            request = ChatRequest(model, prompt(chars), sampling, vote=retry, schema=schema)
            try:
                return await context.complete(request)
            except EndpointError as error:
                shorter = prompt(chars // 2)
                if not error.too_long or shorter == request.messages:
                    raise
                chars //= 2


def _replies(count: int) -> str:
    return "1 reply" if count == 1 else f"{count} replies"


def concluded(transcript: Sequence[Exchange]) -> str | None:
    """The last sub-answer, if every earlier one went into a later sub-question."""
    if not transcript[1:] or transcript[-1].error is not None:
        return None
    for index, exchange in enumerate(transcript[:-1], 1):
        found = re.compile(rf"(?<!\w){re.escape(exchange.answer or '')}(?!\w)")
        if not exchange.answer or not any(found.search(e.question) for e in transcript[index:]):
            return None
    return transcript[-1].answer


def step_schema(kinds: Sequence[str], limit: int) -> str:
    """JSON schema of the model's reply: `{"step": ...}` with one of these kinds, and at most
    `limit` sub-questions.

    OpenAI's strict form allows no choice at the top, hence `step`.
    """
    need = {"type": "integer", "minimum": 0, "maximum": limit - 1}
    sub = object_schema(question={"type": "string"}, needs={"type": "array", "items": need})
    forms: dict[str, dict[str, Any]] = {
        "ask": {"type": "array", "items": sub, "minItems": 1, "maxItems": limit},
        "answer": {"type": "string"},
        "not_decomposable": {"type": "string"},
    }
    choices = [object_schema(**{kind: forms[kind]}) for kind in kinds]
    return json.dumps(object_schema(step={"anyOf": choices}))
