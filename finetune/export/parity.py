"""Greedy replies of a model of transformers, a batch at once: what a twin is compared with.

Does the GGUF twin of a student say what its PEFT adapter says?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reflux.agents.prompts import answer_prompt
from reflux.finetune.base_model import quiet_libraries
from reflux.graphs.evals.task import Task


@torch.inference_mode()
def generate_greedy(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[Mapping[str, str]]],
    max_new_tokens: int,
) -> list[str]:
    """The model's greedy replies to `prompts`, each a list of messages, as one batch."""
    if not prompts:
        return []
    batch = tokenizer.apply_chat_template(
        [[dict(message) for message in prompt] for prompt in prompts],
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        return_tensors="pt",
        tokenizer_kwargs={"padding_side": "left"},
    ).to(model.device)
    model.eval()
    with quiet_libraries():
        ids = model.generate(
            **batch,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
    replies = ids[:, batch["input_ids"].shape[1] :]
    return tokenizer.batch_decode(replies, skip_special_tokens=True)


@dataclass(frozen=True)
class Agreement:
    """Share of questions on which both give the same greedy answer."""

    agreement: float
    n: int


def peft_answers(
    base: Path, adapter: Path, task: Task, questions: Sequence[str], batch: int = 64
) -> list[str]:
    """The greedy answers of the adapter in plain transformers and PEFT, normalised."""
    from reflux.finetune.base_model import load_adapted

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
