"""Events of the growing tree: what the commands, the server and the page live on.

They leave by the graph's stream of mode `custom`, or go to `AmplifyContext.emit`. Each is a plain
JSON object with `event` and `path`; a listener that does not know a kind can leave it out.
"""

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict, cast


class Asked(TypedDict):
    """A sub-question is on its way."""

    event: Literal["asked"]
    path: str
    question: str
    to: str
    """Who is to answer; see `reflux.agents.types.SubQuestion.to`."""


class Stepped(TypedDict):
    """H has taken a step."""

    event: Literal["step"]
    path: str
    step: dict[str, Any]
    """In the form of `reflux.agents.types.step_to_json`."""


class Called(TypedDict):
    """A model has replied."""

    event: Literal["called"]
    path: str
    role: str
    """`answer`, `answer:EXPERT`, `overseer.ask`, `consensus`, as in the call log."""
    model: str
    tokens: int
    cached: bool
    seconds: float
    left: dict[str, float]
    """Of each limit of the purse that there is: seconds, money, the run's calls and tokens."""


class ToolCalled(TypedDict):
    """A tool is asked, by a copy or by H."""

    event: Literal["tool"]
    path: str
    tool: str
    arguments: str


class Retried(TypedDict):
    """A check has failed, and another attempt begins."""

    event: Literal["retry"]
    path: str
    rule: str
    error: str | None


class Linked(TypedDict):
    """A link of a chain is settled."""

    event: Literal["link"]
    path: str
    number: int
    question: str
    answer: str
    votes: int


class Answered(TypedDict):
    """A question ended. `direct`: without the overseer; then there is one event per attempt."""

    event: Literal["answered"]
    path: str
    direct: bool
    answer: str | None
    status: str
    error: str | None
    question: NotRequired[str]
    votes: NotRequired[int]
    refused: NotRequired[Any]
    tally: NotRequired[list[tuple[str, int]]]
    answers: NotRequired[dict[str, str]]
    """Of each expert, where several were asked."""
    failed: NotRequired[dict[str, str]]
    disagreement: NotRequired[float]
    spent: NotRequired[Any]


Event = Asked | Stepped | Called | ToolCalled | Retried | Linked | Answered


def answered(path: str, direct: bool, detail: Mapping[str, Any]) -> Answered:
    """The event of a question that ended as the judgement `detail` says."""
    return cast(Answered, {"event": "answered", "path": path, "direct": direct, **detail})
