"""Options, consoles and the JSON output that all commands share."""

import asyncio
import json
import os
import sys
from collections.abc import Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table

from reflux.agents.errors import UsageError
from reflux.finetune.registry import Registry
from reflux.finetune.run_folder import RunFolder
from reflux.report.terminal import escape

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
        "--tool",
        help="A tool of the copies: calculator, python, documents:FOLDER, mcp:COMMAND or "
        "FILE.py:NAME.",
    ),
]
Depth = Annotated[int, typer.Option(help="Maximum levels of sub-questions.", min=0, max=16)]
Calls = Annotated[int, typer.Option(help="Maximum model calls per answer.", min=0)]
Tokens = Annotated[int, typer.Option(help="Maximum tokens per answer.", min=0)]
Seconds = Annotated[
    float | None, typer.Option(help="Seconds per answer after which no more calls begin.", min=0)
]


def emit(body: Any) -> None:
    """Print the JSON document of `--json`."""
    try:
        sys.stdout.write(json.dumps(body, indent=2) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()


def print_result(body: Any, view: RenderableType, as_json: bool) -> None:
    """Print the JSON document of `--json`, or what a human reads."""
    if as_json:
        emit(body)
    else:
        OUT.print(view, soft_wrap=not isinstance(view, Table), highlight=False)


def table_of(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of text, as it stands; the first column is not broken into lines."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def run_async(work: Coroutine[Any, Any, T]) -> T:
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
    """The registry of a run folder, which may be empty.

    Raises:
        UsageError: the folder does not exist.
    """
    if not path.is_dir():
        raise no_run(path)
    return RunFolder(path).registry


def no_run(path: Path) -> UsageError:
    return UsageError(f"{path} holds no run; start one with `reflux demo` or `reflux run`")
