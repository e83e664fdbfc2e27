"""The stages of one round: amplify, distill, evaluate, promote. Each can be done again.

A stage that was interrupted starts over and repeats nothing: recorded calls are replayed, and a
student that is written stays as it is.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reflux.agents.budget import SpendLimit
from reflux.agents.errors import RefluxError
from reflux.finetune.config import RoundsConfig, RoundSpec
from reflux.finetune.data.anchor import anchor_prompts, canary_prompts, overlap
from reflux.finetune.data.corrections import edited
from reflux.finetune.data.hard_examples import hardness
from reflux.finetune.data.rows import Row, accepted, check_leaks, rows_digest
from reflux.finetune.export.parity import agreement, peft_answers
from reflux.finetune.gates import failed_gates, judge
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Amplified, Direct, Origin, System, answer_every, task_context
from reflux.graphs.evals.runner import Score, evaluate
from reflux.graphs.evals.task import Task

Progress = Callable[[str, int, int, str], None]
"""Hears (what is being done, done so far, of how many, detail)."""


@dataclass(frozen=True)
class Stages:
    """What every stage of a run needs."""

    config: RoundsConfig
    task: Task
    run: OpenRun
    progress: Progress
    spend_limit: SpendLimit = field(default_factory=SpendLimit)
    """The run's; every model call pays into it."""

    def spec(self, number: int) -> RoundSpec:
        """The spec of a round."""
        return self.config.rounds[number]

    def context(self, model: str) -> AmplifyContext:
        """The task's context with `model` as X."""
        given = self.config.context(self.run.recorded_client, model, spend_limit=self.spend_limit)
        return task_context(given, self.task)

    def asked(self, number: int, system: str, split: str, task: str | None = None) -> Origin:
        """The provenance of a question of this run."""
        return Origin(self.run.folder.name, number, system, task or self.task.name, split)

    def _tick(self, what: str, total: int) -> Callable[[int], None]:
        self.progress(what, 0, total, "")
        return lambda done: self.progress(what, done, total, "")

    async def _answers(
        self,
        system: System,
        asked: Origin,
        questions: Sequence[str],
        what: str | None = None,
    ) -> list[Outcome]:
        """`answer_every`, shown as `what`; an endpoint that is down ends the stage."""
        return await answer_every(
            system,
            asked,
            questions,
            max_concurrency=self.config.max_concurrency,
            on_done=self._tick(what, len(questions)) if what else None,
        )

    async def amplify(self, number: int, model: str) -> dict[str, Any]:
        """Record the answers that the round's student will learn: H's own in round 0, with the
        anchor; those of the amplified system later."""
        begun = time.perf_counter()
        spec = self.spec(number)
        again: list[str] = []
        if number == 0:
            await self._anchor()
            questions = list(self.task.primitives())
            system: Amplified = Amplified(self.context(model))
            asked = self.asked(0, "overseer", "primitive")
            what = "H answers its primitives"
        else:
            fresh = self.task.sample(spec.questions, spec.level, "train", self.config.seed)
            again = self._hard(number)
            questions = list(dict.fromkeys([*again, *fresh]))
            system = Amplified(self.context(model))
            asked = self.asked(number, "amplified", "train")
            what = f"amplify {model}"
        outcomes = await self._answers(system, asked, questions, what)
        hard = hardness(self.run.store, number)
        return {
            "questions": len(questions),
            "accepted": sum(o["status"] == "ok" for o in outcomes),
            "failed": len(hard.failed),
            "doubtful": len(hard.doubtful),
            "asked_again": len(again),
            "accepted_again": sum(o["status"] == "ok" for o in outcomes[: len(again)]),
            "calls": sum(o["spent"]["calls"] for o in outcomes),
            "cached": sum(o["spent"]["cached"] for o in outcomes),
            "tokens": sum(o["spent"]["tokens"] for o in outcomes),
            "seconds": round(time.perf_counter() - begun, 1),
        }

    def _hard(self, number: int) -> list[str]:
        """What the round before found hard, to be asked again."""
        spec = self.spec(number)
        return hardness(self.run.store, number - 1).hardest(round(spec.hard * spec.questions))

    def _plain(self, model: str) -> Direct:
        """X asked for free text, without the task's checker and forms."""
        context = AmplifyContext(
            self.run.recorded_client,
            model,
            (),
            max_tokens=self.config.anchor_tokens,
            top_logprobs=0,
            spend_limit=self.spend_limit,
        )
        return Direct(context)

    async def _anchor(self) -> None:
        prompts = anchor_prompts(self.config.anchor, self.config.seed)
        asked = self.asked(0, "anchor", "train", task="anchor")
        await self._answers(self._plain("base"), asked, prompts, "the base answers the anchor")

    def rows(self, number: int) -> tuple[list[Row], list[Row]]:
        """Cumulative rows up to a round: (different rows, rows as often as they are trained)."""
        store, prompt = self.run.store, self.task.system_prompt
        primitives = list(accepted(store, "primitive", "overseer", 0, prompt))
        amplified = list(accepted(store, "train", "amplified", number, prompt))
        anchor = list(accepted(store, "train", "anchor", 0, ""))
        by_persons = list(edited(store, self.task))
        rows = [*primitives, *amplified, *anchor, *by_persons]
        check_leaks(rows, self.task)
        repeated = primitives * self.spec(number).primitive_repeats
        return rows, [*repeated, *amplified, *anchor, *by_persons]

    async def distill(self, number: int) -> dict[str, Any]:
        """Train a LoRA on the pristine base and write the student, once."""
        from reflux.finetune.distill import StudentPlan, distill

        name = f"student-r{number}"
        registry = self.run.folder.registry
        rows, repeated = self.rows(number)
        if name not in [student.id for student in registry.list()]:
            if not rows:
                raise RefluxError(
                    f"round {number} has no accepted answers to train on; look at "
                    "`reflux traces list` for what failed"
                )
            parent = registry.current()
            plan = StudentPlan(
                id=name,
                parent=parent.id if parent else None,
                round=number,
                rows=[row.train() for row in repeated],
                rows_digest=rows_digest(repeated),
                sft={**self.config.sft, **self.spec(number).sft},
                lora=self.config.lora,
                seed=self.config.seed,
            )
            await cancellable(lambda stop: distill(registry, plan, self.progress, stop))
        report = registry.get(name).config["report"]
        return {**report, "rows": len(rows), "trained_rows": len(repeated)}

    async def evaluate(self, number: int, model: str) -> dict[str, Any]:
        """Score base, amplified and student on the same held-out questions; measure the gates."""
        name = f"student-r{number}"
        if number == 0:
            return await self._imitation(0, name, with_base=True)
        spec = self.spec(number)
        questions = self.task.sample(spec.held_out, spec.level, "held_out", self.config.seed + 1)
        systems = {
            "direct": Direct(self.context("base")),
            "amplified": Amplified(self.context(model)),
            "student": Direct(self.context(name)),
        }
        scores: dict[str, Any] = {}
        for key, system in systems.items():
            tick = self._tick(f"evaluate {key}", len(questions))
            asked = self.asked(number, key, "held_out")
            score = await evaluate(
                system,
                self.task,
                asked,
                questions,
                max_concurrency=self.config.max_concurrency,
                on_done=tick,
            )
            scores[key] = score.to_json()
        return scores

    async def _imitation(self, number: int, name: str, with_base: bool) -> dict[str, Any]:
        """How far a student gives H's own answers to the primitives."""
        context = self.context("base")
        questions = list(self.task.primitives())
        h = await self._answers(
            Amplified(context), self.asked(0, "overseer", "primitive"), questions
        )
        scores: dict[str, Any] = {"direct": None, "amplified": None}
        models = {"direct": "base"} if with_base else {}
        for key, model in {**models, "student": name}.items():
            outcomes = await self._answers(
                Direct(self.context(model)),
                self.asked(number, f"{key}-imitation", "primitive"),
                questions,
                f"imitate H: {key}",
            )
            scores[key] = Score.of(
                (a["answer"] == b["answer"], a["status"], a["spent"])
                for a, b in zip(outcomes, h, strict=True)
            ).to_json()
        return scores

    async def gates(self, number: int, model: str, scores: dict[str, Any]) -> list[dict[str, Any]]:
        """Measure what stands for or against promotion."""
        name = f"student-r{number}"
        canary = await self._canary(number, name)
        student = scores["student"]["accuracy"]
        if number == 0:
            gates = judge(self.config.gates, imitation=student, canary=canary)
        else:
            gates = judge(
                self.config.gates,
                amplified=scores["amplified"]["accuracy"],
                student=student,
                before=await self._before(number, model, name),
                canary=canary,
            )
        return [gate.to_json() for gate in gates]

    async def _before(self, number: int, model: str, name: str) -> tuple[float, float] | None:
        """Accuracy of (the agent before, the student) one round's level down."""
        if number == 1:
            new = await self._imitation(1, name, with_base=False)
            old = await self._imitation(0, "student-r0", with_base=False)
            return old["student"]["accuracy"], new["student"]["accuracy"]
        spec = self.spec(number - 1)
        questions = self.task.sample(
            min(200, spec.held_out), spec.level, "held_out", self.config.seed + 1
        )
        accuracy: list[float] = []
        for agent in (model, name):
            score = await evaluate(
                Direct(self.context(agent)),
                self.task,
                self.asked(number, f"regression-{agent}", "held_out"),
                questions,
                max_concurrency=self.config.max_concurrency,
                on_done=self._tick(f"one level down: {agent}", len(questions)),
            )
            accuracy.append(score.accuracy)
        return accuracy[0], accuracy[1]

    async def _canary(self, number: int, name: str) -> float | None:
        prompts = canary_prompts(self.config.canaries)
        if not prompts:
            return None
        replies: list[list[Outcome]] = []
        for model, at in (("base", 0), (name, number)):
            asked = self.asked(at, f"canary-{model}", "canary", task="canary")
            said = await self._answers(self._plain(model), asked, prompts, f"canaries: {model}")
            replies.append(said)
        pairs = zip(*replies, strict=True)
        shared = [overlap(a["answer"] or "", b["answer"] or "") for a, b in pairs]
        return sum(shared) / len(shared)

    def promote(self, number: int, scores: dict[str, Any], gates: list[dict[str, Any]]) -> bool:
        """Make the student the agent where every gate is passed."""
        name = f"student-r{number}"
        registry = self.run.folder.registry
        registry.record_evaluation(name, scores, gates)
        passed = not failed_gates(gates)
        current = registry.current()
        if passed and (current is None or current.id != name):
            registry.promote(name)
        return passed

    async def twin(self, number: int) -> dict[str, Any]:
        """Agreement of the last student's PEFT adapter with its GGUF twin in llama.cpp (greedy,
        held out)."""
        from reflux.finetune.base_model import dequantised_base

        name = f"student-r{number}"
        files = self.run.folder.models(name)
        spec = self.spec(number)
        questions = self.task.sample(
            min(200, spec.held_out), spec.level, "held_out", self.config.seed + 1
        )
        self.progress("compare the PEFT adapter with its GGUF twin", 0, len(questions), "")
        recorded_client = self.run.llama_cpp
        # Where llama.cpp has run the round, it has answered these already.
        key = "student" if recorded_client is self.run.recorded_client else "twin"
        outcomes = await self._answers(
            Direct(replace(self.context(name), recorded_client=recorded_client)),
            self.asked(number, key, "held_out"),
            questions,
        )
        adapter = self.run.folder.registry.get(name).path
        answers = await asyncio.to_thread(
            lambda: peft_answers(dequantised_base(files.gguf), adapter, self.task, questions)
        )
        return vars(agreement(answers, [outcome["answer"] for outcome in outcomes]))


async def cancellable(work: Callable[[threading.Event], object]) -> None:
    """Run blocking work in a thread; when cancelled, ask it to stop and wait until it did."""
    stop = threading.Event()
    future = asyncio.get_running_loop().run_in_executor(None, work, stop)
    try:
        await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(RefluxError):
            await future
        raise
