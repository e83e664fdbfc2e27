"""`reflux eval`: any systems on any questions, side by side."""

import asyncio
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from reflux.agents.budget import Price
from reflux.agents.clients.endpoints import Endpoint, close_clients
from reflux.agents.errors import UsageError
from reflux.ask_context import OVERSEERS, overseer_named
from reflux.cli.ask import TaskName, batch_config, task_of
from reflux.cli.contract import OUT, RUNS, Depth, Json, Model, RunDir, emit, run_async
from reflux.cli.eval_systems import SystemSpecs, asks_x
from reflux.cli.human_input import interruptible
from reflux.cli.progress import ProgressView
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.evals.datasets import read_questions
from reflux.graphs.evals.eval_task import EvalTask, FileEvalTask, LevelEvalTask, Scorer
from reflux.graphs.evals.results import Results, results
from reflux.graphs.evals.runner import EQUAL_TOKENS, EvalRun, EvalRunner, Listener, system_names
from reflux.graphs.evals.user_code import OwnThreads, load_object
from reflux.graphs.voting.voting import VotePolicy
from reflux.models import open_run
from reflux.report.eval_tables import tables
from reflux.server.settings import config_endpoints, read_serve_config
from reflux.tasks import task_named

LEVEL, LIMIT, HIGHEST = 3, 200, 1000
"""Of a task: level and number of questions where none is named, and the highest level."""
MOST = 100_000
"""Questions of a task: more would be drawn for minutes before the first is asked."""
ALONE = ("model", "plain")
"""Overseers that wait for nobody."""


@dataclass(frozen=True)
class Settings:
    """What decides the answers beside the questions and the models."""

    depth: int = 1
    calls: int = 1000
    tokens: int = 1_000_000
    seconds: float | None = None
    overseer: str = ""
    """H of a file's questions; a task brings its own."""
    max_tokens: int = 0
    """Of an answer to a file's question; a task knows its own."""
    system: str = ""
    """The system message of a file."""

    def context(
        self, opened: OpenRun, model: str, seed: int, eval_task: EvalTask
    ) -> AmplifyContext:
        """The context of one system."""
        limits = Limits(
            depth=self.depth, calls=self.calls, tokens=self.tokens, seconds=self.seconds
        )
        context = AmplifyContext(opened.recorded_client, model, (), limits=limits, seed=seed)
        if self.overseer:
            context = replace(
                context,
                overseers=(overseer_named(self.overseer),),
                max_tokens=self.max_tokens,
                votes=VotePolicy(max_votes=1),
            )
        return eval_task.context(context)


@dataclass(frozen=True)
class Plan:
    """Who is asked what."""

    eval_task: EvalTask
    keys: Sequence[str]
    """Systems by name."""
    seeds: Sequence[int] = (1,)
    settings: Settings = Settings()
    prices: Mapping[str, Price] = field(default_factory=dict[str, Price])
    source: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Where the questions come from, for the report."""
    out: Path | None = None


def evaluate_systems(
    run: RunDir = RUNS / "demo",
    task: TaskName = None,
    level: Annotated[
        int | None,
        typer.Option(
            help=f"Of a task; for addition: digits. Default: {LEVEL}.", min=1, max=HIGHEST
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Questions and answers as JSONL, in place of a task.")
    ] = None,
    score: Annotated[
        str, typer.Option(help="exact, normalised, number, set, contains or module:function.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option(help=f"Questions. Default: {LIMIT}, all of a file.", min=1)
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
        list[int] | None, typer.Option(help="Of questions and samples; may be repeated.", min=0)
    ] = None,
    overseer: Annotated[str, typer.Option(help="H of a file's questions: model or plain.")] = "",
    depth: Depth = 1,
    calls: Annotated[int, typer.Option(help="Model calls a question.", min=1)] = 1000,
    tokens: Annotated[int, typer.Option(help="Tokens a question.", min=1)] = 1_000_000,
    seconds: Annotated[float | None, typer.Option(help="Seconds a question.", min=0)] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of an answer to a file's question.", min=1)
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(help="MODEL=PROMPT,COMPLETION for a million tokens; may be repeated."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML of `reflux serve`; its endpoints can be named.", metavar="FILE"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for eval.jsonl, eval.json and eval.html.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare systems on the same questions, with intervals, tests and prices."""
    folder, keys = RunFolder(run), system_names(systems)
    settings = Settings(depth, calls, tokens, seconds)
    if data is None:
        if score or overseer or max_tokens:
            raise UsageError(
                "--score, --overseer and --max-tokens are for --data: a task brings its own"
            )
        if limit is not None and limit > MOST:
            raise UsageError(f"--limit {limit} is more than the {MOST} questions of a task at most")
        name = task_of(folder, task)
        eval_task: EvalTask = LevelEvalTask(task_named(name), level or LEVEL, limit or LIMIT)
        source: dict[str, Any] = {"task": name, "level": level or LEVEL}
    else:
        if task or level:
            raise UsageError("--data brings its own questions: leave --task and --level out")
        with redirect_stdout(sys.stderr):
            eval_task = _file_exam(data, score or "normalised", limit)
        settings = replace(
            settings,
            overseer=_overseer(overseer),
            max_tokens=max_tokens or 256,
            system=eval_task.file.system,
        )
        source = {"data": str(data), "repeats": eval_task.file.repeats}
    seeds = tuple(dict.fromkeys(seed or [1]))
    prices = _prices(folder, price or [])
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # Before anything is asked that it could not hold.
    plan = Plan(eval_task, keys, seeds, settings, prices, source, out)
    endpoints = config_endpoints(read_serve_config(config))
    with redirect_stdout(sys.stderr):  # What graphs and scorers of the user's print is no result.
        found = run_async(_evaluate(folder, plan, model, endpoints))
    if as_json:
        emit(source | found.to_json())
        return
    for table in tables(found, source):
        OUT.print(table)
    if out is not None:
        OUT.print(f"every answer, the figures and a page with charts: {out}", soft_wrap=True)


def _file_exam(data: Path, score: str, limit: int | None) -> FileEvalTask:
    file = read_questions(data)
    scorer: Scorer | None = None
    if ":" in score:
        scorer, _ = load_object(score)
        if not callable(scorer):
            raise UsageError(
                f"{score} is no function; a scorer takes (question, answer, true answer) and says "
                "True or False"
            )
    return FileEvalTask(file, score, scorer, limit)


def _overseer(name: str) -> str:
    name = name or "model"
    if name in OVERSEERS and name not in ALONE:
        raise UsageError(
            f"--overseer {name} waits for a person, for whom an evaluation cannot wait; take "
            f"{' or '.join(ALONE)}"
        )
    overseer_named(name)
    return name


def _prices(folder: RunFolder, given: list[str]) -> Mapping[str, Price]:
    """Prices by model: those of the run's config, and those that are given.

    Raises:
        UsageError: one is no price.
    """
    prices = dict(folder.prices())
    for text in given:
        name, _, costs = text.rpartition("=")
        try:
            prompt, completion = map(float, costs.split(","))
        except ValueError:
            prompt = completion = math.nan
        if not name or not (0 <= prompt < math.inf and 0 <= completion < math.inf):
            raise UsageError(
                f"--price {text!r} is no price; write MODEL=PROMPT,COMPLETION, for example "
                "llama3.2=0.15,0.6 for a million tokens"
            )
        prices[name] = Price(prompt, completion)
    return prices


async def _evaluate(
    folder: RunFolder, plan: Plan, model: str | None, endpoints: Mapping[str, Endpoint]
) -> Results:
    # Graphs of the user's may block, and for ever.
    asyncio.get_running_loop().set_default_executor(OwnThreads())
    x_given = model if asks_x(plan.keys) else model or "base"
    opened, x = open_run(folder, x_given, batch_config(folder), endpoints)
    async with opened, AsyncExitStack() as stack:
        stack.push_async_callback(close_clients, [there.client for there in endpoints.values()])
        with ProgressView() as view:
            found = await compare(
                opened,
                plan,
                x,
                stack,
                lambda key, done, total: view(_stage(key, plan.keys), done, total, ""),
                frozenset(endpoints),
            )
        if plan.out is not None:
            from reflux.report.eval_page import write_report

            write_report(plan.out, found, plan.eval_task, opened.store, plan.source)
    return found


def _stage(key: str, named: Sequence[str]) -> str:
    """What is under way; a system that nobody named is a trial for `best-of-n`."""
    if key in named:
        return f"evaluate {key}"
    return f"equal tokens by {key.removeprefix('best-of-')} votes?"


async def compare(
    opened: OpenRun,
    plan: Plan,
    x: str,
    stack: AsyncExitStack,
    heard: Listener,
    endpoints: frozenset[str] = frozenset(),
) -> Results:
    """Have every named system sit the exam, and compare them; nothing recorded is asked again.

    Args:
        endpoints: names of models that `opened` knows beside those of the run.

    Raises:
        UsageError: there is no such system, or there are no questions.
        MissingError: a system needs an endpoint, and none is set.
        RefluxError: an endpoint, a graph or the scorer failed.
    """
    settings = vars(plan.settings)
    runner = EvalRunner(plan.eval_task, plan.seeds, opened.folder.name, settings, heard=heard)
    system_specs = SystemSpecs(
        opened,
        x,
        lambda name, seed: plan.settings.context(opened, name, seed, plan.eval_task),
        plan.eval_task.same_answer,
        stack,
        endpoints,
    )
    # All are made before the first is asked: a wrong name costs no call.
    made = {key: await system_specs.system_spec(key) for key in plan.keys if key != EQUAL_TOKENS}
    eval_runs: dict[str, EvalRun] = {
        key: await runner.run_system(system_spec) for key, system_spec in made.items()
    }
    equal = None
    if EQUAL_TOKENS in plan.keys:
        eval_runs[EQUAL_TOKENS], equal = await runner.run_at_equal_tokens(
            system_specs.best_of, eval_runs["amplified"]
        )
    ordered = {key: eval_runs[key] for key in plan.keys}
    with interruptible():  # A scorer may never end.
        return results(plan.eval_task, ordered, equal, opened.store, plan.prices, settings)
