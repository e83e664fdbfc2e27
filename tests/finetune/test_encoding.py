"""What the loss counts, token by token, in the chat templates that real families ship."""

import re
from pathlib import Path
from typing import Any

import pytest
import trl
from trl.chat_template_utils import get_training_chat_template

from reflux.agents.errors import UsageError
from reflux.finetune.chat_template import fit_template, missing_tools
from reflux.finetune.configs.run import BaseConfig
from reflux.finetune.data.encoding import (
    IGNORED,
    encode,
    encode_rows,
    for_template,
    length_spread,
    lengths_in_words,
)

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


PLAIN = {"prompt": [user("hi?")], "completion": [said("ho!")]}
MULTI = {"prompt": [user("hi?")], "completion": [said("ho!"), user("and?"), said("so on")]}
TOOLS = {
    "prompt": [user("Rain?")],
    "completion": [
        said("", tool_calls=[CALL]),
        {"role": "tool", "name": "get_weather", "tool_call_id": "call12345", "content": "sunny"},
        said("No."),
    ],
    "tools": [TOOL],
}
HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
THOUGHT = "<think>\n\n</think>\n\n"


def tokenizer_with(template: str) -> Any:
    """Bytes, and the template's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", *re.findall(r"<[|｜][^<>|｜'\"]*[|｜]>", template)]
    special += [f"<{name}>" for name in ("bos", "start_of_turn", "end_of_turn", "think", "/think")]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*special, *letters]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", pad_token="<pad>",
        additional_special_tokens=[t for t in special if "think" not in t],
    )  # fmt: skip
    fast.chat_template = template
    return fast


def real(name: str) -> Any:
    return tokenizer_with((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))


def learned(sequence: dict[str, list[int]], tokenizer: Any) -> list[str]:
    """The texts of a sequence that the loss counts."""
    spans: list[list[int]] = [[]]
    for token, label in zip(sequence["input_ids"], sequence["labels"], strict=True):
        assert label in (token, IGNORED)
        if label != IGNORED:
            spans[-1].append(token)
        elif spans[-1]:
            spans.append([])
    return [tokenizer.decode(span) for span in spans if span]


ENDS = {
    "qwen2_5": "<|im_end|>\n",
    "qwen3_instruct_2507": "<|im_end|>\n",
    "lfm2_v2": "<|im_end|>\n",
    "llama3": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "gemma": "<end_of_turn>\n",
    "gemma3": "<end_of_turn>\n",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "phi3": "<|end|>\n",
}
LAST = {"phi3": "</s>"}
"""What a template puts behind the last message."""
CALLS = {
    "qwen2_5": HERMES,
    "qwen3_instruct_2507": HERMES,
    "lfm2_v2": "<|tool_call_start|>[get_weather(city='Rome')]<|tool_call_end|>",
    "llama3_1": '{"name": "get_weather", "parameters": {"city": "Rome"}}',
}


@pytest.mark.parametrize("name", ENDS)
def test_every_reply_is_learned_through_the_token_that_ends_it(name: str) -> None:
    tokenizer = real(name)
    end, last = ENDS[name], ENDS[name] + LAST.get(name, "")
    assert [learned(s, tokenizer) for s in encode(PLAIN, tokenizer)] == [["ho!" + last]]
    assert [learned(s, tokenizer) for s in encode(MULTI, tokenizer)] == [
        ["ho!" + end, "so on" + last]
    ]
    assert (name in CALLS) == (not missing_tools(tokenizer))
    if name in CALLS:
        assert [learned(s, tokenizer) for s in encode(TOOLS, tokenizer)] == [
            [CALLS[name] + end, "No." + last]
        ]


@pytest.mark.parametrize("name", sorted(set(ENDS) - {"llama3_1"}))
@pytest.mark.parametrize("row", [PLAIN, MULTI, TOOLS])
def test_the_labels_are_trls_assistant_mask(name: str, row: dict[str, Any]) -> None:
    tokenizer = real(name)
    if row.get("tools") and missing_tools(tokenizer):
        pytest.skip("its template leaves out tools")
    turns = [for_template(turn) for turn in (*row["prompt"], *row["completion"])]
    theirs = tokenizer.apply_chat_template(
        turns, tools=row.get("tools"), chat_template=get_training_chat_template(tokenizer),
        return_dict=True, return_assistant_tokens_mask=True,
    )  # fmt: skip
    (sequence,) = encode(row, tokenizer)
    assert sequence["input_ids"] == theirs["input_ids"]
    ours = [label != IGNORED for label in sequence["labels"]]
    other = [i for i, bit in enumerate(theirs["assistant_masks"]) if bool(bit) != ours[i]]
    # TRL also counts the line feed that Qwen2.5's prompts end with, which no model has to write.
    replies = sum(turn["role"] == "assistant" for turn in row["completion"])
    assert [tokenizer.decode([theirs["input_ids"][i]]) for i in other] == (
        ["\n"] * replies if name == "qwen2_5" else []
    )


def test_replies_that_are_rendered_otherwise_later_are_sequences_of_their_own() -> None:
    """Qwen3 leaves out the thoughts of earlier replies; gpt-oss ends them with another token."""
    tokenizer = real("qwen3")
    end = "<|im_end|>\n"
    texts = [learned(s, tokenizer) for s in encode(MULTI, tokenizer)]
    assert texts == [[f"{THOUGHT}ho!{end}"], [f"{THOUGHT}so on{end}"]]
    texts = [learned(s, tokenizer) for s in encode(TOOLS, tokenizer)]
    assert texts == [[f"{THOUGHT}{HERMES}{end}"], [f"{THOUGHT}No.{end}"]]
    tokenizer = real("gptoss")
    said_in_full = "<|channel|>final<|message|>ho!<|return|>"
    assert learned(encode(MULTI, tokenizer)[0], tokenizer) == [said_in_full]


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
def test_a_reply_follows_the_very_tokens_of_its_request(path: Path) -> None:
    if re.search("training|llava|idefics|smolvlm|deepseek", path.stem):
        pytest.skip("of images, ours no more, or its request begins what the reply then leaves out")
    tokenizer = tokenizer_with(path.read_text(encoding="utf-8"))
    fit_template(tokenizer, BaseConfig())
    row = MULTI if missing_tools(tokenizer) else TOOLS
    turns = [for_template(turn) for turn in (*row["prompt"], *row["completion"])]
    requests = [
        tokenizer.apply_chat_template(
            turns[:index], tools=row.get("tools"), add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for index in (1, 3)
    ]  # fmt: skip
    for sequence in encode(row, tokenizer):
        ids, labels = sequence["input_ids"], sequence["labels"]
        starts = [
            i for i in range(1, len(ids)) if labels[i] != IGNORED and labels[i - 1] == IGNORED
        ]
        assert starts
        assert all(ids[:start] in requests for start in starts)


def test_a_weight_of_zero_is_context() -> None:
    tokenizer = real("qwen2_5")
    first, question, second = MULTI["completion"]
    row = {**MULTI, "completion": [first | {"weight": 0}, question, second]}
    assert [learned(s, tokenizer) for s in encode(row, tokenizer)] == [["so on<|im_end|>\n"]]
    assert "ho!" in tokenizer.decode(encode(row, tokenizer)[0]["input_ids"])


def test_thoughts_need_a_base_that_thinks() -> None:
    row = {"prompt": [user("hi?")], "completion": [said("ho!", reasoning_content="Hm.")]}
    tokenizer = real("qwen3")
    fit_template(tokenizer, BaseConfig(thinking=True))
    (sequence,) = encode(row, tokenizer)
    assert learned(sequence, tokenizer) == ["<think>\nHm.\n</think>\n\nho!<|im_end|>\n"]
    tokenizer = real("qwen3")
    fit_template(tokenizer, BaseConfig())
    with pytest.raises(UsageError, match=r"row 0.*base\.thinking: true"):
        list(encode_rows([row], tokenizer))


@pytest.mark.parametrize("name", ["llama3", "gemma", "phi3", "cohere"])
def test_a_template_without_tools_is_refused_or_given_them_as_text(name: str) -> None:
    tokenizer = real(name)
    with pytest.raises(UsageError, match=r"row 1 has tools.*leaves out.*tool calls"):
        list(encode_rows([PLAIN, TOOLS], tokenizer))
    plain = encode(PLAIN, tokenizer)
    fit_template(tokenizer, BaseConfig(tools="text"))
    assert encode(PLAIN, tokenizer) == plain
    (sequence,) = encode(TOOLS, tokenizer)
    texts = learned(sequence, tokenizer)
    assert [text.replace(ENDS[name], "") for text in texts] == [HERMES, "No." + LAST.get(name, "")]
    whole = tokenizer.decode(sequence["input_ids"])
    assert '"name": "get_weather", "description"' in whole
    assert "<tool_response>\nsunny\n</tool_response>" in whole


def test_no_more_than_the_longest_sequence_holds_95_percent() -> None:
    spread = length_spread([46, 80])
    assert spread == {"min": 46, "median": 63, "p95": 78, "max": 80, "sum": 126}
    assert lengths_in_words(length_spread([7])) == "7 to 7 tokens (median 7, 95% within 7)"
