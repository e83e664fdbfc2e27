"""The rounds as a whole: real training of a tiny base, a scripted X, stops at every stage.

Rounds of the default model are in `tests/cli/test_kills.py` and in the documentation's tutorial.
"""

import asyncio
import contextlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.types import ChatRequest
from reflux.finetune.configs.canaries import CanaryConfig
from reflux.finetune.configs.run import RoundsConfig, RoundSpec, read_config
from reflux.finetune.gates import GateConfig
from reflux.finetune.rounds import run_rounds
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.evals.task import Task, is_held_out
from reflux.tasks import run_task
from reflux.tasks.addition import Addition
from tests.support.run_folders import put_base
from tests.support.small_runs import run_small
from tests.support.sums import FewSums, exact, timeless

pytestmark = pytest.mark.engine

CONFIG = RoundsConfig(
    rounds=(
        RoundSpec(level=1, primitive_repeats=1),
        RoundSpec(level=2, questions=20, held_out=10, primitive_repeats=1),
        RoundSpec(level=3, questions=20, held_out=10, primitive_repeats=1),
    ),
    anchor=3,
    canaries=CanaryConfig(prompts=2, probes=2),
    gates=GateConfig(parity=0.0),  # Of so few answers.
    sft={"max_steps": 2, "per_device_train_batch_size": 4},
)


class Stopped(BaseException):
    """What a kill is to the code that it hits."""


async def climb(
    folder: Path,
    client: ScriptedClient,
    config: RoundsConfig = CONFIG,
    stop_at: str = "",
    task: Task | None = None,
) -> list[dict[str, Any]]:
    """Run the rounds of a folder, to the end or until `stop_at` begins."""

    def progress(what: str, done: int, total: int, detail: str) -> None:
        if stop_at and what.startswith(stop_at):
            raise Stopped

    async with OpenRun(RunFolder(folder), client=client) as run:
        return await run_rounds(run, config, task or Addition(), progress)


@pytest.fixture
def small(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny base in place of the default model."""
    put_base(tiny_base, monkeypatch.setattr)


@pytest.fixture(scope="module")
def undisturbed(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict], int]:
    """(folder, reports, calls) of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    client = ScriptedClient(exact)
    with pytest.MonkeyPatch.context() as patched:
        put_base(tiny_base, patched.setattr)
        return folder, asyncio.run(climb(folder, client)), len(client.requests)


def test_the_report_says_all_it_has_to(undisturbed: tuple[Path, list[dict], int]) -> None:
    folder, _, _ = undisturbed
    report = json.loads((folder / "report.json").read_text())
    assert [r["round"] for r in report["rounds"]] == [0, 1, 2]
    for r in report["rounds"]:
        assert {"task", "rows", "train_seconds", "promoted", "gates"} <= set(r)
        for system in ("direct", "amplified", "student"):
            if r["round"] == 0 and system == "amplified":
                assert r[system] is None
            else:
                assert {"accuracy", "n", "ci95", "calls", "tokens"} <= set(r[system])
    assert [r["rows"] for r in report["rounds"]] == [203, 223, 243]
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_each_student_comes_from_the_one_before(
    undisturbed: tuple[Path, list[dict], int],
) -> None:
    folder, reports, _ = undisturbed
    assert [r["agent"] for r in reports] == ["base", "student-r0", "student-r1"]
    students = RunFolder(folder).registry.list()
    assert [s.parent for s in students] == [None, "student-r0", "student-r1"]
    assert len({s.base.dequantised_sha256 for s in students}) == 1


def test_checkpoints_hold_stages_and_no_questions(
    undisturbed: tuple[Path, list[dict], int],
) -> None:
    folder, _, _ = undisturbed
    assert (folder / "checkpoints.db").stat().st_size < 500_000


async def test_a_run_stopped_at_every_stage_goes_on_and_asks_nothing_again(
    small: None, tmp_path: Path
) -> None:
    client = ScriptedClient(exact)
    reports = await climb(tmp_path / "undisturbed", client, task=FewSums())
    calls = len(client.requests)
    client = ScriptedClient(exact)
    for stage in (
        "the base answers the anchor",
        "the overseer answers its primitives",
        "load the base",
        "distill student-r0",
        "imitate the overseer: student",
        "amplify student-r0",
        "evaluate amplified",
        "canaries: student-r1",
        "distill student-r2",
        "compare the engines on student-r2",
    ):
        with pytest.raises(Stopped):
            await climb(tmp_path / "whole", client, stop_at=stage, task=FewSums())
    resumed = await climb(tmp_path / "whole", client, task=FewSums())
    asked = Counter(r.digest(f"scripted:{r.model}") for r in client.requests)
    assert max(asked.values()) == 1
    assert sum(asked.values()) == calls
    assert timeless(resumed) == timeless(reports)


async def test_a_finished_run_is_reported_and_not_run_again(
    undisturbed: tuple[Path, list[dict], int],
) -> None:
    folder, reports, _ = undisturbed
    client = ScriptedClient(exact)
    assert await climb(folder, client) == reports
    assert client.requests == []


async def test_a_failed_gate_ends_the_run_and_can_be_overruled(small: None, tmp_path: Path) -> None:
    def forgetful(request: ChatRequest) -> str:
        return "?" if request.model == "student-r1" else exact(request)

    rounds = tuple(spec.model_copy(update={"held_out": 4}) for spec in CONFIG.rounds)
    config = CONFIG.model_copy(
        update={"rounds": rounds, "canaries": CanaryConfig(prompts=0, probes=0)}
    )
    client = ScriptedClient(forgetful)
    reports = await climb(tmp_path / "r", client, config, task=FewSums())
    assert [r["promoted"] for r in reports] == [True, False]
    assert [g["name"] for g in reports[1]["gates"] if not g["passed"]] == [
        "retention",
        "no_regression",
        "forgetting",
    ]
    assert RunFolder(tmp_path / "r").current_model() == "student-r0"
    reports = await climb(tmp_path / "r", ScriptedClient(forgetful), config, task=FewSums())
    assert [r["agent"] for r in reports] == ["base", "student-r0", "student-r0"]
    assert RunFolder(tmp_path / "r").current_model() == "student-r2"


async def test_a_run_of_fewer_rounds_is_taken_further(small: None, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    client = ScriptedClient(exact)
    async with OpenRun(RunFolder(folder), client=client) as run:
        first = await run_rounds(run, CONFIG, FewSums(), lambda *_: None, rounds=1)
    assert [r["round"] for r in first] == [0]
    reports = await climb(folder, client, task=FewSums())
    assert [r["round"] for r in reports] == [0, 1, 2]
    assert reports[0] == first[0]


def of_some(request: ChatRequest) -> str:
    """Adds right as a student; the base adds wrong, but for even numbers."""
    a, b = (int(number) for number in re.findall(r"\d+", request.messages[-1][1])[:2] or (0, 0))
    return str(a + b + (a % 2 if request.model == "base" else 0))


async def test_a_file_of_questions_needs_no_round_0_and_goes_on_after_every_stop(
    tiny_base: Path, tmp_path: Path
) -> None:
    rows = [{"question": f"What is {a} plus 1?", "answer": str(a + 1)} for a in range(60)]
    rows[:20] = [{"question": row["question"]} for row in rows[:20]]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(
        "{questions: sums.jsonl, score: number, overseer: plain, rounds: 2, votes: {max_votes: 1}}"
    )
    config, client = read_config(tmp_path / "run.yaml"), ScriptedClient(of_some)
    stages = ["amplify base", "distill student-r1", "compare", ""]
    reports: list[dict[str, Any]] = []
    for stage in stages:

        def progress(what: str, done: int, total: int, detail: str, stage: str = stage) -> None:
            if stage and what.startswith(stage):
                raise Stopped

        with contextlib.suppress(Stopped):
            reports = await run_small(config, tmp_path / "run", tiny_base, client, progress)
    asked = Counter(request.digest(f"scripted:{request.model}") for request in client.requests)
    assert max(asked.values()) == 1
    assert [report["round"] for report in reports] == [1, 2]
    first, second = reports
    assert first["student"]["unscored"] > 0 and first["student"]["n"] > first["student"]["unscored"]
    assert 0 < first["amplified"]["accuracy"] < 1 == first["student"]["accuracy"]
    assert second["amplified"]["accuracy"] == second["agreement"]["share"] == 1.0
    assert first["agreement"]["share"] < 1
    assert "no_regression" not in {gate["name"] for gate in first["gates"]}
    assert "no_regression" in {gate["name"] for gate in second["gates"]}
    trained = "SELECT text FROM questions WHERE split='train' AND system='amplified'"
    with contextlib.closing(RunFolder(tmp_path / "run").store()) as store:
        texts = {row["text"] for row in store.select(trained)}
    task = run_task(config)
    assert not any(is_held_out(task, text) for text in texts)
    assert len(texts) >= (task.size("train") or 0) - 1
