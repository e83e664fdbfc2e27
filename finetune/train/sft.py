"""Distills rows into a student: a LoRA adapter, trained by supervised fine-tuning with TRL.

A row has TRL's conversational prompt-completion form:

    {"prompt": [{"role": "system", "content": ""}, {"role": "user", "content": "12+34=?"}],
     "completion": [{"role": "assistant", "content": "46"}]}

The loss counts the completion only. Not covered: packing several rows into one sequence, several
GPUs.
"""

import dataclasses
import difflib
import math
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl.trainer.sft_config import SFTConfig

from reflux.agents.errors import RefluxError, UsageError
from reflux.finetune.base_model import load_base, quiet_libraries, wrapping_write_errors
from reflux.finetune.bases import Base, find_base, folder_digest
from reflux.finetune.config import BaseConfig, DistillConfig
from reflux.finetune.export import can_export, export_adapter
from reflux.finetune.parity import certify
from reflux.finetune.registry import ADAPTER, ADAPTER_GGUF, Registry, StudentBase
from reflux.finetune.train.trainer import StudentTrainer

SFT_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 10,
    "num_train_epochs": 1,
    "max_length": 512,
    "weight_decay": 0.0,
    # The weights are in bf16; autocast would only cast them again.
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 10,
    "logging_nan_inf_filter": False,
}
LORA_DEFAULTS: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
    "task_type": "CAUSAL_LM",
}


@dataclass(frozen=True)
class TrainingStep:
    """The state of a training run after a step."""

    step: int
    steps: int
    loss: float
    """Mean over the step's completion tokens, in nats."""
    examples_per_second: float


@dataclass(frozen=True)
class TrainReport:
    """The result of a training run."""

    rows: int
    """Rows trained on."""
    dropped: int
    """Rows left out because the prompt alone fills `max_length`."""
    truncated: int
    """Rows trained on that fill `max_length`, so their end may be missing."""
    steps: int
    seconds: float
    """Duration of the training loop, without loading."""
    examples_per_second: float
    final_loss: float
    losses: list[float]
    """One for each step, in nats per token."""
    lean: bool
    """Whether training ran without padding and with fused layers, or as TRL does it."""


def train(
    rows: Sequence[Mapping[str, Any]],
    base: Base | Path,
    out: Path,
    *,
    sft: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | None = None,
    seed: int = 0,
    on_progress: Callable[[TrainingStep], None] = lambda step: None,
) -> TrainReport:
    """Train a LoRA adapter on the pristine `base` and write it to `out`, deterministic in `seed`.

    `sft` and `lora` override `SFT_DEFAULTS` and `LORA_DEFAULTS` and go unchanged to `SFTConfig`
    and `LoraConfig`. `out` gets `adapter_config.json`, `adapter_model.safetensors`, and the
    tokenizer with the chat template that the rows were rendered by. `base` is a base, or the
    transformers folder of one.
    `on_progress` is called after every step; an error that it raises ends the training.

    Raises:
        UsageError: no rows, rows of another form, or an unknown or invalid option.
        RefluxError: the loss or the trained weights are not finite.
    """
    _check_rows(rows)
    with tempfile.TemporaryDirectory(prefix="reflux-sft-") as scratch, quiet_libraries():
        cuda = torch.cuda.is_available()
        device = {"use_cpu": not cuda, "dataloader_pin_memory": cuda, "seed": seed}
        args = _configure(SFTConfig, "sft", {**SFT_DEFAULTS, **device}, sft, output_dir=scratch)
        adapter = _configure(LoraConfig, "lora", LORA_DEFAULTS, lora)
        set_seed(args.seed)
        if isinstance(base, Path):
            base = Base(BaseConfig(model=str(base)), given=base)
        model, tokenizer = load_base(base.folder, config=base.config)
        try:
            trainer = StudentTrainer(
                model=model,
                args=args,
                train_dataset=datasets.Dataset.from_list([dict(row) for row in rows]),
                processing_class=tokenizer,
                peft_config=adapter,
            )
        except (ValueError, TypeError) as error:
            raise UsageError(f"training cannot start: {error}; see sft: and lora:") from error
        dataset: Any = trainer.train_dataset
        if not len(dataset):
            raise UsageError(
                f"every prompt fills max_length={args.max_length} tokens, so no completion is "
                "left: raise sft.max_length or shorten the prompts"
            )
        limit = args.max_length or math.inf
        steps = _StepListener(trainer, on_progress)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(steps)
        trainer.train()
        seconds = time.perf_counter() - steps.begun
        _save(trainer.model, base.name, Path(scratch) / "adapter", out)
        tokenizer.save_pretrained(out)
    return TrainReport(
        rows=len(dataset),
        dropped=len(rows) - len(dataset),
        truncated=sum(len(ids) >= limit for ids in dataset["input_ids"]),
        steps=trainer.state.global_step,
        seconds=round(seconds, 3),
        examples_per_second=round(steps.examples / seconds, 2),
        final_loss=trainer.losses[-1],
        losses=trainer.losses,
        lean=trainer.lean,
    )


@dataclass(frozen=True)
class StudentPlan:
    """The rows and settings of a new student."""

    id: str
    rows: Sequence[Mapping[str, Any]]
    """In the form that `Row.train` gives."""
    rows_digest: str
    config: DistillConfig
    round: int | None = None
    parent: str | None = None


def distill(
    registry: Registry,
    plan: StudentPlan,
    progress: Callable[[str, int, int, str], None],
    stop: threading.Event,
) -> None:
    """Train on the pristine base, export the adapter as GGUF, and register the whole student.

    Raises:
        RefluxError: `stop` was set, or the loss is not finite.
        UsageError: no rows, an unknown key in `sft` or `lora`, or the id exists.
    """

    def check_stop() -> None:
        if stop.is_set():
            raise RefluxError("training was interrupted; --resume starts this student again")

    def on_progress(state: TrainingStep) -> None:
        check_stop()
        detail = f"loss {state.loss:.3f}, {state.examples_per_second:.1f} examples/s"
        progress(f"distill {plan.id}", state.step, state.steps, detail)

    base = find_base(plan.config.base)
    progress("load the base", 0, 1, "")
    base.folder  # noqa: B018 - a GGUF is unpacked here
    check_stop()
    with registry.staging(plan.id) as (folder, card):
        settings = plan.config.model_dump(exclude={"base"})
        trained = asdict(train(plan.rows, base, folder, **settings, on_progress=on_progress))
        del trained["losses"]
        if can_export(base.folder):
            export_adapter(folder, base.folder, folder / ADAPTER_GGUF)
        progress(f"compare the engines on {plan.id}", 0, 1, "")
        card["parity"] = certify(base, folder, plan.rows)
        card.update(
            parent=plan.parent,
            round=plan.round,
            base=StudentBase(
                base.name,
                "" if base.gguf is None else base.weights_digest,
                folder_digest(base.folder),
                base.config,
            ),
            rows_digest=plan.rows_digest,
            config={**settings, "report": trained},
        )


class _StepListener(TrainerCallback):
    """Reports each step."""

    def __init__(self, trainer: Any, listener: Callable[[TrainingStep], None]) -> None:
        self._trainer, self._listener = trainer, listener
        self.begun, self.examples = time.perf_counter(), 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.examples = round(len(self._trainer.train_dataset) * state.epoch)
        rate = self.examples / (time.perf_counter() - self.begun)
        loss = self._trainer.losses[-1]
        self._listener(TrainingStep(state.global_step, state.max_steps, loss, rate))


def _check_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        raise UsageError("there are 0 rows to train on: curate some accepted answers first")
    for index, row in enumerate(rows):
        if set(row) != {"prompt", "completion"}:
            raise UsageError(
                f"row {index} has the keys {sorted(row)}; a row has exactly prompt and completion, "
                "each a list of messages"
            )


def _configure(
    kind: Any, name: str, defaults: Mapping[str, Any], options: Mapping[str, Any] | None, **own: Any
) -> Any:
    """`kind(**defaults, **options, **own)`, where an unknown key is an error that names it."""
    known = {entry.name for entry in dataclasses.fields(kind) if entry.init}
    for key in options or {}:
        if key in own:
            raise UsageError(f"{name}.{key} is set by Reflux: remove it from {name}:")
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"see {kind.__name__}'s documentation"
            raise UsageError(f"{name}.{key} is unknown to {kind.__name__}: {hint}")
    try:
        return kind(**{**defaults, **(options or {}), **own})
    except (ValueError, TypeError, RuntimeError) as error:
        message = f"{name}: {kind.__name__} refuses {dict(options or {})}: {error}"
        raise UsageError(message) from error


def check_options(sft: Mapping[str, Any], lora: Mapping[str, Any]) -> None:
    """Check the options of `train` before the work that leads to it.

    Raises:
        UsageError: one is unknown or invalid.
    """
    with tempfile.TemporaryDirectory(prefix="reflux-sft-") as scratch, quiet_libraries():
        defaults = SFT_DEFAULTS | {"use_cpu": not torch.cuda.is_available()}
        _configure(SFTConfig, "sft", defaults, sft, output_dir=scratch)
        _configure(LoraConfig, "lora", LORA_DEFAULTS, lora)


def _save(model: Any, base_name: str, scratch: Path, out: Path) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    if not all(bool(torch.isfinite(p).all()) for p in trained):
        raise RefluxError(
            "the trained adapter has weights that are not finite: lower sft.learning_rate or "
            "raise sft.warmup_steps"
        )
    config = model.peft_config["default"]
    config.base_model_name_or_path = base_name
    if isinstance(config.target_modules, set):  # Whose order differs between processes.
        config.target_modules = sorted(config.target_modules)
    # By default, PEFT asks the hub for the base's vocabulary.
    with wrapping_write_errors(scratch):
        model.save_pretrained(scratch, save_embedding_layers=False)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_config.json", ADAPTER):
        shutil.copyfile(scratch / name, out / name)
