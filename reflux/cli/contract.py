"""Options, consoles and the JSON output that all commands share."""

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
MAX_LIMIT = 10**9
"""Maximum of a `--limit`; SQLite integers end at 2^63."""


def drop_output() -> None:
    """Discard further output: the reader of stdout has closed its end."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


class PipedConsole(Console):
    """A console that outlives its reader, so that the exit code still tells of the work."""

    def on_broken_pipe(self) -> None:
        """Discard further output."""
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
    str | None,
    typer.Option("--model", help="The agent: base, a student, or your endpoint's model."),
]
Tools = Annotated[
    list[str] | None,
    typer.Option(
        "--tool", help="A tool of the copies: calculator, python, documents:FOLDER, mcp:COMMAND."
    ),
]
Depth = Annotated[int, typer.Option(help="Maximum levels of sub-questions.", min=0, max=16)]


def emit(body: Any) -> None:
    """Print the JSON document of `--json`."""
    try:
        sys.stdout.write(json.dumps(body, indent=2) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run the async part of a command."""
    return asyncio.run(work)


def open_existing(path: Path) -> RunFolder:
    """A run folder that holds trajectories.

    Raises:
        UsageError: it holds none.
    """
    folder = RunFolder(path)
    if not folder.traces_path.is_file():
        raise no_run(path)
    return folder


def open_students(path: Path) -> Registry:
    """The registry of a run folder; it may be empty.

    Raises:
        UsageError: the folder does not exist.
    """
    if not path.is_dir():
        raise no_run(path)
    return RunFolder(path).registry


def no_run(path: Path) -> UsageError:
    """The error for a folder that is missing or holds no run."""
    return UsageError(f"{path} holds no run; start one with `reflux demo` or `reflux run`")
