"""Commands against odd endpoints, in this process: exit codes, one message, what is shown."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.endpoint_behaviors import BEHAVIORS, serve
from tests.support.endpoint_server import Asked, Reply, Served, serving

CUT = "--max-tokens"


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Any]:
    """Runs `reflux WORDS` here: (exit code, stdout, stderr)."""
    from reflux.cli.main import run

    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("OPENAI_", "REFLUX_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("REFLUX_RETRIES", "0")

    def command(*words: str, **variables: str) -> tuple[int, str, str]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.argv", ["reflux", *words])
        with pytest.raises(SystemExit) as ended:
            run()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    yield command


def ask(command: Any, served: Served, *words: str) -> tuple[int, dict[str, Any], str]:
    """`reflux ask --json` at a server; the answer is undivided."""
    code, out, err = command(
        "ask", "Capital of Peru?", "--overseer", "plain", "--model", "m", "--json", *words,
        OPENAI_BASE_URL=served.url, OPENAI_API_KEY="key",
    )  # fmt: skip
    return code, json.loads(out) if out.strip() else {}, err


ANSWERED = (
    "think block", "think block without its opening tag", "harmony channels", "thinking part",
    "field reasoning_content", "a reasoning model of OpenAI",
    "content as parts", "seed is forbidden",
)  # fmt: skip
REFUSED = (
    "401", "403", "402", "429 without quota", "404 for the model", "page with 200",
    "Retry-After 86400", "too long for OpenAI", "400 with detail list",
)  # fmt: skip


@pytest.mark.parametrize("name", ANSWERED)
def test_an_answer_comes_without_reasoning(command: Any, name: str) -> None:
    behavior = BEHAVIORS[name]
    with serve(behavior) as served:
        code, body, _ = ask(command, served)
    assert (code, body["answer"], body["status"]) == (0, behavior.text, "unchecked")
    assert body["tree"]["reasoning"] == behavior.reasoning
    assert behavior.notes in " ".join(body["tree"]["call_notes"])


@pytest.mark.parametrize(
    "name", ["unclosed block", "null content, cut", "empty content, cut", "cut answer"]
)
def test_a_cut_answer_is_truncated_and_names_the_limit(command: Any, name: str) -> None:
    with serve(BEHAVIORS[name]) as served:
        code, body, err = ask(command, served)
    assert (code, body["status"]) == (1, "truncated")
    assert CUT in err and err.count("\n") == 1


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_one_message_and_ends_once(command: Any, name: str) -> None:
    with serve(BEHAVIORS[name]) as served:
        code, _, err = ask(command, served)
    assert code == 3
    assert err.count("\n") == 1 and "Traceback" not in err
    assert len(served.requests) == 1


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("think block without its opening tag", 0, "Lima\n"),
        ("broken stream", 3, ""),
        ("null content", 1, "no accepted answer (rejected); /why shows its tree\n"),
        ("cut answer", 1, f"Lima is\nthe token limit cut this answer: raise {CUT}\n"),
    ],
)
def test_a_pipe_gets_whole_answers_of_an_agent_alone(
    command: Any, monkeypatch: pytest.MonkeyPatch, name: str, code: int, told: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Capital of Peru?\n"))
    with serve(BEHAVIORS[name]) as served:
        ended, out, _ = command(
            "chat", "--overseer", "none", "--model", "m", OPENAI_BASE_URL=served.url
        )
    assert (ended, out) == (code, told)


@pytest.mark.parametrize("name", ["401", "404 for the model", "429 without quota"])
def test_a_run_of_questions_stops_at_the_first_refusal(
    command: Any, tmp_path: Path, name: str
) -> None:
    rows = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(8)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with serve(BEHAVIORS[name]) as served:
        code, _, err = command(
            "eval", "--data", "q.jsonl", "--systems", "direct,amplified", "--model", "m",
            OPENAI_BASE_URL=served.url,
        )  # fmt: skip
    assert code == 3 and "Traceback" not in err
    assert len(served.requests) == 1


def test_options_reach_the_endpoint(command: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.env").write_text("OPENAI_API_KEY=secret-of-the-file\n")
    with serve(BEHAVIORS["think block"]) as served:
        code, out, _ = command(
            "ask", "Capital of Peru?", "--overseer", "model", "--json", "--model",
            f"endpoint:m@{served.url}", "--thinking", "off", "--max-tokens", "77",
            "--extra-body", '{"top_k": 3}', "--env-file", "mine.env",
        )  # fmt: skip
    assert code == 0, out
    for asked in served.requests:
        assert asked.headers["authorization"] == "Bearer secret-of-the-file"
        assert asked.body["chat_template_kwargs"]["enable_thinking"] is False
        assert (asked.body["top_k"], asked.body["max_tokens"]) == (3, 77)
    notes = json.loads(out)["tree"]["call_notes"]
    assert "the model reasons although --thinking is off" in notes
    assert "REFLUX_THINKING" not in os.environ


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["ask", "q", "--extra-body", "[1]"], "--extra-body"),
        (["ask", "q", "--extra-body", "{oops"], "--extra-body"),
        (["ask", "q", "--env-file", "none.env"], "--env-file none.env"),
        (["ask", "q", "--overseer", "plain", "--model", "llama3.2:1b"], "endpoint:llama3.2:1b@"),
        (["eval", "--systems", "llama3.2:1b"], "endpoint:llama3.2:1b@"),
    ],
)
def test_wrong_options_are_one_message(command: Any, words: list[str], wanted: str) -> None:
    variables = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"} if "extra" in str(words) else {}
    code, _, err = command(*words, *(["--model", "m"] if variables else []), **variables)
    assert code == 2 and wanted in err and err.count("\n") == 1


def test_an_unread_env_file_is_said(command: Any, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OPENAI_BASE_URL=http://127.0.0.1:9/v1\n")
    _, _, err = command("ask", "q", "--overseer", "plain", "--model", "nobody")
    assert "--env-file .env" in err


def test_doctor_tells_what_an_endpoint_refuses(command: Any) -> None:
    behavior = BEHAVIORS["a reasoning model of OpenAI"]
    with serving(behavior.respond, models=("m", "other")) as served:
        _, out, _ = command("doctor", "--model", "m", "--json", OPENAI_BASE_URL=served.url)
    (check,) = [check for check in json.loads(out) if check["what"] == "endpoint"]
    assert "m, other" in check["detail"]
    assert "max_tokens is sent as max_completion_tokens" in check["detail"]
    assert "log-probabilities are unknown" in check["detail"]


def test_a_reply_asks_where_and_how_its_question_was_asked(command: Any, tmp_path: Path) -> None:
    with serve(BEHAVIORS["think block"]) as served:
        code, out, _ = command(
            "ask", "Capital of Peru?", "--overseer", "human", "--json", "--thinking", "off",
            "--model", f"endpoint:m@{served.url}", "--extra-body", '{"top_k": 3}',
        )  # fmt: skip
        assert code == 0 and not served.requests
        id = json.loads(out)["trajectory"]
        code, out, err = command("reply", id, "pass", "--json")
        assert code == 0, err
        assert json.loads(out)["answer"] == "Lima"
        (body,) = served.bodies
        assert body["top_k"] == 3 and body["chat_template_kwargs"]["enable_thinking"] is False


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://elsewhere.example/v1", "set OPENAI_BASE_URL to that, and OPENAI_API_KEY"),
        ("http://ann:secret@elsewhere.example/v1", "set OPENAI_BASE_URL"),
    ],
)
def test_a_key_is_not_sent_to_an_address_of_the_record(command: Any, url: str, says: str) -> None:
    ask = ("ask", "q?", "--overseer", "human", "--json", "--model", f"endpoint:m@{url}")
    code, out, err = command(*ask)
    assert code == 0, err
    id = json.loads(out)["trajectory"]
    code, _, err = command("reply", id, "pass", OPENAI_API_KEY="key")
    assert code == 2 and says in err and err.count("\n") == 1
    assert not any(b"ann:secret" in file.read_bytes() for file in Path("runs").rglob("*.db*"))


def test_code_of_the_users_that_sets_variables_moves_no_model(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    (tmp_path / "app.py").write_text(
        "import os\nos.environ['OPENAI_BASE_URL'] = 'http://127.0.0.1:9/v1'\n"
        "graph = lambda question: 'Lima'\n"
    )
    (tmp_path / "q.jsonl").write_text('{"question": "Capital of Peru?", "answer": "Lima"}\n')
    with serve(BEHAVIORS["think block"]) as served:
        systems = f"app.py:graph,endpoint:m@{served.url}"
        words = ("eval", "--data", "q.jsonl", "--systems", systems, "--json")
        code, out, err = command(*words, "--price", "n=1,1", "--price", "m=1,1")
    assert code == 0, err
    body = json.loads(out)
    assert [each["accuracy"] for each in body["systems"].values()] == [1, 1]
    assert body["hints"] == [
        "--price n: no answer called a model of that name, but app.py:graph, m"
    ]


def test_a_graph_that_changes_the_folder_moves_no_report(command: Any, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import os\ndef graph(question):\n    os.chdir('/')\n    return 'Lima'\n"
    )
    (tmp_path / "q.jsonl").write_text('{"question": "Capital of Peru?", "answer": "Lima"}\n')
    words = ("eval", "--data", "q.jsonl", "--systems", "app.py:graph", "--out", "report")
    code, _, err = command(*words)
    assert code == 0, err
    assert (tmp_path / "report" / "eval.json").is_file()


SUBS = {"step": {"ask": [{"question": "Peru?", "needs": []}, {"question": "Chile?", "needs": []}]}}
DEMO = {
    "question": "Which is older, Rome or Oslo?",
    "ask": ["Rome?", "Oslo?"],
    "answers": ["a", "b"],
}


def divides(asked: Asked) -> Reply:
    """An overseer that divides in JSON alone, and copies that say Lima."""
    says_form = "split questions" in asked.body["messages"][0]["content"]
    is_json = "JSON" in asked.body["messages"][0]["content"]
    text = json.dumps(SUBS) if says_form and is_json else "Lima"
    message = {"role": "assistant", "content": text}
    return Reply({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


def test_demonstrations_are_the_examples_of_the_overseer_and_on_record(
    command: Any, tmp_path: Path
) -> None:
    demos = tmp_path / "demos.jsonl"
    demos.write_text(json.dumps(DEMO) + "\n")
    words = ("--overseer", "model", "--demos", "demos.jsonl", "--model", "m", "--json")
    with serving(divides) as served:
        code, out, err = command("ask", "Peru or Chile?", *words, OPENAI_BASE_URL=served.url)
        assert code == 0, err
        assert served.bodies[0]["messages"][-1]["content"] == "Peru or Chile?"  # Undivided.
        first = served.bodies[1]["messages"]
        assert [DEMO["question"] in turn["content"] for turn in first].count(True) == 1
        assert len(first) == 4  # Instructions, one example, the question.
        node = f"{json.loads(out)['trajectory']}/1.0.0"
        before = len(served.requests)
        code, _, err = command("review", node, "--edit", "Cusco")
        assert code == 0, err
        again = served.bodies[before:]
        assert again and all("Cusco" in body["messages"][-1]["content"] for body in again)
        demos.write_text(json.dumps(DEMO | {"ask": ["a?", "b?"]}) + "\n")
        code, _, err = command("review", node, "--edit", "Arequipa")
        assert code == 2 and "was changed since the question was asked" in err
        assert err.count("\n") == 1
        code, out, err = command("demos", "make", "--unchecked", "--out", "own.jsonl", "--json")
        assert code == 0, err
        assert json.loads(out)["demonstrations"] == 1
        assert json.loads((tmp_path / "own.jsonl").read_text())["ask"] == ["Peru?", "Chile?"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["ask", "q?", "--overseer", "plain"], "--demos are for the overseer model"),
        (["ask", "1+1", "--task", "addition"], "--demos needs --overseer model"),
        (["chat", "--overseer", "none"], "--demos needs --overseer model"),
        (["eval", "--task", "addition"], "--demos needs --data"),
        (["eval", "--data", "q.jsonl", "--overseer", "plain"], "--demos are for the overseer"),
        (["serve", "--overseer", "human", "--port", "0"], "--demos are for the overseer model"),
        (["ask", "q?", "--demos", "none.jsonl"], "no such file"),
        (["demos", "make", "--out", "x.jsonl"], "holds no run"),
        (
            ["demos", "make", "--task", "addition", "--level", "3", "--out", "none/x.jsonl"],
            "there is no folder",
        ),
    ],
)
def test_demonstrations_for_another_overseer_are_one_message(
    command: Any, tmp_path: Path, words: list[str], wanted: str
) -> None:
    (tmp_path / "demos.jsonl").write_text(json.dumps(DEMO) + "\n")
    (tmp_path / "q.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    more = [] if {"--demos", "demos"} & {*words} else ["--demos", "demos.jsonl"]
    code, _, err = command(*words, *more)
    assert code == 2 and wanted in err and err.count("\n") == 1


def test_doctor_says_in_which_form_a_model_divides(command: Any) -> None:
    with serving(divides) as served:
        _, out, _ = command(
            "doctor", "--probe", "--model", "m", "--json", OPENAI_BASE_URL=served.url
        )
    (check,) = [check for check in json.loads(out) if check["what"] == "as an overseer"]
    assert check["detail"].startswith("m divides 0 of 2 questions in JSON, 0 in lines")


@pytest.mark.parametrize(
    ("status", "text", "checked", "says"),
    [
        (200, "", ["endpoint", "as an overseer"], "replies with nothing"),
        (401, "", ["endpoint"], "401"),  # It is not asked again what it has refused.
    ],
)
def test_doctor_tells_of_an_endpoint_that_says_nothing(
    command: Any, status: int, text: str, checked: list[str], says: str
) -> None:
    def respond(_: Asked) -> Reply:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        return Reply({"choices": [choice | {"finish_reason": "stop"}]}, status)

    with serving(respond) as served:
        words = ("doctor", "--probe", "--model", "m", "--json")
        _, out, _ = command(*words, OPENAI_BASE_URL=served.url)
    checks = {check["what"]: check["detail"] for check in json.loads(out)}
    assert [what for what in checks if what in ("endpoint", "as an overseer")] == checked
    assert says in checks["endpoint"]
