"""Distils rows into a LoRA adapter by supervised fine-tuning with TRL
(`reflux.finetune.train.trainer`).

A row is TRL's conversational prompt-completion form, and nothing else:

    {"prompt": [{"role": "system", "content": ""}, {"role": "user", "content": "12+34=?"}],
     "completion": [{"role": "assistant", "content": "46"}]}

Only the completion counts. Not covered: packing several rows into one sequence, several GPUs.
"""

import dataclasses
import difflib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl.trainer.sft_config import SFTConfig

from reflux.agents.clients.llama_cpp import DEFAULT_MODEL_ID
from reflux.agents.errors import RefluxError, UsageError
from reflux.finetune.base_model import load_base, no_space, quiet_libraries
from reflux.finetune.train.trainer import StudentTrainer

SFT_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 10,
    "num_train_epochs": 1,
    "max_length": 512,
    "weight_decay": 0.0,
    # The weights are bf16 already; autocast would only cast them again.
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
class Progress:
    """Where a training run stands after a step."""

    step: int
    steps: int
    loss: float
    """Mean over the step's completion tokens, in nats."""
    examples_per_second: float


@dataclass(frozen=True)
class TrainReport:
    """What a training run did."""

    rows: int
    """Rows trained on."""
    dropped: int
    """Rows left out, because the prompt alone fills `max_length`."""
    truncated: int
    """Rows trained on that fill `max_length`, so that their end may be missing."""
    steps: int
    seconds: float
    """Of the training loop, without loading."""
    examples_per_second: float
    final_loss: float
    losses: list[float]
    """One a step, in nats per token."""


def train(
    rows: Sequence[Mapping[str, Any]],
    base: Path,
    out: Path,
    *,
    sft: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | None = None,
    seed: int = 0,
    model_id: str = DEFAULT_MODEL_ID,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainReport:
    """Train a LoRA adapter on the pristine `base` and write it to `out`, deterministic in `seed`.

    `sft` and `lora` go unchanged to `SFTConfig` and `LoraConfig`, over `SFT_DEFAULTS` and
    `LORA_DEFAULTS`. `out` gets `adapter_config.json`, which names `model_id` as the base, and
    `adapter_model.safetensors`, and nothing else. `on_progress` hears every step; what it raises
    ends the training.

    Raises:
        UsageError: no rows, rows of another form, or an option that is unknown or refused.
        RefluxError: the loss or the trained weights are not finite.
    """
    _require_rows(rows)
    with tempfile.TemporaryDirectory(prefix="reflux-sft-") as scratch, quiet_libraries():
        cuda = torch.cuda.is_available()
        where = {"use_cpu": not cuda, "dataloader_pin_memory": cuda, "seed": seed}
        args = _configure(SFTConfig, "sft", {**SFT_DEFAULTS, **where}, sft, output_dir=scratch)
        adapter = _configure(LoraConfig, "lora", LORA_DEFAULTS, lora)
        set_seed(args.seed)
        model, tokenizer = load_base(base)
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
        kept: Any = trainer.train_dataset
        watch = _Watch(trainer, len(kept), on_progress)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(watch)
        if not len(kept):
            raise UsageError(
                f"every prompt fills max_length={args.max_length} tokens, so no completion is "
                "left: raise sft.max_length or shorten the prompts"
            )
        limit = args.max_length or math.inf
        begun = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begun
        _save(trainer.model, Path(scratch) / "adapter", out, model_id)
    return TrainReport(
        rows=len(kept),
        dropped=len(rows) - len(kept),
        truncated=sum(len(ids) >= limit for ids in kept["input_ids"]),
        steps=trainer.state.global_step,
        seconds=round(seconds, 3),
        examples_per_second=round(watch.examples / seconds, 2),
        final_loss=watch.losses[-1],
        losses=watch.losses,
    )


class _Watch(TrainerCallback):
    """Keeps each step's loss, and passes the progress on."""

    def __init__(
        self, trainer: StudentTrainer, rows: int, heard: Callable[[Progress], None] | None
    ) -> None:
        self.losses: list[float] = []
        self.examples = 0
        self._trainer = trainer
        self._rows = rows
        self._heard = heard
        self._begun = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.losses.append(self._trainer.step_loss)
        self._trainer.step_loss = 0.0
        self.examples = round(self._rows * state.epoch)
        if self._heard is not None:
            rate = self.examples / (time.perf_counter() - self._begun)
            self._heard(Progress(state.global_step, state.max_steps, self.losses[-1], rate))


def _require_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        raise UsageError("there are 0 rows to train on: curate some accepted answers first")
    for at, row in enumerate(rows):
        if set(row) != {"prompt", "completion"}:
            raise UsageError(
                f"row {at} has the keys {sorted(row)}; a row is exactly prompt and completion, "
                "each a list of messages"
            )


def _configure(
    kind: Any, name: str, defaults: Mapping[str, Any], given: Mapping[str, Any] | None, **ours: Any
) -> Any:
    """`kind(**defaults, **given, **ours)`, where an unknown key is an error that names it."""
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    for key in given or {}:
        if key in ours:
            raise UsageError(f"{name}.{key} is set by Reflux: remove it from {name}:")
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"see {kind.__name__}'s documentation"
            raise UsageError(f"{name}.{key} is unknown to {kind.__name__}: {hint}")
    try:
        return kind(**{**defaults, **(given or {}), **ours})
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"{name}: {kind.__name__} refuses {dict(given or {})}: {error}") from error


def _save(model: Any, scratch: Path, out: Path, model_id: str) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    if not all(bool(torch.isfinite(p).all()) for p in trained):
        raise RefluxError(
            "the trained adapter has weights that are not finite: lower sft.learning_rate or "
            "raise sft.warmup_steps"
        )
    # False: left to decide by itself, PEFT asks the hub for the base's vocabulary.
    with no_space():
        model.save_pretrained(scratch, save_embedding_layers=False)
    config = json.loads((scratch / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = model_id
    if isinstance(config["target_modules"], list):
        # PEFT writes a set, in another order in each process.
        config["target_modules"].sort()
    out.mkdir(parents=True, exist_ok=True)
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(scratch / "adapter_model.safetensors", out / "adapter_model.safetensors")
