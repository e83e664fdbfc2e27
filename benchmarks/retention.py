"""What is forgotten when one adapter learns three tasks, one after another.

    plain       TRL's SFTTrainer goes on with the same adapter on each task's rows
    last        the same rows, each task from the pristine base: what a new adapter would know
    default     as Reflux's rounds: each stage trains from the pristine base, on the rows of all
                tasks so far and the base's answers to the anchor
    no-anchor   the same without the anchor

Rows are true answers, so that what is forgotten is no error of a teacher. Forgetting is, by task,
the accuracy right after its own stage less that after the last one. General tasks are those of the
report on retention (`reflux.finetune.retention.suite`).

Claims: the default forgets no more than 0.05 of the first two tasks, and no more of them than plain
SFT by the upper end of the interval; it keeps the base's accuracy on general tasks to 0.05.
"""

import asyncio
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.default_model import SCRIPTED, Scripted, model_name, parser_of
from benchmarks.overseer_arms import scratch_context
from benchmarks.plain_sft import Setting, train_plain
from benchmarks.report import Claim, Report
from benchmarks.training_rows import row, true_sum
from reflux.agents.clients.llama_cpp import ModelFiles
from reflux.agents.types import ChatClient
from reflux.finetune.bases import Base, find_base
from reflux.finetune.configs.run import BaseConfig, BatchedConfig
from reflux.finetune.data.questions import anchor_prompts
from reflux.finetune.engine.client import BatchedClient
from reflux.finetune.retention.figures import Share, gain
from reflux.finetune.retention.suite import TOKENS, general_questions
from reflux.finetune.train.options import LORA_DEFAULTS, SFT_DEFAULTS
from reflux.finetune.train.sft import train
from reflux.graphs.ask import Direct, Origin, answer_all
from reflux.graphs.evals.task import Task, is_held_out, task_context
from reflux.tasks import task_named
from reflux.tasks.gym import GymTask

SEQUENCE: Mapping[str, int] = {"addition": 2, "spell_backward": 1, "family_relationships": 1}
"""Tasks in the order in which they are learned, with the level of their questions."""
ARMS = ("plain", "last", "default", "no-anchor")
ANCHOR_TOKENS = 24
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Config:
    """One run."""

    n: int = 200
    """Held-out questions of each task."""
    learned: int = 600
    """Rows of each task."""
    anchor: int = 200
    general: int = 30
    """Questions of each general task."""
    arms: Sequence[str] = ARMS
    seeds: Sequence[int] = (0,)
    model: str = "default"
    """`default`, `scripted`, or a GGUF."""
    quick: bool = False
    more: bool = False
    """Keeps the last run's figures of other models, arms and seeds."""


def true_rows(task: Task, level: int, n: int, seed: int) -> Rows:
    """Training rows of a task with their true answers, which a benchmark may know."""
    if isinstance(task, GymTask):
        entries = islice(task.draw(level, seed), 10 * n)
        truths = {entry["question"].strip(): str(entry["answer"]) for entry in entries}
    else:
        truths = {q: true_sum(q) for q in task.sample(n, level, "train", seed)}
    learned = [question for question in truths if not is_held_out(task, question)][:n]
    return [row(question, truths[question], task.system_prompt) for question in learned]


def shuffled(rows: Rows, seed: int) -> Rows:
    return random.Random(seed).sample(list(rows), len(rows))


@dataclass
class Trainer:
    """The adapters of one model and seed, by arm and stage."""

    base: Base
    scratch: Path
    config: Config
    seed: int
    by_task: Sequence[Rows]
    anchor: Rows
    trained_rows: dict[str, int] = field(default_factory=dict[str, int])
    """By arm, over all stages so far."""

    def adapter(self, arm: str, stage: int) -> Path:
        """The adapter of an arm after a stage."""
        return self.scratch / f"{arm}-{self.seed}-{stage}"

    def train(self, arm: str, stage: int) -> None:
        """Make the adapter of a stage."""
        out, rows = self.adapter(arm, stage), self.by_task[stage]
        if arm in ("default", "no-anchor"):
            rows = [each for part in self.by_task[: stage + 1] for each in part]
            rows = [*rows, *(self.anchor if arm == "default" else ())]
        rows = shuffled(rows, self.seed)
        self.trained_rows[arm] = self.trained_rows.get(arm, 0) + len(rows)
        if arm != "plain":
            train(rows, self.base, out, seed=self.seed)
            return
        before = self.adapter(arm, stage - 1) if stage else None
        keys = ("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs")
        sft = {
            **{key: SFT_DEFAULTS[key] for key in keys},
            "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        }  # fmt: skip
        setting = Setting(threads=1)
        train_plain(rows, self.base.folder, out, setting, sft=sft, lora=LORA_DEFAULTS,
                    seed=self.seed, adapter=before)  # fmt: skip


async def accuracy(
    client: ChatClient, model: str, task: Task, questions: Sequence[str], seed: int
) -> Share:
    """Of one model on the questions of a task."""
    with scratch_context(client, seed) as base:
        system = Direct(task_context(replace(base, model=model), task))
        outcomes = await answer_all(system, Origin("r", 0, model, task.name, "held"), questions)
    right = [
        o["answer"] is not None and task.score(q, o["answer"])
        for q, o in zip(questions, outcomes, strict=True)
    ]
    return Share(sum(right), len(right))


async def general(client: ChatClient, model: str, n: int, seed: int) -> Share:
    """Of one model on general tasks."""
    questions = general_questions(n) or ()
    with scratch_context(client, seed) as base:
        system = Direct(replace(base, model=model, max_tokens=TOKENS))
        texts = [each.question for each in questions]
        outcomes = await answer_all(system, Origin("r", 0, model, "general", "held"), texts)
    right = [
        each.is_right(outcome["answer"]) for each, outcome in zip(questions, outcomes, strict=True)
    ]
    return Share(sum(right), len(right))


async def anchor_rows(client: ChatClient, config: Config, seed: int) -> Rows:
    """The base's own answers to general prompts."""
    prompts = anchor_prompts(config.anchor, seed)
    with scratch_context(client, seed) as base:
        system = Direct(replace(base, max_tokens=ANCHOR_TOKENS))
        outcomes = await answer_all(system, Origin("r", 0, "anchor", "anchor", "train"), prompts)
    return [row(p, o["answer"] or "", "") for p, o in zip(prompts, outcomes, strict=True)]


async def measure_arm(
    config: Config, arm: str, client: ChatClient, trainer: Trainer, label: str, report: Report
) -> dict[str, tuple[Share, Share]]:
    """Train all stages of an arm; (accuracy after its own stage, after the last one) by task."""
    tasks = [task_named(name) for name in SEQUENCE]
    after: list[list[Share]] = []
    wholes: list[Share] = []
    held = [
        list(task.sample(config.n, level, "held_out", trainer.seed))
        for task, level in zip(tasks, SEQUENCE.values(), strict=True)
    ]
    for stage in range(len(tasks)):
        if not config.quick:
            await asyncio.to_thread(trainer.train, arm, stage)
        name = f"{arm}-{trainer.seed}-{stage}"
        scores = [
            await accuracy(client, name, task, questions, trainer.seed)
            for task, questions in zip(tasks[: stage + 1], held, strict=False)
        ]
        after.append(scores)
        whole = await general(client, name, config.general, trainer.seed)
        wholes.append(whole)
        report.rows.append(
            {
                "model": label, "seed": trainer.seed, "arm": arm, "after": tasks[stage].name,
                **{task.name: round(s.value, 3) for task, s in zip(tasks, scores, strict=False)},
                "general": round(whole.value, 3), "n": config.n, "n of general": whole.n,
                "rows trained": trainer.trained_rows.get(arm, 0),
            }
        )  # fmt: skip
        print(report.rows[-1], flush=True)
    found = {task.name: (after[stage][stage], after[-1][stage]) for stage, task in enumerate(tasks)}
    found["general"] = (await general(client, "base", config.general, trainer.seed), wholes[-1])
    return found


def claims_of(label: str, arms: Mapping[str, Mapping[str, tuple[Share, Share]]]) -> list[Claim]:
    """What the default has to keep."""
    if "default" not in arms:
        return []
    claims: list[Claim] = []
    earlier = list(SEQUENCE)[:-1]
    for name in earlier:
        own, last = arms["default"][name]
        lost = gain(own, last)
        claims.append(Claim(f"{label}: default forgets of {name}", lost.value, "<=", 0.05,
                            lost.n, lost.ci95))  # fmt: skip
        if "plain" in arms:
            more = gain(last, arms["plain"][name][1])
            claims.append(Claim(f"{label}: default over plain on {name} at the end, upper end",
                                more.ci95[1], ">=", 0.0, more.n, more.ci95))  # fmt: skip
    base, last = arms["default"]["general"]
    lost = gain(base, last)
    claims.append(Claim(f"{label}: default loses of general tasks", lost.value, "<=", 0.05,
                        lost.n, lost.ci95))  # fmt: skip
    return claims


def open_client(config: Config, trainer: Trainer) -> BatchedClient | Scripted:
    """Answers for the base, and for each adapter by the name of its folder."""
    if config.quick:
        return Scripted(lambda request: "Yes")
    files = trainer.base.files()

    def resolve(name: str) -> ModelFiles:
        return files if name == "base" else replace(files, peft=trainer.scratch / name)

    return BatchedClient(resolve, BatchedConfig(context=1024))


async def measure(config: Config, report: Report) -> None:
    """Every arm with every seed."""
    model = config.model
    base = find_base(BaseConfig(model="" if model in ("default", SCRIPTED) else model))
    label = model_name(base)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in config.seeds:
            about = {"model": label, "seed": seed}
            name = f"{label}, seed {seed}"
            report.rows[:] = [
                each
                for each in report.rows
                if not about.items() <= each.items() or each["arm"] not in config.arms
            ]
            report.claims[:] = [c for c in report.claims if not c.name.startswith(name)]
            by_task = [
                true_rows(task_named(each), level, config.learned, seed)
                for each, level in SEQUENCE.items()
            ]
            trainer = Trainer(base, Path(scratch), config, seed, by_task, [])
            client = open_client(config, trainer)
            try:
                trainer.anchor = await anchor_rows(client, config, seed)
                arms = {
                    arm: await measure_arm(config, arm, client, trainer, label, report)
                    for arm in config.arms
                }
            finally:
                await client.close()
            report.claims += claims_of(name, arms)
            if not config.quick:
                report.write()


def main(config: Config) -> None:
    """Run and report."""
    report = Report("retention", seed=config.seeds[0], quick=config.quick, more=config.more)
    asyncio.run(measure(config, report))
    report.finish()


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=Config.seeds)
    parser.add_argument("-n", type=int, default=Config.n)
    parser.add_argument("--learned", type=int, default=Config.learned)
    parser.add_argument(
        "--more", action="store_true", help="keep figures of other models, arms and seeds"
    )
    given = parser.parse_args()
    smoke = Config(n=4, learned=6, anchor=2, general=2, model=SCRIPTED, quick=True)
    chosen = Config(
        given.n,
        given.learned,
        arms=given.arms,
        seeds=given.seeds,
        model=given.model,
        more=given.more,
    )
    main(smoke if given.quick else chosen)
