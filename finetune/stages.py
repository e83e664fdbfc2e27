"""The stages of one round: amplify, distill, evaluate, promote. Each stage can be repeated.

An interrupted stage starts over without repeated work: recorded calls are replayed, and a student
that is written stays as it is.
"""

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reflux.agents.budget import SpendLimit
from reflux.agents.errors import RefluxError
from reflux.finetune.config import RoundsConfig, RoundSpec
from reflux.finetune.gates import failed_gates, judge
from reflux.finetune.questions import anchor_prompts, canary_prompts, hardness, overlap
from reflux.finetune.rows import Row, rows_digest, run_rows, training_order
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import Outcome, is_accepted
from reflux.graphs.ask import Amplified, Direct, Origin, System, answer_all
from reflux.graphs.evals.runner import evaluate
from reflux.graphs.evals.scores import Score, Tally
from reflux.graphs.evals.task import Task, task_context

Progress = Callable[[str, int, int, str], None]
"""Called with (activity, units done, units in total, detail)."""


@dataclass(frozen=True)
class Stages:
    """The stages of a run's rounds, and what they share."""

    config: RoundsConfig
    task: Task
    run: OpenRun
    progress: Progress
    spend_limit: SpendLimit = field(default_factory=SpendLimit)
    """The run's; every model call is charged to it."""
    total: int | None = None
    """Rounds after which the run stops; all of the config where None."""

    @property
    def total_rounds(self) -> int:
        """Rounds after which the run stops."""
        return len(self.config.rounds) if self.total is None else self.total

    def spec(self, number: int) -> RoundSpec:
        return self.config.rounds[number]

    def context(self, model: str) -> AmplifyContext:
        """The task's context with `model` as the agent."""
        client = self.run.recorded_client
        context = self.config.context(client, model, spend_limit=self.spend_limit)
        return task_context(context, self.task)

    def source(self, number: int, system: str, split: str, task: str | None = None) -> Origin:
        """The provenance of a question of this run."""
        return Origin(self.run.folder.id, number, system, task or self.task.name, split)

    def held_out(self, number: int, limit: int = sys.maxsize) -> Sequence[str]:
        """Held-out questions of a round's level, the same for every system."""
        spec = self.spec(number)
        n = min(limit, spec.held_out)
        return self.task.sample(n, spec.level, "held_out", self.config.seed + 1)

    async def answers(
        self, system: System, source: Origin, questions: Sequence[str], activity: str | None = None
    ) -> list[Outcome]:
        """`answer_all`, with progress under the name of an activity."""
        options = self._options(activity, len(questions))
        return await answer_all(system, source, questions, complete=True, **options)

    async def score(
        self, system: System, source: Origin, questions: Sequence[str], activity: str
    ) -> Score:
        """A system's accuracy on held-out questions; on primitives, the share of the overseer's
        answers that it gives."""
        if source.split != "primitive":
            options = self._options(activity, len(questions))
            return await evaluate(system, self.task, source, questions, **options)
        overseer = Amplified(self.context("base"))
        expected = await self.answers(overseer, self.source(0, "overseer", "primitive"), questions)
        outcomes = await self.answers(system, source, questions, activity)
        tally = Tally()
        for one, other in zip(outcomes, expected, strict=True):
            tally.add(one["answer"] == other["answer"], one["status"], one["spent"])
        return tally.score(system.context.model)

    def _options(self, activity: str | None, total: int) -> dict[str, Any]:
        on_done: Callable[[int], None] | None = None
        if activity is not None:
            self.progress(activity, 0, total, "")
            on_done = lambda done: self.progress(activity, done, total, "")  # noqa: E731
        return {"max_concurrency": self.config.max_concurrency, "on_done": on_done}

    async def amplify(self, number: int, model: str) -> dict[str, Any]:
        """Record the answers that the round's student will learn.

        In round 0 they are the overseer's answers to its primitives and the base's to the anchor,
        later those of the amplified system.
        """
        begun = time.perf_counter()
        spec = self.spec(number)
        hard_before: list[str] = []
        if number == 0:
            prompts = anchor_prompts(self.config.anchor, self.config.seed)
            source = self.source(0, "anchor", "train", task="anchor")
            await self.answers(self._plain("base"), source, prompts, "the base answers the anchor")
            questions = list(self.task.primitives())
            source = self.source(0, "overseer", "primitive")
            activity = "the overseer answers its primitives"
        else:
            fresh = self.task.sample(spec.questions, spec.level, "train", self.config.seed)
            limit = round(spec.hard * spec.questions)
            hard_before = hardness(self.run.store, number - 1).hardest(limit)
            questions = list(dict.fromkeys([*hard_before, *fresh]))
            source = self.source(number, "amplified", "train")
            activity = f"amplify {model}"
        outcomes = await self.answers(Amplified(self.context(model)), source, questions, activity)
        accepted = [is_accepted(outcome["status"]) for outcome in outcomes]
        hard = hardness(self.run.store, number)
        spent = ("calls", "cached", "tokens")
        return {
            "questions": len(questions),
            "accepted": sum(accepted),
            "failed": len(hard.failed),
            "doubtful": len(hard.doubtful),
            "asked_again": len(hard_before),
            "accepted_again": sum(accepted[: len(hard_before)]),
            **{key: sum(outcome["spent"][key] for outcome in outcomes) for key in spent},
            "seconds": round(time.perf_counter() - begun, 1),
        }

    def _plain(self, model: str) -> Direct:
        """The model asked for free text, without the task's checker and forms."""
        options = {"max_tokens": self.config.anchor_tokens, "spend_limit": self.spend_limit}
        return Direct(
            AmplifyContext(self.run.recorded_client, model, (), top_logprobs=0, **options)
        )

    def rows(self, number: int) -> tuple[list[Row], list[Row]]:
        """Cumulative rows up to a round: (different rows, rows in training order with repeats)."""
        primitives, others = run_rows(self.run.store, self.task, number)
        repeated = primitives * self.spec(number).primitive_repeats
        return [*primitives, *others], training_order([*repeated, *others], self.config.seed)

    async def distill(self, number: int) -> dict[str, Any]:
        """Train a LoRA on the pristine base and write the student, unless it is written."""
        from reflux.finetune.train.sft import StudentPlan, distill

        name = student_name(number)
        registry = self.run.folder.registry
        rows, training_rows = self.rows(number)
        if name not in [student.id for student in registry.list()]:
            if not rows:
                raise RefluxError(
                    f"round {number} has no accepted answers to train on; see why questions "
                    "failed with `reflux traces list`"
                )
            parent = registry.current()
            plan = StudentPlan(
                id=name,
                parent=parent.id if parent else None,
                round=number,
                rows=[row.train() for row in training_rows],
                rows_digest=rows_digest(training_rows),
                sft={**self.config.sft, **self.spec(number).sft},
                lora=self.config.lora,
                seed=self.config.seed,
            )
            await cancellable(lambda stop: distill(registry, plan, self.progress, stop))
        report = registry.get(name).config["report"]
        return {**report, "rows": len(rows), "trained_rows": len(training_rows)}

    async def evaluate(self, number: int, model: str) -> dict[str, Any]:
        """Score base, amplified system and student on the same questions.

        They are held out, but in round 0, which imitates the overseer, its primitives.
        """
        systems: dict[str, System] = {
            "direct": Direct(self.context("base")),
            "amplified": Amplified(self.context(model)),
            "student": Direct(self.context(student_name(number))),
        }
        questions = self.held_out(number) if number else self.task.primitives()
        scores: dict[str, Any] = {}
        for key, system in systems.items():
            if number:
                source, activity = self.source(number, key, "held_out"), f"evaluate {key}"
            elif key == "amplified":
                scores[key] = None
                continue
            else:
                source = self.source(0, f"{key}-imitation", "primitive")
                activity = f"imitate the overseer: {key}"
            scores[key] = (await self.score(system, source, questions, activity)).to_json()
        return scores

    async def gates(self, number: int, model: str, scores: dict[str, Any]) -> list[dict[str, Any]]:
        """Measure the gates of the round's student."""
        name = student_name(number)
        canary = await self._canary(number, name)
        student = scores["student"]["accuracy"]
        if number == 0:
            gates = judge(self.config.gates, imitation=student, canary=canary)
        else:
            measured = {
                "amplified": scores["amplified"]["accuracy"],
                "before": await self._level_before(number, model, name),
            }
            gates = judge(self.config.gates, student=student, canary=canary, **measured)
        return [gate.to_json() for gate in gates]

    async def _level_before(self, number: int, model: str, name: str) -> tuple[float, float]:
        """Accuracy of (the agent, the student) on the level of the round before."""
        questions: Sequence[str]
        if number == 1:
            questions, model = self.task.primitives(), student_name(0)
            sources = [self.source(n, "student-imitation", "primitive") for n in (0, 1)]
        else:
            questions = self.held_out(number - 1, limit=200)
            systems = (f"regression-{model}", f"regression-{name}")
            sources = [self.source(number, system, "held_out") for system in systems]
        accuracy: list[float] = []
        for agent, source in zip((model, name), sources, strict=True):
            system = Direct(self.context(agent))
            score = await self.score(system, source, questions, f"one level down: {agent}")
            accuracy.append(score.accuracy)
        return accuracy[0], accuracy[1]

    async def _canary(self, number: int, name: str) -> float | None:
        """Mean overlap of the student's replies to the canaries with the base's."""
        prompts = canary_prompts(self.config.canaries)
        if not prompts:
            return None
        replies: list[list[Outcome]] = []
        for model, round_number in (("base", 0), (name, number)):
            source = self.source(round_number, f"canary-{model}", "canary", task="canary")
            activity = f"canaries: {model}"
            replies.append(await self.answers(self._plain(model), source, prompts, activity))
        pairs = zip(*replies, strict=True)
        shared = [overlap(a["answer"] or "", b["answer"] or "") for a, b in pairs]
        return sum(shared) / len(shared)

    def promote(self, number: int, scores: dict[str, Any], gates: list[dict[str, Any]]) -> bool:
        """Make the student the agent if every gate passes."""
        name = student_name(number)
        registry = self.run.folder.registry
        registry.record_evaluation(name, scores, gates)
        passed = not failed_gates(gates)
        if passed:
            registry.promote(name)
        return passed

    async def parity(self, number: int) -> dict[str, Any]:
        """Share of held-out questions on which a student's PEFT adapter and its GGUF export in
        llama.cpp give the same greedy answer."""
        from reflux.finetune.base_model import dequantised_base
        from reflux.finetune.export import agreement, peft_answers

        name = student_name(number)
        files = self.run.folder.models(name)
        questions = self.held_out(number, limit=200)
        self.progress("compare the PEFT adapter with its GGUF export", 0, len(questions), "")
        llama_cpp = self.run.llama_cpp
        # A run on llama.cpp has answered these questions in its evaluation.
        key = "student" if llama_cpp is self.run.recorded_client else "parity"
        outcomes = await self.answers(
            Direct(replace(self.context(name), recorded_client=llama_cpp)),
            self.source(number, key, "held_out"),
            questions,
        )
        adapter = self.run.folder.registry.get(name).path
        answers = await asyncio.to_thread(
            lambda: peft_answers(dequantised_base(files.gguf), adapter, self.task, questions)
        )
        share = agreement(answers, [outcome["answer"] for outcome in outcomes])
        return {"agreement": share, "n": len(questions)}


def student_name(number: int) -> str:
    """The id of a round's student."""
    return f"student-r{number}"


async def cancellable(work: Callable[[threading.Event], object]) -> None:
    """Run blocking work in a thread; on cancellation, signal it to stop and wait for it."""
    stop = threading.Event()
    future = asyncio.get_running_loop().run_in_executor(None, work, stop)
    try:
        await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(RefluxError):
            await future
        raise
