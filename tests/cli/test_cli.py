"""The commands as a user runs them: output, `--json`, exit codes, one message for bad input."""

import asyncio
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import reflux
from reflux.agents.clients.scripted import ScriptedClient
from reflux.finetune.configs.run import RoundsConfig, RoundSpec
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.finetune.stages import Stages
from reflux.tasks.addition import Addition
from tests.support.commanding import Ended, begin
from tests.support.sums import exact

pytestmark = pytest.mark.process


def run(*words: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> Ended:
    """Run `reflux` in a separate process."""
    before = None if cwd is None else partial(os.chdir, cwd)
    return begin(words, {"COLUMNS": "200", **(env or {})}, before).wait()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the trajectories of two rounds, answered by a script."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "r")
    config = RoundsConfig(
        rounds=(RoundSpec(level=1), RoundSpec(level=2, questions=12, held_out=6)), anchor=2
    )
    folder.save_config(config.model_dump(mode="json"))
    stages = Stages(
        config, Addition(), OpenRun(folder, client=ScriptedClient(exact)), lambda *_: None
    )

    async def record() -> None:
        async with stages.run:
            await stages.amplify(0, "base")
            await stages.amplify(1, "base")

    asyncio.run(record())
    return folder.path


def test_help_names_every_command() -> None:
    """By `python -m reflux`, which nothing has prepared."""
    words = [sys.executable, "-m", "reflux", "--help"]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert shown.returncode == 0
    commands = ("demo", "ask", "init", "run", "distill", "eval", "traces", "students", "doctor")
    for command in commands:
        assert command in shown.stdout


def test_traces_are_listed_shown_and_exported(recorded: Path, tmp_path: Path) -> None:
    listed = json.loads(run("traces", "list", "--run", str(recorded), "--json").stdout)
    amplified = next(t for t in listed if t["system"] == "amplified")
    assert amplified["status"] == "ok"
    assert amplified["calls"] == 2
    shown = run("traces", "show", amplified["id"][:8], "--run", str(recorded))
    assert shown.code == 0
    assert amplified["text"] in shown.stdout
    assert "by base" in shown.stdout
    tree = json.loads(
        run("traces", "show", amplified["id"], "--run", str(recorded), "--json").stdout
    )
    assert [child["status"] for child in tree["children"]] == ["ok", "ok"]
    out = tmp_path / "rows.jsonl"
    exported = run("traces", "export", str(out), "--run", str(recorded), "--json")
    assert json.loads(exported.stdout)["rows"] == len(out.read_text().splitlines()) == 214


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("traces", "list", "--run", "nowhere"), 2, "holds no run"),
        (("ask", "three plus four", "--task", "addition", "--run", "x"), 2, "304+517"),
        (("ask", "", "--task", "addition", "--run", "x"), 2, "304+517"),
        (("ask", "", "--run", "x"), 2, "the question is empty"),
        (("ask", "1+1", "--task", "poetry", "--run", "x"), 2, "addition"),
        (("run", "--config", "missing.yaml", "--run", "x"), 2, "no config"),
        (("students", "promote", "student-r9", "--run", "x"), 2, "holds no run"),
        (("eval", "--systems", "student-r9", "--run", "x", "--limit", "2"), 2, "student-r9"),
        (("distill", "--data", "missing.jsonl", "--run", "x"), 2, "no file"),
        (("eval", "--limit", "0"), 2, "limit"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_bad_input_gets_one_message_and_exit_code(
    tmp_path: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    ended = run(*words, cwd=tmp_path)
    assert ended.code == code, ended.stderr
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_what_was_only_asked_is_listed_in_80_columns_and_export_says_what_it_needs(
    tmp_path: Path,
) -> None:
    folder, out = tmp_path / "asked", tmp_path / "rows.jsonl"
    asked = run("ask", "What now?", "--overseer", "human", "--run", str(folder))
    assert asked.code == 0, asked.stderr
    listed = run("traces", "list", "--run", str(folder), env={"COLUMNS": "80"}).stdout
    assert max(map(len, listed.splitlines())) <= 80
    assert "What now?" in listed
    assert "-1" not in listed
    exported = run("traces", "export", str(out), "--run", str(folder))
    assert exported.code == 0
    assert "export takes accepted trajectories of `reflux run`" in exported.stderr
    assert "with --where recorded calls" in exported.stderr
    assert "0 rows" in exported.stdout


def test_an_endpoint_that_is_down_is_exit_code_3(tmp_path: Path) -> None:
    env = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "x"}
    ended = run("doctor", env=env, cwd=tmp_path)
    assert ended.code == 3
    assert "127.0.0.1:9" in ended.stdout


def test_doctor_finds_everything_and_says_so(tmp_path: Path) -> None:
    ended = run("doctor", "--json", cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    assert {check["what"] for check in json.loads(ended.stdout)} >= {"default model", "endpoint"}


@pytest.mark.engine
def test_ask_answers_a_primitive_on_the_real_engine(tmp_path: Path) -> None:
    """H knows one digit; two digits of the untrained base are answered or refused, never lost."""
    one = run("ask", "3+4", "--task", "addition", "--run", "r", "--json", cwd=tmp_path)
    assert one.code == 0, one.stderr
    assert json.loads(one.stdout)["answer"] == "7"
    options = ("--task", "addition", "--run", "r", "--calls", "6", "--json")
    two = run("ask", "30+41", *options, cwd=tmp_path)
    told = json.loads(two.stdout)
    assert told["spent"]["calls"] <= 6
    assert told["status"] in ("ok", "truncated", "rejected", "over_budget", "failed")
    assert two.code == (0 if told["status"] == "ok" else 1)


def test_public_names() -> None:
    for name in reflux.__all__:
        assert hasattr(reflux, name)
