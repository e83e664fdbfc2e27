"""Recorded calls of any agent: shown, distilled, and asked again."""

import json
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.support.commanding import Ended, begin
from tests.support.families import make_family
from tests.support.recorded import record

pytestmark = pytest.mark.process


def run(*words: str, **env: str) -> Ended:
    return begin(words, {"COLUMNS": "100", **env}).wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run `app`, a tiny base and a config that trains on it."""
    path = tmp_path_factory.mktemp("agent")
    (path / "app").mkdir()
    record(path / "app" / "traces.db", n=6, statuses=("unchecked", "unchecked", None))
    base = make_family("llama", path / "base", max_position_embeddings=2048)
    sft = {"max_steps": 1, "per_device_train_batch_size": 2}
    config = {"base": {"model": str(base), "dtype": "float32", "tools": "text"}, "sft": sft}
    (path / "distill.yaml").write_text(json.dumps(config))
    config["base"] = str(base)
    (path / "plain.yaml").write_text(json.dumps(config))
    (path / "asked.jsonl").write_text('{"question": "Where is b0?", "answer": "on shelf 0"}\n')
    return path


def distill(folder: Path, *words: str) -> Ended:
    config = [] if "--config" in words else ["--config", str(folder / "distill.yaml")]
    return run("distill", "--run", str(folder / "app"), *config, *words)


def test_a_dry_run_says_what_would_be_learned(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "data.html"
    ended = distill(folder, "--where", "score > 0", "--dry-run", "--report", str(page))
    assert ended.code == 0, ended.stderr
    assert "6 rows, 6 with tools" in ended.stdout
    assert "unfinished" in ended.stdout
    text = page.read_text()
    assert "<mark>" in text and "on shelf" in text and "<script" not in text
    words = (
        "--rows",
        "trajectories",
        "--against",
        str(folder / "asked.jsonl"),
        "--balance",
        "node",
    )
    body = json.loads(distill(folder, *words, "--dry-run", "--json").stdout)
    assert body["rows"] == 3
    assert body["left_out"] == {"unfinished": 4, "in the evaluation": 1}
    pieces = body["examples"][0]["pieces"]
    assert [text for text, counts in pieces if counts][1].startswith("on shelf ")
    assert not (folder / "app" / "students").exists()


def test_recorded_calls_make_a_student(folder: Path) -> None:
    ended = distill(folder, "--rows", "calls", "--student", "mine", "--redact")
    assert ended.code == 0, ended.stderr
    assert "left out: 4 unfinished" in ended.stderr
    assert "mine: 8 rows" in ended.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--where", "scor > 1"), "there is no column scor; there are trajectory"),
        (("--where", "score > 9"), "no call is selected"),
        (("--where", "status = 'failed'"), "no call is selected"),
        (("--where", "trajectory NOT IN (SELECT id FROM questions)"), "columns of a call only"),
        (("--rows", "calls", "--balance", "nodes"), "it takes node, outcome, source"),
        (("--rows", "calls", "--balance", "node:0"), "the ratio is a number from 1 on"),
        (("--rows", "calls", "--data", "x.jsonl"), "--data is a file of rows"),
        (("--rows", "calls", "--role", "overseer"), "learns from whole trees"),
        (("--rows", "calls", "--against", "none.jsonl"), "none.jsonl"),
        (("--rows", "calls", "--config", "PLAIN"), "base.tools: text"),
    ],
)
def test_bad_input_is_one_message(folder: Path, words: tuple[str, ...], says: str) -> None:
    words = tuple(word.replace("PLAIN", str(folder / "plain.yaml")) for word in words)
    ended = distill(folder, *words, "--student", "none")
    assert ended.code == 2, ended.stderr
    assert says in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
    assert not (folder / "app" / "students" / "none").exists()


def test_the_columns_are_listed(folder: Path) -> None:
    shown = distill(folder, "--where", "help").stdout
    assert "score" in shown and "Mean of all scores" in shown


def test_recorded_calls_are_asked_again(
    folder: Path, tmp_path: Path, httpserver: HTTPServer
) -> None:
    def reply(request: Request) -> Response:
        body = request.get_json()
        message = {"role": "assistant", "content": "on shelf 0"}
        if body["messages"][-1]["role"] == "user":
            call = {"name": "find", "arguments": '{"of": "b0"}'}
            calls = [{"id": "x", "type": "function", "function": call}]
            message = {"role": "assistant", "content": None, "tool_calls": calls}
            assert body["tools"][0]["function"]["name"] == "find"
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        return Response(
            json.dumps({"choices": [choice], "usage": usage}), content_type="application/json"
        )

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(reply)
    words = ("eval", "--run", str(tmp_path / "own"), "--replay", str(folder / "app"), "--systems",
             "recorded,endpoint:m", "--where", "status = 'unchecked'", "--out", str(tmp_path),
             "--json")  # fmt: skip
    ended = run(*words, OPENAI_BASE_URL=httpserver.url_for("/v1"), OPENAI_API_KEY="x")
    assert ended.code == 0, ended.stderr
    systems = json.loads(ended.stdout)["systems"]
    assert systems["recorded"]["shares"]["exact"]["share"] == 1
    shares = systems["endpoint:m"]["shares"]
    assert (shares["exact"]["share"], shares["exact"]["n"]) == (0.25, 8)
    assert (shares["same tool"]["share"], shares["same arguments"]["share"]) == (1, 0.25)
    lines = (tmp_path / "replay.jsonl").read_text().splitlines()
    assert len(lines) == 16
    ended = run(*words[:-1], "--score", "exact")
    assert ended.code == 2 and "judge:MODEL" in ended.stderr
