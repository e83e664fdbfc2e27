"""Does a student know when to ask? Accuracy against cost, from the student alone to the amplified
system alone, and in between: the student answers where it is sure, the amplified system elsewhere.

    addition     the agent has learned sums of one and two digits; the questions have three. Agent
                 and amplified system are made of the same student
    two_facts, family
                 the student has learned the accepted answers of the amplified system on training
                 questions; the amplified system is the base with the task's script

The threshold and the scaling of the confidence are chosen on held-out questions, and judged on
others. Three measures of confidence are compared: the probability of the least certain token,
which Reflux uses, and the mean and the sum of the tokens' log-probabilities.

Claims, of each task: the cascade is not below the better of both systems by more than the 95%
interval of the paired difference; it costs no more than the amplified system; scaling lowers the
calibration error of the student.
"""

import asyncio
import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

from benchmarks.default_model import SCRIPTED, model_name, parser_of, scratch_run
from benchmarks.natural_tasks import natural_tasks
from benchmarks.overseer_arms import scratch_context
from benchmarks.report import Claim, Report
from benchmarks.training_rows import row, true_sum
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.types import ChatClient, ChatRequest, Completion, TokenLogprob
from reflux.finetune.configs.run import DistillConfig
from reflux.finetune.data.rows import Row, accepted, training_order
from reflux.finetune.distillation import StudentPlan, distill
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Amplified, Direct, Origin, System, answer_all
from reflux.graphs.evals.confidence.calibration import calibration, fit_scaling
from reflux.graphs.evals.confidence.curve import Both, best_threshold, cost_curve
from reflux.graphs.evals.metrics import difference, wilson
from reflux.graphs.evals.task import Task, task_context
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.confidence import Scaling
from reflux.tasks.addition import Addition

TASKS = ("addition", "two_facts", "family")
MEASURES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "least": min,
    "mean": lambda logprobs: sum(logprobs) / len(logprobs),
    "sum": sum,
}
"""Of an answer's log-probabilities, one a token."""


@dataclass(frozen=True)
class Config:
    """One run."""

    n: int = 400
    """Held-out questions of each task that the systems are judged by."""
    chosen: int = 200
    """Others, by which threshold and scaling are chosen."""
    learned: int = 600
    """Training questions of each task; of addition, sums of each length."""
    tasks: Sequence[str] = TASKS
    seeds: Sequence[int] = (0,)
    model: str = "default"
    """`default`, `scripted`, or a GGUF."""
    quick: bool = False
    more: bool = False
    """Keeps the last run's figures of other models, tasks and seeds."""


@dataclass(frozen=True)
class Student:
    """One task with the student that has learned from it."""

    task: Task
    level: int
    alone: AmplifyContext
    """The student as the agent."""
    teacher: AmplifyContext
    """The amplified system that the student defers to."""


async def trained(folder: RunFolder, id: str, rows: Sequence[Mapping[str, Any]], seed: int) -> str:
    """A student of the rows, by its id."""
    config = DistillConfig(base=folder.base.config, seed=seed)
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    plan = StudentPlan(id, rows, digest[:32], config)
    await asyncio.to_thread(distill, folder.registry, plan, lambda *_: None, Event())
    return id


async def student_of(
    name: str, base: AmplifyContext, folder: RunFolder, config: Config, seed: int
) -> Student:
    """Train the student of a task."""
    id = f"{name}-{seed}"
    if name == "addition":
        sums, prompt = Addition(), Addition.system_prompt
        texts = [q for level in (1, 2) for q in sums.sample(config.learned, level, "train", seed)]
        texts = [*sums.primitives(), *texts]
        random.Random(seed).shuffle(texts)
        made = base.model
        if not config.quick:
            rows = [row(text, true_sum(text), prompt) for text in texts]
            made = await trained(folder, id, rows, seed)
        context = task_context(replace(base, model=made), sums)
        return Student(sums, 3, context, context)
    natural = natural_tasks()[name]
    task, teacher = natural.task, task_context(base, natural.task)
    questions = task.sample(config.learned, natural.level, "train", seed)
    origin = Origin("cascade", 0, f"teacher-{seed}", task.name, "train")
    await answer_all(Amplified(teacher), origin, questions)
    store = teacher.recorded_client.store
    learned: list[Row] = list(accepted(store, "train", origin.system, 0, task.system_prompt))
    made = base.model
    if not config.quick:
        order = training_order([each for each in learned if each.task == task.name], seed)
        made = await trained(folder, id, [each.train() for each in order], seed)
    return Student(task, natural.level, replace(teacher, model=made), teacher)


def logprobs_of(store: TraceStore, origin: Origin, question: str) -> list[float]:
    """The log-probabilities of the tokens of a recorded direct answer."""
    sql = "SELECT logprobs FROM calls WHERE question=? AND kind='model' ORDER BY id DESC LIMIT 1"
    found = next(store.select(sql, (origin.question_id(question),)))["logprobs"]
    return [token[1] for token in json.loads(found or "[]")]


@dataclass(frozen=True)
class Answers:
    """Both systems' answers to the same questions."""

    both: Sequence[Both]
    measures: Sequence[Mapping[str, float]]
    """Of each answer of the student: `MEASURES`."""


async def answers(student: Student, questions: Sequence[str], split: str) -> Answers:
    """Ask both systems."""
    found: dict[str, Sequence[Outcome]] = {}
    systems: Mapping[str, System] = {
        "alone": Direct(student.alone),
        "amplified": Amplified(student.teacher),
    }
    for key, system in systems.items():
        origin = Origin("cascade", 0, f"{split}-{key}", student.task.name, "held_out")
        found[key] = await answer_all(system, origin, questions)
    store = student.alone.recorded_client.store
    origin = Origin("cascade", 0, f"{split}-alone", student.task.name, "held_out")
    measures: list[Mapping[str, float]] = []
    both: list[Both] = []
    for question, one, other in zip(questions, found["alone"], found["amplified"], strict=True):
        logprobs = logprobs_of(store, origin, question) or [-math.inf]
        measures.append({name: of(logprobs) for name, of in MEASURES.items()})
        right = [
            each["answer"] is not None and student.task.score(question, each["answer"])
            for each in (one, other)
        ]
        tokens = [each["spent"]["tokens"] for each in (one, other)]
        both.append(Both(one.get("confidence"), *right, *tokens))
    return Answers(both, measures)


def ranked(values: Sequence[float], right: Sequence[bool]) -> float | None:
    """The chance that a right answer has a higher value than a wrong one (AUROC); None where all
    are right, or wrong."""
    highs = [v for v, ok in zip(values, right, strict=True) if ok]
    lows = [v for v, ok in zip(values, right, strict=True) if not ok]
    if not highs or not lows:
        return None
    wins = sum((high > low) + (high == low) / 2 for high in highs for low in lows)
    return wins / (len(highs) * len(lows))


def ece(both: Sequence[Both], scaling: Scaling) -> float:
    """The calibration error of the student's answers under a scaling."""
    pairs = [
        (None if b.confidence is None else scaling.probability(b.confidence), b.alone) for b in both
    ]
    found = calibration(pairs)
    return math.nan if found is None else found.ece


def rows_of(
    about: Mapping[str, Any], chosen: Answers, judged: Answers, report: Report
) -> tuple[dict[str, Sequence[bool]], dict[str, float]]:
    """Add a row for each system; returns what was right and the tokens of a question, by system."""
    threshold = best_threshold(chosen.both)
    pairs = [(b.confidence, b.alone) for b in chosen.both if b.confidence is not None]
    scaling = fit_scaling(pairs)
    sure = [b.confidence is not None and b.confidence >= threshold for b in judged.both]
    pair = list(zip(judged.both, sure, strict=True))
    right: dict[str, Sequence[bool]] = {
        "student": [b.alone for b in judged.both],
        "amplified": [b.amplified for b in judged.both],
        "cascade": [b.alone if ok else b.amplified for b, ok in pair],
    }
    n = len(pair)
    tokens = {
        "student": sum(b.tokens_alone for b in judged.both) / n,
        "amplified": sum(b.tokens_amplified for b in judged.both) / n,
        "cascade": sum(b.tokens_alone + b.tokens_amplified * (not ok) for b, ok in pair) / n,
    }
    for key, marks in right.items():
        figures: dict[str, Any] = {
            "accuracy": round(sum(marks) / n, 3),
            "95%": [round(end, 3) for end in wilson(sum(marks), n)],
            "tokens": round(tokens[key], 1),
        }
        if key == "student":
            figures |= {
                "ECE": round(ece(judged.both, Scaling()), 3),
                "scaled": round(ece(judged.both, scaling), 3),
                "temperature": round(scaling.temperature, 2),
                "offset": round(scaling.offset, 2),
            }
            for name in MEASURES:
                values = [each[name] for each in judged.measures]
                area = ranked(values, marks)
                figures[f"AUROC of {name}"] = None if area is None else round(area, 3)
        if key == "cascade":
            figures |= {"threshold": round(threshold, 3), "deferred": round(1 - sum(sure) / n, 3)}
        report.rows.append({**about, "system": key, "n": n, **figures})
        print(report.rows[-1], flush=True)
    for point in cost_curve(judged.both, 10):
        report.rows.append(
            {
                **about, "system": "curve", "n": n, "accuracy": round(point.accuracy, 3),
                "tokens": round(point.tokens, 1), "deferred": round(point.deferred, 3),
                "threshold": point.threshold and round(point.threshold, 4),
            }
        )  # fmt: skip
    return right, tokens


def claims_of(
    name: str,
    right: Mapping[str, Sequence[bool]],
    tokens: Mapping[str, float],
    errors: tuple[float, float],
    seed: int,
) -> list[Claim]:
    """What the cascade of a task has to reach."""
    better = max(("student", "amplified"), key=lambda key: sum(right[key]))
    pairs = zip(right["cascade"], right[better], strict=True)
    gap = difference("", "", {str(index): [pair] for index, pair in enumerate(pairs)}, seed)
    low, high = gap.ci95
    return [
        Claim(f"{name}: cascade against {better}, the better of both, upper end of the difference",
              high, ">=", 0.0, gap.n, (low, high)),
        Claim(f"{name}: tokens of the cascade over the amplified system's",
              tokens["cascade"] / tokens["amplified"], "<=", 1.0, gap.n),
        Claim(f"{name}: calibration error after scaling less that before",
              errors[1] - errors[0], "<=", 0.0, gap.n),
    ]  # fmt: skip


async def measure(config: Config, client: ChatClient, folder: RunFolder, report: Report) -> None:
    """Every task with every seed."""
    model = model_name(folder.base)
    for name in config.tasks:
        for seed in config.seeds:
            label = f"{model}, {name}, seed {seed}"
            about = {"model": model, "task": name, "seed": seed}
            report.rows[:] = [row for row in report.rows if not about.items() <= row.items()]
            report.claims[:] = [each for each in report.claims if not each.name.startswith(label)]
            with scratch_context(client, seed) as base:
                student = await student_of(name, base, folder, config, seed)
                wanted = config.chosen + config.n
                texts = list(student.task.sample(wanted, student.level, "held_out", seed))
                chosen = await answers(student, texts[: config.chosen], "chosen")
                judged = await answers(student, texts[config.chosen :], "judged")
            right, tokens = rows_of(about, chosen, judged, report)
            last = next(row for row in report.rows if about.items() <= row.items())
            errors = last["ECE"], last["scaled"]
            report.claims += claims_of(label, right, tokens, errors, seed)
            if not config.quick:
                report.write()


def guess(request: ChatRequest) -> Completion:
    """A model that is sure of some questions, for smoke runs."""
    luck = random.Random(request.messages[-1][1])
    text = "".join(str(luck.randrange(2)) for _ in range(4))
    return Completion(text, 9, 2, logprobs=(TokenLogprob(text, math.log(luck.random() + 1e-9)),))


def main(config: Config) -> None:
    """Run and report."""
    report = Report("cascade", seed=config.seeds[0], quick=config.quick, more=config.more)

    async def run() -> None:
        async with scratch_run(config.model, 1024) as (folder, batched):
            client = ScriptedClient(guess) if config.quick else batched
            await measure(config, client, folder, report)

    asyncio.run(run())
    report.finish()


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=Config.seeds)
    parser.add_argument("-n", type=int, default=Config.n)
    parser.add_argument("--learned", type=int, default=Config.learned)
    parser.add_argument(
        "--more", action="store_true", help="keep figures of other models, tasks and seeds"
    )
    given = parser.parse_args()
    smoke = Config(8, 40, 4, model=SCRIPTED, quick=True)
    chosen = Config(
        given.n,
        learned=given.learned,
        tasks=given.tasks,
        seeds=given.seeds,
        model=given.model,
        more=given.more,
    )
    main(smoke if given.quick else chosen)
