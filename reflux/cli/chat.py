"""`reflux chat`: talk to the amplified agent, and see its tree grow and fold."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table

from reflux.agents.errors import EndpointError, RefluxError, UsageError, from_os_error
from reflux.agents.overseers.human_reply import REPLY_FORMS
from reflux.ask_context import DEFAULT_OVERSEER, overseer_named
from reflux.cli.chat_commands import COMMANDS, run_command
from reflux.cli.chat_session import ChatSession
from reflux.cli.contract import ERR, OUT, RUNS, Depth, Json, Model, RunDir, Tools, emit
from reflux.cli.human_input import unechoed
from reflux.cli.progress import LiveTree
from reflux.conversation import FOLDER, Conversation, Turn, begin, listed, resume
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.amplify.context import Limits
from reflux.graphs.ask_options import ALONE, AskOptions
from reflux.models import open_run
from reflux.report.terminal import counted, escape, plain
from reflux.tasks import task_named

REFRESH = 8.0
"""Times a second that the growing tree is drawn."""


def chat(
    run: RunDir = RUNS / "demo",
    model: Model = None,
    overseer: Annotated[
        str | None, typer.Option("--overseer", help="H: model, plain, person, reviewed; or none.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="Questions of this task, H being its own.")
    ] = None,
    tool: Tools = None,
    depth: Depth = 1,
    calls: Annotated[int, typer.Option(help="Model calls an answer.", min=0)] = 1000,
    tokens: Annotated[int, typer.Option(help="Tokens an answer.", min=0)] = 1_000_000,
    seconds: Annotated[float | None, typer.Option(help="Seconds an answer.", min=0)] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of one copy's answer; default: 256, or the task's.", min=1),
    ] = None,
    resumed: Annotated[
        str | None, typer.Option("--resume", help="Go on with a conversation: its id, or last.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Name the kept conversations.")] = False,
    as_json: Json = False,
) -> None:
    """Talk to the amplified agent. From a pipe, each line is a question.

    With `--overseer none` X goes on with the conversation alone, word by word.
    """
    if list_all:
        _list(run, as_json)
        return
    if overseer is not None and task is not None:
        raise UsageError("--overseer asks any question and --task one of a task: leave one out")
    if task is not None:
        task_named(task)
    elif overseer != ALONE:
        overseer_named(overseer or DEFAULT_OVERSEER)
    conversation = resume(run, resumed) if resumed else begin(run)
    opened, x = open_run(RunFolder(run), model)
    h = "" if task else overseer or DEFAULT_OVERSEER
    limits = Limits(depth=depth, calls=calls, tokens=tokens, seconds=seconds)
    session = ChatSession(
        opened,
        conversation,
        AskOptions(h, x, tuple(tool or ()), limits, max_tokens, task or ""),
    )
    with asyncio.Runner() as runner:
        try:
            turns = _talk(runner, session, as_json)
        finally:
            runner.run(_close(opened))
    if as_json:
        told = [asdict(turn) for turn in turns]
        emit({"conversation": conversation.id if conversation.turns else None, "turns": told})
    if session.unkept is not None and not _at_terminal():
        raise from_os_error(session.unkept)
    if not _at_terminal() and any(turn.status != "ok" for turn in turns):
        bad = sum(turn.status != "ok" for turn in turns)
        raise RefluxError(f"{bad} of {len(turns)} questions have no accepted answer")


async def _close(opened: OpenRun) -> None:
    await opened.__aexit__()


def _talk(runner: asyncio.Runner, session: ChatSession, as_json: bool) -> list[Turn]:
    """Answer lines until there are none; what is wrong with one does not end the others."""
    asked: list[Turn] = []
    if _at_terminal():
        _greet(session)
    for line in _lines(session):
        if line.strip() in ("/quit", "/exit"):
            break
        try:
            if line.lstrip().startswith("/"):
                (ERR if as_json else OUT).print(run_command(session, line))
                continue
            asked.append(_answer(runner, session, line, quiet=as_json))
            if session.unkept is not None and _at_terminal():
                _complain(from_os_error(session.unkept))
        except EndpointError as error:
            if not _at_terminal():
                raise
            _complain(error)
        except BrokenPipeError:
            raise
        except (RefluxError, OSError) as error:
            _complain(from_os_error(error) if isinstance(error, OSError) else error)
            if not _at_terminal():
                asked.append(Turn(line, None, "failed", "", session.options.overseer, ""))
    return asked


def _complain(error: RefluxError) -> None:
    ERR.print(plain(str(error)), style="red", highlight=False)


def _answer(runner: asyncio.Runner, session: ChatSession, text: str, quiet: bool) -> Turn:
    """One answer, its tree growing before the eyes of whoever looks; Ctrl-C stops it."""
    tree = LiveTree(text)
    live = Live(tree, console=ERR, refresh_per_second=REFRESH, transient=True)
    shown = ERR.is_terminal and session.options.overseer != ALONE
    said: list[str] = []

    def say(piece: str) -> None:
        said.append(piece)
        if not quiet:
            OUT.out(plain(piece).plain, end="", highlight=False)

    if shown:
        live.start()
    try:
        with ExitStack() as keys:
            keys.enter_context(unechoed())

            def hush() -> None:
                live.stop()
                keys.close()

            turn = runner.run(session.ask(text, tree, hush, say))
    except KeyboardInterrupt:
        if not _at_terminal():
            raise
        live.stop()
        turn = session.stopped(text)
        broken = "\n" if said else ""
        ERR.print(
            f"{broken}stopped after {counted(tree.calls, 'call')}", style="dim", highlight=False
        )
        return turn
    finally:
        live.stop()
    if quiet:
        return turn
    if turn.answer is not None and said:
        OUT.print()
    elif turn.answer is not None:
        OUT.print(plain(turn.answer), soft_wrap=not OUT.is_terminal)
    elif turn.status == "waiting":
        run = session.opened.folder.path
        waiting = f'reflux reply {turn.trajectory} "{REPLY_FORMS}" --run {run}'
        OUT.print(f"a person is waited for: {waiting}", soft_wrap=True, highlight=False)
    else:
        OUT.print(f"no accepted answer ({turn.status}); /why tells how it came about")
    if _at_terminal():
        cost = (
            f"{turn.status}, H = {turn.overseer}, X = {turn.model}, {counted(turn.calls, 'call')}, "
        )
        ERR.print(f"{escape(cost)}{turn.tokens} tokens", style="dim", highlight=False)
    return turn


def _greet(session: ChatSession) -> None:
    options = session.options
    ERR.print(
        f"H = {escape(options.overseer or options.task)}, X = {escape(options.model)}; "
        f"conversation {session.conversation.id}; /help names the commands, Ctrl-C stops an "
        "answer, Ctrl-D ends",
        style="dim",
        highlight=False,
    )
    own = session.opened.folder.rounds_config()
    if own is not None and not options.task:
        ERR.print(
            f"this run's own questions are of {own.task}: --task {own.task} asks them",
            style="dim", highlight=False, markup=False,
        )  # fmt: skip
    if session.conversation.turns:
        ERR.print(run_command(session, "/history"))


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _lines(session: ChatSession) -> Iterator[str]:
    """What the user types, with editing and the lines of earlier sessions; or what is piped."""
    if not _at_terminal():
        yield from (line.rstrip("\n") for line in sys.stdin or () if line.strip())
        return
    read = _prompt(session.conversation)
    while True:
        try:
            line = read()
        except KeyboardInterrupt:
            continue  # It throws the half-typed line away.
        except EOFError:
            return
        if line.strip():
            yield line


def _prompt(conversation: Conversation) -> Callable[[], str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory

    folder = conversation.path.parent
    folder.mkdir(parents=True, exist_ok=True)
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(folder / "typed")),
        completer=WordCompleter([*COMMANDS, "/quit"], sentence=True),
        complete_while_typing=False,
    )
    return lambda: session.prompt("you> ")


def _list(run: Path, as_json: bool) -> None:
    kept = listed(run)
    if as_json:
        emit(kept)
        return
    table = Table()
    for heading in ("conversation", "turns", "begins"):
        table.add_column(heading)
    for one in kept:
        table.add_row(one["id"], str(one["turns"]), escape(one["begins"]))
    OUT.print(table if kept else f"no conversation is kept in {run / FOLDER}")
