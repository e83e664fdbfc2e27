"""What is asked of a student to see whether it still behaves as its base does."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from reflux.finetune.configs.task import STRICT

MAX_PROMPTS = 100


class CanaryConfig(BaseModel):
    """The prompts of each round on which behavior is compared; a number is `prompts` and `probes`
    alike, and 0 asks none."""

    model_config = STRICT

    prompts: int = Field(default=20, ge=0, le=MAX_PROMPTS)
    """General prompts, the same in each round, whose replies by the base the student should find as
    likely: for its perplexity and Kullback-Leibler divergence."""
    probes: int = Field(default=40, ge=0, le=100)
    """Probes of each behavior, others in each round until all 200 were asked; see
    `reflux.finetune.canaries.probes`."""
    depths: tuple[Annotated[int, Field(ge=0, le=8)], ...] = ()
    """Depths of trees by which the amplified system is asked the same probes."""
    control: bool = False
    """Trains a second student in each round, on as many rows that no student had a part in, for
    `gates.bias`."""


def canary_config(value: Any) -> Any:
    """A number is that of the prompts and of the probes."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return {"prompts": value, "probes": value} if is_number else value


Canaries = Annotated[CanaryConfig, BeforeValidator(canary_config)]
