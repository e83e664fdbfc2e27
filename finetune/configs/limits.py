"""The limits of a run: what it may spend, and what its students must reach."""

from pydantic import BaseModel, Field

from reflux.agents.budget import Price, SpendLimit
from reflux.finetune.configs.task import STRICT


class SpendLimitConfig(BaseModel):
    """Limits on the spending of a run since it started or resumed; None is no limit."""

    model_config = STRICT

    seconds: float | None = Field(default=None, gt=0)
    money: float | None = Field(default=None, gt=0)
    """In the currency of the prices."""
    calls: int | None = Field(default=None, gt=0)
    tokens: int | None = Field(default=None, gt=0)
    prices: dict[str, Price] = {}
    """By model name, per million prompt and completion tokens."""

    def open(self) -> SpendLimit:
        """The limit, with nothing spent."""
        return SpendLimit(**dict(self))


class GateConfig(BaseModel):
    """Limits that a student must reach."""

    model_config = STRICT

    imitation: float = Field(default=0.95, ge=0, le=1)
    """Round 0: minimum share of the overseer's own answers that the student gives."""
    retention: float = Field(default=0.9, ge=0, le=1)
    """Later rounds: minimum accuracy of the student, as a share of the amplified system's; without
    true answers the same of the answers that pass the check."""
    agreement: float = Field(default=0, ge=0, le=1)
    """Later rounds without true answers: minimum share of held-out questions to which the student
    gives the amplified system's answer; 0 demands none."""
    regression: float = Field(default=0.05, ge=0, le=1)
    """Maximum loss of accuracy on the level of the round before."""
    behavior: float = Field(default=0.35, ge=0, le=1)
    """Maximum loss of any behavior against the base, of those that canaries probe: a student fails
    whose loss, with those of the promoted students before it, is certainly larger."""
    bias: float = Field(default=0.1, ge=0, le=1)
    """As `behavior`, against the control student of `canaries.control`."""
    divergence: float | None = Field(default=None, gt=0)
    """Maximum Kullback-Leibler divergence of the student from the base on the general prompts of
    `canaries`, in nats a token; None judges none."""
    forgetting: float = Field(default=0.1, ge=0, le=1)
    """Maximum loss of accuracy on any level of an earlier round and on general tasks; a student
    fails whose loss is certainly larger, by the 95% interval of the report's `retention`."""
    parity: float = Field(default=0.8, ge=0, le=1)
    """Minimum share of prompts on which every engine gives plain PEFT's greedy answer, or one that
    PEFT finds nearly as likely."""


class RetentionConfig(BaseModel):
    """What is measured of what a student keeps, beside the gates' own figures."""

    model_config = STRICT

    questions: int = Field(default=20, ge=0, le=400)
    """Questions of each kind of general tasks (extra `tasks`), one level up, and in another
    wording; 0 asks none."""
