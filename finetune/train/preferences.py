"""A student learns which answers were refused: TRL's DPO on top of what it learned from rows.

The adapter that the rows made is trained on, and a frozen copy of it is the reference; both lie on
one base in memory. With DPO's loss (Rafailov et al. 2023, arXiv 2305.18290) goes that of the
accepted answers (RPO, arXiv 2404.19733), as the margin alone also grows where both answers become
unlikely.
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers import PrinterCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from reflux.agents.errors import RefluxError, UsageError
from reflux.finetune.base_model import load_base, quiet_libraries
from reflux.finetune.bases import Base
from reflux.finetune.train.options import SFT_DEFAULTS, configured
from reflux.finetune.train.progress import StepListener, TrainingStep
from reflux.finetune.train.sft import save_adapter
from reflux.finetune.train.trainer import naming_memory

DPO_DEFAULTS: dict[str, Any] = {
    **SFT_DEFAULTS,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-4,
    "warmup_steps": 2,
    "max_length": None,
    "beta": 0.1,
    "loss_type": ["sigmoid", "sft"],
    "loss_weights": [1.0, 0.2],
}


@dataclass(frozen=True)
class PreferenceReport:
    """The result of a training on pairs."""

    pairs: int
    steps: int
    seconds: float
    final_loss: float
    preferred: float
    """Share of the pairs of the last step whose accepted answer gained on the rejected one."""
    margin: float
    """By how much, in nats times beta, on average."""


class PairTrainer(DPOTrainer):
    """TRL's DPO trainer, which stops where the loss is not finite."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass.

        Raises:
            RefluxError: the loss is not finite.
        """
        loss = super().training_step(*args, **kwargs)
        if not math.isfinite(value := float(loss)):
            raise RefluxError(
                f"the loss on pairs is {value} at step {self.state.global_step + 1}: lower "
                "preferences.dpo.learning_rate, or leave preferences out"
            )
        return loss


def dpo_arguments(dpo: Mapping[str, Any], folder: str, seed: int = 0) -> DPOConfig:
    """TRL's arguments, on a GPU where there is one.

    Raises:
        UsageError: an option is unknown or invalid.
    """
    cuda = torch.cuda.is_available()
    own = {"use_cpu": not cuda, "dataloader_pin_memory": cuda, "seed": seed}
    defaults = {**DPO_DEFAULTS, **own}
    if "loss_type" in dpo:  # The weights are of our losses.
        del defaults["loss_weights"]
    return configured(DPOConfig, "preferences.dpo", defaults, dpo, output_dir=folder)


def prefer(
    pairs: Sequence[Mapping[str, Any]],
    base: Base,
    out: Path,
    *,
    dpo: Mapping[str, Any] | None = None,
    seed: int = 0,
    on_progress: Callable[[TrainingStep], None] = lambda step: None,
) -> PreferenceReport:
    """Train the adapter in `out` further on pairs, and write it there; deterministic in `seed`.

    Args:
        pairs: in TRL's conversational preference form: `prompt`, `chosen`, `rejected`.

    Raises:
        UsageError: an unknown or invalid option.
        RefluxError: the loss or the trained weights are not finite, or the memory is too small.
    """
    with tempfile.TemporaryDirectory(prefix="reflux-dpo-") as scratch, quiet_libraries():
        args = dpo_arguments(dpo or {}, scratch, seed)
        with naming_memory(args):
            model, tokenizer = load_base(base.folder, config=base.config)
            student = PeftModel.from_pretrained(model, out, is_trainable=True)
            try:
                trainer = PairTrainer(
                    model=student,
                    args=args,
                    train_dataset=datasets.Dataset.from_list([dict(pair) for pair in pairs]),
                    processing_class=tokenizer,
                )
            except (ValueError, TypeError) as error:
                raise UsageError(
                    f"training on pairs cannot start: {error}; see preferences.dpo"
                ) from error
            steps = StepListener(len(pairs), on_progress, False)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(steps)
            trainer.train()
        seconds = time.perf_counter() - steps.begun
        student.delete_adapter("ref")
        save_adapter(trainer, base.name, Path(scratch) / "adapter", out)
    logs = [entry for entry in trainer.state.log_history if "rewards/accuracies" in entry]
    return PreferenceReport(
        pairs=len(pairs),
        steps=trainer.state.global_step,
        seconds=round(seconds, 3),
        final_loss=round(logs[-1]["loss"], 5),
        preferred=round(logs[-1]["rewards/accuracies"], 4),
        margin=round(logs[-1]["rewards/margins"], 5),
    )
