"""What all commands share: help, completion, the run folder, narrow and plain terminals."""

import io
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.main import get_command

import reflux
from reflux.agents.errors import MissingError, UsageError, pip_install
from reflux.cli import contract, help_words, main
from reflux.cli.main import EXAMPLES, app
from reflux.cli.runs import ends, rounds
from reflux.finetune import check_cache_folder
from reflux.finetune.run_folder import RunFolder
from reflux.report.terminal import command, is_animated, say, table_of
from tests.support.commanding import begin
from tests.support.serving import scripted

HEAVY = {"torch", "langgraph", "langchain_core", "transformers", "openai", "rich"}


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that works, by its words."""
    root: Any = get_command(app)
    for name, each in root.commands.items():
        for inner, deeper in getattr(each, "commands", {"": each}).items():
            yield f"{name} {inner}".strip(), deeper


COMMANDS = dict(commands())


def shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints in this process."""
    root: Any = get_command(app)
    root.main(words, prog_name="reflux", standalone_mode=False)
    return capsys.readouterr().out


@pytest.mark.process
def test_help_and_version_import_nothing_heavy() -> None:
    lines = [[*name.split(), "--help"] for name in COMMANDS]
    code = (
        "import sys\nfrom reflux.__main__ import main\n"
        f"for words in {[['--version'], ['-h'], *lines]!r}:\n"
        "    sys.argv = ['reflux', *words]\n"
        "    try:\n        main()\n"
        "    except SystemExit as error:\n        assert not error.code, words\n"
        f"print(*sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.strip()) == (0, "")
    assert ended.stdout.count("Examples:") == len(COMMANDS) + 1
    assert f"reflux {reflux.__version__}\n" in ended.stdout


@pytest.mark.process
def test_a_shell_completes_commands_and_a_reader_of_the_help_may_leave() -> None:
    script = """
    reflux() { $PYTHON -c 'import sys; sys.argv[0] = "reflux"
from reflux.__main__ import main
main()' "$@"; }
    reflux --help | head -1
    test ${PIPESTATUS[0]} = 0 || exit 9
    export _REFLUX_COMPLETE=complete_bash COMP_WORDS='reflux tra' COMP_CWORD=1
    reflux
    """
    env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[0].startswith("Usage: ")
    assert ended.stdout.splitlines()[1] == "traces"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples_and_plain_values(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown([*name.split(), "-h"], capsys)
    assert text == shown([*name.split(), "--help"], capsys)
    assert "\nExamples:\n" in text.replace("\n  ", "\n") and f"reflux {name}" in text
    options = [line.split()[:2] for line in text.splitlines() if line.startswith("  --")]
    odd = [words for words in options if words[1].startswith("<") and "|" not in words[1]]
    assert odd == []


@pytest.mark.parametrize("line", EXAMPLES.split("\n")[1:-1])
def test_every_example_is_a_command(line: str) -> None:
    program, *words = shlex.split(line)
    parser: Any = get_command(app)
    while getattr(parser, "commands", None):
        parser, words = parser.commands[words[0]], words[1:]
    parser.make_context(program, words).close()


@pytest.mark.parametrize(
    ("words", "without_work"),
    [
        ("", ""),
        ("ask --help", "ask --help"),
        ("review X --comment -h", "review X --help"),
        ("traces list --run x -h", "traces list --help"),
        ("ask -- --help", None),
        ("ask help", None),
    ],
)
def test_a_process_that_shows_help_does_no_work(words: str, without_work: str | None) -> None:
    found = help_words(words.split())
    assert found == (None if without_work is None else without_work.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_one_run_folder_is_the_default_of_all(name: str) -> None:
    options = {option.name: option.default for option in COMMANDS[name].params}
    if "run" in options:
        assert options["run"] == (None if name == "plan" else Path("runs/default"))


def test_the_last_run_is_named_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="runs/default holds no run; start one with"):
        contract.open_existing(contract.DEFAULT_RUN)
    for number, name in enumerate(("old", "new")):
        path = RunFolder(Path("runs") / name).traces_path
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (number, number))
    with pytest.raises(UsageError, match="the last one used is runs/new: name it with --run"):
        contract.open_existing(contract.DEFAULT_RUN)


def demo_with(path: Path, **changes: Any) -> Path:
    """The demo's config with changes, in a file."""
    config = rounds.read_config(rounds.shipped_config("demo")).model_copy(update=changes)
    path.write_text(config.model_dump_json())  # JSON is YAML, too.
    return path


@pytest.mark.parametrize("name", ["run", "init"])
def test_without_a_config_nothing_is_trained(name: str, tmp_path: Path) -> None:
    run = tmp_path / "r"
    with pytest.raises(UsageError, match=r"no --config says what to run: .*`reflux demo`"):
        getattr(rounds, name)(run=run)
    assert not run.exists()


@pytest.mark.engine
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "poetry"}, "there is no task 'poetry'"),
        ({"sft": {"max_stepz": 1}}, "sft.max_stepz is unknown to SFTConfig: did you mean max_s"),
        ({"lora": {"rank": 8}}, "lora.rank is unknown to LoraConfig"),
    ],
)
def test_an_invalid_config_begins_no_run(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    run, config = tmp_path / "r", demo_with(tmp_path / "c.yaml", **changes)
    with pytest.raises(UsageError, match=said):
        rounds.run(run=run, config=config)
    assert not run.exists()


def test_the_demo_leaves_another_run_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    config = rounds.read_config(demo_with(tmp_path / "c.yaml", seed=1))
    folder.save_config(config.model_dump(mode="json"))
    for fresh in (False, True):
        with pytest.raises(UsageError, match="holds another run than the demo"):
            rounds.demo(run=folder.path, fresh=fresh)
    assert folder.config() == config


@pytest.mark.parametrize(("task", "hint"), [("addition", '"304+517"'), ("hanoi", "QUESTION")])
def test_what_to_try_next_is_of_the_run_s_task(
    task: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = RunFolder(tmp_path / "a run")
    monkeypatch.setattr(folder.registry, "current", lambda: object())
    monkeypatch.setattr(ends, "rounds_tables", lambda _: ())
    monkeypatch.setattr(ends, "hard_lines", lambda _: ())
    ends.show_reports(folder, task, [{}])
    assert f"Try: reflux ask {hint} --run '{folder.path}'" in capsys.readouterr().out


@pytest.mark.process
def test_a_bare_question_is_asked_of_the_model_and_paths_are_quoted(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    with scripted() as script:
        env = {"OPENAI_BASE_URL": script.url, "OPENAI_API_KEY": "k", "REFLUX_RUN": str(run)}
        asked = begin(["ask", "one two", "--model", "m", "--json"], env).wait()
        waits = begin(["ask", "Why?", "--overseer", "human", "--model", "m"], env).wait()
    assert '"overseer": "model"' in asked.stdout
    assert waits.code == 0, waits.stderr
    assert f'one a line" {command("--run", run)}' in waits.stdout


ROWS = [("0123456789abcdef", "asked", "What is the capital of Peru?", "Lima", "ok", "1")]
HEADINGS = ("trajectory", "by", "question", "answer", "status", "calls")


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
def test_no_column_is_a_letter_wide(width: int) -> None:
    file = io.StringIO()
    Console(file=file, width=width).print(table_of(HEADINGS, ROWS, title="All", notes=["Note."]))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for word in ("All", *ROWS[0][0:2], "capital", "Lima", "Note."):
        assert any(word in line for line in lines), lines
    assert ("trajectory: 0123456789abcdef" in file.getvalue()) == (width < 60)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_gets_what_it_can_show(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    main._open_streams()  # pyright: ignore[reportPrivateUsage]
    say("1 → é ü")
    print("1 → é ü", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    assert written.getvalue().decode(encoding) == "1 → é ü\n".encode(encoding, "replace").decode(
        encoding
    )


@pytest.mark.parametrize(("term", "animated"), [("dumb", False), ("xterm", True)])
def test_a_dumb_terminal_gets_lines(
    term: str, animated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("TERM", term)
    assert is_animated() == animated


def test_a_cache_folder_that_cannot_be_made_is_named_with_its_variable(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(MissingError, match=r"home/cache.*name a writable folder in REFLUX_CACHE"):
        check_cache_folder(tmp_path / "home" / "cache")
    assert check_cache_folder(tmp_path / "cache").is_dir()


def test_an_extra_is_installed_from_where_reflux_was(monkeypatch: pytest.MonkeyPatch) -> None:
    class Installed:
        text: str | None = None

        def read_text(self, _: str) -> str | None:
            return self.text

    monkeypatch.setattr("importlib.metadata.distribution", lambda _: Installed())
    for text, wanted in (
        (None, "pip install 'reflux-ida[train]'"),
        ('{"url": "file:///a%20b", "dir_info": {}}', "pip install '/a b[train]'"),
        ('{"url": "file:///a", "dir_info": {"editable": true}}', "pip install -e '/a[train]'"),
    ):
        Installed.text = text
        assert pip_install("train") == wanted
