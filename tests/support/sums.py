"""The addition task answered by scripts instead of a model."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from reflux.agents.types import ChatRequest
from reflux.finetune.configs.canaries import CanaryConfig
from reflux.finetune.configs.run import RoundsConfig, RoundSpec
from reflux.graphs.evals.task import is_held_out
from reflux.tasks.addition import Addition, read


def add(question: str) -> str:
    a, b, carry = read(question)
    return str(int(a[::-1]) + int(b[::-1]) + carry).zfill(len(a) + 1)[::-1]


def exact(request: ChatRequest) -> str:
    question = request.messages[-1][1]
    return add(question.split()[-1]) if question.endswith("=") else "a general answer"


class FewSums(Addition):
    """Addition of which only some sums are learned by heart."""

    learned = 20

    def primitives(self) -> Sequence[str]:
        return super().primitives()[: self.learned]


class FewerSums(FewSums):
    """For the default model, which takes its time."""

    learned = 8


def learn_few_sums() -> None:
    """Have the commands of this process know `FewSums` by the name of addition."""
    from reflux.tasks import TASKS

    TASKS["addition"] = FewSums


def work_little() -> None:
    """Know `FewerSums` as addition, and `compare_little`."""
    from reflux.tasks import TASKS

    TASKS["addition"] = FewerSums
    compare_little()


def compare_little(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Compare the engines of a student on few and short answers."""
    from reflux.finetune.export import parity

    for name, value in (("ROW_PROMPTS", 2), ("FIXED_PROMPTS", 1), ("TOKENS", 2)):
        put(parity, name, value)


class SuspiciousAddition(Addition):
    """Its scorer must never see a training question."""

    scored = 0

    def score(self, question: str, answer: str) -> bool:
        if not is_held_out(self, question):
            raise AssertionError(f"the scorer was handed {question!r}, a training question")
        type(self).scored += 1
        return super().score(question, answer)


CONFIG = RoundsConfig(
    rounds=(
        RoundSpec(level=1),
        RoundSpec(level=2, questions=24, held_out=16),
        RoundSpec(level=4, questions=40, held_out=12),
    ),
    anchor=5,
    canaries=CanaryConfig(prompts=3, probes=1),
)


def timeless(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reports without what the clock decides."""
    kept = json.loads(json.dumps(reports))
    for report in kept:
        for key in ("train_seconds", "examples_per_second", "seconds", "parity"):
            report.pop(key, None)
        report["amplify"].pop("seconds")
    return kept
