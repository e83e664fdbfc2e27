"""Clients as their users call them: LangChain, the OpenAI SDK's helpers, bodies of Open WebUI."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel

from reflux.agents.clients.endpoints import Endpoint
from reflux.agents.clients.langchain import LangChainClient
from tests.support.serving import Scripted, X, scripted, serving

PERU: Any = [{"role": "user", "content": "Peru?"}]


class City(BaseModel):
    """A city."""

    city: str


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"rain in {city}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Scripted]]:
    with (
        scripted() as script,
        serving(tmp_path_factory.mktemp("run"), script, per_second=0) as url,
    ):
        yield url, script


@pytest.fixture
def script(server: tuple[str, Scripted]) -> Scripted:
    script = server[1]
    script.asked.clear()
    script.thinks, script.says, script.arguments = "", str.upper, '{"city": "Lima"}'
    return script


@pytest.fixture
def client(server: tuple[str, Scripted]) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def chat(server: tuple[str, Scripted]) -> Any:
    def chat(model: str = X, **options: Any) -> ChatOpenAI:
        return ChatOpenAI(model=model, base_url=f"{server[0]}/v1", api_key="none", **options)  # type: ignore[arg-type]

    return chat


METHODS = ("json_schema", "function_calling", "json_mode")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("responses", [False, True])
def test_langchain_reads_structured_output(
    chat: Any, script: Scripted, method: Literal["json_schema"], responses: bool
) -> None:
    script.says = lambda question: '{"city": "Lima"}'
    model = chat(use_responses_api=responses)
    options = {} if method == "json_mode" else {"strict": True}
    structured = model.with_structured_output(City, method=method, **options)
    assert structured.invoke(f"{method} {responses}: JSON of Peru's capital?") == City(city="Lima")
    sent = script.asked[-1]
    if method == "function_calling":
        assert sent["tools"][0]["function"]["strict"] is True
        assert sent["tool_choice"]["function"]["name"] == "City"
        assert sent["parallel_tool_calls"] is False
    else:
        kind = {"json_schema": "json_schema", "json_mode": "json_object"}[method]
        assert sent["response_format"]["type"] == kind
    with pytest.raises(openai.BadRequestError, match="ask `base`"):
        chat("amplified", use_responses_api=responses).with_structured_output(
            City, method=method
        ).invoke("Peru?")


@pytest.mark.parametrize("responses", [False, True])
def test_langchain_binds_strict_tools_and_sends_their_results(
    chat: Any, script: Scripted, responses: bool
) -> None:
    model = chat(use_responses_api=responses, temperature=0.1, top_p=0.9)
    bound = model.bind_tools([weather], strict=True, tool_choice="any", parallel_tool_calls=False)
    called = bound.invoke("Peru?")
    assert isinstance(called, AIMessage)
    assert called.tool_calls[0]["name"] == "weather"
    sent = script.asked[-1]
    assert sent["tools"][0]["function"]["strict"] is True
    assert (sent["tool_choice"], sent["parallel_tool_calls"]) == ("required", False)
    assert (sent["temperature"], sent["top_p"]) == (0.1, 0.9)
    done = ToolMessage("rain", tool_call_id=called.tool_calls[0]["id"] or "")
    found = bound.invoke([HumanMessage("Peru?"), called, done])
    assert found.text == "RAIN"
    streamed = list(bound.stream("Peru!"))
    whole = streamed[0]
    for chunk in streamed[1:]:
        whole += chunk
    assert [call["name"] for call in whole.tool_calls] == ["weather"]


def test_langchain_reads_reasoning_and_log_probabilities(chat: Any, script: Scripted) -> None:
    script.thinks = "hm"
    found = chat(use_responses_api=True).invoke("why?")
    assert [block["type"] for block in found.content_blocks] == ["reasoning", "text"]
    logprobs = chat(logprobs=True, top_logprobs=1).invoke("a b").response_metadata["logprobs"]
    assert [token["token"] for token in logprobs["content"]] == ["A", "B"]


def test_the_sdk_parses_a_schema_and_tools(client: OpenAI, script: Scripted) -> None:
    script.says = lambda question: '{"city": "Lima"}'
    parsed = client.chat.completions.parse(model=X, messages=PERU, response_format=City)
    assert parsed.choices[0].message.parsed == City(city="Lima")
    assert script.asked[-1]["response_format"]["json_schema"]["name"] == "City"
    tools = [pydantic_function_tool(City)]
    called = client.chat.completions.parse(model=X, messages=PERU, tools=tools)
    calls = called.choices[0].message.tool_calls
    assert calls and calls[0].function.parsed_arguments == City(city="Lima")
    done: Any = {"role": "tool", "tool_call_id": calls[0].id, "content": "rain"}
    said: Any = {"role": "assistant", "content": "Lima", "parsed": {"city": "Lima"}}
    talk: Any = [*PERU, said, *PERU, called.choices[0].message, done]
    client.chat.completions.create(model=X, messages=talk, tools=tools)
    assert "parsed" not in json.dumps(script.asked[-1]["messages"])


def test_the_sdks_stream_helper_follows_text_and_tools(client: OpenAI, script: Scripted) -> None:
    with client.chat.completions.stream(
        model=X, messages=[{"role": "user", "content": "x y z"}],
        stream_options={"include_usage": True},
    ) as stream:  # fmt: skip
        events = list(stream)
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "X Y Z"
    assert final.usage is not None and final.usage.total_tokens == 13
    deltas = [event.delta for event in events if event.type == "content.delta"]
    assert list(filter(None, deltas)) == ["X", " Y", " Z"]
    with client.chat.completions.stream(
        model=X, messages=PERU, tools=[pydantic_function_tool(City)]
    ) as stream:
        done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
    assert [event.name for event in done] == ["City"]


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_and_finish_reasons_are_passed_on(
    client: OpenAI, script: Scripted, stream: bool
) -> None:
    script.thinks = "a greeting"
    got: Any = client.chat.completions.create(
        model=X, messages=[{"role": "user", "content": f"one two {stream}"}], max_tokens=1,
        stream=stream,
    )  # fmt: skip
    if stream:
        chunks = [chunk.choices[0] for chunk in got]
        thoughts = [getattr(chunk.delta, "reasoning_content", None) for chunk in chunks]
        said = "".join(chunk.delta.content or "" for chunk in chunks)
        assert "".join(filter(None, thoughts)) == "a greeting"
        assert (said, chunks[-1].finish_reason) == ("ONE", "length")
        first = next(at for at, chunk in enumerate(chunks) if chunk.delta.content)
        assert not any(thoughts[first:])
    else:
        (choice,) = got.choices
        assert choice.message.reasoning_content == "a greeting"
        assert (choice.message.content, choice.finish_reason) == ("ONE", "length")


OPEN_WEBUI: list[dict[str, Any]] = [
    {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0.8, "top_p": 0.9,
     "max_tokens": 128, "frequency_penalty": 0.1, "presence_penalty": 0.1, "seed": 7,
     "stop": ["###"], "min_p": 0.05, "reasoning_effort": "low", "logit_bias": {"5": -100}},
    {"stream": False, "max_completion_tokens": 1000},
    {"stream": True, "metadata": None, "tools": [{"type": "function", "function": {
        "name": "search", "description": "", "parameters": {
            "type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}}}]},
    {"stream": True, "chat_id": "", "features": {}, "files": [], "session_id": None,
     "custom_params": {}, "user": "ann"},
]  # fmt: skip
"""Bodies as Open WebUI composes them of a model's parameters, for a title, with tools, and with
what it leaves empty."""


@pytest.mark.parametrize("body", OPEN_WEBUI)
def test_open_webuis_bodies_are_answered(
    server: tuple[str, Scripted], script: Scripted, body: dict[str, Any]
) -> None:
    got = httpx2.post(
        f"{server[0]}/v1/chat/completions",
        json={"model": X, "messages": [{"role": "system", "content": "Be kind."}, *PERU], **body},
    )
    assert got.status_code == 200, got.text
    if body["stream"]:
        lines = [line for line in got.text.splitlines() if line]
        assert lines[-1] == "data: [DONE]"
        assert json.loads(lines[0].removeprefix("data: "))["object"] == "chat.completion.chunk"
    for name in ("top_p", "min_p", "frequency_penalty", "logit_bias", "seed"):
        if name in body:
            assert script.asked[-1][name] == body[name]


GARAK: dict[str, Any] = {
    "n": 1, "max_tokens": 150, "temperature": 0.7, "top_p": 1.0, "frequency_penalty": 0.0,
    "presence_penalty": 0.0, "stop": ["#", ";"],
}  # fmt: skip
"""What garak's generator `openai.OpenAICompatible` sends by default."""


@pytest.mark.parametrize("model", [X, "amplified:splits"])
def test_garaks_requests_are_answered_by_models_and_by_trees(
    server: tuple[str, Scripted], model: str
) -> None:
    with openai.OpenAI(base_url=f"{server[0]}/v1/", api_key="none", max_retries=0) as client:
        got: Any = client.chat.completions.create(model=model, messages=PERU, **GARAK)
    assert got.choices[0].message.content


def test_a_langchain_model_behind_the_server_gets_tools_and_says_what_it_takes_not(
    tmp_path: Path, script: Scripted
) -> None:
    behind = ChatOpenAI(model="far", base_url=script.url, api_key="none", max_retries=0)  # type: ignore[arg-type]
    endpoints: Any = {X: Endpoint(LangChainClient(behind, retries=0), X)}
    strict = {"type": "function", "function": {"name": "weather", "strict": True,
                                               "parameters": {"type": "object"}}}  # fmt: skip
    with (
        serving(tmp_path, script, endpoints=endpoints) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        got: Any = client.chat.completions.create(
            model=X, messages=PERU, tools=[strict], tool_choice="required",
            parallel_tool_calls=False,
        )  # type: ignore[call-overload] # fmt: skip
        assert got.choices[0].message.tool_calls[0].function.name == "weather"
        sent = script.asked[-1]
        assert sent["tools"][0]["function"]["strict"] is True
        assert (sent["tool_choice"], sent["parallel_tool_calls"]) == ("required", False)
        with pytest.raises(openai.BadRequestError, match="takes no top_p: leave it out"):
            client.chat.completions.create(model=X, messages=PERU, top_p=0.5)


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "No endpoints found that support tool use."), (400, "m does not support tools")],
)
def test_refused_tools_refuse_no_request_without_them(
    tmp_path: Path, script: Scripted, status: int, words: str
) -> None:
    script.refusal = lambda body: (status, words) if body.get("tools") else None
    weather: Any = {"type": "function", "function": {"name": "weather"}}
    try:
        with (
            serving(tmp_path, script) as url,
            OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ):
            chat = client.chat.completions
            with pytest.raises(openai.BadRequestError, match=f"{words}.*leave that out"):
                chat.create(model=X, messages=PERU, tools=[weather])
            assert chat.create(model=X, messages=PERU).choices[0].message.content == "PERU?"
    finally:
        script.refusal = lambda body: None
