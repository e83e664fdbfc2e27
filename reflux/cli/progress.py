"""Progress on stderr: bars on a terminal, a line now and then in a log."""

import os
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from reflux.agents.errors import UsageError

QUIET_SECONDS = 20.0
"""In a log, the least time between two lines of one stage; REFLUX_PROGRESS_SECONDS sets another."""


class ProgressView:
    """Shows what `(what, done, total, detail)` calls tell; safe to call from threads."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Progress(
            # Names of models and systems are the user's: no markup.
            TextColumn("{task.description:<34}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._quiet = _quiet_seconds()

    def __enter__(self) -> "ProgressView":
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def __call__(self, what: str, done: int, total: int, detail: str) -> None:
        """Listener of a stage's progress."""
        if not self._console.is_terminal:
            self._say(what, done, total, detail)
            return
        if what not in self._tasks or done == 0:
            for finished in self._tasks.values():
                self._bars.stop_task(finished)
            self._tasks[what] = self._bars.add_task(what, total=total, detail=detail)
        self._bars.update(self._tasks[what], completed=done, total=total, detail=detail)

    def _say(self, what: str, done: int, total: int, detail: str) -> None:
        now = time.monotonic()
        if 0 < done < total and now - self._said.get(what, 0) < self._quiet:
            return
        self._said[what] = now
        sys.stderr.write(f"{what}: {done}/{total} {detail}".rstrip() + "\n")
        sys.stderr.flush()


def _quiet_seconds() -> float:
    given = os.environ.get("REFLUX_PROGRESS_SECONDS") or str(QUIET_SECONDS)
    try:
        return float(given)
    except ValueError as error:
        raise UsageError(f"REFLUX_PROGRESS_SECONDS is {given!r}; give it a number") from error
