"""Requests in three protocols as messages and tools of the chat protocol."""

from typing import Any

import pytest

from reflux.graphs.traces.protocols.messages import request_messages
from reflux.graphs.traces.protocols.replies import chat_tools, reply_of

CALL = {"id": "k", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
USER = {"role": "user", "content": "hi"}


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        (
            {"instructions": "s", "input": "hi"},
            [{"role": "system", "content": "s"}, USER],
        ),
        (  # One turn of the Responses API is one message.
            {"input": [
                {"type": "reasoning", "content": [], "summary": [
                    {"type": "summary_text", "text": "a"}, {"type": "summary_text", "text": "b"}]},
                {"type": "message", "role": "assistant", "content": [
                    {"type": "output_text", "text": "x"}, {"type": "refusal", "refusal": "y"}]},
                {"type": "custom_tool_call", "call_id": "k", "name": "f", "input": "{}"},
                {"role": "assistant", "content": "z"},
                {"type": "custom_tool_call_output", "call_id": "k", "output": [
                    {"type": "input_image", "image_url": PICTURE["image_url"]["url"]}]}]},
            [said("xyz", reasoning_content="a\nb", tool_calls=[CALL]),
             {"role": "tool", "tool_call_id": "k", "content": [PICTURE]}],
        ),
        (  # Thoughts without a text say nothing.
            {"input": [{"type": "reasoning", "summary": []}, USER]},
            [USER],
        ),
        (  # Two messages of a chat stay two.
            {"messages": [said("a"), said("b")]},
            [said("a"), said("b")],
        ),
        (
            {"system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "messages": [
                {"role": "user", "content": [{"type": "image", "source": {
                    "type": "base64", "media_type": "image/png", "data": "AA"}}]},
                said([{"type": "redacted_thinking", "data": "?"},
                      {"type": "tool_use", "id": "k", "name": "f", "input": {}}]),
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "k", "is_error": True},
                    {"type": "text", "text": "hi"}]}]},
            [{"role": "system", "content": "a\n\nb"}, {"role": "user", "content": [PICTURE]},
             said("", tool_calls=[CALL]),
             {"role": "tool", "tool_call_id": "k", "content": "", "is_error": True}, USER],
        ),
    ],
)  # fmt: skip
def test_requests_of_every_protocol_are_chat_messages(body: Any, messages: Any) -> None:
    assert request_messages(body) == messages


@pytest.mark.parametrize("item", [{"role": "critic", "content": "x"}, {"type": "web_search_call"}])
def test_what_no_protocol_knows_is_refused_or_kept(item: Any) -> None:
    with pytest.raises(ValueError, match="a message has the role"):
        request_messages({"input": [item]})
    kept = item if "role" in item else said([item])
    assert request_messages({"input": [item, USER]}, strict=False) == [kept, USER]


def test_a_tool_that_its_provider_runs_is_left_out_or_kept() -> None:
    schema = {"type": "object"}
    mine = {"type": "custom", "name": "f", "input_schema": schema}
    form = {"type": "function", "function": {"name": "f", "parameters": schema}}
    theirs = {"type": "web_search_20250305", "name": "web_search"}
    assert chat_tools([mine, theirs]) == [form]
    assert chat_tools([mine, theirs], strict=False) == [form, theirs]
    with pytest.raises(ValueError, match="a tool has no name"):
        chat_tools([{"parameters": schema}])


def test_tokens_are_counted_in_the_words_of_any_program() -> None:
    used = {"input_tokens": 3, "cache_read_input_tokens": 4, "output": "2", "total": None}
    reply = reply_of(said("x", tool_calls=[CALL]), used)
    assert (reply.prompt_tokens, reply.completion_tokens) == (7, 2)
    assert reply.finish_reason == "tool_calls" and reply.tool_calls[0].to_json() == CALL
