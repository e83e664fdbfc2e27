"""Runs what a page of the documentation shows, from top to bottom, as its reader would.

Commands run in processes of their own in an empty folder, Python blocks in this one, and a block
with a title is the file of that name. Outside endpoints are replaced by the scripted one, the
address of `reflux serve` by the one it got, and `ID` by the newest trajectory's. A comment before
a block says what else there is to know of it:

    <!-- test: not run, WHY -->      its commands are checked for what they name, and no more
    <!-- test: output varies -->     it runs, but what it prints is not compared
    <!-- test: ends with 2 -->       its last command does so
    <!-- test: prints TEXT -->       a Python block's output has this in it
    <!-- test: shorter a.b=1 -->     these keys of a YAML file are others here, to save minutes
    <!-- test: shorter --limit 4 --> its commands have these words, too, for the same reason

In a conversation, lines after `you> ` are typed, by a pipe.
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
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from typer.main import get_command

from reflux.cli.main import app
from tests.support.commanding import Ended, Running, begin
from tests.support.serving import Scripted, soon

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
"""For one command, on a machine that does other work."""
FOREIGN = ("docker", "langgraph", "make", "ollama", "pip", "vllm")
"""Programs that a reader runs and the tests do not; a block with one says why."""


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
        """False where the page says that it is not run here."""
        return not any(mark.startswith("not run") for mark in self.marks)

    @property
    def varies(self) -> bool:
        """What it prints is another thing each time, or on each machine."""
        return "output varies" in self.marks

    def each(self, begins: str) -> list[str]:
        """What follows in the marks that begin so."""
        return [mark.removeprefix(begins) for mark in self.marks if mark.startswith(begins)]

    def told(self, begins: str) -> str:
        """What follows in the one mark that begins so; empty where there is none."""
        return "".join(self.each(begins))

    @property
    def code(self) -> int:
        """How its last command ends."""
        return int(self.told("ends with ") or 0)

    @property
    def commands(self) -> list["Command"]:
        """Its commands, each with what it prints; none of another language."""
        found: list[Command] = []
        if self.language not in SHELL:
            return found
        for line in self.text.replace("\\\n", " ").splitlines():
            if self.language == "bash" and line.strip() and not line.startswith("#"):
                found.append(Command(line))
            elif line.startswith("$ "):
                found.append(Command(line.removeprefix("$ ")))
            elif line.startswith("you> "):
                typed = f"{found[-1].typed}{line.removeprefix('you> ')}\n"
                found[-1] = replace(found[-1], typed=typed)
            elif self.language == "console":
                found[-1] = replace(found[-1], output=f"{found[-1].output}{line}\n")
        return found


@dataclass(frozen=True)
class Command:
    """A line that a reader types."""

    line: str
    output: str = ""
    typed: str = ""
    """What the reader says to it."""

    @property
    def fed_by(self) -> str:
        """What comes before it in a pipe; empty where nothing does."""
        return self.line.rpartition(" | ")[0]

    @property
    def env(self) -> dict[str, str]:
        """Variables that are set before it."""
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
        words = shlex.split(self.line.removeprefix(f"{self.fed_by} | "), comments=True)
        ends = next((at for at, word in enumerate(words) if not _assigns(word)), len(words))
        return words if words[:1] != ["export"] else words[ends + 1 :] if ends else words


def _assigns(word: str) -> bool:
    return re.match(r"[A-Z_]+=", word) is not None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(
            str(page.relative_to(ROOT)),
            text.count("\n", 0, found.start("language")) + 1,
            found["language"],
            found["title"] or "",
            found["text"],
            tuple(mark.strip() for mark in (found["mark"] or "").split(";") if mark.strip()),
        )
        for found in BLOCK.finditer(text)
    ]


def leaves() -> Iterator[str]:
    """Every command, and the groups that hold them."""
    known: Any = get_command(app)
    for name, command in known.commands.items():
        yield name
        for inner in getattr(command, "commands", {}):
            yield f"{name} {inner}"


def module_at(path: Path) -> ModuleType:
    """A program that is no part of a package."""
    spec = importlib.util.spec_from_file_location(f"shown_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_known(command: Command) -> None:
    """Hold a command that is not run against what there is: commands, options, modules.

    Raises:
        Exception: there is no such command or option, or a value is out of range.
    """
    program, *words = command.words
    if program == "reflux":
        known: Any = get_command(app)
        while getattr(known, "commands", None):
            known, words = known.commands[words[0]], words[1:]
        known.make_context(program, words).close()
    elif program == "python" and words[0] == "-c":
        compile(words[1], "-c", "exec")
    elif program == "python" and words[0] == "-m":
        assert importlib.util.find_spec(words[1]) is not None, command.line
    elif program == "python":
        assert (ROOT / words[0]).is_file(), command.line
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
        """Do all that a page shows."""
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
            file.write_text(shorter(self._inside(block.text), block.told("shorter ")))
        elif block.language == "python":
            code = compile(self._inside(block.text), block.page, "exec")
            if block.runs:
                self._python(block, code)
        elif block.language in SHELL:
            assert block.commands
            for at, command in enumerate(block.commands):
                if not block.runs:
                    check_known(command)
                    continue
                last = at == len(block.commands) - 1
                more = block.told("shorter ")
                command = replace(command, line=f"{command.line} {more}".rstrip())
                said = self._command(command, block.code if last else 0)
                if not block.varies:
                    self._compare(command, said)

    def _python(self, block: Block, code: Any) -> None:
        printed = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(printed):
            exec(code, self.names)  # noqa: S102
        for expected in block.each("prints "):
            assert expected in printed.getvalue(), printed.getvalue()

    def _command(self, command: Command, code: int) -> str:
        command = replace(command, line=self._inside(command.line))
        if command.line.startswith("export "):
            told = shlex.split(command.line, comments=True)[1:]
            self.env |= dict(word.split("=", 1) for word in told)
            return ""
        if command.line.startswith("unset "):
            for name in shlex.split(command.line)[1:]:
                self.env.pop(name, None)
            return ""
        program, *words = command.words
        if program == "reflux":
            typed = command.typed
            if command.fed_by:
                typed = subprocess.check_output(["sh", "-c", command.fed_by], text=True)
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
        # As in an activated environment, where `python` is its own.
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
        said = self.served.folder / "out"
        assert self.served.process.is_alive(), (self.served.folder / "err").read_text()
        text = said.read_text() if said.is_file() else ""
        if not text.endswith("}\n"):
            return ""
        url: str = json.loads(text)["url"]
        up = subprocess.run(["curl", "-sf", f"{url}/healthz"], capture_output=True)
        return "" if up.returncode else url

    def _newest(self) -> str:
        words = ["traces", "list", "--limit", "1", "--json", "--run", self.run]
        listed = begin(words, self.env, partial(_enter, self.folder)).wait()
        return str(json.loads(listed.stdout)[0]["id"])

    def _foreign(self, command: Command) -> Ended:
        program, *words = command.words
        assert program in ("curl", "python", "cat"), f"who runs {command.line}?"
        if program == "python":
            program, path = sys.executable, str(ROOT)
            words = [str(ROOT / word) if word.startswith("examples/") else word for word in words]
        else:
            path = ""
        env = {**os.environ, **self.env, **command.env, "PYTHONPATH": path}
        done = subprocess.run(
            [program, *words], cwd=self.folder, env=env, capture_output=True, text=True
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def _inside(self, text: str) -> str:
        """The text with addresses of this machine alone."""
        return OUTSIDE.sub(self.script.url, text).replace(OURS, self.url)

    def _compare(self, command: Command, said: str) -> None:
        """What a page shows is what was printed; `…` stands for anything."""
        shown, printed = (" ".join(text.split()) for text in (command.output, said))
        pattern = ".*".join(re.escape(part.strip()) for part in shown.split("…"))
        matched = not shown or re.fullmatch(rf"\s*{pattern}\s*", printed, re.DOTALL)
        assert matched, f"{command.line} printed:\n{said}"

    def close(self) -> None:
        """End what was left to run."""
        if self.served is not None:
            os.kill(self.served.process.pid or 0, signal.SIGINT)
            self.served.wait()


def shorter(text: str, keys: str) -> str:
    """A YAML file with some of its keys set: `a.0.b=1 c=2`."""
    if not keys:
        return text
    body = yaml.safe_load(text)
    for key in keys.split():
        path, _, value = key.partition("=")
        *above, last = path.split(".")
        inner = body
        for part in above:
            inner = inner[int(part)] if isinstance(inner, list) else inner.setdefault(part, {})
        inner[last] = yaml.safe_load(value)
    return yaml.safe_dump(body)


def _enter(folder: Path) -> None:
    os.chdir(folder)
    sys.path.insert(0, str(folder))


@contextlib.contextmanager
def session(folder: Path, script: Scripted) -> Iterator[Session]:
    """A reader in an empty folder, for the length of a block."""
    reader = Session(folder, script)
    sys.path.insert(0, str(folder))
    try:
        yield reader
    finally:
        sys.path.remove(str(folder))
        reader.close()
