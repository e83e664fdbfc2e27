"""A human in the terminal sees what is pending and replies to it."""

import sys

from rich.panel import Panel

from reflux.agents.errors import UsageError
from reflux.agents.overseers.human_reply import REPLY_HELP, parse_reply, step_text
from reflux.cli.contract import ERR
from reflux.cli.terminal_input import interruptible
from reflux.graphs.amplify.interrupts import (
    InterruptibleRun,
    Pending,
    RunProgress,
)
from reflux.report.terminal import escape


def form_view(pending: Pending) -> Panel:
    """The form that the human replies to."""
    form = pending.form
    lines = [f"[bold]{escape(str(form.get('question', dict(form))))}[/]"]
    for exchange in form.get("transcript", ()):
        lines.append(f"  {escape(exchange['question'])} → {escape(str(exchange['answer']))}")
    if (proposal := form.get("proposal")) is not None:
        lines.append(f"proposed: {escape(step_text(proposal))}")
    title = pending.path or "the question itself"
    return Panel("\n".join(lines), title=title, title_align="left", subtitle=pending.id)


async def converse(
    interruptible_run: InterruptibleRun, question_id: str, progress: RunProgress
) -> RunProgress:
    """Take replies from the terminal until nothing waits or the human leaves with Ctrl-D.

    If stdin is no terminal, nothing is asked.
    """
    while progress.pending and sys.stdin is not None and sys.stdin.isatty():
        first = progress.pending[0]
        ERR.print(form_view(first))
        ERR.print(REPLY_HELP, highlight=False)
        try:
            with interruptible():
                step = parse_reply(_read())
        except EOFError:
            break
        except UsageError as error:
            ERR.print(str(error), highlight=False)
            continue
        try:
            progress = await interruptible_run.reply(question_id, {first.id: step})
        except UsageError as error:
            ERR.print(str(error), highlight=False)
    return progress


def _read() -> str:
    first = input("> ")
    if first.strip().lower() in ("", "approve", "pass") or first.lower().startswith("answer:"):
        return first
    lines = [first]
    while line := input("… "):
        lines.append(line)
    return "\n".join(lines)
