"""Greedy replies of a model of transformers, a batch at once: what a twin is compared with."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from finetune.base_model import quiet_libraries


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
