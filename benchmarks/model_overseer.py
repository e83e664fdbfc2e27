"""A prompted model as overseer of itself: what each part of "do no harm" is worth, at what price.

On natural questions (`benchmarks.natural_tasks`) one model is agent and overseer:

    direct       the agent alone, greedy
    best-of-n    the majority of n answers of the agent, at the tokens of `weighed`
    bare         the overseer's answer stands, whatever it asked
    held         its decompositions are checked before they are asked
    weighed      and the direct answer is outvoted only by decompositions that agree
    demos        and its examples are the nearest of a script's steps on training questions
    plan         the same, with all steps in one reply of numbered lines
    other-demos  as `plan`, with the scripts of all other tasks
    scripted     the task's own script as overseer, where it has one

The last four may send sub-questions to the tools of a script, a calculator and Python.

Claims: all from `weighed` on are nowhere below `direct` by more than the 95% interval of the paired
difference.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.default_model import SCRIPTED, open_model
from benchmarks.natural_tasks import Natural, natural_tasks
from benchmarks.report import Claim, Report
from reflux.agents.clients.endpoints import CachedClient
from reflux.agents.overseers.demonstrations import Demonstration, Demonstrations
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.types import ChatClient
from reflux.finetune.data.demonstrations import from_record
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.amplify.weighing import Weighing
from reflux.graphs.ask import Amplified, Direct, Origin, System, answer_all
from reflux.graphs.evals.best_of import BestOf
from reflux.graphs.evals.metrics import Difference, difference, wilson
from reflux.graphs.evals.task import task_context
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree
from reflux.graphs.voting.voting import VotePolicy
from reflux.tasks.gym import GymTask

MAX_VOTES = 16
TOKENS = 200
"""Of a reply of the overseer."""
WITH_DEMOS = ("demos", "plan", "other-demos")
ARMS = ("direct", "bare", "held", "weighed", "best-of-n", *WITH_DEMOS, "scripted")
DEMONSTRATIONS = 100
"""Of each task's script, on training questions."""
CAREFUL = ("weighed", *WITH_DEMOS)
"""Arms that must not be below `direct`."""


@dataclass(frozen=True)
class Config:
    """One run."""

    n: int = 200
    """Questions of each task."""
    tasks: Sequence[str] = tuple(natural_tasks())
    arms: Sequence[str] = ARMS
    model: str = "default"
    """`default`, `scripted`, or a GGUF."""
    seed: int = 0
    quick: bool = False


@dataclass(frozen=True)
class Done:
    """One arm's result."""

    right: Mapping[str, bool]
    """By question."""
    calls: float
    """Calls a question, those from the cache included."""
    tokens: float
    """Tokens a question."""
    undivided: float
    """Share of the questions that the overseer left to the agent."""
    seconds: float


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
    _made: dict[str, Sequence[Demonstration]] = field(default_factory=dict[str, Any])

    async def of(self, arm: str, name: str) -> Demonstrations | None:
        """Those of an arm on the task of this name; None where there are none."""
        items: list[Demonstration] = []
        for other, natural in natural_tasks().items():
            if natural.scripted and (other == name) != (arm == "other-demos"):
                if other not in self._made:
                    self._made[other] = await self._make(natural)
                items += self._made[other]
        return Demonstrations(tuple(items)) if items else None

    async def _make(self, natural: Natural) -> Sequence[Demonstration]:
        questions = natural.task.sample(DEMONSTRATIONS, natural.level, "train", self.seed)
        with scratch_context(self.client, self.seed) as base:
            system = Amplified(task_context(base, natural.task))
            origin = Origin("scripts", 0, "scripted", natural.task.name, "train")
            await answer_all(system, origin, questions)
            store = base.recorded_client.store
            return from_record(store, len(questions), True, lambda _: False).items


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
    overseer = ModelOverseer(max_tokens=TOKENS, validate=arm != "bare")
    if arm in WITH_DEMOS:
        demos = await scripts.of(arm, name)
        if demos is None:
            return None
        overseer = replace(overseer, demos=demos)
        if arm != "demos":
            overseer = replace(overseer, form="lines", plan=True)
        context = replace(context, tools=task.tools())
    weighing = Weighing() if arm in CAREFUL else None
    return Amplified(replace(context, overseers=(overseer,), weighing=weighing))


async def done(arm: str, natural: Natural, system: System, questions: Sequence[str]) -> Done:
    """One arm's answers to all questions."""
    begun = time.perf_counter()
    origin = Origin("model_overseer", 0, arm, natural.task.name, "asked")
    outcomes = await answer_all(system, origin, questions)
    store, n = system.context.recorded_client.store, len(questions)
    undivided = sum(
        not any(node.children for node in load_tree(store, origin.question_id(q)).walk())
        for q in questions
    )
    return Done(
        {
            q: o["answer"] is not None and natural.task.score(q, o["answer"])
            for q, o in zip(questions, outcomes, strict=True)
        },
        sum(o["spent"]["calls"] for o in outcomes) / n,
        sum(o["spent"]["tokens"] for o in outcomes) / n,
        undivided / n,
        time.perf_counter() - begun,
    )


async def measure(config: Config, client: ChatClient, report: Report) -> None:
    """Every arm on every task; each arm has a cache of its own."""
    tasks, scripts = natural_tasks(), Scripts(client, config.seed)
    for name in config.tasks:
        natural, votes, arms = tasks[name], 1, dict[str, Done]()
        questions = natural.task.sample(config.n, natural.level, "held_out", config.seed)
        for arm in config.arms:
            with scratch_context(client, config.seed) as base:
                system = await system_of(arm, name, base, votes, scripts)
                if system is None:
                    continue
                arms[arm] = result = await done(arm, natural, system, questions)
            if arm == "weighed" and "direct" in arms:
                votes = max(1, min(MAX_VOTES, round(result.tokens / arms["direct"].tokens)))
            report.rows.append(row_of(name, arm, arms, votes, config.seed))
            print(report.rows[-1], flush=True)
        for arm in CAREFUL:
            if arm in arms and "direct" in arms:
                gap = gap_of(arms[arm], arms["direct"], config.seed)
                low, high = gap.ci95
                report.claims.append(
                    Claim(f"{name}: {arm} against direct, upper end of the difference",
                          high, ">=", 0.0, gap.n, (low, high))
                )  # fmt: skip


def gap_of(one: Done, other: Done, seed: int) -> Difference:
    """The paired difference of two arms on the same questions."""
    return difference("", "", {q: [(one.right[q], other.right[q])] for q in one.right}, seed)


def row_of(task: str, arm: str, arms: Mapping[str, Done], votes: int, seed: int) -> dict[str, Any]:
    """One row of the table."""
    result, n = arms[arm], len(arms[arm].right)
    right = sum(result.right.values())
    row: dict[str, Any] = {
        "task": task,
        "arm": f"best-of-{votes}" if arm == "best-of-n" else arm,
        "n": n,
        "accuracy": round(right / n, 3),
        "95%": [round(end, 3) for end in wilson(right, n)],
    }
    if arm != "direct" and "direct" in arms:
        gap = gap_of(result, arms["direct"], seed)
        row |= {"minus direct": round(gap.value, 3), "its 95%": [round(x, 3) for x in gap.ci95]}
    return row | {
        "calls": round(result.calls, 2),
        "tokens": round(result.tokens),
        "undivided": round(result.undivided, 2),
        "seconds": round(result.seconds, 1),
    }


def main(config: Config) -> None:
    """Run and report."""
    report = Report("model_overseer", seed=config.seed, quick=config.quick)

    async def run() -> None:
        client = open_model(config.model, context=2048)
        try:
            await measure(config, client, report)
        finally:
            await client.close()

    asyncio.run(run())
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run without a model")
    parser.add_argument("--model", default="default", help="a GGUF; the default model without it")
    parser.add_argument("--tasks", nargs="+", choices=list(natural_tasks()))
    parser.add_argument("--arms", nargs="+", choices=ARMS)
    parser.add_argument("-n", type=int, default=200)
    given = parser.parse_args()
    chosen = Config(given.n, given.tasks or Config.tasks, given.arms or ARMS, given.model)
    main(Config(n=2, model=SCRIPTED, quick=True) if given.quick else chosen)
