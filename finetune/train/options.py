"""The options of TRL and PEFT: Reflux's defaults, and what is wrong with a user's.

`sft:` and `lora:` go unchanged to `SFTConfig` and `LoraConfig`, over the defaults below.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from trl.trainer.sft_config import SFTConfig

from reflux.agents.errors import UsageError

SFT_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 10,
    "num_train_epochs": 1,
    "weight_decay": 0.0,
    # The weights are in bf16; autocast would only cast them again.
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "save_total_limit": 2,
    "restore_callback_states_from_checkpoint": True,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "include_num_input_tokens_seen": "non_padding",
}
LORA_DEFAULTS: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
    "task_type": "CAUSAL_LM",
}
EVALUATION_DEFAULTS = {"eval_strategy": "steps", "eval_steps": 0.1}
"""Ten evaluations in a training."""
BEST_DEFAULTS = {
    "save_strategy": "best",
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
}
"""The weights of the best evaluation become the student, unless `sft` saves at other steps."""


def sft_arguments(
    sft: Mapping[str, Any] | None,
    output_dir: str,
    seed: int = 0,
    evaluation: float = 0.0,
) -> SFTConfig:
    """TRL's arguments, on a GPU where there is one.

    Raises:
        UsageError: an option is unknown or invalid.
    """
    cuda = torch.cuda.is_available()
    defaults = {
        **SFT_DEFAULTS,
        **(EVALUATION_DEFAULTS if evaluation else {}),
        **(BEST_DEFAULTS if evaluation and "save_strategy" not in (sft or {}) else {}),
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "seed": seed,
    }
    if not evaluation and str((sft or {}).get("eval_strategy", "no")) != "no":
        raise UsageError("sft.eval_strategy needs rows that are held out: set evaluation: 0.05")
    return configured(SFTConfig, "sft", defaults, sft, output_dir=output_dir)


def lora_config(lora: Mapping[str, Any] | None) -> LoraConfig:
    """PEFT's config.

    Raises:
        UsageError: an option is unknown or invalid.
    """
    return configured(LoraConfig, "lora", LORA_DEFAULTS, lora)


def configured(
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
