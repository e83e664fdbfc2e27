"""Tokens that a base has never trained are spelled where a student learns to say them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from transformers import AddedToken, AutoModelForCausalLM, AutoTokenizer

from benchmarks.tiny_model import tiny_model
from reflux.finetune.base_model import load_tokenizer
from reflux.finetune.data.encoding import IGNORED, encode
from reflux.finetune.data.spelling import spelled_by
from tests.finetune.test_encoding import HERMES, TOOLS

pytestmark = pytest.mark.engine
MARKS = ("<tool_call>", "</tool_call>", "<unused>")
TEMPLATE = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"


def base_with(folder: Path, alike: bool) -> Any:
    """The tokenizer of a base with further tokens, whose rows of the output are alike or not."""
    tiny_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rows = model.get_output_embeddings().weight.data
    rows[-len(MARKS) :] = rows[7] if alike else torch.randn(len(MARKS), rows.shape[1])
    model.save_pretrained(folder)
    return load_tokenizer(folder)


def test_a_call_is_learned_in_tokens_that_the_base_knows(tmp_path: Path) -> None:
    tokenizer = base_with(tmp_path, alike=True)
    call, _ = tokenizer.convert_tokens_to_ids(list(MARKS[:2]))
    assert {tokenizer.decode([id]) for id in spelled_by(tokenizer)} == set(MARKS)
    sequences = encode(TOOLS, tokenizer)
    learned = [[id for id in each["labels"] if id != IGNORED] for each in sequences]
    assert [tokenizer.decode(ids) for ids in learned] == [
        f"{HERMES}<|im_end|>\n",
        "No.<|im_end|>\n",
    ]
    assert all(call not in ids for ids in learned)
    first, second = (each["input_ids"] for each in sequences)
    begin = sequences[0]["labels"].index(learned[0][0])
    asked = tokenizer.apply_chat_template(
        TOOLS["prompt"], tools=TOOLS["tools"], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert first[:begin] == asked  # As a request has it, marks and all.
    assert call in first[:begin] and call in second


def test_tokens_with_rows_of_their_own_stay(tmp_path: Path) -> None:
    tokenizer = base_with(tmp_path, alike=False)
    assert spelled_by(tokenizer) == {}
    (sequence,) = encode(TOOLS, tokenizer)
    assert tokenizer.convert_tokens_to_ids(MARKS[0]) in sequence["labels"]
