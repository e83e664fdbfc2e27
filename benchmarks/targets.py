"""What a student learns from: texts, votes, a teacher's distributions, or its own samples.

One amplified system answers the training questions of a task once. From the same rows, students are
trained that differ in `targets` alone:

    hard        the texts of its answers
    votes       all answers that got votes, by their share
    topk        the 20 likeliest tokens of a teacher that reads the sub-answers, and their tail
    full        all its tokens
    mixed       all its tokens and the texts, half each
    on_policy   texts for half of the steps, then the teacher's view of the student's samples
    combiner    as mixed; the teacher is an adapter that has learned to combine the sub-answers

The teacher is the agent that answered the sub-questions, except for `combiner`. Each arm is trained
with the steps of `hard`, and again with its seconds. Confidence is the probability of the least
certain token; temperature scaling is fitted on one half of the answers and measured on the other.

Claims: no arm is more accurate than `hard`, and none is better calibrated than `hard` is after
temperature scaling, by more than the 95% interval over all questions and seeds; where one is, the
claim does not hold, and it is a candidate for the default.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any

from benchmarks.default_model import model_name, scratch_run
from benchmarks.natural_tasks import natural_tasks
from benchmarks.report import Claim, Report
from reflux.agents.types import ChatClient, ChatRequest
from reflux.finetune.configs.run import DistillConfig, RoundsConfig, RoundSpec
from reflux.finetune.configs.targets import TargetConfig
from reflux.finetune.data.rows import Row, rows_digest, run_rows, training_order
from reflux.finetune.distillation import StudentPlan, distill
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.finetune.stages import Stages, student_name
from reflux.finetune.targets.evidence import with_evidence
from reflux.graphs.amplify.direct_answer import first_request
from reflux.graphs.ask import Direct
from reflux.graphs.evals.confidence.calibration import Scaled, scaled
from reflux.graphs.evals.metrics import difference, wilson
from reflux.graphs.evals.task import Task
from reflux.graphs.voting.confidence import confidence_of
from reflux.graphs.voting.voting import VotePolicy
from reflux.tasks.addition import Addition

COMBINER, TEACHER = "combiner", "-teacher"
ARMS: Mapping[str, TargetConfig] = {
    "hard": TargetConfig(),
    "votes": TargetConfig(kind="votes"),
    "topk": TargetConfig(kind="tokens", top_k=20),
    "full": TargetConfig(kind="tokens"),
    "mixed": TargetConfig(kind="mixed"),
    "on_policy": TargetConfig(kind="on_policy"),
    COMBINER: TargetConfig(kind="mixed", teacher=f"{COMBINER}{TEACHER}"),
}
TASKS = ("addition", "chain_sum", "two_facts")
BATCH = 16
LIKE = 0.95
"""Share of the steps from which on an arm's seconds are those of `hard` anyway."""


@dataclass(frozen=True)
class Config:
    """One run."""

    model: str = "default"
    """`default`, or a GGUF."""
    tasks: Sequence[str] = TASKS
    arms: Sequence[str] = tuple(ARMS)
    seeds: Sequence[int] = (0, 1, 2)
    questions: int = 300
    """Training questions of each task."""
    n: int = 200
    """Held-out questions at the level of training, and as many a level up."""
    epochs: int = 3
    quick: bool = False
    more: bool = False
    """Keeps the last run's figures of other models, tasks, seeds and arms."""


@dataclass
class Answers:
    """A student's answers: question and seed, whether it is right, and how sure it was."""

    right: dict[str, bool] = field(default_factory=dict[str, bool])
    confidence: list[tuple[float | None, bool]] = field(
        default_factory=list[tuple[float | None, bool]]
    )

    @property
    def accuracy(self) -> float:
        """Share that is right."""
        return sum(self.right.values()) / max(1, len(self.right))

    @property
    def scaled(self) -> Scaled | None:
        """Calibration before and after temperature scaling."""
        return scaled(self.confidence)


def task_of(name: str) -> tuple[Task, int]:
    """(a task, the level of its training questions)."""
    if name == "addition":
        return Addition(), 2
    natural = natural_tasks()[name]
    return natural.task, natural.level


@dataclass
class Bench:
    """One task and seed: the record that all arms learn from."""

    config: Config
    name: str
    seed: int
    folder: RunFolder
    client: ChatClient
    run: OpenRun

    def __post_init__(self) -> None:
        self.task, self.level = task_of(self.name)
        first = 0 if self.task.primitives() else 1
        rounds = [
            RoundSpec(level=1, primitive_repeats=6),
            RoundSpec(level=self.level, questions=self.config.questions, hard=0),
        ][first:]
        self.settings = RoundsConfig(
            base=self.folder.base.config,
            seed=self.seed,
            rounds=tuple(rounds),
            anchor=32,
            anchor_tokens=24,
            votes=VotePolicy(margin=2, max_votes=5, min_logprob=None),
            sft={"learning_rate": 2e-3, "per_device_train_batch_size": BATCH},
        )
        self.stages = Stages(self.settings, self.task, self.run, lambda *_: None)

    async def amplify(self) -> None:
        """Round 0 where the task has primitives, and the amplified answers of the next."""
        agent = "base"
        if self.stages.first == 0:
            await self.stages.amplify(0, agent)
            await self.stages.distill(0)
            agent = student_name(0)
            self.folder.registry.promote(agent)
        await self.stages.amplify(1, agent)

    def rows(self, targets: TargetConfig) -> list[Row]:
        """The rows of an arm, in order."""
        primitives, others = run_rows(self.run.store, self.task, 1)
        others = list(with_evidence(self.run.store, others, targets, self.task))
        return training_order([*primitives, *others], self.seed)

    def train(self, arm: str, rows: Sequence[Row], steps: int, more: str = "") -> Mapping[str, Any]:
        """Train a student; its report, with the share of answers that every engine agrees on."""
        id, registry = f"{arm.replace('_', '-')}{more}", self.folder.registry
        targets = ARMS[arm] if arm in ARMS and more != TEACHER else TargetConfig()
        config = DistillConfig(
            base=self.settings.base,
            seed=self.seed,
            sft={**self.settings.sft, "max_steps": steps},
            targets=targets,
        )
        agent = registry.current()
        plan = StudentPlan(
            id,
            [row.train() for row in rows],
            rows_digest(rows),
            config,
            parent=agent.id if agent else None,
        )
        distill(registry, plan, lambda *_: None, Event())
        student = registry.get(id)
        parity = (student.parity or {}).get("agreement")
        return {**student.config["report"], "id": id, "parity": parity}

    async def answers(self, model: str, level: int) -> Answers:
        """A student's greedy answers to the held-out questions of a level."""
        system = Direct(self.stages.context(model))
        questions = self.task.sample(self.config.n, level, "held_out", 1 + self.seed)
        made = Answers()

        async def ask(question: str) -> tuple[str, bool, float | None]:
            request: ChatRequest = first_request(system.context, question)
            request = replace(request, sampling=replace(request.sampling, top_logprobs=1))
            reply = await self.client.complete(request)
            answer = system.context.normalise(reply.text)
            sure = confidence_of({"votes": 1}, reply.min_logprob)
            return question, bool(answer) and bool(self.task.score(question, answer)), sure

        for question, right, sure in await asyncio.gather(*map(ask, questions)):
            made.right[f"{self.seed} {question}"] = right
            made.confidence.append((sure, right))
        return made


async def measure(config: Config, report: Report) -> None:
    """Every arm on every task and seed."""
    for name in config.tasks:
        pooled: dict[tuple[str, str, str], Answers] = {}
        names = ""
        for seed in config.seeds:
            async with scratch_run(config.model, 2048) as (folder, client):
                model = model_name(folder.base)
                names = f"{model}, {name}: "
                kept = (model, name, seed, tuple(config.arms))
                report.rows[:] = [row for row in report.rows if not _is_of(row, kept)]
                async with OpenRun(folder, client=client) as run:
                    bench = Bench(config, name, seed, folder, client, run)
                    begun = time.perf_counter()
                    await bench.amplify()
                    spent = time.perf_counter() - begun
                    print(f"{model}, {name}, seed {seed}: amplified in {spent:.0f} s", flush=True)
                    keys = {"model": model, "task": name, "seed": seed}
                    async for row, found in arms_of(bench):
                        report.rows.append({**keys, **row, "amplified in": round(spent)})
                        print(report.rows[-1], flush=True)
                        for where, answers in found.items():
                            key = (row["arm"], row["equal"], where)
                            both = pooled.setdefault(key, Answers())
                            both.right |= answers.right
                            both.confidence += answers.confidence
            if not config.quick:
                report.write()
        claims = claims_of(names, pooled)
        again = {claim.name for claim in claims}
        report.claims[:] = [*(c for c in report.claims if c.name not in again), *claims]


def _is_of(row: Mapping[str, Any], kept: tuple[str, str, int, Sequence[str]]) -> bool:
    model, task, seed, arms = kept
    return (row["model"], row["task"], row["seed"]) == (model, task, seed) and row["arm"] in arms


async def arms_of(bench: Bench) -> AsyncIterator[tuple[dict[str, Any], dict[str, Answers]]]:
    """(row of the table, its answers) of every arm, first with equal steps."""
    config = bench.config
    texts = bench.rows(TargetConfig())
    steps = max(1, config.epochs * len(texts) // BATCH)
    budget = None
    for arm in config.arms:
        rows = bench.rows(ARMS[arm])
        if arm == COMBINER:
            informed = [replace(row, prompt=row.teacher, teacher=()) for row in rows if row.teacher]
            await asyncio.to_thread(bench.train, COMBINER, informed, steps, TEACHER)
            rows = bench.rows(ARMS[arm])
        report = await asyncio.to_thread(bench.train, arm, rows, steps)
        budget = report["seconds"] if budget is None else budget
        row, found = await _row(bench, arm, "steps", report)
        yield row, found
        fitting = max(1, round(steps * budget / report["seconds"]))
        if fitting >= LIKE * steps:
            yield {**row, "equal": "seconds"}, found
            continue
        report = await asyncio.to_thread(bench.train, arm, rows, fitting, "-seconds")
        yield await _row(bench, arm, "seconds", report)


async def _row(
    bench: Bench, arm: str, equal: str, report: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Answers]]:
    await bench.run.load(report["id"])
    found = {
        "in": await bench.answers(report["id"], bench.level),
        "out": await bench.answers(report["id"], bench.level + 1),
    }
    row: dict[str, Any] = {"arm": arm, "equal": equal, "rows": report["rows"]}
    for where, answers in found.items():
        row[f"accuracy {where}"] = round(answers.accuracy, 3)
    if (calibrated := found["in"].scaled) is not None:
        row["ECE"] = round(calibrated.before.ece, 3)
        row["ECE scaled"] = round(calibrated.after.ece, 3)
    row |= {
        "steps": report["steps"],
        "seconds": round(report["seconds"], 1),
        "examples/s": report["examples_per_second"],
        "parity": report["parity"],
        "samples": (report["sampling"] or {}).get("collapsed"),
    }
    return row, found


def claims_of(name: str, pooled: Mapping[tuple[str, str, str], Answers]) -> list[Claim]:
    """What each arm gains on `hard`, over all seeds."""
    claims: list[Claim] = []
    for (arm, equal, where), answers in pooled.items():
        hard = pooled.get(("hard", equal, where))
        if arm == "hard" or hard is None:
            continue
        pairs = {q: [(right, hard.right[q])] for q, right in answers.right.items()}
        gap = difference("", "", pairs, 0)
        what = f"{name}{arm} minus hard, equal {equal}, accuracy {where} of distribution"
        claims.append(Claim(f"{what}, lower end", gap.ci95[0], "<=", 0.0, gap.n, gap.ci95))
        ours, theirs = answers.scaled, hard.scaled
        if where == "in" and ours is not None and theirs is not None:
            what = f"{name}{arm} unscaled, equal {equal}: ECE beyond that of hard, scaled"
            beyond = ours.before.ece - theirs.after.ece
            claims.append(Claim(what, beyond, ">=", 0.0, len(answers.right)))
    return claims


async def checked(report: Report) -> None:
    """What a smoke run can tell without a model: which settings the arms are."""
    for arm, targets in ARMS.items():
        report.rows.append({"arm": arm, **targets.model_dump()})
    right = {f"0 {i}": i % 3 > 0 for i in range(60)}
    hard = Answers(right, [(0.9 - i / 100, ok) for i, ok in enumerate(right.values())])
    pooled = {("hard", "steps", "in"): hard, ("votes", "steps", "in"): hard}
    report.claims += claims_of("smoke: ", pooled)
    low, high = wilson(sum(right.values()), len(right))
    report.rows.append({"arm": "smoke", "accuracy in": hard.accuracy, "95%": [low, high]})


def main(config: Config) -> None:
    """Run and report."""
    report = Report("targets", seed=config.seeds[0], quick=config.quick, more=config.more)
    asyncio.run(checked(report) if config.quick else measure(config, report))
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run without a model")
    parser.add_argument("--model", default="default", help="a GGUF; the default model without it")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=Config.tasks)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=Config.arms)
    parser.add_argument("--seeds", nargs="+", type=int, default=Config.seeds)
    parser.add_argument("--questions", type=int, default=Config.questions)
    parser.add_argument("-n", type=int, default=Config.n)
    parser.add_argument("--epochs", type=int, default=Config.epochs)
    parser.add_argument("--more", action="store_true", help="keep other figures of the last run")
    main(Config(**vars(parser.parse_args())))
