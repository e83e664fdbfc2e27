"""`reflux chat`: talk to the amplified agent and watch its tree; `/help` names the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reflux import cli
from reflux.cli import contract

if TYPE_CHECKING or not cli.SHOWS_HELP:
    import asyncio
    from collections.abc import Callable, Mapping
    from dataclasses import asdict, replace
    from pathlib import Path

    from rich.console import RenderableType
    from rich.table import Table

    from reflux.agents.errors import EndpointError, RefluxError, UsageError, from_os_error
    from reflux.agents.types import Delta
    from reflux.cli.chat_session import FOLDER, LIMITS, ChatSession, Turn, begin, listed, resume
    from reflux.cli.human_input import is_terminal, read_lines, reply_command
    from reflux.cli.progress import LiveTree
    from reflux.file_options import recorded_policy
    from reflux.graphs.amplify.state import is_accepted
    from reflux.graphs.ask_options import ALONE, AskOptions
    from reflux.graphs.traces.revisions import newest
    from reflux.graphs.traces.tree import Node, load_tree
    from reflux.models import BASE, asked_at, endpoint, model_named, open_run
    from reflux.overseers import (
        DEFAULT_OVERSEER,
        OVERSEERS,
        candidates_of,
        demos_of,
        id_of_overseer,
        overseer_named,
        recorded_demos,
        takes_demos,
        with_demos,
    )
    from reflux.report.terminal import (
        ERR,
        OUT,
        counted,
        emit,
        plain,
        print_result,
        say,
        table_of,
        total_line,
        tree_view,
    )
    from reflux.routing import recorded_route
    from reflux.tasks import task_named

EXIT_COMMANDS = ("/quit", "/exit")


def chat(
    run: contract.RunDir = contract.DEFAULT_RUN,
    model: contract.Model = None,
    base: contract.BaseName = "",
    overseer: Annotated[
        str | None,
        typer.Option(
            help="The overseer: model, plain, human, reviewed, FILE.py:NAME, or none for the agent "
            "alone."
        ),
    ] = None,
    route: contract.Route = None,
    demos: contract.Demos = None,
    policy: contract.Policy = None,
    task: Annotated[
        str | None, typer.Option(help="Ask questions of this task, with its overseer.")
    ] = None,
    candidates: contract.Candidates = None,
    tool: contract.Tools = None,
    depth: contract.Depth = 1,
    calls: contract.Calls = 1000,
    tokens: contract.Tokens = 1_000_000,
    seconds: contract.Seconds = None,
    max_tokens: contract.MaxTokens = None,
    resumed: Annotated[
        str | None,
        typer.Option(
            "--resume", help="Continue a conversation: its id, or last.", metavar="CONVERSATION"
        ),
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List conversations.")] = False,
    as_json: contract.Json = False,
) -> None:
    """Talk to the amplified agent. From a pipe, each line is a question.

    With `--overseer none` the agent answers alone; a terminal shows its words as they come.
    """
    if list_all:
        rows = listed(run)
        cells = ((row["id"], str(row["turns"]), row["begins"]) for row in rows)
        table = table_of(("conversation", "turns", "begins"), cells)
        print_result(rows, table if rows else f"{run / FOLDER} holds no conversation", as_json)
        return
    if overseer is not None and task is not None:
        raise UsageError("--overseer and --task exclude each other: leave one out")
    if overseer == ALONE and tool:
        raise UsageError(
            "--tool needs an overseer: with --overseer plain, too, the agent answers by itself"
        )
    if demos is not None and (task is not None or overseer == ALONE):
        raise UsageError("--demos needs --overseer model: leave one out")
    shown, decomposer = recorded_demos(demos), None
    if overseer is not None:
        overseer = id_of_overseer(overseer, contract.folder_of(run, base))
    if task is not None:
        task_named(task, contract.folder_of(run, base))
    elif overseer != ALONE:
        decomposer = with_demos(overseer_named(overseer or DEFAULT_OVERSEER), demos_of(shown))
    conversation = resume(run, resumed) if resumed else begin(run)
    opened, agent = open_run(contract.folder_of(run, base), model)
    name = "" if task else overseer or DEFAULT_OVERSEER
    limits = contract.limits_of(depth, calls, tokens, seconds, candidates)
    options = AskOptions(
        name, agent, tuple(tool or ()), limits, max_tokens, task or "",
        endpoint=asked_at(model), candidates=candidates_of(decomposer, candidates), demos=shown,
        route=recorded_route(route), policy=recorded_policy(policy),
    )  # fmt: skip
    session = ChatSession(opened, conversation, options)
    with asyncio.Runner() as runner:
        try:
            turns = _talk(runner, session, as_json)
        finally:
            runner.run(opened.__aexit__())
    if as_json:
        id = conversation.id if conversation.turns else None
        emit({"conversation": id, "turns": [asdict(turn) for turn in turns]})
    if is_terminal():
        return
    if session.unkept is not None:
        raise from_os_error(session.unkept)
    if failures := sum(not is_accepted(turn.status) for turn in turns):
        raise RefluxError(f"{failures} of {len(turns)} questions have no accepted answer")


def _talk(runner: asyncio.Runner, session: ChatSession, as_json: bool) -> list[Turn]:
    """Answer all lines; an error of one line does not end the conversation."""
    turns: list[Turn] = []
    if is_terminal():
        _greet(session)
    history = session.conversation.path.parent / "typed"
    for line in read_lines("you> ", history, [*COMMANDS, "/quit"]):
        if line.strip() in EXIT_COMMANDS:
            break
        try:
            if line.lstrip().startswith("/"):
                (ERR if as_json else OUT).print(_run_command(session, line))
                continue
            turns.append(_answer(runner, session, line, quiet=as_json))
            if session.unkept is not None and is_terminal():
                say(str(from_os_error(session.unkept)), ERR, "red")
        except EndpointError as error:
            if not is_terminal():
                raise
            say(str(error), ERR, "red")
        except BrokenPipeError:
            raise
        except (RefluxError, OSError) as error:
            told = from_os_error(error) if isinstance(error, OSError) else error
            say(str(told), ERR, "red")
            if not is_terminal():
                turns.append(Turn(line, None, "failed", "", session.options.overseer, ""))
    return turns


def _greet(session: ChatSession) -> None:
    options = session.options
    about = (
        f"overseer {options.overseer or options.task}, agent {options.model}, conversation "
        f"{session.conversation.id}. /help lists commands, Ctrl-C stops an answer, Ctrl-D ends"
    )
    config = session.opened.folder.rounds_config()
    if config is not None and not options.task:
        about += f"\nthe run's task is {config.task}: --task {config.task} asks its questions"
    ERR.print(plain(about), style="dim")
    if session.conversation.turns:
        ERR.print(_run_command(session, "/history"))


def _answer(runner: asyncio.Runner, session: ChatSession, text: str, quiet: bool) -> Turn:
    """Answer one message while its tree is drawn; Ctrl-C stops the answer."""
    tree = LiveTree(text)
    streamed = False

    def say(delta: Delta) -> None:
        nonlocal streamed
        shows = bool(delta.text) and OUT.is_terminal and not quiet  # A pipe gets whole answers.
        streamed = streamed or shows
        if delta.reasoning and not quiet:
            ERR.print(plain(delta.reasoning), style="dim", end="")
        if shows:
            OUT.out(plain(delta.text).plain, end="")

    try:
        turn = runner.run(session.ask(text, tree, say))
    except KeyboardInterrupt:
        if not is_terminal():
            raise
        line = f"stopped after {counted(tree.calls, 'call')}"
        ERR.print("\n" + line if streamed else line, style="dim")
        return session.stopped(text)
    if not quiet:
        _print_turn(session, turn, streamed)
    return turn


def _print_turn(session: ChatSession, turn: Turn, streamed: bool) -> None:
    if turn.answer is not None and streamed:
        OUT.print()
    elif turn.answer is not None:
        OUT.print(plain(turn.answer), soft_wrap=not OUT.is_terminal)
    elif turn.status == "waiting":
        hint = reply_command(turn.trajectory, session.opened.folder)
        say(f"the question waits for a human: {hint}")
    else:
        OUT.print(f"no accepted answer ({turn.status}); /why shows its tree")
    if turn.status == "truncated":
        OUT.print("the token limit cut this answer: raise --max-tokens", style="yellow")
    if is_terminal():
        about = (
            f"{turn.status}, overseer {turn.overseer}, agent {turn.model}, "
            f"{counted(turn.calls, 'call')}, {counted(turn.tokens, 'token')}"
        )
        ERR.print(plain(about), style="dim")


def _run_command(session: ChatSession, line: str) -> RenderableType:
    """What a line that starts with `/` prints.

    Raises:
        UsageError: the command is unknown, or its argument is invalid.
    """
    name, _, argument = line.strip().partition(" ")
    if name not in COMMANDS:
        raise UsageError(f"unknown command {name}; /help lists commands")
    return COMMANDS[name][0](session, argument.strip())


def _model(session: ChatSession, name: str) -> RenderableType:
    client = endpoint()
    if name:
        if client is None:
            model_named(session.opened.folder, name)  # Raises if there is no such student.
        session.options = replace(session.options, model=name)
    if client is not None:
        return plain(f"agent {session.options.model} at {client.base_url}")
    models = [BASE, *(each.id for each in session.opened.folder.registry.list("agent"))]
    return plain(f"agent {session.options.model}; choose from {', '.join(models)}")


def _overseer(session: ChatSession, name: str) -> RenderableType:
    if name:
        name = id_of_overseer(name, session.opened.folder)
        named = None if name == ALONE else overseer_named(name)
        demos = session.options.demos if takes_demos(named) else {}
        session.options = replace(session.options, overseer=name, task="", demos=demos)
    names = ", ".join([*OVERSEERS, ALONE])
    return f"overseer {session.options.overseer or session.options.task}; choose from {names}"


def _last_tree(session: ChatSession) -> Node:
    turns = [turn for turn in session.conversation.turns if turn.trajectory]
    if not turns:
        raise UsageError("the conversation has no answer yet; ask a question first")
    turn = turns[-1]
    session.trajectory = newest(session.opened.store, turn.trajectory)
    tree = load_tree(session.opened.store, session.trajectory)
    tree.question = turn.user  # The recorded question repeats the whole conversation.
    if tree.status in ("running", "stopped"):
        tree.status = turn.status
    return tree


def _why(session: ChatSession, _: str) -> RenderableType:
    tree = _last_tree(session)
    view = tree_view(tree, why=True)
    view.add(f"[dim]{total_line(tree)}; trajectory {session.trajectory}[/]")
    return view


def _budget(session: ChatSession, limit: str) -> RenderableType:
    if limit:
        name, _, value = limit.partition(" ")
        session.set_limit(name, value.strip())
    table = _grid()
    for name in LIMITS:
        table.add_row(name, session.limit(name))
    turns = session.conversation.turns
    calls, tokens = sum(turn.calls for turn in turns), sum(turn.tokens for turn in turns)
    table.add_row("spent here", f"{counted(calls, 'call')}, {tokens:,} tokens")
    return table


def _save(session: ChatSession, file: str) -> RenderableType:
    if not file:
        raise UsageError("name the file: /save FILE; a .jsonl file gets a row for TRL")
    if "\0" in file:
        raise UsageError(f"{file!r} holds a NUL character; name another file")
    try:
        path = Path(file).expanduser()
    except RuntimeError as error:  # `~name` of an unknown user.
        raise UsageError(f"{file!r} is not a path ({error}); name another file") from error
    session.conversation.save(path)
    return plain(f"wrote {file}")


def _history(session: ChatSession, _: str) -> RenderableType:
    table = _grid()
    for turn in session.conversation.turns:
        table.add_row("[bold]you[/]", plain(turn.user))
        answer = f"({turn.status})" if turn.answer is None else turn.answer
        table.add_row("[bold]reflux[/]", plain(answer))
    return table if session.conversation.turns else "the conversation is empty"


def _help(session: ChatSession, _: str) -> RenderableType:
    table = _grid()
    for name, (_command, text) in COMMANDS.items():
        table.add_row(name, text)
    table.add_row("/quit", "leave; `reflux chat --resume last` continues")
    return table


def _grid() -> Table:
    return Table(show_header=False, box=None, pad_edge=False)


COMMANDS: Mapping[str, tuple[Callable[[ChatSession, str], RenderableType], str]] = {
    "/model": (_model, "show the agent; /model NAME changes it"),
    "/overseer": (_overseer, "show the overseer; /overseer NAME changes it, none switches it off"),
    "/tree": (
        lambda session, _: tree_view(_last_tree(session)),
        "show the tree of the last answer",
    ),
    "/why": (_why, "show the tree with votes, checks and cost"),
    "/budget": (_budget, "show limits and spending; /budget calls 50 sets a limit"),
    "/history": (_history, "show the conversation"),
    "/save": (_save, "/save FILE writes the conversation; a .jsonl file gets a row for TRL"),
    "/help": (_help, "show this list"),
}
