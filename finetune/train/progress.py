"""What a training reports while it runs, and its loss curve when it is done."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from reflux.agents.errors import RefluxError

CHECKPOINT_SECONDS = 60.0
"""Time between two checkpoints; `sft.save_strategy` adds others."""
CURVE_POINTS = 200
"""Maximum points of a loss curve; more steps are averaged."""


@dataclass(frozen=True)
class TrainingStep:
    """The state of a training run after a step."""

    step: int
    steps: int
    loss: float
    """Mean over the step's completion tokens, in nats."""
    learning_rate: float
    examples_per_second: float
    tokens_per_second: float
    """Without padding."""
    eval_loss: float | None = None
    """The newest loss on the rows held out."""

    @property
    def detail(self) -> str:
        """The step in words, for a progress line."""
        held_out = "" if self.eval_loss is None else f", eval {self.eval_loss:.3f}"
        return (
            f"loss {self.loss:.3f}{held_out}, lr {self.learning_rate:.2g}, "
            f"{self.tokens_per_second:,.0f} tokens/s"
        )


Curve = dict[str, list[tuple[int, float]]]
"""`loss` and `eval_loss`, each as (step, loss in nats per token)."""


def loss_curve(history: Sequence[dict[str, Any]]) -> Curve:
    """The curve of a trainer's `log_history`, in at most `CURVE_POINTS` points a line."""
    return {
        key: _thinned([(entry["step"], entry[key]) for entry in history if key in entry])
        for key in ("loss", "eval_loss")
    }


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    size = -(-len(points) // CURVE_POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size or 1)]
    return [(part[-1][0], round(fmean(loss for _, loss in part), 5)) for part in parts]


class StepListener(TrainerCallback):
    """Reports each step, and asks for a checkpoint now and then.

    Where there are checkpoints, an error that the listener raises saves one more before it ends
    the training; `error` keeps it.
    """

    def __init__(
        self, rows: int, listener: Callable[[TrainingStep], None], keeps_checkpoints: bool
    ) -> None:
        self._rows, self._listener = rows, listener
        self._keeps_checkpoints = keeps_checkpoints
        self.error: RefluxError | None = None
        self.begun = self._saved = time.perf_counter()
        self.first = 0
        """The step that the training went on from."""
        self._before = (0, 0)
        self.examples = self.tokens = 0
        """Since the training began or went on."""
        self.eval_loss: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begun = self._saved = time.perf_counter()
        self.first = state.global_step
        self._before = (round(self._rows * (state.epoch or 0)), state.num_input_tokens_seen)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self._keeps_checkpoints:
            return
        now = time.perf_counter()
        # All processes of a training save together, by the first one's clock.
        due = broadcast_object_list([now - self._saved >= CHECKPOINT_SECONDS])[0]
        if due:
            self._saved = now
            control.should_save = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        logs = logs or {}
        self.eval_loss = logs.get("eval_loss", self.eval_loss)
        if "loss" not in logs or not state.is_world_process_zero:
            return
        examples, tokens = self._before
        self.examples = round(self._rows * state.epoch) - examples
        self.tokens = state.num_input_tokens_seen - tokens
        seconds = time.perf_counter() - self.begun
        step = TrainingStep(
            step=state.global_step,
            steps=state.max_steps,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            examples_per_second=self.examples / seconds,
            tokens_per_second=self.tokens / seconds,
            eval_loss=self.eval_loss,
        )
        try:
            self._listener(step)
        except RefluxError as error:
            if not self._keeps_checkpoints:
                raise
            self.error = error
            control.should_save = control.should_training_stop = True


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; the trainer writes its state last."""
    checkpoints = sorted(
        folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/"),
        key=lambda path: int(path.name.rpartition("-")[2]),
        reverse=True,
    )
    return next((path for path in checkpoints if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return True
