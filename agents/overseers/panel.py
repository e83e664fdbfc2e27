"""Several overseers propose the next step, and one step results (AI Safety Atlas 8.4.1,
aggregation)."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError, RefluxError, UsageError, check_choice
from reflux.agents.overseers.batch import alike, merge, settle
from reflux.agents.overseers.protocol import Overseer, OverseerContext, reserve_of
from reflux.agents.overseers.scripted import HumanOverseer, ScriptedOverseer
from reflux.agents.prompts import choice_prompt, object_schema
from reflux.agents.types import Answer, Ask, Chain, ChatRequest, Sampling, Step

Choice = Literal["majority", "merge", "judge"]
CHOICE_TOKENS = 32
CHOICE_CHARS = 2_000
"""Characters of each proposal and of the transcript that the judge sees."""
CHOICE_SCHEMA = json.dumps(object_schema(choice={"type": "integer"}))


@dataclass(frozen=True)
class Panel:
    """Several overseers that propose side by side, each within a share of the budget.

    First the kind of step is chosen by majority: an answer, a batch, or leaving the question to
    the agent. Of several answers the most frequent wins. Of several batches `majority` takes the
    most frequent too, which is rarely shared in free text; `merge` asks all their sub-questions
    without repeats; `judge` has a model choose among all the proposals, of any kind, and falls
    back to the majority if the judge cannot be paid or read. Ties go to the first member.

    A panel has no single `follow`, so a chain that a member asks fails with that reason. A member
    that fails is left out and the note of a batch says so; if all fail, the step fails with the
    first member's failure.
    """

    members: tuple[Overseer, ...]
    choice: Choice = "majority"
    judge: str = ""
    """The endpoint's name of the judge; the agent's model if empty."""
    fanout: int = 8
    """Maximum sub-questions of a merged batch; further ones are cut."""

    def __post_init__(self) -> None:
        if not self.members:
            raise UsageError("a panel needs members; pass two overseers or more")
        check_choice("the panel's choice", self.choice, get_args(Choice))

    @property
    def name(self) -> str:
        return f"panel:{self.choice}({', '.join(member.name for member in self.members)})"

    @property
    def reserve(self) -> Budget:
        """What one later step costs: the reserves of every member, and the judge's call."""
        judge = Budget(1, CHOICE_CHARS) if self.choice == "judge" else Budget(0, 0)
        reserves = [*map(reserve_of, self.members), judge]
        return Budget(sum(b.calls for b in reserves), sum(b.tokens for b in reserves))

    async def act(self, context: OverseerContext) -> Step:
        """Collect every member's proposal, then choose.

        Raises:
            EndpointError: every member failed, the first one at its endpoint.
        """
        # A script or a human calls no model, and needs no share of the budget.
        calls_models = [not isinstance(m, ScriptedOverseer | HumanOverseer) for m in self.members]
        shares = iter(context.members(sum(calls_models)) if any(calls_models) else ())
        results = await asyncio.gather(
            *(
                member.act(next(shares) if calls else context)
                for member, calls in zip(self.members, calls_models, strict=True)
            ),
            return_exceptions=True,
        )
        failures = [result for result in results if isinstance(result, BaseException)]
        for failure in failures:
            # No other member can make up for a missing model or a broken record.
            fatal = isinstance(failure, RefluxError) and not isinstance(failure, EndpointError)
            if fatal or not isinstance(failure, Exception):
                raise failure
        proposals = [result for result in results if not isinstance(result, BaseException)]
        if not proposals:
            raise failures[0]
        step = await self._choose(context, proposals)
        note = f"{len(failures)} of {len(results)} members failed" if failures else ""
        return _with_note(step, note)

    async def _choose(self, context: OverseerContext, proposals: list[Step]) -> Step:
        if self.choice == "judge" and len({_likeness(step) for step in proposals}) > 1:
            number = await self._judge_choice(context, proposals)
            if 1 <= number <= len(proposals):
                return _with_note(proposals[number - 1], f"the judge chose {number}")
            return _with_note(_majority(proposals), "the judge did not choose")
        step = _majority(proposals)
        if self.choice != "merge" or not isinstance(step, Ask) or not step.subquestions:
            return step
        answered = (e.question for e in context.transcript if e.answer is not None)
        known = [context.question, *answered]
        asks = [step.subquestions for step in proposals if isinstance(step, Ask)]
        batches = [settle(batch, known, len(batch)).subquestions for batch in asks]
        batch = settle(merge(batches), known, self.fanout)
        note = f"merged {sum(map(bool, batches))} proposals"
        return _with_note(replace(batch, note=note), batch.note) if batch.subquestions else step

    async def _judge_choice(self, context: OverseerContext, proposals: Sequence[Step]) -> int:
        """Number of the proposal that the judge chooses, from 1; 0 if its reply has none."""
        prompt = choice_prompt(context.question, context.transcript, proposals, CHOICE_CHARS)
        sampling = Sampling(max_tokens=CHOICE_TOKENS)
        request = ChatRequest(self.judge or context.model, prompt, sampling, schema=CHOICE_SCHEMA)
        try:
            reply = await context.complete(request)
        except EndpointError:
            return 0  # The failure is on the record; the members' proposals still stand.
        match = re.search(r"\d{1,3}", reply.text)
        return int(match[0]) if match else 0


def _majority(proposals: Sequence[Step]) -> Step:
    """The most frequent step of the most frequent kind; the first among equals."""
    keys = [_likeness(step) for step in proposals]
    kind = Counter(key[0] for key in keys).most_common(1)[0][0]
    best = Counter(key for key in keys if key[0] == kind).most_common(1)[0][0]
    return proposals[keys.index(best)]


def _likeness(step: Step) -> tuple[str, ...]:
    """The kind of a step, and a key that equal steps share; sub-questions without needs are equal
    in any order."""
    if isinstance(step, Answer):
        return ("answer", alike(step.text))
    if isinstance(step, Chain):
        return ("chain", alike(step.first))
    if not isinstance(step, Ask):
        return ("defer",)
    texts = [alike(sub.text) for sub in step.subquestions]
    needing = any(sub.needs for sub in step.subquestions)
    return ("ask" if texts else "pass", *(texts if needing else sorted(texts)))


def _with_note(step: Step, note: str) -> Step:
    if not note or not isinstance(step, Ask):
        return step
    return replace(step, note="; ".join(filter(None, (step.note, note))))
