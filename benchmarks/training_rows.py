"""The rows of the training benchmark, and their token counts."""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from reflux.agents.prompts import answer_prompt
from reflux.finetune.base_model import load_base, quiet_libraries
from reflux.finetune.data.questions import anchor_prompts
from reflux.finetune.train.packing import IGNORED
from reflux.tasks.addition import Addition, read

Rows = list[dict[str, Any]]
Figure = dict[str, Any]
"""A row of the printed table."""


def rows_of(base: Path, levels: Sequence[int], sums: int, anchor: int, seed: int) -> Rows:
    """Shuffled rows: `sums` of each level with true answers, and `anchor` replies of the base."""
    task = Addition()
    rows = [
        row(question, true_sum(question), task.system_prompt)
        for level in levels
        for question in task.sample(sums, level, "train", seed)
    ]
    prompts = anchor_prompts(anchor, seed)
    model, tokenizer = load_base(base)
    asked = [row(prompt, "", "")["prompt"] for prompt in prompts]
    for prompt, reply in zip(prompts, generate_greedy(model, tokenizer, asked, 24), strict=True):
        rows.append(row(prompt, reply, ""))
    random.Random(seed).shuffle(rows)
    return rows


@torch.inference_mode()
def generate_greedy(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[Mapping[str, str]]],
    max_new_tokens: int,
) -> list[str]:
    """The model's greedy replies to a batch of `prompts`, each a list of messages."""
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


def row(question: str, answer: str, system: str) -> dict[str, Any]:
    """A row as `reflux.finetune.data.rows` makes it."""
    prompt = [{"role": role, "content": text} for role, text in answer_prompt(question, system)]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]}


def true_sum(question: str) -> str:
    """The true answer, which a benchmark may know."""
    a, b, carry = read(question)
    return str(int(a[::-1]) + int(b[::-1]) + carry).zfill(len(a) + 1)[::-1]


def batches(tokenizer: Any, rows: Rows, size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Collate the rows in batches of `size`: padded at the right, with labels on the
    completions."""
    for start in range(0, len(rows), size):
        some = [tokens(tokenizer, one) for one in rows[start : start + size]]
        longest = max(len(ids) for ids, _ in some)
        ids = torch.zeros(len(some), longest, dtype=torch.long)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for at, (found, prompt) in enumerate(some):
            ids[at, : len(found)] = torch.tensor(found)
            labels[at, prompt : len(found)] = ids[at, prompt : len(found)]
            mask[at, : len(found)] = 1
        yield {"input_ids": ids, "labels": labels, "attention_mask": mask}


def tokens(tokenizer: Any, one: dict[str, Any]) -> tuple[list[int], int]:
    """A row's tokens, and the number of prompt tokens among them."""
    chat = one["prompt"] + one["completion"]
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    asked = tokenizer.apply_chat_template(one["prompt"], tokenize=False, add_generation_prompt=True)
    return tokenizer(whole)["input_ids"], len(tokenizer(asked)["input_ids"])


def figure(
    part: str,
    what: str,
    value: float,
    unit: str,
    n: int,
    spread: tuple[float, float] | None = None,
) -> Figure:
    """A row of the table."""
    return {"part": part, "what": what, "value": value, "unit": unit, "n": n, "spread": spread}
