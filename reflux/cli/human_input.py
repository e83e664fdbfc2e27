"""Persons in the terminal: what waits for them is shown, and what they write becomes a step."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.panel import Panel

from reflux.agents.errors import UsageError
from reflux.cli.contract import ERR
from reflux.cli.terminal_input import interruptible
from reflux.graphs.amplify.interrupts import InterruptibleRun, Pending, RunProgress
from reflux.report.terminal import escape

CHOICES = "answer: TEXT | approve | pass | sub-questions, one a line"
"""What may stand where a reply's words are wanted."""
HELP = (
    "Reply with `answer: TEXT`, `approve` where a step is proposed, `pass` to leave it to X, or "
    "one sub-question a line and an empty line at the end. Ctrl-D leaves it waiting."
)


def step_of(reply: str) -> dict[str, Any]:
    """A person's words as a step: see `HELP`.

    Raises:
        UsageError: there are none, or an answer without words.
    """
    text = reply.strip()
    if not text:
        raise UsageError(f"an empty reply is no step. {HELP}")
    word, colon, rest = text.partition(":")
    if text.lower() in ("approve", "pass"):
        approves = text.lower() == "approve"
        return {"kind": "approve"} if approves else {"kind": "ask", "subquestions": []}
    if colon and word.strip().lower() == "answer":
        if not rest.strip():
            raise UsageError(f"an answer of nothing is none. {HELP}")
        return {"kind": "answer", "text": rest.strip()}
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return {"kind": "ask", "subquestions": [{"text": line, "needs": []} for line in lines]}


def form_view(pending: Pending) -> Panel:
    """What a person is shown."""
    form = pending.form
    lines = [f"[bold]{escape(str(form.get('question', dict(form))))}[/]"]
    for said in form.get("transcript", ()):
        lines.append(f"  {escape(said['question'])} → {escape(str(said['answer']))}")
    if (proposal := form.get("proposal")) is not None:
        lines.append(f"proposed: {escape(proposal_text(proposal))}")
    where = pending.path or "the question itself"
    return Panel("\n".join(lines), title=where, title_align="left", subtitle=pending.id)


def proposal_text(step: Mapping[str, Any]) -> str:
    """A step in one line."""
    if step["kind"] == "answer":
        return f"answer: {step['text']}"
    if step["kind"] == "chain":
        return f"chain: {step['first']}"
    asked = [s["text"] for s in step.get("subquestions", ())]
    return f"ask: {' | '.join(asked)}" if asked else "pass"


async def converse(
    interruptible_run: InterruptibleRun, question_id: str, progress: RunProgress
) -> RunProgress:
    """Show what waits and take replies from the terminal, until nothing waits or the person leaves.

    Where stdin is no terminal, nothing is asked.
    """
    while progress.pending and sys.stdin is not None and sys.stdin.isatty():
        first = progress.pending[0]
        ERR.print(form_view(first))
        ERR.print(HELP, highlight=False)
        try:
            with interruptible():
                reply = step_of(_read())
        except EOFError:
            break
        except UsageError as error:
            ERR.print(str(error), highlight=False)
            continue
        try:
            progress = await interruptible_run.reply(question_id, {first.id: reply})
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
