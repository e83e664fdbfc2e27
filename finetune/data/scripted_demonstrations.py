"""Demonstrations for a model overseer, out of the script of a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reflux.agents.budget import Budget
from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.tools.protocol import Tool
from reflux.agents.types import (
    Answer,
    Ask,
    Chain,
    ChatRequest,
    Completion,
    Defer,
    Exchange,
    Step,
    SubQuestion,
)
from reflux.finetune.data.demonstrations import Made, steps_and_answer
from reflux.graphs.evals.task import Task

MAX_PARTS = 500
"""Sub-questions that a script may answer for one demonstration, at every depth."""


@dataclass
class ScriptContext:
    """The context of a script's step: no model can be called."""

    question: str
    transcript: Sequence[Exchange] = ()
    may_ask: bool = True
    model: str = ""
    path: str = ""
    attempt: int = 0
    asked: Sequence[str] = ()
    tools: Mapping[str, str] = field(default_factory=dict[str, str])
    budget: Budget = field(default_factory=lambda: Budget(0, 0))

    async def complete(self, request: ChatRequest) -> Completion:
        raise UsageError(
            "the task's overseer calls a model: have it answer questions, and make demonstrations "
            "of their trees, without --task"
        )

    def members(self, count: int) -> Sequence["ScriptContext"]:
        return [self] * count


class _Script:
    """A task's script, which answers its own sub-questions as far as it needs no model."""

    def __init__(self, overseer: Overseer, tools: Mapping[str, Tool]) -> None:
        self._overseer, self._tools = overseer, tools
        self._left = MAX_PARTS

    async def steps(self, question: str) -> tuple[list[tuple[Ask, list[str]]], Step | None]:
        """(batches with their answers, the last step; None where an answer is not known)."""
        batches: list[tuple[Ask, list[str]]] = []
        transcript: list[Exchange] = []
        while True:
            step = await self._overseer.act(ScriptContext(question, transcript))
            if not isinstance(step, Ask) or not step.subquestions:
                return batches, step
            known: dict[int, str] = {}
            for index, sub in enumerate(step.subquestions):
                answer = await self._answer(sub, known) if len(known) == index else None
                if answer is not None:
                    known[index] = answer
                    transcript.append(Exchange(sub.filled(known), answer))
            batches.append((step, list(known.values())))
            if len(known) < len(step.subquestions):
                return batches, None

    async def _answer(self, sub: SubQuestion, known: Mapping[int, str]) -> str | None:
        self._left -= 1
        if self._left < 0:
            return None
        question = sub.filled(known)
        if sub.to:
            tool = self._tools.get(sub.to.removeprefix("tool:"))
            reply = await tool.answer(question) if tool is not None else None
            return reply.text if reply is not None and reply.ok else None
        _, last = await self.steps(question)
        return last.text if isinstance(last, Answer) else None


async def from_script(task: Task, n: int, level: int, seed: int) -> Made:
    """Up to `n` demonstrations of a task's scripted overseer on its training questions.

    Answers are those that the script and the calculator give; where a copy would have to answer,
    the demonstration ends.

    Raises:
        UsageError: the task's overseer calls a model, or there is no such level.
    """
    made, overseer = Made(), task.overseers()[0]
    for question in task.sample(n, level, "train", seed):
        body: Mapping[str, Any] | str
        try:
            batches, last = await _Script(overseer, task.tools()).steps(question)
        except RefluxError:
            raise
        except Exception as error:  # noqa: BLE001 - an overseer is the user's code
            body = f"the script fails: {type(error).__name__}"
        else:
            end = last if isinstance(last, Answer) else Answer("")
            body = steps_and_answer(batches, end.text, end.reason)
            if isinstance(last, Chain | Defer):
                body = "a chain, or for a human"
        made.add(question, f"by the script of {task.name}", body)
    return made
