"""Trainers of LoRA adapters whose matrices are random, so that every gradient shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def adapter_trainer(
    kind: Any, model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], folder: Path,
    **options: Any,
) -> Any:  # fmt: skip
    """A trainer of `kind` on the processor, without gradient checkpointing; `options` are those of
    TRL's `SFTConfig`. `rows` as they are distilled."""
    import torch
    from peft import LoraConfig
    from trl import SFTConfig

    from reflux.finetune.train.dataset import as_dataset

    plain = {"bf16": False, "use_cpu": True, "report_to": "none", "gradient_checkpointing": False}
    trainer = kind(
        model=model,
        args=SFTConfig(output_dir=str(folder), seed=7, **{**plain, **options}),
        train_dataset=as_dataset(rows, tokenizer),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    torch.manual_seed(3)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:  # Zero at the start, which would hide lora_A's gradients.
            parameter.data.normal_(std=0.05)
    return trainer
