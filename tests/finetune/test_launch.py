"""Training in several processes: the loss of one with the same global batch, and its errors."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.errors import RefluxError, UsageError
from reflux.finetune.bases import Base
from reflux.finetune.configs.run import BaseConfig, DistillConfig
from reflux.finetune.distillation import StudentPlan, distill
from reflux.finetune.registry import Registry
from reflux.finetune.train.launch import check_launch, train_in_processes, work
from reflux.finetune.train.sft import train
from tests.support.commanding import LOADED

pytestmark = [pytest.mark.engine, pytest.mark.process]

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"{a}+{b}=?"}],
        "completion": [{"role": "assistant", "content": str(a + b)}],
    }
    for a in range(8)
    for b in range(4)
]
"""Two whole batches of 16: accelerate fills up a last one that does not divide by processes."""
SFT = {"learning_rate": 1e-2, "warmup_steps": 2, "max_steps": 3}
TWO = {"num_processes": 2}


def launched(base: Path, out: Path, *, rows: Any = ROWS, stop: Any = None, **more: Any) -> Any:
    heard: list[Any] = []
    settings: dict[str, Any] = {"sft": SFT, "lora": {}, "seed": 0, "evaluation": 0.0} | more
    (out.parent / "checkpoints").mkdir(exist_ok=True)
    report = train_in_processes(
        rows,
        Base(BaseConfig(model=str(base)), given=base),
        out,
        TWO,
        lambda: stop(heard) if stop else None,
        on_progress=heard.append,
        on_note=heard.append,
        checkpoints=out.parent / "checkpoints",
        early_stopping=None,
        **settings,
    )
    return heard, report


def test_two_processes_have_the_loss_of_one_with_the_same_global_batch(
    tiny_base: Path, tmp_path: Path
) -> None:
    batch = "per_device_train_batch_size"
    one = train(ROWS, tiny_base, tmp_path / "one", sft={**SFT, batch: 16})
    heard, two = launched(tiny_base, tmp_path / "two", sft={**SFT, batch: 8})
    losses = [[loss for _, loss in curve["loss"]] for curve in (one.curve, two["curve"])]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert [step.step for step in heard[1:]] == [1, 2, 3]
    assert "32 rows" in heard[0]
    assert (two["rows"], two["steps"]) == (32, 3)
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert names == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.parametrize(
    ("program", "error", "told"),
    [
        ('tell(error="UsageError", text="row 3 is odd"); time.sleep(60)', UsageError, "row 3 is"),
        ('print("port 5 is taken"); sys.exit(4)', RefluxError, "code 4: port 5 is taken"),
        ("time.sleep(60)", RefluxError, "stopped here"),
    ],
)
def test_a_launch_that_fails_or_is_stopped_ends_with_one_message(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    error: type[RefluxError],
    told: str,
) -> None:
    """A program in place of accelerate, which takes a minute to start."""
    begin = subprocess.Popen
    begun: list[subprocess.Popen[bytes]] = []

    def instead(words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        tell = (
            "def tell(**e): open(sys.argv[1] + '/events.jsonl', 'a').write(json.dumps(e) + '\\n')"
        )
        text = f"import json, sys, time\n{tell}\n{program}"
        begun.append(begin([sys.executable, "-c", text, words[-1]], **options))
        return begun[-1]

    def stop(heard: list[Any]) -> None:
        if told == "stopped here":
            raise RefluxError(told)

    monkeypatch.setattr(subprocess, "Popen", instead)
    with pytest.raises(error, match=told):
        launched(tiny_base, tmp_path / "out", stop=stop)
    assert begun[0].poll() is not None


def test_a_process_tells_its_error(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(BaseException):
        pass

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    settings = {"sft": {"max_length": 4}, "lora": {}, "seed": 0, "checkpoints": str(tmp_path)}
    job = {"rows": ROWS, "base": {"model": str(tiny_base)}, "folder": str(tiny_base)}
    (tmp_path / "events.jsonl").touch()
    with pytest.raises(Ended, match="2"):
        work(tmp_path, {**job, "out": str(tmp_path / "o"), "launch": TWO, "settings": settings})
    (event,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert event["error"] == "UsageError"
    assert "every prompt fills max_length=4" in event["text"]


@pytest.mark.parametrize(
    ("launch", "told"),
    [
        ({"num_proceses": 2}, "launch.num_proceses is unknown.*num_processes"),
        ({"num_processes": "two"}, "accelerate refuses .*invalid int value: 'two'"),
        ({"num_processes": 0}, "launch.num_processes is"),
        ({}, "launch.num_processes is missing"),
        ("no.yaml", "no config file of accelerate's at no.yaml"),
        ("broken.yaml", "broken.yaml is not YAML"),
        ("list.yaml", "list.yaml is no config of accelerate's"),
    ],
)
def test_what_cannot_be_launched_is_refused(
    launch: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(UsageError, match=told):
        check_launch(launch)


def test_a_config_file_of_accelerates_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text("num_processes: 2\ndistributed_type: MULTI_GPU\n")
    assert check_launch(str(file)).config_file == str(file)


def distilled(base: Path, root: Path, events: list[Any]) -> None:
    sft = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 8,
        "save_strategy": "steps",
        "save_steps": 3,
        "learning_rate": 1e-2,
    }
    config = DistillConfig(base=BaseConfig(model=str(base)), sft=sft, lora={"lora_dropout": 0.1})
    plan = StudentPlan("s", ROWS, "digest", config)
    distill(Registry(root), plan, lambda *event: events.append(event), threading.Event())


@pytest.mark.slow
def test_a_killed_distillation_goes_on_with_the_same_weights(
    tiny_base: Path, tmp_path: Path
) -> None:
    import torch

    torch.set_num_threads(1)
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(LOADED))
    killed = server.Process(target=distilled, args=(tiny_base, parts, []))
    killed.start()
    states = ".s.training/checkpoint-*/trainer_state.json"
    while not list(parts.glob(states)) and killed.is_alive():
        time.sleep(0.01)
    killed.kill()
    killed.join()
    assert not (parts / "s").exists()
    events: list[Any] = []
    for folder in (parts, whole):
        distilled(tiny_base, folder, events)
    notes = [event[3] for event in events if "goes on from its checkpoint" in event[3]]
    assert len(notes) == 1
    adapters = [(root / "s" / "adapter_model.safetensors").read_bytes() for root in (parts, whole)]
    assert adapters[0] == adapters[1]
    reports = [
        json.loads((root / "s" / "student.json").read_text())["config"]["report"]
        for root in (parts, whole)
    ]
    assert reports[0]["resumed_at"] >= 3 > reports[1]["resumed_at"] == 0
    assert reports[0]["curve"] == reports[1]["curve"]
    assert not list(parts.glob(".s*"))
