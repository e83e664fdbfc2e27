"""Progress on stderr: bars of a run's stages, and the tree of one question as it grows.

On a terminal both are drawn in place. In a log, a stage writes a line now and then.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.tree import Tree

from reflux.agents.clients.retries import on_wait
from reflux.agents.errors import UsageError
from reflux.graphs.traces.events import Event
from reflux.report.terminal import ERR, STATUS_COLOR, counted, escape, is_animated

LOG_SECONDS = 20.0
"""Minimum time between two log lines of one stage; REFLUX_PROGRESS_SECONDS overrides it."""
REFRESH_RATE = 8.0
"""Redraws of the growing tree per second."""
MAX_OPEN = 8
"""Running sub-questions shown below one question; the rest are counted."""
MAX_ANSWERED = 4
"""Answered sub-questions shown below one question: the newest."""


class ProgressView:
    """Shows the `(stage, done, total, detail)` calls of a run; safe to call from threads."""

    def __init__(self) -> None:
        self._bars = Progress(
            # Names of models and systems are the user's: no markup.
            TextColumn("{task.description:<34}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[detail]}", markup=False),
            console=ERR,
            disable=not is_animated(),
        )
        self._tasks: dict[str, TaskID] = {}
        self._logged: dict[str, float] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._log_seconds = _log_seconds()

    def __enter__(self) -> "ProgressView":
        self._bars.start()
        on_wait.set(self._waits)
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int, detail: str) -> None:
        if not total and detail:  # A note, which is no stage.
            self._bars.console.print(detail, markup=False, highlight=False, soft_wrap=True)
            return
        if not is_animated():
            self._log(stage, done, total, detail)
            return
        if stage not in self._tasks or done == 0:
            for earlier in self._tasks.values():
                self._bars.stop_task(earlier)
            self._tasks[stage] = self._bars.add_task(stage, total=total, detail=detail)
        self._bars.update(self._tasks[stage], completed=done, total=total, detail=detail)

    def _waits(self, text: str) -> None:
        """Show why a call of the newest stage waits."""
        if self._tasks and is_animated():
            self._bars.update(list(self._tasks.values())[-1], detail=text)
        elif text:
            self._log(text, 0, 0, "")

    def _log(self, stage: str, done: int, total: int, detail: str) -> None:
        now = time.monotonic()
        if 0 < done < total and now - self._logged.get(stage, 0) < self._log_seconds:
            return
        self._logged[stage] = now
        if done < 2 or stage not in self._begun:
            self._begun[stage] = (now, done)
        begun, first = self._begun[stage]
        if first < done < total:
            left = (now - begun) / (done - first) * (total - done)
            detail += f"{', ' if detail else ''}{left:.0f} s left"
        progress = f": {done}/{total} {detail}" if total else ""
        print(f"{stage}{progress}".rstrip(), file=sys.stderr, flush=True)


def _log_seconds() -> float:
    text = os.environ.get("REFLUX_PROGRESS_SECONDS") or str(LOG_SECONDS)
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"REFLUX_PROGRESS_SECONDS is {text!r}; give it a number") from error


@dataclass
class _LiveNode:
    """One question of a growing tree."""

    question: str
    answer: str | None = None
    status: str = ""
    """Empty while the question runs."""
    activity: str = ""
    children: dict[str, "_LiveNode"] = field(default_factory=dict[str, "_LiveNode"])


class LiveTree:
    """The tree that a question's events make; an answered question folds into one line."""

    def __init__(self, question: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._live = Live(self, console=ERR, refresh_per_second=REFRESH_RATE, transient=True)
        self._root = _LiveNode(question)
        self._nodes = {"": self._root}
        self._clock = clock
        self._start = clock()
        self.calls = 0
        self.tokens = 0
        self._left = ""
        self._waiting = ""

    def show(self) -> None:
        """Draw the tree as it grows, if stderr is a terminal."""
        on_wait.set(self._waits)
        if is_animated():
            self._live.start()

    def _waits(self, text: str) -> None:
        """Show why a call waits."""
        self._waiting = f", {text}" if text else ""
        if text and not is_animated():
            ERR.print(text)

    def hide(self) -> None:
        """Erase the drawing, for this time or for good."""
        self._live.stop()

    def __call__(self, event: Event) -> None:
        node = self._node(event["path"])
        match event["event"]:
            case "asked":
                node.question = event["question"]
                node.activity = event["to"]
            case "step":
                step = event["step"]
                if step["kind"] == "answer":
                    node.answer, node.status = str(step["text"]), "unchecked"
                else:
                    has_parts = step.get("subquestions")
                    node.activity = "split into sub-questions" if has_parts else "left to the agent"
            case "called":
                self.calls += 1
                self.tokens += event["tokens"]
                node.activity = event["model"]
                self._left = "".join(f", {n:.0f} {unit} left" for unit, n in event["left"].items())
            case "tool":
                node.activity = f"tool:{event['tool']}"
            case "link":
                link = f"link {event['number'] + 1:,}"
                node.activity = f"{link}: {event['question']} → {event['answer']}"
            case "retry":
                node.children.clear()
                node.activity = f"retry: the check {event['rule']} failed"
            case "weighed":
                node.children.clear()
                node.activity = "divided another way, to compare the answers"
            case "answered":
                node.answer, node.status = event["answer"], event["status"]

    def _node(self, path: str) -> _LiveNode:
        if path not in self._nodes:
            parent = self._node(path.rpartition("/")[0])
            self._nodes[path] = parent.children[path] = _LiveNode("")
        return self._nodes[path]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _tree_of(self._root)
        seconds = self._clock() - self._start
        yield (
            f"[dim]{counted(self.calls, 'call')}, {self.tokens} tokens, {seconds:.0f} s"
            f"{self._left}{self._waiting}; Ctrl-C stops[/]"
        )


def _tree_of(node: _LiveNode) -> Tree:
    tree = Tree(_line(node))
    if node.status:
        return tree
    children = list(node.children.values())  # A copy: events arrive on another thread.
    answered = [child for child in children if child.status]
    running = [child for child in children if not child.status]
    if len(answered) > MAX_ANSWERED:
        tree.add(f"[dim]{len(answered) - MAX_ANSWERED} more answered[/]")
    for child in [*answered[-MAX_ANSWERED:], *running[:MAX_OPEN]]:
        tree.children.append(_tree_of(child))
    if len(running) > MAX_OPEN:
        tree.add(f"[dim]{len(running) - MAX_OPEN} more running[/]")
    return tree


def _line(node: _LiveNode) -> str:
    if node.status:
        color = STATUS_COLOR.get(node.status, "white")
        answer = escape(node.answer) if node.answer is not None else "no answer"
        return f"{escape(node.question)} → [{color}]{answer}[/]"
    activity = f" [dim]… {escape(node.activity)}[/]" if node.activity else " [dim]…[/]"
    return escape(node.question) + activity
