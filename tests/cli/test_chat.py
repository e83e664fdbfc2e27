"""Talking to the amplified agent: from a pipe, at a terminal, stopped, kept and resumed."""

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from reflux.agents.errors import UsageError
from reflux.agents.prompts import last_question
from reflux.cli.chat_session import MAX_CHARS, Conversation, Turn, listed, resume
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.traces.search import Wanted, search
from tests.support.commanding import Ended, Running, begin, piped
from tests.support.serving import soon

pytestmark = pytest.mark.process

PLAIN = ("--overseer", "plain")


@dataclass
class Endpoint:
    """An endpoint that says the last line of what it is asked, in capitals; as H it asks for two
    parts, and then answers with both."""

    url: str
    asked: list[str] = field(default_factory=list[str])
    overseen: list[str] = field(default_factory=list[str])
    """What H was asked."""
    gone: threading.Event = field(default_factory=threading.Event)
    """Set at the end: a reply to "slow" waits for it."""

    def reply(self, request: Request) -> Response:
        body = request.get_json()
        text = body["messages"][-1]["content"]
        if "response_format" in body:
            self.overseen.append(text)
            parts = [{"question": f"two of part {name}", "needs": []} for name in "ab"]
            step = {"answer": "both"} if "PART B" in text else {"ask": parts}
            return self._said(json.dumps(step))
        self.asked.append(text)
        if text.endswith("slow"):
            self.gone.wait(60)
        said = text.splitlines()[-1].upper()
        return self._streamed(said) if body.get("stream") else self._said(said)

    def _streamed(self, text: str) -> Response:
        """Word by word; after "HALF" nothing comes until the end."""

        def pieces() -> Iterator[str]:
            for word in text.split(" "):
                yield self._piece({"content": word + " "}, None)
                if word == "HALF":
                    self.gone.wait(60)
            yield self._piece({}, "stop") + "data: [DONE]\n\n"

        return Response(pieces(), mimetype="text/event-stream")

    def _piece(self, delta: dict[str, str], finish: str | None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        body = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
        return f"data: {json.dumps(body | {'choices': [choice], 'usage': usage})}\n\n"

    def _said(self, text: str) -> Response:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        return Response(
            json.dumps(body | {"choices": [choice], "usage": usage}), mimetype="application/json"
        )


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with HTTPServer(threaded=True) as server:
        found = Endpoint(server.url_for("/v1"))
        server.expect_request("/v1/chat/completions").respond_with_handler(found.reply)
        yield found
        found.gone.set()


def env(endpoint: Endpoint) -> dict[str, str]:
    return {"OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": "none"}


def chat(endpoint: Endpoint, folder: Path, *words: str, typed: str = "") -> Ended:
    given = ["chat", "--run", str(folder), "--model", "m", *words]
    return begin(given, env(endpoint), typed=typed).wait()


def test_each_line_of_a_pipe_is_answered_in_its_turn(endpoint: Endpoint, tmp_path: Path) -> None:
    ended = chat(endpoint, tmp_path / "run", *PLAIN, typed="one\n\ntwo\n")
    assert (ended.code, ended.stdout) == (0, "ONE\nTWO\n"), ended.stderr
    assert endpoint.asked == [
        "one",
        "Conversation so far:\nUser: one\nAssistant: ONE\n\nQuestion:\ntwo",
    ]


def test_a_conversation_is_one_json_document(endpoint: Endpoint, tmp_path: Path) -> None:
    ended = chat(endpoint, tmp_path / "run", *PLAIN, "--json", typed="one\n")
    told = json.loads(ended.stdout)
    (turn,) = told["turns"]
    assert (turn["user"], turn["answer"], turn["status"], turn["calls"]) == (
        "one",
        "ONE",
        "unchecked",
        1,
    )
    listed = begin(["chat", "--list", "--json", "--run", str(tmp_path / "run")]).wait()
    assert json.loads(listed.stdout) == [{"id": told["conversation"], "turns": 1, "begins": "one"}]


def test_a_resumed_conversation_knows_what_was_said(endpoint: Endpoint, tmp_path: Path) -> None:
    chat(endpoint, tmp_path / "run", *PLAIN, typed="one\n")
    chat(endpoint, tmp_path / "run", *PLAIN, "--resume", "last", typed="two\n/history\n")
    assert "User: one\nAssistant: ONE" in endpoint.asked[-1]
    kept = resume(tmp_path / "run", "last")
    assert [turn.user for turn in kept.turns] == ["one", "two"]


def test_h_sees_the_conversation_and_a_copy_its_sub_question_alone(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    chat(endpoint, tmp_path / "run", *PLAIN, typed="one\n")
    words = ["--resume", "last", "--candidates", "0"]
    ended = chat(endpoint, tmp_path / "run", *words, typed="two\n")
    assert (ended.code, ended.stdout) == (0, "both\n"), ended.stderr
    assert all("User: one\nAssistant: ONE" in text for text in endpoint.overseen)
    assert sorted(endpoint.asked) == ["one", "two of part a", "two of part b"]


def test_what_is_wrong_with_one_line_does_not_end_the_others(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    typed = (
        "/nothing\n/budget tokens lots\n/budget depth 17\n/budget max_tokens 0\n"
        "/budget calls 0\none\n/budget calls 9\ntwo\n/quit\nthree\n"
    )
    ended = chat(endpoint, tmp_path / "run", *PLAIN, typed=typed)
    assert "unknown command /nothing; /help lists commands" in ended.stderr
    assert "tokens must be a number from 0 up, not 'lots'" in ended.stderr
    assert "depth must be a number from 0 to 16, not '17'" in ended.stderr
    assert "max_tokens must be a number from 1 up, not '0'" in ended.stderr
    assert "no accepted answer (over_budget)" in ended.stdout
    assert ended.stdout.rstrip().endswith("TWO")
    assert ended.code == 1


def test_commands_tell_of_the_last_answer(endpoint: Endpoint, tmp_path: Path) -> None:
    out = tmp_path / "said"
    typed = (
        f"one\n/why\n/tree\n/model\n/overseer\n/budget\n/save {out}.md\n/save {out}.jsonl\n/help\n"
    )
    ended = chat(endpoint, tmp_path / "run", *PLAIN, typed=typed)
    assert ended.code == 0, ended.stderr
    for text in ("one → ONE by m", "agent m", "overseer plain", "1 call, 6 tokens"):
        assert text in ended.stdout
    assert "passed" not in ended.stdout  # No check is configured.
    assert (tmp_path / "said.md").read_text() == "**You**\n\none\n\n**Reflux**\n\nONE\n"
    row = json.loads((tmp_path / "said.jsonl").read_text())
    assert [m["content"] for m in row["messages"]] == ["one", "ONE"]


def test_without_h_x_goes_on_with_the_conversation_alone(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    ended = chat(endpoint, tmp_path / "run", "--overseer", "none", typed="one two\nthree\n/why\n")
    assert ended.code == 0, ended.stderr
    assert ended.stdout.startswith("ONE TWO \nTHREE \n")
    assert "three → THREE  by m" in ended.stdout
    assert endpoint.asked == ["one two", "three"]  # The turns before are messages of their own.
    store = RunFolder(tmp_path / "run").store()
    rows = [json.loads(row["messages"]) for row in store.select("SELECT messages FROM calls")]
    store.close()
    assert [m["content"] for m in rows[1]] == ["", "one two", "ONE TWO ", "three"]


def test_of_a_long_conversation_the_newest_turns_are_told(tmp_path: Path) -> None:
    kept = Conversation(tmp_path / "1.jsonl")
    for number in range(30):
        kept.add(Turn(f"question {number}", "word " * 40, "ok", "t", "plain", "m"))
    asked = kept.question("and now?")
    assert len(asked) < MAX_CHARS + 1_000
    assert "question 29" in asked and "question 0" not in asked
    assert last_question(asked) == "and now?"
    assert len(kept.turns) == 30


def test_a_limit_can_be_set_and_lifted(endpoint: Endpoint, tmp_path: Path) -> None:
    typed = "/budget calls 0\none\n/budget calls 9\n/budget seconds 60\n/budget seconds none\none\n"
    ended = chat(endpoint, tmp_path / "run", *PLAIN, typed=typed)
    assert ended.code == 1  # One of the two had no call.
    lines = [" ".join(line.split()) for line in ended.stdout.splitlines()]
    assert "no accepted answer (over_budget); /why shows its tree" in lines
    assert lines.index("seconds 60.0") < lines.index(
        "seconds no limit", lines.index("seconds 60.0")
    )
    assert lines[-1] == "ONE"


def test_a_task_is_asked_in_its_own_form_by_its_own_h(endpoint: Endpoint, tmp_path: Path) -> None:
    ended = chat(endpoint, tmp_path / "run", "--task", "addition", typed="3+4\nhello\n")
    assert ended.stdout.startswith("7\n")
    assert endpoint.asked == []  # A sum of one digit is H's own.
    assert "hello" in ended.stderr
    assert ended.code == 1


def test_an_endpoint_that_is_down_ends_a_pipe(tmp_path: Path) -> None:
    down = {
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
        "OPENAI_API_KEY": "x",
        "REFLUX_RETRIES": "0",
    }
    words = ["chat", "--run", str(tmp_path / "run"), "--model", "m", *PLAIN]
    ended = begin(words, down, typed="one\ntwo\n").wait()
    assert (ended.code, "Traceback" in ended.stderr) == (3, False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--resume", "nothing"), "no one conversation is called 'nothing'"),
        (("--overseer", "oracle"), "no overseer is called 'oracle'"),
        (("--overseer", "plain", "--task", "addition"), "leave one out"),
        (("--task", "odd"), "there is no task 'odd'"),
    ],
)
def test_bad_input_gets_one_message(
    endpoint: Endpoint, tmp_path: Path, words: Sequence[str], said: str
) -> None:
    ended = chat(endpoint, tmp_path / "run", *words)
    assert (ended.code, said in " ".join(ended.stderr.split())) == (2, True)


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    kept = Conversation(tmp_path / "conversations" / "1.jsonl")
    kept.add(Turn("one", "ONE", "ok", "t", "plain", "m"))
    with kept.path.open("a") as file:
        file.write('{"user": "tw')
    assert [turn.user for turn in resume(tmp_path, "1").turns] == ["one"]


def test_what_follows_a_line_that_was_cut_short_is_kept(tmp_path: Path) -> None:
    kept = Conversation(tmp_path / "conversations" / "1.jsonl")
    kept.add(Turn("one", "ONE", "ok", "t", "plain", "m"))
    with kept.path.open("a") as file:
        file.write('{"user": "tw')  # A kill, or a full disk.
    for text in ("two", "three"):
        resume(tmp_path, "1").add(Turn(text, text.upper(), "ok", "t", "plain", "m"))
    assert [turn.user for turn in resume(tmp_path, "1").turns] == ["one", "two", "three"]


def test_two_chats_on_one_conversation_lose_no_turn(tmp_path: Path) -> None:
    path = tmp_path / "conversations" / "1.jsonl"
    long = "word " * 50_000

    def talk(name: str) -> None:
        mine = Conversation(path)
        for number in range(20):
            mine.add(Turn(f"{name} {number}", long, "ok", "t", "plain", "m"))

    talkers = [threading.Thread(target=talk, args=(name,)) for name in "abcd"]
    for talker in talkers:
        talker.start()
    for talker in talkers:
        talker.join()
    said = {turn.user for turn in resume(tmp_path, "1").turns}
    assert said == {f"{name} {number}" for name in "abcd" for number in range(20)}


TURN = (
    '{"user": "a", "answer": "b", "status": "ok", "trajectory": "t", "overseer": "h", "model": "m"'
)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\xff\xfe\n", "line 1: not a turn"),
        (b"[]\n", "line 1: not a turn (Input should be an object)"),
        (TURN.encode() + b"}\n\0\0\n", "line 2: not a turn (Invalid JSON"),
        (TURN.replace('"a"', "5").encode() + b"}\n", "line 1: not a turn (user: Input should be"),
        (TURN.replace('"a"', '"\\ud800"').encode() + b"}\n", "line 1: not a turn"),
        (b'{"user": "a"}\n', "not a turn (answer: Field required); remove the line"),
    ],
)
def test_a_damaged_conversation_is_told_and_hides_no_other(
    tmp_path: Path, body: bytes, says: str
) -> None:
    validate_step = Conversation(tmp_path / "conversations" / "2.jsonl")
    validate_step.add(Turn("one", "ONE", "ok", "t", "plain", "m"))
    damaged = validate_step.path.with_name("1.jsonl")
    damaged.write_bytes(body)
    validate_step.path.with_name("3.jsonl").mkdir()
    with pytest.raises(UsageError) as told:
        resume(tmp_path, "1")
    assert says in str(told.value)
    first, second = listed(tmp_path)
    assert (first["id"], first["begins"]) == ("2", "one")
    assert says in second["begins"]
    assert resume(tmp_path, "last").id == "2"


def test_a_turn_of_a_later_version_is_read_as_far_as_it_is_known(tmp_path: Path) -> None:
    path = tmp_path / "conversations" / "1.jsonl"
    path.parent.mkdir()
    path.write_text(TURN + ', "mood": "good"}\n')
    (turn,) = resume(tmp_path, "1").turns
    assert (turn.user, turn.answer, turn.calls) == ("a", "b", 0)


def test_a_line_that_is_no_text_ends_no_other(endpoint: Endpoint, tmp_path: Path) -> None:
    typed = tmp_path / "typed"
    typed.write_bytes(b"one\nt\xffwo\nthree\n")
    words = ["chat", "--run", str(tmp_path / "run"), "--model", "m", *PLAIN]
    ended = begin(words, env(endpoint), partial(piped, typed)).wait()
    assert ended.code == 1
    assert (endpoint.asked[0], len(endpoint.asked)) == ("one", 2)
    assert "not Unicode text" in ended.stderr
    assert "1 of 3 questions" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_where_a_conversation_cannot_be_saved_it_goes_on(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    odd = ["/proc/nowhere/x", "/", ".", "~nobody-of-this-name/x", "a\0b", f"{tmp_path}/f/x"]
    (tmp_path / "f").write_text("a file")
    typed = "".join(f"/save {path}\n" for path in odd)
    ended = chat(endpoint, tmp_path / "run", *PLAIN, typed=f"one\n{typed}two\n")
    assert "Traceback" not in ended.stderr
    assert "ONE" in ended.stdout
    assert endpoint.asked[-1].endswith("two")
    assert "6 of 8 questions" in ended.stderr


def test_an_answer_is_told_where_the_conversation_cannot_be_kept(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "conversations").write_text("in the way")
    ended = chat(endpoint, tmp_path / "run", *PLAIN, typed="one\ntwo\n")
    assert ended.code == 2
    assert "conversations: File exists" in ended.stderr
    assert ended.stdout.startswith("ONE\n")
    assert "User: one" in endpoint.asked[-1]  # What is not on disk is known all the same.


def test_names_with_markup_are_shown_as_they_are(endpoint: Endpoint, tmp_path: Path) -> None:
    typed = "/model [/x]\none\n/tree\n/why\n/model\n"
    ended = chat(endpoint, tmp_path / "run", *PLAIN, typed=typed)
    assert ended.code == 0, ended.stderr
    assert ended.stdout.count("agent [/x]") == 2
    assert ended.stdout.count("one → ONE by [/x]") == 2
    run = ["--run", str(tmp_path / "run"), "--model", "[/x]"]
    asked = begin(["ask", "two", "--overseer", "plain", *run], env(endpoint)).wait()
    assert asked.code == 0, asked.stderr
    assert "agent [/x]" in asked.stdout
    trajectory = asked.stdout.split()[-1]
    shown = begin(["traces", "show", trajectory, *run[:2]], env(endpoint)).wait()
    assert "two → TWO by [/x]" in shown.stdout


def test_a_long_answer_is_told_to_its_end(endpoint: Endpoint, tmp_path: Path) -> None:
    words = ["ask", "word " * 200 + "end", "--overseer", "plain", "--model", "m"]
    ended = begin([*words, "--run", str(tmp_path / "run")], env(endpoint)).wait()
    assert ended.code == 0, ended.stderr
    assert "WORD END   unchecked, overseer plain" in ended.stdout


# At a terminal.


def at_terminal(name: str) -> None:
    """Give a process this terminal, as its own."""
    os.setsid()
    terminal = os.open(name, os.O_RDWR)
    for number in range(3):
        os.dup2(terminal, number)
    sys.stdin = os.fdopen(0, closefd=False)


STYLES = re.compile(r"\x1b\[[0-9;]*m")
"""Colors and weights, which depend on the environment."""


class Terminal:
    """A person's end of a terminal on which a command runs."""

    def __init__(self, words: Sequence[str], env: dict[str, str]) -> None:
        self._person, self._theirs = os.openpty()
        os.set_blocking(self._person, False)
        env = {**env, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "100"}
        before = partial(at_terminal, os.ttyname(self._theirs))
        self.running: Running = begin(words, env, before)
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._person, text.encode())

    def wait_for(self, text: str) -> None:
        """Read until a text appears; what came before it is forgotten."""
        self.wait_until(lambda: text in self._seen)
        self._seen = self._seen.partition(text)[2]

    def wait_until(self, true: Any) -> None:
        end = time.monotonic() + 60
        while not true():
            try:
                text = os.read(self._person, 65536).decode(errors="replace")
                self._seen = STYLES.sub("", self._seen + text)
            except BlockingIOError:
                time.sleep(0.01)
            assert time.monotonic() < end, self._seen

    def end(self) -> int | None:
        """The exit code, once it has ended."""
        self.wait_until(lambda: not self.running.process.is_alive())
        os.close(self._person)
        os.close(self._theirs)
        return self.running.wait().code


def test_words_that_x_says_alone_are_seen_as_they_come_and_can_be_stopped(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    words = ["chat", "--run", str(tmp_path / "run"), "--model", "m", "--overseer", "none"]
    terminal = Terminal(words, env(endpoint))
    terminal.wait_for("you>")
    terminal.type("first half later\r")
    terminal.wait_for("FIRST HALF")  # The rest has not come yet.
    terminal.type("\x03")
    terminal.wait_for("stopped after")
    terminal.wait_for("you>")
    terminal.type("two\r")
    terminal.wait_for("TWO")
    terminal.wait_for("you>")
    terminal.type("\x04")
    assert terminal.end() == 0
    assert [turn.status for turn in resume(tmp_path / "run", "last").turns] == [
        "stopped",
        "unchecked",
    ]


def test_ctrl_c_stops_the_answer_and_not_the_program(endpoint: Endpoint, tmp_path: Path) -> None:
    words = ["chat", "--run", str(tmp_path / "run"), "--model", "m", *PLAIN]
    terminal = Terminal(words, env(endpoint))
    terminal.wait_for("you>")
    terminal.type("one\r")
    terminal.wait_for("ONE")
    terminal.wait_for("you>")
    terminal.type("slow\r")
    terminal.wait_until(lambda: len(endpoint.asked) == 2)
    terminal.type("\x03")
    terminal.wait_for("stopped after")
    terminal.wait_for("you>")
    terminal.type("two\r")
    terminal.wait_for("TWO")
    terminal.wait_for("you>")
    terminal.type("\x04")
    assert terminal.end() == 0
    turns = resume(tmp_path / "run", "last").turns
    assert [turn.status for turn in turns] == ["unchecked", "stopped", "unchecked"]
    assert "slow" not in endpoint.asked[-1]  # What was not answered is not told.
    store = RunFolder(tmp_path / "run").store()
    rows = list(store.select("SELECT completion FROM calls WHERE kind='model'"))
    store.close()
    assert sorted(row["completion"] for row in rows) == ["ONE", "TWO"]
    listed, _ = search(store.path, Wanted())
    assert [row["status"] for row in listed] == ["unchecked", "stopped", "unchecked"]


def test_ctrl_c_stops_a_question_that_waits_for_whoever_sits_there(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    words = ["chat", "--run", str(tmp_path / "run"), "--model", "m", "--overseer", "human"]
    terminal = Terminal(words, env(endpoint))
    terminal.wait_for("you>")
    terminal.type("What now?\r")
    terminal.wait_for("waiting.")
    terminal.wait_for("> ")
    terminal.type("\x03")
    terminal.wait_for("stopped after 0 calls")
    terminal.wait_for("you>")
    terminal.type("\x04")
    assert terminal.end() == 0
    (turn,) = resume(tmp_path / "run", "last").turns
    assert turn.status == "stopped"
    run = ["--run", str(tmp_path / "run")]
    replied = begin(["reply", turn.trajectory, "answer: this", *run], env(endpoint)).wait()
    assert (replied.code, "this" in replied.stdout) == (0, True), replied.stderr


def test_ctrl_d_leaves_a_review(endpoint: Endpoint, tmp_path: Path) -> None:
    run = ["--run", str(tmp_path / "run")]
    begin(["ask", "What?", "--overseer", "human", "--model", "m", *run], env(endpoint)).wait()
    terminal = Terminal(["review", *run], env(endpoint))
    terminal.wait_for("q quit")
    # A key that comes before the terminal is read key by key is thrown away.
    soon(lambda: terminal.type("\x04") or not terminal.running.process.is_alive())
    terminal.wait_for("0 judged")
    assert terminal.end() == 0
