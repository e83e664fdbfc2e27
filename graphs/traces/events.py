"""Events of a growing tree, for the commands, the server and the web page.

The graph sends them by its stream of mode `custom`, or to `AmplifyContext.emit`. Each is a plain
JSON object with `event` and `path`; listeners ignore kinds that they don't know.
"""

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict, cast

from reflux.agents.types import Completion


class _Event(TypedDict):
    path: str


class SubQuestionAsked(_Event):
    """A sub-question is asked."""

    event: Literal["asked"]
    question: str
    to: str


class Stepped(_Event):
    """The overseer took a step."""

    event: Literal["step"]
    step: dict[str, Any]
    """In the form of `reflux.agents.types.step_to_json`."""


class Called(_Event):
    """A model replied."""

    event: Literal["called"]
    role: str
    """`answer`, `answer:EXPERT`, `overseer.ask`, `consensus`, as in the call log."""
    model: str
    tokens: int
    cached: bool
    seconds: float
    left: dict[str, float]
    """What is left of each spend limit: seconds, money, calls and tokens of the run."""


class ToolCalled(_Event):
    """A copy or the overseer calls a tool."""

    event: Literal["tool"]
    tool: str
    arguments: str


class Retried(_Event):
    """A check failed, and another attempt begins."""

    event: Literal["retry"]
    rule: str
    error: str | None


class Weighed(_Event):
    """No answer weighs enough yet, and another decomposition begins."""

    event: Literal["weighed"]
    candidates: list[dict[str, Any]]
    """Each answer with its weight, its votes, and whether the direct answer is among them."""


class Linked(_Event):
    """A link of a chain is settled."""

    event: Literal["link"]
    number: int
    question: str
    answer: str
    votes: int


class Answered(_Event):
    """A question ended. `direct`: without the overseer; then there is one event per attempt."""

    event: Literal["answered"]
    direct: bool
    answer: str | None
    status: str
    error: str | None
    question: NotRequired[str]
    votes: NotRequired[int]
    refused: NotRequired[Any]
    tally: NotRequired[list[tuple[str, int]]]
    answers: NotRequired[dict[str, str]]
    failed: NotRequired[dict[str, str]]
    disagreement: NotRequired[float]
    spent: NotRequired[Any]
    note: NotRequired[str]
    """Which candidate's answer was taken, and why."""


Event = SubQuestionAsked | Stepped | Called | ToolCalled | Retried | Weighed | Linked | Answered


def called(path: str, role: str, model: str, reply: Completion, left: dict[str, float]) -> Called:
    """The event of a model's reply."""
    return {
        "event": "called",
        "path": path,
        "role": role,
        "model": model,
        "tokens": reply.tokens,
        "cached": reply.cached,
        "seconds": reply.seconds,
        "left": left,
    }


def answered(path: str, direct: bool, detail: Mapping[str, Any]) -> Answered:
    """The event of a question that ended as the judgement `detail` says."""
    return cast(Answered, {"event": "answered", "path": path, "direct": direct, **detail})
