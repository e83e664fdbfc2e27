"""What rows lose before a student learns them, against what passes through distillation."""

from typing import Literal

from pydantic import BaseModel, Field

from reflux.finetune.configs.task import STRICT


class DefenceConfig(BaseModel):
    """Changes to the amplified system's answers before they are learned; none by default. A model
    is `base`, a student, or `endpoint:MODEL@URL`."""

    model_config = STRICT

    teachers: tuple[str, ...] = ()
    """Further agents that the questions are amplified with: each row takes the answer of one of
    them or of the agent, by turns, where theirs is accepted."""
    paraphrase: str = ""
    """The model that says answers of more than three words in other words."""
    mask: str = ""
    """The reference, `base` or a student: tokens that the agent chose and the reference would not
    have chosen are read, and not learned."""
    outliers: float = Field(default=0.0, ge=0, le=0.5)
    """Share of the rows that are left out, the most unusual ones."""
    outliers_by: Literal["gradient", "loss"] = "gradient"
    """What makes a row unusual: its gradient's direction, or the base's loss on it."""

    @property
    def models(self) -> tuple[str, ...]:
        """Those that are asked."""
        return (*self.teachers, *((self.paraphrase,) if self.paraphrase else ()))
