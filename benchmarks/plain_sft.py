"""The baseline of the training benchmark: TRL's `SFTTrainer` with a PEFT LoRA, unmodified.

It contains nothing of Reflux's trainer. A `Setting` holds the user options that change its speed;
rank, learning rate, schedule and rows equal those of the trainer under comparison.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from reflux.finetune.base_model import quiet_libraries


@dataclass(frozen=True)
class Setting:
    """Options that change the speed of a plain run but not its result."""

    batch: int = 16
    attention: str = "sdpa"
    """`sdpa`, the default of transformers, or `eager`."""
    sampling: str = "random"
    """`random`, or `group_by_length`, which pads less."""
    autocast: bool = False
    """Casts the LoRA's fp32 matrices to bf16 for each product (SFTConfig's `bf16`)."""
    workers: int = 0
    """Processes that collate batches in advance."""
    threads: int = 2
    """Torch threads."""

    def __str__(self) -> str:
        """The text of a table cell."""
        return (
            f"batch {self.batch}, {self.attention}, {self.sampling}, "
            f"{'autocast' if self.autocast else 'fp32 LoRA'}, {self.workers} workers, "
            f"{self.threads} threads"
        )


def train_plain(
    rows: Sequence[Mapping[str, Any]],
    base: Path,
    out: Path,
    setting: Setting,
    *,
    sft: Mapping[str, Any],
    lora: Mapping[str, Any],
    seed: int,
    adapter: Path | None = None,
) -> float:
    """Train and write the adapter to `out`; return the seconds of the training loop.

    Args:
        adapter: goes on from this one, with its own matrices; a new one where None.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        with tempfile.TemporaryDirectory() as scratch, quiet_libraries():
            set_seed(seed)
            trainer = _trainer(rows, base, setting, Path(scratch), sft, lora, seed, adapter)
            begun = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - begun
            model: Any = trainer.model
            model.save_pretrained(out, save_embedding_layers=False)
    finally:
        torch.set_num_threads(threads)
    return seconds


def _trainer(
    rows: Sequence[Mapping[str, Any]],
    base: Path,
    setting: Setting,
    scratch: Path,
    sft: Mapping[str, Any],
    lora: Mapping[str, Any],
    seed: int,
    adapter: Path | None,
) -> SFTTrainer:
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, attn_implementation=setting.attention, local_files_only=True
    )
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    chosen = {
        "per_device_train_batch_size": setting.batch,
        "train_sampling_strategy": setting.sampling,
        "bf16": setting.autocast,
        "dataloader_num_workers": setting.workers,
    }
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(scratch),
            use_cpu=True,
            dataloader_pin_memory=False,
            seed=seed,
            **{**sft, **chosen},
        ),
        train_dataset=datasets.Dataset.from_list([dict(row) for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(base, local_files_only=True),
        peft_config=None if adapter is not None else LoraConfig(**lora),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
