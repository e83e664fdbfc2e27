"""A batch of sub-questions: split the budget, send those whose needs are met, join the results."""

# pyright: reportMissingTypeStubs=false

from typing import Any

from langgraph.types import Send

from reflux.agents.overseers.protocol import reserve_of
from reflux.agents.types import Ask, SubQuestion
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import (
    AmplifyState,
    SubTask,
    exchange_error,
    left_of,
    plus,
)
from reflux.graphs.amplify.steps import overseer_of, retry_index

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
    number = retry_index(state, context)
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
    ready: list[Send] = []
    for index, entry in enumerate(state["batch"]):
        if index in done or any(need not in done for need in entry["needs"]):
            continue
        answers = {need: done[need]["answer"] for need in entry["needs"]}
        failed = [need for need, answer in answers.items() if answer is None]
        filled = {need: answer or "" for need, answer in answers.items()}
        task: SubTask = {
            "index": index,
            "question": SubQuestion(entry["text"]).filled(filled),
            # `step` counts the step that asked already; its children carry that step's number.
            "path": f"{state['path']}/{state['attempt']}.{state['step'] - 1}.{index}",
            "depth": state["depth"] + 1,
            "ancestors": [*state["ancestors"], state["question"]],
            "question_id": state["question_id"],
            "retries": entry["retries"],
            "calls": entry["calls"],
            "tokens": entry["tokens"],
            "to": entry["to"],
            "blocked": f"needs sub-question {failed[-1]}, which failed" if failed else None,
        }
        ready.append(Send("subtask", task))
    return ready


async def aggregate(state: AmplifyState) -> Update:
    """Join the batch: append one transcript entry per sub-question, in the order of the batch."""
    results = sorted(state["results"], key=lambda result: result["index"])
    if len(results) < len(state["batch"]):
        return {}  # Some still wait for what they need.
    entries = [
        {
            "question": result["question"],
            "answer": result["outcome"]["answer"],
            "error": exchange_error(result["outcome"]),
        }
        for result in results
    ]
    return {
        "transcript": [*state["transcript"], *entries],
        "spent": plus(state["spent"], *(result["outcome"]["spent"] for result in results)),
        "batch": [],
        "results": None,  # Tells the reducer to clear.
    }
