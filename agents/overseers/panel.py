"""Several overseers propose the next step, and one step comes of it (seed 8.4.1, aggregation)."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError, RefluxError, UsageError
from reflux.agents.overseers.batch import alike, merge, settle
from reflux.agents.overseers.protocol import AnyOverseer, Desk, Overseer, reserve_of, seated
from reflux.agents.prompts import choice_prompt
from reflux.agents.types import Answer, Ask, Chain, ChatRequest, Exchange, Sampling, Step

Choice = Literal["majority", "merge", "judge"]
CHOICE_TOKENS = 32
CHOICE_CHARS = 2_000
"""Of each proposal and of the transcript, as the judge is shown them."""
CHOICE_SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"choice": {"type": "integer"}},
        "required": ["choice"],
        "additionalProperties": False,
    }
)


@dataclass(frozen=True)
class Panel:
    """H is several overseers, who propose side by side, each within a share of the budget.

    First the kind of step is chosen by majority: an answer, a batch, or leaving the question to
    X. Of several answers the most frequent counts. Of several batches `majority` takes the most
    frequent too, which few of them are in free text; `merge` asks all their sub-questions, without
    those that are alike; `judge` has a model choose among all the proposals, of whatever kind, and
    falls back to the majority where it cannot be paid or read. Equals go to the first member.

    A panel has no one way to go on with a chain, so one that a member asks fails with that reason.
    A member that fails is left out and the note of a batch says so; where all fail, so does the
    step, with the first member's failure.
    """

    members: tuple[AnyOverseer, ...]
    choice: Choice = "majority"
    judge: str = ""
    """The endpoint's name of the judge; X itself where empty."""
    fanout: int = 8
    """Sub-questions of a merged batch; further ones are cut."""

    def __post_init__(self) -> None:
        if not self.members:
            raise UsageError("a panel without members takes no step; give it two overseers or more")
        if self.choice not in get_args(Choice):
            there = ", ".join(get_args(Choice))
            raise UsageError(f"a panel cannot choose by {self.choice!r}; there are {there}")

    @property
    def name(self) -> str:
        """Recorded with each step."""
        return f"panel:{self.choice}({', '.join(member.name for member in self.members)})"

    @property
    def reserve(self) -> Budget:
        """What one later step takes: that of every member, and the judge's call."""
        kept = [reserve_of(member) for member in self.members]
        judge = Budget(1, CHOICE_CHARS) if self.choice == "judge" else Budget(0, 0)
        kept.append(judge)
        return Budget(sum(b.calls for b in kept), sum(b.tokens for b in kept))

    def at(self, desk: Desk) -> Overseer:
        """The panel for one step."""
        return _Meeting(self, desk)


@dataclass(frozen=True)
class _Meeting:
    """One step of a panel."""

    panel: Panel
    desk: Desk

    @property
    def name(self) -> str:
        return self.panel.name

    async def act(self, question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        """Listener every member, then choose.

        Raises:
            EndpointError: every member failed, the first one at its endpoint.
        """
        # Who asks no models needs no place at the desk, and no share of what is left there.
        asking = [hasattr(member, "at") for member in self.panel.members]
        places = iter(self.desk.members(sum(asking)) if any(asking) else ())
        eval_run = [
            seated(member, next(places) if asks else self.desk)
            for member, asks in zip(self.panel.members, asking, strict=True)
        ]
        heard = await asyncio.gather(
            *(member.act(question, transcript, may_ask) for member in eval_run),
            return_exceptions=True,
        )
        failures = [step for step in heard if isinstance(step, BaseException)]
        for failure in failures:
            if not isinstance(failure, Exception) or _is_for_all(failure):
                raise failure
        proposals = [step for step in heard if not isinstance(step, BaseException)]
        if not proposals:
            raise failures[0]
        step = await self._choose(question, transcript, proposals)
        failed = f"{len(failures)} of {len(heard)} members failed" if failures else ""
        return _noted(step, failed)

    async def _choose(
        self, question: str, transcript: Sequence[Exchange], proposals: list[Step]
    ) -> Step:
        if self.panel.choice == "judge" and len({_likeness(step) for step in proposals}) > 1:
            chosen = await self._judged(question, transcript, proposals)
            if chosen is not None:
                return _noted(proposals[chosen], f"the judge chose {chosen + 1}")
            return _noted(_majority(proposals), "the judge did not choose")
        step = _majority(proposals)
        if self.panel.choice != "merge" or not isinstance(step, Ask) or not step.subquestions:
            return step
        known = [question, *(said.question for said in transcript if said.answer is not None)]
        asked = [p.subquestions for p in proposals if isinstance(p, Ask)]
        batches = [settle(batch, known, len(batch)).subquestions for batch in asked]
        batch = settle(merge(batches), known, self.panel.fanout)
        note = f"merged {sum(map(bool, batches))} proposals"
        return _noted(Ask(batch.subquestions, note), batch.note) if batch.subquestions else step

    async def _judged(
        self, question: str, transcript: Sequence[Exchange], proposals: Sequence[Step]
    ) -> int | None:
        """Which proposal the judge takes; None where it names none."""
        request = ChatRequest(
            self.panel.judge or self.desk.model,
            choice_prompt(question, transcript, proposals, CHOICE_CHARS),
            Sampling(max_tokens=CHOICE_TOKENS),
            schema=CHOICE_SCHEMA,
        )
        try:
            reply = await self.desk.ask(request)
        except EndpointError:
            return None  # It is on the record; the members' votes are there all the same.
        named = re.search(r"\d{1,3}", reply.text)
        number = int(named[0]) if named else 0
        return number - 1 if 1 <= number <= len(proposals) else None


def _is_for_all(failure: Exception) -> bool:
    """Such as a missing model or a broken record: no other member makes up for it."""
    return isinstance(failure, RefluxError) and not isinstance(failure, EndpointError)


def _majority(proposals: Sequence[Step]) -> Step:
    """The most frequent step of the most frequent kind; the first among equals."""
    kinds = Counter(_kind(step) for step in proposals)
    kind = kinds.most_common(1)[0][0]
    likes = Counter(_likeness(step) for step in proposals if _kind(step) == kind)
    most = likes.most_common(1)[0][0]
    return next(step for step in proposals if _likeness(step) == most)


def _kind(step: Step) -> str:
    if isinstance(step, Ask):
        return "ask" if step.subquestions else "pass"
    if isinstance(step, Chain):
        return "chain"
    return "answer" if isinstance(step, Answer) else "defer"


def _likeness(step: Step) -> tuple[str, ...]:
    """What like steps share; sub-questions are alike in any order, if they need nothing."""
    if isinstance(step, Answer):
        return ("answer", alike(step.text))
    if isinstance(step, Chain):
        return ("chain", alike(step.first))
    if not isinstance(step, Ask):
        return ("defer",)
    texts = [alike(sub.text) for sub in step.subquestions]
    needing = any(sub.needs for sub in step.subquestions)
    return (_kind(step), *(texts if needing else sorted(texts)))


def _noted(step: Step, note: str) -> Step:
    if not note or not isinstance(step, Ask):
        return step
    return replace(step, note="; ".join(part for part in (step.note, note) if part))
