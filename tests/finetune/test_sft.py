"""Supervised fine-tuning: the lean loss is TRL's, and a run leaves a standard adapter."""

import json
import math
import re
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.training_rows import generate_greedy
from reflux.agents.errors import RefluxError, UsageError
from reflux.finetune.base_model import load_base
from reflux.finetune.bases import Base, folder_digest
from reflux.finetune.configs.run import BaseConfig
from reflux.finetune.train.dataset import hold_out
from reflux.finetune.train.sft import TrainingStep, TrainReport, train
from reflux.finetune.train.trainer import StudentTrainer
from tests.support.adapters import adapter_trainer

pytestmark = pytest.mark.engine


def row(question: str, answer: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "system", "content": ""}, {"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


ROWS = [row(f"{a}+{b}=?", str(a + b)) for a in range(6) for b in range(6)]
QUICK = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 2}


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainReport]:
    out = tmp_path_factory.mktemp("trained")
    return out, train(ROWS, tiny_base, out, sft={**QUICK, "num_train_epochs": 8})


def trainer_of(kind: Any, tiny_base: Path, folder: Path, **options: Any) -> Any:
    model, tokenizer = load_base(tiny_base)
    rows = [*ROWS[:5], row("a longer question " * 8, "12345")]
    return adapter_trainer(kind, model.float(), tokenizer, rows, folder, **options)


def loss_and_gradients(trainer: Any, items: int | None, return_outputs: bool = False) -> Any:
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    trainer.model.train()
    trainer.model.zero_grad()
    found = trainer.compute_loss(
        trainer.model, dict(batch), return_outputs=return_outputs, num_items_in_batch=items
    )
    loss = found[0] if return_outputs else found
    loss.backward()
    named = trainer.model.named_parameters()
    return batch, found, {n: p.grad.clone() for n, p in named if p.requires_grad}


@pytest.mark.parametrize(
    ("items", "options"),
    # Checkpointing keeps the batch padded, in case its layers' inputs are computed again.
    [(None, {}), (50, {}), (50, {"gradient_checkpointing": True})],
)
def test_the_lean_loss_and_its_gradients_are_trls(
    tiny_base: Path, tmp_path: Path, items: int | None, options: dict[str, Any]
) -> None:
    import torch
    from trl import SFTTrainer

    trainer = trainer_of(StudentTrainer, tiny_base, tmp_path, **options)
    _, lean, ours = loss_and_gradients(trainer, items)
    _, fused, theirs = loss_and_gradients(trainer_of(SFTTrainer, tiny_base, tmp_path), items)
    torch.testing.assert_close(lean, fused, rtol=1e-5, atol=1e-6)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 2 * 7 * 2
    for name, gradient in theirs.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_lean_loss_is_the_models_own(tiny_base: Path, tmp_path: Path) -> None:
    import torch

    trainer = trainer_of(StudentTrainer, tiny_base, tmp_path)
    batch, lean, _ = loss_and_gradients(trainer, None)
    own = trainer.model(**batch).loss
    torch.testing.assert_close(lean, own, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_outputs_are_returned_where_they_are_asked_for(tiny_base: Path, tmp_path: Path) -> None:
    import torch

    trainer = trainer_of(StudentTrainer, tiny_base, tmp_path)
    batch, lean, _ = loss_and_gradients(trainer, None)
    _, (loss, outputs), _ = loss_and_gradients(trainer, None, return_outputs=True)
    torch.testing.assert_close(lean, loss, rtol=1e-5, atol=1e-6)
    assert outputs.logits.shape[:2] == batch["input_ids"].shape


def test_other_losses_are_left_to_trl(tiny_base: Path, tmp_path: Path) -> None:
    import torch
    from trl import SFTTrainer

    both = [
        loss_and_gradients(trainer_of(kind, tiny_base, tmp_path, loss_type="dft"), None)[1]
        for kind in (StudentTrainer, SFTTrainer)
    ]
    torch.testing.assert_close(both[0], both[1])


def test_training_lowers_the_loss_and_reports_it(trained: tuple[Path, TrainReport]) -> None:
    _, report = trained
    assert (report.rows, report.dropped, report.truncated) == (36, 0, 0)
    losses = report.curve["loss"]
    assert report.steps == len(losses) == 8 * math.ceil(36 / 8)
    assert report.final_loss == pytest.approx(losses[-1][1], abs=1e-4)
    assert report.final_loss < 0.7 * losses[0][1]
    assert (report.max_length, report.evaluation_rows, report.resumed_at) == (38, 0, 0)


def test_the_adapter_is_standard_and_alone(
    trained: tuple[Path, TrainReport], tiny_base: Path
) -> None:
    import torch
    from peft import PeftModel

    out, _ = trained
    assert {p.name for p in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_base)
    assert (config["r"], config["lora_alpha"]) == (16, 32)
    assert config["target_modules"] == sorted(config["target_modules"])
    model, tokenizer = load_base(tiny_base)
    before = generate_greedy(model, tokenizer, [ROWS[0]["prompt"]], 4)
    student = PeftModel.from_pretrained(model, str(out))
    loras = [p for n, p in student.named_parameters() if "lora_" in n]
    assert {p.dtype for p in loras} == {torch.float32}
    assert generate_greedy(student, tokenizer, [ROWS[0]["prompt"]], 4) != before


def test_a_batch_of_prompts_is_answered_as_each_alone(tiny_base: Path) -> None:
    model, tokenizer = load_base(tiny_base)
    model.float()
    prompts = [r["prompt"] for r in [*ROWS[:3], row("a much longer question, padded?", "")]]
    max_concurrency = generate_greedy(model, tokenizer, prompts, 6)
    assert max_concurrency == [generate_greedy(model, tokenizer, [p], 6)[0] for p in prompts]
    assert generate_greedy(model, tokenizer, [], 6) == []


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    tiny_base: Path, tmp_path: Path
) -> None:
    def weights(name: str, seed: int) -> bytes:
        train(ROWS[:16], tiny_base, tmp_path / name, sft=QUICK, seed=seed)
        return (tmp_path / name / "adapter_model.safetensors").read_bytes()

    assert weights("a", 1) == weights("b", 1)
    assert weights("a2", 1) != weights("c", 2)


def test_progress_is_heard_after_every_step_and_nothing_is_printed(
    tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    heard: list[TrainingStep] = []
    report = train(ROWS, tiny_base, tmp_path, sft=QUICK, on_progress=heard.append)
    assert [p.step for p in heard] == [1, 2, 3, 4, 5]
    assert {p.steps for p in heard} == {5}
    assert [(p.step, round(p.loss, 5)) for p in heard] == report.curve["loss"]
    assert all(p.examples_per_second > 0 and p.tokens_per_second > 0 for p in heard)
    assert heard[0].learning_rate < heard[2].learning_rate  # It warms up for two steps.
    assert capfd.readouterr() == ("", "")


def test_gradient_accumulation_reports_whole_steps(tiny_base: Path, tmp_path: Path) -> None:
    options = {**QUICK, "max_steps": 1, "per_device_train_batch_size": 16}
    whole = train(ROWS[:16], tiny_base, tmp_path / "w", sft=options)
    halves = {**options, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    parts = train(ROWS[:16], tiny_base, tmp_path / "p", sft=halves)
    assert parts.final_loss == pytest.approx(whole.final_loss, rel=1e-2)


def test_what_the_listener_raises_ends_the_training(tiny_base: Path, tmp_path: Path) -> None:
    def stop(at: TrainingStep) -> None:
        raise RefluxError(f"stopped at {at.step}")

    with pytest.raises(RefluxError, match="stopped at 1"):
        train(ROWS, tiny_base, tmp_path / "out", sft=QUICK, on_progress=stop)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "options", "told"),
    [
        ([], {}, "0 rows"),
        ([{**ROWS[0], "id": 3}], {}, "row 0 has the keys"),
        (ROWS[:2], {"sft": {"learning_rat": 1}}, "sft.learning_rat is unknown.*learning_rate"),
        (ROWS[:2], {"lora": {"rank": 4}}, "lora.rank is unknown to LoraConfig"),
        (ROWS[:2], {"sft": {"output_dir": "x"}}, "sft.output_dir is set by Reflux"),
        (ROWS[:2], {"sft": {"lr_scheduler_type": "no"}}, "sft: SFTConfig refuses"),
        (ROWS[:2], {"lora": {"target_modules": ["none_such"]}}, "none_such"),
        (ROWS[:2], {"sft": {"max_length": 8}}, "every prompt fills max_length=8"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tiny_base: Path, tmp_path: Path, rows: list[Any], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        train(rows, tiny_base, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_long_rows_are_counted(tiny_base: Path, tmp_path: Path) -> None:
    rows = [*ROWS[:4], row("q" * 200, "1"), row("1+1=?", "2" * 200)]
    report = train(rows, tiny_base, tmp_path, sft={**QUICK, "max_length": 100})
    assert (report.rows, report.dropped, report.truncated) == (5, 1, 1)
    assert report == replace(report, steps=1)


def test_a_loss_that_is_not_finite_says_step_and_learning_rate(
    tiny_base: Path, tmp_path: Path
) -> None:
    wild = {**QUICK, "learning_rate": 1e30, "warmup_steps": 0, "max_grad_norm": 0}
    with pytest.raises(RefluxError, match=r"the loss is \w+ at step \d+ with learning rate"):
        train(ROWS, tiny_base, tmp_path / "out", sft=wild)
    assert not (tmp_path / "out").exists()


def test_a_base_is_known_by_its_weights(tiny_base: Path) -> None:
    assert len(folder_digest(tiny_base)) == 64


def weights_of(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


class Killed(BaseException):
    """As a kill: nothing in the training may catch it."""


LONG = {**QUICK, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}


@pytest.mark.parametrize("error", [Killed, RefluxError])
def test_a_stopped_training_goes_on_at_its_checkpoint(
    tiny_base: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    """With dropout, so that the random state has to come back, too."""
    options: dict[str, Any] = {"sft": LONG, "lora": {"lora_dropout": 0.1}, "evaluation": 0.2}

    def stop(at: TrainingStep) -> None:
        if at.step == 5:
            raise error

    whole = train(ROWS, tiny_base, tmp_path / "whole", **options)
    kept = {**options, "checkpoints": tmp_path / "kept"}
    with pytest.raises(error):
        train(ROWS, tiny_base, tmp_path / "parts", **kept, on_progress=stop)
    assert not (tmp_path / "parts").exists()
    if error is Killed:  # In the middle of the next checkpoint, which has no state yet.
        (tmp_path / "kept" / "checkpoint-6").mkdir()
    notes: list[str] = []
    parts = train(ROWS, tiny_base, tmp_path / "parts", **kept, on_note=notes.append)
    assert parts.resumed_at == (4 if error is Killed else 5)
    assert f"goes on from its checkpoint at step {parts.resumed_at}" in notes[-1]
    assert weights_of(tmp_path / "parts") == weights_of(tmp_path / "whole")
    assert parts.curve == whole.curve
    assert [step for step, _ in whole.curve["eval_loss"]] == list(range(1, whole.steps + 1))


@pytest.mark.parametrize("limit", [50_000, 200_000], ids=["weights", "optimizer"])
def test_a_checkpoint_that_does_not_fit_on_the_disk_is_told_and_training_goes_on_with_room(
    tiny_base: Path, tmp_path: Path, limit: int
) -> None:
    kept = {"sft": {**LONG, "max_steps": 3}, "checkpoints": tmp_path / "kept"}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(RefluxError, match=r"weights cannot be written in .*kept.* free some"):
            train(ROWS, tiny_base, tmp_path / "out", **kept)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "out").exists()
    assert train(ROWS, tiny_base, tmp_path / "out", **kept).steps == 3


def test_rows_are_held_out_by_prompt() -> None:
    rows = [*ROWS, *ROWS]
    training, held_out = hold_out(rows, 0.25, 3)
    sides = [{r["prompt"][-1]["content"] for r in side} for side in (training, held_out)]
    assert not sides[0] & sides[1]
    assert (len(training), len(held_out)) == (2 * 27, 2 * 9)
    assert hold_out(rows, 0.25, 3)[1] == held_out != hold_out(rows, 0.25, 4)[1]
    assert hold_out(rows, 0.0, 3) == (rows, [])


def test_the_weights_of_least_loss_on_held_out_rows_are_kept(
    tiny_base: Path, tmp_path: Path
) -> None:
    sft = {**QUICK, "learning_rate": 3e-2, "lr_scheduler_type": "constant", "eval_steps": 4}
    shared: dict[str, Any] = {"evaluation": 0.25, "seed": 1}
    report = train(ROWS, tiny_base, tmp_path / "best", sft={**sft, "max_steps": 30}, **shared)
    best, _ = min(report.curve["eval_loss"], key=lambda point: point[1])
    assert report.kept_step == best < report.steps == report.curve["eval_loss"][-1][0] == 30
    train(ROWS, tiny_base, tmp_path / "cut", sft={**sft, "max_steps": best}, **shared)
    assert weights_of(tmp_path / "best") == weights_of(tmp_path / "cut")
    own = {**sft, "max_steps": 30, "save_strategy": "no"}
    last = train(ROWS, tiny_base, tmp_path / "last", sft=own, **shared)
    assert last.kept_step == 30
    assert weights_of(tmp_path / "last") != weights_of(tmp_path / "best")


def test_training_stops_early_with_its_best_weights(tiny_base: Path, tmp_path: Path) -> None:
    sft = {**QUICK, "learning_rate": 3e-2, "lr_scheduler_type": "constant", "eval_steps": 4}
    shared: dict[str, Any] = {"evaluation": 0.25, "seed": 1}
    long = {**sft, "num_train_epochs": 40}
    report = train(ROWS, tiny_base, tmp_path / "early", sft=long, early_stopping=2, **shared)
    evaluations = report.curve["eval_loss"]
    assert report.evaluation_rows == 9
    assert report.steps == evaluations[-1][0] < 40 * 4
    assert report.kept_step == evaluations[-3][0]
    best = min(evaluations, key=lambda point: point[1])
    assert evaluations[-3] == best
    train(ROWS, tiny_base, tmp_path / "best", sft={**sft, "max_steps": best[0]}, **shared)
    assert weights_of(tmp_path / "early") == weights_of(tmp_path / "best")


@pytest.mark.parametrize(
    ("more", "limit", "told"),
    [
        ([], {}, "36 rows of 37 to 38 tokens .*max_length 38 keeps all whole"),
        (
            [row("q" * 200, "1"), row("1+1=?", "2" * 200)],
            {"max_length": 100},
            "38 rows .*max_length 100 cuts the end of 1 and drops 1, .*: set sft.max_length: 2",
        ),
        (
            [row("q" * 600, "1")],
            {},
            "drops 1, whose prompt fills it: the model takes 512 tokens: shorten",
        ),
    ],
)
def test_what_the_length_costs_is_told_first(
    tiny_base: Path, tmp_path: Path, more: list[Any], limit: dict[str, int], told: str
) -> None:
    heard: list[Any] = []
    sft = {**QUICK, "max_steps": 1, **limit}
    train([*ROWS, *more], tiny_base, tmp_path, sft=sft, on_note=heard.append,
          on_progress=heard.append)  # fmt: skip
    assert re.search(told, heard[0]), heard[0]
    assert isinstance(heard[1], TrainingStep)


def test_a_row_that_the_template_cannot_render_is_named(tiny_base: Path, tmp_path: Path) -> None:
    tool = {"prompt": [{"role": "robot"}], "completion": [{"role": "assistant", "content": "1"}]}
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    template = "{{ raise_exception('no robots') if messages[0].role == 'robot' else messages }}"
    (base / "chat_template.jinja").write_text(template)
    with pytest.raises(UsageError, match=r'cannot render row 1, .*"robot".*no robots'):
        train([ROWS[0], tool], base, tmp_path / "out", sft=QUICK)


@pytest.mark.parametrize(
    ("settings", "sft", "relative"),
    [
        ({"dtype": "float32"}, {}, 2e-2),
        ({"attn_implementation": "sdpa"}, {}, 2e-2),
        ({}, {"gradient_checkpointing": True}, 2e-2),
        ({}, {"packing": True, "padding_free": True}, None),
    ],
)
def test_options_of_the_base_and_of_memory_reach_the_training(
    trained: tuple[Path, TrainReport],
    tiny_base: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    sft: dict[str, Any],
    relative: float | None,
) -> None:
    base = Base(BaseConfig(model=str(tiny_base), **settings), given=tiny_base)
    report = train(ROWS, base, tmp_path, sft={**QUICK, "max_steps": 2, **sft})
    if relative is not None:
        first = trained[1].curve["loss"][0][1]
        assert report.curve["loss"][0][1] == pytest.approx(first, rel=relative)


def test_trackers_hear_of_the_training(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    heard: list[dict[str, float]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            heard.append(dict(logs))

    known = integration_utils.INTEGRATION_TO_CALLBACK
    monkeypatch.setitem(known, "tensorboard", Tracker)
    sft = {**QUICK, "max_steps": 2, "report_to": "tensorboard"}
    report = train(ROWS, tiny_base, tmp_path, sft=sft)
    losses = [logs["loss"] for logs in heard if "loss" in logs]
    assert losses[-1] == report.final_loss
    assert {"learning_rate", "grad_norm"} <= heard[0].keys()


def test_a_full_memory_says_what_to_lower(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(StudentTrainer, "compute_loss", full)
    told = "8 rows of up to 38 tokens .* fit into memory: lower sft.per_device_train_batch_size"
    with pytest.raises(RefluxError, match=told):
        train(ROWS, tiny_base, tmp_path / "out", sft=QUICK)
    assert not (tmp_path / "out").exists()
