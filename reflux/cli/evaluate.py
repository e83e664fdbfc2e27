"""`reflux eval`: any systems on any questions, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reflux import cli
from reflux.cli.contract import DEFAULT_RUN, Depth, Json, Model, RunDir, TaskName, run_async

if TYPE_CHECKING or not cli.SHOWS_HELP:
    import asyncio
    import math
    import sys
    from contextlib import AsyncExitStack, redirect_stdout

    from reflux.agents.budget import Price
    from reflux.agents.clients.endpoints import Endpoint, close_clients
    from reflux.agents.errors import UsageError
    from reflux.ask_context import MAX_TOKENS, OVERSEERS, overseer_named, with_max_tokens
    from reflux.cli.ask import batch_config, task_of
    from reflux.cli.eval_systems import SystemSpecs, uses_agent
    from reflux.cli.human_input import interruptible
    from reflux.cli.progress import ProgressView
    from reflux.finetune.run_folder import OpenRun, RunFolder
    from reflux.graphs.amplify.context import AmplifyContext, Limits
    from reflux.graphs.evals.datasets import read_questions
    from reflux.graphs.evals.eval_task import EvalTask, FileEvalTask, LevelEvalTask, Scorer
    from reflux.graphs.evals.results import Results, results
    from reflux.graphs.evals.runner import EQUAL_TOKENS, EvalRunner, Listener, parse_systems
    from reflux.graphs.evals.user_code import OwnThreads, load_object
    from reflux.graphs.voting.voting import VotePolicy
    from reflux.models import open_run
    from reflux.report.eval_tables import tables
    from reflux.report.terminal import OUT, emit, say
    from reflux.server.settings import config_endpoints, read_serve_config
    from reflux.tasks import task_named

LEVEL, LIMIT = 3, 200
"""Default level and number of questions of a task."""
MAX_LEVEL = 1000
MAX_LIMIT = 100_000
"""Maximum questions of a task: sampling more takes minutes."""
AUTOMATIC = ("model", "plain")
"""Overseers without human input."""


@dataclass(frozen=True)
class Settings:
    """Settings that decide the answers, besides the questions and the models."""

    depth: int = 1
    calls: int = 1000
    tokens: int = 1_000_000
    seconds: float | None = None
    overseer: str = ""
    """Of a file's questions; a task has its own."""
    max_tokens: int = 0
    """Of an answer to a file's question; a task has its own limit."""
    system: str = ""
    """The system message of a file."""

    def context(
        self, opened: OpenRun, model: str, seed: int, eval_task: EvalTask
    ) -> AmplifyContext:
        """The context of one system."""
        limits = Limits(self.depth, calls=self.calls, tokens=self.tokens, seconds=self.seconds)
        context = AmplifyContext(opened.recorded_client, model, (), limits=limits, seed=seed)
        if self.overseer:
            context = replace(
                context,
                overseers=(with_max_tokens(overseer_named(self.overseer), self.max_tokens),),
                max_tokens=self.max_tokens,
                votes=VotePolicy(max_votes=1),
            )
        return eval_task.context(context)


@dataclass(frozen=True)
class Plan:
    """One evaluation: the eval task and the systems."""

    eval_task: EvalTask
    keys: Sequence[str]
    """Names of the systems."""
    seeds: Sequence[int] = (1,)
    settings: Settings = Settings()
    prices: Mapping[str, Price] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Where the questions come from, for the report."""
    out: Path | None = None


def evaluate_systems(
    run: RunDir = DEFAULT_RUN,
    task: TaskName = None,
    level: Annotated[
        int | None,
        typer.Option(
            help=f"Level of the task; for addition, digits. Default: {LEVEL}.", min=1, max=MAX_LEVEL
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="JSONL file of questions and answers, instead of a task.")
    ] = None,
    score: Annotated[
        str, typer.Option(help="exact, normalised, number, set, contains or module:function.")
    ] = "",
    limit: Annotated[
        int | None,
        typer.Option(help=f"Maximum questions. Default: {LIMIT}, or the whole file.", min=1),
    ] = None,
    systems: Annotated[
        str,
        typer.Option(
            help="Comma-separated: direct, amplified, student-rN, best-of-n, best-of-8, "
            "endpoint:MODEL, module:graph."
        ),
    ] = "direct,amplified",
    model: Model = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Seed of questions and samples; may be repeated.", min=0),
    ] = None,
    overseer: Annotated[
        str, typer.Option(help="Overseer of a file's questions: model or plain.")
    ] = "",
    depth: Depth = 1,
    calls: Annotated[int, typer.Option(help="Maximum model calls of a question.", min=1)] = 1000,
    tokens: Annotated[int, typer.Option(help="Maximum tokens of a question.", min=1)] = 1_000_000,
    seconds: Annotated[
        float | None, typer.Option(help="Maximum seconds of a question.", min=0)
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Maximum tokens of a reply, of the agent and the overseer alike.", min=1),
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(help="MODEL=PROMPT,COMPLETION for a million tokens; may be repeated."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML of `reflux serve`, whose endpoints can be named.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for eval.jsonl, eval.json and eval.html.", metavar="DIR"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare systems on the same questions, with intervals, tests and prices."""
    folder, keys = RunFolder(run), parse_systems(systems)
    settings = Settings(depth, calls, tokens, seconds)
    if data is None:
        if score or overseer or max_tokens:
            raise UsageError(
                "--score, --overseer and --max-tokens are for --data: a task has its own"
            )
        if limit is not None and limit > MAX_LIMIT:
            raise UsageError(f"--limit {limit} is more than {MAX_LIMIT}, the maximum for a task")
        name = task_of(folder, task)
        eval_task: EvalTask = LevelEvalTask(task_named(name), level or LEVEL, limit or LIMIT)
        source: dict[str, Any] = {"task": name, "level": level or LEVEL}
    else:
        if task or level:
            raise UsageError("--data has its own questions: leave --task and --level out")
        with redirect_stdout(sys.stderr):
            eval_task = _file_eval_task(data, score or "normalised", limit)
        settings = replace(
            settings,
            overseer=_overseer(overseer),
            max_tokens=max_tokens or MAX_TOKENS,
            system=eval_task.file.system,
        )
        source = {"data": str(data), "repeats": eval_task.file.repeats}
    seeds = tuple(dict.fromkeys(seed or [1]))
    prices = _prices(folder, price or [])
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # Fails before the first call.
    plan = Plan(eval_task, keys, seeds, settings, prices, source, out)
    endpoints = config_endpoints(read_serve_config(config))
    with redirect_stdout(sys.stderr):  # Output of the user's graphs and scorers is no result.
        results = run_async(_evaluate(folder, plan, model, endpoints))
    if as_json:
        emit(source | results.to_json())
        return
    for table in tables(results, source):
        OUT.print(table)
    if out is not None:
        say(f"answers, figures and a page with charts: {out}")


def _file_eval_task(data: Path, score: str, limit: int | None) -> FileEvalTask:
    file = read_questions(data)
    scorer: Scorer | None = None
    if ":" in score:
        scorer, _ = load_object(score)
        if not callable(scorer):
            raise UsageError(
                f"{score} is no function; a scorer takes (question, answer, true answer) and "
                "returns True or False"
            )
    return FileEvalTask(file, score, scorer, limit)


def _overseer(name: str) -> str:
    name = name or "model"
    if name in OVERSEERS and name not in AUTOMATIC:
        raise UsageError(
            f"--overseer {name} waits for human input, for which an evaluation cannot wait; use "
            f"{' or '.join(AUTOMATIC)}"
        )
    overseer_named(name)
    return name


def _prices(folder: RunFolder, texts: list[str]) -> Mapping[str, Price]:
    """Prices by model: those of the run's config and of --price.

    Raises:
        UsageError: one is invalid.
    """
    prices = dict(folder.prices())
    for text in texts:
        name, _, costs = text.rpartition("=")
        try:
            prompt, completion = map(float, costs.split(","))
        except ValueError:
            prompt = completion = math.nan
        if not name or not (0 <= prompt < math.inf and 0 <= completion < math.inf):
            raise UsageError(
                f"--price {text!r} is invalid; write MODEL=PROMPT,COMPLETION, for example "
                "llama3.2=0.15,0.6 for a million tokens"
            )
        prices[name] = Price(prompt, completion)
    return prices


async def _evaluate(
    folder: RunFolder, plan: Plan, model: str | None, endpoints: Mapping[str, Endpoint]
) -> Results:
    # The user's graphs may block, even forever.
    asyncio.get_running_loop().set_default_executor(OwnThreads())
    name = model if uses_agent(plan.keys) else model or "base"
    opened, agent = open_run(folder, name, batch_config(folder), endpoints)
    async with opened, AsyncExitStack() as stack:
        stack.push_async_callback(close_clients, [each.client for each in endpoints.values()])
        with ProgressView() as view:

            def show(key: str, done: int, total: int) -> None:
                # Another system is a trial for best-of-n.
                trial = f"equal tokens by {key.removeprefix('best-of-')} votes?"
                view(f"evaluate {key}" if key in plan.keys else trial, done, total, "")

            outcome = await compare(opened, plan, agent, stack, show, frozenset(endpoints))
        if plan.out is not None:
            from reflux.report.eval_page import write_report

            write_report(plan.out, outcome, plan.eval_task, opened.store, plan.source)
    return outcome


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
    settings = vars(plan.settings)
    runner = EvalRunner(plan.eval_task, plan.seeds, opened.folder.id, settings, listener=listener)
    systems = SystemSpecs(
        opened,
        agent,
        lambda name, seed: plan.settings.context(opened, name, seed, plan.eval_task),
        plan.eval_task.same_answer,
        stack,
        endpoints,
    )
    # All are made before the first call: a wrong name costs nothing.
    specs = {key: await systems.system_spec(key) for key in plan.keys if key != EQUAL_TOKENS}
    eval_runs = {key: await runner.run_system(spec) for key, spec in specs.items()}
    equal = None
    if EQUAL_TOKENS in plan.keys:
        eval_runs[EQUAL_TOKENS], equal = await runner.run_at_equal_tokens(
            systems.best_of, eval_runs["amplified"]
        )
    ordered = {key: eval_runs[key] for key in plan.keys}
    with interruptible():  # A scorer may never return.
        return results(plan.eval_task, ordered, equal, opened.store, plan.prices, settings)
