"""Evaluations and distillations that the page starts: one at a time, as commands, seen again."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from reflux.finetune.run_folder import RunFolder
from reflux.server.settings import config_endpoints, read_serve_config
from tests.support.browsing import browsing, needs_browser
from tests.support.run_folders import make_run
from tests.support.serving import Scripted, scripted_for_commands, serving, soon

EVALUATION = {"kind": "evaluation", "name": "first", "level": 2, "limit": 3, "task": "addition"}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    """The endpoint of the server and of what it starts."""
    with scripted_for_commands(monkeypatch) as script:
        yield script


def begin(url: str, **body: Any) -> httpx2.Response:
    return httpx2.post(f"{url}/api/job", json=body)


def job(url: str) -> dict[str, Any]:
    return httpx2.get(f"{url}/api/job").json()["job"]


def ended(url: str) -> dict[str, Any]:
    for _ in range(8):
        try:
            soon(lambda: job(url)["state"] != "running")
            break
        except AssertionError:
            continue
    return job(url)


@pytest.mark.browser
@needs_browser[1]
def test_an_evaluation_is_started_on_the_page_and_found_again_after_a_reload(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url, browsing() as seen:
        page = seen.page
        seen.evaluate(url, 3)
        page.reload()
        page.locator(".job").get_by_text("evaluation first").wait_for()
        page.locator(".job .badge").filter(has_text="done").wait_for(timeout=90_000)
        table = page.locator("table").first
        table.filter(has_text="amplified").wait_for()
        assert "0.000" in table.inner_text()
        failure = page.locator(".failures details").first
        failure.locator("summary").click()
        failure.locator(".tree .node").first.wait_for()
        assert seen.errors == []
        assert seen.hosts == {url.removeprefix("http://")}
    assert (tmp_path / "evaluations" / "first" / "eval.html").is_file()


@pytest.mark.browser
@needs_browser[1]
def test_an_answer_edited_on_the_page_is_learned_by_a_student_that_the_page_distills(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url, browsing() as seen:
        asked = {"model": "x", "messages": [{"role": "user", "content": "the sea at night"}]}
        got = httpx2.post(f"{url}/v1/chat/completions", json=asked)
        page = seen.page
        page.goto(f"{url}/#trajectories/{got.headers['x-reflux-trajectory']}")
        page.locator(".tree .node").click()
        page.locator("#drawer").get_by_role("button", name="Edit").click()
        page.get_by_label("Right answer").fill("dark and calm")
        page.get_by_role("button", name="Save").click()
        page.locator(".tree .node").filter(has_text="dark and calm").wait_for()
        page.locator("#tab-students").click()
        page.get_by_text("Start a distillation").click()
        page.get_by_label("Student name").fill("mine")
        page.get_by_label("Maximum steps").fill("1")
        page.get_by_role("button", name="Distill").click()
        page.locator(".job .badge").filter(has_text="done").wait_for(timeout=300_000)
        page.locator(".student").filter(has_text="mine").wait_for()
        assert page.get_by_role("button", name="Promote").count() == 1
        assert seen.errors == []
    student = RunFolder(tmp_path).registry.get("mine")
    assert (student.config["report"]["rows"], student.config["report"]["steps"]) == (1, 1)


@pytest.mark.browser
@needs_browser[1]
def test_endpoints_of_the_servers_config_can_be_evaluated_from_the_page(
    tmp_path: Path, script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.setenv("MY_KEY", "secret")
    config = tmp_path / "serve.yaml"
    where = {"base_url": script.url, "model": "there", "api_key_env": "MY_KEY"}
    config.write_text(yaml.safe_dump({"endpoints": {"far": where}}))
    endpoints = config_endpoints(read_serve_config(config))
    with serving(tmp_path / "run", script, endpoints=endpoints, config=config) as url:
        with browsing() as seen:
            page = seen.page
            page.goto(f"{url}/#evaluation")
            page.get_by_text("Start an evaluation").click()
            page.get_by_label("Name").fill("first")
            page.get_by_label("Questions").fill("3")
            for unwanted in ("direct", "amplified"):
                page.get_by_label(unwanted, exact=True).uncheck()
            page.get_by_label("endpoint:far").check()
            page.get_by_role("button", name="Evaluate").click()
            page.locator(".job .badge").filter(has_text="done").wait_for(timeout=90_000)
            page.locator("table").first.filter(has_text="endpoint:far").wait_for()
            assert seen.errors == []
        assert "secret" not in job(url)["command"]
    assert [body["model"] for body in script.asked] == ["there"] * 3


@pytest.mark.process
def test_one_job_is_under_way_at_a_time_and_can_be_stopped(
    tmp_path: Path, script: Scripted
) -> None:
    script.pause = lambda body: 0.5
    with serving(tmp_path, script) as url:
        assert httpx2.get(f"{url}/api/job").json() == {"job": None}
        assert begin(url, **EVALUATION | {"limit": 500}).status_code == 201
        second = begin(url, **EVALUATION | {"name": "second"})
        assert second.status_code == 400
        assert "evaluation first is running" in second.json()["error"]["message"]
        soon(lambda: script.asked or job(url)["state"] != "running")
        told = httpx2.delete(f"{url}/api/job").json()["job"]
        assert told["state"] == "stopped"
        assert told["command"].startswith("reflux eval --run ")


@pytest.mark.process
def test_a_job_ends_with_its_server(tmp_path: Path, script: Scripted) -> None:
    script.pause = lambda body: 0.5
    with serving(tmp_path, script) as url:
        assert begin(url, **EVALUATION | {"limit": 500}).status_code == 201
    asked = len(script.asked)
    script.pause = lambda body: 0.0
    time.sleep(2)
    assert len(script.asked) == asked


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"systems": ["module:graph"]}, "cannot be evaluated from here"),
        ({"systems": ["endpoint:m@http://evil.example/v1"]}, "cannot be evaluated from here"),
        ({"systems": ["best-of-n"]}, "add amplified"),
        ({"systems": ["student-r9"]}, "cannot be evaluated from here"),
        ({"task": "nothing"}, "there is no task 'nothing'"),
        ({"name": "../out"}, "name"),
        ({"data": "/etc/passwd"}, "data"),
        ({"out": "elsewhere"}, "out"),
        ({"kind": "distillation", "name": "student-r0"}, "choose another name"),
        ({"kind": "distillation", "name": "current.json"}, "cannot name a student"),
    ],
)
def test_what_a_request_may_not_start_is_refused(
    tmp_path: Path, script: Scripted, body: dict[str, Any], why: str
) -> None:
    make_run(tmp_path, ("student-r0",))
    with serving(tmp_path, script) as url:
        got = begin(url, **body if "kind" in body else EVALUATION | body)
        assert got.status_code == 400
        message = got.json()["error"]["message"]
        assert why in message
        assert job(url) is None


@pytest.mark.process
def test_a_distillation_without_rows_says_what_is_missing(tmp_path: Path, script: Scripted) -> None:
    with serving(tmp_path, script) as url:
        got = begin(url, kind="distillation", name="mine", steps=1, learning_rate=0.001)
        assert got.status_code == 201
        told = ended(url)
        assert (told["state"], told["code"]) == ("failed", 2)
        assert any("has no accepted trajectories" in line for line in told["lines"])
        assert "--student mine" in told["command"]
