"""One evaluation as a plan, and how it is run: all questions, or as many as decide."""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from reflux.agents.budget import Price
from reflux.agents.overseers.demonstrations import Demonstrations
from reflux.agents.policy.policy import Policy
from reflux.agents.tools.protocol import Grants
from reflux.ask_context import open_tools
from reflux.cli.contract import MARGIN, limits_of
from reflux.cli.evaluation.systems import SystemSpecs
from reflux.cli.human_input import interruptible
from reflux.finetune.learned_overseer import resolved
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.weighing import Weighing
from reflux.graphs.evals.decisions import Decision
from reflux.graphs.evals.eval_task import EvalTask
from reflux.graphs.evals.results import Grading, Results
from reflux.graphs.evals.runner import (
    EQUAL_TOKENS,
    EvalRun,
    EvalRunner,
    JudgeRun,
    Listener,
    SystemSpec,
    marks_of,
)
from reflux.graphs.external.user_graph import UserGraph
from reflux.graphs.voting.voting import VotePolicy
from reflux.overseers import overseer_named, with_demos, with_max_tokens
from reflux.routing import check_not_routed_by, route_of, routed

FIRST_LOOK, LOOK_GROWTH = 20, 1.25
"""Questions before --until-decided looks for the first time, and how many times more from look to
look."""
JUDGED_AT_ONCE = 32
ADDED = ("candidates", "route", "policy")
"""Settings that answers of earlier versions were recorded without."""
NONE: Grants = {}


@dataclass(frozen=True)
class Settings:
    """Settings that decide the answers, besides the questions and the models."""

    depth: int = 1
    calls: int = 1000
    tokens: int = 1_000_000
    seconds: float | None = None
    overseer: str = ""
    """Of a file's questions; a task has its own."""
    candidates: int = 0
    """Decompositions to weigh against the direct answer; 0: the overseer's answer stands."""
    route: Mapping[str, str] = field(default_factory=dict[str, str])
    """The evaluation that decides what is divided, as `AskOptions` record it."""
    max_tokens: int = 0
    """Of an answer to a file's question; a task has its own limit."""
    system: str = ""
    """The system message of a file."""
    policy: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What untrusted text may reach, as `AskOptions` record it."""

    def recorded(self) -> dict[str, Any]:
        """The settings as the answers record them. Those that answers of before they existed lack
        are left out where they change nothing, so that such answers are found."""
        return {k: v for k, v in vars(self).items() if v or k not in ADDED}

    def context(
        self,
        opened: OpenRun,
        model: str,
        seed: int,
        eval_task: EvalTask,
        grants: Grants = NONE,
        demos: Demonstrations | None = None,
    ) -> AmplifyContext:
        """The context of one system; `demos` are the overseer's."""
        limits = limits_of(self.depth, self.calls, self.tokens, self.seconds, self.candidates)
        context = AmplifyContext(
            opened.recorded_client,
            model,
            (),
            limits=limits,
            seed=seed,
            weighing=Weighing.of(self.candidates),
            policy=Policy.of(self.policy or None),
        )
        if self.overseer:
            overseer = with_demos(overseer_named(self.overseer), demos)
            context = replace(
                context,
                overseers=(with_max_tokens(overseer, self.max_tokens),),
                max_tokens=self.max_tokens,
                votes=VotePolicy(max_votes=1),
            )
        context = eval_task.context(context).granting(grants)
        context = replace(context, overseers=resolved(opened, context.overseers))
        return routed(context, route_of(self.route))


@dataclass(frozen=True)
class Plan:
    """One evaluation: the eval task and the systems."""

    eval_task: EvalTask
    keys: Sequence[str]
    """Names of the systems."""
    seeds: Sequence[int] = (1,)
    settings: Settings = Settings()
    prices: Mapping[str, Price] = field(default_factory=dict[str, Price])
    source: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Where the questions come from, for the report."""
    out: Path | None = None
    graphs: Mapping[str, UserGraph] = field(default_factory=dict[str, UserGraph])
    """The users' graphs among the systems."""
    concurrency: int | None = None
    """Questions at a time; None: as many as suit each system."""
    tools: Sequence[str] = ()
    """Of the copies."""
    code: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Digests of the user's own task, overseer and tools, which decide the answers, too."""
    pairs: Sequence[tuple[str, str]] = ()
    """Systems to decide between; empty for all pairs."""
    margin: float = MARGIN
    until_decided: bool = False
    again: bool = False
    inspect_log: Path | None = None
    demos: Demonstrations | None = None
    """Of the overseer of a file's questions."""

    @property
    def decided(self) -> Sequence[tuple[str, str]]:
        """The pairs to decide between: each system against those named before it."""
        return self.pairs or [(second, first) for first, second in combinations(self.keys, 2)]


async def compare(
    opened: OpenRun,
    plan: Plan,
    agent: str,
    stack: AsyncExitStack,
    listener: Listener,
    endpoints: frozenset[str] = frozenset(),
) -> Results:
    """Run every system on the eval task and compare them; recorded answers are replayed.

    `endpoints` are the names of the models of --config.

    Raises:
        UsageError: there is no such system, or there are no questions.
        MissingError: a system needs an endpoint, and none is set.
        RefluxError: an endpoint, a graph or the scorer failed.
    """
    grants = await stack.enter_async_context(open_tools(plan.tools))
    eval_task, settings = plan.eval_task, {**plan.settings.recorded(), **plan.code}
    if plan.demos is not None:
        settings["demos"] = plan.demos.digest
    router = route_of(plan.settings.route)
    for seed in plan.seeds if router else ():
        check_not_routed_by(router, eval_task.questions(seed))
    runner = EvalRunner(
        eval_task, plan.seeds, opened.folder.id, settings,
        max_concurrency=plan.concurrency, listener=listener, again=plan.again,
        shuffled=plan.until_decided,
    )  # fmt: skip
    systems = SystemSpecs(
        opened,
        agent,
        lambda name, seed: plan.settings.context(opened, name, seed, eval_task, grants, plan.demos),
        eval_task.same_answer,
        stack,
        endpoints,
        plan.graphs,
    )
    # All are made before the first call: a wrong name costs nothing.
    specs = {key: await systems.system_spec(key) for key in plan.keys if key != EQUAL_TOKENS}
    judge = None
    if eval_task.judge:
        spec = await systems.judge_spec(eval_task.judge)
        context = spec.make(0).context
        limit = plan.concurrency or JUDGED_AT_ONCE
        judge = JudgeRun(eval_task, opened.folder.id, context, spec.digest, limit, listener)
    grading = Grading(eval_task, opened.store, plan.prices, marks_of(eval_task, judge))
    record: dict[str, dict[str, int]] = {}

    async def run(key: str, eval_run: EvalRun) -> EvalRun:
        """Score the answers of one system."""
        counts = eval_run.record(opened.store)
        before = record.get(key, {"answers": 0, "recorded": 0})
        sums = {name: before[name] + counts[name] for name in before if name != "retries"}
        record[key] = counts | sums
        if judge is not None:
            await judge.grade(key, eval_run.seed_results)
        with interruptible():  # A scorer may never return.
            grading.add(key, eval_run.seed_results)
        return eval_run

    models = {key: specs[key].model if key in specs else agent for key in plan.keys}
    equal = None
    if plan.until_decided:
        decisions = await _until_decided(plan, specs, runner, grading, run)
    else:
        eval_runs = {
            key: await run(key, await runner.run_system(spec)) for key, spec in specs.items()
        }
        if EQUAL_TOKENS in plan.keys:
            best, equal = await runner.run_at_equal_tokens(systems.best_of, eval_runs["amplified"])
            await run(EQUAL_TOKENS, best)
        decisions = grading.decisions(plan.decided, plan.margin, anytime=False)
    return grading.results(
        models, equal=equal, decisions=decisions, record=record, settings=settings
    )


async def _until_decided(
    plan: Plan,
    specs: Mapping[str, SystemSpec],
    runner: EvalRunner,
    grading: Grading,
    run: Callable[[str, EvalRun], Awaitable[EvalRun]],
) -> list[Decision]:
    """Ask more and more questions until all pairs are decided, or there are no more."""
    total = max(len(runner.questions(seed)) for seed in plan.seeds)
    pairs, asked = plan.decided, 0
    while True:
        end = min(total, max(FIRST_LOOK, math.ceil(asked * LOOK_GROWTH)))
        for key, spec in specs.items():
            await run(key, await runner.run_system(spec, asked, end))
        asked = end
        decisions = grading.decisions(pairs, plan.margin, anytime=True)
        if asked == total or all(each.verdict != "undecided" for each in decisions):
            return decisions
