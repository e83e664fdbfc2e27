"""What a user can say in a chat beside questions: `/help` and the others."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from reflux.agents.errors import UsageError
from reflux.ask_context import OVERSEERS, overseer_named
from reflux.cli.chat_session import CAPS, ChatSession
from reflux.graphs.ask_options import ALONE
from reflux.graphs.traces.revisions import newest
from reflux.graphs.traces.tree import Node, load_tree
from reflux.models import endpoint
from reflux.report.terminal import plain, total_line, tree_view

Command = Callable[[ChatSession, str], RenderableType]


def run_command(session: ChatSession, line: str) -> RenderableType:
    """What a line that begins with `/` shows.

    Raises:
        UsageError: there is no such command, or its words are none of its.
    """
    name, _, words = line.strip().partition(" ")
    if name not in COMMANDS:
        raise UsageError(f"there is no {name}; /help names the commands")
    return COMMANDS[name][0](session, words.strip())


def _model(session: ChatSession, words: str) -> RenderableType:
    own = endpoint()
    if words:
        if own is None:
            session.opened.folder.models(words)  # Raises where there is no such student.
        session.options = replace(session.options, model=words)
    if own is not None:
        return plain(f"X = {session.options.model}, at {own.base_url}")
    there = ["base", *(student.id for student in session.opened.folder.registry.list())]
    return plain(f"X = {session.options.model}; there are {', '.join(there)}")


def _overseer(session: ChatSession, words: str) -> RenderableType:
    if words:
        if words != ALONE:
            overseer_named(words)
        session.options = replace(session.options, overseer=words, task="")
    there = ", ".join([*OVERSEERS, ALONE])
    return f"H = {session.options.overseer or session.options.task}; there are {there}"


def _last_tree(session: ChatSession) -> Node:
    turns = [turn for turn in session.conversation.turns if turn.trajectory]
    if not turns:
        raise UsageError("nothing was asked yet")
    last = turns[-1]
    session.trajectory = newest(session.opened.store, last.trajectory)
    tree = load_tree(session.opened.store, session.trajectory)
    tree.question = last.user  # What was said before it is known here.
    if tree.status in ("running", "stopped"):
        tree.status = last.status
    return tree


def _tree(session: ChatSession, words: str) -> RenderableType:
    return tree_view(_last_tree(session))


def _why(session: ChatSession, words: str) -> RenderableType:
    tree = _last_tree(session)
    view = tree_view(tree, why=True)
    view.add(f"[dim]{total_line(tree)}; trajectory {session.trajectory}[/]")
    return view


def _budget(session: ChatSession, words: str) -> RenderableType:
    if words:
        name, _, value = words.partition(" ")
        session.set_cap(name, value.strip())
    table = Table(show_header=False, box=None, pad_edge=False)
    for name in CAPS:
        table.add_row(name, session.cap(name))
    turns = session.conversation.turns
    calls, tokens = sum(t.calls for t in turns), sum(t.tokens for t in turns)
    table.add_row("spent here", f"{calls:,} {'call' if calls == 1 else 'calls'}, {tokens:,} tokens")
    return table


def _save(session: ChatSession, words: str) -> RenderableType:
    if not words:
        raise UsageError("name the file: /save FILE; one that ends in .jsonl is a row for TRL")
    if "\0" in words:
        raise UsageError(f"{words!r} is no path: it holds a NUL character; name another file")
    try:
        path = Path(words).expanduser()
    except RuntimeError as error:  # Nobody has this name.
        raise UsageError(f"{words!r} is no path ({error}); name another file") from error
    session.conversation.save(path)
    return plain(f"{words} is written")


def _history(session: ChatSession, words: str) -> RenderableType:
    table = Table(show_header=False, box=None, pad_edge=False)
    for turn in session.conversation.turns:
        table.add_row("[bold]you[/]", plain(turn.user))
        answer = f"({turn.status})" if turn.answer is None else turn.answer
        table.add_row("[bold]reflux[/]", plain(answer))
    return table if session.conversation.turns else "nothing was said yet"


def _help(session: ChatSession, words: str) -> RenderableType:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, (_, told) in COMMANDS.items():
        table.add_row(name, told)
    table.add_row("/quit", "leave; `reflux chat --resume last` comes back")
    return table


COMMANDS: Mapping[str, tuple[Command, str]] = {
    "/model": (_model, "who X is; /model NAME asks another from now on"),
    "/overseer": (_overseer, "who H is; /overseer NAME takes another, `none` has X answer alone"),
    "/tree": (_tree, "the tree of the last answer"),
    "/why": (_why, "how the last answer came about: its tree with votes, checks and cost"),
    "/budget": (_budget, "limits of one answer, and what was spent; /budget calls 50 sets one"),
    "/history": (_history, "what was said"),
    "/save": (_save, "/save FILE writes the conversation; .jsonl as a row for TRL"),
    "/help": (_help, "this"),
}
