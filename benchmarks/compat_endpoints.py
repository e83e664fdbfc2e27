"""Commands against every behavior of an endpoint that the tests know, as their users see it.

One server says what each behavior says, under a separate path for each command, so that no
command profits from what another has learned. Each command is a process; `reflux serve` is one
process, for which each behavior is a model.
"""

import json
import os
import signal
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.compat_verdict import SERVE, STREAM, Case, Seen
from tests.support.commanding import Ended, begin
from tests.support.endpoint_behaviors import BEHAVIORS, Behavior
from tests.support.endpoint_says import ANSWER, says
from tests.support.endpoint_server import Asked, Reply, serving
from tests.support.serving import served_url

LOADED = ("reflux.cli.main", "tests.support.commanding")
"""What the processes of the commands have imported when they start."""
SECONDS = 60.0
"""A command that takes longer hangs."""
WORKERS = 3
QUESTION = "What is the capital of Peru?"
TALK = (
    ("system", "Answer briefly."),
    ("user", "What is the capital of Chile?"),
    ("assistant", "Santiago"),
    ("user", "And of Peru?"),
)
TOOLS = '''"""Tools that the endpoints call."""


def add(a: int) -> str:
    """Adds one."""
    return f"added {a}"


def mul(b: int) -> str:
    """Multiplies by two."""
    return f"multiplied {b}"
'''
LATE = "think block without its opening tag"
"""Its reasoning cannot be told from an answer before its first reply has ended: a stream is judged
by its second reply."""


class Endpoints:
    """A server that says what every behavior says."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: defaultdict[str, list[Asked]] = defaultdict(list)
        self.refused: set[str] = set()
        """Places where a reply had an error's status."""
        self._behaviors: dict[str, Behavior] = {}

    @contextmanager
    def open(self) -> Iterator["Endpoints"]:
        """Serve until the block ends."""
        with serving(self._respond) as served:
            self.url = served.url.removesuffix("/v1")
            yield self

    def place(self, behavior: Behavior, command: str) -> str:
        """The place of a behavior for one command."""
        place = f"{list(BEHAVIORS).index(behavior.name)}-{command}"
        self._behaviors[place] = behavior
        return place

    def address(self, place: str) -> str:
        """The base URL of a place."""
        return f"{self.url}/{place}{self._behaviors[place].path or '/v1'}"

    def _respond(self, asked: Asked) -> Reply:
        place = asked.path.split("/")[1]
        asked = replace(asked, number=len(self.asked[place]))
        self.asked[place].append(asked)
        roles = [turn["role"] for turn in asked.body.get("messages", ())]
        behavior = self._behaviors[place]
        # A model whose tools have answered answers, too.
        reply = (says() if "tool" in roles else behavior.respond)(asked)
        if reply.status >= 400:
            self.refused.add(place)
        return reply


def ask(behavior: Behavior, url: str, folder: Path) -> Seen:
    """`reflux ask`, one undivided question."""
    words = ["ask", QUESTION, "--overseer", "model" if behavior.schema else "plain", "--json"]
    ended = command([*words, *granted(behavior, folder)], url, folder)
    body = json.loads(ended.stdout) if ended.stdout.startswith("{") else {}
    tree = body.get("tree", {})
    return Seen(
        ended.code, body.get("answer"), last_line(ended.stderr), ended.stderr,
        body.get("status", ""), tree.get("reasoning"), notes=" ".join(tree.get("call_notes", ())),
    )  # fmt: skip


def evaluate(behavior: Behavior, url: str, folder: Path) -> Seen:
    """`reflux eval`, one question of a file."""
    data, out = folder / "questions.jsonl", folder / "out"
    data.write_text(json.dumps({"question": QUESTION, "answer": ANSWER}) + "\n")
    words = ["eval", "--data", str(data), "--systems", "direct", "--score", "contains", "--json"]
    words += ["--out", str(out), *granted(behavior, folder)]
    ended = command(words, url, folder)
    row: dict[str, Any] = {}
    with suppress(FileNotFoundError):
        row = json.loads((out / "eval.jsonl").read_text() or "{}")
    error = last_line(ended.stderr) if ended.code else row.get("error") or ""
    return Seen(ended.code, row.get("answer"), error, ended.stderr, row.get("status", ""))


def chat(behavior: Behavior, url: str, folder: Path) -> Seen:
    """`reflux chat` from a pipe: the agent alone, as a stream; with tools, a plain overseer."""
    words = ["chat", "--overseer", "plain" if behavior.tools else "none"]
    ended = command([*words, *granted(behavior, folder)], url, folder, f"{QUESTION}\n")
    text, cut, hint = ended.stdout.removesuffix("\n").partition("the token limit cut this answer")
    answered = not text.startswith("no accepted answer")
    error = last_line(ended.stderr) + f" {cut}{hint}".rstrip()
    shown = (text.removesuffix("\n") if cut else text) or None
    return Seen(ended.code, shown if answered else None, error, ended.stderr,
                "truncated" if cut else "")  # fmt: skip


def granted(behavior: Behavior, folder: Path) -> list[str]:
    """The options that grant what the behavior is about."""
    if not behavior.tools:
        return []
    path = folder / "tools.py"
    path.write_text(TOOLS)
    return ["--tool", f"{path}:add", "--tool", f"{path}:mul"]


def command(words: Sequence[str], url: str, folder: Path, typed: str = "") -> Ended:
    """Run `reflux WORDS` in a process; one that hangs is killed, and has no code."""
    env = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "key", "REFLUX_RETRIES": "2"}
    options = ["--model", "m", "--run", str(folder / "run")]
    running = begin([*words, *options], env, typed=typed, loaded=LOADED)
    ended = running.wait(SECONDS)
    if ended.code is None:
        running.process.kill()
    return ended


def last_line(text: str) -> str:
    """The error message of a command: its one line that begins with `reflux: `."""
    lines = [line for line in text.splitlines() if line.startswith("reflux: ")]
    return lines[0].removeprefix("reflux: ") if len(lines) == 1 else ""


def request(behavior: Behavior, url: str, model: str, stream: bool) -> Seen:
    """One request to `reflux serve` as the OpenAI protocol has it."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": role, "content": text} for role, text in TALK],
        "max_tokens": 64,
        "temperature": 0.0,
        "seed": 7,
        "logprobs": True,
        "top_logprobs": 1,
        "stream": stream,
    }
    if behavior.tools:
        body["tools"] = [
            {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
            for name in ("add", "mul")
        ]
    if behavior.schema:
        form = {"name": "form", "schema": {"type": "object"}}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    try:
        got = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=SECONDS)
    except httpx2.TimeoutException:
        return Seen(None)
    if got.status_code != 200:
        error = got.json()["error"]
        return Seen(got.status_code, error=error["message"], status=error["code"] or "")
    return joined(events(got.text)) if stream else whole(got.json())


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream, without its comments; it ends by `[DONE]` or an error."""
    data = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    told = [json.loads(each) for each in data if each != "[DONE]"]
    if data[-1:] != ["[DONE]"] and "error" not in told[-1]:
        raise ValueError(f"a stream without its end: {text[-200:]!r}")
    return told


def whole(body: Mapping[str, Any]) -> Seen:
    """What a whole reply says."""
    (choice,) = body["choices"]
    message = choice["message"]
    calls = calls_text(message.get("tool_calls") or ())
    thought = message.get("reasoning_content") or ""
    return Seen(200, calls or message["content"] or "", reasoning=thought,
                finish=choice["finish_reason"])  # fmt: skip


def joined(chunks: Sequence[Mapping[str, Any]]) -> Seen:
    """What a stream says, put together by its reader."""
    text, thought, finish, calls = "", "", None, dict[int, dict[str, Any]]()
    for chunk in chunks:
        if "error" in chunk:
            return Seen(200, error=chunk["error"]["message"], status=chunk["error"]["code"] or "")
        for choice in chunk["choices"]:
            delta = choice["delta"]
            text += delta.get("content") or ""
            thought += delta.get("reasoning_content") or ""
            finish = choice.get("finish_reason") or finish
            for call in delta.get("tool_calls") or ():
                kept = calls.setdefault(call["index"], {"function": {"name": "", "arguments": ""}})
                for name, piece in call["function"].items():
                    kept["function"][name] += piece or ""
    said = calls_text(list(calls.values())) or text
    return Seen(200, said, reasoning=thought.strip(), finish=finish)


def calls_text(calls: Sequence[Mapping[str, Any]]) -> str:
    """Tool calls as the behaviors write them."""
    functions = [call["function"] for call in calls]
    return " ".join(f"{each['name']}({each['arguments']})" for each in functions)


COMMANDS: dict[str, Callable[[Behavior, str, Path], Seen]] = {
    "ask": ask,
    "eval": evaluate,
    "chat": chat,
}


@contextmanager
def server(
    endpoints: Endpoints, behaviors: Sequence[Behavior], row: dict[str, str]
) -> Iterator[str]:
    """`reflux serve` with a model for each behavior and form of request; its end is a row."""
    with tempfile.TemporaryDirectory() as folder:
        models = {
            place: {"base_url": endpoints.address(place), "model": "m",
                    "api_key_env": "OPENAI_API_KEY"}
            for each in behaviors
            for command in (SERVE, STREAM)
            for place in (endpoints.place(each, command),)
        }  # fmt: skip
        config = Path(folder, "serve.json")
        config.write_text(json.dumps({"endpoints": models, "per_second": 0}))
        words = ["serve", "--port", "0", "--json", "--config", str(config)]
        env = {"OPENAI_API_KEY": "key", "REFLUX_RETRIES": "2"}
        running = begin([*words, "--run", f"{folder}/run"], env, loaded=LOADED)
        try:
            yield served_url(running)
        finally:
            os.kill(running.process.pid or 0, signal.SIGINT)
            ended = running.wait(SECONDS)
            running.process.kill()
        fine = ended.code == 130 and "Traceback" not in ended.stderr
        row[SERVE] = "works" if fine else f"broken: code {ended.code}, {ended.stderr[-300:]!r}"


def cells_of(behaviors: Sequence[Behavior]) -> dict[str, dict[str, str]]:
    """By behavior and command, the verdict; the last row is the server's end."""
    after: dict[str, str] = {}
    with Endpoints().open() as endpoints, server(endpoints, behaviors, after) as url:

        def cell(behavior: Behavior, command: str) -> str:
            place = endpoints.place(behavior, command)
            try:
                if command in COMMANDS:
                    with tempfile.TemporaryDirectory() as folder:
                        address = endpoints.address(place)
                        seen = COMMANDS[command](behavior, address, Path(folder))
                else:
                    if behavior.name == LATE and command == STREAM:
                        request(behavior, url, place, stream=True)
                    seen = request(behavior, url, place, command == STREAM)
            except (ValueError, LookupError, TypeError) as error:
                return f"broken: {type(error).__name__}: {error}"
            asked, refused = endpoints.asked[place], place in endpoints.refused
            return Case(behavior, command, seen, asked, refused).verdict()

        commands = (*COMMANDS, SERVE, STREAM)
        with ThreadPoolExecutor(WORKERS) as pool:
            cells = [[pool.submit(cell, each, name) for name in commands] for each in behaviors]
            table = {
                each.name: {name: job.result() for name, job in zip(commands, jobs, strict=True)}
                for each, jobs in zip(behaviors, cells, strict=True)
            }
    return table | {"all of these, then Ctrl-C": after}
