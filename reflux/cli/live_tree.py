"""The tree as it grows in the terminal, folded as it goes: what is answered takes one line."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.tree import Tree

from reflux.graphs.traces.events import Event
from reflux.report.terminal import STATUS_COLOUR, counted, escape

OPEN = 8
"""Unanswered sub-questions of one question that are shown; the others are counted."""
DONE = 4
"""Answered ones, the newest."""


@dataclass
class _Growing:
    """A question under way."""

    question: str
    answer: str | None = None
    status: str = ""
    doing: str = ""
    children: dict[str, "_Growing"] = field(default_factory=dict[str, "_Growing"])


class LiveTree:
    """Hears the events of one question and shows the tree that they make."""

    def __init__(self, question: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = _Growing(question)
        self._nodes = {"": self._root}
        self._clock = clock
        self._begun = clock()
        self.calls = 0
        self.tokens = 0
        self._left = ""

    def __call__(self, event: Event) -> None:
        """Listener of one event."""
        node = self._node(event["path"])
        match event["event"]:
            case "asked":
                node.question = event["question"]
                node.doing = event["to"]
            case "step":
                self._step(node, event["step"])
            case "called":
                self.calls += 1
                self.tokens += event["tokens"]
                node.doing = event["model"]
                self._left = "".join(f", {n:.0f} {what} left" for what, n in event["left"].items())
            case "tool":
                node.doing = f"tool:{event['tool']}"
            case "link":
                node.doing = (
                    f"link {event['number'] + 1:,}: {event['question']} → {event['answer']}"
                )
            case "retry":
                node.children.clear()
                node.doing = f"again: the check {event['rule']} failed"
            case "answered":
                node.answer, node.status = event["answer"], event["status"]

    def _node(self, path: str) -> _Growing:
        if path not in self._nodes:
            above = self._node(path.rpartition("/")[0])
            self._nodes[path] = above.children[path] = _Growing("")
        return self._nodes[path]

    def _step(self, node: _Growing, step: dict[str, object]) -> None:
        if step["kind"] == "answer":
            node.answer, node.status = str(step["text"]), "unchecked"
        else:
            node.doing = "H divides it" if step.get("subquestions") else "left to X"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _grown(self._root)
        seconds = self._clock() - self._begun
        yield (
            f"[dim]{counted(self.calls, 'call')}, {self.tokens} tokens, {seconds:.0f} s"
            f"{self._left}; Ctrl-C stops[/]"
        )


def _grown(node: _Growing) -> Tree:
    """A node with what is under way below it; of what is answered, a line."""
    tree = Tree(_line(node))
    if node.status:
        return tree
    children = list(
        node.children.values()
    )  # At once: another thread draws than the one that hears.
    done = [child for child in children if child.status]
    going = [child for child in children if not child.status]
    if len(done) > DONE:
        tree.add(f"[dim]{len(done) - DONE} more are answered[/]")
    for child in [*done[-DONE:], *going[:OPEN]]:
        tree.children.append(_grown(child))
    if len(going) > OPEN:
        tree.add(f"[dim]{len(going) - OPEN} more are under way[/]")
    return tree


def _line(node: _Growing) -> str:
    if node.status:
        colour = STATUS_COLOUR.get(node.status, "white")
        answer = escape(node.answer) if node.answer is not None else "no answer"
        return f"{escape(node.question)} → [{colour}]{answer}[/]"
    doing = f" [dim]… {escape(node.doing)}[/]" if node.doing else " [dim]…[/]"
    return escape(node.question) + doing
