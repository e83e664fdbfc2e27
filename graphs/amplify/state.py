"""The state of one question in the amplification graph, and how it ends.

Everything is of plain JSON types, so any checkpointer can store it.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict, cast

from reflux.agents.budget import Budget
from reflux.graphs.amplify.weighing import Candidate
from reflux.graphs.traces.trajectories import is_accepted
from reflux.graphs.voting.confidence import confidence_of

Status = Literal["ok", "unchecked", "truncated", "rejected", "failed", "over_budget", "stopped"]
"""What is known of an answer. All but `failed` and `stopped` carry the best answer so far.

| status | meaning |
|---|---|
| `ok` | a rule, a verifier or a human tested the answer and accepted it |
| `unchecked` | no check is configured, so nothing tested the answer |
| `truncated` | the token limit cut the answer, and no complete vote gave the same one |
| `rejected` | no attempt passed the check |
| `failed` | there is no answer |
| `over_budget` | calls, tokens, seconds or money ran out first |
| `stopped` | the user stopped the question; only the record says so, no outcome does |
"""


def accepted_status(*, has_check: bool, truncated: bool = False) -> Status:
    """The status of an answer that no check refused."""
    if truncated:
        return "truncated"
    return "ok" if has_check else "unchecked"


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
    confidence: NotRequired[float | None]
    """How sure the answer is, 0 to 1; see `reflux.graphs.voting.confidence`."""
    labels: NotRequired[list[str]]
    """Under a policy: where what is untrusted in the answer comes from."""


def with_confidence(
    outcome: Outcome, detail: Mapping[str, Any], min_logprob: float | None
) -> Outcome:
    """The outcome of a question that was not divided, with how sure its answer is; the rest is as
    in `confidence_of`."""
    if outcome["answer"] is None:
        return outcome
    about = {**detail, "answer": outcome["answer"]}
    return {**outcome, "confidence": confidence_of(about, min_logprob)}


def failed_outcome(reason: str) -> Outcome:
    """The outcome of a question that nothing was spent on, and why."""
    return {"answer": None, "status": "failed", "error": reason, "spent": NOTHING_SPENT}


def human_outcome(answer: str, calls: int, tokens: int) -> Outcome:
    """The outcome of a question that a human answered; earlier calls stay charged."""
    spent: Spent = {"calls": calls, "cached": calls, "tokens": tokens}
    return {"answer": answer, "status": "ok", "error": None, "spent": spent}


def is_usable(status: str, answer: str | None) -> bool:
    """True of a sub-answer that the overseer may use: an accepted one, or one that its token limit
    cut off."""
    return answer is not None and (is_accepted(status) or status == "truncated")


def exchange_error(outcome: Outcome) -> str | None:
    """What the overseer's transcript says is wrong with a sub-answer; None for one it may use."""
    if is_usable(outcome["status"], outcome["answer"]):
        return None
    return outcome["error"] or outcome["status"]


class SubResult(TypedDict):
    """How one sub-question of a batch ended."""

    index: int
    question: str
    outcome: Outcome


class NodeState(TypedDict):
    """One question, its node in the tree, and what it may spend."""

    question: str
    question_id: str
    """Id of the root question; all calls of the tree carry it."""
    path: str
    depth: int
    ancestors: list[str]
    """Questions from the root to the parent."""
    asked: NotRequired[list[str]]
    """Those, and what was asked before this question beside it and beside each of them."""
    labels: NotRequired[list[str]]
    """Under a policy: of what the step that asked the question had seen."""
    calls: int
    """Model calls that this question may make in total."""
    tokens: int
    retries: int
    """Retries of the levels above; they give every vote below other seeds."""


class SubTask(NodeState):
    """One sub-question on its way to a copy."""

    index: int
    to: str
    """Who answers; see `SubQuestion.to`."""
    blocked: str | None
    """Why it cannot be asked: a sub-question that it needs failed."""


def collect(old: list[SubResult], new: list[SubResult] | None) -> list[SubResult]:
    """Reducer of a batch's results: adds `new`; None clears them."""
    return [] if new is None else old + new


class AmplifyState(NodeState):
    """One question in the middle of its amplification."""

    spent: Spent
    attempt: int
    step: int
    transcript: list[dict[str, Any]]
    first_step: dict[str, Any] | None
    """The overseer's first step, where the level above took it already."""
    batch: list[dict[str, Any]]
    """Sub-questions not yet aggregated: text, needs, to, calls, tokens, retries."""
    results: Annotated[list[SubResult], collect]
    proposal: str | None
    answer_labels: NotRequired[list[str]]
    """Under a policy: the labels of all proposals so far."""
    truncated: bool
    """The token limit cut the proposal."""
    error: str | None
    proposals: list[str]
    """Answers that failed the check, one per attempt."""
    passed: list[str]
    """Answers that passed it, where several attempts must agree."""
    candidates: list[Candidate]
    """Answers to the root question that are weighed against one another."""
    weighed: dict[str, Any]
    """What they weighed, once one is chosen; or whether the agent was sure enough, under
    `cascade`."""
    outcome: Outcome | None


LISTS = ("transcript", "batch", "results", "proposals", "passed")


def fresh_state(node: NodeState) -> AmplifyState:
    """The state of a question before its first step."""
    state = {name: value for name, value in node.items() if name in NodeState.__annotations__}
    state |= dict.fromkeys(("first_step", "proposal", "error", "outcome"))
    state |= {name: [] for name in (*LISTS, "candidates")}
    state |= {"weighed": {}, "spent": NOTHING_SPENT, "attempt": 0, "step": 0, "truncated": False}
    return cast(AmplifyState, state)


def left_of(state: AmplifyState) -> Budget:
    """The budget that a question has left."""
    spent = state["spent"]
    return Budget(state["calls"], state["tokens"]).minus(spent["calls"], spent["tokens"])


def best_proposal(proposals: Sequence[str]) -> str | None:
    """The most frequent of the answers that failed the check; the first among equals."""
    return max(proposals, key=proposals.count) if proposals else None
