"""SIGKILL on a real run: the default model, real training, `--resume` after every kill.

Only 8 sums are learned by heart, and few answers compared, so that stages take seconds.
"""

import json
import random
import signal
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.commanding import Running, begin
from tests.support.sums import work_little

pytestmark = [
    pytest.mark.process,
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.timeout(900),  # On a loaded machine a run takes several times its quiet time.
]

CONFIG = """\
task: addition
rounds:
  - {level: 1, held_out: 4, primitive_repeats: 1}
  - {level: 2, questions: 8, held_out: 4, primitive_repeats: 1}
questions_per_level: 2
limits: {attempts: 1}  # A student of two steps says nothing that a second try would mend.
votes: {max_votes: 1}
anchor: 3
anchor_tokens: 4
canaries: 2
gates: {imitation: 0.0, retention: 0.0, regression: 1.0, behavior: 1.0, parity: 0.0}
sft: {max_steps: 2, per_device_train_batch_size: 1}
"""
STAGES = (
    "distill student-r0",
    "imitate the overseer: student",
    "evaluate amplified",
)


def said(command: Running) -> str:
    log = command.folder / "err"
    return log.read_text() if log.is_file() else ""


def kill_in_stage(words: Sequence[str], stage: str, after: float) -> None:
    """Start the run and kill it `after` seconds into `stage`."""
    command = begin(words, before=work_little)
    deadline = time.monotonic() + 240
    while stage not in said(command):
        assert command.process.is_alive(), said(command)
        assert time.monotonic() < deadline, said(command)
        time.sleep(0.02)
    time.sleep(after)
    command.process.kill()
    assert command.wait().code in (-signal.SIGKILL, 0)


def calls(folder: Path) -> list[tuple]:
    with sqlite3.connect(folder / "traces.db") as store:
        return store.execute(
            "SELECT id, question, path, role, completion FROM calls ORDER BY id"
        ).fetchall()


def test_a_run_killed_again_and_again_asks_no_finished_call_twice(tmp_path: Path) -> None:
    config, folder = tmp_path / "small.yaml", tmp_path / "run"
    config.write_text(CONFIG)
    words = ["run", "--config", str(config), "--run", str(folder)]
    moments = random.Random(0)
    kept: list[tuple] = []
    for stage in STAGES:
        kill_in_stage(words, stage, after=moments.uniform(0, 0.5))
        found = calls(folder)
        assert found[: len(kept)] == kept  # No call that was recorded is lost or changed.
        kept = found
        words = [*words[:5], "--resume"]
    finished = begin(words, before=work_little).wait(700)
    assert finished.code == 0, finished.stderr
    assert calls(folder)[: len(kept)] == kept
    with sqlite3.connect(folder / "traces.db") as store:
        asked = store.execute(
            "SELECT max(n) FROM (SELECT count(*) AS n FROM calls WHERE kind = 'model'"
            " AND cached = 0 AND error IS NULL GROUP BY request_digest)"
        ).fetchone()
    assert asked == (1,)
    rounds = json.loads((folder / "report.json").read_text())["rounds"]
    assert [r["round"] for r in rounds] == [0, 1]
