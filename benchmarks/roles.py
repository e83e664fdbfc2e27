"""One adapter a role against one for all of them, and a flat student, at equal training tokens.

A script divides the questions, and the base answers the parts. Out of the same accepted trees learn

    flat    one adapter: a question and its answer
    one     one adapter: the parts, the combinations and the verdicts, told apart by their prompts
    each    an adapter for each of the three (answerer, aggregator, verifier), of the same rows

A third of the tokens is of each role. An arm is measured alone, asked the whole question in one
call, and as the amplified system that is made of it: the script divides, the adapter answers the
parts, and `H` combines, or the adapter combines (`own`) and judges (`judged`). `base` is what they
were made from.

Claims: no arm's amplified system is below its student alone, and one adapter a role is not below
one for all, by more than the 95% interval of the paired difference.
"""

import argparse
import asyncio
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from threading import Event
from typing import Any

from benchmarks.default_model import model_name
from benchmarks.report import Claim, Report
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.finetune.configs.run import BaseConfig, BatchedConfig, RoundsConfig, RoundSpec
from reflux.finetune.data.rows import Row, rows_digest, training_order
from reflux.finetune.distillation import StudentPlan, distill
from reflux.finetune.roles.adapters import with_roles
from reflux.finetune.roles.rows import TreeRole, rows_of_role
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.finetune.stages import Stages
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.ask import Amplified, Direct, System
from reflux.graphs.evals.metrics import Difference, difference, wilson
from reflux.graphs.voting.voting import VotePolicy
from reflux.tasks import task_named

ROLES: tuple[TreeRole, ...] = ("answerer", "aggregator", "verifier")
ARMS = ("base", "flat", "one", "each")
TASKS: Mapping[str, int] = {"multihop": 2, "family_relationships": 1}
"""Level by task: natural questions whose parts the model answers."""
Right = Mapping[str, bool]
"""Whether the answer is right, by question."""


@dataclass(frozen=True)
class Config:
    """One run."""

    tasks: Sequence[str] = tuple(TASKS)
    arms: Sequence[str] = ARMS
    trees: int = 300
    """Training questions."""
    tokens: int = 60_000
    """Of the rows that an arm trains on, prompts included, in all its adapters."""
    n: int = 200
    """Held-out questions."""
    seeds: Sequence[int] = (0,)
    model: str = ""
    """A base, by id or path; the default model where empty."""
    quick: bool = False
    more: bool = False
    """Keeps the last run's figures of other models, tasks, arms and seeds."""

    def rounds(self, task: str, seed: int) -> RoundsConfig:
        """One round, whose trees have votes on every part."""
        spec = RoundSpec(level=TASKS[task], questions=self.trees, held_out=self.n)
        return RoundsConfig(
            task=task, seed=seed, rounds=(spec,), base=BaseConfig(model=self.model),
            anchor=0 if self.quick else 32, votes=VotePolicy(margin=2, max_votes=5),
        )  # fmt: skip


def rows_of_arm(arm: str, stages: Stages) -> Mapping[str, Sequence[Row]]:
    """The rows that an arm learns, by role; a role without rows has none."""
    if arm == "flat":
        return {"flat": stages.rows(1)[1]}
    found: dict[str, Sequence[Row]] = {}
    for role in ROLES:
        try:
            made = rows_of_role(role, stages.run.store, stages.task, stages.task.tools())
        except UsageError as error:
            print(f"{stages.task.name}, {arm}: {error}", flush=True)
        else:
            found[role] = made.rows
    return found


def filled(rows: Sequence[Row], tokens: Sequence[int], budget: int, seed: int) -> list[Row]:
    """As many rows as a budget of tokens takes, in an order that the seed decides, epoch after
    epoch."""
    of = {id(row): n for row, n in zip(rows, tokens, strict=True)}
    chosen: list[Row] = []
    epochs = (training_order(rows, seed + 1000 * epoch) for epoch in count())
    for row in chain.from_iterable(epochs):
        if budget <= 0:
            break
        chosen.append(row)
        budget -= of[id(row)]
    return chosen


def lengths(stages: Stages, rows: Sequence[Row]) -> list[int]:
    """Tokens of each row, prompt and completion."""
    from reflux.finetune.base_model import load_tokenizer
    from reflux.finetune.train.dataset import measure_rows

    base = stages.run.folder.base
    tokenizer = load_tokenizer(base.folder, base.config)
    return list(measure_rows([row.train() for row in rows], tokenizer, None).tokens)


async def train(arm: str, config: Config, stages: Stages) -> dict[str, str]:
    """The students of an arm, by role; their rows have the budget's tokens together."""
    if arm == "base":
        return dict.fromkeys(ROLES, "base")
    registry, seed = stages.run.folder.registry, stages.config.seed
    by_role = rows_of_arm(arm, stages)
    budget = config.tokens // len(by_role)
    adapters = {
        role: filled(rows, lengths(stages, rows), budget, seed) for role, rows in by_role.items()
    }
    if arm == "one":
        adapters = {"one": training_order([r for rows in adapters.values() for r in rows], seed)}
    names: dict[str, str] = {}
    for role, chosen in adapters.items():
        name = names[role] = f"{arm}-{role}"
        settings = stages.config.distillation(stages.spec(1))
        trained = [row.train() for row in chosen]
        plan = StudentPlan(name, trained, rows_digest(chosen), settings)
        await asyncio.to_thread(distill, registry, plan, lambda *_: None, Event())
        await stages.run.load(name)
    if arm in ("flat", "one"):
        return dict.fromkeys(ROLES, names[arm])
    return {role: names.get(role, "base") for role in ROLES}


def systems_of(arm: str, students: Mapping[str, str], stages: Stages) -> dict[str, System]:
    """The student alone, and the amplified systems that are made of an arm."""
    context = stages.context(students["answerer"])
    own = with_roles(context, {"aggregator": students["aggregator"]})
    judged = with_roles(own, {"verifier": students["verifier"]})
    contexts: dict[str, AmplifyContext] = {"H": context, "own": own, "judged": judged}
    amplified = {name: Amplified(each) for name, each in contexts.items()}
    if arm == "base":
        del amplified["own"], amplified["judged"]
    return {"alone": Direct(context), **amplified}


async def measure(config: Config, task: str, seed: int, report: Report) -> dict[str, Right]:
    """Every arm on one task; whether each answer is right, by arm and system."""
    marks: dict[str, Right] = {}
    async with open_stages(config, task, seed) as stages:
        base = model_name(stages.run.folder.base) if not config.quick else "script"
        again = (base, task, seed)
        report.rows[:] = [
            row
            for row in report.rows
            if (row["model"], row["task"], row["seed"]) != again or row["arm"] not in config.arms
        ]
        made = await stages.amplify(1, "base")
        print(f"{task}, seed {seed}: {made}", flush=True)
        questions = stages.held_out(1)
        for arm in config.arms:
            students = await train(arm, config, stages)
            for name, system in systems_of(arm, students, stages).items():
                source = stages.source(1, f"{arm}-{name}", "held_out")
                outcomes = await stages.answers(system, source, questions, arm)
                right = {
                    question: bool(outcome["answer"])
                    and stages.task.score(question, str(outcome["answer"]))
                    for question, outcome in zip(questions, outcomes, strict=True)
                }
                marks[f"{arm}, {name}"] = right
                n, k = len(right), sum(right.values())
                row: dict[str, Any] = {"model": base, "task": task, "seed": seed, "arm": arm}
                row |= {"system": name, "accuracy": round(k / n, 3)}
                row |= {"95%": [round(end, 3) for end in wilson(k, n)], "n": n}
                row["calls"] = round(sum(o["spent"]["calls"] for o in outcomes) / n, 2)
                report.rows.append(row)
                print(row, flush=True)
            if not config.quick:
                report.write()
    return marks


def claims_of(model: str, task: str, runs: Sequence[Mapping[str, Right]]) -> list[Claim]:
    """Paired differences over all seeds."""
    pairs = [(f"{arm}, own", f"{arm}, alone") for arm in ("flat", "one", "each")]
    pairs += [("each, own", "one, own"), ("each, judged", "each, own")]
    found: list[Claim] = []
    for one, other in pairs:
        if all({one, other} <= marks.keys() for marks in runs):
            gap = gap_of(one, other, runs)
            low, high = gap.ci95
            name = f"{model}, {task}: {one} against {other}, upper end of the difference"
            found.append(Claim(name, high, ">=", 0.0, gap.n, (low, high)))
    return found


def gap_of(one: str, other: str, runs: Sequence[Mapping[str, Right]]) -> Difference:
    """The paired difference of two systems on the same questions."""
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    for marks in runs:
        for question, right in marks[one].items():
            pairs.setdefault(question, []).append((right, marks[other][question]))
    return difference("", "", pairs, 0)


@asynccontextmanager
async def open_stages(config: Config, task: str, seed: int) -> AsyncGenerator[Stages]:
    """The stages of a scratch run."""
    client = ScriptedClient(lambda request: "Paris") if config.quick else None
    rounds = config.rounds(task, seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch), rounds.base)
        async with OpenRun(folder, BatchedConfig(context=1024), client) as run:
            yield Stages(rounds, task_named(task), run, lambda *_: None)


def main(config: Config) -> None:
    """Run and report."""
    report = Report("roles", seed=config.seeds[0], quick=config.quick, more=config.more)

    async def run() -> None:
        for task in config.tasks:
            runs = [await measure(config, task, seed, report) for seed in config.seeds]
            made = claims_of(report.rows[-1]["model"], task, runs)
            again = {claim.name for claim in made}
            report.claims[:] = [claim for claim in report.claims if claim.name not in again]
            report.claims += made

    asyncio.run(run())
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run without a model")
    parser.add_argument("--model", default="", help="a base; the default model without it")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--trees", type=int, default=Config.trees, help="training questions")
    parser.add_argument("--tokens", type=int, default=Config.tokens, help="of an arm's rows")
    parser.add_argument("-n", type=int, default=Config.n, help="held-out questions")
    parser.add_argument("--more", action="store_true", help="keep figures of other runs")
    given = vars(parser.parse_args())
    quick = Config(arms=("base",), tasks=("multihop",), trees=3, n=3, quick=True)
    main(quick if given.pop("quick") else Config(**given))
