"""What clients put into requests: what asks for nothing is taken, what cannot be done is said."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.support.serving import Scripted, X, scripted, serving

ASKED = [{"role": "user", "content": "hello there"}]
WEATHER = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Scripted]]:
    with (
        scripted() as script,
        serving(tmp_path_factory.mktemp("run"), script, per_second=0) as url,
    ):
        yield url, script


def posted(url: str, path: str = "/v1/chat/completions", **body: Any) -> httpx2.Response:
    # httpx2 itself would not send NaN.
    return httpx2.post(
        url + path,
        content=json.dumps(body),
        headers={"content-type": "application/json"},
        timeout=20,
    )


@pytest.mark.parametrize(
    "asked",
    [
        {"stream": None}, {"stream": False}, {"store": None}, {"store": False}, {"store": True},
        {"parallel_tool_calls": True}, {"parallel_tool_calls": False}, {"logit_bias": {}},
        {"logit_bias": None}, {"metadata": {}}, {"metadata": {"chat": "7"}},
        {"tool_choice": "none"}, {"tool_choice": "auto"}, {"tools": []}, {"tools": None},
        {"logprobs": False, "top_logprobs": 0}, {"logprobs": None}, {"top_logprobs": None},
        {"service_tier": "auto"}, {"service_tier": "default"}, {"n": 1}, {"n": None},
        {"user": "ann"}, {"user": None}, {"stop": None}, {"stop": []}, {"stop": ""},
        {"response_format": {"type": "text"}}, {"response_format": None},
        {"presence_penalty": 0}, {"frequency_penalty": 0.0}, {"top_p": 1}, {"top_p": 1.0},
        {"modalities": ["text"]}, {"reasoning_effort": "low"}, {"reasoning_effort": None},
        {"verbosity": "medium"}, {"prompt_cache_key": "k"}, {"safety_identifier": "s"},
        {"prompt_cache_retention": "24h"}, {"stream_options": None}, {"prediction": None},
        {"stream_options": {"include_usage": True}}, {"audio": None}, {"functions": []},
        {"function_call": None}, {"web_search_options": None}, {"seed": -1}, {"seed": 2**40},
        {"max_tokens": None, "max_completion_tokens": 20}, {"anything": None}, {"features": {}},
        {"stream_options": {"include_obfuscation": False, "more": None}},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"tool_choice": "none", "tools": [{**WEATHER, "cache_control": {"type": "ephemeral"}}]},
        {"temperature": None}, {"tools": [WEATHER], "tool_choice": "none"},
    ],
    ids=json.dumps,
)  # fmt: skip
@pytest.mark.parametrize("model", [X, "amplified"])
def test_what_asks_for_nothing_is_taken(
    served: tuple[str, Scripted], asked: dict[str, Any], model: str
) -> None:
    got = posted(served[0], **{"model": model, "messages": ASKED, **asked})
    assert got.status_code == 200, got.text
    assert got.json()["choices"][0]["message"]["content"] == "HELLO THERE"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": "x", "reasoning_content": "y", "reasoning_details": [{}]},
        {"role": "assistant", "content": "x", "annotations": [], "audio": None, "refusal": None},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"},
                                          {"type": "text", "text": "x"}]},
        {"role": "assistant", "content": "", "tool_calls": []},
        {"role": "assistant", "content": "x", "id": "msg_1", "timestamp": 7, "function_call": None},
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [{"type": "text", "text": "x",
                                        "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": [{"type": "input_text", "text": "x"}], "name": "ann"},
    ],
    ids=json.dumps,
)  # fmt: skip
@pytest.mark.parametrize("model", [X, "amplified"])
def test_earlier_messages_are_taken_as_clients_keep_them(
    served: tuple[str, Scripted], message: dict[str, Any], model: str
) -> None:
    got = posted(served[0], model=model, messages=[message, *ASKED])
    assert got.status_code == 200, got.text


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"top_p": 0.9}, {"top_p": 0.9}),
        ({"presence_penalty": 1, "frequency_penalty": -0.5},
         {"presence_penalty": 1, "frequency_penalty": -0.5}),
        ({"logit_bias": {"7": -100}}, {"logit_bias": {"7": -100}}),
        ({"reasoning_effort": "high", "verbosity": "low"},
         {"reasoning_effort": "high", "verbosity": "low"}),
        ({"top_k": 5, "min_p": 0.1, "enable_thinking": False},
         {"top_k": 5, "min_p": 0.1, "enable_thinking": False}),
        ({"chat_template_kwargs": {"enable_thinking": False}},
         {"chat_template_kwargs": {"enable_thinking": False}}),
        ({"response_format": {"type": "json_object"}},
         {"response_format": {"type": "json_object"}}),
        ({"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False},
         {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}),
        ({"tools": [WEATHER], "tool_choice": WEATHER},
         {"tools": [WEATHER], "tool_choice": WEATHER}),
        ({"top_p": 1, "presence_penalty": 0}, {}),
    ],
    ids=json.dumps,
)  # fmt: skip
def test_a_single_models_endpoint_gets_what_is_asked(
    served: tuple[str, Scripted], asked: dict[str, Any], sent: dict[str, Any]
) -> None:
    url, script = served
    got = posted(url, model=X, messages=[{"role": "user", "content": f"pass {asked}"}], **asked)
    assert got.status_code == 200, got.text
    body = script.asked[-1]
    assert {name: body.get(name) for name in {**asked, **sent}} == {
        **dict.fromkeys(asked), **sent
    }  # fmt: skip


PARTS = ("image_url", "input_image", "input_audio", "file", "input_file", "video_url", None)
CANNOT: list[tuple[dict[str, Any], str | None, str, str]] = [
    ({"temperature": 3}, "temperature", "invalid_value", "less than or equal to 2"),
    ({"temperature": "hot"}, "temperature", "invalid_value", "valid number"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value", "greater than or equal to 1"),
    ({"top_p": 1.5}, "top_p", "invalid_value", "less than or equal to 1"),
    ({"n": 99}, "n", "invalid_value", "less than or equal to 16"),
    ({"n": 0}, "n", "invalid_value", "greater than"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value", "needs logprobs"),
    ({"guess": 1}, "guess", "unknown_parameter", "leave it out"),
    ({"base_url": "http://evil"}, "base_url", "unknown_parameter", "leave it out"),
    ({"functions": [{"name": "f"}]}, "functions", "unknown_parameter", "use tools"),
    ({"audio": {"voice": "v"}}, "audio", "unknown_parameter", "text"),
    ({"modalities": ["text", "audio"]}, "modalities[1]", "invalid_value", "'text'"),
    ({"service_tier": "flex"}, "service_tier", "invalid_value", "'auto'"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value", "json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema",
     "missing_required_parameter", "missing"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value", "needs tools"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "no"}}},
     "tool_choice", "invalid_value", "tools holds weather"),
    ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice",
     "invalid_value", "name one function"),
    ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "invalid_value", "'function'"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name",
     "invalid_value", "pattern"),
    ({"tools": [{"type": "function", "function": {"name": "f",
                                                  "parameters": {"a": float("nan")}}}]}, None,
     "invalid_value", "NaN"),
    ({"logit_bias": {"1": float("nan")}}, "logit_bias.1", "invalid_value", "finite"),
    ({"messages": []}, "messages", "empty_array", "at least one"),
    ({"messages": None}, "messages", "missing_required_parameter", "missing"),
    ({"messages": "hi"}, "messages", "invalid_value", "list"),
    ({"messages": ["hi"]}, "messages[0]", "invalid_value", "dictionary"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "invalid_value", "tool"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter", "missing"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value", "send text"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_value",
     "send text"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "empty_array",
     "empty"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type", "text"),
    ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages[0].content", "invalid_value",
     "Unicode"),
    ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages[0].images",
     "unknown_parameter", "text"),
    ({"messages": [*ASKED, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id",
     "invalid_value", "missing"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}]},
     "messages[0].tool_calls", "invalid_value", "assistant"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}, *ASKED]},
     "messages[0].tool_calls[0].function", "missing_required_parameter", "missing"),
    ({"model": None}, "model", "missing_required_parameter", "missing"),
    *(({"messages": [{"role": "user", "content": [{"type": "text", "text": "look"},
                                                  {"type": kind}]}]},
       "messages[0].content[1]", "unsupported_content", "only text can be read") for kind in PARTS),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "param", "code", "words"), CANNOT)
def test_what_cannot_be_done_is_one_sentence_with_its_field(
    served: tuple[str, Scripted],
    asked: dict[str, Any],
    param: str | None,
    code: str,
    words: str,
) -> None:
    url, script = served
    before = len(script.asked)
    got = posted(url, **{"model": X, "messages": ASKED, **asked})
    check_sentence(got, 400, param, code, words)
    assert len(script.asked) == before


def check_sentence(
    got: httpx2.Response, status: int, param: str | None, code: str, words: str
) -> None:
    assert got.status_code == status, got.text
    error = got.json()["error"]
    assert (error["param"], error["code"]) == (param, code), error
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    assert error["message"].startswith(param or "")
    for leak in ("pydantic", "union", "tagged", "AIMessage", "BaseMessage", "Traceback", "\n"):
        assert leak not in error["message"]


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"n": 2}, "n", "leave it out"),
        ({"logprobs": True}, "logprobs", "leave it out"),
        ({"tools": [WEATHER]}, "tools", "leave it out"),
        ({"response_format": {"type": "json_object"}}, "response_format", "leave it out"),
        ({"top_p": 0.5}, "top_p", "leave it out"),
        ({"presence_penalty": 1}, "presence_penalty", "leave it out"),
        ({"top_k": 4}, "top_k", "leave it out"),
        ({"messages": [*ASKED, {"role": "tool", "content": "x", "tool_call_id": "1"}]},
         "messages", "end with the role tool"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "x"}]},
         "messages", "end with the role assistant"),
    ],
)  # fmt: skip
def test_a_tree_says_what_it_cannot(
    served: tuple[str, Scripted], asked: dict[str, Any], param: str, words: str
) -> None:
    got = posted(served[0], **{"model": "amplified", "messages": ASKED, **asked})
    assert "ask `base`" in got.json()["error"]["message"]
    code = "unsupported_value" if param == "messages" else "unsupported_parameter"
    check_sentence(got, 400, param, code, words)


def test_an_unknown_model_is_told_those_that_there_are(served: tuple[str, Scripted]) -> None:
    for path, body in (("chat/completions", {"messages": ASKED}), ("responses", {"input": "x"})):
        got = posted(served[0], f"/v1/{path}", model="gpt-9", **body)
        assert got.status_code == 404
        error = got.json()["error"]
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert "amplified:splits" in error["message"] and X in error["message"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [(None, "is missing"), ("application/x-www-form-urlencoded", "x-www-form"), ("text/plain", "")],
)
def test_another_content_type_is_told_the_right_one(
    served: tuple[str, Scripted], kind: str | None, words: str
) -> None:
    body = json.dumps({"model": X, "messages": ASKED}).encode()
    headers = {"content-type": kind} if kind else {}
    got = httpx2.post(f"{served[0]}/v1/chat/completions", content=body, headers=headers)
    assert got.status_code == 415
    assert words in got.json()["error"]["message"]
    assert "send content-type: application/json" in got.json()["error"]["message"]


@pytest.mark.parametrize(
    "body", [b"{", b"", b"nothing", b"\xff\xfe", b"[" * 100_000, b'"x"', b"[]"]
)
def test_a_body_that_is_no_object_is_one_sentence(
    served: tuple[str, Scripted], body: bytes
) -> None:
    for path in ("chat/completions", "responses"):
        headers = {"content-type": "application/json"}
        got = httpx2.post(f"{served[0]}/v1/{path}", content=body, headers=headers)
        assert got.status_code == 400
        assert "body" in got.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/v1/completions", 404, "use /v1/chat/completions"),
        ("POST", "/v1/embeddings", 404, "embedding server"),
        ("POST", "/v1/messages", 404, "use /v1/chat/completions"),
        ("POST", "/v1/images/generations", 404, "text alone"),
        ("POST", "/v1/audio/speech", 404, "text alone"),
        ("POST", "/v1/conversations", 404, "previous_response_id"),
        ("GET", "/v1/responses/resp_0/input_items", 404, "GET and DELETE"),
        ("POST", "/chat/completions", 404, "is /v1 missing"),
        ("GET", "/models", 404, "is /v1 missing"),
        ("POST", "/api/chat", 404, "no Ollama server"),
        ("GET", "/nothing", 404, "the API is at /v1"),
        ("GET", "/v1/chat/completions", 405, "use POST"),
        ("PUT", "/v1/models", 405, "use GET"),
    ],
)
def test_what_is_not_served_names_what_is(
    served: tuple[str, Scripted], method: str, path: str, status: int, words: str
) -> None:
    got = httpx2.request(method, served[0] + path, json={} if method != "GET" else None)
    assert got.status_code == status
    assert words in got.json()["error"]["message"]


def test_slashes_heads_and_options_are_taken(served: tuple[str, Scripted]) -> None:
    url, _ = served
    for path in ("/v1/models/", "/v1/models/x/", "/healthz/", "/healthz", "/v1/models"):
        got = httpx2.get(url + path)
        head = httpx2.head(url + path)
        assert (got.status_code, head.status_code, head.content) == (200, 200, b"")
    posted_to = posted(url, "/v1/chat/completions/", model=X, messages=ASKED)
    assert posted_to.json()["object"] == "chat.completion"
    got = httpx2.options(f"{url}/v1/chat/completions")
    assert (got.status_code, got.headers["allow"]) == (204, "POST")
    shown = httpx2.get(f"{url}/v1/models/{X}").json()
    assert shown == {"id": X, "object": "model", "created": 0, "owned_by": "reflux"}


def test_a_conversation_that_is_too_long_for_the_endpoint_has_its_code(
    served: tuple[str, Scripted],
) -> None:
    url, script = served
    script.refusal = lambda body: (400, "This model's maximum context length is 8 tokens")
    try:
        got = posted(url, model=X, messages=[{"role": "user", "content": "too long"}])
    finally:
        script.refusal = lambda body: None
    error = got.json()["error"]
    assert (got.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == "messages" and "8 tokens" in error["message"]


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("top_p", {"top_p": 0.5}),
        ("tools", {"tools": [WEATHER]}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("reasoning_effort", {"reasoning_effort": "low"}),
    ],
)
def test_what_a_client_asks_for_is_never_left_out_at_an_endpoint_that_refuses_it(
    served: tuple[str, Scripted], name: str, asked: dict[str, Any]
) -> None:
    """A question of our own would be asked again without the field, and so for good."""
    url, script = served
    refusal = (400, f"Unsupported parameter: '{name}' is not supported with this model.")
    script.refusal = lambda body: refusal if name in body else None
    try:
        for stream in (False, True, False):
            said = [{"role": "user", "content": f"refuse {name} {stream}"}]
            got = posted(url, model=X, messages=said, stream=stream, **asked)
            error = got.json()["error"]
            assert (got.status_code, error["code"]) == (400, "refused_by_endpoint")
            assert name in error["message"]
        assert posted(url, model=X, messages=ASKED).status_code == 200
    finally:
        script.refusal = lambda body: None
