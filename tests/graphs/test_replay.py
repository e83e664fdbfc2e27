"""Recorded calls asked again: what is asked, and how replies are measured."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.types import ChatRequest, Completion, ToolCall
from reflux.graphs.evals.replay import ReplayCall, Replayer, compared, replay_calls, score
from reflux.graphs.traces.database import reading
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.selection import selecting
from reflux.graphs.traces.store import TraceStore
from tests.support.recorded import TOOL, record

FIND = ToolCall("c1", "find", '{"of": "b"}')
MESSAGES: tuple[dict[str, Any], ...] = ({"role": "user", "content": "Where is b?"},)
CALL = ReplayCall(1, "t", "plan", MESSAGES, (TOOL,), None, Completion("", tool_calls=(FIND,)), 64)
TEXT = replace(CALL, reply=Completion("on a shelf"), tools=())
SCHEMA = {"type": "object", "required": ["of"]}
JSON = replace(TEXT, schema=SCHEMA, reply=Completion('{"of": 1}'))


def called(*calls: tuple[str, str], text: str = "") -> Completion:
    return Completion(text, tool_calls=tuple(ToolCall("x", *call) for call in calls))


@pytest.mark.parametrize(
    ("call", "reply", "expected"),
    [
        (CALL, called(("find", '{"of":"b"}')), "exact same-tool same-arguments schema-valid"),
        (CALL, called(("find", '{"of":"c"}')), "same-tool schema-valid"),
        (CALL, called(("find", '{"of": 3}')), "same-tool"),
        (CALL, called(("find", "{oops")), "same-tool"),
        (CALL, called(("seek", '{"of": "b"}')), ""),
        (CALL, called(("find", '{"of": "b"}'), ("find", "{}")), ""),
        (CALL, called(("find", FIND.arguments), text="A"), "same-tool same-arguments schema-valid"),
        (CALL, Completion("on a shelf"), ""),
        (CALL, None, ""),
        (TEXT, Completion("on a shelf\n"), "exact"),
        (TEXT, Completion("elsewhere"), ""),
        (TEXT, called(("find", '{"of": "b"}')), ""),
        (JSON, Completion('{"of": 2}'), "schema-valid"),
        (JSON, Completion("```json\n{\"of\": 1}\n```"), "schema-valid"),
        (JSON, Completion("{}"), ""),
    ],
)  # fmt: skip
def test_a_reply_is_measured(call: ReplayCall, reply: Completion | None, expected: str) -> None:
    found = {name for name, ok in compared(call, reply).measures.items() if ok}
    assert found == {name.replace("same-", "same ") for name in expected.split()}


def test_a_measure_counts_where_it_applies() -> None:
    made = [
        compared(TEXT, TEXT.reply),
        compared(CALL, Completion("no")),
        compared(JSON, JSON.reply),
    ]
    assert [sorted(each.measures) for each in made] == [
        ["exact"], ["exact", "same arguments", "same tool"], ["exact", "schema-valid"]
    ]  # fmt: skip
    scored = score(made)
    assert scored.shares["same tool"][:2] == (0.0, 1)
    assert scored.shares["exact"][:2] == (0.6667, 3)
    assert scored.calls == 3 and scored.failed == 0


def calls_in(path: Path, where: str = "1", limit: int | None = None) -> Sequence[ReplayCall]:
    with reading(path) as store, selecting(path, where) as selection:
        return replay_calls(store, selection, limit)


def test_calls_are_asked_as_they_were_sent(tmp_path: Path) -> None:
    record(tmp_path / "traces.db", n=3)
    calls = calls_in(tmp_path / "traces.db")
    assert [call.node for call in calls] == ["plan", "answer"] * 3
    request = calls[1].request("m")
    assert [turn[0] for turn in request.messages] == ["system", "user", "assistant", "tool"]
    assert request.payload()[2]["tool_calls"][0]["function"]["name"] == "find"
    assert request.tools[0].name == "find" and request.sampling.temperature == 0
    some = calls_in(tmp_path / "traces.db", limit=2)
    assert len(some) == 2 and list(some) == list(calls_in(tmp_path / "traces.db", limit=2))
    with pytest.raises(UsageError, match="no recorded call is selected"):
        calls_in(tmp_path / "traces.db", "score > 9")


async def test_replies_are_recorded_judged_and_not_asked_twice(tmp_path: Path) -> None:
    record(tmp_path / "traces.db", n=2)
    calls = calls_in(tmp_path / "traces.db")
    asked: list[ChatRequest] = []

    def reply(request: ChatRequest) -> str:
        asked.append(request)
        if request.model == "judge":
            truths = request.messages[1][1].split("True answers:")[1].split("Answer to grade")[0]
            return "GRADE: C" if "on shelf 0" in truths else "GRADE: I"
        return "it is on shelf 0"

    store = TraceStore(tmp_path / "own.db")
    client = RecordedClient(ScriptedClient(reply), store)
    counts: list[int] = []
    model, grader = Replayer(client, "m", "d", "run"), Replayer(client, "judge", "d", "run")
    made = await model.ask(calls, counts.append)
    judged = await grader.judge("m", made, lambda n: None)
    assert await model.ask(calls, counts.append) == made
    assert await grader.judge("m", made, lambda n: None) == judged
    assert len(asked) == 8 and counts == [1, 2, 3, 4] * 2
    assert [each.measures["judged"] for each in judged].count(True) == 1
    assert score(judged).shares["judged"][1] == 4
    store.close()
    with selecting(tmp_path / "own.db") as selection:  # No row is made of them.
        assert list(selection.trajectories()) == []
