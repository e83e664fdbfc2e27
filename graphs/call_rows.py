"""Replies and steps as rows of the call log, and back."""

import json
import sqlite3
from dataclasses import replace

from agents.screen import redact
from agents.tools import ToolReply
from agents.types import Answer, Ask, Chain, Completion, Step, TokenLogprob, ToolCall


def redacted_step(step: Step) -> Step:
    """A step without secrets."""
    if isinstance(step, Answer):
        return Answer(redact(step.text))
    if isinstance(step, Chain):
        return Chain(redact(step.first))
    if isinstance(step, Ask):
        asked = tuple(replace(s, text=redact(s.text)) for s in step.subquestions)
        return Ask(asked, redact(step.note))
    return step


def row_of(reply: Completion) -> dict[str, object]:
    """The columns of a reply."""
    return {
        "completion": reply.text,
        "logprobs": json.dumps([[t.token, t.logprob, t.top] for t in reply.logprobs])
        if reply.logprobs
        else None,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "seconds": reply.seconds,
        "cached": int(reply.cached),
        "retries": json.dumps(reply.retries) if reply.retries else None,
        "tool_calls": json.dumps([[c.id, c.name, c.arguments] for c in reply.tool_calls])
        if reply.tool_calls
        else None,
    }


def tool_reply_of(row: sqlite3.Row) -> ToolReply:
    """A tool's recorded work as the reply that it was, without secrets."""
    return ToolReply(row["completion"], row["finish_reason"] != "refused")


def completion_of(row: sqlite3.Row) -> Completion:
    """A recorded call as the completion it was."""
    logprobs: list[tuple[str, float, list[tuple[str, float]]]] = json.loads(row["logprobs"] or "[]")
    return Completion(
        text=row["completion"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        seconds=row["seconds"],
        finish_reason=row["finish_reason"],
        logprobs=tuple(
            TokenLogprob(token, logprob, tuple((t, p) for t, p in top))
            for token, logprob, top in logprobs
        ),
        retries=tuple(json.loads(row["retries"])) if row["retries"] else (),
        cached=bool(row["cached"]),
        tool_calls=tuple(ToolCall(*call) for call in json.loads(row["tool_calls"] or "[]")),
    )
