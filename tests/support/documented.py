"""Runs what a page of the documentation shows, from top to bottom, as its reader would.

Commands run in separate processes in an empty folder, Python blocks in this process; a block with
a title becomes the file of that name. The scripted endpoint replaces outside endpoints, the real
address replaces that of `reflux serve`, and the newest trajectory's id replaces `ID`. A comment
before a block gives instructions:

    <!-- test: not run, WHY -->      only check that its commands, options and modules exist
    <!-- test: output varies -->     run it, but do not compare its output
    <!-- test: ends with 2 -->       its last command exits with this code
    <!-- test: prints TEXT -->       a Python block's output contains this text
    <!-- test: shorter a.b=1 -->     set these keys of a YAML file, to save minutes
    <!-- test: shorter --limit 4 --> append these words to its commands, for the same reason

In a conversation, lines after `you> ` are typed through a pipe. Addition knows 8 of its 200 sums
by heart, and the engines are compared on few answers, to save minutes.
"""

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from typer.main import get_command

from reflux.cli.main import app
from tests.support.commanding import Ended, Running, begin
from tests.support.serving import Scripted, soon
from tests.support.sums import work_little

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"(?:^<!-- test: (?P<mark>[^>]*) -->\n)?"
    r"^```(?P<language>[a-z]*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
OUTSIDE = re.compile(r"https?://(?!127\.0\.0\.1:8700)[\w.-]+(?::\d+)?/v1")
OURS = "http://127.0.0.1:8700"
SHELL = ("bash", "console")
SECONDS = 900
"""Timeout of one command, on a busy machine."""
FOREIGN = ("docker", "garak", "langgraph", "make", "ollama", "pip", "vllm")
"""Programs that a reader runs but the tests do not; a block with one says why."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    title: str
    text: str
    marks: tuple[str, ...]

    @property
    def runs(self) -> bool:
        """False if the page says that the tests do not run it."""
        return not any(mark.startswith("not run") for mark in self.marks)

    @property
    def varies(self) -> bool:
        """True if its output differs between runs or machines."""
        return "output varies" in self.marks

    def mark_values(self, prefix: str) -> list[str]:
        """The rest of each mark with this prefix."""
        return [mark.removeprefix(prefix) for mark in self.marks if mark.startswith(prefix)]

    def mark_value(self, prefix: str) -> str:
        """The rest of the single mark with this prefix; empty if there is none."""
        return "".join(self.mark_values(prefix))

    @property
    def code(self) -> int:
        """Exit code of its last command."""
        return int(self.mark_value("ends with ") or 0)

    @property
    def commands(self) -> list["Command"]:
        """Its commands with their output; empty for blocks in other languages."""
        commands: list[Command] = []
        if self.language not in SHELL:
            return commands
        for line in self.text.replace("\\\n", " ").splitlines():
            if self.language == "bash" and line.strip() and not line.startswith("#"):
                commands.append(Command(line))
            elif line.startswith("$ "):
                commands.append(Command(line.removeprefix("$ ")))
            elif line.startswith("you> "):
                typed = f"{commands[-1].typed}{line.removeprefix('you> ')}\n"
                commands[-1] = replace(commands[-1], typed=typed)
            elif self.language == "console":
                commands[-1] = replace(commands[-1], output=f"{commands[-1].output}{line}\n")
        return commands


@dataclass(frozen=True)
class Command:
    """A line that a reader types."""

    line: str
    output: str = ""
    typed: str = ""
    """Lines that the reader types into it."""

    @property
    def piped_from(self) -> str:
        """The command before it in a pipe; empty if there is none."""
        return self.line.rpartition(" | ")[0]

    @property
    def env(self) -> dict[str, str]:
        """Variables set before it on the same line."""
        return dict(word.split("=", 1) for word in self._words if _assigns(word))

    @property
    def words(self) -> list[str]:
        """The program and its arguments."""
        words = self._words
        while words and _assigns(words[0]):
            words = words[1:]
        return words

    @property
    def _words(self) -> list[str]:
        words = shlex.split(self.line.removeprefix(f"{self.piped_from} | "), comments=True)
        end = next((index for index, word in enumerate(words) if not _assigns(word)), len(words))
        return words if words[:1] != ["export"] else words[end + 1 :] if end else words


def _assigns(word: str) -> bool:
    return re.match(r"[A-Z_]+=", word) is not None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(
            str(page.relative_to(ROOT)),
            text.count("\n", 0, match.start("language")) + 1,
            match["language"],
            match["title"] or "",
            match["text"],
            tuple(mark.strip() for mark in (match["mark"] or "").split(";") if mark.strip()),
        )
        for match in BLOCK.finditer(text)
    ]


@cache
def known_commands() -> Any:
    """The parser of `reflux`."""
    return get_command(app)


def command_names() -> Iterator[str]:
    """Every command and every group of commands."""
    for name, command in known_commands().commands.items():
        yield name
        for inner in getattr(command, "commands", {}):
            yield f"{name} {inner}"


def module_at(path: Path) -> ModuleType:
    """Load a program that belongs to no package."""
    spec = importlib.util.spec_from_file_location(f"shown_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_known(command: Command) -> None:
    """Check that the commands, options and modules of a command that is not run exist.

    Raises:
        Exception: A command or option does not exist, or a value is out of range.
    """
    program, *words = command.words
    program = Path(program).name
    if program == "reflux":
        parser = known_commands()
        while getattr(parser, "commands", None):
            parser, words = parser.commands[words[0]], words[1:]
        parser.make_context(program, words).close()
    elif program == "python" and words[0] == "-c":
        compile(words[1], "-c", "exec")
    elif program == "python" and words[0] == "-m":
        assert importlib.util.find_spec(words[1]) is not None, command.line
    elif program == "python":
        # `my_…` is the reader's own program.
        assert words[0].startswith("my_") or (ROOT / words[0]).is_file(), command.line
    else:
        assert program in (*FOREIGN, "curl", "export", "cd"), command.line


@dataclass
class Session:
    """A reader who follows one page."""

    folder: Path
    script: Scripted
    env: dict[str, str] = field(default_factory=dict[str, str])
    names: dict[str, object] = field(default_factory=dict[str, object])
    served: Running | None = None
    url: str = OURS
    run: str = "runs/demo"
    """Run folder of the last command."""

    def follow(self, page: Sequence[Block]) -> None:
        """Do everything that a page shows."""
        for block in page:
            try:
                self._do(block)
            except Exception as error:
                raise AssertionError(f"{block.page}:{block.line}: {error}") from error

    def _do(self, block: Block) -> None:
        if block.title and block.language not in SHELL:
            assert block.runs
            file = self.folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(shortened(self._localized(block.text), block.mark_value("shorter ")))
        elif block.language == "python":
            code = compile(self._localized(block.text), block.page, "exec")
            if block.runs:
                self._python(block, code)
        elif block.language in SHELL:
            assert block.commands
            for index, command in enumerate(block.commands):
                if not block.runs:
                    check_known(command)
                    continue
                is_last = index == len(block.commands) - 1
                words = block.mark_value("shorter ")
                command = replace(command, line=f"{command.line} {words}".rstrip())
                output = self._command(command, block.code if is_last else 0)
                if not block.varies:
                    self._compare(command, output)

    def _python(self, block: Block, code: Any) -> None:
        output = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(output):
            exec(code, self.names)  # noqa: S102
        for expected in block.mark_values("prints "):
            assert expected in output.getvalue(), output.getvalue()

    def _command(self, command: Command, code: int) -> str:
        command = replace(command, line=self._localized(command.line))
        if command.line.startswith("export "):
            assignments = shlex.split(command.line, comments=True)[1:]
            self.env |= dict(word.split("=", 1) for word in assignments)
            return ""
        if command.line.startswith("unset "):
            for name in shlex.split(command.line)[1:]:
                self.env.pop(name, None)
            return ""
        program, *words = command.words
        if program == "reflux":
            typed = command.typed
            if command.piped_from:
                typed = subprocess.check_output(["sh", "-c", command.piped_from], text=True)
            ended = self._reflux(words, self.env | command.env, typed)
        else:
            ended = self._foreign(command)
        assert ended.code == code, f"{command.line} ended with {ended.code}: {ended.stderr[-2000:]}"
        return ended.stdout if code == 0 else ended.stderr

    def _reflux(self, words: list[str], env: Mapping[str, str], typed: str) -> Ended:
        if "--run" in words:
            self.run = words[words.index("--run") + 1]
        if any(word.split("/")[0] == "ID" for word in words):
            newest = self._newest()
            words = [re.sub(r"^ID(?=/|$)", newest, word) for word in words]
        # `python` is that of the environment, as after its activation.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**env, "COLUMNS": "100", "PYTHONPATH": str(self.folder), "PATH": path}
        before = partial(_enter, self.folder)
        if words[:1] == ["serve"]:
            self.served = begin([*words, "--port", "0", "--json"], env, before)
            self.url = soon(self._address)
            return Ended(0, "", "")
        return begin(words, env, before, typed).wait(SECONDS)

    def _address(self) -> str:
        assert self.served is not None
        output = self.served.folder / "out"
        assert self.served.process.is_alive(), (self.served.folder / "err").read_text()
        text = output.read_text() if output.is_file() else ""
        if not text.endswith("}\n"):
            return ""
        url: str = json.loads(text)["url"]
        health = subprocess.run(["curl", "-sf", f"{url}/healthz"], capture_output=True)
        return "" if health.returncode else url

    def _newest(self) -> str:
        words = ["traces", "list", "--limit", "1", "--json", "--run", self.run]
        listed = begin(words, self.env, partial(_enter, self.folder)).wait()
        return str(json.loads(listed.stdout)[0]["id"])

    def _foreign(self, command: Command) -> Ended:
        program, *words = command.words
        if command.words == ["source", ".venv/bin/activate"]:
            return Ended(0, "", "")  # Every command runs as after it.
        assert program in ("curl", "python", "cat"), f"the tests cannot run {command.line}"
        if program == "python":
            program, path = sys.executable, str(ROOT)
            words = [str(ROOT / word) if word.startswith("examples/") else word for word in words]
        else:
            path = ""
        env = {**os.environ, **self.env, **command.env, "PYTHONPATH": path}
        process = subprocess.run(
            [program, *words], cwd=self.folder, env=env, capture_output=True, text=True
        )
        return Ended(process.returncode, process.stdout, process.stderr)

    def _localized(self, text: str) -> str:
        """The text with every address replaced by one on this machine."""
        return OUTSIDE.sub(self.script.url, text).replace(OURS, self.url)

    def _compare(self, command: Command, output: str) -> None:
        """Compare the shown output with the real one; `…` stands for anything."""
        shown, real = (" ".join(text.split()) for text in (command.output, output))
        pattern = ".*".join(re.escape(part.strip()) for part in shown.split("…"))
        matched = not shown or re.fullmatch(rf"\s*{pattern}\s*", real, re.DOTALL)
        assert matched, f"{command.line} printed:\n{output}"

    def close(self) -> None:
        """Stop the server if one runs."""
        if self.served is not None:
            os.kill(self.served.process.pid or 0, signal.SIGINT)
            self.served.wait()


def shortened(text: str, keys: str) -> str:
    """Set some keys of a YAML text: `a.0.b=1 c=2`."""
    if not keys:
        return text
    body = yaml.safe_load(text)
    for key in keys.split():
        path, _, value = key.partition("=")
        *parents, last = path.split(".")
        inner = body
        for part in parents:
            inner = inner[int(part)] if isinstance(inner, list) else inner.setdefault(part, {})
        inner[last] = yaml.safe_load(value)
    return yaml.safe_dump(body)


def _enter(folder: Path) -> None:
    work_little()
    os.chdir(folder)
    sys.path.insert(0, str(folder))


@contextlib.contextmanager
def session(folder: Path, script: Scripted) -> Iterator[Session]:
    """A reader in an empty folder, for the length of a `with` block."""
    reader = Session(folder, script)
    sys.path.insert(0, str(folder))
    try:
        yield reader
    finally:
        sys.path.remove(str(folder))
        reader.close()
