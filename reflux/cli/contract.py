"""What every command shares: the contract of errors, exit codes and `--json`."""

import asyncio
import json
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from reflux.agents.errors import UsageError
from reflux.finetune.registry import Registry
from reflux.finetune.run_folder import RunFolder

T = TypeVar("T")
RUNS = Path("runs")
MOST = 10**9
"""Lines of a list; SQLite knows no number beyond 2^63."""


def drop_output() -> None:
    """Send what is still to be printed nowhere: its reader has left."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class PipedConsole(Console):
    """A console that goes on when its reader leaves, so that the exit code tells of the work."""

    def on_broken_pipe(self) -> None:
        """Listener that the reader has left."""
        drop_output()


OUT = PipedConsole()
"""Results."""
ERR = Console(stderr=True)
"""Progress and errors."""

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
RunDir = Annotated[
    Path, typer.Option("--run", help="The run folder.", metavar="DIR", show_default=True)
]
Model = Annotated[
    str | None, typer.Option("--model", help="X: base, a student, or your endpoint's model.")
]
Tools = Annotated[
    list[str] | None,
    typer.Option("--tool", help="For copies: calculator, python, documents:FOLDER, mcp:COMMAND."),
]
Depth = Annotated[int, typer.Option(help="Levels of sub-questions.", min=0, max=16)]


def emit(body: Any) -> None:
    """Print the one JSON document of `--json`."""
    try:
        sys.stdout.write(json.dumps(body, indent=2) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's async part to its end; the one sync wrapper of the commands."""
    return asyncio.run(work)


def open_existing(path: Path) -> RunFolder:
    """A run folder that has trajectories.

    Raises:
        UsageError: there are none.
    """
    folder = RunFolder(path)
    if not folder.traces_path.is_file():
        raise no_run(path)
    return folder


def open_students(path: Path) -> Registry:
    """The students of a run folder, of which there may be none yet.

    Raises:
        UsageError: there is no such folder.
    """
    if not path.is_dir():
        raise no_run(path)
    return RunFolder(path).registry


def no_run(path: Path) -> UsageError:
    """The error of a folder that is none, or holds no run."""
    return UsageError(f"{path} holds no run; begin one with `reflux demo` or `reflux run`")
