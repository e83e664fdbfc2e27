"""What a student learns of each answer: its text, the votes, or a teacher's distributions."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from reflux.finetune.configs.task import STRICT

BASE, PARENT = "base", "parent"
LOGGED_TOKENS = 20
"""Alternatives that an endpoint lists for a token, at most."""


class TargetConfig(BaseModel):
    """What a student learns of each answer."""

    model_config = STRICT

    kind: Literal["hard", "votes", "tokens", "mixed", "on_policy"] = "hard"
    """`hard`: its text. `votes`: all answers that got votes, each by its share. `tokens`: the
    teacher's distribution of each token. `mixed`: both, the distributions by `weight`.
    `on_policy`: first the texts, then the teacher's distributions on what the student samples."""
    source: Literal["teacher", "log"] = "teacher"
    """Where the distributions of tokens come from: a teacher that reads the question with its
    sub-answers, or the log-probabilities on record."""
    teacher: str = PARENT
    """The model that teaches: `parent`, which is the agent that the student is to replace, `base`,
    or the name of another student of the same base."""
    beta: float | None = Field(default=None, ge=0, le=1)
    """As of TRL's DistillationConfig: 0 forward, 1 reverse Kullback-Leibler divergence, between
    them generalized Jensen-Shannon. None: 0 on recorded texts, 1 on the student's own."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Of the teacher's and the student's distributions in the loss."""
    top_k: int | None = Field(default=None, ge=1)
    """Likeliest tokens of the teacher that are compared, beside the sum of all others. None: all,
    or all that are on record."""
    weight: float = Field(default=0.5, gt=0, lt=1)
    """Of the distributions in `mixed`; the texts have the rest."""
    cold_start: float = Field(default=0.5, ge=0, lt=1)
    """Share of the steps in which `on_policy` learns texts before the student samples."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Of a sample; None: twice the longest text."""

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher runs beside the student."""
        return self.kind in ("tokens", "mixed", "on_policy") and self.source == "teacher"

    @property
    def needs_log(self) -> bool:
        """Whether log-probabilities on record are learned."""
        return self.kind in ("tokens", "mixed") and self.source == "log"

    @property
    def top_logprobs(self) -> int:
        """Alternatives that the models of a run report for each token."""
        return min(self.top_k or LOGGED_TOKENS, LOGGED_TOKENS) if self.needs_log else 1

    @property
    def soft_weight(self) -> float:
        """Share of the distributions in the loss of a token that has one."""
        return self.weight if self.kind == "mixed" else 1.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.source != "log":
            return self
        if self.kind == "on_policy":
            raise ValueError(
                "nothing is on record of what the student will sample: on_policy needs source: "
                "teacher"
            )
        if self.temperature != 1:
            raise ValueError(
                f"temperature {self.temperature:g} needs whole distributions, and the record lists "
                "the likeliest tokens: leave it at 1, or take source: teacher"
            )
        return self


def target_config(value: Any) -> Any:
    """A text is a kind."""
    return {"kind": value} if isinstance(value, str) else value


Targets = Annotated[TargetConfig, BeforeValidator(target_config)]
