"""Reasoning apart from content: whole texts, and texts in pieces of any size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflux.agents.clients.reasoning import ReasoningSplitter, apart, split_reasoning
from reflux.agents.types import Completion, TokenLogprob

FINAL = "<|start|>assistant<|channel|>final<|message|>"
CASES = {
    "<think>a</think>Lima": ("a", "Lima"),
    "\n<think>\na b\n</think>\n\nLima": ("a b", "Lima"),
    "I think so.\n</think>\n\nLima": ("I think so.", "Lima"),
    "<think>never": ("never", ""),
    "<THINK>a</THINK>Lima": ("a", "Lima"),
    "[THINK]a[/THINK]Lima": ("a", "Lima"),
    f"<|channel|>analysis<|message|>a<|end|>{FINAL}Lima<|return|>": ("a", "Lima"),
    f"<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b"
    f"<|end|>{FINAL}Lima": ("a\nb", "Lima"),
    "analysisWe need it.assistantfinalLima": ("We need it.", "Lima"),
    "analysis of the data": ("", "analysis of the data"),
    "Use `<think>` and `</think>` tags.": ("", "Use `<think>` and `</think>` tags."),
    "The tag `</think>` closes it.": ("", "The tag `</think>` closes it."),
    'The tag "</think>" closes it.': ("", 'The tag "</think>" closes it.'),
    "```xml\n</think>\n```": ("", "```xml\n</think>\n```"),
    "Models write <think>x</think> first.": ("", "Models write <think>x</think> first."),
    "<think>a</think>The tag `</think>` ends": ("a", "The tag `</think>` ends"),
    "<think>a</think><think>b</think>Lima": ("a\nb", "Lima"),
    "<b>Lima</b>": ("", "<b>Lima</b>"),
    "4 < 5": ("", "4 < 5"),
    "<thin": ("", "<thin"),
    "": ("", ""),
}


@given(st.sampled_from(sorted(CASES)), st.lists(st.integers(1, 9), min_size=1), st.booleans())
def test_the_pieces_do_not_matter(text: str, sizes: list[int], opened: bool) -> None:
    splitter, rest, index, content = ReasoningSplitter(opened), text, 0, ""
    while rest:
        size = sizes[index % len(sizes)]
        content += splitter.feed(rest[:size])[1]
        rest, index = rest[size:], index + 1
    content += splitter.end()[1]
    assert (splitter.reasoning, splitter.content) == CASES[text]
    if opened or not splitter.without_opening:
        assert content == splitter.content


@pytest.mark.parametrize("text", CASES)
def test_a_whole_text(text: str) -> None:
    splitter = split_reasoning(text)
    assert (splitter.reasoning, splitter.content) == CASES[text]


@given(st.text(alphabet="ab<>/think[]|`\n ", max_size=60))
def test_no_text_is_lost_but_tags(text: str) -> None:
    splitter = split_reasoning(text)
    letters = "".join(char for char in text if char in "ab")
    kept = splitter.reasoning + splitter.content
    assert "".join(char for char in kept if char in "ab") == letters


def test_log_probabilities_are_those_of_the_content() -> None:
    tokens = tuple(TokenLogprob(token, -1.0) for token in ("<think>", "a", "</think>", "Li", "ma"))
    reply = apart(Completion("<think>a</think>Lima", logprobs=tokens, finish_reason="stop"))
    assert (reply.text, reply.reasoning) == ("Lima", "a")
    assert [token.token for token in reply.logprobs] == ["Li", "ma"]
    other = apart(Completion("<think>a</think>Lima", logprobs=tokens[:3]))
    assert other.min_logprob is None


def test_a_reply_that_ends_within_its_reasoning_is_truncated() -> None:
    assert apart(Completion("<think>a", finish_reason="stop")).truncated
