"""Trajectories of an agent with a tool, as any program's are recorded."""

import json
from collections.abc import Sequence
from pathlib import Path

from reflux.agents.types import Completion, ToolCall
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import Feedback, RecordedCall, RecordedOutcome, Trajectory
from reflux.graphs.traces.trajectory_writer import TrajectoryWriter

TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Finds.",
        "parameters": {
            "type": "object",
            "properties": {"of": {"type": "string"}},
            "required": ["of"],
        },
    },
}


def trajectory(number: int, n: int = 1, status: str | None = "unchecked") -> Trajectory:
    """Asked where something is, the agent calls a tool, and then answers."""
    text = json.dumps({"of": f"b{number}"})
    asked = ({"role": "system", "content": "Be brief."},
             {"role": "user", "content": f"Where is b{number}?"})  # fmt: skip
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "find", "arguments": text}}
        ],
    }
    result = {"role": "tool", "tool_call_id": "c1", "content": f"shelf {number}"}
    return Trajectory(
        key=f"k{number}",
        source="url",
        calls=(
            RecordedCall(
                asked, Completion("", 3, 4, finish_reason="tool_calls", reasoning="Hm.",
                                  tool_calls=(ToolCall("c1", "find", text),)),
                node="plan", model="m", tools=(TOOL,), created=1.0,
            ),
            RecordedCall(reply=Completion(f"shelf {number}"), kind="tool", model="find",
                         arguments=text, created=2.0),
            RecordedCall((*asked, call, result),
                         Completion(f"on shelf {number}", 3, 4, finish_reason="stop"),
                         node="answer", model="m", tools=(TOOL,), created=3.0),
        ),
        metadata={"user": f"u{number}"},
        outcome=None if status is None else RecordedOutcome(f"on shelf {number}", status),
        feedback=(Feedback(number / max(1, n - 1), comment="seen"),),
        created=1.0 + number,
    )  # fmt: skip


def record(path: Path, n: int = 3, statuses: Sequence[str | None] = ("unchecked",)) -> None:
    """Record `n` trajectories, whose statuses repeat."""
    record_all(path, [trajectory(i, n, statuses[i % len(statuses)]) for i in range(n)])


def record_all(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """Record trajectories in a file."""
    store = TraceStore(path)
    writer = TrajectoryWriter(store)
    for each in trajectories:
        writer.record(each).result()
    store.close()
