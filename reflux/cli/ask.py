"""`reflux ask`: one question."""

import uuid
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

import typer

from reflux.agents.budget import Price
from reflux.agents.clients.endpoints import Endpoint, Endpoints
from reflux.agents.clients.llama_cpp import EngineConfig
from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.types import ChatClient
from reflux.ask_options import AskOptions, save_options
from reflux.cli.contract import (
    OUT,
    RUNS,
    Depth,
    Json,
    Model,
    RunDir,
    Tools,
    emit,
    endpoint,
    run_async,
)
from reflux.cli.plain_ask import ask_freely, tell
from reflux.cli.rounds import shipped_config
from reflux.finetune.config import RoundsConfig, config_from, read_config
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.amplify.graph import check_askable
from reflux.graphs.amplify.state import Outcome, is_accepted
from reflux.graphs.ask import Amplified, Asked, answer_all, check_outage, task_context
from reflux.graphs.evals.task import writing_of
from reflux.graphs.traces.review import marked_when_stopped
from reflux.graphs.traces.tree import load_tree
from reflux.report.terminal import answer_line, counted, ended, tree_view
from reflux.tasks import DEFAULT_TASK, task_named

ROOMY = EngineConfig(parallel=4, context=4096)
"""llama.cpp where people ask: a conversation, H's examples and its reply fit, and a few copies are
asked at once."""

NOWHERE_ELSE: Mapping[str, Endpoint] = MappingProxyType({})

TaskName = Annotated[str | None, typer.Option("--task", help="Default: that of the run.")]


def open_run(
    folder: RunFolder,
    model: str | None,
    config: RoundsConfig | None = None,
    endpoints: Mapping[str, Endpoint] = NOWHERE_ELSE,
) -> tuple[OpenRun, str]:
    """The folder with a client for X: the user's endpoint, else the engine of `config`, else
    llama.cpp, which starts at once.

    Args:
        endpoints: answer for the models that they name; whoever opened them closes them.

    Raises:
        UsageError: an endpoint, and no name of its model.
    """
    client = endpoint()

    def among(rest: ChatClient) -> ChatClient:
        return Endpoints(endpoints, rest) if endpoints else rest

    if client is None:
        settings = config.engine_settings if config else ROOMY
        llama_cpp = config.llama_cpp if config else None
        run = OpenRun(folder, settings, wrap=among, llama_cpp=llama_cpp)
        return run, model or folder.current_model()
    if model is None:
        raise UsageError(f"{client.base_url} is set: name its model with --model")
    return OpenRun(folder, client=client, wrap=among), model


def task_of(folder: RunFolder, name: str | None) -> str:
    """The task that is named, else that of the run, else addition."""
    if name is not None:
        return name
    config = config_of(folder)
    return config.task if config else DEFAULT_TASK


def config_of(folder: RunFolder) -> RoundsConfig | None:
    """What the run was begun with; None where there is none."""
    if not folder.exists:
        return None
    return config_from(folder.load_config(), str(folder.config_path))


def prices_of(folder: RunFolder) -> Mapping[str, Price]:
    """What a million tokens of each model cost, where the run's config tells."""
    config = config_of(folder)
    return config.spend_limit.prices if config else {}


def batch_config(folder: RunFolder) -> RoundsConfig:
    """What says how many questions are answered together: the run's config, or the demo's."""
    return config_of(folder) or read_config(shipped_config("demo"))


def ask(
    question: Annotated[str, typer.Argument(help='For addition: "304+517".')],
    run: RunDir = RUNS / "demo",
    task: TaskName = None,
    model: Model = None,
    overseer: Annotated[
        str | None,
        typer.Option(
            "--overseer", help="Any question, by this H: model, person, reviewed or plain."
        ),
    ] = None,
    tool: Tools = None,
    depth: Depth = 1,
    calls: Annotated[int, typer.Option(help="Model calls at the most.", min=0)] = 1000,
    tokens: Annotated[int, typer.Option(help="Tokens at the most.", min=0)] = 1_000_000,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds after which nothing more is asked.", min=0)
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of one free answer.", min=1)] = 256,
    as_json: Json = False,
) -> None:
    """One question through the amplified system; prints the tree."""
    folder = RunFolder(run)
    if overseer is not None:
        if task is not None:
            raise UsageError("--overseer asks any question and --task one of a task: leave one out")
        opened, x = open_run(folder, model)
        options = AskOptions(
            overseer, x, tuple(tool or ()), depth, calls, tokens, seconds, max_tokens
        )
        tell(folder, run_async(ask_freely(folder, opened, question, options)), as_json)
        return
    if tool:
        raise UsageError("--tool needs --overseer: a task's copies have no tools")
    limits = Limits(depth=depth, calls=calls, tokens=tokens, seconds=seconds)
    run_async(_ask(folder, question, task_of(folder, task), model, limits, as_json))


async def _ask(
    folder: RunFolder,
    text: str,
    task_name: str,
    model: str | None,
    limits: Limits,
    as_json: bool,
) -> None:
    task = task_named(task_name)
    try:
        question = task.from_user(text)
    except UsageError as error:
        raise UsageError(f"{error}; any other question takes --overseer model, or plain") from error
    opened, x = open_run(folder, model)
    async with opened:
        context = task_context(AmplifyContext(opened.recorded_client, x, (), limits=limits), task)
        check_askable(question, context)
        # Every asking is a trajectory of its own, whatever was asked before.
        asked = Asked(folder.name, -1, f"ask-{uuid.uuid4().hex[:12]}", task.name, "asked")
        trajectory = asked.question_id(question)
        caps = limits.depth, limits.calls, limits.tokens, limits.seconds
        options = AskOptions("", x, (), *caps, task=task.name)
        await save_options(opened.store, trajectory, options)
        async with marked_when_stopped(opened.store, trajectory):
            outcomes = await answer_all(Amplified(context), asked, [question])
        check_outage(outcomes, opened.recorded_client)
        tree = load_tree(opened.store, trajectory)
    outcome = outcomes[0]
    answer = None if outcome["answer"] is None else task.to_user(question, outcome["answer"])
    if as_json:
        emit(
            {"question": text, "answer": answer, "trajectory": trajectory, "model": x}
            | {"status": outcome["status"], "error": outcome["error"], "spent": outcome["spent"]}
            | {"tree": tree.to_json()}
        )
    else:
        OUT.print(tree_view(tree))
        if writing := writing_of(task):
            OUT.print(f"[dim]in the tree, {writing}[/]")
        spent = outcome["spent"]
        about = (
            f"{outcome['status']}, X = {x}, {counted(spent['calls'], 'call')}, "
            f"{spent['tokens']} tokens, trajectory {trajectory}"
        )
        OUT.print(answer_line(answer, about), soft_wrap=True, highlight=False)
    if outcome["status"] == "truncated":
        raise RefluxError(
            f"the token limit cut the answer: raise the `answer_tokens` of the task {task.name}, "
            "or ask with --overseer and a larger --max-tokens"
        )
    if not is_accepted(outcome["status"]):
        raise RefluxError(f"no accepted answer ({ended(outcome)}); {_remedy(x, outcome, limits)}")


def _remedy(x: str, outcome: Outcome, limits: Limits) -> str:
    """What to do for an answer that is accepted."""
    if outcome["spent"]["calls"] >= limits.calls:
        return f"the budget is {counted(limits.calls, 'call')}: allow more --calls"
    if x == "base" and endpoint() is None:
        return (
            "X is the untrained base, which cannot answer the parts: train a student first with "
            "`reflux demo`, or with `reflux init` and its --run, or name a --model that can"
        )
    return "allow more --depth or --calls, or take a --model that can answer the parts"
