"""Connections to endpoints: proxies, certificates, addresses that answer nothing, time limits."""

import asyncio
import socket
import time
from typing import Any

import pytest

from reflux.agents.clients import retries
from reflux.agents.clients.endpoints import CERTIFICATES, endpoint_from_env, is_loopback
from reflux.agents.clients.openai import OpenAIClient
from reflux.agents.clients.retries import on_wait, time_left
from reflux.agents.errors import EndpointError, MissingError, RefluxError, UsageError
from reflux.agents.types import ChatRequest
from tests.support.endpoint_behaviors import BEHAVIORS, serve
from tests.support.endpoint_says import fails, says
from tests.support.endpoint_server import Asked, Reply, serving

ASKED = ChatRequest("m", (("user", "Capital of Peru?"),))
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


async def failure(client: OpenAIClient) -> RefluxError:
    """The error of one call; the client is closed."""
    with pytest.raises(RefluxError) as failed:
        await client.complete(ASKED)
    await client.close()
    assert "\n" not in str(failed.value)
    return failed.value


@pytest.mark.parametrize("variable", PROXIES)
async def test_this_machine_is_never_asked_through_a_proxy(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("SSL_CERT_FILE", "/none.pem")
    with serving(says()) as served:
        client = OpenAIClient(served.url, "key", retries=0)
        assert (await client.complete(ASKED)).text == "Lima"
        await client.close()


@pytest.mark.parametrize(
    ("variables", "kind", "words"),
    [
        ({"SSL_CERT_FILE": "/none.pem"}, UsageError, "SSL_CERT_FILE .*/none.pem"),
        ({"SSL_CERT_DIR": "/none"}, UsageError, "SSL_CERT_DIR .*/none"),
        ({"REQUESTS_CA_BUNDLE": "/none.pem"}, UsageError, "REQUESTS_CA_BUNDLE"),
        ({"SSL_CERT_FILE": __file__}, UsageError, "SSL_CERT_FILE"),
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, MissingError, "ALL_PROXY .*SOCKS"),
        ({"HTTPS_PROXY": "ftp://127.0.0.1:9"}, UsageError, "HTTPS_PROXY"),
        ({"HTTPS_PROXY": "http://127.0.0.1:9"}, EndpointError, "the proxy HTTPS_PROXY"),
    ],
)
async def test_a_variable_that_names_nothing_is_named(
    variables: dict[str, str], kind: type[RefluxError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*PROXIES, *CERTIFICATES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    error = await failure(OpenAIClient("https://endpoint.invalid/v1", "key", retries=0))
    assert type(error) is kind
    with pytest.raises(kind, match=words):
        raise error


async def test_an_unknown_host_and_a_wrong_scheme_fail_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    error = await failure(OpenAIClient("http://endpoint.invalid/v1", "key", retries=3))
    assert "endpoint.invalid: check OPENAI_BASE_URL" in str(error) and "at once" in str(error)
    with serving(says()) as served:
        error = await failure(OpenAIClient(served.url.replace("http", "https"), "key", retries=3))
    assert "speaks http there" in str(error) and "at once" in str(error)


async def test_a_reply_that_trickles_ends_with_the_total_time() -> None:
    def trickle(asked: Asked) -> Reply:
        return Reply(b"{", stalls=True)

    with serving(trickle) as served:
        client = OpenAIClient(served.url, "key", timeout=60, total_timeout=0.2, retries=3)
        error = await failure(client)
    assert "no whole reply in 0.2 s" in str(error) and "REFLUX_TOTAL_TIMEOUT" in str(error)


async def test_a_silent_endpoint_names_its_variable() -> None:
    with serving(lambda asked: Reply(b"", stalls=True, drops=True)) as served:
        error = await failure(OpenAIClient(served.url, "key", timeout=0.2, retries=0))
    assert "REFLUX_TIMEOUT" in str(error)


async def test_a_wait_ends_at_the_questions_limit_and_is_told() -> None:
    told: list[str] = []
    token = on_wait.set(told.append)
    start = time.monotonic()
    with serving(fails(429, "slow down", retry_after="60")) as served, time_left(3.0):
        error = await failure(OpenAIClient(served.url, "key"))
    assert time.monotonic() - start < 30
    assert "slow down" in str(error) and "--seconds" in str(error)
    with serving(fails(503, "busy", times=1)) as served:
        client = OpenAIClient(served.url, "key", backoff=0.01)
        await client.complete(ASKED)
        await client.close()
    on_wait.reset(token)
    assert told == ["waits 0 s to try again", ""]


async def test_a_refused_key_is_asked_once_by_many_and_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serve(BEHAVIORS["401"]) as served:
        client = OpenAIClient(served.url, "key")
        results = await asyncio.gather(
            *(client.complete(ASKED) for _ in range(20)), return_exceptions=True
        )
        assert all(isinstance(result, EndpointError) and result.is_final for result in results)
        assert len(served.requests) == 1
        later = time.monotonic() + retries.CLOSED_SECONDS + 1
        monkeypatch.setattr(retries.time, "monotonic", lambda: later)
        with pytest.raises(EndpointError):
            await client.complete(ASKED)
        assert len(served.requests) == 2
        await client.close()


async def test_many_requests_learn_one_refusal() -> None:
    with serve(BEHAVIORS["seed is forbidden"]) as served:
        client = OpenAIClient(served.url, "key")
        replies = await asyncio.gather(*(client.complete(ASKED) for _ in range(20)))
        await client.close()
    assert {reply.text for reply in replies} == {"Lima"}
    assert len(served.requests) == 21


@pytest.mark.parametrize(
    ("url", "base", "more"),
    [
        ("http://x/v1/", "http://x/v1", {}),
        ("HTTP://X:80/V1", "http://x:80/V1", {}),
        ("http://x/v1/chat/completions", "http://x/v1", {}),
        ("http://[::1]:80/v1", "http://[::1]:80/v1", {}),
        ("http://x/v1?api-version=2", "http://x/v1", {"query": {"api-version": "2"}}),
        ("http://u:p@x/v1", "http://x/v1", {"headers": {"Authorization": "Basic dTpw"}}),
    ],
)
async def test_an_address_is_read_as_users_paste_it(
    url: str, base: str, more: dict[str, Any]
) -> None:
    client = endpoint_from_env({"OPENAI_BASE_URL": url})
    assert client is not None and client.base_url == base
    assert "p@" not in await client.model_digest("m")
    options = client._connect.keywords  # pyright: ignore[reportPrivateUsage]
    given = {"query": options["default_query"], "headers": options["default_headers"]}
    assert {name: value for name, value in given.items() if value} == more


def test_a_user_and_a_key_exclude_each_other() -> None:
    env = {"OPENAI_BASE_URL": "http://u:p@x/v1", "OPENAI_API_KEY": "key"}
    with pytest.raises(UsageError, match="Authorization"):
        endpoint_from_env(env)


def test_loopback_is_told_from_other_addresses() -> None:
    near = ("http://localhost", "http://127.0.0.9:1/v1", "http://[::1]:80", "http://a.localhost")
    far = ("http://localhost.example.com", "http://127.0.0.1.nip.io", "https://10.0.0.1")
    assert all(map(is_loopback, near)) and not any(map(is_loopback, far))


def test_an_unused_port_says_is_it_running() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound and not listening.
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        error = asyncio.run(failure(OpenAIClient(url, "key", retries=0)))
    assert "is it running?" in str(error)
