"""Options that commands share, and the run folder that they name."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from reflux import cli

if TYPE_CHECKING or not cli.SHOWS_HELP:
    from reflux.agents.errors import UsageError
    from reflux.finetune.configs.run import BaseConfig
    from reflux.finetune.registry import Registry
    from reflux.finetune.run_folder import RunFolder
    from reflux.graphs.amplify.context import Limits

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
TaskName = Annotated[
    str | None,
    typer.Option("--task", help="A task, or FILE.py:NAME. Default: that of the run."),
]
Overseer = Annotated[
    str | None,
    typer.Option(
        help="The overseer of any question: model, plain, human, reviewed, FILE.py:NAME or a "
        "learned one, STUDENT:overseer."
    ),
]
Candidates = Annotated[
    int | None,
    typer.Option(
        help="Decompositions to weigh against the direct answer; 0: the overseer's answer stands. "
        "Default: 2 for the overseer model, else 0.",
        min=0,
        max=16,
    ),
]
Route = Annotated[
    Path | None,
    typer.Option(
        "--route",
        help="The --out folder of an evaluation of direct and amplified, which decides what is "
        "divided.",
        metavar="FOLDER",
    ),
]
Cascade = Annotated[
    float | None,
    typer.Option(
        "--cascade",
        help="Divide only questions on which the agent is less sure than this, 0 to 1.",
        min=0,
        max=1,
        metavar="SHARE",
    ),
]
Demos = Annotated[
    Path | None,
    typer.Option(
        "--demos",
        help="Demonstrations for the overseer model: JSONL, as `reflux demos make` writes it.",
    ),
]
Policy = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="What untrusted text may reach: standard, strict, sealed, or a YAML file of a policy.",
        metavar="NAME",
    ),
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
BaseName = Annotated[
    str,
    typer.Option(
        "--base",
        help="The base: an id of the Hub, a folder, or a GGUF. Default: the run's, else the model "
        "in the wheel.",
        metavar="MODEL",
    ),
]


def folder_of(run: Path, base: str) -> RunFolder:
    """A run folder with the base that a command names; empty for the run's own."""
    return RunFolder(run, BaseConfig(model=base) if base else None)


def limits_of(
    depth: int, calls: int, tokens: int, seconds: float | None, candidates: int | None
) -> Limits:
    """The limits of one answer, with an attempt for each candidate."""
    attempts = max(Limits.attempts, 1 + (candidates or 0))
    return Limits(depth, attempts=attempts, calls=calls, tokens=tokens, seconds=seconds)


MaxTokens = Annotated[
    int | None,
    typer.Option(
        help="Maximum tokens of a reply, of the agent and the overseer. A task has its own.", min=1
    ),
]

TimeLimit = Annotated[
    float | None,
    typer.Option(
        "--time-limit",
        "--seconds",
        help="Maximum seconds of a question. Default for a graph: 300.",
        min=0,
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option(help="Questions at a time. Default for a graph: 8.", min=1),
]
Again = Annotated[bool, typer.Option("--again", help="Ask anew what is on the record.")]
InputKey = Annotated[str, typer.Option(help="The key of a graph's input that gets the question.")]
OutputKey = Annotated[
    str, typer.Option(help="The key of a graph's output that holds the answer, like a.b.0.")
]
Configurable = Annotated[
    list[str] | None,
    typer.Option(help="KEY=VALUE of a graph's config, or a YAML file; may be repeated."),
]
GraphContext = Annotated[
    list[str] | None,
    typer.Option(
        "--context", help="KEY=VALUE of a graph's context, or a YAML file; may be repeated."
    ),
]
MARGIN = 0.02
"""Default difference of accuracy that counts as none."""


def _sets(variable: str) -> Callable[[typer.Context, str], None]:
    """A callback that sets an environment variable for the length of the command: endpoints are
    read from the environment."""

    def put(context: typer.Context, value: str) -> None:
        if value:
            put_environment(context, {variable: value})

    return put


def put_environment(context: typer.Context, values: Mapping[str, str]) -> None:
    """Set variables until the command ends."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)

    def restore() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    context.call_on_close(restore)


def read_env_file(context: typer.Context, path: Path | None) -> None:
    """Read the variables of a `.env` file that are not set; without one, tell of a `.env` file
    that would set an endpoint.

    Raises:
        UsageError: there is no such file.
    """
    if path is None:
        if unread_endpoint():
            sys.stderr.write(".env sets OPENAI_BASE_URL and is not read: add --env-file .env\n")
    elif not path.is_file():
        raise UsageError(f"--env-file {path}: there is no such file")
    else:
        put_environment(context, _unset_values(path))


def unread_endpoint() -> bool:
    """True where a `.env` file in the working folder names an endpoint that is not set."""
    path = Path(".env")
    try:
        return path.is_file() and "OPENAI_BASE_URL" in _unset_values(path)
    except UsageError:
        return False


def _unset_values(path: Path) -> dict[str, str]:
    """The variables of a file that the environment lacks."""
    from dotenv import dotenv_values

    try:
        values = dotenv_values(path)
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(f"--env-file {path} cannot be read: {error}") from error
    return {name: value for name, value in values.items() if value and name not in os.environ}


def endpoint_options(
    thinking: Annotated[
        Literal["auto", "on", "off"],
        typer.Option(
            help="Whether models of an endpoint reason first.",
            callback=_sets("REFLUX_THINKING"),
            envvar="REFLUX_THINKING",
        ),
    ] = "auto",
    extra_body: Annotated[
        str,
        typer.Option(
            help="JSON object: further fields of each request to an endpoint.",
            callback=_sets("REFLUX_EXTRA_BODY"),
            envvar="REFLUX_EXTRA_BODY",
            metavar="JSON",
        ),
    ] = "",
    env_file: Annotated[
        Path | None,
        typer.Option(
            help="Read variables such as OPENAI_BASE_URL from this file.",
            callback=read_env_file,
            is_eager=True,
        ),
    ] = None,
) -> None:
    """Options of every command that asks models; `reflux.cli.main` adds them."""


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
