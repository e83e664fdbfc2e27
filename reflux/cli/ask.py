"""`reflux ask` asks one question; `reflux reply` answers for a human that a question waits for."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Annotated, Any, cast

import typer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.overseers.scripted import REPLY_FORMS, parse_reply
from reflux.ask_context import OVERSEERS, asks_humans, overseer_named
from reflux.cli.contract import (
    OUT,
    RUNS,
    Calls,
    Depth,
    Json,
    Model,
    RunDir,
    Seconds,
    Tokens,
    Tools,
    emit,
    open_existing,
    run_async,
)
from reflux.cli.human_input import form_view, open_asking
from reflux.cli.progress import LiveTree
from reflux.cli.rounds import shipped_config
from reflux.finetune.config import RoundsConfig, read_config
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.amplify.context import Limits
from reflux.graphs.amplify.interrupts import Pending
from reflux.graphs.amplify.state import Outcome, is_accepted
from reflux.graphs.ask import Answered, Origin, go_on
from reflux.graphs.ask import ask as ask_question
from reflux.graphs.ask_options import AskOptions, options_of
from reflux.graphs.evals.task import writing_of
from reflux.graphs.recompute import revised_context
from reflux.graphs.traces.tree import Node, find_question, load_tree
from reflux.models import endpoint, open_run
from reflux.report.terminal import answer_line, counted, ended, tree_view
from reflux.tasks import DEFAULT_TASK, task_named

TaskName = Annotated[
    str | None, typer.Option("--task", help="A task, or FILE.py:NAME. Default: that of the run.")
]


def task_of(folder: RunFolder, name: str | None) -> str:
    """The named task, else that of the run, else addition."""
    if name is not None:
        return name
    config = folder.rounds_config()
    return config.task if config else DEFAULT_TASK


def batch_config(folder: RunFolder) -> RoundsConfig:
    """The config that sets how many questions are answered together: the run's, or the demo's."""
    return folder.rounds_config() or read_config(shipped_config("demo"))


def ask(
    question: Annotated[str, typer.Argument(help='For addition: "304+517".')],
    run: RunDir = RUNS / "demo",
    task: TaskName = None,
    model: Model = None,
    overseer: Annotated[
        str | None,
        typer.Option(
            "--overseer",
            help="Ask any question, with this overseer: model, human, reviewed, plain or "
            "FILE.py:NAME.",
        ),
    ] = None,
    tool: Tools = None,
    depth: Depth = 1,
    calls: Calls = 1000,
    tokens: Tokens = 1_000_000,
    seconds: Seconds = None,
    max_tokens: Annotated[
        int, typer.Option(help="Maximum tokens of one answer, with --overseer.", min=1)
    ] = 256,
    as_json: Json = False,
) -> None:
    """Ask one question through the amplified system, and print the tree."""
    folder = RunFolder(run)
    if overseer is not None and task is not None:
        raise UsageError("--overseer asks any question and --task one of a task: leave one out")
    if tool and overseer is None:
        raise UsageError("--tool needs --overseer: a task's copies have no tools")
    task_name, text = "", question
    if overseer is None:
        task_name = task_of(folder, task)
        text = _task_question(task_name, question)
    opened, agent = open_run(folder, model)
    options = AskOptions(
        overseer or "",
        agent,
        tuple(tool or ()),
        Limits(depth=depth, calls=calls, tokens=tokens, seconds=seconds),
        max_tokens if overseer is not None else None,
        task_name,
    )
    answered, tree = run_async(_ask(opened, text, options))
    _print(question, text, options, answered, tree, folder, as_json)


def _task_question(task_name: str, text: str) -> str:
    task = task_named(task_name)
    try:
        return task.from_user(text)
    except UsageError as error:
        raise UsageError(f"{error}; any other question takes --overseer model, or plain") from error


async def _ask(opened: OpenRun, question: str, options: AskOptions) -> tuple[Answered, Node]:
    origin = Origin.new(opened.folder.id, "ask", options.task)
    async with opened, open_asking(opened, options, LiveTree(question)) as (context, saver, wait):
        answered = await ask_question(
            context, question, origin, options=options, checkpoints=saver, wait=wait
        )
        return answered.check_endpoint(), load_tree(opened.store, answered.trajectory)


def reply(
    trajectory: Annotated[str, typer.Argument(help="Id of the question that waits.")],
    words: Annotated[
        str, typer.Argument(help="`answer: TEXT`, `approve`, `pass`, or sub-questions.")
    ] = "",
    to: Annotated[
        str | None, typer.Option("--to", help="Id of the step to reply to; default: the first.")
    ] = None,
    run: RunDir = RUNS / "demo",
    as_json: Json = False,
) -> None:
    """Reply for a human to a question that waits, today or days later."""
    folder = open_existing(run)
    with closing(folder.store()) as store:
        question_id, question = find_question(store, trajectory)
        options = options_of(store, question_id)
    own = options is not None and ".py:" in options.overseer
    named = overseer_named if own else OVERSEERS.get
    if options is None or not asks_humans(named(options.overseer)):
        raise UsageError(f"{question_id} was not asked with an overseer that waits for humans")
    opened, _ = open_run(folder, options.model)
    answered, tree = run_async(_reply(opened, question_id, question, options, words, to))
    _print(question, question, options, answered, tree, folder, as_json)


async def _reply(
    opened: OpenRun,
    question_id: str,
    question: str,
    options: AskOptions,
    words: str,
    to: str | None,
) -> tuple[Answered, Node]:
    def choose(pending: Sequence[Pending]) -> Mapping[str, Any]:
        if not pending:
            raise UsageError(
                f"{question_id} waits for nobody; see `reflux traces show {question_id}`"
            )
        return {to or pending[0].id: parse_reply(words)}

    live = LiveTree(question)
    async with opened, open_asking(opened, options, live) as (context, saver, wait):
        context = revised_context(context, question_id)
        reply = choose if words else None
        answered = await go_on(
            context, question_id, cast(AsyncSqliteSaver, saver), reply=reply, wait=wait
        )
        return answered.check_endpoint(), load_tree(opened.store, question_id)


def _print(
    text: str,
    question: str,
    options: AskOptions,
    answered: Answered,
    tree: Node,
    folder: RunFolder,
    as_json: bool,
) -> None:
    """Print the tree and the answer, or what is pending.

    Args:
        text: the question as the user wrote it; `question` as the task writes it.

    Raises:
        RefluxError: it ended without an accepted answer.
    """
    outcome = answered.outcome
    status = outcome["status"] if outcome else "waiting"
    answer = outcome["answer"] if outcome else None
    task = task_named(options.task) if options.task else None
    if task is not None and answer is not None:
        answer = task.to_user(question, answer)
    overseer = options.overseer or options.task
    if as_json:
        emit(
            {
                "question": text,
                "answer": answer,
                "trajectory": answered.trajectory,
                "overseer": overseer,
                "model": options.model,
                "status": status,
                "error": outcome["error"] if outcome else None,
                "spent": outcome["spent"] if outcome else None,
                "pending": [asdict(pending) for pending in answered.pending],
                "tree": tree.to_json(),
            }
        )
    else:
        OUT.print(tree_view(tree))
        if task is not None and (writing := writing_of(task)):
            OUT.print(f"[dim]in the tree, {writing}[/]")
        if outcome is None:
            _print_pending(folder, answered)
        else:
            spent = outcome["spent"]
            about = (
                f"{status}, overseer {overseer}, agent {options.model}, "
                f"{counted(spent['calls'], 'call')}, {spent['tokens']} tokens, "
                f"trajectory {answered.trajectory}"
            )
            OUT.print(answer_line(answer, about), soft_wrap=True, highlight=False)
    if outcome is not None and not is_accepted(status):
        raise RefluxError(f"no accepted answer ({ended(outcome)}); {_remedy(options, outcome)}")


def _print_pending(folder: RunFolder, answered: Answered) -> None:
    for pending in answered.pending:
        OUT.print(form_view(pending))
    count = len(answered.pending)
    OUT.print(
        f"{count} {'waits' if count == 1 else 'wait'} for a human: reflux reply "
        f'{answered.trajectory} "{REPLY_FORMS}" --run {folder.path}',
        soft_wrap=True,
        highlight=False,
    )


def _remedy(options: AskOptions, outcome: Outcome) -> str:
    if outcome["status"] == "truncated":
        if not options.task:
            return f"raise --max-tokens from {options.max_tokens}"
        return (
            f"raise the `answer_tokens` of the task {options.task}, or ask with --overseer and a "
            "larger --max-tokens"
        )
    if not options.task:
        return "allow more --calls, --tokens or --seconds, or take a --model that can answer it"
    if outcome["spent"]["calls"] >= options.limits.calls:
        return f"the budget is {counted(options.limits.calls, 'call')}: allow more --calls"
    if options.model == "base" and endpoint() is None:
        return (
            "the agent is the untrained base, which cannot answer the parts: train a student first "
            "with `reflux demo`, or with `reflux init` and its --run, or name a --model that can"
        )
    return "allow more --depth or --calls, or take a --model that can answer the parts"
