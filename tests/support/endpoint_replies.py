"""Behaviors of endpoints: replies and streams that bend the protocol."""

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

from tests.support.endpoint_says import (
    ANSWER,
    Behavior,
    chunk,
    says,
    sse,
    whole,
)
from tests.support.endpoint_server import Asked, Reply


def odd_replies() -> Iterator[Behavior]:
    """Replies that bend the protocol."""
    text = {"type": "text", "text": "Li"}, {"type": "text", "text": "ma"}
    yield Behavior("content as parts", "sends a list of text parts", says(list(text)))
    yield Behavior(
        "one part", "sends a part that is no list", says(text[0] | {"text": ANSWER}), streams=False
    )
    for name, content in (("null", None), ("empty", "")):
        respond = says(content, "length")
        yield Behavior(
            f"{name} content, cut",
            "is cut before it answers",
            respond,
            text="",
            finish="length",
            notes="before its answer began",
        )
        yield Behavior(f"{name} content", "answers nothing", says(content), text="")
    yield Behavior(
        "cut answer",
        "is cut within its answer",
        says("Lima is", "length"),
        text="Lima is",
        finish="length",
    )
    yield Behavior(
        "max_tokens as the reason",
        "words a cut as Anthropic does",
        says("Lima is", "max_tokens"),
        text="Lima is",
        finish="length",
    )
    for reason, finish in {
        "STOP": "stop", "FinishReason.STOP": "stop", "MAX_TOKENS": "length", "repetition": "length",
        "SAFETY": "content_filter", "RECITATION": "content_filter", "sensitive": "content_filter",
    }.items():  # fmt: skip
        yield Behavior(
            f"finish reason {reason}",
            "has words of its own for an end",
            says("Lima is", reason),
            text="Lima is",
            finish=finish,
        )
    for name, content, reason in (
        ("empty", "", "error"),
        ("part of an", "Li", "error"),
        ("aborted", "Li", "abort"),
        ("starved", "Li", "insufficient_system_resource"),
    ):
        yield Behavior(
            f"{name} answer, finish error",
            "breaks off",
            says(content, reason),
            error=f"finish_reason is '{reason}'",
            requests=3,
            streams=not content,
        )
    yield Behavior(
        "answer cut by a filter",
        "filters content",
        says("Lima is", "content_filter"),
        text="Lima is",
        finish="content_filter",
        notes="content filter cut the reply",
    )
    yield Behavior(
        "refusal",
        "declines",
        says(None, refusal="I can't help."),
        text="I can't help.",
        notes="refused",
    )
    for name, body in {
        "no choices": {"id": "x"},
        "empty choices": whole({}) | {"choices": []},
        "null choices": {"choices": None},
        "choice without a message": {"choices": [{"index": 0}]},
    }.items():
        yield Behavior(
            name,
            "sends no answer",
            lambda asked, body=body: Reply(body),
            error="no chat completion|ended before",
            requests=3,
            streams=False,
        )
    first = {"choices": [{"index": 0, "text": ANSWER, "finish_reason": "stop"}]}
    yield Behavior(
        "first form of the protocol",
        "sends a text, no message",
        lambda asked: sse(first) if asked.streams else Reply(first),
    )
    yield Behavior(
        "stream that was not asked for",
        "streams whatever it is asked",
        lambda asked: sse(chunk({"content": "Li"}), chunk({"content": "ma"}, "stop")),
    )
    yield Behavior(
        "broken stream that was not asked for",
        "streams whatever it is asked, and ends early",
        lambda asked: sse(chunk({"content": "Li"}), done=False),
        error="ended before the reply did",
        streams=False,
    )
    yield Behavior(
        "empty body",
        "sends nothing",
        lambda asked: Reply(b""),
        error="no chat completion",
        streams=False,
    )
    for name, finish in (("null", None), ("unknown", "eos_reached")):
        yield Behavior(
            f"{name} finish_reason",
            "has another idea of an end",
            lambda asked, finish=finish: Reply(whole({"content": ANSWER}, finish)),
            finish=finish or "stop",
        )
    for name, usage in {
        "no usage": ...,
        "null usage": None,
        "usage as text": "12",
        "huge usage": {"prompt_tokens": 1e30},
    }.items():

        def counts(asked: Asked, usage: Any = usage) -> Reply:
            body = whole({"content": ANSWER}) | {"usage": usage}
            return Reply({k: v for k, v in body.items() if v is not ...})

        yield Behavior(name, "counts no tokens", counts)
    yield Behavior(
        "odd log-probabilities",
        "has the first form of log-probabilities",
        lambda asked: Reply(
            {
                "choices": [
                    {
                        "message": {"content": ANSWER},
                        "finish_reason": "stop",
                        "logprobs": {"tokens": ["Lima"], "token_logprobs": [-0.1]},
                    }
                ]
            }
        ),
    )
    yield Behavior(
        "one number a token",
        "lacks alternatives",
        lambda asked: Reply(
            {
                "choices": [
                    {
                        "message": {"content": ANSWER},
                        "finish_reason": "stop",
                        "logprobs": {"content": [{"token": ANSWER, "logprob": None}]},
                    }
                ]
            }
        ),
    )
    packed = {"content-encoding": "gzip"}
    body = gzip.compress(json.dumps(whole({"content": ANSWER})).encode())
    yield Behavior(
        "gzip", "packs its replies", lambda asked: Reply(body, headers=packed), streams=False
    )
    huge = "x" * 3_000_000
    yield Behavior(
        "one huge line",
        "sends 3 MB in a line",
        lambda asked: (
            sse(chunk({"content": huge}), chunk({}, "stop"))
            if asked.streams
            else Reply(whole({"content": huge}))
        ),
        text=huge,
    )
    yield Behavior(
        "text/plain",
        "mislabels its JSON",
        lambda asked: Reply(
            json.dumps(whole({"content": ANSWER})), headers={"content-type": "text/plain"}
        ),
    )


def streams() -> Iterator[Behavior]:
    """Streams that bend the protocol; whole replies are ordinary."""

    def stream(name: str, does: str, make: Callable[[], Reply], **more: Any) -> Behavior:
        plain = says()
        return Behavior(
            name,
            does,
            lambda asked: make() if asked.streams else plain(asked),
            whole=False,
            **more,
        )

    first, last = chunk({"content": "Li"}), chunk({"content": "ma"})
    end = chunk({}, "stop")
    yield stream(
        "no finish_reason",
        "ends by [DONE] alone",
        lambda: sse(first, last),
        notes="without a finish reason",
    )
    yield stream("no [DONE]", "ends by closing", lambda: sse(first, last, end, done=False))
    yield stream(
        "usage chunk",
        "sends usage without choices",
        lambda: sse(
            first, last, end, {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        ),
    )
    yield stream(
        "null usage chunks",
        "sends null usage",
        lambda: sse(
            chunk({"content": "Li"}, usage=None), last, end, {"choices": None, "usage": None}
        ),
    )
    yield stream(
        "whole message at the end",
        "repeats the message when it ends",
        lambda: sse(first, last, whole({"content": ANSWER})),
    )
    yield stream("two finish chunks", "ends twice", lambda: sse(first, last, end, end))
    yield stream("null delta", "sends a null delta", lambda: sse(first, last, chunk(None, "stop")))
    yield stream(
        "keep-alive comments",
        "sends comments",
        lambda: sse(": OPENROUTER PROCESSING", first, ": ping", last, end),
    )
    yield stream(
        "empty events", "sends empty data", lambda: sse("data:", first, "data: ", last, end)
    )
    yield stream(
        "ping events",
        "sends named events",
        lambda: sse('event: ping\ndata: {"type": "ping"}', first, last, end),
    )
    yield stream("CRLF", "ends lines by CR LF", lambda: sse(first, last, end, end="\r\n\r\n"))
    yield stream(
        "no space after data",
        "writes data:{…}",
        lambda: sse(*[f"data:{json.dumps(each)}" for each in (first, last, end)]),
    )

    def split(size: int) -> Reply:
        joined = b"".join(sse(chunk({"content": "Перу — Lima 🦙"}), end).parts())
        text = [joined[start : start + size] for start in range(0, len(joined), size)]
        return Reply(text, headers={"content-type": "text/event-stream"})

    yield Behavior(
        "split UTF-8",
        "writes byte by byte",
        lambda asked: split(1) if asked.streams else says("Перу — Lima 🦙")(asked),
        text="Перу — Lima 🦙",
    )
    yield stream(
        "a whole reply to a stream", "does not stream", lambda: Reply(whole({"content": ANSWER}))
    )
    yield stream(
        "message instead of delta",
        "sends whole messages",
        lambda: sse(
            {"choices": [{"index": 0, "message": {"content": ANSWER}, "finish_reason": "stop"}]}
        ),
    )
    yield stream(
        "page instead of a stream",
        "serves a page",
        lambda: Reply("<html><title>Sign in</title></html>", headers={"content-type": "text/html"}),
        error="a web page titled 'Sign in'",
    )
    yield stream(
        "error in a stream",
        "fails in the middle",
        lambda: sse(first, {"error": {"message": "the GPU fell off", "code": 500}}),
        error="the GPU fell off",
    )
    yield stream(
        "error event",
        "fails by a named event",
        lambda: sse(first, 'event: error\ndata: {"message": "the GPU fell off"}'),
        error="the GPU fell off",
    )
    yield stream(
        "broken stream",
        "drops the connection",
        lambda: sse(first, done=False),
        error="the stream ended before the reply did",
    )
    yield stream(
        "no JSON in a stream", "sends garbage", lambda: sse(first, "data: {oops"), error="no JSON"
    )
