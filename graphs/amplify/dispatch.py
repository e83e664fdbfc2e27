"""A batch of sub-questions: it shares the budget, is sent as far as it has what it needs, and is
joined in the order in which H asked."""

# pyright: reportMissingTypeStubs=false

from typing import Any

from langgraph.types import Send

from reflux.agents.overseers.protocol import reserve_of
from reflux.agents.types import Ask, SubQuestion
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import AmplifyState, Outcome, SubTask, left_of, plus
from reflux.graphs.amplify.steps import overseer_of, retry_index

Update = dict[str, Any]


def ask_batch(state: AmplifyState, context: AmplifyContext, ask: Ask) -> Update:
    """Split what is left of the budget among the sub-questions, in order."""
    asked = ask.subquestions
    if len(asked) > context.limits.fanout:
        return {
            "error": f"H asked {len(asked)} sub-questions at once, the limit is "
            f"{context.limits.fanout}"
        }
    if any(not 0 <= need < index for index, s in enumerate(asked) for need in s.needs):
        return {"error": "a sub-question may need only those before it in its batch"}
    reserve = reserve_of(overseer_of(state, context))
    left = left_of(state).minus(reserve.calls, reserve.tokens)
    shares = left.split(len(asked))
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
            for s, share in zip(asked, shares, strict=True)
        ]
    }


async def dispatch(state: AmplifyState) -> str | list[Send]:
    """To `check` with an answer or a failure; otherwise one Send for each sub-question that has
    all it needs and was not sent yet."""
    if not state["batch"]:
        return "check"
    done = {result["index"]: result["outcome"] for result in state["results"]}
    ancestors = [*state["ancestors"], state["question"]]
    ready: list[Send] = []
    for index, asked in enumerate(state["batch"]):
        if index in done or any(need not in done for need in asked["needs"]):
            continue
        ready.append(Send("subtask", _subtask(state, ancestors, index, asked, done)))
    return ready


def _subtask(
    state: AmplifyState,
    ancestors: list[str],
    index: int,
    asked: dict[str, Any],
    done: dict[int, Outcome],
) -> SubTask:
    blocked: str | None = None
    answers: dict[int, str] = {}
    for need in asked["needs"]:
        answer = done[need]["answer"]
        if answer is None:
            blocked = f"needs sub-question {need}, which failed"
        answers[need] = answer or ""
    text = SubQuestion(asked["text"]).filled(answers)
    # The step that asked was counted already; its children carry its number.
    return {
        "index": index,
        "text": text,
        "path": f"{state['path']}/{state['attempt']}.{state['step'] - 1}.{index}",
        "depth": state["depth"] + 1,
        "ancestors": ancestors,
        "question_id": state["question_id"],
        "retries": asked["retries"],
        "calls": asked["calls"],
        "tokens": asked["tokens"],
        "to": asked["to"],
        "blocked": blocked,
    }


async def aggregate(state: AmplifyState) -> Update:
    """Join the batch: one entry each in the transcript, in the order in which H asked."""
    results = sorted(state["results"], key=lambda result: result["index"])
    if len(results) < len(state["batch"]):
        return {}  # Some still wait for what they need.
    said: list[dict[str, Any]] = []
    for result in results:
        outcome = result["outcome"]
        error = None if outcome["status"] == "ok" else outcome["error"] or outcome["status"]
        said.append({"question": result["question"], "answer": outcome["answer"], "error": error})
    return {
        "transcript": [*state["transcript"], *said],
        "spent": plus(state["spent"], *(result["outcome"]["spent"] for result in results)),
        "batch": [],
        "results": None,  # The reducer's sign to clear.
    }
