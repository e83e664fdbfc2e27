"""The OpenAPI description holds against requests that are made up from it, and against it."""

import http.client
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any
from urllib.parse import urlsplit

import httpx2
import hypothesis
import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.serving import scripted, serving, soon

pytestmark = pytest.mark.slow

EXAMPLES, CHATS, JUNK = 20, 120, 200
"""Requests of each operation, of the one that has the most to say, and of none at all."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
MADE_UP = hypothesis.settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
PATHS = {
    "/healthz", "/metrics", "/v1/models", "/v1/models/{name}", "/v1/chat/completions",
    "/v1/responses", "/v1/responses/{id}",
    "/api/trajectories/{trajectory}", "/api/trajectories/{trajectory}/events",
    "/api/pending", "/api/pending/{trajectory}/{id}",
    "/api/trajectories", "/api/trajectory-facets", "/api/trajectories/{trajectory}/node",
    "/api/trajectories/{trajectory}/judgements", "/api/trajectories/{trajectory}/feedback",
    "/api/review", "/api/run",
    "/api/evaluations", "/api/evaluations/{name}/failures", "/api/students",
    "/api/students/{student}/promote", "/api/students/rollback", "/api/job", "/api/job/choices",
}  # fmt: skip


@dataclass
class Served:
    """A server with an answer on its record, and a question that waits for a person."""

    url: str
    schema: Any
    known: dict[str, Any]
    """Values that name something there, by their names in the description."""

    def statuses(self, operation: Any, mode: GenerationMode, max_votes: int) -> Counter[int]:
        """How often each status came of made-up requests of one operation, three in four of
        them
        for what is there; none is a 5xx, and all are as the description says."""
        seen: Counter[int] = Counter()
        turns = {name: cycle([*values, None]) for name, values in self.known.items()}

        @given(case=operation.as_strategy(generation_mode=mode))
        @hypothesis.settings(MADE_UP, max_examples=max_votes)
        def hold(case: schemathesis.Case) -> None:
            for name, values in turns.items():
                for place in (case.path_parameters, case.body):
                    if isinstance(place, dict) and name in place and (real := next(values)):
                        place[name] = real
            got = case.call(timeout=20)
            seen[got.status_code] += 1
            case.validate_response(got, checks=CHECKS)

        hold()
        return seen


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("described")
    with scripted() as script, serving(folder, script, per_second=0) as url:
        chat = f"{url}/v1/chat/completions"
        said: dict[str, Any] = {"messages": [{"role": "user", "content": "one and two"}]}
        answered = httpx2.post(chat, json={"model": "amplified", **said})
        with httpx2.stream("POST", chat, json={"model": "amplified:human", "stream": True, **said}):
            pending = soon(lambda: httpx2.get(f"{url}/api/pending").json()["pending"])
        trajectory = answered.headers["x-reflux-trajectory"]
        kept = httpx2.post(f"{url}/v1/responses", json={"model": "x", "input": "one"}).json()["id"]
        yield Served(
            url,
            schemathesis.openapi.from_url(f"{url}/openapi.json"),
            {
                "model": ["x", "amplified", "amplified:plain"],
                "name": ["x", "base", "amplified:splits"],
                "trajectory": [pending[0]["trajectory"], trajectory, trajectory[:6]],
                "id": [pending[0]["id"]],
                "words": ["answer: four"],
                "previous_response_id": [kept],
            },
        )


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_by_the_description_or_against_it_is_a_5xx_or_answered_otherwise(
    there: Served, mode: GenerationMode
) -> None:
    seen: dict[str, Counter[int]] = {}
    for found in there.schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not _takes_anything(operation):
            continue  # Nothing can be said against it.
        if operation.label == "POST /api/job" and mode is GenerationMode.POSITIVE:
            continue  # It would begin real work.
        seen[operation.label] = there.statuses(operation, mode, EXAMPLES)
    if mode is GenerationMode.POSITIVE:
        assert {label.split()[1] for label in seen} == PATHS
        real = ("/v1/models/{name}", "/api/trajectories/{trajectory}")
        assert all(seen[f"GET {path}"][200] >= EXAMPLES / 2 for path in real)
        assert seen["GET /api/trajectories/{trajectory}/events"][200]
        assert seen["POST /api/pending/{trajectory}/{id}"][200]
    else:
        assert seen["GET /api/trajectories/{trajectory}/events"][400]
        assert seen["POST /api/pending/{trajectory}/{id}"][400]


def _takes_anything(operation: Any) -> bool:
    return bool(operation.body or operation.query or operation.headers)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_conversations_of_every_kind_are_answered_as_the_description_says(
    there: Served, mode: GenerationMode, path: str
) -> None:
    seen = there.statuses(there.schema[path]["POST"], mode, CHATS)
    if mode is GenerationMode.POSITIVE:
        assert seen[200] > CHATS / 10
    else:
        assert seen[400] > CHATS / 2


METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW")
TYPES = ("application/json", "text/plain", "multipart/form-data; boundary=x", "application/xml", "")
ODD = st.one_of(
    st.sampled_from(
        ["%00", "%ff", "%2e%2e/", "..%2f..%2fetc", "//", "%", "a" * 3_000, "%e2%80%ae"]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20),
)


@given(data=st.data())
@hypothesis.settings(MADE_UP, max_examples=JUNK)
def test_junk_of_any_method_path_type_and_body_is_refused_by_name(
    there: Served, data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(sorted(PATHS)))
    for name in ("{name}", "{trajectory}", "{id}"):
        path = path.replace(name, data.draw(ODD))
    path += data.draw(st.sampled_from(["", "/", "?after=-1", "?after=1e9", "?x=%zz", "#"]))
    body = data.draw(st.one_of(st.binary(max_size=64), st.sampled_from(JSON)))
    kind = data.draw(st.sampled_from(TYPES))
    connection = http.client.HTTPConnection(urlsplit(there.url).netloc, timeout=20)
    try:
        connection.putrequest(data.draw(st.sampled_from(METHODS)), path)
        connection.putheader("content-length", str(len(body)))
        connection.putheader("content-type", kind)
        connection.endheaders(body)
        got = connection.getresponse()
        said = got.read()
    finally:
        connection.close()
    assert got.status < 500
    if got.status >= 400 and said and got.headers["content-type"] == "application/json":
        assert json.loads(said)["error"]["message"]


JSON = [
    b"[" * 60, b"[" * 100_000, b'{"model":' * 2_000, b"null", b"[]", b'"x"', b"1e999",
    b'{"model": "x", "messages": [], "seed": %s}' % (b"9" * 6_000),
    b'{"model": "x", "model": "y"}', b'{"messages": NaN}', b'{"model": "\\ud800", "messages": []}',
]  # fmt: skip


def test_the_description_names_every_path_and_what_errors_look_like(there: Served) -> None:
    told = httpx2.get(f"{there.url}/openapi.json").json()
    assert set(told["paths"]) == PATHS
    asked = told["components"]["schemas"]["ChatRequest"]
    assert asked["additionalProperties"] is False
    errors = told["paths"]["/v1/chat/completions"]["post"]["responses"]["400"]
    assert errors["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")
