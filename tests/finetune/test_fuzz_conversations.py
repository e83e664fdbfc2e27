"""Any conversation of the chat protocol survives record, rows, template, export and import."""

import json
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reflux.finetune.data.encoding import encode
from reflux.finetune.data.export import Form, export
from reflux.finetune.data.recorded import LeftOut, RowOptions, recorded_rows
from reflux.finetune.data.rows import Row
from reflux.graphs.traces.database import reading
from reflux.graphs.traces.importing.conversations import conversation
from reflux.graphs.traces.importing.importer import import_files
from reflux.graphs.traces.selection import selecting
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import Trajectory
from reflux.graphs.traces.trajectory_writer import TrajectoryWriter
from tests.finetune.test_encoding import learned, real

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=12)
SAID = TEXT.filter(str.strip)
SCALAR = st.none() | st.booleans() | st.integers(-(2**31), 2**31) | TEXT
VALUE = SCALAR | st.lists(SCALAR, max_size=2) | st.dictionaries(SAID, SCALAR, max_size=2)
NAMES = st.sampled_from(["find", "add", "send_mail"])
FORMS: tuple[Form, ...] = ("prompt-completion", "openai", "sharegpt")


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(messages, tools): one or more questions, each with calls of tools and then an answer."""
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(SAID)})
    number, used = 0, set[str]()
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(SAID)})
        for _ in range(draw(st.integers(0, 2))):
            calls: list[dict[str, Any]] = []
            for _ in range(draw(st.integers(1, 2))):
                name = draw(NAMES)
                used.add(name)
                given = draw(st.dictionaries(SAID, VALUE, max_size=3))
                arguments = json.dumps(given, ensure_ascii=False)
                function = {"name": name, "arguments": arguments}
                calls.append({"id": f"call_{number}", "type": "function", "function": function})
                number += 1
            content = draw(st.just("") | SAID)
            messages.append({"role": "assistant", "content": content, "tool_calls": calls})
            for call in calls:
                result = {"role": "tool", "content": draw(TEXT), "tool_call_id": call["id"]}
                messages.append(result)
        messages.append({"role": "assistant", "content": draw(SAID)})
    schema = draw(st.dictionaries(SAID, st.just({"type": "string"}), max_size=2))
    parameters = {"type": "object", "properties": schema}
    tools = [
        {"type": "function", "function": {"name": n, "description": "", "parameters": parameters}}
        for n in sorted(used)
    ]
    return messages, tools


def rows_of(path: Path) -> list[Row]:
    left_out = LeftOut()
    with reading(path) as store, selecting(path) as selection:
        rows = list(recorded_rows(store, selection, RowOptions(by="trajectories"), left_out))
    assert not left_out.counts, left_out.counts
    return rows


def told(turns: Any) -> list[Any]:
    """What was said and called, as far as ShareGPT tells it."""
    said: list[Any] = []
    for turn in turns:
        for call in turn.get("tool_calls", ()):
            function = call["function"]
            said.append((function["name"], json.loads(function["arguments"])))
        if turn["role"] == "tool" and said and isinstance(said[-1], str):
            said[-1] += f"\n{turn['content']}"
        elif turn["role"] == "tool":
            said.append(turn["content"])
        elif turn["content"]:
            said.append([turn["role"], turn["content"]])
    return said


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(spoken=conversations())
def test_a_conversation_survives(
    spoken: tuple[list[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    messages, tools = spoken
    with TemporaryDirectory() as folder:
        first, second, file = (Path(folder) / name for name in ("a.db", "again", "rows.jsonl"))
        with closing(TraceStore(first)) as store:
            found = conversation(Trajectory("key", "url"), messages, tools)
            TrajectoryWriter(store).record(found.trajectory).result()
        (row,) = rows_of(first)
        assert [*row.prompt, *row.completion] == messages
        assert list(row.tools) == tools
        replies = [each for each in row.completion if each["role"] == "assistant"]
        (sequence,) = encode(row.train(), TOKENIZER)
        spans = learned(sequence, TOKENIZER)
        assert len(spans) == len(replies)
        for span, reply in zip(spans, replies, strict=True):
            assert reply["content"].strip() in span
            assert all(call["function"]["name"] in span for call in reply.get("tool_calls", ()))
        for form in FORMS:
            export([row], file, form)
            with closing(TraceStore(second / form)) as store:
                report = import_files([file], store, TrajectoryWriter(store))
            assert report.left_out == {} and report.trajectories == 1
            (again,) = rows_of(second / form)
            if form == "sharegpt":
                assert told([*again.prompt, *again.completion]) == told(messages)
            else:
                assert again.train() == row.train()


TOKENIZER = real("qwen2_5")
