"""Text of models and users, made fit to be shown: no control characters, and not without end.

Tables and trees on the terminal.
"""

import html
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
from reflux.graphs.amplify.recompute import under_way
from reflux.graphs.amplify.state import Outcome, is_accepted
from reflux.graphs.traces.revisions import first_of
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node

LINES = "\n"
"""What `printable` keeps of a text of several lines."""


def printable(text: str, kept: str = "") -> str:
    """The text with a blank for every character that cannot be seen, but for those to be `kept`."""
    return "".join(char if char.isprintable() or char in kept else " " for char in text)


def cut_text(text: str, max_chars: int) -> str:
    """The text, cut after `max_chars` characters with a note of how many more there are."""
    more = len(text) - max_chars
    return f"{text[:max_chars]} … {more} characters more" if more > 0 else text


def html_text(text: str, max_chars: int) -> str:
    """Text of models and users as escaped HTML that keeps its lines."""
    return f'<span class="text">{html.escape(printable(cut_text(text, max_chars), LINES))}</span>'


STATUS_COLOUR = {
    "ok": "green",
    "truncated": "yellow",
    "rejected": "yellow",
    "over_budget": "yellow",
    "failed": "red",
}
"""Green means that a check passed; `unchecked` stays neutral."""
STATUS_CLASS = {"ok": "ok", "unchecked": "plain", "truncated": "warn", "running": "plain"}
"""The class of an answer on an HTML page; `bad` for every other status."""


def rounds_tables(rounds: Sequence[Mapping[str, Any]]) -> tuple[Table, Table]:
    """Two tables with a line a round, 80 columns wide: what was reached, and what it cost."""
    look: dict[str, Any] = {
        "title_justify": "left",
        "box": SIMPLE_HEAD,
        "show_edge": False,
        "pad_edge": False,
    }
    reached = Table(title="Accuracy on held-out questions, with 95% intervals", **look)
    for heading in ("round", "n", "base", "amplified", "student"):
        reached.add_column(heading, no_wrap=True)
    cost = Table(title="What it cost", **look)
    cost.add_column("round", justify="right")
    cost.add_column("agent X")
    for heading in ("calls each", "cached", "rows", "training", "rows/s"):
        cost.add_column(heading, justify="right", no_wrap=True)
    cost.add_column("promoted")
    for r in rounds:
        scores = [r.get(system) for system in ("direct", "amplified", "student")]
        failed = ", ".join(gate["name"] for gate in failed_gates(r["gates"]))
        reached.add_row(
            f"{r['round']} (level {r['level']})",
            str((r.get("student") or {}).get("n", "–")),
            *map(accuracy_text, scores),
        )
        amplified = r.get("amplified")
        cost.add_row(
            str(r["round"]),
            r["agent"],
            f"{amplified['calls'] / amplified['n']:.2f}" if amplified else "–",
            f"{amplified['cached'] / max(1, amplified['calls']):.0%}" if amplified else "–",
            str(r["trained_rows"]),
            f"{r['train_seconds']:.0f} s",
            f"{r['examples_per_second']:.1f}",
            "yes" if r["promoted"] else f"no: {failed}",
        )
    return reached, cost


def hard_lines(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each round of amplification found hard, and what became of the hard ones before it."""
    lines: list[str] = []
    for r in rounds:
        made = r["amplify"]
        if "failed" not in made or r["round"] == 0:
            continue
        n = made["questions"]
        line = (
            f"Round {r['round']}: of {n} training questions {made['failed'] / n:.1%} failed and "
            f"{made['doubtful'] / n:.1%} were in doubt"
        )
        if made["asked_again"]:
            line += (
                f"; {made['asked_again']} of them had been hard in the round before, "
                f"{made['accepted_again']} of those are accepted now"
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
    calls, cached = sum(n.calls for n in nodes), sum(n.cached for n in nodes)
    parts = [
        counted(len(nodes), "question"),
        counted(calls, "call") + (f" ({cached} cached)" if cached else ""),
        f"{sum(n.tokens for n in nodes)} tokens",
        f"{sum(n.seconds for n in nodes):.1f} s of models",
    ]
    if money := sum(n.money for n in nodes):
        parts.append(f"{money:.4g} in money")
    return ", ".join(parts)


def _line(node: Node) -> str:
    colour = STATUS_COLOUR.get(node.status, "white")
    by = f" by {escape(node.answered_by)}" if node.answered_by else ""
    votes = f", {node.votes} votes" if node.votes > 1 else ""
    money = f", {node.money:.3g}" if node.money else ""
    spent = (
        f"{counted(node.calls, 'call')}, {node.tokens} tokens, {node.seconds:.1f} s{votes}{money}"
    )
    cost = f" ({spent})" if node.calls else ""
    verdict = f" [bold]{node.verdict}[/]" if node.verdict else ""
    note = f" [dim]({escape(node.note)})[/]" if node.note else ""
    if node.chain is not None:
        note += f" [dim]({_chain(node.chain)})[/]"
    broken = next((said["rule"] for said in reversed(node.checks) if said.get("rule")), "")
    why = node.error or (f"refused by {broken}" if broken else "")
    error = f" [dim]{escape(why)}[/]" if why and not is_accepted(node.status) else ""
    missing = "not answered yet" if node.status == "running" else "no answer"
    answer = escape(node.answer) if node.answer is not None else missing
    if node.status not in ("ok", "unchecked", "running"):
        answer += f" ({node.status.replace('_', ' ')})"
    asked = escape(last_question(node.question))
    return f"{asked} → [{colour}]{answer}[/]{by}{cost}{verdict}{note}{error}"


def _chain(chain: Mapping[str, Any]) -> str:
    """`1,023 links, 31 in doubt; first QUESTION → ANSWER, last QUESTION → ANSWER`."""
    asked, answer = chain["first"]
    shown = f"first {escape(asked)} → {escape(answer or '–')}"
    if chain["links"] > 1:
        asked, answer = chain["last"]
        shown += f", last {escape(asked)} → {escape(answer or '–')}"
    return f"{chain['links']:,} links, {chain['doubtful']:,} in doubt; {shown}"


def counted(count: int, thing: str) -> str:
    """`1 call`, `2 calls`."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def ended(outcome: Outcome) -> str:
    """How a question ended, and why where that is known."""
    return f"{outcome['status']}: {outcome['error']}" if outcome["error"] else outcome["status"]


def escape(text: str) -> str:
    """Text of a model or user, shown as it is: no markup, no control characters."""
    shown = printable(text)
    return escape_markup(shown if len(shown) <= 300 else shown[:297] + "…")


def plain(text: str) -> Text:
    """The whole text of a model or user, with its lines: no markup, no control characters."""
    return Text(printable(text, LINES))


def answer_line(answer: str | None, about: str) -> Text:
    """The whole answer, however long, and after it what it took."""
    shown = Text("\n")
    shown.append("no answer" if answer is None else printable(answer, LINES), style="bold")
    return shown.append(f"   {printable(about)}")


def begun_hint(store: TraceStore, question_id: str, run: Path) -> Text | None:
    """How to go on with a person's word whose tree was not recomputed to its end; None where
    it
    was, or there is none."""
    begun = under_way(store, question_id)
    if begun is None:
        return None
    path, answer = begun
    word = "--again" if answer is None else f"--edit {shlex.quote(answer)}"
    node = f"{first_of(question_id)}{path}"
    return plain(
        f"{question_id} is not recomputed to its end; if nothing works on it any more: "
        f"reflux review {node} {word} --run {shlex.quote(str(run))}"
    )
