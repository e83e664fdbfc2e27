"""The recording proxy: its client and its endpoint see no difference, and the record holds all."""

import gzip
import json
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reflux.agents.errors import UsageError
from reflux.graphs.traces.trajectories import RecordedCall, RecordedOutcome
from reflux.server.recording.proxy import Upstream
from tests.support.raw_upstream import (
    STREAM,
    Got,
    Part,
    Raw,
    Recording,
    chunk,
    message,
    raw_upstream,
    recording,
    stream,
)
from tests.support.serving import soon

SECRET = "sk-live-0123456789abcdefghijkl"
CHAT = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def asks(*contents: Any, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return {"model": "m", "messages": turns, **more}


def says(text: str | None, **more: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": text, **more}
    reason = "tool_calls" if more else "stop"
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    choice = {"index": 0, "message": said, "finish_reason": reason}
    return {"id": "c1", "choices": [choice], "usage": usage}


def delta(reason: str | None = None, **said: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": said, "finish_reason": reason}]}


@pytest.fixture
def raw() -> Iterator[Raw]:
    with raw_upstream() as raw:
        yield raw


@pytest.fixture
def proxy(tmp_path: Path, raw: Raw) -> Iterator[Recording]:
    with recording(tmp_path, raw.url) as proxy:
        yield proxy


def exchange(url: str, method: str, path: str, body: bytes | None, headers: Any) -> Any:
    """(status, headers, chunks as they came) of a reply as its bytes are."""
    request = httpx2.Request(method, url + path, content=body, headers=headers)
    with httpx2.Client() as client:
        response = client.send(request, stream=True)
        chunks = b"".join(response.iter_raw())
    dropped = ("connection", "transfer-encoding")
    told = [(name.lower(), value) for name, value in response.headers.raw]
    return response.status_code, [each for each in told if each[0].decode() not in dropped], chunks


def lower(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    found = ((name.lower(), value) for name, value in headers)
    return sorted(each for each in found if each[0] != "connection")


PASSED: list[tuple[str, str, str, Any, Sequence[Part], int]] = [
    ("whole", "POST", CHAT, asks("hi"), [message(says("Hello\n"))], 1),
    (
        "compressed",
        "POST",
        CHAT,
        asks("hi"),
        [message(gzip.compress(json.dumps(says("zip")).encode()), "200 OK",
                 "content-encoding: gzip")],
        1,
    ),
    (
        "odd",
        "POST",
        f"{CHAT}?a=1&b=%20",
        b'{ "model" :"m","messages":[ ]}',
        [message(b' {"choices":[]}\n', "200 OK", "X-Odd: \xe9", "set-cookie: a=1",
                 "Set-Cookie: b=2")],
        1,
    ),
    (
        "limit",
        "POST",
        CHAT,
        asks("hi"),
        [message({"error": {"message": "slow down"}}, "429 Too Many Requests", "retry-after: 3")],
        1,
    ),
    ("no json", "POST", CHAT, b"\xff not json", [message(b"<html>", "400 Bad Request")], 1),
    ("stream", "POST", CHAT, asks("hi", stream=True),
     stream(delta(content="a\u2028b"), delta("stop"), done=True), 1),
    ("models", "GET", "/v1/models", None, [message({"data": []})], 0),
    ("none", "DELETE", "/v1/files/f%2F1", None, [b"HTTP/1.1 204 No Content\r\n\r\n"], 0),
    ("upload", "POST", "/v1/files", b"\0" * 300_000, [message({"id": "f"})], 0),
    ("embeddings", "POST", "/v1/embeddings", asks("x"), [message({"data": []})], 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "reply", "recorded"),
    [each[1:] for each in PASSED],
    ids=[each[0] for each in PASSED],
)
def test_bytes_and_headers_pass_unchanged(
    raw: Raw, proxy: Recording, method: str, path: str, body: Any, reply: Sequence[Part],
    recorded: int,
) -> None:  # fmt: skip
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    raw.respond = lambda got: reply
    headers = {"authorization": f"Bearer {SECRET}", "X-Mixed-Case": "é".encode(), "accept": "*/*"}
    origin = raw.url.removesuffix("/v1")
    ways = [
        exchange(url, method, path, data, headers)
        for url in (origin, proxy.url, f"{proxy.url}/t/a%20name")
    ]
    assert ways[0] == ways[1] == ways[2]
    first, *others = raw.got
    assert all(other.line == first.line and other.body == first.body for other in others)
    # ASGI servers write names in lower case, and the host is the endpoint's for all.
    assert all(lower(other.headers) == lower(first.headers) for other in others)
    trajectories = proxy.trajectories(2 * recorded)
    assert [trajectory.name or trajectory.told_by for trajectory in trajectories] == (
        ["prefix", "path"] if recorded else []
    )
    assert all(SECRET.encode() not in file.read_bytes() for file in proxy.path.parent.iterdir())


def test_each_chunk_of_a_stream_reaches_the_client_as_it_comes(raw: Raw, proxy: Recording) -> None:
    parts = [STREAM]
    seen = threading.Event()
    for text in ("a", "b"):
        parts += [chunk(f"data: {json.dumps(delta(content=text))}\n\n".encode())]
    waits: list[Part] = [*parts[:2], lambda: seen.wait(20), *parts[2:], b"0\r\n\r\n"]
    raw.respond = lambda got: waits
    with httpx2.stream("POST", proxy.url + CHAT, json=asks("x", stream=True)) as response:
        chunks = response.iter_raw()
        assert b'"a"' in next(chunks)
        seen.set()
        assert b'"b"' in b"".join(chunks)
    (trajectory,) = proxy.trajectories(1)
    assert trajectory.calls[0].reply.text == "ab"
    assert trajectory.calls[0].error == "the stream ended before the reply did"


RESPONSE: dict[str, Any] = {
    "id": "r1",
    "status": "completed",
    "output": [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "so"}],
        },
        {"type": "function_call", "call_id": "k1", "name": "f", "arguments": '{"a":1}'},
    ],
    "usage": {"input_tokens": 7, "output_tokens": 2},
}  # fmt: skip
MESSAGE: dict[str, Any] = {
    "id": "m1",
    "type": "message",
    "role": "assistant",
    "content": [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "so"},
        {"type": "tool_use", "id": "k1", "name": "f", "input": {"a": 1}},
    ],
    "stop_reason": "tool_use",
    "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 2},
}


def begins(index: int, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def goes_on(index: int, kind: str, **said: str) -> dict[str, Any]:
    said = {"type": f"{kind}_delta", **said}
    return {"type": "content_block_delta", "index": index, "delta": said}


FLAT = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CALLED = {"id": "k1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
WHOLE_CHAT = says("so", tool_calls=[CALLED], reasoning_content="hm")
USER = {"role": "user", "content": "hi"}
WAYS: dict[str, tuple[str, dict[str, Any], Sequence[Part]]] = {
    "chat": (CHAT, {"messages": [USER], "tools": [TOOL]}, [message(WHOLE_CHAT)]),
    "chat stream": (
        CHAT,
        {"messages": [USER], "tools": [TOOL], "stream": True},
        stream(
            delta(role="assistant", reasoning_content="h"),
            delta(reasoning_content="m"),
            delta(content="s"),
            delta(content="o"),
            delta(tool_calls=[{"index": 0, "id": "k1", "function": {"name": "f"}}]),
            delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a":1}'}}]),
            delta("tool_calls"),
            {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}},
            done=True,
        ),
    ),
    "responses": (
        "/v1/responses",
        {"input": "hi", "tools": [FLAT]},
        [message(RESPONSE)],
    ),
    "responses stream": (
        "/v1/responses",
        {
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
            "tools": [FLAT],
            "stream": True,
        },
        stream(
            {"type": "response.created", "response": {"id": "r1"}},
            {"type": "response.output_text.delta", "output_index": 0, "delta": "so"},
            {"type": "response.completed", "response": RESPONSE},
        ),
    ),
    "messages": (
        "/v1/messages",
        {"messages": [USER], "tools": [{"name": "f", "input_schema": {"type": "object"}}]},
        [message(MESSAGE)],
    ),
    "messages stream": (
        "/v1/messages",
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            "stream": True,
        },
        stream(
            {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
            begins(0, type="thinking", thinking=""),
            goes_on(0, "thinking", thinking="hm"),
            begins(1, type="text", text=""),
            {"type": "ping"},
            goes_on(1, "text", text="so"),
            begins(2, type="tool_use", id="k1", name="f", input={}),
            goes_on(2, "input_json", partial_json='{"a"'),
            goes_on(2, "input_json", partial_json=":1}"),
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"},
             "usage": {"output_tokens": 2}},
            {"type": "message_stop"},
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_protocol_makes_the_same_record(raw: Raw, proxy: Recording, way: str) -> None:
    path, body, reply = WAYS[way]
    raw.respond = lambda got: reply
    httpx2.post(proxy.url + path, json={"model": "m", "temperature": 0.5, **body})
    (trajectory,) = proxy.trajectories(1)
    (call,) = trajectory.calls
    assert call.error is None
    assert (call.messages, call.model, call.node, call.tools) == ((USER,), "m", "agent", (TOOL,))
    assert call.sampling["temperature"] == 0.5
    said = call.reply
    assert (said.text, said.reasoning, said.finish_reason) == ("so", "hm", "tool_calls")
    (asked,) = said.tool_calls
    assert (asked.id, asked.name, json.loads(asked.arguments)) == ("k1", "f", {"a": 1})
    assert (said.prompt_tokens, said.completion_tokens) == (7, 2)
    assert trajectory.text == "hi" and trajectory.outcome is None
    assert call.created > 0 and said.seconds > 0


SAYS_A = f"data: {json.dumps(delta(content='a'))}\n\ndata: {json.dumps(delta('stop'))}\n\n".encode()
WHOLE = json.dumps(says("a")).encode()
SSE, PACKED = "content-type: text/event-stream", "content-encoding: "
ODD: dict[str, tuple[Part, str, str | None]] = {
    "byte order mark": (message(b"\xef\xbb\xbf" + SAYS_A, "200 OK", SSE), "a", None),
    "old line ends": (message(SAYS_A.replace(b"\n", b"\r"), "200 OK", SSE), "a", None),
    "comments": (message(b": ping\n\n" + SAYS_A + b":\n\n", "200 OK", SSE), "a", None),
    "no stream by its name": (message(SAYS_A, "200 OK", "content-type: text/plain"), "a", None),
    "a stream by its name": (message(WHOLE, "200 OK", SSE), "a", None),
    "an event of an error": (
        message(b'event: error\ndata: {"message": "overloaded"}\n\n', "200 OK", SSE),
        "", "overloaded",
    ),
    "members": (
        message(gzip.compress(WHOLE[:9]) + gzip.compress(WHOLE[9:]), "200 OK", f"{PACKED}gzip"),
        "a", None,
    ),
    "deflate": (message(zlib.compress(WHOLE)[2:-4], "200 OK", f"{PACKED}deflate"), "a", None),
    "brotli": (
        message(b"\x0b", "200 OK", f"{PACKED}br"),
        "", "the reply is compressed as br, which is not read",
    ),
    "half a pair": (message(rb'{"choices": [{"message": {"content": "\ud800"}}]}'), "\ufffd", None),
}  # fmt: skip


@pytest.mark.parametrize("way", ODD)
def test_odd_replies_are_read_as_their_client_reads_them(
    raw: Raw, proxy: Recording, way: str
) -> None:
    reply, text, error = ODD[way]
    raw.respond = lambda got: [reply]
    headers = {"accept-encoding": "gzip;q=1, br, zstd"}
    body = json.dumps(asks("hi \ud800")).encode()
    exchange(proxy.url, "POST", CHAT, body, headers)
    call = only_call(proxy)
    assert (call.reply.text, call.error) == (text, error)
    assert call.messages[0]["content"] == "hi \ufffd"
    assert dict(raw.got[0].headers)["accept-encoding"] == "gzip;q=1"


def told(proxy: Recording, calls: int) -> list[list[str]]:
    """The last user's text of each call of each trajectory."""
    return [
        [str(call.messages[-1]["content"]) for call in trajectory.calls]
        for trajectory in proxy.trajectories(calls)
    ]


def test_a_header_a_path_or_a_field_tells_trajectories_apart(raw: Raw, proxy: Recording) -> None:
    raw.respond = lambda got: [message(says("yes"))]

    def post(text: str, path: str = CHAT, header: str = "", **more: Any) -> None:
        headers = {"x-reflux-trajectory": header, "x-reflux-node": "plan"} if header else {}
        httpx2.post(proxy.url + path, json=asks(text, **more), headers=headers)

    for number in ("1", "2"):
        post(f"a{number}", header="A")
        post(f"b{number}", path=f"/t/B{CHAT}")
        post(f"c{number}", metadata={"session_id": "C", "x": "y"})
        post(f"d{number}", metadata={"x": "y"}, user="u")
    assert told(proxy, 8) == [["a1", "a2"], ["b1", "b2"], ["c1", "c2"], ["d1"], ["d2"]]
    a, b, c, d, _ = proxy.trajectories(8)
    assert [each.told_by for each in (a, b, c, d)] == ["header", "path", "metadata", "prefix"]
    assert [each.key for each in (a, b, c)] == ["A", "B", "C"]
    assert d.metadata == {"x": "y", "user": "u"}
    assert [call.node for call in a.calls] == ["plan", "plan"]
    assert not any("x-reflux" in name for got in raw.got for name, _ in got.headers)


def test_a_field_of_ones_own_tells_them_apart(tmp_path: Path, raw: Raw) -> None:
    raw.respond = lambda got: [message(says("yes"))]
    with recording(tmp_path, raw.url, key="metadata.ticket.id") as proxy:
        for text, id in (("a1", 1), ("b1", 2), ("a2", 1)):
            httpx2.post(proxy.url + CHAT, json=asks(text, metadata={"ticket": {"id": id}}))
        assert told(proxy, 3) == [["a1", "a2"], ["b1"]]


def test_a_conversation_is_found_by_its_prefix_also_after_a_restart(
    tmp_path: Path, raw: Raw
) -> None:
    """As agents send it back: with other spaces, parts, orders of fields."""
    calls = [CALLED]
    replies = iter([says(None, tool_calls=calls), says(" Hello \n"), says("bye"), says("new")])
    raw.respond = lambda got: [message(next(replies))]
    turns: list[dict[str, Any]] = [{"role": "system", "content": "s"}, USER]

    def post(proxy: Recording) -> None:
        httpx2.post(proxy.url + CHAT, json={"model": "m", "messages": turns})

    with recording(tmp_path, raw.url) as proxy:
        post(proxy)
        function = {"arguments": '{ "a": 1 }', "name": "f"}
        again = {"function": function, "id": "k1", "type": "function"}
        turns += [
            {"content": "", "tool_calls": [again], "role": "assistant"},
            {"role": "tool", "tool_call_id": "k1", "content": "3"},
        ]
        post(proxy)
        proxy.trajectories(2)
    with recording(tmp_path, raw.url) as proxy:
        turns += [
            {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]},
            {"role": "user", "content": "more"},
        ]
        post(proxy)
        turns[1] = {"role": "user", "content": "another"}
        post(proxy)
        first, second = proxy.trajectories(2)
    assert [len(call.messages) for call in first.calls] == [2, 4, 6]
    assert first.outcome == RecordedOutcome("bye") and first.told_by == "prefix"
    assert len(second.calls) == 1


def test_two_runs_with_the_same_words_are_two_trajectories(raw: Raw, proxy: Recording) -> None:
    """Also where they take turns: the newest conversation that has not gone on goes on."""
    raw.respond = lambda got: [message(says("yes"))]
    for contents in (("a",), ("a",), ("a", "yes", "b"), ("a", "yes", "c"), ("a", "yes", "d")):
        httpx2.post(proxy.url + CHAT, json=asks(*contents))
    assert sorted(told(proxy, 5)) == [["a", "b", "d"], ["a", "c"]]
    httpx2.post(proxy.url + CHAT, json=asks("a", "yes", "b", user="other"))
    assert len(told(proxy, 6)) == 3


def test_a_call_made_again_after_a_failure_is_of_its_trajectory(raw: Raw, proxy: Recording) -> None:
    replies = iter([message(b"busy", "503 Busy"), message({"error": "no"}, "400 X"),
                    message(says("yes"))])  # fmt: skip
    raw.respond = lambda got: [next(replies)]
    for _ in range(3):
        httpx2.post(proxy.url + CHAT, json=asks("a"))
    (trajectory,) = proxy.trajectories(3)
    assert [(call.error, call.reply.finish_reason) for call in trajectory.calls] == [
        ("503 busy", "error 503"), ("400 no", "refused 400"), (None, "stop"),
    ]  # fmt: skip
    assert trajectory.outcome == RecordedOutcome("yes")


def test_a_response_that_goes_on_holds_the_whole_conversation(raw: Raw, proxy: Recording) -> None:
    ids = iter(["r1", "r2", "r3"])
    raw.respond = lambda got: [message({**RESPONSE, "id": next(ids)})]
    url = f"{proxy.url}/v1/responses"
    httpx2.post(url, json={"model": "m", "instructions": "old", "input": "hi"})
    output = [{"type": "function_call_output", "call_id": "k1", "output": "3"}]
    more = {"model": "m", "instructions": "new", "previous_response_id": "r1", "input": output}
    httpx2.post(url, json=more)
    httpx2.post(url, json={"model": "m", "previous_response_id": "r9", "input": "who?"})
    first, second = proxy.trajectories(3)
    assert [message["role"] for message in first.calls[1].messages] == [
        "system", "user", "assistant", "tool",
    ]  # fmt: skip
    assert first.calls[1].messages[0]["content"] == "new"
    assert first.calls[1].messages[2]["tool_calls"] == [CALLED]
    assert "r9 are not on record" in second.calls[0].reply.notes[0]


def test_several_choices_are_votes_of_one_call(raw: Raw, proxy: Recording) -> None:
    whole = says("one")
    whole["choices"].append({**whole["choices"][0], "index": 1})
    whole["choices"][1] |= {"message": {"role": "assistant", "content": "two"}}
    raw.respond = lambda got: [message(whole)]
    httpx2.post(proxy.url + CHAT, json=asks("a", n=2))
    httpx2.post(proxy.url + CHAT, json=asks("a", "two", "b"))
    (trajectory,) = proxy.trajectories(2)
    assert [(call.step, call.vote, call.reply.text) for call in trajectory.calls] == [
        (0, 0, "one"), (0, 1, "two"), (1, 0, "one"), (1, 1, "two"),
    ]  # fmt: skip
    assert [call.reply.prompt_tokens for call in trajectory.calls] == [7, 0, 7, 0]


def only_call(proxy: Recording) -> RecordedCall:
    (trajectory,) = proxy.trajectories(1)
    return trajectory.calls[0]


def test_a_stream_that_breaks_breaks_for_the_client_too(raw: Raw, proxy: Recording) -> None:
    first = chunk(f"data: {json.dumps(delta(content='half'))}\n\n".encode())
    raw.respond = lambda got: [STREAM, first, b"1000\r\ncut"]
    with (
        httpx2.stream("POST", proxy.url + CHAT, json=asks("x", stream=True)) as response,
        pytest.raises(httpx2.RemoteProtocolError),
    ):
        response.read()
    (trajectory,) = proxy.trajectories(1)
    call = trajectory.calls[0]
    assert (call.reply.text, call.reply.finish_reason) == ("half", "error")
    assert call.error is not None and "the endpoint broke off after" in call.error
    assert trajectory.outcome == RecordedOutcome("half", "failed", call.error)


@pytest.mark.parametrize("after", [0, 1])
def test_a_client_that_leaves_ends_the_call(raw: Raw, proxy: Recording, after: int) -> None:
    gone = threading.Event()
    piece = chunk(f"data: {json.dumps(delta(content='half'))}\n\n".encode())

    def respond(got: Got) -> Iterator[Part]:
        yield from [STREAM, piece] if after else []
        yield lambda: gone.wait(20)
        yield from [STREAM] * (1 - after) + [piece] * 10_000

    raw.respond = respond  # type: ignore[assignment]
    with (
        httpx2.Client(timeout=httpx2.Timeout(20, read=20 if after else 0.2)) as client,
        pytest.raises((httpx2.ReadTimeout, KeyError)),
        client.stream("POST", proxy.url + CHAT, json=asks("x", stream=True)) as response,
    ):
        next(response.iter_raw())
        raise KeyError
    call = only_call(proxy)
    assert (
        call.error == f"the client left after {len(piece) - 6 if after else 0} bytes of the reply"
    )
    assert (call.reply.text, call.reply.finish_reason) == ("half" * after, "cancelled")
    gone.set()
    assert soon(lambda: raw.left)


def test_a_client_that_closes_a_stream_at_its_end_had_it_all(raw: Raw, proxy: Recording) -> None:
    """As SDKs do at `[DONE]`, while the endpoint has not closed: the next turn finds the call."""
    gone = threading.Event()
    ends = [chunk(f"data: {json.dumps(delta('stop', content='hi'))}\n\n".encode()),
            chunk(b"data: [DONE]\n\n")]  # fmt: skip

    def respond(got: Got) -> Iterator[Part]:
        yield from [STREAM, *ends, lambda: gone.wait(20), chunk(b": bye\n\n"), b"0\r\n\r\n"]

    raw.respond = respond  # type: ignore[assignment]
    for calls, turns in ((1, ["a"]), (2, ["a", "hi", "b"])):
        with (
            httpx2.Client(timeout=20) as client,
            client.stream("POST", proxy.url + CHAT, json=asks(*turns, stream=True)) as response,
        ):
            next(line for line in response.iter_lines() if "[DONE]" in line)
        assert proxy.trajectories(calls)
    gone.set()
    (trajectory,) = proxy.trajectories(2)
    assert [(c.error, c.reply.text, c.reply.finish_reason) for c in trajectory.calls] == [
        (None, "hi", "stop")
    ] * 2
    assert trajectory.outcome == RecordedOutcome("hi", "unchecked")


def test_an_endpoint_that_is_not_there_is_a_502_with_its_remedy(tmp_path: Path) -> None:
    with recording(tmp_path, "http://127.0.0.1:9/v1") as proxy:
        response = httpx2.post(proxy.url + CHAT, json=asks("x"))
        assert response.status_code == 502
        error = response.json()["error"]["message"]
        assert "127.0.0.1:9" in error and "--upstream" in error
        call = only_call(proxy)
    assert call.reply.finish_reason == "error 502" and call.error == error


def test_anthropic_has_its_own_endpoint_and_threads_are_no_messages(
    tmp_path: Path, raw: Raw
) -> None:
    with raw_upstream() as other:
        for endpoint in (raw, other):
            endpoint.respond = lambda got: [message(MESSAGE)]
        origin = other.url.removesuffix("/v1")
        with recording(tmp_path, f"{raw.url}beta/openai/", origin) as proxy:
            for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/threads/t/messages",
                         "/v1/chat/completions", "/messages"):  # fmt: skip
                httpx2.post(proxy.url + path, json=asks(path))
            headers = {"anthropic-version": "2023-06-01"}
            httpx2.get(f"{proxy.url}/v1/models", headers=headers)
            assert [got.line.split()[1] for got in raw.got] == [
                "/v1beta/openai/threads/t/messages", "/v1beta/openai/chat/completions",
            ]  # fmt: skip
            assert [got.line.split()[1] for got in other.got] == [
                "/v1/messages", "/v1/messages/count_tokens", "/v1/messages", "/v1/models",
            ]  # fmt: skip
            assert len(proxy.trajectories(3)) == 3


def test_strangers_are_refused(tmp_path: Path, raw: Raw) -> None:
    raw.respond = lambda got: [message(says("yes"))]
    with recording(tmp_path / "open", raw.url) as proxy:
        for headers, code in (
            ({"host": "evil.example"}, "host_not_allowed"),
            ({"origin": "http://evil.example"}, "origin_not_allowed"),
        ):
            response = httpx2.post(proxy.url + CHAT, json=asks("x"), headers=headers)
            assert response.json()["error"]["code"] == code
    with recording(tmp_path / "locked", raw.url, api_key=SECRET) as proxy:
        for headers, status in (({}, 401), ({"x-reflux-key": SECRET}, 200)):
            response = httpx2.post(proxy.url + CHAT, json=asks("x"), headers=headers)
            assert response.status_code == status
        only_call(proxy)
        assert not any("x-reflux" in name for name, _ in raw.got[0].headers)
    assert len(raw.got) == 1


@pytest.mark.parametrize("url", ["", "api.openai.com/v1", "ftp://a/v1", "http:///v1", "http://a?b"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no address of an endpoint"):
        Upstream(url)
