"""Does the GGUF twin of a student say what its PEFT adapter says?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.prompts import answer_prompt
from graphs.task import Task


@dataclass(frozen=True)
class Agreement:
    """Share of questions on which both give the same greedy answer."""

    agreement: float
    n: int


def peft_answers(
    base: Path, adapter: Path, task: Task, questions: Sequence[str], batch: int = 64
) -> list[str]:
    """The greedy answers of the adapter in plain transformers and PEFT, normalised."""
    from finetune.base_model import load_adapted
    from finetune.greedy import generate_greedy

    student, tokenizer = load_adapted(base, adapter)
    prompts = [
        [{"role": r, "content": c} for r, c in answer_prompt(question, task.system_prompt)]
        for question in questions
    ]
    tokens = max(map(task.answer_tokens, questions), default=1)
    answers: list[str] = []
    for at in range(0, len(prompts), batch):
        answers += generate_greedy(student, tokenizer, prompts[at : at + batch], tokens)
    return [task.normalise(answer) for answer in answers]


def agreement(one: Sequence[str | None], other: Sequence[str | None]) -> Agreement:
    """Compare two lists of answers to the same questions."""
    same = sum(a == b for a, b in zip(one, other, strict=True))
    return Agreement(same / max(1, len(one)), len(one))
