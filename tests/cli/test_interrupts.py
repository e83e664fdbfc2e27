"""Ctrl-C or SIGTERM in every stage: one message, exit code 130, nothing answered asked again.

Each process runs the command line as a user does, on a scripted X and a tiny base. At the moment
that is to be interrupted it waits until the signal is sent, so that no clock decides where it hits.
"""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.types import ChatRequest, Completion
from reflux.finetune.run_folder import RunFolder
from tests.support.commanding import Running, begin
from tests.support.run_folders import put_base
from tests.support.sums import exact, learn_few_sums

pytestmark = pytest.mark.process

CONFIG = """\
task: addition
rounds:
  - {level: 1, primitive_repeats: 1}
  - {level: 2, questions: 20, held_out: 10, primitive_repeats: 1}
anchor: 6
canaries: 4
max_concurrency: 4
engine: llama.cpp
gates: {imitation: 0.0, retention: 0.0, regression: 1.0, behavior: 1.0}
sft: {max_steps: 3, per_device_train_batch_size: 2}
lora: {r: 2}
"""
MOMENTS = (
    ("the base answers the anchor", 2),
    ("the overseer answers its primitives", 7),
    ("load the base", 0),
    ("distill student-r0", 2),
    ("imitate the overseer: direct", 5),
    ("canaries: student-r0", 2),
    ("report", 1),
    ("amplify student-r0", 9),
    ("compare the engines on student-r1", 0),
    ("evaluate amplified", 4),
    ("report", 2),
)
"""In the order of a run: (stage, how far it has come when Ctrl-C is pressed)."""


class NotingClient:
    """X by a script; notes what it has answered, in a file that outlives the process."""

    def __init__(self, answered: Path, hold: Callable[[str, int], None]) -> None:
        self._answered, self._hold, self._asked = answered, hold, 0

    async def complete(self, request: ChatRequest) -> Completion:
        self._asked += 1
        await asyncio.sleep(0.001 * (self._asked % 4))
        self._hold("call", self._asked)
        with self._answered.open("a") as file:
            file.write(request.digest(f"scripted:{request.model}") + "\n")
        return Completion(exact(request), 9, 3)

    async def model_digest(self, model: str) -> str:
        return f"scripted:{model}"

    async def load(self, model: str) -> None: ...

    async def close(self) -> None: ...


def prepare(root: Path, base: Path, moment: tuple[str, int] | None) -> None:
    """Put the script and the tiny base in place, and wait for the signal when `moment` comes."""
    import torch

    from reflux.cli import trace_files
    from reflux.cli.progress import ProgressView
    from reflux.finetune import engines, rounds

    torch.set_num_threads(1)
    tempfile.tempdir = str(root)

    def hold(what: str, done: int) -> None:
        if (what, done) == moment:
            (root / "reached").touch()
            while not (root / "sent").exists():
                time.sleep(0.002)

    def before(named: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def held(*given: Any, **options: Any) -> Any:
            hold(named, len(given[1]) if named == "report" else 0)
            return work(*given, **options)

        return held

    client = NotingClient(root / "answered", hold)
    learn_few_sums()
    engines.LlamaCppClient = engines.BatchedClient = lambda *_: client
    put_base(base)
    rounds.write_report = before("report", rounds.write_report)
    trace_files.export = before("export", trace_files.export)
    show = ProgressView.__call__

    def progress(self: ProgressView, stage: str, done: int, total: int, detail: str) -> None:
        show(self, stage, done, total, detail)
        hold(stage, done)

    ProgressView.__call__ = progress
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(
    words: Sequence[str], root: Path, base: Path, moment: tuple[str, int] | None = None
) -> Running:
    for name in ("reached", "sent"):
        (root / name).unlink(missing_ok=True)
    return begin(words, before=partial(prepare, root, base, moment))


SIGNALS = ((signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT, signal.SIGINT))


def interrupt(
    words: Sequence[str],
    root: Path,
    base: Path,
    moment: tuple[str, int],
    sent: Sequence[signal.Signals] = (signal.SIGINT,),
) -> None:
    """Press Ctrl-C at a moment of a command, or twice, or terminate it; it ends in one message."""
    command = start(words, root, base, moment)
    while not (root / "reached").exists():
        assert command.process.is_alive(), (moment, command.wait())
        time.sleep(0.002)
    assert command.process.pid is not None
    for each in sent:
        os.kill(command.process.pid, each)
    (root / "sent").touch()
    ended = command.wait()
    assert ended.code == 130, (moment, ended)
    assert ended.stderr.count("reflux: interrupted") == 1, (moment, ended)
    assert "Traceback" not in ended.stderr, (moment, ended)


def finish(words: Sequence[str], root: Path, base: Path) -> None:
    ended = start(words, root, base).wait()
    assert ended.code == 0, ended


def calls(folder: Path) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(folder / "traces.db")) as store:
        return store.execute("SELECT * FROM calls ORDER BY id").fetchall()


@pytest.fixture(scope="module")
def interrupted(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(root, run folder) of a run that was interrupted in every stage and then ended."""
    root = tmp_path_factory.mktemp("interrupted")
    config, folder = root / "small.yaml", root / "run"
    config.write_text(CONFIG)
    words = ["run", "--config", str(config), "--run", str(folder)]
    kept: list[tuple[Any, ...]] = []
    for moment, sent in zip(MOMENTS, cycle(SIGNALS), strict=False):
        interrupt(words, root, tiny_base, moment, sent)
        found = calls(folder)
        assert found[: len(kept)] == kept, moment
        kept = found
        words = ["run", "--resume", "--run", str(folder)]
    finish(words, root, tiny_base)
    assert calls(folder)[: len(kept)] == kept
    return root, folder


def test_a_run_interrupted_in_every_stage_ends_whole(interrupted: tuple[Path, Path]) -> None:
    _, folder = interrupted
    reports = json.loads((folder / "report.json").read_text())["rounds"]
    assert [r["round"] for r in reports] == [0, 1]
    assert [r["promoted"] for r in reports] == [True, True]
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    registry = RunFolder(folder).registry
    assert [registry.get(s.id).id for s in registry.list()] == ["student-r0", "student-r1"]
    left = [p.name for p in (folder / "students").iterdir() if p.name.startswith(".")]
    assert left == []


def test_whatever_was_answered_before_an_interrupt_is_never_asked_again(
    interrupted: tuple[Path, Path],
) -> None:
    root, folder = interrupted
    answered = Counter((root / "answered").read_text().splitlines())
    with sqlite3.connect(folder / "traces.db") as store:
        # The batched engine answers the last comparison beside the client that notes its requests.
        noted = "SELECT request_digest FROM calls WHERE model_digest NOT LIKE 'bf16:%'"
        recorded = {d for (d,) in store.execute(noted) if d}
    assert max(answered.values()) == 1
    assert set(answered) == recorded


@pytest.mark.parametrize(
    ("words", "moment", "made"),
    [
        (["ask", "1234+4321", "--task", "addition"], ("call", 2), None),
        (["eval", "--level", "2", "--limit", "8"], ("evaluate direct", 3), None),
        (["eval", "--level", "2", "--limit", "8"], ("evaluate amplified", 3), None),
        (["distill", "--student", "mine"], ("distill mine", 1), "run/students/mine"),
        (["traces", "export", "rows.jsonl"], ("export", 0), "rows.jsonl"),
    ],
)
def test_other_commands_interrupted_lose_no_call_and_can_be_given_again(
    interrupted: tuple[Path, Path],
    tiny_base: Path,
    words: list[str],
    moment: tuple[str, int],
    made: str | None,
) -> None:
    root, folder = interrupted
    words = [str(root / word) if word == made else word for word in words]
    words += ["--run", str(folder)]
    if words[0] == "distill":
        (root / "mine.yaml").write_text("sft: {max_steps: 3}\nlora: {r: 2}\n")
        words += ["--config", str(root / "mine.yaml")]
    kept = calls(folder)
    interrupt(words, root, tiny_base, moment)
    assert made is None or not (root / made).exists()
    assert calls(folder)[: len(kept)] == kept
    finish(words, root, tiny_base)
    assert made is None or (root / made).exists()
    assert calls(folder)[: len(kept)] == kept


def test_an_evaluation_on_the_real_engine_is_interrupted(tmp_path: Path) -> None:
    """Two thousand questions: far more than a moment's work."""
    words = ["eval", "--task", "addition", "--limit", "2000", "--systems", "direct"]
    words += ["--level", "9", "--run", str(tmp_path / "r")]
    command = begin(words)
    recorded: list[tuple[Any, ...]] = []
    while not any("model" in call for call in recorded):
        assert command.process.is_alive()
        time.sleep(0.01)
        with contextlib.suppress(sqlite3.Error):  # It is being made.
            recorded = calls(tmp_path / "r")
    os.kill(command.process.pid or 0, signal.SIGINT)
    ended = command.wait(60)
    assert ended.code == 130, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.splitlines()[-1].startswith("reflux: interrupted")
    assert calls(tmp_path / "r")[: len(recorded)] == recorded
