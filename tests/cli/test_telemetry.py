"""What leaves a process about its work: spans where they are asked for, and otherwise nothing."""

import gzip
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.support.serving import scripted, soon

pytestmark = pytest.mark.process

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
ASK = """
import sys
from reflux.__main__ import main
sys.argv = ["reflux", "ask", "one and two", "--overseer", "plain", "--model", "far", "--json"]
try:
    main()
finally:
    # LangSmith's client imports the SDK where it is installed, so that tells nothing.
    names = ("opentelemetry.exporter", "opentelemetry.proto")
    print([name for name in names if name in sys.modules], file=sys.stderr)
"""


class Collector:
    """A receiver of OTLP over HTTP, as collectors are."""

    def __init__(self, server: HTTPServer) -> None:
        self.url = server.url_for("")
        self.spans: list[Span] = []
        self.services: set[str] = set()
        server.expect_request("/v1/traces", method="POST").respond_with_handler(self._take)

    def _take(self, request: Request) -> Response:
        assert request.headers["content-type"] == "application/x-protobuf"
        body = request.get_data()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {
                each.value.string_value
                for each in group.resource.attributes
                if each.key == "service.name"
            }
            for scope in group.scope_spans:
                self.spans += scope.spans
        return Response(b"", 200, content_type="application/x-protobuf")


def run(code: str, folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Python to its end, with no variable of any telemetry but those in `env`."""
    with started(code, folder, env) as process:
        out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(code, process.returncode, out, err)


def started(code: str, folder: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Begin it."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "LANGSMITH_", "LANGCHAIN_", "OPENAI_", "REFLUX_"))
    }
    kept["PYTHONPATH"] = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**kept, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_commands_spans_reach_a_collector_over_http_before_it_ends(
    httpserver: HTTPServer, tmp_path: Path
) -> None:
    collector = Collector(httpserver)
    with scripted() as script:
        env = {"OPENAI_BASE_URL": script.url, "OPENAI_API_KEY": "k", ENDPOINT: collector.url}
        ended = run(ASK, tmp_path, {**env, "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"})
    assert ended.returncode == 0, ended.stderr
    by_name = {span.name: span for span in collector.spans}
    assert sorted(by_name) == ["chat far", "invoke_agent script:plain", "invoke_workflow ask"]
    root, call = by_name["invoke_workflow ask"], by_name["chat far"]
    assert not root.parent_span_id
    assert call.parent_span_id == root.span_id and call.trace_id == root.trace_id
    assert collector.services == {"reflux"}
    told = {each.key: each.value for each in call.attributes}
    assert told["gen_ai.usage.input_tokens"].int_value == 10
    assert f":{told['server.port'].int_value}/" in script.url
    assert "one and two" not in str(collector.spans)


def test_without_the_variable_nothing_is_sent_and_no_exporter_is_even_imported(
    httpserver: HTTPServer, tmp_path: Path
) -> None:
    Collector(httpserver)
    with scripted() as script:
        env = {"OPENAI_BASE_URL": script.url, "OPENAI_API_KEY": "k"}
        ended = run(ASK, tmp_path, env)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines()[-1] == "[]"
    assert not httpserver.log


def test_a_missing_extra_ends_a_command_with_one_line_and_its_remedy(tmp_path: Path) -> None:
    code = f"import sys\nsys.modules['opentelemetry.sdk'] = None\n{ASK}"
    ended = run(code, tmp_path, {ENDPOINT: "http://127.0.0.1:9", "OPENAI_BASE_URL": "http://x/v1"})
    assert ended.returncode == 3
    (line, _) = ended.stderr.splitlines()
    assert re.search(r"pip install .*\[otel\]', or unset", line)


def test_a_collector_that_is_away_delays_no_answer_and_breaks_none(tmp_path: Path) -> None:
    with scripted() as script:
        env = {"OPENAI_BASE_URL": script.url, "OPENAI_API_KEY": "k"}
        away = {ENDPOINT: "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
        ended = run(ASK, tmp_path, env | away)
    assert ended.returncode == 0, ended.stderr
    assert '"status": "unchecked"' in ended.stdout


LANGSMITH = """
import reflux
from reflux.agents.clients.scripted import ScriptedClient

def h(question, transcript, may_ask):
    return reflux.Answer("x") if transcript else reflux.Ask.of("a", "b")

found = reflux.amplify_sync(
    "q", reflux.ScriptedOverseer("h", h), client=ScriptedClient(lambda _: "4")
)
assert found.answer == "x"
from langchain_core.tracers.langchain import wait_for_all_tracers
wait_for_all_tracers()
"""


@pytest.mark.parametrize(
    ("env", "sends"),
    [
        ({}, False),
        ({"LANGSMITH_API_KEY": "lsv2_pt_x"}, False),
        ({"LANGSMITH_API_KEY": "lsv2_pt_x", "LANGSMITH_TRACING": "true"}, True),
    ],
)
def test_langsmith_hears_nothing_unless_its_own_variables_say_so(
    httpserver: HTTPServer, tmp_path: Path, env: dict[str, str], sends: bool
) -> None:
    httpserver.expect_request("").respond_with_json({})
    where = {"LANGSMITH_ENDPOINT": httpserver.url_for("").rstrip("/")}
    ended = run(LANGSMITH, tmp_path, {**where, **env})
    assert ended.returncode == 0, ended.stderr
    assert bool(httpserver.log) is sends


TRACE = "a" * 32
"""Of a client that is traced itself."""
SERVE = """
import sys
from reflux.__main__ import main
sys.argv = ["reflux", "serve", "--port", "0", "--model", "far", "--overseer", "plain", "--json"]
main()
"""


def test_a_server_that_is_told_to_end_sends_the_spans_of_its_last_answers_below_the_clients(
    httpserver: HTTPServer, tmp_path: Path
) -> None:
    collector = Collector(httpserver)
    with scripted() as script:
        env = {"OPENAI_BASE_URL": script.url, "OPENAI_API_KEY": "k", ENDPOINT: collector.url}
        with started(SERVE, tmp_path, {**env, "OTEL_BSP_SCHEDULE_DELAY": "60000"}) as server:
            try:
                url = json.loads(_document(server))["url"]
                soon(lambda: _answers(url))  # It prints before it listens.
                for model in ("far", "amplified"):
                    body = {"model": model, "messages": [{"role": "user", "content": "one"}]}
                    reply = httpx2.post(
                        f"{url}/v1/chat/completions",
                        json={**body, "stream": True},
                        headers={"traceparent": f"00-{TRACE}-{'b' * 16}-01"},
                        timeout=120,
                    )
                    assert "[DONE]" in reply.text
                assert not collector.spans
                server.terminate()
                server.wait(timeout=60)
            finally:
                server.kill()
    assert Counter(span.name for span in collector.spans) == {
        "POST /v1/chat/completions": 2,
        "invoke_workflow serve": 2,
        "chat far": 2,
        "invoke_agent script:plain": 1,
    }
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    by_id = {span.span_id: span for span in collector.spans}
    for span in collector.spans:
        above = by_id[span.parent_span_id].name if span.parent_span_id in by_id else "the client"
        assert above == {
            "POST /v1/chat/completions": "the client",
            "invoke_workflow serve": "POST /v1/chat/completions",
        }.get(span.name, "invoke_workflow serve")


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", timeout=60).status_code == 200
    except httpx2.TransportError:
        return False


def _document(server: subprocess.Popen[str]) -> str:
    """What the command prints once it listens."""
    assert server.stdout is not None and server.stderr is not None
    lines: list[str] = []
    while (line := server.stdout.readline()) and line != "}\n":
        lines.append(line)
    if not line:
        pytest.fail(server.stderr.read())
    return "".join([*lines, line])
