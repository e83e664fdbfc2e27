"""The state of one question in the amplification graph, and how it ends: plain JSON types, so any
checkpointer can keep it."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypedDict

from reflux.agents.budget import Budget

Status = Literal["ok", "rejected", "over_budget", "failed"]
"""`ok`: accepted. `rejected`: answered, but no attempt passed the check. `over_budget`: the calls
or tokens ended first. `failed`: no answer. All but `failed` carry the best answer so far."""


class Spent(TypedDict):
    """Calls (cache hits among them) and tokens."""

    calls: int
    cached: int
    tokens: int


NOTHING_SPENT: Spent = {"calls": 0, "cached": 0, "tokens": 0}


def plus(*parts: Spent) -> Spent:
    """Add up what was spent."""
    return {
        "calls": sum(p["calls"] for p in parts),
        "cached": sum(p["cached"] for p in parts),
        "tokens": sum(p["tokens"] for p in parts),
    }


class Outcome(TypedDict):
    """How one question ended."""

    answer: str | None
    status: Status
    error: str | None
    spent: Spent


def failed_outcome(reason: str) -> Outcome:
    """The outcome of a question that nothing was spent on, and why."""
    return {"answer": None, "status": "failed", "error": reason, "spent": NOTHING_SPENT}


class SubResult(TypedDict):
    """How one sub-question of a batch ended."""

    index: int
    question: str
    outcome: Outcome


class SubTask(TypedDict):
    """One sub-question on its way to a copy."""

    index: int
    text: str
    path: str
    depth: int
    ancestors: list[str]
    question_id: str
    retries: int
    calls: int
    tokens: int
    to: str
    """Who is to answer; see `SubQuestion.to`."""
    blocked: str | None
    """Why it cannot be asked: a sub-question that it needs has failed."""


def collect(old: list[SubResult], new: list[SubResult] | None) -> list[SubResult]:
    """Reducer of a batch's results: they add up until None clears them."""
    return [] if new is None else old + new


class AmplifyState(TypedDict):
    """One question in the middle of its amplification."""

    question: str
    question_id: str
    """Id of the root, which all of the tree's calls carry."""
    path: str
    depth: int
    ancestors: list[str]
    """Questions from the root down, without this one."""
    calls: int
    """Budget of this question, whole."""
    tokens: int
    spent: Spent
    retries: int
    """Retries of the levels above: they move every vote below to fresh seeds."""
    attempt: int
    step: int
    transcript: list[dict[str, Any]]
    first_step: dict[str, Any] | None
    """H's first step where the level above has taken it already."""
    batch: list[dict[str, Any]]
    """Sub-questions asked and not yet aggregated: text, needs, calls, tokens, retries."""
    results: Annotated[list[SubResult], collect]
    proposal: str | None
    error: str | None
    proposals: list[str]
    """Answers that failed the check, one for each attempt."""
    passed: list[str]
    """Answers that passed it, where more attempts have to agree."""
    outcome: Outcome | None


def left_of(state: AmplifyState) -> Budget:
    """What a question may still spend."""
    spent = state["spent"]
    return Budget(state["calls"], state["tokens"]).minus(spent["calls"], spent["tokens"])


def best_proposal(proposals: Sequence[str]) -> str | None:
    """The most frequent of the answers that failed the check; the first among equals."""
    return max(proposals, key=proposals.count) if proposals else None
