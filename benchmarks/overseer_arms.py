"""The systems that `benchmarks.model_overseer` compares, and the overseers that learn for them."""

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from benchmarks.natural_tasks import Natural, natural_tasks
from reflux.agents.clients.endpoints import CachedClient
from reflux.agents.overseers.demonstrations import Demonstration, Demonstrations
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.step_forms import OVERSEER
from reflux.agents.types import ChatClient
from reflux.finetune.configs.run import DistillConfig
from reflux.finetune.data.demonstrations import from_record
from reflux.finetune.data.overseer_rows import overseer_rows
from reflux.finetune.data.rows import rows_digest, training_order
from reflux.finetune.distillation import StudentPlan, distill
from reflux.finetune.learned_overseer import learned_overseer
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.amplify.weighing import Weighing
from reflux.graphs.ask import Amplified, Direct, Origin, System, answer_all
from reflux.graphs.evals.best_of import BestOf
from reflux.graphs.evals.task import Split, task_context
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import VotePolicy
from reflux.tasks.gym import GymTask

TOKENS = 200
"""Of a reply of the overseer."""
OTHER = "other-"
WITH_DEMOS = ("demos", "lines", "plan", "other-demos")
ALONE = "learned-alone"
LEARNED = ("learned", ALONE, "other-learned")
ARMS = ("direct", "bare", "held", "weighed", "best-of-n", *WITH_DEMOS, *LEARNED, "scripted")
DEMONSTRATIONS = 200
"""Trees of scripts on training questions, at most; in equal parts where there are several."""
DRAWN = 1.5
"""Training questions for each tree: some trees end without an answer."""
CAREFUL = ("weighed", *WITH_DEMOS, "learned", "other-learned")
"""Arms that must not be below `direct`: their decompositions are weighed against it."""


@dataclass
class BestOfRead:
    """Best of n, where votes are counted by the answer that the task reads in them."""

    context: AmplifyContext
    task: GymTask
    votes: int

    async def answer(self, question: str, question_id: str) -> Outcome:
        """Ask all votes of one question."""
        read = partial(self.task.to_user, question)
        return await BestOf(self.context, self.votes, read).answer(question, question_id)


@dataclass
class Scripts:
    """Demonstrations of the tasks' scripts: their trees on training questions, whose parts the
    model answered. Nobody looks whether an answer is right."""

    client: ChatClient
    seed: int
    folder: RunFolder
    """Of the students that learn from them."""
    count: int = DEMONSTRATIONS
    _made: dict[str, Sequence[Demonstration]] = field(default_factory=dict[str, Any])

    async def of(self, arm: str, name: str) -> Sequence[Demonstration]:
        """Those of an arm on the task of this name; empty where there are none."""
        scripted = {other: each for other, each in natural_tasks().items() if each.scripted}
        wanted = [other for other in scripted if (other == name) != arm.startswith(OTHER)]
        items: list[Demonstration] = []
        for other in wanted:
            if other not in self._made:
                self._made[other] = await self.trees(scripted[other])
            items += self._made[other][: max(1, self.count // len(wanted))]
        return items

    async def learned(self, demos: Sequence[Demonstration], name: str) -> ModelOverseer:
        """An overseer that has learned from demonstrations, trained once for the same ones."""
        made = overseer_rows(demos)
        rows = training_order(made.rows, self.seed)
        digest = rows_digest(rows)
        id = f"{name}-{digest[:8]}{OVERSEER}"
        registry = self.folder.registry
        if id not in (student.id for student in registry.list("overseer")):
            config = DistillConfig(base=self.folder.base.config, seed=self.seed)
            plan = StudentPlan(id, [row.train() for row in rows], digest, config, style=made.style)
            await asyncio.to_thread(distill, registry, plan, lambda *_: None, Event())
        return replace(learned_overseer(id), plan=made.style.plan)

    async def trees(
        self, natural: Natural, split: Split = "train", count: int | None = None
    ) -> Sequence[Demonstration]:
        """Those of one task: up to `count`, where so many end in an answer."""
        count = count or self.count
        drawn = round(DRAWN * count)
        questions = natural.task.sample(drawn, natural.level, split, self.seed)
        with scratch_context(self.client, self.seed) as base:
            system = Amplified(task_context(base, natural.task))
            origin = Origin("scripts", 0, "scripted", natural.task.name, "train")
            await answer_all(system, origin, questions)
            store = base.recorded_client.store
            return from_record(store, count, True, lambda _: False).items


@contextmanager
def scratch_context(client: ChatClient, seed: int) -> Iterator[AmplifyContext]:
    """A context with a record and a cache that last as long as the block."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        closing(TraceStore(Path(scratch) / "traces.db")) as store,
    ):
        yield AmplifyContext(
            RecordedClient(CachedClient(client), store),
            "base",
            (),
            limits=Limits(calls=100, tokens=100_000),
            votes=VotePolicy(max_votes=1),
            seed=seed,
        )


async def system_of(
    arm: str, name: str, base: AmplifyContext, votes: int, scripts: Scripts
) -> System | None:
    """The system of an arm; None where the task has none."""
    natural = natural_tasks()[name]
    task = natural.task
    if arm == "scripted":
        return Amplified(task_context(base, task)) if natural.scripted else None
    context = replace(base, max_tokens=task.max_answer_tokens, system_prompt=task.system_prompt)
    if arm == "direct":
        return Direct(context)
    if arm == "best-of-n":
        return BestOfRead(context, task, votes)
    overseer = ModelOverseer(validate=arm != "bare")
    if arm in (*WITH_DEMOS, *LEARNED):
        demos = await scripts.of(arm, name)
        if not demos:
            return None
        if arm in LEARNED:
            overseer = await scripts.learned(demos, arm.removesuffix("-alone"))
        else:
            overseer = replace(overseer, demos=Demonstrations(tuple(demos)))
            if arm != "demos":
                overseer = replace(overseer, form="lines", plan=arm == "plan")
        context = replace(context, tools=task.tools())
    overseer = replace(overseer, max_tokens=TOKENS)
    weighing = Weighing() if arm in CAREFUL else None
    return Amplified(replace(context, overseers=(overseer,), weighing=weighing))
