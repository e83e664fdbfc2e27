"""Options that commands share, and the run folder that they name."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from reflux import cli

if TYPE_CHECKING or not cli.SHOWS_HELP:
    from reflux.agents.errors import UsageError
    from reflux.finetune.registry import Registry
    from reflux.finetune.run_folder import RunFolder

T = TypeVar("T")
DEFAULT_RUN = Path("runs/default")
"""The run folder of every command that names none."""
MAX_LIMIT = 10**9
"""Maximum of a `--limit`; SQLite integers end at 2^63."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
RunDir = Annotated[
    Path, typer.Option("--run", help="The run folder.", metavar="DIR", envvar="REFLUX_RUN")
]
Model = Annotated[
    str | None,
    typer.Option(
        help="The agent: base, a student, or your endpoint's model. Default: the promoted student."
    ),
]
TaskName = Annotated[str | None, typer.Option("--task", help="Default: the task of the run.")]
Overseer = Annotated[
    str | None, typer.Option(help="The overseer of any question: model, plain, human or reviewed.")
]
Tools = Annotated[
    list[str] | None,
    typer.Option(
        "--tool", help="A tool of the copies: calculator, python, documents:FOLDER, mcp:COMMAND."
    ),
]
Depth = Annotated[int, typer.Option(help="Maximum levels of sub-questions.", min=0, max=16)]
Calls = Annotated[int, typer.Option(help="Maximum model calls per answer.", min=0)]
Tokens = Annotated[int, typer.Option(help="Maximum tokens per answer.", min=0)]
Seconds = Annotated[
    float | None, typer.Option(help="Seconds per answer after which no more calls begin.", min=0)
]
MaxTokens = Annotated[
    int | None, typer.Option(help="Maximum tokens per model call. A task has its own.", min=1)
]
Trajectory = Annotated[str, typer.Argument(help="Id, or the start of an id.", metavar="ID")]


def run_async(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def open_existing(path: Path) -> RunFolder:
    """A run folder that holds trajectories.

    Raises:
        UsageError: it holds none.
    """
    folder = RunFolder(path)
    if not folder.traces_path.is_file():
        raise _no_run(path)
    return folder


def open_students(path: Path) -> Registry:
    """The registry of a run folder, which may be empty.

    Raises:
        UsageError: the folder does not exist.
    """
    if not path.is_dir():
        raise _no_run(path)
    return RunFolder(path).registry


def known_runs() -> list[Path]:
    """The run folders in `runs/`, the last used one first."""
    files = sorted(DEFAULT_RUN.parent.glob("*/traces.db*"), key=lambda file: -file.stat().st_mtime)
    return list(dict.fromkeys(file.parent for file in files))


def _no_run(path: Path) -> UsageError:
    runs = known_runs()
    last = f"; the last one used is {runs[0]}: name it with --run, or in REFLUX_RUN" if runs else ""
    return UsageError(f"{path} holds no run; start one with `reflux demo` or `reflux run`{last}")
