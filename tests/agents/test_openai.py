"""The chat client against a real HTTP server: what it reads, what it retries, how it fails."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from reflux.agents.clients.endpoints import endpoint_from_env
from reflux.agents.clients.openai import POOL, OpenAIClient
from reflux.agents.errors import EndpointError, UsageError
from reflux.agents.types import ChatRequest, Sampling, TokenLogprob

PATH = "/v1/chat/completions"
QUESTION = ChatRequest("m", (("system", ""), ("user", "What is 2+2?")))


def reply(text: str, **extra: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **extra}]}


class Naps:
    """Stands in for `asyncio.sleep`: notes what it was asked to wait, and does not wait."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)


@pytest.fixture
def naps() -> Naps:
    return Naps()


@pytest.fixture
async def client(httpserver: HTTPServer, naps: Naps) -> AsyncIterator[OpenAIClient]:
    client = OpenAIClient(httpserver.url_for("/v1"), "key", retries=2, backoff=0.5, sleep=naps)
    yield client
    await client.close()


async def test_reads_answer_usage_and_log_probabilities(
    httpserver: HTTPServer, client: OpenAIClient
) -> None:
    top = [{"token": "4", "logprob": -0.1}, {"token": "5", "logprob": -2.5}]
    tokens = {"content": [{"token": "4", "logprob": -0.1, "bytes": None, "top_logprobs": top}]}
    usage = {"prompt_tokens": 11, "completion_tokens": 1, "total_tokens": 12}
    httpserver.expect_request(PATH).respond_with_json(
        reply("4", logprobs=tokens) | {"usage": usage}
    )
    completion = await client.complete(QUESTION)
    assert completion.text == "4"
    assert (completion.prompt_tokens, completion.completion_tokens) == (11, 1)
    assert completion.logprobs == (TokenLogprob("4", -0.1, (("4", -0.1), ("5", -2.5))),)
    assert completion.min_logprob == -0.1
    assert completion.seconds > 0
    assert completion.retries == ()


async def test_sends_all_that_decides_the_reply(
    httpserver: HTTPServer, client: OpenAIClient
) -> None:
    httpserver.expect_request(PATH).respond_with_json(reply("4"))
    sampling = Sampling(temperature=0.7, max_tokens=9, top_logprobs=3, seed=5, stop=("\n",))
    await client.complete(ChatRequest("student-r1", QUESTION.messages, sampling))
    request, _ = httpserver.log[0]
    assert json.loads(request.data) == {
        "model": "student-r1",
        "messages": [{"role": "user", "content": "What is 2+2?"}],
        "temperature": 0.7,
        "max_tokens": 9,
        "seed": 5,
        "stop": ["\n"],
        "logprobs": True,
        "top_logprobs": 3,
    }
    assert request.headers["Authorization"] == "Bearer key"


async def test_an_error_of_the_server_is_retried_and_recorded(
    httpserver: HTTPServer, client: OpenAIClient, naps: Naps
) -> None:
    httpserver.expect_ordered_request(PATH).respond_with_data("overloaded", status=500)
    httpserver.expect_ordered_request(PATH).respond_with_data("still", status=503)
    httpserver.expect_ordered_request(PATH).respond_with_json(reply("4"))
    completion = await client.complete(QUESTION)
    assert completion.text == "4"
    assert [line[:3] for line in completion.retries] == ["500", "503"]
    assert 0.375 <= naps.asked[0] <= 0.625
    assert 0.75 <= naps.asked[1] <= 1.25


async def test_gives_up_after_the_last_retry(httpserver: HTTPServer, client: OpenAIClient) -> None:
    httpserver.expect_request(PATH).respond_with_data("down", status=500)
    with pytest.raises(EndpointError, match="after 3 tries: 500"):
        await client.complete(QUESTION)
    assert len(httpserver.log) == 3


async def test_waits_as_long_as_retry_after_asks(
    httpserver: HTTPServer, client: OpenAIClient, naps: Naps
) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100))
    for asked in ("61.5", later):
        limited = Response("slow down", 429, headers={"Retry-After": asked})
        httpserver.expect_ordered_request(PATH).respond_with_response(limited)
    httpserver.expect_ordered_request(PATH).respond_with_json(reply("4"))
    completion = await client.complete(QUESTION)
    assert len(completion.retries) == 2
    assert naps.asked[0] == 61.5
    assert 90 < naps.asked[1] <= 100


@pytest.mark.parametrize("asked", ["soon", "nan", "inf", "-5", "²", ""])
async def test_a_senseless_retry_after_delays_by_no_more_than_the_backoff(
    httpserver: HTTPServer, client: OpenAIClient, naps: Naps, asked: str
) -> None:
    limited = Response("slow down", 429, headers={"Retry-After": asked})
    httpserver.expect_ordered_request(PATH).respond_with_response(limited)
    httpserver.expect_ordered_request(PATH).respond_with_json(reply("4"))
    await client.complete(QUESTION)
    assert 0 <= naps.asked[0] <= 0.625


async def test_a_refused_key_fails_at_once_and_names_the_variable(
    httpserver: HTTPServer, client: OpenAIClient
) -> None:
    httpserver.expect_request(PATH).respond_with_json({"error": {"message": "bad"}}, status=401)
    with pytest.raises(EndpointError, match=r"at once: 401 .*OPENAI_API_KEY"):
        await client.complete(QUESTION)
    assert len(httpserver.log) == 1


async def test_a_request_that_is_refused_is_not_repeated(
    httpserver: HTTPServer, client: OpenAIClient
) -> None:
    httpserver.expect_request(PATH).respond_with_json({"error": {"message": "long"}}, status=400)
    with pytest.raises(EndpointError, match="at once: 400"):
        await client.complete(QUESTION)
    assert len(httpserver.log) == 1


async def test_an_unreachable_endpoint_names_the_variable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound and not listening: connections are refused.
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        client = OpenAIClient(url, "key", retries=0)
        with pytest.raises(EndpointError, match="OPENAI_BASE_URL"):
            await client.complete(QUESTION)
        await client.close()


@pytest.mark.parametrize("content_type", ["application/json", "text/html"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{nope",
        b"null",
        b"[1]",
        b'{"id": "x"}',
        b'{"choices": []}',
        b'{"choices": {"a": 1}}',
        b'{"choices": [null]}',
        b'{"choices": [{"message": "4"}]}',
        b'{"choices": [{"message": {"content": "\\ud800"}}]}',
        b'{"choices": [{"message": {"content": "\xe9"}}]}',
    ],
)
async def test_a_garbled_reply_is_an_endpoint_error(
    httpserver: HTTPServer, client: OpenAIClient, body: bytes, content_type: str
) -> None:
    httpserver.expect_request(PATH).respond_with_data(body, content_type=content_type)
    with pytest.raises(EndpointError, match="no chat completion"):
        await client.complete(QUESTION)
    assert len(httpserver.log) == 3  # Garbled replies pass; they are worth another try.


@pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {"total_tokens": "3"}}])
async def test_usage_that_is_not_told_counts_as_none(
    httpserver: HTTPServer, client: OpenAIClient, usage: dict[str, Any]
) -> None:
    httpserver.expect_request(PATH).respond_with_json(reply("4") | usage)
    assert (await client.complete(QUESTION)).tokens == 0


async def test_an_answer_without_content_is_empty(
    httpserver: HTTPServer, client: OpenAIClient
) -> None:
    body = {"choices": [{"message": {"role": "assistant", "content": None}}]}
    httpserver.expect_request(PATH).respond_with_json(body)
    assert (await client.complete(QUESTION)).text == ""


async def test_a_question_that_is_no_unicode_text_is_the_users_error(client: OpenAIClient) -> None:
    with pytest.raises(UsageError, match="Unicode"):
        await client.complete(ChatRequest("m", (("user", "\ud800"),)))


async def test_no_more_requests_are_under_way_than_allowed(httpserver: HTTPServer) -> None:
    lock, under_way, max_votes = threading.Lock(), 0, 0

    def handler(_: Request) -> Response:
        nonlocal under_way, max_votes
        with lock:
            under_way += 1
            max_votes = max(max_votes, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1
        return Response(json.dumps(reply("4")), content_type="application/json")

    httpserver.expect_request(PATH).respond_with_handler(handler)
    client = OpenAIClient(httpserver.url_for("/v1"), "key", concurrency=3)
    await asyncio.gather(*(client.complete(QUESTION) for _ in range(12)))
    await client.close()
    assert len(httpserver.log) == 12
    assert 1 <= max_votes <= 3


@pytest.mark.slow
async def test_more_requests_than_a_pool_holds_are_under_way_and_closing_ends_all_connections() -> (
    None
):
    number = 2 * POOL + 1
    arrived, ended = 0, 0
    all_here, all_gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived, ended
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
        arrived += 1
        if arrived == number:
            all_here.set()
        await all_here.wait()
        body = json.dumps(reply("4")).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await reader.read()
        writer.close()
        ended += 1
        if ended == number:
            all_gone.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = OpenAIClient(f"http://127.0.0.1:{port}/v1", "key", concurrency=number)
    replies = await asyncio.gather(*(client.complete(QUESTION) for _ in range(number)))
    assert [r.text for r in replies] == ["4"] * number
    await client.close()
    await asyncio.wait_for(all_gone.wait(), 30)
    server.close()


async def test_waiting_for_a_retry_does_not_keep_others_from_asking(
    httpserver: HTTPServer,
) -> None:
    httpserver.expect_ordered_request(PATH).respond_with_data("busy", status=503)
    httpserver.expect_ordered_request(PATH).respond_with_json(reply("second"))
    httpserver.expect_ordered_request(PATH).respond_with_json(reply("first"))
    asleep, wake = asyncio.Event(), asyncio.Event()

    async def sleep(_: float) -> None:
        asleep.set()
        await wake.wait()

    client = OpenAIClient(httpserver.url_for("/v1"), "key", concurrency=1, sleep=sleep)
    first = asyncio.create_task(client.complete(QUESTION))
    await asleep.wait()
    assert (await client.complete(QUESTION)).text == "second"
    wake.set()
    assert (await first).text == "first"
    await client.close()


async def test_the_digest_tells_endpoints_and_models_apart() -> None:
    one, other = OpenAIClient("http://one/v1", "k"), OpenAIClient("http://other/v1", "k")
    digests = {await c.model_digest(m) for c in (one, other) for m in ("a", "b")}
    assert len(digests) == 4
    await one.close()
    await other.close()


async def test_models_are_listed(httpserver: HTTPServer, client: OpenAIClient) -> None:
    httpserver.expect_request("/v1/models").respond_with_json(
        {"object": "list", "data": [{"id": "base", "object": "model"}]}
    )
    assert await client.models() == ["base"]


def test_without_variables_there_is_no_endpoint() -> None:
    assert endpoint_from_env({}) is None
    assert endpoint_from_env({"OPENAI_BASE_URL": "", "OPENAI_API_KEY": " "}) is None


def test_a_key_alone_names_no_endpoint_and_an_address_needs_no_key() -> None:
    by_url = endpoint_from_env({"OPENAI_BASE_URL": "http://localhost:8000/v1"})
    assert endpoint_from_env({"OPENAI_API_KEY": "k\n"}) is None
    assert by_url is not None and by_url.base_url == "http://localhost:8000/v1"


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "http://", "http://[", "http://x:99999"]
)
def test_an_address_that_cannot_be_one_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="OPENAI_BASE_URL"):
        endpoint_from_env({"OPENAI_BASE_URL": url})


def test_a_key_that_no_header_can_carry_is_refused_without_showing_it() -> None:
    with pytest.raises(UsageError, match="OPENAI_API_KEY") as caught:
        endpoint_from_env({"OPENAI_BASE_URL": "http://x/v1", "OPENAI_API_KEY": "schlüssel"})
    assert "schlüssel" not in str(caught.value)
