"""Replies in the OpenAI chat protocol, whole and streamed, as servers really send them.

Odd forms are read where their meaning is clear: content as a list of parts, tool calls without an
index or with arguments as an object, a stream without a finish reason, counts that are no numbers.
"""

import json
import re
import time
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from reflux.agents.clients.reasoning import (
    ReasoningSplitter,
    content_of,
    joined,
    logprobs_of,
    reasoning_of,
)
from reflux.agents.clients.refusals import ReplyError, error_reply
from reflux.agents.types import (
    PRINTED_CALL,
    Completion,
    Delta,
    Pieces,
    TokenLogprob,
    ToolCall,
)


def read_logprobs(value: Any) -> tuple[TokenLogprob, ...]:
    """Log-probabilities of a reply; none if they are in any form but OpenAI's."""
    try:
        return tuple(
            TokenLogprob(
                str(token["token"]),
                float(token["logprob"]),
                tuple((str(a["token"]), float(a["logprob"])) for a in token["top_logprobs"] or ())
                if "top_logprobs" in token
                else (),
            )
            for token in value["content"] or ()
        )
    except (TypeError, KeyError, ValueError):
        return ()


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _count(value: Any) -> int:
    """A token count; 0 where the endpoint reports none that makes sense."""
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0


class _Choice(BaseModel):
    message: dict[str, Any] | None = None
    delta: dict[str, Any] | None = None
    text: str | None = None
    """Of the protocol's first form, without messages."""
    finish_reason: str | None = None
    logprobs: Any = None

    def said(self) -> dict[str, Any] | None:
        """The message, or the part of it."""
        return self.delta or self.message or ({"content": self.text} if self.text else None)


class _Reply(BaseModel):
    """A whole reply, or a chunk of one."""

    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


FINISHED = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "repetition": "length",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    **dict.fromkeys(
        ("safety", "recitation", "blocklist", "prohibited_content", "spii", "sensitive",
         "content_filtered", "guardrail_intervened", "refusal"),
        "content_filter",
    ),
    **dict.fromkeys(
        ("abort", "aborted", "cancelled", "canceled", "network_error", "unknown_error", "timeout",
         "insufficient_system_resource"),
        "error",
    ),
}  # fmt: skip
"""Finish reasons that differ from those of the protocol; a reply that broke off has `error`."""
FILTERED = "the endpoint's content filter cut the reply"


def finish_word(reason: str) -> str:
    """A finish reason in the words of the chat protocol."""
    word = reason.lower().removeprefix("finishreason.")
    return FINISHED.get(word, word)


CALL_AS_TEXT = re.compile(
    r"<tool_call>|<function=|<\|channel\|>commentary to=|<\|tool_call|\[TOOL_CALLS\]"
    r"|<\|python_tag\|>|\A\s*(?:```(?:json|tool_call)?\s*)?"
    r"\{\s*\"(?:name|function)\"\s*:.{0,200}\"(?:arguments|parameters)\"\s*:",
    re.DOTALL,
)
"""A tool call that a server without a parser for it passes on as text."""


@dataclass
class PartialReply:
    """A reply so far."""

    splitter: ReasoningSplitter = field(default_factory=ReasoningSplitter)
    may_call: bool = False
    """Tools are granted, so a tool call as text is no answer."""
    raw: list[str] = field(default_factory=list[str])
    """The text as the server sends it, reasoning included."""
    reasoning: list[str] = field(default_factory=list[str])
    """From separate fields and parts."""
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    calls: dict[Any, list[str]] = field(default_factory=dict[Any, list[str]])
    """[id, name, arguments] of each tool call, by its index or id."""
    _places: dict[Any, Any] = field(default_factory=dict[Any, Any])
    """The key in `calls` of the call that goes on at an index."""
    finish_reason: str = ""
    usage: Any = None
    notes: list[str] = field(default_factory=list[str])

    def add(self, message: dict[str, Any], ending: _Choice) -> Delta | None:
        """Add a message, or a part of it; returns a delta if it holds text.

        Raises:
            ValueError: the content has an unknown form.
        """
        self.finish_reason = ending.finish_reason or self.finish_reason
        calls = message.get("tool_calls") or ()
        if not calls and isinstance(call := message.get("function_call"), dict):
            calls = [{"index": 0, "function": call}]  # The protocol's first form of tools.
        for position, part in enumerate(calls if isinstance(calls, list | tuple) else ()):
            self._add_call(position, part)
        refusal = message.get("refusal")
        thoughts, text = content_of(message.get("content") or refusal)
        if refusal and "the model refused to answer" not in self.notes:
            self.notes.append("the model refused to answer")
        thoughts = reasoning_of(message) + thoughts
        logprobs = read_logprobs(ending.logprobs)
        if thoughts:  # They came apart, so the content holds no thoughts.
            self.splitter.opened = False
        self.reasoning.append(thoughts)
        self.raw.append(text)
        self.logprobs += logprobs
        block, content = self.splitter.feed(text)
        if not (content or logprobs or thoughts or block):
            return None
        return Delta(content, logprobs, thoughts + block)

    def add_chunk(self, chunk: _Reply) -> Delta | None:
        """Add a chunk of a stream; returns a delta if it holds text.

        Raises:
            ReplyError: it is an error.
            ValueError: the content has an unknown form.
        """
        if chunk.error:
            raise error_reply(chunk.error)
        self.usage = chunk.usage or self.usage
        choice = next(iter(chunk.choices or ()), None)
        if choice is None:
            return None
        # Some servers repeat the whole message in the end.
        repeats = choice.message is not None and not choice.delta and any(self.raw)
        return self.add({} if repeats else choice.said() or {}, choice)

    def add_json(self, chunk: Any) -> None:
        """Add a chunk, or a whole reply, as plain JSON types; see `add_chunk`."""
        self.add_chunk(_Reply.model_validate(chunk))

    def _add_call(self, position: int, part: Any) -> None:
        if not isinstance(part, dict):
            raise ValueError(f"a tool call is a {type(part).__name__}")
        part = cast(dict[str, Any], part)
        id, function = str(part.get("id") or ""), part.get("function") or part
        key = part.get("index")
        if key is None:  # Apart by id; a part without either goes on with the last call.
            keys = list(self.calls)
            key = id or (keys[-1] if keys and not function.get("name") else f"{position} of none")
        else:
            key = self._places.setdefault(key, key)
            known = self.calls.get(key, [id, "", ""])
            renamed = bool(function.get("name") and function.get("arguments"))
            if (id and known[0] not in ("", id)) or (renamed and _is_json(known[2])):
                # Some servers give every call the index 0, and no id.
                key = self._places[part["index"]] = id or f"{key} and {len(self.calls)}"
        call = self.calls.setdefault(key, ["", "", ""])
        arguments = function.get("arguments", function.get("parameters"))
        if arguments is not None and not isinstance(arguments, str):
            arguments = json.dumps(arguments)
        call[0], call[1] = call[0] or id, call[1] or str(function.get("name") or "")
        call[2] += arguments or ""

    def rest(self) -> Delta | None:
        """What was held back until the end, because it might have been a tag."""
        block, content = self.splitter.end()
        return Delta(content, (), block) if block or content else None

    def completion(self, seconds: float = 0.0, retries: tuple[str, ...] = ()) -> Completion:
        """The whole reply; `rest` comes first."""
        text, raw = self.splitter.content, "".join(self.raw)
        calls = tuple(ToolCall(*call) for call in self.calls.values())
        finish, notes = finish_word(self.finish_reason or "stop"), list(self.notes)
        if self.splitter.unclosed:
            finish = "length"
        elif self.may_call and not calls and CALL_AS_TEXT.search(text):
            notes.append(PRINTED_CALL)
        elif finish == "tool_calls" and not calls:
            finish = "stop"
        if finish == "content_filter":
            notes.append(FILTERED)
        if not text and finish == "length":
            thought = " while the model was thinking" if self.splitter.reasoning else ""
            notes.append(f"the token limit cut the reply before its answer began{thought}")
        usage = cast(dict[str, Any], self.usage) if isinstance(self.usage, dict) else {}
        reasoning = joined(("".join(self.reasoning).strip(), self.splitter.reasoning))
        prompt_tokens = _count(usage.get("prompt_tokens", usage.get("input_tokens")))
        completion_tokens = _count(usage.get("completion_tokens", usage.get("output_tokens")))
        all_but_those = _count(usage.get("total_tokens")) - completion_tokens
        return Completion(
            text,
            prompt_tokens=prompt_tokens or max(0, all_but_those),
            completion_tokens=completion_tokens,
            seconds=seconds,
            finish_reason=finish,
            logprobs=logprobs_of(text, raw, self.logprobs),
            retries=retries,
            tool_calls=calls,
            reasoning=reasoning,
            notes=tuple(notes),
        )


def read_reply(body: bytes, may_call: bool = False) -> PartialReply:
    """Read the body of a reply.

    Raises:
        ReplyError: it lacks a field that the protocol requires, or is an error.
    """
    beginning = body[:120].decode(errors="replace")
    try:
        if body.lstrip().startswith((b"data:", b"event:", b": ")):
            return _read_events(body, may_call)
        reply = _Reply.model_validate_json(body)
        if reply.error and not reply.choices:
            raise error_reply(reply.error)
        if not reply.choices or (message := reply.choices[0].said()) is None:
            raise ReplyError(
                f"the reply is no chat completion (it holds no choice); it begins {beginning!r}",
                body,
            )
        whole = PartialReply(may_call=may_call, usage=reply.usage)
        whole.add(message, reply.choices[0])
    except ValueError as error:
        reason = _first_error(error) if isinstance(error, ValidationError) else str(error)
        raise ReplyError(
            f"the reply is no chat completion ({reason}); it begins {beginning!r}", body
        ) from error
    _check_finish(whole.finish_reason)
    whole.rest()
    return whole


def _read_events(body: bytes, may_call: bool) -> PartialReply:
    """Read the body of a stream that nobody has asked for."""
    whole = PartialReply(may_call=may_call)
    for line in body.splitlines():
        if line.startswith(b"data:") and (data := line[5:].strip()) not in (b"", b"[DONE]"):
            whole.add_chunk(_Reply.model_validate_json(data))
    _check_finish(whole.finish_reason)
    if not whole.finish_reason:
        raise ReplyError("the stream ended before the reply did")
    whole.rest()
    return whole


def _check_finish(reason: str) -> None:
    if finish_word(reason) == "error":
        raise ReplyError(f"the endpoint broke off the reply: its finish_reason is {reason!r}")


async def read_stream(
    chunks: AsyncIterable[Any],
    start: float,
    retries: tuple[str, ...] = (),
    partial: PartialReply | None = None,
    is_done: Callable[[], bool] = lambda: False,
) -> Pieces:
    """Read the chunks of a streamed reply; `start` is the time of the request, by `perf_counter`.

    Args:
        is_done: whether the server has ended the stream by `[DONE]`.

    Raises:
        ReplyError: a chunk violates the protocol, or the chunks end before the reply does.
    """
    partial = partial or PartialReply()
    try:
        async for chunk in chunks:
            delta = partial.add_chunk(_Reply.model_validate(chunk))
            if delta is not None:
                yield delta
    except ValidationError as error:
        reason = _first_error(error)
        raise ReplyError(f"a chunk is not a chat completion chunk ({reason})") from error
    except ValueError as error:
        raise ReplyError(f"a chunk is no JSON ({error})") from error
    _check_finish(partial.finish_reason)
    if not partial.finish_reason:
        if not (is_done() and any((*partial.raw, *partial.reasoning, partial.calls))):
            raise ReplyError("the stream ended before the reply did")
        partial.notes.append("the stream ended without a finish reason")
    if (delta := partial.rest()) is not None:
        yield delta
    yield partial.completion(time.perf_counter() - start, retries)


def _first_error(error: ValidationError) -> str:
    """Where and how a body first departs from the protocol."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"
