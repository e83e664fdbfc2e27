"""`/v1`: real clients of the OpenAI protocol against a real server, and what each field does."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI

from reflux.agents.errors import EndpointError
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree
from reflux.server.errors import as_api_error
from tests.support.serving import CALL, Scripted, X, serving

Said = list[Any]
HELLO: Said = [{"role": "user", "content": "hello there"}]
TWO: Said = [{"role": "user", "content": "one and two"}]
TALK: Said = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "ONE", "refusal": None, "reasoning_content": "x"},
    {"role": "user", "content": [{"type": "text", "text": "two and three"}]},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def url(script: Scripted, run: Path) -> Iterator[str]:
    with serving(run, script) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def answered(client: OpenAI, model: str, messages: Said = HELLO, **options: Any) -> Any:
    return client.chat.completions.create(model=model, messages=messages, **options)


def refused(client: OpenAI, model: str = X, messages: Said = HELLO, **options: Any) -> Any:
    """The body of the 400 that comes of a request."""
    with pytest.raises(openai.BadRequestError) as failed:
        answered(client, model, messages, **options)
    assert isinstance(failed.value.body, dict)
    assert failed.value.body.keys() == {"message", "type", "param", "code"}
    return failed.value.body


def test_the_models_are_listed_and_each_can_be_shown(client: OpenAI) -> None:
    ids = [model.id for model in client.models.list()]
    assert ids == [
        "amplified", "amplified:splits", "amplified:plain", "amplified:human", "base", X,
    ]  # fmt: skip
    assert client.models.retrieve("amplified:splits").id == "amplified:splits"
    with pytest.raises(openai.NotFoundError, match=r"no model 'nobody'; there are amplified"):
        answered(client, "nobody")
    with pytest.raises(openai.NotFoundError, match="no model 'amplified:nobody'"):
        answered(client, "amplified:nobody")


def test_one_model_answers_alone_and_the_call_is_on_the_record(client: OpenAI, run: Path) -> None:
    raw = client.chat.completions.with_raw_response.create(model=X, messages=HELLO)
    reply = raw.parse()
    assert reply.choices[0].message.content == "HELLO THERE"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (10, 2)
    store = TraceStore(run / "traces.db")
    tree = load_tree(store, raw.headers["x-reflux-trajectory"])
    store.close()
    assert (tree.question, tree.answer, tree.answered_by) == ("hello there", "HELLO THERE", X)
    assert reply.id == f"chatcmpl-{raw.headers['x-reflux-trajectory']}"


def test_the_amplified_system_answers_and_its_usage_counts_the_whole_tree(
    client: OpenAI, script: Scripted, run: Path
) -> None:
    raw = client.chat.completions.with_raw_response.create(model="amplified", messages=TWO)
    reply = raw.parse()
    assert reply.choices[0].message.content == "ONE+TWO"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (20, 22)
    assert sorted(script.questions()) == ["one", "two"]
    store = TraceStore(run / "traces.db")
    tree = load_tree(store, raw.headers["x-reflux-trajectory"])
    store.close()
    assert [node.question for node in tree.walk()] == ["one and two", "one", "two"]


def test_the_conversation_reaches_h_and_a_copy_sees_its_sub_question_alone(
    client: OpenAI, script: Scripted
) -> None:
    assert answered(client, "amplified", TALK).choices[0].message.content == "TWO+THREE"
    assert sorted(script.questions()) == ["three", "two"]
    answered(client, "amplified:plain", TALK)
    assert script.questions()[-1] == (
        "Instructions:\n  Be brief.\n\nConversation so far:\nUser: one\nAssistant: ONE\n\n"
        "Question:\ntwo and three"
    )


def test_one_model_sees_the_whole_conversation_turn_by_turn(
    client: OpenAI, script: Scripted
) -> None:
    answered(client, X, TALK)
    answered(client, X, HELLO)
    talk, plain = (body["messages"] for body in script.asked)
    assert [(m["role"], m["content"]) for m in talk] == [
        ("system", "Be brief."),
        ("user", "one"),
        ("assistant", "ONE"),
        ("user", "two and three"),
    ]
    assert [m["role"] for m in plain] == ["user"]  # An empty system message is left out.


def test_the_other_overseer_is_the_one_that_is_named(client: OpenAI, script: Scripted) -> None:
    assert answered(client, "amplified:plain", TWO).choices[0].message.content == "ONE AND TWO"
    assert script.questions() == ["one and two"]


def test_a_stream_of_one_model_comes_token_by_token_with_its_usage(client: OpenAI) -> None:
    stream = answered(
        client, X, [{"role": "user", "content": "x y z"}], stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    texts = [c.choices[0].delta.content for c in chunks if c.choices]
    assert texts == ["", "X", " Y", " Z", None]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens == 13
    assert stream.response.headers["x-reflux-trajectory"]


def test_a_stream_of_a_tree_thinks_aloud_and_says_the_accepted_answer_once(
    client: OpenAI,
) -> None:
    chunks = list(answered(client, "amplified", TWO, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    thoughts = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert set(thoughts.splitlines()) == {"→ one", "→ two", "← one: ONE", "← two: TWO"}
    assert [delta.content for delta in deltas if delta.content] == ["ONE+TWO"]
    at = [bool(delta.content) for delta in deltas].index(True)
    assert not any(getattr(delta, "reasoning_content", None) for delta in deltas[at:])


async def test_the_async_client_asks_many_at_once_and_none_is_mixed_up(url: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        async def one(number: int) -> str:
            asked: Said = [{"role": "user", "content": f"n{number} and m{number}"}]
            stream = await client.chat.completions.create(
                model=X if number % 2 else "amplified", messages=asked, stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream])

        said = await asyncio.gather(*map(one, range(24)))
    assert said == [f"N{i} AND M{i}" if i % 2 else f"N{i}+M{i}" for i in range(24)]


def test_langchains_chat_model_invokes_streams_and_binds_tools(url: str, client: OpenAI) -> None:
    def model(name: str, **options: Any) -> ChatOpenAI:
        return ChatOpenAI(model=name, base_url=f"{url}/v1", api_key="none", **options)  # type: ignore[arg-type]

    talk = [SystemMessage("Be brief."), HumanMessage("one"), AIMessage("ONE"), HumanMessage("a b")]
    found = model(X, temperature=0.5, seed=3).invoke(talk)
    assert found.content == "A B"
    assert isinstance(found, AIMessage) and found.usage_metadata is not None
    assert found.usage_metadata["total_tokens"] == 12
    assert model("amplified").invoke("one and two").content == "ONE+TWO"
    streamed = model("amplified", stream_usage=True).stream("one and two")
    assert "".join(str(chunk.content) for chunk in streamed) == "ONE+TWO"

    @tool
    def weather(city: str) -> str:
        """The weather of a city."""
        return city

    called = model(X).bind_tools([weather]).invoke("Paris?")
    assert isinstance(called, AIMessage)
    assert called.tool_calls[0]["args"] == {"city": "Paris"}


def test_curl_will_do(url: str, client: OpenAI) -> None:
    def curl(*words: str) -> str:
        command = ["curl", "-sS", "-m", "20", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    body = json.dumps({"model": "amplified", "messages": TWO})
    post = (f"{url}/v1/chat/completions", "-H", "content-type: application/json", "-d")
    assert json.loads(curl(*post, body))["choices"][0]["message"]["content"] == "ONE+TWO"
    streamed = curl("-N", *post, body[:-1] + ', "stream": true}').split("\n\n")
    assert streamed[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: ") for line in streamed[:-1])
    assert json.loads(curl(f"{url}/healthz")) == {"status": "ok"}


def test_what_is_asked_for_reaches_the_model(client: OpenAI, script: Scripted) -> None:
    answered(client, X, temperature=0.5, seed=7, max_tokens=1, stop=["x", "y"])
    answered(client, X, max_completion_tokens=2, temperature=0)
    answered(client, X, temperature=0.5)
    answered(client, X, temperature=0.5)
    kept = ("temperature", "seed", "max_tokens", "stop")
    first, second, third, fourth = ([body.get(k) for k in kept] for body in script.asked)
    assert first == [0.5, 7, 1, ["x", "y"]]
    assert second == [0.0, 0, 2, None]
    assert third[1] != fourth[1]  # SampledTokens anew, where nothing is said.


def test_log_probabilities_come_with_as_many_alternatives_as_asked(client: OpenAI) -> None:
    for max_votes, alternatives in ((None, 0), (1, 1)):
        asked = {
            "logprobs": True,
            "top_logprobs": max_votes,
            "temperature": 1,
        }  # None is known already.
        whole = answered(client, X, **asked).choices[0].logprobs.content
        stream = answered(client, X, stream=True, **asked)
        pieces = [c.choices[0].logprobs for c in stream if c.choices[0].logprobs]
        assert [one.token for one in whole] == ["HELLO", "THERE"]
        assert len(whole[0].top_logprobs) == alternatives
        assert [piece.content[0].logprob for piece in pieces] == [-0.5, -0.5]
    assert answered(client, X).choices[0].logprobs is None


def test_several_choices_have_seeds_of_their_own(client: OpenAI, script: Scripted) -> None:
    reply = answered(client, X, n=3, seed=5, temperature=1)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert {body["seed"] for body in script.asked} == {5, 6, 7}
    assert reply.usage.prompt_tokens == 30
    texts = ["", "", ""]
    for chunk in answered(client, X, n=3, seed=5, temperature=1, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["HELLO THERE"] * 3


def test_tools_reach_the_model_and_its_calls_come_back(client: OpenAI, script: Scripted) -> None:
    function = {"name": "weather", "description": "of a city", "parameters": {"type": "object"}}
    tools: Any = [{"type": "function", "function": function}]
    choice = answered(client, X, tools=tools, tool_choice="auto").choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls[0].function.arguments == CALL["function"]["arguments"]
    stream = answered(client, X, tools=tools, stream=True)
    called = [c.choices[0].delta.tool_calls for c in stream if c.choices[0].delta.tool_calls]
    assert called[0][0].function.name == "weather"
    assert script.asked[0]["tools"] == tools
    back = [*HELLO, choice.message.model_dump(), {"role": "tool", "tool_call_id": "call_1",
            "content": "rain"}]  # fmt: skip
    assert answered(client, X, back).choices[0].message.content == "RAIN"
    sent = script.asked[-1]["messages"]
    assert sent[-2]["tool_calls"] == [CALL]
    assert sent[-1] == {"role": "tool", "content": "rain", "tool_call_id": "call_1"}
    answered(client, X, tools=tools, tool_choice="none")
    assert "tools" not in script.asked[-1]


def test_a_schema_reaches_the_model_and_one_that_is_refused_is_a_400(
    client: OpenAI, script: Scripted
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "r", "schema": schema}}
    answered(client, X, response_format=form)
    assert script.asked[-1]["response_format"]["json_schema"]["schema"] == schema
    answered(client, X, response_format={"type": "text"})
    assert "response_format" not in script.asked[-1]
    script.refusal = lambda body: (400, "no schemas here") if "response_format" in body else None
    assert "no schemas here" in refused(client, X, response_format={"type": "json_object"},
                                        seed=9)["message"]  # fmt: skip


def test_the_amplified_system_takes_temperature_seed_tokens_and_stops(
    client: OpenAI, script: Scripted
) -> None:
    found = answered(client, "amplified", TWO, temperature=0.5, seed=4, max_tokens=9, stop="+")
    assert found.choices[0].message.content == "ONE"
    assert [(b["temperature"], b["seed"], b["max_tokens"]) for b in script.asked] == [
        (0.5, 4, 9), (0.5, 4, 9),
    ]  # fmt: skip


def test_an_endpoint_that_fails_is_a_502_and_in_a_stream_an_error(
    client: OpenAI, script: Scripted
) -> None:
    script.refusal = lambda body: (500, "on fire")
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="on fire") as failed:
            answered(client, X, [{"role": "user", "content": "burn"}], stream=stream)
        assert failed.value.status_code == 502
        assert failed.value.response.headers["x-reflux-trajectory"]
        with pytest.raises(openai.InternalServerError, match="on fire"):
            answered(client, "amplified:plain", [{"role": "user", "content": "burn"}])
    script.refusal = lambda body: None
    script.breaks = True
    with pytest.raises(openai.APIError, match="failed at once"):
        list(answered(client, X, [{"role": "user", "content": "break off"}], stream=True))


@pytest.mark.parametrize(
    ("status", "code"), [(429, "rate_limit_exceeded"), (402, "insufficient_quota")]
)
def test_an_endpoint_that_is_asked_too_much_is_a_429(
    client: OpenAI, script: Scripted, status: int, code: str
) -> None:
    script.refusal = lambda body: (status, "too much")
    for model in (X, "amplified:plain"):
        with pytest.raises(openai.RateLimitError, match="too much") as failed:
            answered(client, model, [{"role": "user", "content": f"{status}"}])
        assert failed.value.code == code


def test_the_wait_that_an_endpoint_asks_for_is_passed_on() -> None:
    error = EndpointError("busy")
    error.status, error.retry_after = 429, 1.2
    assert as_api_error(error).response().headers["retry-after"] == "2"
    error.status = None
    assert as_api_error(error).status == 503


def test_a_body_that_is_no_json_is_a_400(url: str) -> None:
    tool = b'"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": NaN}}}]'
    head = b'{"model": "x", "messages": [{"role": "user", "content": "hi"}], '
    half = b'"\\ud83d"'
    for body in (
        b"", b"{", b"[" * 100_000, b'{"model": "x"}', half, b"\xff", head + tool + b"}",
        b"{%b: 1}" % half, head + b"%b: 1}" % half, head + b'"stop": %b}' % half,
    ):  # fmt: skip
        done = subprocess.run(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H",
             "content-type: application/json", "--data-binary", "@-",
             f"{url}/v1/chat/completions"],
            input=body, capture_output=True,
        )  # fmt: skip
        assert done.stdout == b"400"
