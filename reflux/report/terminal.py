"""The terminal: consoles, tables and trees, and text of models without control characters."""

import json
import os
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape as escape_markup
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from reflux.agents.prompts import last_question
from reflux.graphs.amplify.state import Outcome, is_accepted
from reflux.graphs.recompute import under_way
from reflux.graphs.traces.revisions import first_of
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node

LINES = "\n"
"""What `printable` keeps in a text of several lines."""
MIN_WIDTH = 12
"""Characters of a column that may take several lines."""


def printable(text: str, keep: str = "") -> str:
    """The text with a blank for each unprintable character that is not in `keep`."""
    return "".join(char if char.isprintable() or char in keep else " " for char in text)


def cut_text(text: str, max_chars: int) -> str:
    """The text, cut after `max_chars` characters with a note of how many more there are."""
    more = len(text) - max_chars
    return f"{text[:max_chars]} … {more} characters more" if more > 0 else text


REASONING_CHARS = 400
"""Characters of a model's reasoning that a tree shows."""
STEPS = 30
"""Calls of a foreign node that a tree shows."""
STATUS_COLOR = {
    "ok": "green",
    "truncated": "yellow",
    "rejected": "yellow",
    "over_budget": "yellow",
    "failed": "red",
}
"""Green means that a check passed; `unchecked` stays neutral."""


def drop_output() -> None:
    """Discard further output: the reader of stdout has closed its end."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


class PipedConsole(Console):
    """A console that outlives its reader, so that the exit code still tells of the work."""

    def on_broken_pipe(self) -> None:
        drop_output()


OUT = PipedConsole(highlight=False, emoji=False)
"""Results."""
ERR = Console(stderr=True, highlight=False, emoji=False)
"""Progress and errors."""


def emit(body: Any) -> None:
    """Print the JSON document of `--json`."""
    try:
        sys.stdout.write(json.dumps(body, indent=2) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()


def is_animated() -> bool:
    """Whether stderr is a terminal that can be drawn on more than once."""
    return ERR.is_terminal and not ERR.is_dumb_terminal


def say(text: str | Text, console: Console = OUT, style: str = "") -> None:
    """Print a text as it stands, without breaking its lines: it may hold a command to copy."""
    console.print(plain(text) if isinstance(text, str) else text, style=style, soft_wrap=True)


def print_result(body: Any, view: RenderableType, as_json: bool) -> None:
    """Print the JSON document of `--json`, or what a human reads."""
    if as_json:
        emit(body)
    else:
        OUT.print(view, soft_wrap=not isinstance(view, Table))


def command(*words: object) -> str:
    """A command as a user can paste it into a shell."""
    return shlex.join(map(str, words))


class FittingTable(Table):
    """A table; a list of its rows where its columns would be too narrow to read."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = [[console.render_str(str(cell)) for cell in each.cells] for each in self.columns]
        width = len(columns) - 1
        for column, cells in zip(self.columns, columns, strict=True):
            widest = max(len(str(column.header)), *(cell.cell_len for cell in cells), 0)
            width += widest if column.no_wrap else min(widest, MIN_WIDTH)
        if width <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        yield from (f"[italic]{self.title}[/]", "") if self.title else ()
        for row in zip(*columns, strict=True):
            for column, cell in zip(self.columns, row, strict=True):
                yield Text.assemble((f"{column.header}: ", "bold"), cell)
            yield ""
        yield from (f"[italic dim]{self.caption}[/]",) if self.caption else ()


def table_of(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str = "",
    notes: Iterable[str] = (),
    wraps: Collection[str] | None = None,
    right: Collection[str] = (),
) -> Table:
    """A table of text, as it stands.

    Args:
        wraps: columns that may take several lines; by default all but the first.
        right: columns of numbers.
    """
    table = FittingTable(
        title=escape(title) or None,
        caption="\n".join(map(escape, notes)) or None,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for number, heading in enumerate(headings):
        folds = number > 0 if wraps is None else heading in wraps
        justify = "right" if heading in right else "left"
        table.add_column(heading, justify=justify, no_wrap=not folds, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def tree_view(node: Node, why: bool = False) -> Tree:
    """The tree of a trajectory, with who answered and the cost; `why` adds paths, votes, checks,
    and what humans said."""
    tree = Tree(_line(node) + (f" [dim]{node.path}[/]" if why and node.path else ""))
    for label, text in reasons(node) if why else ():
        tree.add(f"[dim]{escape(label)}: {escape(text)}[/]")
    for child in node.children:
        tree.children.append(tree_view(child, why))
    return tree


def reasons(node: Node) -> Iterator[tuple[str, str]]:
    """What led to the answer, as (label, text): votes, checks, and what humans said."""
    if node.division:
        yield "division", node.division
    if len(node.tally) > 1 or node.votes > 1:
        tally = ", ".join(f"{text} × {weight:g}" for text, weight in node.tally)
        yield "votes", tally or "none counts"
    if node.reasoning:
        yield "reasoning", cut_text(" ".join(node.reasoning.split()), REASONING_CHARS)
    for note in node.call_notes:
        yield "note", note
    for step in node.steps[:STEPS]:
        yield "call", cut_text(" ".join(step.split()), REASONING_CHARS)
    if len(node.steps) > STEPS:
        yield "call", f"{len(node.steps) - STEPS} more"
    for check in node.checks:
        rule = f": {check['rule']}" if check.get("rule") else ""
        yield "check passed" if check["ok"] else f"check failed{rule}", check["answer"]
    if node.verdict:
        yield "a human's verdict", node.verdict
    for comment in node.comments:
        yield "comment", comment


def total_line(tree: Node) -> str:
    """What a whole tree cost."""
    nodes = list(tree.walk())
    cached = sum(node.cached for node in nodes)
    calls = counted(sum(node.calls for node in nodes), "call")
    parts = [
        counted(len(nodes), "question"),
        f"{calls} ({cached} cached)" if cached else calls,
        f"{sum(node.tokens for node in nodes)} tokens",
        f"{sum(node.seconds for node in nodes):.1f} s of models",
    ]
    if money := sum(node.money for node in nodes):
        parts.append(f"{money:.4g} in money")
    return ", ".join(parts)


def _line(node: Node) -> str:
    color = STATUS_COLOR.get(node.status, "white")
    question = escape(last_question(node.question))
    if node.answer is not None:
        answer = escape(node.answer)
    else:
        answer = "not answered yet" if node.status == "running" else "no answer"
    if node.status not in ("ok", "unchecked", "running"):
        answer += f" ({node.status})"
    line = f"{question} → [{color}]{answer}[/]"
    if node.decomposition:
        line = f"[dim]decomposition {node.decomposition}:[/] {line}"
    if node.answered_by:
        line += f" by {escape(node.answered_by)}"
    if node.calls:
        votes = f", {node.votes} votes" if node.votes > 1 else ""
        money = f", {node.money:.3g}" if node.money else ""
        calls = counted(node.calls, "call")
        own = f"{calls}, {node.tokens} tokens, {node.seconds:.1f} s{votes}{money}"
        line += f" ({own})" if not node.children else f" (own: {own}; {in_all(node)})"
    elif node.children:
        line += f" ({in_all(node)})"
    if node.verdict:
        line += f" [bold]{node.verdict}[/]"
    if node.note:
        line += f" [dim]({escape(node.note)})[/]"
    if node.chain is not None:
        line += f" [dim]({_chain(node.chain)})[/]"
    rule = next((check["rule"] for check in reversed(node.checks) if check.get("rule")), "")
    reason = node.error or (f"failed the check {rule}" if rule else "")
    if reason and not is_accepted(node.status):
        line += f" [dim]{escape(reason)}[/]"
    return line


def in_all(node: Node) -> str:
    """What a node and all below it cost together."""
    total = node.total
    return f"in all: {counted(total['calls'], 'call')}, {total['tokens']} tokens"


def _chain(chain: Mapping[str, Any]) -> str:
    """`1,023 links, 31 in doubt; first QUESTION → ANSWER, last QUESTION → ANSWER`."""
    question, answer = chain["first"]
    ends = f"first {escape(question)} → {escape(answer or '–')}"
    if chain["links"] > 1:
        question, answer = chain["last"]
        ends += f", last {escape(question)} → {escape(answer or '–')}"
    return f"{chain['links']:,} links, {chain['doubtful']:,} in doubt; {ends}"


def counted(count: int, noun: str) -> str:
    """`1 call`, `2 calls`, `2 replies`."""
    plural = f"{noun[:-1]}ies" if noun.endswith(("ly", "ry")) else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def ended(outcome: Outcome) -> str:
    """The status of an outcome and, if known, the reason."""
    return f"{outcome['status']}: {outcome['error']}" if outcome["error"] else outcome["status"]


def escape(text: str) -> str:
    """Text of a model or user, cut to 300 characters: no markup, no control characters."""
    line = printable(text)
    return escape_markup(line if len(line) <= 300 else line[:297] + "…")


def plain(text: str) -> Text:
    """The whole text of a model or user with its lines: no markup, no control characters."""
    return Text(printable(text, LINES))


def answer_line(answer: str | None, about: str) -> Text:
    """The whole answer, followed by what it cost."""
    line = Text("\n")
    line.append("no answer" if answer is None else printable(answer, LINES), style="bold")
    return line.append(f"   {printable(about)}")


def resume_hint(store: TraceStore, question_id: str, run: Path) -> Text | None:
    """The command that completes a revision; None if the tree is recomputed to its end."""
    revision = under_way(store, question_id)
    if revision is None:
        return None
    path, answer = revision
    option = ["--again"] if answer is None else ["--edit", answer]
    node = f"{first_of(question_id)}{path}"
    return plain(
        f"{question_id} is not recomputed to its end; unless a process still works on it: "
        + command("reflux", "review", node, *option, "--run", run)
    )
