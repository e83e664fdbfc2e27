"""The OpenAPI description holds against requests that are made up from it."""

from collections import Counter
from itertools import cycle
from pathlib import Path

import httpx2
import hypothesis
import schemathesis
from hypothesis import given
from schemathesis import GenerationMode
from serving import scripted, serving

EXAMPLES, CHATS = 20, 300
"""Requests of each operation, and of the one that has the most to say."""


MODELS = cycle(["x", "amplified", "amplified:plain", None])


def asked(case: schemathesis.Case) -> int:
    """The status of the response to a made-up request, three in four of them for a real model."""
    model = next(MODELS)
    if isinstance(case.body, dict) and "model" in case.body and model is not None:
        case.body["model"] = model
    return case.call(timeout=20).status_code


def statuses(operation: schemathesis.APIOperation, mode: GenerationMode, most: int) -> Counter[int]:
    """How often each status came of made-up requests of one operation; none may be a 5xx."""
    seen: Counter[int] = Counter()

    @given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=most,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def hold(case: schemathesis.Case) -> None:
        status = asked(case)
        seen[status] += 1
        assert status < 500, case.as_curl_command()

    hold()
    return seen


def test_no_request_that_the_description_allows_is_a_5xx(tmp_path: Path) -> None:
    with scripted() as script, serving(tmp_path, script, per_second=0) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        seen = {
            operation.label: statuses(operation, GenerationMode.POSITIVE, EXAMPLES)
            for operation in (found.ok() for found in schema.get_all_operations())
            # It would begin real work; what it refuses is tried below.
            if operation.label != "POST /api/job"
        }
        chat = statuses(schema["/v1/chat/completions"]["POST"], GenerationMode.POSITIVE, CHATS)
    assert len(seen) == 22
    assert chat[200] > CHATS / 10


def test_no_request_against_the_description_is_a_5xx(tmp_path: Path) -> None:
    with scripted() as script, serving(tmp_path, script, per_second=0) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        chat = statuses(schema["/v1/chat/completions"]["POST"], GenerationMode.NEGATIVE, CHATS)
        reply = schema["/api/pending/{trajectory}/{id}"]["POST"]
        statuses(reply, GenerationMode.NEGATIVE, EXAMPLES)
        for path in ("/api/job", "/api/trajectories/{trajectory}/judgements"):
            statuses(schema[path]["POST"], GenerationMode.NEGATIVE, EXAMPLES)
    assert chat[400] > CHATS / 2


def test_the_description_names_every_path_and_what_errors_look_like(tmp_path: Path) -> None:
    with serving(tmp_path) as url:
        told = httpx2.get(f"{url}/openapi.json").json()
    assert set(told["paths"]) == {
        "/healthz", "/metrics", "/v1/models", "/v1/models/{name}", "/v1/chat/completions",
        "/api/trajectories/{trajectory}", "/api/trajectories/{trajectory}/events",
        "/api/pending", "/api/pending/{trajectory}/{id}",
        "/api/trajectories", "/api/trajectory-facets", "/api/trajectories/{trajectory}/node",
        "/api/trajectories/{trajectory}/judgements", "/api/review", "/api/run",
        "/api/evaluations", "/api/evaluations/{name}/failures", "/api/students",
        "/api/students/{student}/promote", "/api/students/rollback", "/api/job",
        "/api/job/choices",
    }  # fmt: skip
    asked = told["components"]["schemas"]["ChatRequest"]
    assert asked["additionalProperties"] is False
    errors = told["paths"]["/v1/chat/completions"]["post"]["responses"]["400"]
    assert errors["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")
