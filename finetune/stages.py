"""The stages of one round: amplify, distill, evaluate, promote. Each stage can be repeated.

An interrupted stage starts over without repeated work: recorded calls are replayed, and a student
that is written stays as it is.
"""

import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reflux.agents.budget import SpendLimit
from reflux.agents.errors import RefluxError
from reflux.agents.tools.protocol import Grants
from reflux.finetune.cancelling import cancellable
from reflux.finetune.configs.run import RoundsConfig, RoundSpec
from reflux.finetune.data.preferences import training_pairs
from reflux.finetune.data.questions import (
    MAX_HELD_OUT,
    anchor_prompts,
    anchor_size,
    first_round,
    hardness,
    planned_questions,
)
from reflux.finetune.data.rows import Row, rows_digest, run_rows, training_order, why_no_rows
from reflux.finetune.gates import agreement, judge, passed_checks
from reflux.finetune.learned_overseer import Fallback, learned_overseer, resolved
from reflux.finetune.roles.adapters import promoted_roles, with_roles
from reflux.finetune.run_folder import OpenRun
from reflux.finetune.targets.evidence import with_evidence
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
    total: int = sys.maxsize
    """Rounds after which the run stops."""
    grants: Grants = field(default_factory=dict)
    """Tools of the copies."""

    @property
    def first(self) -> int:
        """The number of the first round."""
        return first_round(self.task)

    @property
    def last(self) -> int:
        """The number of the last round."""
        return self.first + self.total - 1

    def spec(self, number: int) -> RoundSpec:
        return self.config.rounds[number - self.first]

    def context(self, model: str, learned: str | None = "") -> AmplifyContext:
        """The task's context with `model` as the agent.

        Args:
            learned: id of the learned overseer that divides; the promoted one by default, and the
                original where None, or where the run learns none.
        """
        setup, registry = self.config.overseer, self.run.folder.registry
        if learned == "":
            promoted = registry.current("overseer") if setup.learn else None
            learned = promoted.id if promoted else None
        client, limit = self.run.recorded_client, self.spend_limit
        context = self.config.context(client, model, original=learned is None, spend_limit=limit)
        context = task_context(context, self.task).granting(self.grants)
        overseers = context.overseers
        if learned:
            own = learned_overseer(learned, self.config.max_tokens)
            overseers = (Fallback(own, overseers[0]) if setup.fallback == "original" else own,)
        context = replace(context, overseers=resolved(self.run, overseers))
        return with_roles(context, promoted_roles(registry, self.config.roles))

    def source(self, number: int, system: str, split: str, task: str | None = None) -> Origin:
        """The provenance of a question of this run."""
        return Origin(self.run.folder.id, number, system, task or self.task.name, split)

    def held_out(self, number: int) -> Sequence[str]:
        """Held-out questions of a round's level, the same for every system."""
        spec = self.spec(number)
        n = MAX_HELD_OUT if spec.held_out is None else spec.held_out
        return self.task.sample(n, spec.level, "held_out", self.config.seed + 1)

    def training_questions(self, number: int) -> Sequence[str]:
        """Questions of a round's level that no round before it asks."""
        planned, level = planned_questions(self.config, self.task), self.spec(number).level
        asked = sum(planned[n - 1] for n in range(1, number) if self.spec(n).level == level)
        asked += len(self.demonstrated) if level == self.spec(self.first).level else 0
        n = asked + planned[number - 1]
        return self.task.sample(n, level, "train", self.config.seed)[asked:]

    @property
    def demonstrated(self) -> Sequence[str]:
        """Training questions that the original overseer divides, for another to learn from."""
        n = self.config.overseer.learn
        if not isinstance(n, int):
            return []
        return self.task.sample(n, self.spec(self.first).level, "train", self.config.seed)

    def counter(self, activity: str, total: int) -> Callable[[int], None]:
        """Shows how many of an activity's units are done, which are none at first."""
        self.progress(activity, 0, total, "")
        return lambda done: self.progress(activity, done, total, "")

    async def answers(
        self, system: System, source: Origin, questions: Sequence[str], activity: str
    ) -> list[Outcome]:
        """`answer_all`, with progress under the name of an activity."""
        on_done = self.counter(activity, len(questions))
        limit = self.config.max_concurrency
        return await answer_all(
            system, source, questions, max_concurrency=limit, on_done=on_done, complete=True
        )

    async def score(
        self, system: System, source: Origin, questions: Sequence[str], activity: str
    ) -> Score:
        """A system's accuracy on held-out questions; on primitives, the share of the overseer's
        answers that it gives."""
        if source.split != "primitive":
            on_done = self.counter(activity, len(questions))
            limit = self.config.max_concurrency
            return await evaluate(
                system, self.task, source, questions, max_concurrency=limit, on_done=on_done
            )
        overseer = Amplified(self.context("base", None))
        imitated = self.source(0, "overseer", "primitive")
        expected = await self.answers(overseer, imitated, questions, activity)
        outcomes = await self.answers(system, source, questions, activity)
        tally = Tally()
        for one, other in zip(outcomes, expected, strict=True):
            tally.add(one["answer"] == other["answer"], one["status"], one["spent"])
        return tally.score(system.context.model)

    async def amplify(self, number: int, model: str) -> dict[str, Any]:
        """Record the answers that the round's student will learn.

        In round 0 they are the overseer's answers to its primitives, later those of the amplified
        system; in the first round also the base's to the anchor.
        """
        begun = time.perf_counter()
        hard_before: list[str] = []
        if number == self.first:
            prompts = anchor_prompts(anchor_size(self.config, self.task), self.config.seed)
            source = self.source(0, "anchor", "train", task="anchor")
            await self.answers(self.plain("base"), source, prompts, "the base answers the anchor")
        if number == 0:
            questions = list(self.task.primitives())
            source = self.source(0, "overseer", "primitive")
            activity = "the overseer answers its primitives"
        else:
            fresh = self.training_questions(number)
            limit = round(self.spec(number).hard * len(fresh))
            hard_before = hardness(self.run.store, number - 1).hardest(limit)
            questions = list(dict.fromkeys([*hard_before, *fresh]))
            source = self.source(number, "amplified", "train")
            activity = f"amplify {model}"
        context = self.context(model) if number else self.context(model, None)
        outcomes = await self.answers(Amplified(context), source, questions, activity)
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

    def plain(self, model: str) -> Direct:
        """The model asked for free text, without the task's checker and forms."""
        return Direct(
            AmplifyContext(
                self.run.recorded_client,
                model,
                (),
                top_logprobs=0,
                max_tokens=self.config.anchor_tokens,
                spend_limit=self.spend_limit,
            )
        )

    def rows(self, number: int) -> tuple[list[Row], list[Row]]:
        """Cumulative rows up to a round: (different rows, rows in training order with repeats)."""
        primitives, found = run_rows(self.run.store, self.task, number)
        others = list(with_evidence(self.run.store, found, self.config.targets, self.task))
        repeated = primitives * self.spec(number).primitive_repeats
        return [*primitives, *others], training_order([*repeated, *others], self.config.seed)

    async def distill(self, number: int, defend: "Defend | None" = None) -> dict[str, Any]:
        """Train a LoRA on the pristine base and write the student, unless it is written; `defend`
        changes the rows before."""
        from reflux.finetune.distillation import StudentPlan, distill

        name, registry = student_name(number), self.run.folder.registry
        rows, training_rows = self.rows(number)
        defended: dict[str, int] = {}
        if defend is not None:
            training_rows, defended = await defend(self, number, training_rows)
        if name not in [student.id for student in registry.list()]:
            if not rows:
                raise RefluxError(
                    f"round {number} has no accepted answers to train on; "
                    f"{why_no_rows(self.run.store, number)}; see `reflux traces list`"
                )
            plan = StudentPlan(
                id=name,
                parent=getattr(registry.current(), "id", None),
                round=number,
                rows=[row.train() for row in training_rows],
                rows_digest=rows_digest(training_rows),
                config=self.config.distillation(self.spec(number)),
                pairs=training_pairs(self.run.store, rows, self.task, number, self.config),
            )
            await self.run.rest()
            await cancellable(lambda stop: distill(registry, plan, self.progress, stop))
        report = registry.get(name).config["report"]
        counts = {"rows": len(rows), "trained_rows": len(training_rows)}
        return {**report, **counts, "defences": defended}

    async def evaluate(self, number: int, model: str) -> dict[str, Any]:
        """Score base, amplified system and student on the same questions.

        They are held out, but in round 0, which imitates the overseer, its primitives.
        """
        await self.run.load(student_name(number))
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
            score = await self.score(system, source, questions, activity)
            scores[key] = score.to_json()
            if system.context.has_rules:
                scores[key] |= passed_checks(score)
        if number and scores["student"]["unscored"]:
            outcomes = [  # They are on record.
                await self.answers(
                    systems[key], self.source(number, key, "held_out"), questions, f"compare {key}"
                )
                for key in ("amplified", "student")
            ]
            scores["agreement"] = agreement(self.task, questions, *outcomes)
        return scores

    def next_agent(self, number: int, model: str, promoted: bool) -> str:
        """The agent after a round: its promoted student, unless the config keeps another.

        The student of round 0 has imitated the overseer alone, and takes no named agent's place.
        """
        imitates = number == 0 and self.config.agent is not None
        takes_over = promoted and not imitates and not self.config.keep_agent
        return student_name(number) if takes_over else model

    async def gates(self, number: int, model: str, scores: dict[str, Any]) -> list[dict[str, Any]]:
        """Measure the gates of the round's student."""
        name = student_name(number)
        student = scores["student"]
        measured: dict[str, Any] = {"imitation": student["accuracy"]}
        if number:
            amplified = scores["amplified"]
            measured = {
                "amplified": amplified["accuracy"],
                "student": student["accuracy"],
                "before": await self._level_before(number, model, name),
            }
            if student["accuracy"] is None and "passed" in student:
                measured["passed"] = amplified["passed"]["share"], student["passed"]["share"]
            if student["accuracy"] is None:
                measured["agreement"] = scores["agreement"]["share"]
        parity = self.run.folder.registry.get(name).parity
        if parity is not None:
            measured["parity"] = parity["agreement"]
        gates = judge(self.config.gates, **measured)
        return [gate.to_json() for gate in gates]

    async def _level_before(self, number: int, model: str, name: str) -> tuple[float, float] | None:
        """Accuracy of (the agent, the student) on the level of the round before; None where there
        was none, or nothing can be scored."""
        questions: Sequence[str]
        if number == self.first:
            return None
        if number == 1:
            questions, model = self.task.primitives(), student_name(0)
            sources = [self.source(n, "student-imitation", "primitive") for n in (0, 1)]
        else:
            if self.config.agent is not None or self.config.keep_agent:
                model = self.run.folder.current_model()  # Students are compared with students.
            questions = self.held_out(number - 1)[:200]
            if not any(map(self.task.has_truth, questions)):
                return None
            systems = (f"regression-{model}", f"regression-{name}")
            sources = [self.source(number, system, "held_out") for system in systems]
        accuracy: list[float] = []
        for agent, source in zip((model, name), sources, strict=True):
            system = Direct(self.context(agent))
            score = await self.score(system, source, questions, f"one level down: {agent}")
            accuracy.append(score.accuracy)
        return accuracy[0], accuracy[1]


def student_name(number: int) -> str:
    """The id of a round's student."""
    return f"student-r{number}"


Defend = Callable[[Stages, int, Sequence[Row]], Awaitable[tuple[list[Row], dict[str, int]]]]
"""(stages, round, rows) → the rows that the student learns, and how many were changed, by way."""
