"""`reflux ask` asks one question; `reflux reply` answers for a human that a question waits for."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reflux import cli
from reflux.cli import contract

if TYPE_CHECKING or not cli.SHOWS_HELP:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from reflux.agents.errors import RefluxError, UsageError
    from reflux.agents.files import read_text
    from reflux.agents.overseers.scripted import asks_humans, parse_reply
    from reflux.agents.policy.data import untrusted
    from reflux.cli.human_input import form_view, open_asking, reply_command
    from reflux.cli.progress import LiveTree
    from reflux.cli.runs.rounds import shipped_config
    from reflux.file_options import recorded_policy
    from reflux.finetune.configs.run import RoundsConfig, read_config
    from reflux.finetune.run_folder import OpenRun, RunFolder
    from reflux.graphs.amplify.context import AmplifyContext
    from reflux.graphs.amplify.interrupts import Pending
    from reflux.graphs.amplify.state import Outcome, is_accepted
    from reflux.graphs.ask import Answered, Origin, WaitForHumans, go_on
    from reflux.graphs.ask import ask as ask_question
    from reflux.graphs.ask_options import AskOptions, options_of
    from reflux.graphs.evals.task import writing_of
    from reflux.graphs.recompute import revised_context
    from reflux.graphs.traces.review import waiting_in_run
    from reflux.graphs.traces.search import find_question
    from reflux.graphs.traces.store import TraceStore
    from reflux.graphs.traces.tree import Node, load_tree
    from reflux.models import as_asked, asked_at, endpoint, open_rounds, open_run
    from reflux.overseers import (
        DEFAULT_OVERSEER,
        OVERSEERS,
        candidates_of,
        id_of_overseer,
        overseer_named,
        recorded_demos,
    )
    from reflux.report.terminal import (
        OUT,
        answer_line,
        command,
        counted,
        emit,
        ended,
        print_result,
        say,
        tree_view,
    )
    from reflux.review_actions import reply_in_run
    from reflux.routing import recorded_cascade, recorded_route
    from reflux.tasks import task_named, task_of


def batch_config(folder: RunFolder) -> RoundsConfig:
    """The config that sets how many questions are answered together: the run's, or the demo's."""
    return folder.rounds_config() or read_config(shipped_config("demo"))


def ask(
    question: Annotated[str, typer.Argument(help="The question, in quotes.", metavar="QUESTION")],
    run: contract.RunDir = contract.DEFAULT_RUN,
    task: contract.TaskName = None,
    model: contract.Model = None,
    base: contract.BaseName = "",
    overseer: contract.Overseer = None,
    candidates: contract.Candidates = None,
    route: contract.Route = None,
    cascade: contract.Cascade = None,
    demos: contract.Demos = None,
    policy: contract.Policy = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--untrusted",
            help="A file to read whose text is data and no instruction; may be repeated.",
            metavar="FILE",
        ),
    ] = None,
    tool: contract.Tools = None,
    depth: contract.Depth = 1,
    calls: contract.Calls = 1000,
    tokens: contract.Tokens = 1_000_000,
    seconds: contract.Seconds = None,
    max_tokens: contract.MaxTokens = 512,
    as_json: contract.Json = False,
) -> None:
    """Ask one question through the amplified system, and print the tree.

    In the run folder of a task, the question is one of that task.
    """
    folder = contract.folder_of(run, base)
    if overseer is not None and task is not None:
        raise UsageError("--overseer asks any question and --task one of a task: leave one out")
    text, task_name = "\n".join([question, *map(_data_of, data or ())]), ""
    if overseer is not None:
        overseer = id_of_overseer(overseer, folder)
    if overseer is None and (task is not None or folder.exists):
        task_name = task_of(folder, task)
        if tool:
            raise UsageError("--tool needs --overseer: a task's copies have no tools")
        if data:
            raise UsageError("--untrusted needs --overseer: a task has its own questions")
        if demos is not None:
            raise UsageError("--demos needs --overseer model: a task has its own overseer")
        try:
            text = task_named(task_name, folder).from_user(question)
        except UsageError as error:
            raise UsageError(f"{error}; for any other question add --overseer model") from error
    decomposer = None if task_name else overseer_named(overseer or DEFAULT_OVERSEER)
    opened, agent = open_run(folder, model)
    options = AskOptions(
        "" if task_name else overseer or DEFAULT_OVERSEER,
        agent,
        tuple(tool or ()),
        contract.limits_of(depth, calls, tokens, seconds, candidates),
        None if task_name else max_tokens,
        task_name,
        endpoint=asked_at(model),
        candidates=candidates_of(decomposer, candidates),
        route=recorded_route(route),
        demos=recorded_demos(demos),
        policy=recorded_policy(policy),
        cascade=recorded_cascade(folder.registry, agent, cascade),
    )
    origin = Origin.new(folder.id, "ask", task_name)

    def work(context: AmplifyContext, saver: Any, wait: WaitForHumans) -> Awaitable[Answered]:
        return ask_question(context, text, origin, options=options, checkpoints=saver, wait=wait)

    _run(opened, options, question, text, work, as_json)


def _data_of(path: Path) -> str:
    """A file's text as untrusted data under its name."""
    if not path.is_file():
        raise UsageError(f"--untrusted {path}: there is no such file")
    return untrusted(read_text(path), path.name)


def reply(
    trajectory: contract.Trajectory,
    words: Annotated[
        str,
        typer.Argument(
            help="`answer: TEXT`, `approve`, `pass`, or sub-questions. Default: show what waits.",
            metavar="WORDS",
        ),
    ] = "",
    to: Annotated[
        str | None,
        typer.Option("--to", help="Step to reply to. Default: the first.", metavar="STEP"),
    ] = None,
    run: contract.RunDir = contract.DEFAULT_RUN,
    as_json: contract.Json = False,
) -> None:
    """Reply for a human to a question that waits, today or days later."""
    folder = contract.open_existing(run)
    name, slash, rest = trajectory.partition("/")
    with closing(folder.store()) as store:
        id, question = find_question(store, name)
        options = options_of(store, id)
        if options is None and waiting_in_run(store, id):
            path = to if to is not None else slash + rest
            _reply_in_run(folder, store, id, path, words, as_json)
            return
    own = options is not None and ".py:" in options.overseer
    named = overseer_named if own else OVERSEERS.get
    if options is None or not asks_humans(named(options.overseer)):
        raise UsageError(f"{id} does not wait for a human to reply")
    with as_asked(options):
        opened, _ = open_run(folder, options.model)

    def choose(pending: Sequence[Pending]) -> Mapping[str, Any]:
        if not pending:
            show = command("reflux", "traces", "show", id, "--run", run)
            raise UsageError(f"{id} does not wait for a reply; see `{show}`")
        here = [each.id for each in pending if slash and each.path == slash + rest]
        return {to or (here or [pending[0].id])[0]: parse_reply(words)}

    def work(context: AmplifyContext, saver: Any, wait: WaitForHumans) -> Awaitable[Answered]:
        context = revised_context(context, id)
        return go_on(context, id, saver, reply=choose if words else None, wait=wait)

    _run(opened, options, question, question, work, as_json)


def _reply_in_run(
    folder: RunFolder, store: TraceStore, id: str, path: str, words: str, as_json: bool
) -> None:
    """Record the reply to what waits in a run of rounds, which `--resume` takes up.

    Raises:
        UsageError: nothing waits at the path, or the words are no step that is possible here.
    """
    items = waiting_in_run(store, id)
    item = next((each for each in items if each.path == path), None if path else items[0])
    if item is None:
        known = ", ".join(each.id for each in items)
        raise UsageError(f"nothing waits at {id}{path}; pending: {known}")
    if not words:
        OUT.print(form_view(Pending(item.id, item.path, item.form or {})))
        say(reply_command(item.id, folder))
        return
    config = folder.config()
    contract.run_async(reply_in_run(store, item, words, lambda _: open_rounds(folder, config)))
    left = len(waiting_in_run(store))
    body = {"item": item.id, "did": "answered", "waiting": left}
    resume = f"continue with `{command('reflux', 'run', '--resume', '--run', folder.path)}`"
    rest = f"{counted(left, 'other question')} of the run left to reply to" if left else resume
    print_result(body, f"answered: {item.id}; {rest}", as_json)


def _run(
    opened: OpenRun,
    options: AskOptions,
    text: str,
    question: str,
    work: Callable[[AmplifyContext, Any, WaitForHumans], Awaitable[Answered]],
    as_json: bool,
) -> None:
    """Ask or reply, and print the tree and the answer, or what is pending.

    Args:
        text: the question as the user wrote it; `question` as the task writes it.
        work: takes the context, the checkpointer, and what lets a human reply.

    Raises:
        RefluxError: it ended without an accepted answer.
    """

    async def ask_and_load() -> tuple[Answered, Node]:
        async with opened, open_asking(opened, options, LiveTree(question)) as parts:
            answered = (await work(*parts)).check_endpoint()
            return answered, load_tree(opened.store, answered.trajectory)

    answered, tree = contract.run_async(ask_and_load())
    outcome = answered.outcome
    status = outcome["status"] if outcome else "waiting"
    answer = outcome["answer"] if outcome else None
    task = task_named(options.task, opened.folder) if options.task else None
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
                "confidence": outcome.get("confidence") if outcome else None,
                "pending": [asdict(pending) for pending in answered.pending],
                "tree": tree.to_json(),
            }
        )
    else:
        OUT.print(tree_view(tree))
        if task is not None and (writing := writing_of(task)):
            OUT.print(f"[dim]in the tree, {writing}[/]")
        if outcome is None:
            for pending in answered.pending:
                OUT.print(form_view(pending))
            wait = "waits" if len(answered.pending) == 1 else "wait"
            hint = reply_command(answered.trajectory, opened.folder)
            say(f"{len(answered.pending)} {wait} for a human: {hint}")
        else:
            spent = outcome["spent"]
            about = (
                f"{status}, overseer {overseer}, agent {options.model}, "
                f"{counted(spent['calls'], 'call')}, {counted(spent['tokens'], 'token')}, "
                f"trajectory {answered.trajectory}"
            )
            say(answer_line(answer, about))
    if outcome is not None and not is_accepted(status):
        raise RefluxError(f"no accepted answer ({ended(outcome)}); {_remedy(options, outcome)}")


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
            "with `reflux demo` or `reflux run`, or name a --model that can"
        )
    return "allow more --depth or --calls, or take a --model that can answer the parts"
