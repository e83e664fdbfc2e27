"""Tables and trees on the terminal, and text of models and users without control characters."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape as escape_markup
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from reflux.conversation import last_question
from reflux.finetune.gates import failed_gates
from reflux.graphs.amplify.state import Outcome, is_accepted
from reflux.graphs.recompute import under_way
from reflux.graphs.traces.revisions import first_of
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node

LINES = "\n"
"""What `printable` keeps in a text of several lines."""


def printable(text: str, keep: str = "") -> str:
    """The text with a blank for each unprintable character that is not in `keep`."""
    return "".join(char if char.isprintable() or char in keep else " " for char in text)


def cut_text(text: str, max_chars: int) -> str:
    """The text, cut after `max_chars` characters with a note of how many more there are."""
    more = len(text) - max_chars
    return f"{text[:max_chars]} … {more} characters more" if more > 0 else text


REASONING_CHARS = 400
"""Characters of a model's reasoning that a tree shows."""
TABLE_STYLE: dict[str, Any] = {
    "title_justify": "left",
    "box": SIMPLE_HEAD,
    "show_edge": False,
    "pad_edge": False,
}
STATUS_COLOUR = {
    "ok": "green",
    "truncated": "yellow",
    "rejected": "yellow",
    "over_budget": "yellow",
    "failed": "red",
}
"""Green means that a check passed; `unchecked` stays neutral."""


def rounds_tables(rounds: Sequence[Mapping[str, Any]]) -> tuple[Table, Table]:
    """Accuracy and cost of each round, as two tables 80 columns wide."""
    accuracy = Table(title="Accuracy on held-out questions, with 95% intervals", **TABLE_STYLE)
    for heading in ("round", "n", "base", "amplified", "student"):
        accuracy.add_column(heading, no_wrap=True)
    cost = Table(title="Cost", **TABLE_STYLE)
    cost.add_column("round", justify="right")
    cost.add_column("agent")
    for heading in ("calls/question", "cached", "rows", "training", "rows/s"):
        cost.add_column(heading, justify="right", no_wrap=True)
    cost.add_column("promoted")
    for row in rounds:
        scores = [row.get(system) for system in ("direct", "amplified", "student")]
        failed = ", ".join(gate["name"] for gate in failed_gates(row["gates"]))
        accuracy.add_row(
            f"{row['round']} (level {row['level']})",
            str((row.get("student") or {}).get("n", "–")),
            *map(accuracy_text, scores),
        )
        amplified = row.get("amplified")
        cost.add_row(
            str(row["round"]),
            row["agent"],
            f"{amplified['calls'] / amplified['n']:.2f}" if amplified else "–",
            f"{amplified['cached'] / max(1, amplified['calls']):.0%}" if amplified else "–",
            str(row["trained_rows"]),
            f"{row['train_seconds']:.0f} s",
            f"{row['examples_per_second']:.1f}",
            "yes" if row["promoted"] else f"no: {failed}",
        )
    return accuracy, cost


def hard_lines(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many questions of each round were hard, and what became of the earlier hard ones."""
    lines: list[str] = []
    for row in rounds:
        amplify = row["amplify"]
        if "failed" not in amplify or row["round"] == 0:
            continue
        n = amplify["questions"]
        line = (
            f"Round {row['round']}: of {n} training questions {amplify['failed'] / n:.1%} failed "
            f"and {amplify['doubtful'] / n:.1%} were in doubt"
        )
        if amplify["asked_again"]:
            line += (
                f"; {amplify['asked_again']} had been hard in the round before, "
                f"{amplify['accepted_again']} of these are accepted now"
            )
        lines.append(line + ".")
    return lines


def accuracy_text(score: Mapping[str, Any] | None) -> str:
    """`0.985 [0.97, 0.99]`, or a dash."""
    if not score:
        return "–"
    low, high = score["ci95"]
    return f"{score['accuracy']:.3f} [{low:.2f}, {high:.2f}]"


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
    if len(node.tally) > 1 or node.votes > 1:
        tally = ", ".join(f"{text} × {weight:g}" for text, weight in node.tally)
        yield "votes", tally or "none counts"
    if node.reasoning:
        yield "reasoning", cut_text(" ".join(node.reasoning.split()), REASONING_CHARS)
    for note in node.call_notes:
        yield "note", note
    for check in node.checks:
        verdict = "passed" if check["ok"] else f"failed: {check.get('rule', '')}"
        yield f"check {verdict}", check["answer"]
    if node.verdict:
        yield "a human's verdict", node.verdict
    for comment in node.comments:
        yield "a human's comment", comment


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
    colour = STATUS_COLOUR.get(node.status, "white")
    question = escape(last_question(node.question))
    if node.answer is not None:
        answer = escape(node.answer)
    else:
        answer = "not answered yet" if node.status == "running" else "no answer"
    if node.status not in ("ok", "unchecked", "running"):
        answer += f" ({node.status})"
    line = f"{question} → [{colour}]{answer}[/]"
    if node.answered_by:
        line += f" by {escape(node.answered_by)}"
    if node.calls:
        votes = f", {node.votes} votes" if node.votes > 1 else ""
        money = f", {node.money:.3g}" if node.money else ""
        calls = counted(node.calls, "call")
        line += f" ({calls}, {node.tokens} tokens, {node.seconds:.1f} s{votes}{money})"
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


def _chain(chain: Mapping[str, Any]) -> str:
    """`1,023 links, 31 in doubt; first QUESTION → ANSWER, last QUESTION → ANSWER`."""
    question, answer = chain["first"]
    ends = f"first {escape(question)} → {escape(answer or '–')}"
    if chain["links"] > 1:
        question, answer = chain["last"]
        ends += f", last {escape(question)} → {escape(answer or '–')}"
    return f"{chain['links']:,} links, {chain['doubtful']:,} in doubt; {ends}"


def counted(count: int, noun: str) -> str:
    """`1 call`, `2 calls`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


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
    option = "--again" if answer is None else f"--edit {shlex.quote(answer)}"
    node = f"{first_of(question_id)}{path}"
    return plain(
        f"{question_id} is not recomputed to its end; unless a process still works on it: "
        f"reflux review {node} {option} --run {shlex.quote(str(run))}"
    )
