"""Attacks on the page's own API: names, files and processes as no form would send or leave them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import yaml

from reflux.agents.errors import UsageError
from reflux.finetune.run_folder import RunFolder
from tests.support.run_folders import make_run
from tests.support.serving import Scripted, scripted_for_commands, serving, soon


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    """The endpoint of the server and of what it starts."""
    with scripted_for_commands(monkeypatch) as script:
        yield script


def message(got: httpx2.Response) -> str:
    return got.json()["error"]["message"]


@pytest.mark.parametrize("name", ["x" * 300, "current.json", "student-r0.evaluation.json"])
def test_no_student_can_have_a_name_that_no_folder_can_have_or_that_the_registry_needs(
    tmp_path: Path, name: str
) -> None:
    registry = make_run(tmp_path, ("student-r0",)).registry
    with pytest.raises(UsageError, match="cannot name a student"), registry.staging(name):
        pass
    with serving(tmp_path) as url:
        got = httpx2.post(f"{url}/api/students/{name}/promote")
        assert (got.status_code, "cannot name a student" in message(got)) == (400, True)
        asked = {"model": name, "messages": [{"role": "user", "content": "hello"}]}
        assert httpx2.post(f"{url}/v1/chat/completions", json=asked).status_code == 404


@pytest.mark.parametrize("name", ["base", "student", "amplified", "direct"])
def test_no_student_can_have_a_name_under_which_another_would_answer(
    tmp_path: Path, name: str
) -> None:
    registry = RunFolder(tmp_path).registry
    with pytest.raises(UsageError, match="means something else"), registry.staging(name):
        pass
    with serving(tmp_path) as url:
        got = httpx2.post(f"{url}/api/job", json={"kind": "distillation", "name": name})
        assert (got.status_code, "means something else" in message(got)) == (400, True)


def test_promotions_at_the_same_time_are_made_one_after_the_other(tmp_path: Path) -> None:
    make_run(tmp_path)
    with serving(tmp_path) as url, ThreadPoolExecutor(8) as threads:
        got = threads.map(
            lambda i: httpx2.post(f"{url}/api/students/student-r{i % 2}/promote"), range(16)
        )
        assert {each.status_code for each in got} == {200}
    assert len(RunFolder(tmp_path).registry.list()) == 2


def test_a_distillation_that_is_refused_leaves_the_config_of_the_one_under_way(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url:
        asked = {"kind": "distillation", "name": "mine", "steps": 1}
        first = httpx2.post(f"{url}/api/job", json=asked)
        second = httpx2.post(f"{url}/api/job", json=asked | {"steps": 99})
        assert (first.status_code, second.status_code) == (201, 400)
        config = yaml.safe_load((tmp_path / "distillations" / "mine.yaml").read_text())
        assert config["sft"]["max_steps"] == 1


@pytest.mark.process
def test_a_job_ends_with_a_server_that_is_killed(tmp_path: Path, script: Scripted) -> None:
    script.pause = lambda body: 60.0  # It says nothing by which it would notice.
    command = [sys.executable, "-m", "reflux", "serve", "--run", str(tmp_path), "--port", "0"]
    command += ["--model", "x", "--overseer", "plain", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    told = "".join(server.stdout.readline() for _ in range(4))  # One field a line.
    url = json.loads(told)["url"]
    asked = {"kind": "evaluation", "name": "long", "limit": 500, "task": "addition"}
    assert httpx2.post(f"{url}/api/job", json=asked).status_code == 201
    for _ in range(3):  # Of ten seconds each: what it imports takes a while.
        try:
            soon(lambda: script.asked)
            break
        except AssertionError:
            continue
    (job,) = _children(server.pid)
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    soon(lambda: not Path(f"/proc/{job}/stat").exists() or _ended(job))


def _children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]


def _ended(process: int) -> bool:
    """Also where nobody has taken note of it yet."""
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


@pytest.mark.parametrize("path", ["abc", "~1", "~1/0.0.0", "/0.0.0/", "/../x", "/\x00"])
def test_a_judgement_names_a_node_of_its_own_trajectory_and_nothing_else(
    tmp_path: Path, script: Scripted, path: str
) -> None:
    with serving(tmp_path, script) as url:
        asked = {"model": "amplified", "messages": [{"role": "user", "content": "a and b"}]}
        got = httpx2.post(f"{url}/v1/chat/completions", json=asked)
        where = f"{url}/api/trajectories/{got.headers['x-reflux-trajectory']}/judgements"
        said = {"action": "edit", "path": path, "answer": "c"}
        refused = httpx2.post(where, json=said)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "path")


@pytest.mark.parametrize("text", ["[]", "null", "3", "{", "\x00"])
def test_an_evaluation_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "evaluations" / "one"
    folder.mkdir(parents=True)
    (folder / "eval.json").write_text(text)
    (folder / "eval.jsonl").write_text(text)
    with serving(tmp_path) as url:
        (listed,) = httpx2.get(f"{url}/api/evaluations").json()["evaluations"]
        assert listed["name"] == "one"
        assert str(folder) in listed["error"]
        failures = httpx2.get(f"{url}/api/evaluations/one/failures")
        assert (failures.status_code, str(folder) in message(failures)) == (400, True)


def test_an_evaluation_has_the_name_of_its_folder_whatever_its_file_says(tmp_path: Path) -> None:
    folder = tmp_path / "evaluations" / "one"
    folder.mkdir(parents=True)
    (folder / "eval.json").write_text(
        json.dumps({"name": "other", "created": "now", "systems": {}, "differences": []})
    )
    with serving(tmp_path) as url:
        (found,) = httpx2.get(f"{url}/api/evaluations").json()["evaluations"]
        assert (found["name"], type(found["created"])) == ("one", float)


def test_a_student_of_an_earlier_reflux_whose_name_is_taken_now_is_listed(tmp_path: Path) -> None:
    folder = make_run(tmp_path, ("student-r0",))
    card = folder.registry.root / "student-r0" / "student.json"
    card.write_text(card.read_text().replace('"id": "student-r0"', '"id": "direct"'))
    card.parent.rename(folder.registry.root / "direct")
    (folder.registry.root / "current.json").unlink()
    with serving(tmp_path) as url:
        (found,) = httpx2.get(f"{url}/api/students").json()["students"]
        assert found["id"] == "direct"
