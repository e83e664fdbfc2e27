"""One template for rows and requests, whatever the base's own leaves out or refuses."""

from typing import Any

import pytest
from trl.data_utils import maybe_apply_chat_template

from reflux.agents.errors import UsageError
from reflux.finetune.chat_template import fit_template
from reflux.finetune.configs.run import BaseConfig
from tests.support.families import FAMILIES, tokenizer_of

SYSTEM = {"role": "system", "content": "Be short."}
USER = {"role": "user", "content": "tea?"}
REPLY = {"role": "assistant", "content": "the tea"}


def fitted(name: str, **config: Any) -> tuple[Any, list[str]]:
    tokenizer = tokenizer_of(FAMILIES[name])
    return tokenizer, fit_template(tokenizer, BaseConfig(**config))


def request(tokenizer: Any, *chat: dict[str, str]) -> str:
    return tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("name", "notes", "with_system", "empty_system"),
    [
        ("llama", [], "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe short.",
         "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n<|eot_id|>"),
        ("qwen3", ["thinking is off"], "<|im_start|>system\nBe short.<|im_end|>",
         "<|im_start|>system\n<|im_end|>"),
        ("gemma2", ["refuses system"], "<bos><start_of_turn>user\nBe short.\n\ntea?<end_of_turn>",
         "<bos><start_of_turn>user\ntea?<end_of_turn>"),
        ("mistral", ["refuses system"], "<s>[INST] Be short.\n\ntea? [/INST]",
         "<s>[INST] tea? [/INST]"),
        ("gpt2", ["no chat template"], "Be short.\n\nUser: tea?\n\nAssistant:\n",
         "User: tea?\n\nAssistant:\n"),
    ],
)  # fmt: skip
def test_what_is_changed_is_told_and_what_is_rendered(
    name: str, notes: list[str], with_system: str, empty_system: str
) -> None:
    tokenizer, told = fitted(name)
    assert len(told) == len(notes)
    assert all(part in note for part, note in zip(notes, told, strict=True))
    assert request(tokenizer, SYSTEM, USER).startswith(with_system)
    assert request(tokenizer, {**SYSTEM, "content": ""}, USER).startswith(empty_system)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("system", [[SYSTEM], [{**SYSTEM, "content": ""}], []])
def test_a_row_begins_with_the_request_token_for_token(
    name: str, system: list[dict[str, str]]
) -> None:
    tokenizer, _ = fitted(name)
    prompt = [*system, USER]
    text = maybe_apply_chat_template({"prompt": prompt, "completion": [REPLY]}, tokenizer)
    assert text["prompt"] == request(tokenizer, *prompt)
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*prompt, REPLY])["input_ids"]
    assert whole[: len(asked)] == asked
    learned = tokenizer.decode(whole[len(asked) :])
    assert learned.startswith(f"the tea{FAMILIES[name].end}")


@pytest.mark.parametrize("thinking", [True, False])
def test_thinking_is_one_value_whatever_a_caller_says(thinking: bool) -> None:
    tokenizer, told = fitted("qwen3", thinking=thinking)
    assert told == [f"thinking is {'on' if thinking else 'off'}, in rows and in requests"]
    asked = request(tokenizer, USER)
    assert asked.endswith("assistant\n" if thinking else "assistant\n<think>\n\n</think>\n\n")
    again = tokenizer.apply_chat_template(
        [USER], tokenize=False, add_generation_prompt=True, enable_thinking=not thinking
    )
    assert again == asked


def test_fitting_twice_changes_nothing() -> None:
    for name in FAMILIES:
        tokenizer, _ = fitted(name)
        once = request(tokenizer, SYSTEM, USER)
        fit_template(tokenizer, BaseConfig())
        assert request(tokenizer, SYSTEM, USER) == once


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('never') }}", "cannot render a question: never"),
        ("{% for m in messages %}", "cannot render a question"),
        ("{{ messages[0].foo.bar }}", "cannot render a question"),
        ("hello", "leaves out the question"),
    ],
)
def test_a_template_that_renders_no_question_is_refused(template: str, says: str) -> None:
    tokenizer = tokenizer_of(FAMILIES["llama"])
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=says):
        fit_template(tokenizer, BaseConfig())
