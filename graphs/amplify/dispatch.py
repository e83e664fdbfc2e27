"""A batch of sub-questions: split the budget, send those whose needs are met, join the results."""

# pyright: reportMissingTypeStubs=false

from typing import Any

from langgraph.types import Send

from reflux.agents.overseers.protocol import reserve_of
from reflux.agents.types import Ask, SubQuestion
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import (
    AmplifyState,
    Outcome,
    SubTask,
    exchange_error,
    left_of,
    plus,
)
from reflux.graphs.amplify.steps import overseer_of, tried

Update = dict[str, Any]


def ask_batch(state: AmplifyState, context: AmplifyContext, ask: Ask) -> Update:
    """Split what is left of the budget among the sub-questions, in order."""
    batch = ask.subquestions
    if len(batch) > context.limits.fanout:
        return {
            "error": f"the overseer asked {len(batch)} sub-questions at once: raise limits.fanout "
            f"from {context.limits.fanout}"
        }
    if any(not 0 <= need < index for index, s in enumerate(batch) for need in s.needs):
        return {"error": "a sub-question may need only those before it in its batch"}
    reserve = reserve_of(overseer_of(state, context))
    left = left_of(state).minus(reserve.calls, reserve.tokens)
    shares = left.split(len(batch))
    number = tried(state, context)
    return {
        "batch": [
            {
                "text": s.text,
                "needs": list(s.needs),
                "to": s.to,
                "calls": share.calls,
                "tokens": share.tokens,
                "retries": number,
            }
            for s, share in zip(batch, shares, strict=True)
        ]
    }


async def dispatch(state: AmplifyState) -> str | list[Send]:
    """Go to `check` with an answer or a failure; otherwise send each sub-question whose needs are
    met and that was not sent yet."""
    if not state["batch"]:
        return "check"
    done = {result["index"]: result["outcome"] for result in state["results"]}
    ancestors = [*state["ancestors"], state["question"]]
    ready: list[Send] = []
    for index, entry in enumerate(state["batch"]):
        if index in done or any(need not in done for need in entry["needs"]):
            continue
        ready.append(Send("subtask", _subtask(state, ancestors, index, entry, done)))
    return ready


def _subtask(
    state: AmplifyState,
    ancestors: list[str],
    index: int,
    entry: dict[str, Any],
    done: dict[int, Outcome],
) -> SubTask:
    blocked: str | None = None
    answers: dict[int, str] = {}
    for need in entry["needs"]:
        answer = done[need]["answer"]
        if answer is None:
            blocked = f"needs sub-question {need}, which failed"
        answers[need] = answer or ""
    text = SubQuestion(entry["text"]).filled(answers)
    # `step` counts the step that asked already; its children carry that step's number.
    return {
        "index": index,
        "text": text,
        "path": f"{state['path']}/{state['attempt']}.{state['step'] - 1}.{index}",
        "depth": state["depth"] + 1,
        "ancestors": ancestors,
        "question_id": state["question_id"],
        "retries": entry["retries"],
        "calls": entry["calls"],
        "tokens": entry["tokens"],
        "to": entry["to"],
        "blocked": blocked,
    }


async def aggregate(state: AmplifyState) -> Update:
    """Join the batch: append one transcript entry per sub-question, in the order of the batch."""
    results = sorted(state["results"], key=lambda result: result["index"])
    if len(results) < len(state["batch"]):
        return {}  # Some still wait for what they need.
    entries: list[dict[str, Any]] = []
    for result in results:
        outcome = result["outcome"]
        entries.append(
            {
                "question": result["question"],
                "answer": outcome["answer"],
                "error": exchange_error(outcome),
            }
        )
    return {
        "transcript": [*state["transcript"], *entries],
        "spent": plus(state["spent"], *(result["outcome"]["spent"] for result in results)),
        "batch": [],
        "results": None,  # Tells the reducer to clear.
    }
