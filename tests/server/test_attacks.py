"""Attacks on a server, each of which one client can make: the others are served meanwhile."""

import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from reflux.agents.errors import UsageError
from reflux.agents.redaction import PLACEHOLDER, redact
from reflux.server import guards
from reflux.server.guards import client_of
from reflux.server.settings import ServeSettings, check_exposure
from tests.support.serving import Scripted, X, serving, soon

CHAT = {"model": X, "messages": [{"role": "user", "content": "hello"}]}
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
)


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20)


def heard(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    came = b""
    try:
        while piece := connection.recv(65_536):
            came += piece
    except ConnectionResetError:
        pass
    return came


def answers(url: str, **headers: str) -> int:
    return httpx2.get(f"{url}/v1/models", headers=headers).status_code


@pytest.mark.parametrize("endless", [b"x" * 8_192, b"a: b\r\n" * 1_024], ids=["value", "lines"])
def test_a_head_without_end_is_cut_off(tmp_path: Path, endless: bytes) -> None:
    with serving(tmp_path) as url, connected(url) as attacker:
        attacker.sendall(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx: ")
        try:
            for _ in range(10_000):
                attacker.sendall(endless)
        except OSError:
            pass
        else:
            pytest.fail("80 MB of headers were taken")
        assert answers(url) == 200


@pytest.mark.parametrize("sent", [b"", b"GET /v1/models HTTP/1.1\r\nhost: loc"])
def test_a_connection_that_never_asks_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("reflux.server.app.HEAD_SECONDS", 0.3)
    with serving(tmp_path) as url, connected(url) as attacker:
        attacker.sendall(sent)
        assert heard(attacker) == b""
        assert answers(url) == 200


def test_a_second_request_of_a_connection_has_no_more_time_for_its_head_than_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reflux.server.app.HEAD_SECONDS", 0.3)
    with serving(tmp_path) as url, connected(url) as attacker:
        attacker.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /hea")
        assert heard(attacker).count(b"HTTP/1.1") == 1


@pytest.mark.slow
def test_long_bodies_in_one_piece_and_many_requests_of_a_connection_are_no_long_heads(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url, httpx2.Client(base_url=url) as client:
        for number in range(4):
            said = f"{number}{'x' * 200_000}"
            body = {**CHAT, "messages": [{"role": "user", "content": said}]}
            got = client.post("/v1/chat/completions", json=body)
            assert got.json()["choices"][0]["message"]["content"] == said.upper()
        assert [client.get("/healthz").status_code for _ in range(2_000)] == [200] * 2_000


def test_a_body_that_does_not_come_is_given_up_and_its_place_is_free_again(tmp_path: Path) -> None:
    with serving(tmp_path, max_concurrency=1, body_seconds=0.5) as url, connected(url) as attacker:
        attacker.sendall(HEAD + b'content-length: 100\r\n\r\n{"model"')
        assert soon(lambda: answers(url) == 429)
        assert heard(attacker).startswith(b"HTTP/1.1 408")
        assert soon(lambda: answers(url) == 200)


@pytest.mark.slow
def test_a_client_that_takes_nothing_is_given_up_and_its_tree_ended(
    tmp_path: Path, script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "STUCK_SECONDS", 0.5)
    words = b"word " * 40_000
    body = b'{"model": "x", "stream": true, "max_tokens": 100000, "messages": [{"role": "user", '
    body += b'"content": "%s"}]}' % words
    with serving(tmp_path, script, max_concurrency=1) as url, socket.socket() as attacker:
        attacker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        parts = urlsplit(url)
        attacker.connect((parts.hostname, parts.port))
        attacker.sendall(HEAD + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        assert soon(lambda: answers(url) == 429)
        for _ in range(100):
            if answers(url) == 200:
                break
            time.sleep(0.2)
        assert 'reflux_requests_refused_total{why="stuck"} 1' in httpx2.get(f"{url}/metrics").text


def test_guesses_at_the_key_are_no_more_frequent_than_requests(tmp_path: Path) -> None:
    with serving(tmp_path, api_key="secret", per_second=0.01, burst=3) as url:
        guessed = [answers(url, authorization=f"Bearer {guess}") for guess in range(5)]
        assert guessed == [401, 401, 401, 429, 429]
        assert answers(url, authorization="Bearer secret") == 429


def test_a_client_cannot_pass_for_many_by_a_header(tmp_path: Path) -> None:
    with serving(tmp_path, per_second=0.01, burst=2) as url:
        asked = [answers(url, **{"x-forwarded-for": f"10.0.0.{i}"}) for i in range(4)]
        assert asked == [200, 200, 429, 429]


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("10.1.2.3", "10.1.2.3"),
        ("", ""),
    ],
)
def test_all_addresses_of_an_ipv6_network_are_one_client(address: str, client: str) -> None:
    assert client_of(address) == client


@pytest.mark.parametrize(
    "shown",
    [
        "secret", "Basic c2VjcmV0", "Basic :secret", "Bearer", "Bearer secre",
        "Bearer secrets", "Bearer SECRET", "Bearer secret x", "Bearer secret, Bearer secret",
        "Bearer\tsecret", "Bearer=secret", "Bearer s\xe9cret", "Bearer " + "s" * 10_000,
    ],
)  # fmt: skip
def test_what_is_not_the_key_opens_nothing(tmp_path: Path, shown: str) -> None:
    with serving(tmp_path, api_key="secret") as url:
        got = httpx2.get(f"{url}/v1/models", headers={"authorization": shown.encode("latin-1")})
        assert got.status_code == 401
        assert got.headers["www-authenticate"] == "Bearer"


def test_the_key_is_shown_in_a_header_and_in_no_other_way(tmp_path: Path) -> None:
    with serving(tmp_path, api_key="secret") as url:
        for shown in ("Bearer secret", "bearer secret", "BEARER   secret"):
            assert answers(url, authorization=shown) == 200
        for path in ("?api_key=secret", "?authorization=Bearer%20secret", "?key=secret"):
            assert httpx2.get(f"{url}/v1/models{path}").status_code == 401
        cookie = {"cookie": "authorization=Bearer secret", "x-api-key": "secret"}
        assert answers(url, **cookie) == 401


@pytest.mark.parametrize(
    "target",
    [
        "/healthz/../v1/models", "/healthz/..%2fv1/models", "//v1/models", "/./v1/models",
        "/healthz;/v1/models", "/healthz%00/v1/models", "/healthz?/v1/models", "/%76%31/models",
        "http://localhost/v1/models", "/healthz#/v1/models", "/V1/models", "/v1\\models",
    ],
)  # fmt: skip
def test_no_path_leads_around_the_key(tmp_path: Path, target: str) -> None:
    with serving(tmp_path, api_key="secret") as url, connected(url) as attacker:
        attacker.sendall(f"GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        attacker.shutdown(socket.SHUT_WR)
        said = attacker.recv(65_536)
        assert b"owned_by" not in said
        assert said.split()[1] in (b"400", b"401", b"404") or target.startswith("/healthz")


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example@127.0.0.1", b"127.0.0.1/evil.example", b"127.0.0.1#evil", b"127.0.0.1?evil",
        b"127.0.0.1:80:80", b"127.0.0.1:http", b"127.0.0.1, evil.example", b"[::1", b"::1", b"",
        b"127.0.0.1\r\nhost: evil.example", b"localhost.evil.example", b"0.0.0.0", b"127.1",
        b"\xff",
    ],
)  # fmt: skip
def test_only_a_name_of_the_server_is_a_host(tmp_path: Path, host: bytes) -> None:
    with serving(tmp_path) as url, connected(url) as attacker:
        attacker.sendall(b"GET /v1/models HTTP/1.1\r\nhost: %b\r\n\r\n" % host)
        attacker.shutdown(socket.SHUT_WR)
        assert attacker.recv(65_536).split()[1] in (b"400", b"403")


@pytest.mark.parametrize(
    "host",
    [
        "", "0", "0.0.0.0", "::", "::ffff:0.0.0.0", "*", "unix:/run/x", "/run/x",  # noqa: S104
        "127.0.0.1.evil",
        "localhost.evil", "2130706433x", "192.168.0.7", "fe80::1%eth0", "10.0.0.1",
    ],
)  # fmt: skip
def test_every_address_that_is_not_surely_this_machine_needs_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="REFLUX_API_KEY"):
        check_exposure(ServeSettings(host=host))
    check_exposure(ServeSettings(host=host, api_key="secret"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_addresses_of_this_machine_need_none(host: str) -> None:
    check_exposure(ServeSettings(host=host))


@pytest.mark.parametrize("key", ["sécret", "a\nb", " secret", "secret\t"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="no HTTP header can carry"):
        check_exposure(ServeSettings(api_key=key))


@pytest.mark.parametrize(
    "text",
    ["-----BEGIN PRIVATE KEY-----" * 80_000, "-----BEGIN " + "A" * 2_000_000, "sk-" * 600_000],
    ids=["keys that do not end", "a key of no kind", "prefixes"],
)
def test_secrets_are_looked_for_in_a_time_that_grows_with_the_text_alone(text: str) -> None:
    """By the square of it the longest would take hours, in which nobody else is served."""
    assert len(redact(text)) <= len(text)
    key = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENC-\nabc\n-----END RSA PRIVATE KEY-----"
    assert redact(f"{text[:54]} {key} z").endswith(f"{PLACEHOLDER} z")


@pytest.mark.process
def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 2_000));"
        "from reflux.server.app import open_more_files; open_more_files();"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "(2000, 2000)"
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
