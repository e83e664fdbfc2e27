"""`reflux eval`: any systems on any questions, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reflux import cli
from reflux.cli.contract import (
    DEFAULT_RUN,
    MARGIN,
    Again,
    BaseName,
    Candidates,
    Concurrency,
    Configurable,
    Demos,
    Depth,
    GraphContext,
    InputKey,
    Json,
    Model,
    OutputKey,
    Policy,
    Route,
    RunDir,
    TaskName,
    TimeLimit,
    Tools,
    folder_of,
    run_async,
)

if TYPE_CHECKING or not cli.SHOWS_HELP:
    import os
    import sys
    from contextlib import AsyncExitStack, redirect_stdout

    from reflux.agents.clients.endpoints import Endpoint, close_clients
    from reflux.agents.errors import RefluxError, UsageError
    from reflux.ask_context import MAX_TOKENS
    from reflux.cli.ask import batch_config
    from reflux.cli.evaluation import replay as replays
    from reflux.cli.evaluation.inputs import file_task_of, overseer_of, pairs_of
    from reflux.cli.evaluation.plan import Plan, Settings, compare
    from reflux.cli.evaluation.systems import (
        code_of,
        graph_options_of,
        load_graphs,
        price_hints,
        prices_of,
        record_lines,
        say_limits,
        uses_agent,
    )
    from reflux.cli.human_input import interruptible
    from reflux.cli.progress import ProgressView
    from reflux.file_options import recorded_policy
    from reflux.finetune.run_folder import RunFolder
    from reflux.graphs.evals.eval_task import EvalTask, LevelEvalTask
    from reflux.graphs.evals.questions.forms import Keys
    from reflux.graphs.evals.results import Results
    from reflux.graphs.evals.runner import EQUAL_TOKENS, parse_systems
    from reflux.models import open_run
    from reflux.overseers import (
        DEFAULT_OVERSEER,
        candidates_of,
        demos_of,
        overseer_named,
        recorded_demos,
    )
    from reflux.report.eval_tables import tables
    from reflux.report.inspect_log import check_log_path, write_logs
    from reflux.report.terminal import OUT, emit, say
    from reflux.routing import recorded_route
    from reflux.server.settings import config_endpoints, read_serve_config
    from reflux.tasks import task_named, task_of

LEVEL, LIMIT = 3, 200
"""Default level and number of questions of a task."""
MAX_LEVEL = 1000
MAX_LIMIT = 100_000
"""Maximum questions of a task: sampling more takes minutes."""
MAX_REPLIES = 10_000
"""Replies that the cache of an evaluation holds: its memory must not grow with the questions."""


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
        str | None,
        typer.Option(
            help="Questions and answers, instead of a task: a JSONL, JSON, CSV, TSV, Parquet or "
            "Inspect file, a folder, or a data set of the Hub.",
            metavar="FILE",
        ),
    ] = None,
    question_key: Annotated[str, typer.Option(help="Column of the question.")] = "",
    answer_key: Annotated[str, typer.Option(help="Column of the answer, or a.b within it.")] = "",
    prompt_template: Annotated[
        str, typer.Option(help="Jinja text of a question, for example '{{ question }} Briefly.'")
    ] = "",
    score: Annotated[
        str,
        typer.Option(
            help="exact, normalised, contains, number, math, choice, set, judge:MODEL or "
            "module:function."
        ),
    ] = "",
    limit: Annotated[
        int | None,
        typer.Option(help=f"Maximum questions. Default: {LIMIT}, or the whole file.", min=1),
    ] = None,
    systems: Annotated[
        str,
        typer.Option(
            help="Comma-separated: direct, amplified, student-rN, best-of-n, best-of-8, "
            "cascade-0.8, endpoint:MODEL, path/file.py:graph, module:graph, langgraph.json:graph."
        ),
    ] = "direct,amplified",
    model: Model = None,
    base: BaseName = "",
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Seed of questions and samples; may be repeated.", min=0),
    ] = None,
    overseer: Annotated[
        str, typer.Option(help="Overseer of a file's questions: model, plain or FILE.py:NAME.")
    ] = "",
    candidates: Candidates = None,
    route: Route = None,
    demos: Demos = None,
    policy: Policy = None,
    tool: Tools = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare", help="Two systems, A,B, to decide between; may be repeated. Default: all."
        ),
    ] = None,
    margin: Annotated[
        float,
        typer.Option(help="A smaller difference of accuracy counts as none.", min=0, max=0.5),
    ] = MARGIN,
    until_decided: Annotated[
        bool, typer.Option(help="Stop asking as soon as all pairs are decided.")
    ] = False,
    again: Again = False,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            help="Ask the recorded calls of this run folder again, and compare call by call; "
            "--systems recorded is what was replied then.",
            metavar="DIR",
        ),
    ] = None,
    where: Annotated[
        str,
        typer.Option(help="Of --replay: which calls, as an expression of SQL.", metavar="SQL"),
    ] = "",
    depth: Depth = 1,
    calls: Annotated[int, typer.Option(help="Maximum model calls of a question.", min=1)] = 1000,
    tokens: Annotated[int, typer.Option(help="Maximum tokens of a question.", min=1)] = 1_000_000,
    seconds: TimeLimit = None,
    concurrency: Concurrency = None,
    input_key: InputKey = "",
    output_key: OutputKey = "",
    configurable: Configurable = None,
    context: GraphContext = None,
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
    inspect_log: Annotated[
        Path | None,
        typer.Option(
            help="Write a log that Inspect can read; of several systems, one log each beside it.",
            metavar="FILE",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare systems on the same questions, with intervals, tests and prices."""
    folder, keys = folder_of(run, base), parse_systems(systems)
    if where and replay is None:
        raise UsageError("--where chooses recorded calls: name their folder with --replay")
    if replay is not None:
        if data or task or level:
            raise UsageError("--replay asks recorded calls: leave --data, --task and --level out")
        again_of = replays.ReplayPlan.of(replay, where, keys, limit, score, concurrency)
        endpoints = config_endpoints(read_serve_config(config))
        replays.ask_again(folder, again_of, model, endpoints, out, as_json=as_json)
        return
    graph_options = graph_options_of(input_key, output_key, configurable, context)
    pairs = pairs_of(compare or [], keys)
    if until_decided and len(keys) < 2:
        raise UsageError("--until-decided decides between systems: name two in --systems")
    if until_decided and EQUAL_TOKENS in keys:
        raise UsageError(
            f"{EQUAL_TOKENS} needs the tokens of all questions, and --until-decided asks fewer: "
            "name the number of votes, for example best-of-8"
        )
    settings = Settings(depth, calls, tokens, seconds, policy=recorded_policy(policy))
    if data is None:
        if score or overseer or max_tokens or question_key or answer_key or prompt_template:
            raise UsageError(
                "--score, --overseer, --max-tokens, --question-key, --answer-key and "
                "--prompt-template are for --data: a task has its own"
            )
        if tool or demos is not None:
            option = "--tool" if tool else "--demos"
            raise UsageError(f"{option} needs --data: a task has its own overseer and tools")
        if limit is not None and limit > MAX_LIMIT:
            raise UsageError(f"--limit {limit} is more than {MAX_LIMIT}, the maximum for a task")
        name = task_of(folder, task)
        made = task_named(name, folder)
        tool = list(made.tool_names)
        eval_task: EvalTask = LevelEvalTask(made, level or LEVEL, limit or LIMIT)
        source: dict[str, Any] = {"task": name, "level": level or LEVEL}
        own = folder.rounds_config() if task is None else None
        settings = replace(settings, candidates=own.candidates if own else 0)
    else:
        if task or level:
            raise UsageError("--data has its own questions: leave --task and --level out")
        with redirect_stdout(sys.stderr):
            keys_of = Keys(question_key, answer_key, prompt_template)
            eval_task = file_task_of(data, keys_of, score, limit)
        settings = replace(
            settings,
            overseer=overseer_of(overseer, demos_of(recorded_demos(demos))),
            candidates=candidates_of(overseer_named(overseer or DEFAULT_OVERSEER)),
            max_tokens=max_tokens or MAX_TOKENS,
            system=eval_task.file.system,
        )
        source = {
            "data": data, "repeats": eval_task.file.repeats, "unused": list(eval_task.file.unused)
        }  # fmt: skip
    if route is not None:
        settings = replace(settings, route=recorded_route(route))
    if candidates is not None:
        settings = replace(settings, candidates=candidates)
    seeds = tuple(dict.fromkeys(seed or [1]))
    prices = prices_of(folder, price or [])
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # Fails before the first call.
    if inspect_log is not None:
        check_log_path(inspect_log)
    endpoints = config_endpoints(read_serve_config(config))
    with redirect_stdout(sys.stderr):  # Output of the user's graphs and scorers is no result.
        # Loaded without a running event loop, because the user's modules may start one.
        with interruptible():
            graphs = load_graphs(keys, graph_options)
        plan = Plan(
            eval_task, keys, seeds, settings, prices, source, out, graphs, concurrency,
            tuple(tool or ()), code_of(task, overseer, *(tool or ())),
            pairs, margin, until_decided, again, inspect_log, demos_of(recorded_demos(demos)),
        )  # fmt: skip
        say_limits(graphs, seconds, concurrency)
        results = run_async(_evaluate(folder, plan, model, endpoints))
    hints = (*results.hints, *price_hints(price or [], results))
    results = replace(results, hints=hints)
    if as_json:
        emit(source | results.to_json())
    else:
        for table in tables(results, source):
            OUT.print(table)
        for line in (*record_lines(results.record), *(n for g in graphs.values() for n in g.notes)):
            OUT.print(line, soft_wrap=True, highlight=False, markup=False)
        if out is not None:
            say(f"answers, figures and a page with charts: {out}")
    if results.failures:
        raise RefluxError(f"{results.failure}; answers left unscored: {results.failures}")


async def _evaluate(
    folder: RunFolder, plan: Plan, model: str | None, endpoints: Mapping[str, Endpoint]
) -> Results:
    name = model if uses_agent(plan.keys) else "base"
    opened, agent = open_run(
        folder,
        name,
        batch_config(folder),
        endpoints,
        plan.concurrency,
        max_replies=MAX_REPLIES,
        warm=not plan.again,
    )
    async with opened, AsyncExitStack() as stack:
        stack.push_async_callback(close_clients, [each.client for each in endpoints.values()])
        with ProgressView() as view:

            def show(key: str, done: int, total: int) -> None:
                # Another system is a trial for best-of-n.
                trial = f"equal tokens by {key.removeprefix('best-of-')} votes?"
                named = key in plan.keys or key.startswith("judge ")
                view(f"evaluate {key}" if named else trial, done, total, "")

            here = Path.cwd()
            outcome = await compare(opened, plan, agent, stack, show, frozenset(endpoints))
            os.chdir(here)  # A graph may have gone elsewhere.
        if plan.out is not None:
            from reflux.report.eval_page import write_report

            write_report(plan.out, outcome, plan.eval_task, opened.store, plan.source)
        if plan.inspect_log is not None:
            write_logs(plan.inspect_log, outcome, plan.eval_task)
    return outcome
