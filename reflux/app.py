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

from agents.client import OpenAIClient, endpoint_from_env
from agents.errors import UsageError
from finetune.run_folder import RunFolder

T = TypeVar("T")
RUNS = Path("runs")
OUT = Console()
"""Results."""
ERR = Console(stderr=True)
"""Progress and errors."""

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
RunDir = Annotated[
    Path, typer.Option("--run", help="The run folder.", metavar="DIR", show_default=True)
]


def emit(body: Any) -> None:
    """Print the one JSON document of `--json`."""
    sys.stdout.write(json.dumps(body, indent=2) + "\n")


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
        raise UsageError(f"{path} holds no run; begin one with `reflux demo` or `reflux run`")
    return folder


def endpoint() -> OpenAIClient | None:
    """The user's own endpoint, where the environment names one."""
    return endpoint_from_env(dict(os.environ))
