"""Tables and trees on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.tree import Tree

from graphs.tree import Node

STATUS_COLOUR = {"ok": "green", "rejected": "yellow", "over_budget": "yellow", "failed": "red"}


def score_text(score: Mapping[str, Any] | None) -> str:
    """`0.985 [0.97, 0.99] n=400`, or a dash."""
    if not score:
        return "–"
    low, high = score["ci95"]
    return f"{score['accuracy']:.3f} [{low:.2f}, {high:.2f}] n={score['n']}"


def rounds_table(rounds: Sequence[Mapping[str, Any]]) -> Table:
    """One line a round: direct, amplified, student, and what they cost."""
    table = Table(title="Accuracy on held-out questions, with 95% intervals", title_justify="left")
    for heading in ("round", "level", "agent X", "direct (base)", "amplified", "student"):
        table.add_column(heading, no_wrap=True)
    for heading in ("calls a question", "rows", "training", "promoted"):
        table.add_column(heading, justify="right")
    for r in rounds:
        amplified = r.get("amplified")
        table.add_row(
            str(r["round"]),
            str(r["level"]),
            r["agent"],
            score_text(r.get("direct")),
            score_text(amplified),
            score_text(r.get("student")),
            f"{amplified['calls'] / amplified['n']:.2f} → 1" if amplified else "1",
            str(r["rows"]),
            f"{r['train_seconds']:.0f} s",
            "yes" if r["promoted"] else "no",
        )
    return table


def tree_view(node: Node) -> Tree:
    """The tree of a trajectory, with who answered and what it cost."""
    tree = Tree(_line(node))
    for child in node.children:
        tree.children.append(tree_view(child))
    return tree


def _line(node: Node) -> str:
    colour = STATUS_COLOUR.get(node.status, "white")
    by = f" by {node.answered_by}" if node.answered_by else ""
    votes = f", {node.votes} votes" if node.votes > 1 else ""
    cost = f" ({node.calls} calls, {node.tokens} tokens{votes})" if node.calls else ""
    error = f" [dim]{escape(node.error)}[/]" if node.error and node.status != "ok" else ""
    answer = escape(node.answer) if node.answer is not None else "no answer"
    return f"{escape(node.question)} → [{colour}]{answer}[/]{by}{cost}{error}"


def escape(text: str) -> str:
    """Text of a model or user, shown as it is: no markup, no control characters."""
    from rich.markup import escape as escape_markup

    printable = "".join(c if c.isprintable() else " " for c in text)
    return escape_markup(printable if len(printable) <= 300 else printable[:297] + "…")
