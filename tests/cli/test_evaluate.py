"""`reflux eval`: what it compares, prints and writes, and what it says of bad input."""

import asyncio
import io
import json
import os
import re
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from rich.console import Console
from werkzeug import Request, Response

from reflux.agents.budget import Price
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import RefluxError
from reflux.agents.types import ChatRequest, Completion, TokenLogprob
from reflux.cli.evaluation.plan import Plan, Settings, compare
from reflux.cli.evaluation.systems import code_of
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.evals.eval_task import EvalTask, FileEvalTask, LevelEvalTask
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.evals.questions.files import read_questions
from reflux.graphs.evals.results import Results
from reflux.report.eval_page import write_report
from reflux.report.eval_tables import reasons, tables
from reflux.report.inspect_log import write_logs
from reflux.tasks.addition import Addition
from tests.support.commanding import Ended, begin
from tests.support.serving import soon

pytestmark = pytest.mark.process

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[31m\x00"


def sums(request: ChatRequest) -> Completion:
    """X adds, but errs where a sum of more than one digit is asked greedily and begins with 1."""
    a, b, *carry = request.messages[-1][1].rstrip("=").split("+")
    total = int(a[::-1]) + int(b[::-1]) + len(carry)
    if len(a) > 1 and a.startswith("1") and not request.vote:
        total += 1
    text = str(total).zfill(len(a) + 1)[::-1]
    return Completion(text, 10, len(text), 0.25, logprobs=(TokenLogprob("t", -0.02),))


def compared(
    folder: Path,
    eval_task: EvalTask,
    keys: tuple[str, ...],
    reply: Callable[[ChatRequest], str | Completion] = sums,
    out: Path | None = None,
    **plan: Any,
) -> tuple[Results, ScriptedClient]:
    """An evaluation with a scripted X."""
    client = ScriptedClient(reply)

    async def run() -> Results:
        opened = OpenRun(RunFolder(folder), client=client, warm=not plan.get("again"))
        async with opened, AsyncExitStack() as stack:
            made = Plan(eval_task, keys, **plan)
            found = await compare(opened, made, "base", stack, lambda *_: None)
            if out is not None:
                write_report(out, found, eval_task, opened.store, made.source)
            # The answers are read from the record, which is closed after this.
            kept: Any = {key: list(answers) for key, answers in found.answers.items()}
        return replace(found, answers=kept)

    return asyncio.run(run()), client


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_systems_are_compared_on_the_same_questions(tmp_path: Path) -> None:
    eval_task = LevelEvalTask(Addition(), 3, 60)
    keys = ("direct", "amplified", "best-of-3")
    found, _ = compared(tmp_path / "r", eval_task, keys, seeds=(1, 2))
    asked = {key: [(a.seed, a.question) for a in answers] for key, answers in found.answers.items()}
    assert list(found.answers) == list(keys)
    assert asked["direct"] == asked["amplified"] == asked["best-of-3"]
    assert [seed for seed, _ in asked["direct"]] == [1] * 60 + [2] * 60
    direct, amplified = found.summaries["direct"], found.summaries["amplified"]
    assert direct.accuracy < amplified.accuracy
    assert amplified.calls == sum(answer.calls for answer in found.answers["amplified"]) > 200
    pairs = [(d.first, d.second) for d in found.differences]
    assert pairs == [
        ("amplified", "direct"), ("best-of-3", "direct"), ("best-of-3", "amplified")
    ]  # fmt: skip
    assert found.differences[0].ci95[0] > 0
    assert found.differences[0].p < 0.05
    # Votes after the first are right: best of three mends what the greedy one errs in.
    assert found.summaries["best-of-3"].accuracy == 1.0


def test_the_same_command_again_asks_nothing_and_finds_the_same(tmp_path: Path) -> None:
    eval_task = LevelEvalTask(Addition(), 3, 30)
    keys = ("direct", "amplified", "best-of-n")
    first, client = compared(tmp_path / "r", eval_task, keys)
    assert client.requests
    again, silent = compared(tmp_path / "r", eval_task, keys)
    assert silent.requests == []
    assert again.to_json() | {"record": {}} == first.to_json() | {"record": {}}
    assert again.answers == first.answers
    assert {key: counts["recorded"] for key, counts in again.record.items()} == {
        "direct": 30, "amplified": 30, "best-of-n": 30
    }  # fmt: skip
    assert first.record["direct"] == {"answers": 30, "recorded": 0, "retries": 0}
    assert not {"candidates", "route"} & set(Settings().recorded())  # As before they existed.
    assert Settings(candidates=2).recorded()["candidates"] == 2
    # With another seed, or other limits, it is another evaluation.
    _, other = compared(tmp_path / "r", eval_task, keys, settings=Settings(depth=2))
    assert other.requests


def test_best_of_n_has_the_tokens_of_the_amplified_system(tmp_path: Path) -> None:
    eval_task = LevelEvalTask(Addition(), 4, 40)
    found, _ = compared(tmp_path / "r", eval_task, ("best-of-n", "amplified"))
    equal = found.equal
    assert equal is not None
    assert equal.tokens == found.summaries["best-of-n"].tokens <= equal.amplified_tokens
    assert equal.amplified_tokens == found.summaries["amplified"].tokens
    assert equal.votes == max(1, found.summaries["amplified"].tokens // (40 * 15))
    assert list(found.summaries) == ["best-of-n", "amplified"]


def test_every_table_fits_80_columns_whole(tmp_path: Path) -> None:
    """Figures of a large run: none is cut, and none is lost."""
    keys = ("direct", "amplified", "best-of-n")
    found, _ = compared(tmp_path / "r", LevelEvalTask(Addition(), 3, 20), keys)
    level = found.levels["amplified"][-1]
    large = replace(
        level,
        depth=10,
        kind="combined",
        nodes=123_456,
        calls=987_654,
        tokens=9_876_543_210,
        marked=123_456,
    )
    found = replace(
        found, levels={**found.levels, "amplified": [large, *found.levels["amplified"]]}
    )
    console = Console(width=80, record=True, file=io.StringIO())
    for table in tables(found, {"level": 3}):
        console.print(table)
    printed = console.export_text()
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    headed = next(line for line in printed.splitlines() if "accept" in line)
    named = "node nodes accept calls tokens marked right 95%"
    assert " ".join(headed.split()) == named
    row = next(line for line in printed.splitlines() if "9876.5M" in line)
    assert row.rstrip().endswith("]")
    assert "123456" in row
    assert "987654" in row


def test_why_a_system_failed_is_told_by_the_commonest_reason(tmp_path: Path) -> None:
    eval_task = LevelEvalTask(Addition(), 2, 12)
    found, _ = compared(
        tmp_path / "r", eval_task, ("amplified",), lambda _: "?", out=tmp_path / "out"
    )
    failed = [answer for answer in found.answers["amplified"] if answer.status != "ok"]
    (line,) = reasons(found)
    assert line.startswith(f"amplified, {len(failed)} of 12 not accepted, ")
    assert failed[0].error is not None
    assert any((answer.error or "")[:60] in line for answer in failed)
    assert "12 not accepted, " in (tmp_path / "out" / "eval.html").read_text()


def test_the_page_tells_the_seed_of_each_failure_beside_its_question(tmp_path: Path) -> None:
    out = tmp_path / "out"
    compared(tmp_path / "r", LevelEvalTask(Addition(), 2, 4), ("direct",), lambda _: "?", out,
             seeds=(3, 5))  # fmt: skip
    page = (out / "eval.html").read_text()
    for seed in (3, 5):
        assert re.search(rf"<summary>[^\n]*?seed {seed}</span></summary>", page)


def test_what_is_priced_costs(tmp_path: Path) -> None:
    eval_task = LevelEvalTask(Addition(), 3, 10)
    prices = {"base": Price(1.0, 100.0)}
    found, _ = compared(tmp_path / "r", eval_task, ("direct",), prices=prices)
    assert found.summaries["direct"].cost == pytest.approx(10 * (10 + 4 * 100) / 1e6)


def capitals(folder: Path, *more: dict[str, Any]) -> FileEvalTask:
    path = folder / "capitals.jsonl"
    rows = [
        {"question": "Capital of France?", "answer": "Paris"},
        {"question": "Capital of Japan?", "answer": ["Tokyo", "Tōkyō"]},
        {"question": EVIL, "answer": "yes"},
        *more,
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileEvalTask(read_questions(path), "contains")


def knows(request: ChatRequest) -> str:
    asked = request.messages[-1][1]
    if "assistants that know little" in request.messages[0][1]:
        return '{"not_decomposable": "it is one fact"}'
    if "France" in asked:
        return "It is Paris."
    return "Tōkyō" if "Japan" in asked else f"{EVIL} & so on"


FREE = Settings(overseer="model", max_tokens=20)


def test_a_file_of_questions_is_an_eval_task_with_a_model_as_overseer(tmp_path: Path) -> None:
    eval_task = capitals(tmp_path)
    keys = ("direct", "amplified")
    found, _ = compared(tmp_path / "r", eval_task, keys, knows, settings=FREE)
    for answers in found.answers.values():
        assert [answer.right for answer in answers] == [True, True, False]
    assert found.summaries["amplified"].calls == 6
    assert found.summaries["direct"].calls == 3
    (pair,) = found.differences
    assert (pair.value, pair.p) == (0.0, 1.0)


class Page(HTMLParser):
    """What a browser would make of the page, as far as it matters here."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.deepest = self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._depth += tag == "details"
        self.deepest = max(self.deepest, self._depth)

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag == "details"

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_shows_what_models_wrote_as_text(tmp_path: Path) -> None:
    out = tmp_path / "out"
    eval_task = capitals(tmp_path)
    compared(
        tmp_path / "r", eval_task, ("direct", "amplified"), knows, out, settings=FREE, seeds=(1, 7)
    )
    written = (out / "eval.html").read_text()
    page = Page()
    page.feed(written)
    assert "<script>alert(1)</script>" in page.text
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    assert page.tags.count("svg") == 1
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "action"):
            assert (value or "").startswith("#")
    assert "://" not in written
    assert "default-src 'none'" in written
    assert "\x1b" not in written
    assert "\x00" not in written
    assert "capitals: 3 questions, seed 1, 7, score contains" in page.text
    assert "2 of 6 not right" in page.text


def test_failures_stand_on_the_page_with_their_trees(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def wrong(request: ChatRequest) -> str:
        length = len(request.messages[-1][1].split("+")[0])
        return "0" * (length + 1)

    eval_task = LevelEvalTask(Addition(), 4, 5)
    found, _ = compared(
        tmp_path / "r", eval_task, ("amplified",), wrong, out, settings=Settings(depth=2)
    )
    page = Page()
    page.feed((out / "eval.html").read_text())
    assert "amplified: 5 of 5 not right" in page.text
    assert page.deepest == 3  # The failure, its root, and the halves, which hold the leaves.
    for answer in found.answers["amplified"]:
        assert answer.question in page.text
        assert answer.trajectory in page.text


def test_the_files_hold_every_answer_and_every_figure(tmp_path: Path) -> None:
    out = tmp_path / "out"
    eval_task = capitals(tmp_path)
    source = {"data": "capitals.jsonl"}
    found, _ = compared(
        tmp_path / "r", eval_task, ("direct",), knows, out, settings=FREE, source=source
    )
    lines = [json.loads(line) for line in (out / "eval.jsonl").read_text().splitlines()]
    assert [(line["answer"], line["right"], line["expected"]) for line in lines][:2] == [
        ("It is Paris.", True, ["Paris"]),
        ("Tōkyō", True, ["Tokyo", "Tōkyō"]),
    ]
    assert set(lines[0]) >= {
        "id", "question", "status", "confidence", "calls", "tokens", "seconds", "cost", "depth",
        "trajectory", "seed", "system",
    }  # fmt: skip
    whole = json.loads((out / "eval.json").read_text())
    assert whole == source | json.loads(json.dumps(found.to_json()))
    assert whole["systems"]["direct"]["n"] == 3
    assert whole["seeds"] == [1]


def test_n_and_seeds_are_always_printed(tmp_path: Path) -> None:
    eval_task = LevelEvalTask(Addition(), 3, 20)
    source = {"task": "addition", "level": 3}
    found, _ = compared(
        tmp_path / "r", eval_task, ("direct", "amplified", "best-of-n"), seeds=(4, 9), source=source
    )
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for table in tables(found, source):
        console.print(table)
    printed = console.export_text()
    assert "addition, level 3: " in printed
    assert "seed 4, 9" in printed
    assert "40" in printed
    assert "best-of-n: " in printed
    for word in ("McNemar", "Brier", "ECE", "0 combined", "amplified − direct"):
        assert word in printed
    assert "…" not in printed


def numbered(folder: Path, n: int, score: str = "number") -> FileEvalTask:
    """Questions with a number as answer."""
    path = folder / "numbers.jsonl"
    rows = [{"question": f"What is {i}?", "answer": str(i)} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileEvalTask(read_questions(path), score)


def asked_number(request: ChatRequest) -> int:
    return int(re.findall(r"What is (\d+)\?", request.messages[-1][1])[-1])


def halves(request: ChatRequest) -> str:
    """Right at odd numbers alone where it is asked directly, and always where it votes."""
    number = asked_number(request)
    return f"It is {number}" if number % 2 or request.vote else "no idea"


TWO = ("direct", "best-of-3")


def test_an_evaluation_stops_as_soon_as_it_is_decided(tmp_path: Path) -> None:
    task = numbered(tmp_path, 400)
    plan: dict[str, Any] = {"settings": FREE, "until_decided": True}
    found, client = compared(tmp_path / "r", task, TWO, halves, **plan)
    (decision,) = found.decisions
    assert (decision.first, decision.second, decision.verdict) == ("best-of-3", "direct", "better")
    assert found.summaries["direct"].n == found.summaries["best-of-3"].n == decision.n < 100
    assert {a.question for a in found.answers["direct"]} == {
        a.question for a in found.answers["best-of-3"]
    }
    # A sample of the whole file: its beginning may be easier than its end.
    assert max(asked_number(request) for request in client.requests) > 200
    same, silent = compared(tmp_path / "r", task, TWO, halves, **plan)
    assert (silent.requests, same.decisions) == ([], found.decisions)
    short, _ = compared(tmp_path / "s", numbered(tmp_path, 30), TWO, lambda _: "1", **plan)
    assert (short.decisions[0].verdict, short.decisions[0].n) == ("undecided", 30)
    assert (short.decisions[0].needed or 0) > 30


def test_only_the_named_pair_is_decided_and_not_corrected_for_others(tmp_path: Path) -> None:
    task, keys = numbered(tmp_path, 24), (*TWO, "best-of-5")
    alone, _ = compared(
        tmp_path / "r", task, keys, halves, settings=FREE, pairs=[("direct", "best-of-3")]
    )
    every, _ = compared(tmp_path / "r", task, keys, halves, settings=FREE)
    assert [(d.first, d.verdict) for d in alone.decisions] == [("direct", "worse")]
    assert len(every.decisions) == 3
    assert every.decisions[0].p_differ > alone.decisions[0].p_differ
    console = Console(width=80, record=True, file=io.StringIO())
    for table in tables(every, {}):
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    printed = " ".join(text.split())
    assert "best-of-3 is better" in printed
    assert "corrected for 3 pairs (Holm)" in printed


def test_another_generation_is_asked_anew_and_is_then_the_one_on_record(tmp_path: Path) -> None:
    task = numbered(tmp_path, 6)
    first, _ = compared(tmp_path / "r", task, ("direct",), lambda _: "0", settings=FREE)
    again, client = compared(tmp_path / "r", task, ("direct",), halves, settings=FREE, again=True)
    assert len(client.requests) == 6
    assert (first.summaries["direct"].accuracy, again.summaries["direct"].accuracy) == (1 / 6, 0.5)
    assert [each.record["direct"]["recorded"] for each in (first, again)] == [0, 0]
    later, silent = compared(tmp_path / "r", task, ("direct",), halves, settings=FREE)
    assert (silent.requests, later.record["direct"]["recorded"]) == ([], 6)
    assert later.summaries == again.summaries


def test_a_model_grades_answers_and_what_it_does_not_say_is_unscored(tmp_path: Path) -> None:
    def reply(request: ChatRequest) -> str:
        if request.model != "judge":
            return halves(request)
        question = request.messages[-1][1]
        assert "Answer to grade" in question
        assert "GRADE" in request.messages[0][1]
        if "What is 3?" in question:
            return "GRADE: C or GRADE: I, who knows"
        return "It says so.\nGRADE: C" if "It is" in question else "**GRADE: I**"

    task = replace(numbered(tmp_path, 8), rule="judge:judge")
    folder = RunFolder(tmp_path / "r")

    async def run() -> tuple[Results, ScriptedClient]:
        client = ScriptedClient(reply)
        opened = OpenRun(folder, client=client)
        async with opened, AsyncExitStack() as stack:
            plan, names = Plan(task, ("direct",), settings=FREE), frozenset(("judge",))
            return await compare(opened, plan, "base", stack, lambda *_: None, names), client

    found, client = asyncio.run(run())
    score = found.summaries["direct"]
    assert (score.n, score.unscored, score.accuracy) == (8, 1, 3 / 7)
    assert len(client.requests) == 8 + 8
    same, silent = asyncio.run(run())
    assert (silent.requests, same.summaries) == ([], found.summaries)


def test_a_judge_that_never_grades_ends_the_command_without_an_accuracy(tmp_path: Path) -> None:
    task = replace(numbered(tmp_path, 4), rule="judge:judge")

    async def run() -> Results:
        client = ScriptedClient(lambda request: "I cannot judge that.")
        opened = OpenRun(RunFolder(tmp_path / "r"), client=client)
        async with opened, AsyncExitStack() as stack:
            plan, names = Plan(task, ("direct",), settings=FREE), frozenset(("judge",))
            return await compare(opened, plan, "base", stack, lambda *_: None, names)

    with pytest.raises(RefluxError, match="judge gave no grade to any of the 4 answers of direct"):
        asyncio.run(run())


def test_a_scorer_that_fails_on_some_answers_leaves_the_rest_scored(tmp_path: Path) -> None:
    def scorer(question: str, answer: str, truth: str) -> bool:
        return int(answer.removeprefix("It is ")) == int(truth)

    task = replace(numbered(tmp_path, 6), rule="mine:f", scorer=scorer)
    found, _ = compared(tmp_path / "r", task, TWO, halves, settings=FREE, seeds=(1, 2))
    score = found.summaries["direct"]
    assert (score.n, score.unscored, score.accuracy) == (12, 6, 1.0)
    assert score.ci95 == wilson(3, 3)
    assert found.failures == 6
    assert "the scorer 'mine:f' failed on 'What is 0?': ValueError" in found.failure
    assert (found.decisions[0].n, found.decisions[0].unscored) == (3, 3)
    assert [a.right for a in found.answers["direct"]][:2] == [None, True]


def test_another_rule_is_hinted_at_where_all_is_wrong_by_this_one(tmp_path: Path) -> None:
    task = numbered(tmp_path, 12, "exact")
    found, _ = compared(tmp_path / "r", task, ("direct",), halves, settings=FREE)
    (hint,) = found.hints
    assert hint.startswith("direct: 6 of 12 wrong answers are right by --score contains")
    right, _ = compared(tmp_path / "r", numbered(tmp_path, 12), ("direct",), halves, settings=FREE)
    assert right.hints == ()


def test_truncated_answers_are_counted_beside_the_accuracy(tmp_path: Path) -> None:
    def reply(request: ChatRequest) -> Completion:
        cut = asked_number(request) < 2
        return Completion(halves(request), 5, 3, finish_reason="length" if cut else "stop")

    found, _ = compared(tmp_path / "r", numbered(tmp_path, 6), ("direct",), reply, settings=FREE)
    assert found.summaries["direct"].truncated == 2
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tables(found, {"unused": ["src"]})[0])
    printed = " ".join(console.export_text().split())
    assert "cut calls/n" in printed
    assert "every step of an overseer may take 20 tokens" in printed
    assert "Columns that are not used: src." in printed


def test_copies_are_granted_the_tools_that_are_named(tmp_path: Path) -> None:
    granted: list[list[str]] = []

    def reply(request: ChatRequest) -> str:
        granted.append([tool.name for tool in request.tools])
        return halves(request)

    task = numbered(tmp_path, 2)
    tools, code = ("calculator",), code_of(None, "", "calculator")
    compared(tmp_path / "r", task, ("direct",), reply, settings=FREE, tools=tools, code=code)
    assert granted == [["calculator"], ["calculator"]]
    _, without = compared(tmp_path / "r", task, ("direct",), halves, settings=FREE)
    assert len(without.requests) == 2  # Another evaluation, which is asked again.


def test_the_answers_are_a_log_that_inspect_reads(tmp_path: Path) -> None:
    path = tmp_path / "log.eval"

    async def run() -> list[Path]:
        opened = OpenRun(RunFolder(tmp_path / "r"), client=ScriptedClient(halves))
        task = numbered(tmp_path, 4)
        async with opened, AsyncExitStack() as stack:
            plan = Plan(task, TWO, (1, 2), FREE)
            found = await compare(opened, plan, "base", stack, lambda *_: None)
            return write_logs(path, found, task)

    one, other = asyncio.run(run())
    assert (one.name, other.name) == ("log-direct.eval", "log-best-of-3.eval")
    with zipfile.ZipFile(one) as log:
        assert sum(name.startswith("samples/") for name in log.namelist()) == 8
        sample = json.loads(log.read("samples/2_epoch_1.json"))
        header = json.loads(log.read("header.json"))
    assert (sample["input"], sample["target"]) == ("What is 1?", ["1"])
    assert sample["scores"]["reflux"]["value"] == "C"
    assert header["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 0.5
    assert len(read_questions(one).rows) == 4
    inspect_log = pytest.importorskip("inspect_ai.log")
    assert len(inspect_log.read_eval_log(str(one)).samples) == 8


# What follows is the command itself, in a separate process.


@pytest.fixture
def endpoint(httpserver: HTTPServer) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The environment of an endpoint that answers questions, and what it was asked."""
    asked: list[str] = []

    def reply(request: Request) -> Response:
        body = json.loads(request.data)
        asked.append(body["messages"][-1]["content"])
        text = {"a": "1", "b": "2"}.get(asked[-1], "0")
        return Response(
            json.dumps(
                {
                    "choices": [{"message": {"content": f"{text} by {body['model']}"}}],
                    "usage": {"prompt_tokens": 5, "completion_tokens": 1},
                }
            )
        )

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(reply)
    env = {"OPENAI_BASE_URL": httpserver.url_for("/v1"), "REFLUX_RETRIES": "0"}
    yield env, asked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with questions, scorers and graphs of the user's."""
    (tmp_path / "asked.jsonl").write_text(
        '{"question": "a", "answer": "1"}\n{"question": "b", "answer": "3"}\n'
    )
    (tmp_path / "broken.jsonl").write_text('{"question": "a", "answer": "1"}\n{"question": "b"')
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "words.jsonl").write_text('{"question": "a", "answer": "one"}\n')
    (tmp_path / "mine_for_eval.py").write_text(
        "def same(question, answer, truth):\n    return answer.split()[0] == truth\n"
        "def late(question, answer, truth):\n    return answer == truth or 1 / 0\n"
        "def vague(question, answer, truth):\n    return 'maybe'\n"
        "number = 7\n"
        "def graph(question):\n    return {'answer': {'a': '1', 'b': '3'}[question]}\n"
        "def ill(question):\n    raise ValueError('ill')\n"
        "def halves(question):\n    return {'answer': {'a': '1'}[question]}\n"
        "def whole(question, answer, truth):\n    return int(answer) == int(truth)\n"
        "def ends(*_):\n    raise SystemExit(0)\n"
        "def loud(question):\n    print('hello')\n    return '1'\n"
        "def blocks(question):\n    time.sleep(0 if question == 'a' else 600)\n    return '1'\n"
        "import time\n"
    )
    (tmp_path / "lacking_for_eval.py").write_text("import not_installed_for_eval\n")
    (tmp_path / "file").write_text("mine")
    return tmp_path


def reflux(folder: Path, *words: str, env: dict[str, str] | None = None) -> Ended:
    """`reflux eval` with the run and the working folder of a test."""
    run = ("--run", str(folder / "run"))
    return begin(("eval", *words, *run), env, partial(os.chdir, str(folder))).wait()


DATA = ("--data", "asked.jsonl", "--model", "m")


def test_the_command_prints_one_document_and_writes_three_files(
    folder: Path, endpoint: tuple[dict[str, str], list[str]]
) -> None:
    env, asked = endpoint
    systems = "direct,amplified,best-of-2,endpoint:other,mine_for_eval:graph"
    url = env["OPENAI_BASE_URL"]
    words = (*DATA, "--systems", f"{systems},endpoint:far@{url}", "--score", "contains")
    words = (*words, "--overseer", "plain", "--price", "m=1,2", "--out", "out", "--seed", "3")
    ended = reflux(folder, *words, "--json", env=env)
    assert ended.code == 0, ended.stderr
    body = json.loads(ended.stdout)
    assert (body["data"], body["seeds"], body["score"]) == ("asked.jsonl", [3], "contains")
    found = body["systems"]
    assert {key: system["accuracy"] for key, system in found.items()} == {
        "direct": 0.5, "amplified": 0.5, "best-of-2": 0.5, "endpoint:other": 0.5,
        "mine_for_eval:graph": 1.0, f"endpoint:far@{url}": 0.5,
    }  # fmt: skip
    assert found["endpoint:other"]["model"] == "other"
    assert found["direct"]["cost"] == pytest.approx(2 * (5 + 2) / 1e6)
    assert found["endpoint:other"]["cost"] is None
    assert json.loads((folder / "out" / "eval.json").read_text()) == body
    assert len((folder / "out" / "eval.jsonl").read_text().splitlines()) == 12
    assert (folder / "out" / "eval.html").is_file()
    before = len(asked)
    again = reflux(folder, *words, env=env)
    assert again.code == 0, again.stderr
    assert "2 questions, seed 3, score contains" in again.stdout
    assert len(asked) == before


def test_endpoints_of_a_servers_config_are_systems_and_x_by_their_names(
    folder: Path, endpoint: tuple[dict[str, str], list[str]]
) -> None:
    env, _ = endpoint
    there = {"base_url": env.pop("OPENAI_BASE_URL"), "model": "llama3.2", "api_key_env": "MY_KEY"}
    (folder / "serve.yaml").write_text(json.dumps({"endpoints": {"near": there}, "burst": 5}))
    words = ("--data", "asked.jsonl", "--systems", "direct,endpoint:near", "--model", "near")
    words = (*words, "--score", "contains", "--config", "serve.yaml", "--json")
    ended = reflux(folder, *words, env={**env, "MY_KEY": "secret"})
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)["systems"]
    assert {key: (each["model"], each["accuracy"]) for key, each in found.items()} == {
        "direct": ("near", 0.5), "endpoint:near": ("near", 0.5),
    }  # fmt: skip
    (folder / "run" / "traces.db").read_bytes().index(b"1 by llama3.2")
    unset = reflux(folder, *words, env=env)
    assert (unset.code, "MY_KEY, the key of near, is not set" in unset.stderr) == (3, True)
    (folder / "serve.yaml").write_text("endpoint: {}\n")
    wrong = reflux(folder, *words, env=env)
    assert (wrong.code, "endpoint: unknown key" in wrong.stderr) == (2, True)


def test_a_scorer_that_fails_in_the_end_loses_no_answer(
    folder: Path, endpoint: tuple[dict[str, str], list[str]]
) -> None:
    env, asked = endpoint
    words = (*DATA, "--systems", "direct,mine_for_eval:graph", "--score")
    failed = reflux(folder, *words, "mine_for_eval:late", env=env)
    assert failed.code == 1
    assert "the scorer 'mine_for_eval:late' failed on 'a': ZeroDivisionError" in failed.stderr
    assert "no call is repeated" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert sorted(asked) == ["a", "b"]
    scored = reflux(folder, *words, "mine_for_eval:same", "--json", env=env)
    assert scored.code == 0, scored.stderr
    assert json.loads(scored.stdout)["systems"]["direct"]["accuracy"] == 0.5
    assert sorted(asked) == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--data", "broken.jsonl"), 2, "broken.jsonl, line 2: "),
        (("--data", "empty.jsonl"), 2, "empty.jsonl holds no questions"),
        (("--data", "nowhere.jsonl"), 2, "there is no file nowhere.jsonl"),
        (("--data", "words.jsonl", "--score", "number"), 2, "line 1: the answer 'one' has no form"),
        ((*DATA, "--score", "rouge"), 2, "there is no score 'rouge'"),
        ((*DATA, "--score", "nowhere:f"), 2, "there is no module 'nowhere'"),
        ((*DATA, "--score", "mine_for_eval:f"), 2, "has no 'f'"),
        ((*DATA, "--score", "mine_for_eval:number"), 2, "is no function"),
        ((*DATA, "--score", "mine_for_eval:vague"), 1, "says 'maybe' of the answer to 'a'"),
        ((*DATA, "--task", "addition"), 2, "leave --task and --level out"),
        ((*DATA, "--overseer", "human"), 2, "waits for human input"),
        ((*DATA, "--overseer", "nobody"), 2, "no overseer is called 'nobody'"),
        ((*DATA, "--price", "m=cheap"), 2, "write MODEL=PROMPT,COMPLETION"),
        ((*DATA, "--price", "m=-1,2"), 2, "write MODEL=PROMPT,COMPLETION"),
        ((*DATA, "--out", "file"), 2, "a file and a folder cannot share a name"),
        ((*DATA, "--systems", ","), 2, "--systems names none"),
        ((*DATA, "--systems", "direct,direct"), 2, "names 'direct' twice"),
        ((*DATA, "--systems", "best-of-n"), 2, "add amplified"),
        ((*DATA[:2], "--systems", "best-of-0"), 2, "votes from 1 to"),
        ((*DATA, "--systems", "student-r9"), 2, "student-r9"),
        ((*DATA, "--systems", "endpoint:"), 2, "names no model"),
        ((*DATA, "--systems", "endpoint:m"), 3, "OPENAI_BASE_URL, which is not set"),
        ((*DATA, "--systems", "endpoint:m@http://"), 2, "must name a host"),
        ((*DATA, "--systems", "nowhere:graph"), 2, "there is no module 'nowhere'"),
        ((*DATA, "--systems", "lacking_for_eval:graph"), 3, "needs not_installed_for_eval"),
        ((*DATA, "--systems", "mine_for_eval:ill"), 1, "failed on all 2 questions"),
        ((*DATA, "--score", "mine_for_eval:ends"), 1, "failed on 'a': SystemExit: 0"),
        ((*DATA, "--systems", "mine_for_eval:ends"), 1, "called sys.exit(0)"),
        ((*DATA, "--systems", "mine_for_eval:graph", "--seed", "-1"), 2, "--seed"),
        (("--task", "addition", "--limit", "100001"), 2, "--limit 100001 is more than"),
        (("--data", "/dev/null"), 2, "is a pipe or a device"),
        (("--score", "number"), 2, "are for --data"),
        (("--task", "addition", "--tool", "calculator"), 2, "--tool needs --data"),
        ((*DATA[:2], "--tool", "hammer"), 2, "there is no tool 'hammer'"),
        ((*DATA, "--compare", "direct,nobody"), 2, "must name two of --systems"),
        ((*DATA, "--systems", "direct", "--until-decided"), 2, "name two in --systems"),
        ((*DATA, "--systems", "amplified,best-of-n", "--until-decided"), 2, "name the number"),
        ((*DATA, "--question-key", "ask"), 2, 'line 1: it lacks "ask"'),
        ((*DATA, "--prompt-template", "{question}"), 2, "with two braces"),
        ((*DATA[:2], "--systems", "mine_for_eval:graph", "--score", "judge:nobody"), 2, "nobody"),
        ((*DATA, "--margin", "0.9"), 2, "margin"),
        ((*DATA, "--inspect-log", "log.json"), 2, "must end in .eval"),
        (("--task", "addition", "--level", "1"), 2, "holds out no question"),
        (("--limit", "0"), 2, "limit"),
    ],
)
def test_bad_input_gets_one_message_and_its_exit_code(
    folder: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    ended = reflux(folder, *words)
    assert ended.code == code, ended.stderr
    assert says in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_a_scorer_that_takes_numbers_alone_is_not_shown_an_answer_that_is_missing(
    folder: Path,
) -> None:
    words = (*DATA, "--systems", "mine_for_eval:halves", "--score", "mine_for_eval:whole")
    ended = reflux(folder, *words, "--json")
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["systems"]["mine_for_eval:halves"]["accuracy"] == 0.5
    assert [level["marked"] for level in found["breakdown"]["mine_for_eval:halves"]] == [2]


def test_what_a_graph_prints_is_no_part_of_the_document(folder: Path) -> None:
    ended = reflux(folder, *DATA, "--systems", "mine_for_eval:loud", "--json")
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["systems"]["mine_for_eval:loud"]["n"] == 2
    assert ended.stderr.count("hello") == 2


def test_a_graph_that_blocks_for_ever_costs_its_question_and_not_the_evaluation(
    folder: Path,
) -> None:
    words = (*DATA, "--systems", "mine_for_eval:blocks", "--seconds", "1", "--json")
    run = ("--run", str(folder / "run"))
    ended = begin(("eval", *words, *run), None, partial(os.chdir, str(folder))).wait(60)
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["systems"]["mine_for_eval:blocks"]["statuses"] == {
        "failed": 1, "unchecked": 1
    }  # fmt: skip


def test_an_interval_without_width_is_told_whoever_won(tmp_path: Path) -> None:
    def wrong(request: ChatRequest) -> str:
        whole = len(request.messages[-1][1].split("+")[0]) == 3
        return "wrong" if whole else sums(request).text

    found, _ = compared(
        tmp_path / "r", LevelEvalTask(Addition(), 3, 1), ("direct", "amplified"), wrong
    )
    assert found.differences[0].ci95 == (1.0, 1.0)
    console = Console(width=80, record=True, file=io.StringIO())
    for table in tables(found, {"level": 3}):
        console.print(table)
    printed = " ".join(console.export_text().split())
    assert "An interval without width is no certainty" in printed
    assert "no question told the two apart" not in printed


def test_one_ctrl_c_ends_a_scorer_that_never_does(folder: Path) -> None:
    (folder / "hanging_for_eval.py").write_text(
        "def mark(question, answer, truth):\n"
        "    if question == 'b':\n"
        "        open('marking', 'w').close()\n"
        "        while True:\n"
        "            pass\n"
        "    return True\n"
    )
    words = (*DATA, "--systems", "mine_for_eval:graph", "--score", "hanging_for_eval:mark")
    run = ("--run", str(folder / "run"))
    running = begin(("eval", *words, *run), None, partial(os.chdir, str(folder)))
    soon((folder / "marking").exists)
    os.kill(running.process.pid or 0, signal.SIGINT)
    ended = running.wait(60)
    assert (ended.code, "interrupted" in ended.stderr) == (130, True), ended.stderr
