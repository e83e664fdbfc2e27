"""A human in the terminal: keys, lines, and replies to what is pending."""

import signal
import sys
import termios
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import typer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from rich.panel import Panel

from reflux.agents.errors import UsageError
from reflux.agents.overseers.scripted import (
    REPLY_FORMS,
    REPLY_HELP,
    asks_humans,
    parse_reply,
    step_text,
)
from reflux.ask_context import open_context
from reflux.cli.progress import LiveTree
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.interrupts import (
    Answered,
    InterruptibleRun,
    Pending,
    open_checkpoints,
)
from reflux.graphs.ask import WaitForHumans
from reflux.graphs.ask_options import AskOptions
from reflux.report.terminal import ERR, command, escape

END_KEYS = ("", "\x04", "\x1a")
"""End of input, Ctrl-D and Ctrl-Z."""


@contextmanager
def unechoed() -> Iterator[None]:
    """Keys pressed meanwhile are not shown; the next read still gets them."""
    if not is_terminal():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts blocking code at once: a line being typed, or code of the user's.

    asyncio's own handler would wait until that code returns.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def is_terminal() -> bool:
    return sys.stdin.isatty()


def read_key(prompt: str) -> str:
    """The pressed key in lower case, or the first letter of a piped line; `q` at the end."""
    ERR.print(prompt, style="dim", markup=False)
    if not is_terminal():
        line = sys.stdin.readline()
        return line.strip()[:1].lower() if line else "q"
    try:
        key = typer.getchar()
    except EOFError:
        return "q"
    if key == "\x03":
        raise KeyboardInterrupt
    return "q" if key in END_KEYS else key.lower()


def read_line(prompt: str) -> str:
    """A line; empty at the end of the input."""
    ERR.print(f"{prompt}: ", end="", markup=False)
    if not is_terminal():
        return sys.stdin.readline().rstrip("\n")
    try:
        return input()
    except EOFError:
        return ""


def read_lines(prompt: str, history: Path, commands: Sequence[str]) -> Iterator[str]:
    """Typed lines, with completion of commands and the history of earlier sessions; or piped lines.

    Args:
        history: file of typed lines; its folder is created.
    """
    if not is_terminal():
        yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory

    history.parent.mkdir(parents=True, exist_ok=True)
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)),
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
    )
    while True:
        try:
            line = session.prompt(prompt)
        except KeyboardInterrupt:
            continue  # Discards the line being typed.
        except EOFError:
            return
        if line.strip():
            yield line


def form_lines(form: Mapping[str, Any]) -> Iterator[str]:
    """What a form shows below its question: the transcript and the proposal."""
    for exchange in form.get("transcript", ()):
        yield f"  {exchange['question']} → {exchange['answer']}"
    if (proposal := form.get("proposal")) is not None:
        yield f"proposed: {step_text(proposal)}"


def form_view(pending: Pending) -> Panel:
    form = pending.form
    lines = [f"[bold]{escape(str(form.get('question', dict(form))))}[/]"]
    lines += map(escape, form_lines(form))
    title = pending.path or "the question itself"
    return Panel("\n".join(lines), title=title, title_align="left", subtitle=pending.id)


def reply_command(trajectory: str, folder: RunFolder) -> str:
    """The command that replies for a human to a question that waits."""
    return f'reflux reply {trajectory} "{REPLY_FORMS}" {command("--run", folder.path)}'


@asynccontextmanager
async def open_asking(
    opened: OpenRun, options: AskOptions, tree: LiveTree
) -> AsyncGenerator[tuple[AmplifyContext, AsyncSqliteSaver | None, WaitForHumans]]:
    """The context of a question, its checkpointer if it may wait for a human, and what lets a human
    in the terminal reply. The tree is drawn until then."""

    async def wait(run: InterruptibleRun, id: str, progress: Answered) -> Answered:
        if progress.pending:
            quiet.close()
        return await converse(run, id, progress)

    async with AsyncExitStack() as stack:
        quiet = stack.enter_context(ExitStack())
        quiet.enter_context(unechoed())
        quiet.callback(tree.hide)
        tree.show()
        context = await stack.enter_async_context(open_context(opened, options, tree))
        saver = None
        if any(map(asks_humans, context.overseers)):
            path = opened.folder.checkpoints_path
            saver = await stack.enter_async_context(open_checkpoints(path))
        yield context, saver, wait


async def converse(
    interruptible_run: InterruptibleRun, question_id: str, progress: Answered
) -> Answered:
    """Take replies from the terminal until nothing waits or the human leaves with Ctrl-D.

    If stdin is no terminal, nothing is asked.
    """
    while progress.pending and is_terminal():
        first = progress.pending[0]
        ERR.print(form_view(first))
        ERR.print(REPLY_HELP)
        try:
            with interruptible():
                step = parse_reply(_read())
            progress = await interruptible_run.reply(question_id, {first.id: step})
        except EOFError:
            break
        except UsageError as error:
            ERR.print(str(error))
    return progress


def _read() -> str:
    first = input("> ")
    if first.strip().lower() in ("", "approve", "pass") or first.lower().startswith("answer:"):
        return first
    lines = [first]
    while line := input("… "):
        lines.append(line)
    return "\n".join(lines)
