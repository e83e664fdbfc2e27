"""A prompted model as H: it decomposes, combines, or says that it cannot."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reflux.agents.budget import Budget
from reflux.agents.overseers.batch import settle
from reflux.agents.overseers.protocol import PASS, Desk, Overseer
from reflux.agents.overseers.step_parser import NOTHING, read_answer, read_step
from reflux.agents.prompts import answer_now_prompt, cut, step_prompt
from reflux.agents.types import Answer, Ask, ChatRequest, Exchange, Sampling, Step, Turn

NOT_DECOMPOSABLE = "not decomposable"
UNREADABLE = "unreadable"
"""Beginnings of the note of an `Ask` of nothing: why H leaves a question to X."""
NOTE_CHARS = 300
FIRST = ("ask", "not_decomposable")
PRIMITIVE = ("ask", "answer", "not_decomposable")
LATER = ("ask", "answer")
"""What H may reply to a question before and after it has asked anything."""


@dataclass(frozen=True)
class ModelOverseer:
    """H is a model that is asked for each step, in JSON where the endpoint can hold it to that.

    Whatever the model replies, a step comes of it, in `tries` calls at the most. What of a reply
    makes no sense is left out (`reflux.agents.overseers.batch.settle`), a batch over `fanout` is
    cut to its first sub-questions, and the step's `note` says so. A reply without a step is asked
    for again, with other seeds; a question whose every reply was so goes to X undivided, by an
    `Ask` of nothing whose note begins with `unreadable`. One that the model finds it cannot
    decompose goes there, too, and its note begins with `not decomposable`. Seed 8.4.1, task
    decomposition.
    """

    model: str = ""
    """The endpoint's name of H; X itself where empty."""
    fanout: int = 8
    """Sub-questions in one batch."""
    asked: int = 24
    """Sub-questions on one question in all its batches; then H must answer."""
    tries: int = 3
    """Calls in one step, at the most."""
    max_tokens: int = 512
    """Of one reply."""
    transcript_chars: int = 4_000
    """Of the transcript, as H is shown it; longer questions and answers are cut."""
    primitives: bool = False
    """Whether H is invited to answer before it has asked anything. Otherwise it is to decompose or
    to say that it cannot, and where it may not ask the question goes to X at once, with X's votes;
    an answer that comes uninvited is taken."""
    temperature: float = 0.0
    """Of the first try; members of a panel that are one model differ by a higher one, and seeds."""
    retry_temperature: float = 0.7
    """Of the second try and later ones, at the least."""
    seed: int = 0

    @property
    def name(self) -> str:
        """Recorded with each step."""
        return f"model:{self.model or 'X'}"

    @property
    def reserve(self) -> Budget:
        """What one later step takes, in which H combines the answers, with every try of it.

        Tokens are an estimate, at three characters each, for a question of one line.
        """
        prompt = step_prompt("", [Exchange("", "")], LATER, self.fanout, self.transcript_chars)
        chars = sum(len(turn[1]) for turn in prompt) + self.transcript_chars
        return Budget(self.tries, self.tries * (chars // 3 + self.max_tokens))

    def at(self, desk: Desk) -> Overseer:
        """H for one step."""
        return _Sitting(self, desk)


@dataclass(frozen=True)
class _Sitting:
    """One step of a prompted H."""

    h: ModelOverseer
    desk: Desk

    @property
    def name(self) -> str:
        return self.h.name

    async def act(self, question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        """Ask the model for the next step until there is one, `tries` times at the most."""
        if not (may_ask or transcript or self.h.primitives):
            return PASS
        room = min(self.h.fanout, self.h.asked - len(transcript)) if may_ask else 0
        missing = "no reply was asked for"
        for number in range(self.h.tries):
            # With answers at hand the last try takes any words as the answer.
            last = bool(transcript) and 0 < number == self.h.tries - 1
            if room < 1 or last:
                step = await self._answer(question, transcript, number)
            else:
                step = await self._step(question, transcript, room, number)
            if not isinstance(step, str):
                return step
            missing = step
        return Ask((), f"{UNREADABLE}: {missing} ({self.h.tries} replies)")

    async def _answer(
        self, question: str, transcript: Sequence[Exchange], number: int
    ) -> Step | str:
        prompt = answer_now_prompt(question, transcript, self.h.transcript_chars)
        answer = read_answer(await self._reply(prompt, number))
        if answer is None:
            return "no answer in the reply"
        passes = not transcript and answer.strip(" .\"'").upper() == "PASS"
        return PASS if passes else Answer(answer)

    async def _step(
        self, question: str, transcript: Sequence[Exchange], room: int, number: int
    ) -> Step | str:
        """The step that the model takes; a text says why its reply is none."""
        kinds = LATER if transcript else PRIMITIVE if self.h.primitives else FIRST
        prompt = step_prompt(question, transcript, kinds, room, self.h.transcript_chars)
        reading = read_step(await self._reply(prompt, number, step_schema(kinds, room)))
        if transcript and reading.answer is not None:
            return Answer(reading.answer)
        known = [said.question for said in transcript if said.answer is not None]
        batch = settle(reading.questions, [question, *known], room)
        if batch.subquestions:
            return Ask(batch.subquestions, batch.note)
        if reading.answer is not None:
            return Answer(reading.answer)
        if reading.reason is not None and not transcript:
            return Ask((), f"{NOT_DECOMPOSABLE}: {cut(reading.reason, NOTE_CHARS)}")
        return "no step in the reply" if reading == NOTHING else batch.note or "no new sub-question"

    async def _reply(self, prompt: tuple[Turn, ...], number: int, schema: str = "") -> str:
        h = self.h
        heat = max(h.temperature, h.retry_temperature) if number else h.temperature
        sampling = Sampling(heat, h.max_tokens, seed=h.seed * h.tries + number)
        model = h.model or self.desk.model
        request = ChatRequest(model, prompt, sampling, vote=number, schema=schema)
        return (await self.desk.ask(request)).text


def step_schema(kinds: Sequence[str], most: int) -> str:
    """JSON schema of H's reply: `{"step": ...}` with one of these kinds.

    OpenAI's strict form allows no choice at the top, hence `step`.
    """
    need = {"type": "integer", "minimum": 0, "maximum": most - 1}
    sub = _object(question={"type": "string"}, needs={"type": "array", "items": need})
    forms: dict[str, dict[str, Any]] = {
        "ask": {"type": "array", "items": sub, "minItems": 1, "maxItems": most},
        "answer": {"type": "string"},
        "not_decomposable": {"type": "string"},
    }
    return json.dumps(_object(step={"anyOf": [_object(**{kind: forms[kind]}) for kind in kinds]}))


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
