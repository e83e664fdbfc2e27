"""Runs `reflux` and other programs in separate processes, forked from one that imported all."""

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path

LOADED = (
    "pytest",  # The main module of a process that runs tests without workers.
    "reflux.finetune.distillation",  # With TRL, PEFT and all that trains.
    "reflux.finetune.rounds",
    "transformers.models.llama.modeling_llama",  # The default model's.
    "reflux.cli.main",
    "matplotlib.pyplot",
    "tests.support.tls",
    "tests.support.frozen",  # The last, since it is about all the others.
)
"""Imported once, by the server that forks the processes."""


@cache
def _said() -> tempfile.TemporaryDirectory[str]:
    """What all commands of this process say, until it ends; none in the commands' own processes."""
    return tempfile.TemporaryDirectory(prefix="reflux-commands-")


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: int | None
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Running:
    """A command under way."""

    process: BaseProcess
    folder: Path
    """Holds what it says, in `out` and `err`."""

    def wait(self, seconds: float = 240) -> Ended:
        """Wait for its end, for at most so many seconds."""
        self.process.join(timeout=seconds)
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        return Ended(self.process.exitcode, out, err)


def begin(
    words: Sequence[str],
    env: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
    typed: str = "",
    loaded: Sequence[str] = LOADED,
) -> Running:
    """Start `reflux WORDS`; `before` runs in its process first. No endpoint is set but in `env`;
    `typed` is what comes by stdin, a pipe; the first call says what all processes have `loaded`."""
    return _start(_reflux, words, env, before, typed, loaded)


def begin_module(
    name: str, words: Sequence[str], before: Callable[[], None] | None = None
) -> Running:
    """Start `python -m NAME WORDS`; `before` runs in its process first."""
    return _start(_module, [name, *words], None, before, "", LOADED)


def _start(
    program: Callable[[list[str]], None],
    words: Sequence[str],
    env: Mapping[str, str] | None,
    before: Callable[[], None] | None,
    typed: str,
    loaded: Sequence[str],
) -> Running:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(loaded))
    folder = Path(tempfile.mkdtemp(dir=_said().name))
    (folder / "in").write_text(typed)
    given = (program, list(words), folder, dict(env or {}), before)
    process = server.Process(target=_main, args=given)
    process.start()
    return Running(process, folder)


def piped(path: Path) -> None:
    """Have the command read a file, or a pipe, whatever its bytes are: a `before` of `begin`."""
    os.dup2(os.open(path, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0, closefd=False)


def _reflux(words: list[str]) -> None:
    from reflux.__main__ import main

    sys.argv = ["reflux", *words]
    main()


def _module(words: list[str]) -> None:
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def _main(
    program: Callable[[list[str]], None],
    words: list[str],
    folder: Path,
    env: dict[str, str],
    before: Callable[[], None] | None,
) -> None:
    for number, name in enumerate(("in", "out", "err")):
        file = os.open(folder / name, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing has put another in its place.
    for name in [n for n in os.environ if n.startswith(("OPENAI_", "REFLUX_"))]:
        del os.environ[name]
    os.environ.update(env)
    if before is not None:
        before()
    program(words)
