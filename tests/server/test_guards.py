"""Who may ask a server, from where, how often, and how much at once."""

import asyncio
import http.client
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from reflux.agents.clients.endpoints import Endpoint
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.finetune.run_folder import RunFolder
from reflux.server.app import create_app
from reflux.server.guards import RateLimiter
from reflux.server.settings import ServeSettings
from tests.support.serving import Scripted, X, serving, soon

CHAT = {"model": X, "messages": [{"role": "user", "content": "hello"}]}


def status(url: str, **headers: str) -> tuple[int, str | None]:
    got = httpx2.get(f"{url}/v1/models", headers=headers)
    code = got.json()["error"]["code"] if got.status_code != 200 else None
    return got.status_code, code


def test_a_host_that_is_not_this_servers_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path, hosts=("desk.example",)) as url:
        port = urlsplit(url).port
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "[", "a@b"):
            assert status(url, host=host) == (403, "host_not_allowed")
        for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "Desk.example"):
            assert status(url, host=host) == (200, None)
        plain = http.client.HTTPConnection("127.0.0.1", port or 0)
        plain.putrequest("GET", "/v1/models", skip_host=True)
        plain.endheaders()
        assert plain.getresponse().status in (400, 403)
        plain.close()


def test_a_server_with_a_key_has_any_name_and_health_probes_need_none(tmp_path: Path) -> None:
    shown = {"authorization": "Bearer secret", "origin": "https://llm.example"}
    with serving(tmp_path, api_key="secret", host="127.0.0.1") as url:
        for host in ("llm.example", "10.1.2.3", "10.1.2.3:8700", "[fd00::1]:8700"):
            assert status(url, host=host, **shown) == (200, None)
            assert status(url, host=host) == (401, "invalid_api_key")
            assert status(url, host=host, authorization="Bearer no") == (401, "invalid_api_key")
        assert status(url, host="a@b", **shown) == (403, "host_not_allowed")
        asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        got = httpx2.options(f"{url}/v1/chat/completions", headers=asked)
        assert (got.status_code, got.json()["error"]["code"]) == (403, "origin_not_allowed")
    with serving(tmp_path) as url:
        for host in ("llm.example", "10.1.2.3", "a@b"):
            assert httpx2.get(f"{url}/healthz", headers={"host": host}).status_code == 200
            assert httpx2.head(f"{url}/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("hosts", host) for host in (
            "", "https://desk.example", "desk.example:443", "desk.example/", "*", "*.example",
            "a b", "10.0.0.0/8", "[::1]",
        )),
        *(("origins", origin) for origin in (
            "", "*", "desk.example", "http://desk.example/", "http://desk.example/path", "null",
            "ftp://desk.example",
        )),
        *(("proxies", proxy) for proxy in ("", "*", "nginx", "10.0.0.1:80", "10.0.0.0/99")),
    ],
)  # fmt: skip
def test_malformed_names_are_refused_at_the_start(tmp_path: Path, name: str, value: str) -> None:
    settings = ServeSettings(**{name: (value,)})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=f"`{name}` holds {re.escape(repr(value))}"):
        create_app(RunFolder(tmp_path), settings)


def test_well_formed_names_are_taken(tmp_path: Path) -> None:
    settings = ServeSettings(
        hosts=("desk.example", "10.1.2.3", "::1", "desk_1"),
        origins=("http://localhost:3000", "https://desk.example", "http://[::1]:80"),
        proxies=("127.0.0.1", "10.0.0.0/8", "fd00::/8"),
    )
    create_app(RunFolder(tmp_path), settings)


def test_a_browser_may_send_the_headers_of_the_sdks(tmp_path: Path) -> None:
    friend = "http://localhost:3000"
    asked = {"origin": friend, "access-control-request-method": "DELETE"}
    asked["access-control-request-headers"] = "authorization,x-stainless-os,openai-organization"
    with serving(tmp_path, origins=(friend,), api_key="secret") as url:
        got = httpx2.options(f"{url}/v1/responses/resp_1", headers=asked)
    assert got.status_code == 200
    assert "x-stainless-os" in got.headers["access-control-allow-headers"]
    assert "DELETE" in got.headers["access-control-allow-methods"]


def test_a_page_of_another_origin_may_not_use_the_server(tmp_path: Path) -> None:
    friend = "http://localhost:3000"
    with serving(tmp_path, origins=(friend,)) as url:
        for origin in ("http://evil.example", "null", "http://localhost:3001", f"{url}.evil"):
            assert status(url, origin=origin) == (403, "origin_not_allowed")
        assert status(url, origin=url) == (200, None)
        got = httpx2.get(f"{url}/v1/models", headers={"origin": friend})
        assert got.headers["access-control-allow-origin"] == friend
        asked = {"origin": friend, "access-control-request-method": "POST"}
        assert httpx2.options(f"{url}/v1/chat/completions", headers=asked).status_code == 200


def test_a_page_of_a_friendly_origin_can_ask_whether_it_may_send_the_key(tmp_path: Path) -> None:
    friend = "http://localhost:3000"
    asked = {"origin": friend, "access-control-request-method": "POST"}
    asked["access-control-request-headers"] = "authorization"
    with serving(tmp_path, origins=(friend,), api_key="secret") as url:
        assert httpx2.options(f"{url}/v1/chat/completions", headers=asked).status_code == 200
        assert status(url, origin=friend) == (401, "invalid_api_key")
        assert status(url, origin=friend, authorization="Bearer secret") == (200, None)


def test_a_simple_post_that_a_page_can_send_unasked_is_refused(
    tmp_path: Path, script: Scripted
) -> None:
    """A form of another page can post text without the browser asking first."""
    with serving(tmp_path, script) as url:
        headers = {"origin": "http://evil.example", "content-type": "text/plain"}
        got = httpx2.post(f"{url}/v1/chat/completions", json=CHAT, headers=headers)
        assert got.status_code == 403
    assert script.asked == []


def test_a_key_that_is_set_has_to_be_shown_everywhere_but_for_health(tmp_path: Path) -> None:
    with serving(tmp_path, api_key="secret") as url:
        for shown in ({}, {"authorization": "Bearer no"}, {"authorization": "secret"}):
            assert status(url, **shown) == (401, "invalid_api_key")
            assert httpx2.get(f"{url}/metrics", headers=shown).status_code == 401
            assert httpx2.get(f"{url}/openapi.json", headers=shown).status_code == 401
        assert status(url, authorization="Bearer secret") == (200, None)
        assert httpx2.get(f"{url}/healthz").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "desk.example"])  # noqa: S104
def test_a_server_that_others_can_reach_needs_a_key(tmp_path: Path, host: str) -> None:
    with pytest.raises(UsageError, match="set REFLUX_API_KEY"):
        create_app(RunFolder(tmp_path), ServeSettings(host=host))
    create_app(RunFolder(tmp_path), ServeSettings(host=host, api_key="secret"))
    with pytest.raises(UsageError, match="no HTTP header can carry"):
        create_app(RunFolder(tmp_path), ServeSettings(host=host, api_key="sécret"))


def test_a_body_over_the_limit_is_refused_whether_or_not_it_tells_its_length(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script, body_bytes=1_000) as url:
        body = b'{"model": "x", "messages": [{"role": "user", "content": "%s"}]}' % (b"a" * 2_000)
        headers = {"content-type": "application/json"}

        def pieces() -> Iterator[bytes]:
            yield from (body[at : at + 100] for at in range(0, len(body), 100))

        for content in (body, pieces()):
            got = httpx2.post(f"{url}/v1/chat/completions", content=content, headers=headers)
            assert got.status_code == 413
            assert got.json()["error"]["type"] == "invalid_request_error"
    assert script.asked == []


def test_a_client_over_its_rate_is_told_how_long_to_wait(tmp_path: Path) -> None:
    with serving(tmp_path, per_second=0.01, burst=3) as url:
        got = [httpx2.get(f"{url}/v1/models") for _ in range(4)]
        assert [one.status_code for one in got] == [200, 200, 200, 429]
        assert got[-1].json()["error"]["type"] == "rate_limit_error"
        assert int(got[-1].headers["retry-after"]) >= 1
        assert httpx2.get(f"{url}/healthz").status_code == 200


def test_a_bucket_fills_again_and_each_client_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("reflux.server.guards.time.monotonic", lambda: now)
    rates = RateLimiter(per_second=2, burst=2)
    assert [rates.wait("a") for _ in range(3)] == [0, 0, 0.5]
    assert rates.wait("b") == 0
    now = 100.6
    assert rates.wait("a") == 0
    assert rates.wait("a") > 0
    assert [RateLimiter(0, 1).wait("a") for _ in range(5)] == [0] * 5


@pytest.mark.slow
async def test_more_at_once_than_the_limit_is_refused_and_the_rest_goes_on(
    tmp_path: Path, script: Scripted
) -> None:
    script.pause = lambda body: 1.5 * (body["messages"][-1]["content"] in ("word0", "word1"))
    with serving(tmp_path, script, max_concurrency=2) as url:
        async with httpx2.AsyncClient(base_url=url) as client:

            async def one(number: int) -> int:
                body = {**CHAT, "messages": [{"role": "user", "content": f"word{number}"}]}
                return (await client.post("/v1/chat/completions", json=body)).status_code

            assert await one(9) == 200  # An endpoint's first request goes alone.
            first = [asyncio.create_task(one(i)) for i in range(2)]
            await asyncio.to_thread(soon, lambda: len(script.asked) >= 3)
            assert await one(2) == 429
            assert await asyncio.gather(*first) == [200, 200]
            assert await one(3) == 200


def test_every_response_forbids_outside_origins(tmp_path: Path) -> None:
    with serving(tmp_path) as url:
        for path, code in (("/healthz", 200), ("/nothing", 404), ("/v1/models", 200)):
            got = httpx2.get(url + path)
            assert got.status_code == code
            policy = got.headers["content-security-policy"]
            assert "default-src 'self'" in policy and "http" not in policy
            assert got.headers["x-content-type-options"] == "nosniff"
        assert httpx2.get(f"{url}/docs").status_code == 404  # Its scripts would come from outside.


def test_no_request_can_name_a_base_url(tmp_path: Path, script: Scripted) -> None:
    with serving(tmp_path, script) as url:
        for field in ("base_url", "api_base", "endpoint"):
            got = httpx2.post(f"{url}/v1/chat/completions", json={**CHAT, field: "http://evil"})
            assert got.status_code == 400
            assert got.json()["error"]["param"] == field
    assert script.asked == []


@pytest.mark.parametrize("name", ["base", "student", "amplified", "amplified:mine"])
def test_an_endpoint_cannot_take_a_name_that_means_something_else(
    tmp_path: Path, name: str
) -> None:
    there: Any = {name: Endpoint(ScriptedClient(lambda request: ""), "m")}
    with pytest.raises(UsageError, match="means something else"):
        create_app(RunFolder(tmp_path), ServeSettings(endpoints=there))
    with pytest.raises(UsageError, match="no overseer is called 'nobody'"):
        create_app(RunFolder(tmp_path), ServeSettings(overseer="nobody"))
