"""Whether a student also learns which answers were refused."""

from typing import Any

from pydantic import BaseModel, Field

from reflux.finetune.configs.task import STRICT


class PreferenceConfig(BaseModel):
    """Training on pairs of answers after the training on rows (DPO, arXiv 2305.18290)."""

    model_config = STRICT

    dpo: dict[str, Any] = {}
    """Goes unchanged to TRL's DPOConfig."""
    min_pairs: int = Field(default=16, ge=1)
    """Fewer pairs train nothing."""
