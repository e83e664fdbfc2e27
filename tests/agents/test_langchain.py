"""Chat models of LangChain as X: what reaches them, what is read back, how they fail."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from pydantic import SecretStr
from pytest_httpserver import HTTPServer
from werkzeug import Response

from reflux.agents.clients.langchain import LangChainClient
from reflux.agents.errors import EndpointError, UsageError
from reflux.agents.types import ChatRequest, Sampling, TokenLogprob, ToolCall, ToolSpec
from reflux.graphs.traces.store import TraceStore
from tests.support.amplifying import amplified, asking

PATH = "/v1/chat/completions"
QUESTION = ChatRequest("m", (("system", ""), ("user", "What is 2+2?")))
ALL = Sampling(temperature=0.7, max_tokens=9, top_logprobs=2, seed=5, stop=("\n",))
ADD = ToolSpec("add", "Adds.", json.dumps({"type": "object", "properties": {"a": {}}}))
SCHEMA = json.dumps({"type": "object", "properties": {"sum": {"type": "integer"}}})


class Naps:
    """Stands in for `asyncio.sleep`: notes what it was asked to wait, and does not wait."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)


class Fake(BaseChatModel):
    """Replies with the given messages in turn; an exception among them is raised."""

    replies: list[Any]
    temperature: float = 1.0
    num_predict: int = 7
    seen: list[tuple[Any, ...]]

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self.seen.append((messages, stop, self.temperature, self.num_predict, kwargs))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return ChatResult(generations=[ChatGeneration(message=reply)])

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        raise NotImplementedError

    @property
    def _llm_type(self) -> str:
        return "fake"


class Refused(Exception):
    """An HTTP error as many packages have one: the status is an attribute."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__("no")
        self.status_code = status
        self.response = type("R", (), {"headers": headers or {}})()


def fake(*replies: Any, **options: Any) -> tuple[LangChainClient, Fake]:
    model = Fake(replies=list(replies), seen=[])
    return LangChainClient(model, **options), model


def openai_at(server: HTTPServer, **options: Any) -> LangChainClient:
    model = ChatOpenAI(
        model="gpt-x", base_url=server.url_for("/v1"), api_key=SecretStr("key"), max_retries=0
    )
    return LangChainClient(model, **options)


def reply(message: dict[str, Any], **extra: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 11, "completion_tokens": 1, "total_tokens": 12}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "gpt-x"} | {
        "choices": [choice | extra],
        "usage": usage,
    }


def sent(server: HTTPServer, number: int = 0) -> dict[str, Any]:
    return json.loads(server.log[number][0].data)


async def test_chat_openai_is_sent_all_that_decides_the_reply(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_json(reply({"content": "4"}))
    client = openai_at(httpserver)
    await client.complete(ChatRequest("m", QUESTION.messages, ALL))
    body = sent(httpserver)
    limit = body.pop("max_tokens", None) or body.pop("max_completion_tokens")
    assert limit == 9
    assert body.pop("stream", False) is False
    assert body == {
        "model": "gpt-x",
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": "What is 2+2?"},
        ],
        "temperature": 0.7,
        "seed": 5,
        "stop": ["\n"],
        "logprobs": True,
        "top_logprobs": 2,
    }


async def test_answer_usage_and_log_probabilities_are_read_from_chat_openai(
    httpserver: HTTPServer,
) -> None:
    top = [{"token": "4", "logprob": -0.1, "bytes": None}]
    token = {"token": "4", "logprob": -0.1, "bytes": None, "top_logprobs": top}
    tokens = {"content": [token], "refusal": None}
    body = reply({"content": "4"}, logprobs=tokens, finish_reason="length")
    httpserver.expect_request(PATH).respond_with_json(body)
    read = await openai_at(httpserver).complete(QUESTION)
    assert (read.text, read.finish_reason) == ("4", "length")
    assert (read.prompt_tokens, read.completion_tokens) == (11, 1)
    assert read.logprobs == (TokenLogprob("4", -0.1, (("4", -0.1),)),)
    assert read.seconds > 0


async def test_tools_go_out_and_their_calls_come_back(httpserver: HTTPServer) -> None:
    functions = [{"name": "add", "arguments": '{"a": 1}'}, {"name": "add", "arguments": "{no"}]
    calls = [{"id": str(i), "type": "function", "function": f} for i, f in enumerate(functions)]
    answer = reply({"content": None, "tool_calls": calls}, finish_reason="tool_calls")
    httpserver.expect_request(PATH).respond_with_json(answer)
    asked = ("assistant", "", json.dumps({"tool_calls": calls[:1]}))
    result = ("tool", "1", json.dumps({"tool_call_id": "0"}))
    request = ChatRequest("m", (("user", "add"), asked, result), tools=(ADD,))
    read = await openai_at(httpserver).complete(request)
    assert read.tool_calls == (ToolCall("0", "add", '{"a": 1}'), ToolCall("1", "add", "{no"))
    body = sent(httpserver)
    assert body["tools"][0]["function"]["name"] == "add"
    assert body["messages"][1]["tool_calls"][0]["function"]["name"] == "add"
    assert body["messages"][2] == {"role": "tool", "content": "1", "tool_call_id": "0"}


async def test_a_schema_goes_out_and_json_comes_back(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_json(reply({"content": '{"sum": 4}'}))
    request = ChatRequest("m", QUESTION.messages, schema=SCHEMA)
    read = await openai_at(httpserver).complete(request)
    assert json.loads(read.text) == {"sum": 4}
    assert read.tool_calls == ()
    schema = sent(httpserver)["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == {"sum": {"type": "integer"}}


async def test_an_endpoint_that_knows_no_schemas_is_asked_without(httpserver: HTTPServer) -> None:
    refused = Response(json.dumps({"error": {"message": "response_format?"}}), 400)
    httpserver.expect_ordered_request(PATH).respond_with_response(refused)
    for _ in range(2):
        httpserver.expect_ordered_request(PATH).respond_with_json(reply({"content": '{"sum":4}'}))
    client = openai_at(httpserver, sleep=Naps())
    request = ChatRequest("m", QUESTION.messages, schema=SCHEMA)
    first, second = await client.complete(request), await client.complete(request)
    assert first.text == second.text == '{"sum":4}'
    assert ["response_format" in sent(httpserver, i) for i in range(3)] == [True, False, False]


async def test_a_refused_key_fails_at_once_and_is_not_shown(httpserver: HTTPServer) -> None:
    body = {"error": {"message": "Incorrect API key provided: sk-abcdefghijklmnopqrstuv"}}
    httpserver.expect_request(PATH).respond_with_json(body, status=401)
    with pytest.raises(EndpointError, match=r"ChatOpenAI\(gpt-x\) failed at once: 401 .*key") as e:
        await openai_at(httpserver).complete(QUESTION)
    assert "sk-abc" not in str(e.value)
    assert len(httpserver.log) == 1


async def test_chat_ollama_is_set_by_its_fields(httpserver: HTTPServer) -> None:
    lines = [
        {"model": "q", "message": {"role": "assistant", "content": "4"}, "done": False},
        {"model": "q", "message": {"role": "assistant", "content": ""}, "done": True}
        | {"done_reason": "length", "prompt_eval_count": 11, "eval_count": 1},
    ]
    text = "\n".join(map(json.dumps, lines))
    httpserver.expect_request("/api/chat").respond_with_data(
        text, content_type="application/x-ndjson"
    )
    client = LangChainClient(ChatOllama(model="q", base_url=httpserver.url_for("/")))
    read = await client.complete(ChatRequest("m", QUESTION.messages, ALL))
    options = sent(httpserver)["options"]
    assert options == {"temperature": 0.7, "num_predict": 9, "seed": 5, "stop": ["\n"]}
    assert sent(httpserver)["top_logprobs"] == 2
    assert (read.text, read.tokens, read.finish_reason) == ("4", 12, "length")


async def test_settings_without_a_field_are_left_out_and_the_others_set() -> None:
    client, model = fake(AIMessage("4"))
    await client.complete(ChatRequest("m", QUESTION.messages, ALL))
    assert [entry[1:] for entry in model.seen] == [(["\n"], 0.7, 9, {})]
    assert (model.temperature, model.num_predict) == (1.0, 7)


async def test_what_is_to_be_kept_stays_as_the_model_has_it() -> None:
    client, model = fake(AIMessage("4"), keep={"temperature"})
    await client.complete(ChatRequest("m", QUESTION.messages, ALL))
    assert model.seen[0][2:4] == (1.0, 9)
    with pytest.raises(UsageError, match="temprature"):
        fake(keep={"temprature"})


async def test_an_empty_system_message_can_be_left_out() -> None:
    for send, expected in ((True, ["system", "human"]), (False, ["human"])):
        client, model = fake(AIMessage("4"), send_empty_system=send)
        await client.complete(QUESTION)
        assert [m.type for m in model.seen[0][0]] == expected


async def test_a_model_that_keeps_count_is_asked_itself() -> None:
    client = LangChainClient(FakeListChatModel(responses=["a", "b"]))
    assert [(await client.complete(QUESTION)).text for _ in range(3)] == ["a", "b", "a"]


async def test_other_names_may_be_other_models() -> None:
    one, other = (FakeListChatModel(responses=[name]) for name in ("one", "other"))
    client = LangChainClient(one, {"expert": other})
    asked = [ChatRequest(name, QUESTION.messages) for name in ("base", "expert", "x")]
    assert [(await client.complete(request)).text for request in asked] == ["one", "other", "one"]


async def test_a_schema_for_a_model_that_takes_none_gets_free_text() -> None:
    client, _ = fake(AIMessage("sum: 4"), AIMessage("again"))
    request = ChatRequest("m", QUESTION.messages, schema=SCHEMA)
    assert (await client.complete(request)).text == "sum: 4"
    assert (await client.complete(request)).text == "again"


async def test_tools_for_a_model_that_takes_none_are_the_users_error() -> None:
    client, _ = fake(AIMessage("4"))
    with pytest.raises(UsageError, match="takes no tools"):
        await client.complete(ChatRequest("m", QUESTION.messages, tools=(ADD,)))


@pytest.mark.parametrize(
    "passing", [Refused(503), Refused(429), TimeoutError("slow"), ConnectionError("gone")]
)
async def test_what_passes_is_retried_and_recorded(passing: Exception) -> None:
    naps = Naps()
    client, _ = fake(passing, passing, AIMessage("4"), sleep=naps)
    read = await client.complete(QUESTION)
    assert read.text == "4"
    assert [type(passing).__name__ in line for line in read.retries] == [True, True]
    assert 0.375 <= naps.asked[0] <= 0.625
    assert 0.75 <= naps.asked[1] <= 1.25


async def test_waits_as_long_as_retry_after_asks() -> None:
    naps = Naps()
    client, _ = fake(Refused(429, {"retry-after": "61"}), AIMessage("4"), sleep=naps)
    await client.complete(QUESTION)
    assert naps.asked == [61]


async def test_waits_until_the_date_of_retry_after() -> None:
    naps = Naps()
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100))
    client, _ = fake(Refused(429, {"retry-after": date}), AIMessage("4"), sleep=naps)
    await client.complete(QUESTION)
    assert 90 < naps.asked[0] <= 100


async def test_gives_up_after_the_last_retry() -> None:
    client, model = fake(*[Refused(500)] * 9, retries=2, sleep=Naps())
    with pytest.raises(EndpointError, match=r"Fake\(\) failed after 3 tries: 500 Refused: no"):
        await client.complete(QUESTION)
    assert len(model.seen) == 3


@pytest.mark.parametrize("final", [Refused(400), Refused(404), ValueError("no"), TypeError("no")])
async def test_what_will_not_pass_is_not_repeated(final: Exception) -> None:
    client, model = fake(final, AIMessage("4"), sleep=Naps())
    with pytest.raises(EndpointError, match=f"failed at once: .*{type(final).__name__}: no"):
        await client.complete(QUESTION)
    assert len(model.seen) == 1


async def test_a_model_that_does_not_answer_in_time_is_a_failed_try() -> None:
    class Slow(Fake):
        async def _agenerate(self, *_: Any, **__: Any) -> ChatResult:
            await asyncio.sleep(3600)
            raise AssertionError

    client = LangChainClient(Slow(replies=[], seen=[]), timeout=0.01, retries=1, sleep=Naps())
    with pytest.raises(EndpointError, match=r"after 2 tries: no reply in 0.01 s"):
        await client.complete(QUESTION)


async def test_no_more_requests_are_under_way_than_allowed() -> None:
    under_way, max_votes = 0, 0

    class Counting(Fake):
        async def _agenerate(self, *_: Any, **__: Any) -> ChatResult:
            nonlocal under_way, max_votes
            under_way += 1
            max_votes = max(max_votes, under_way)
            await asyncio.sleep(0)
            under_way -= 1
            return ChatResult(generations=[ChatGeneration(message=AIMessage("4"))])

    client = LangChainClient(Counting(replies=[], seen=[]), concurrency=3)
    await asyncio.gather(*(client.complete(QUESTION) for _ in range(12)))
    assert max_votes == 3


@pytest.mark.parametrize(
    ("told", "finish"),
    [
        ({"stop_reason": "end_turn"}, "stop"),
        ({"stop_reason": "max_tokens"}, "length"),
        ({"finish_reason": "MAX_TOKENS"}, "length"),
        ({"done_reason": "stop"}, "stop"),
        ({}, "stop"),
    ],
)
async def test_the_end_of_a_reply_is_told_in_the_words_of_the_protocol(
    told: dict[str, str], finish: str
) -> None:
    client, _ = fake(AIMessage([{"type": "text", "text": "4"}], response_metadata=told))
    read = await client.complete(QUESTION)
    assert (read.text, read.finish_reason, read.tokens) == ("4", finish, 0)


@pytest.mark.parametrize("logprobs", [None, 3, {"tokens": ["4"]}, [{"x": 1}], {"content": None}])
async def test_log_probabilities_of_another_form_count_as_none(logprobs: Any) -> None:
    client, _ = fake(AIMessage("4", response_metadata={"logprobs": logprobs}))
    read = await client.complete(QUESTION)
    assert (read.text, read.logprobs) == ("4", ())


async def test_the_digest_tells_models_apart_and_no_keys() -> None:
    def openai(name: str, key: str) -> LangChainClient:
        return LangChainClient(
            ChatOpenAI(model=name, api_key=SecretStr(key), default_headers={"x": key})
        )

    digests = [
        await openai(name, key).model_digest("m")
        for name, key in (("a", "one"), ("a", "other"), ("b", "one"))
    ]
    assert digests[0] == digests[1] != digests[2]
    assert digests[0].startswith("langchain:ChatOpenAI(a):")


async def test_it_is_x_in_an_amplified_system(store: TraceStore) -> None:
    client = LangChainClient(FakeListChatModel(responses=["4"]))
    outcome = await amplified(store, client, asking("2+2", "1+3")).answer("root", "q")
    assert (outcome["answer"], outcome["status"]) == ("4+4", "unchecked")
