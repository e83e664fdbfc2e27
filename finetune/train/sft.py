"""Distills rows into a student: a LoRA adapter, trained by supervised fine-tuning with TRL.

A row has TRL's conversational prompt-completion form:

    {"prompt": [{"role": "system", "content": ""}, {"role": "user", "content": "12+34=?"}],
     "completion": [{"role": "assistant", "content": "46"}]}

The loss counts the completion only, and of several messages in it the assistant's; `tools` may
stand beside them. `reflux.finetune.distillation` makes whole students of it.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, set_seed

from reflux.agents.errors import RefluxError, UsageError
from reflux.finetune.adapter_files import ADAPTER
from reflux.finetune.base_model import load_base, quiet_libraries, wrapping_write_errors
from reflux.finetune.bases import Base
from reflux.finetune.configs.run import BaseConfig
from reflux.finetune.train.dataset import as_dataset, check_rows, fit_length, hold_out
from reflux.finetune.train.options import LORA_DEFAULTS, SFT_DEFAULTS, lora_config, sft_arguments
from reflux.finetune.train.progress import (
    Curve,
    StepListener,
    TrainingStep,
    loss_curve,
    newest_checkpoint,
)
from reflux.finetune.train.trainer import StudentTrainer, naming_memory

__all__ = ["LORA_DEFAULTS", "SFT_DEFAULTS", "TrainReport", "train"]
Rows = Sequence[Mapping[str, Any]]


class MakeTrainer(Protocol):
    """Makes the trainer of (training, evaluation) rows; `common` are arguments of TRL's."""

    def __call__(
        self,
        rows: tuple[Rows, Rows],
        scratch: Path,
        on_note: Callable[[str], None],
        **common: Any,
    ) -> StudentTrainer: ...


def text_trainer(
    rows: tuple[Rows, Rows], scratch: Path, on_note: Callable[[str], None], **common: Any
) -> StudentTrainer:
    """The trainer of a student that learns texts; as `MakeTrainer`."""
    training, held_out = rows
    tokenizer = common["processing_class"]
    return StudentTrainer(
        train_dataset=as_dataset(training, tokenizer, scratch),
        eval_dataset=as_dataset(held_out, tokenizer) if held_out else None,
        **common,
    )


@dataclass(frozen=True)
class TrainReport:
    """The result of a training run."""

    rows: int
    """Rows trained on."""
    evaluation_rows: int
    """Rows held out for the loss on them."""
    dropped: int
    """Rows left out because the prompt alone fills `max_length`."""
    truncated: int
    """Rows trained on that lose their end at `max_length`."""
    max_length: int | None
    """Maximum tokens of a row."""
    steps: int
    kept_step: int
    """The step whose weights became the student: that of the least loss on the rows held out, else
    the last."""
    resumed_at: int
    """The step of the checkpoint that this training went on from; 0 for none."""
    seconds: float
    """Duration of the training loop since it began or went on, without loading."""
    examples_per_second: float
    tokens_per_second: float
    final_loss: float
    curve: Curve
    """The loss by step, of the training and of the rows held out."""
    lean: bool
    """Whether training ran without padding and with fused layers, or as TRL does it."""
    sampling: dict[str, Any] | None = None
    """What became of the student's samples; of `on_policy`."""


def train(
    rows: Rows,
    base: Base | Path,
    out: Path,
    *,
    sft: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | None = None,
    seed: int = 0,
    evaluation: float = 0.0,
    early_stopping: int | None = None,
    checkpoints: Path | None = None,
    make_trainer: MakeTrainer = text_trainer,
    on_progress: Callable[[TrainingStep], None] = lambda step: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> TrainReport:
    """Train a LoRA adapter on the pristine `base` and write it to `out`, deterministic in `seed`.

    `sft` and `lora` override `SFT_DEFAULTS` and `LORA_DEFAULTS` and go unchanged to `SFTConfig`
    and `LoraConfig`. `out` gets `adapter_config.json`, `adapter_model.safetensors`, and the
    tokenizer with the chat template that the rows were rendered by. `base` is a base, or the
    transformers folder of one. Every process of a distributed training calls this; the first one
    writes and reports.

    Args:
        evaluation, early_stopping: as in `TrainingConfig`.
        checkpoints: folder to keep checkpoints in, and to go on from the newest that it holds.
        make_trainer: decides what is learned of the rows.
        on_progress: called after every logged step; an error that it raises ends the training.
        on_note: called with what should be known before the training starts.

    Raises:
        UsageError: no rows, rows of another form, or an unknown or invalid option.
        RefluxError: the loss or the trained weights are not finite, or the memory is too small.
            Where there are checkpoints, the last good adapter is beside them.
    """
    check_rows(rows)
    training, held_out = hold_out(rows, evaluation, seed)
    with tempfile.TemporaryDirectory(prefix="reflux-sft-") as scratch, quiet_libraries():
        folder = str(checkpoints or scratch)
        args = sft_arguments(sft, folder, seed, evaluation)
        adapter = lora_config(lora)
        set_seed(args.seed)
        if isinstance(base, Path):
            base = Base(BaseConfig(model=str(base)), given=base)
        with naming_memory(args):
            model, tokenizer = load_base(base.folder, config=base.config)
            lengths = fit_length(args, rows, tokenizer, model, sft or {})
            on_note(lengths.note)
            try:
                trainer = make_trainer(
                    (training, held_out),
                    Path(scratch),
                    on_note,
                    model=model,
                    args=args,
                    processing_class=tokenizer,
                    peft_config=adapter,
                )
            except (ValueError, TypeError) as error:
                raise UsageError(f"training cannot start: {error}; see sft: and lora:") from error
            n = len(trainer.train_dataset)  # type: ignore[arg-type]
            steps = StepListener(n, on_progress, checkpoints is not None)
            trainer.keeps_checkpoints = checkpoints is not None
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(steps)
            if early_stopping is not None:
                trainer.add_callback(EarlyStoppingCallback(early_stopping))
            checkpoint = newest_checkpoint(checkpoints) if checkpoints else None
            if checkpoint is not None:
                on_note(f"training goes on from its {checkpoint.name.replace('-', ' at step ')}")
            with wrapping_write_errors(checkpoints or Path(scratch)):
                trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        if steps.error is not None:
            raise steps.error
        seconds = time.perf_counter() - steps.begun
        save_adapter(trainer, base.name, Path(scratch) / "adapter", out)
        if trainer.is_world_process_zero():
            tokenizer.save_pretrained(out)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return TrainReport(
        rows=n,
        evaluation_rows=len(held_out),
        dropped=lengths.dropped,
        truncated=lengths.cut,
        max_length=args.max_length,
        steps=trainer.state.global_step,
        kept_step=_kept_step(trainer),
        resumed_at=steps.first,
        seconds=round(seconds, 3),
        examples_per_second=round(steps.examples / seconds, 2),
        tokens_per_second=round(steps.tokens / seconds, 1),
        final_loss=losses[-1],
        curve=loss_curve(trainer.state.log_history),
        lean=trainer.lean,
        sampling=trainer.sampling_report(),
    )


def _kept_step(trainer: Any) -> int:
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    return int(best or trainer.state.global_step)


def save_adapter(trainer: Any, base_name: str, scratch: Path, out: Path) -> None:
    """Write the adapter; every process takes part, and the first one writes.

    Raises:
        RefluxError: a weight is not finite, or the disk is full.
    """
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    model = trainer.accelerator.unwrap_model(trainer.model)
    trained = [p for p in model.parameters() if p.requires_grad]
    if not all(bool(torch.isfinite(p).all()) for p in trained):
        raise RefluxError(
            "the trained adapter has weights that are not finite: lower sft.learning_rate or "
            "raise sft.warmup_steps"
        )
    if not trainer.is_world_process_zero():
        return
    config = model.peft_config["default"]
    config.base_model_name_or_path = base_name
    if isinstance(config.target_modules, set):  # Whose order differs between processes.
        config.target_modules = sorted(config.target_modules)
    # By default, PEFT asks the hub for the base's vocabulary.
    with wrapping_write_errors(scratch):
        model.save_pretrained(scratch, state_dict=weights, save_embedding_layers=False)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_config.json", ADAPTER):
        try:
            shutil.copyfile(scratch / name, out / name)
        except OSError as error:
            error.filename = str(out / name)  # It names the file that was read.
            raise
