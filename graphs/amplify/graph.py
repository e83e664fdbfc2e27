"""Amplify^H(X) as a LangGraph state machine.

    START → screen → oversee ──Ask── Send×n ─► subtask ─► aggregate ──┐
                      │   ▲ ◄─────────────────────────────────────────┘
                      │   └────── retry: other seed, other decomposition ◄──┐
                      ├─Defer─► interrupt: a human ─► oversee               │
                      └─Answer─────────────────────► check ──fails──────────┘
                                                       └─accepted─► record → END

Implements the seed's 8.4.1 (task decomposition, error checking) and Christiano et al. 2018,
section 2. A sub-question runs this graph one level deeper only where the overseer decomposes
it further. Failures are values: a failed subtask returns an error record and its siblings go on.
"""

# pyright: reportMissingTypeStubs=false

from functools import cache
from typing import Any, cast

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Send

from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.prompts import question_problem, redact
from reflux.agents.types import Answer, Chain, Defer, step_from_json, step_to_json
from reflux.graphs.amplify.chain import walk_chain
from reflux.graphs.amplify.context import AmplifyContext, listening, validate_context
from reflux.graphs.amplify.dispatch import aggregate, ask_batch, dispatch
from reflux.graphs.amplify.sampling import NodeRef
from reflux.graphs.amplify.self_consistency import answer_directly
from reflux.graphs.amplify.state import (
    NOTHING_SPENT,
    AmplifyState,
    Outcome,
    Spent,
    SubResult,
    SubTask,
    failed_outcome,
    is_accepted,
    left_of,
    plus,
)
from reflux.graphs.amplify.steps import StepResult, overseer_of, retry_index, take_step
from reflux.graphs.amplify.verify import check
from reflux.graphs.traces.events import answered
from reflux.graphs.traces.revisions import Override

Ran = Runtime[AmplifyContext]
Update = dict[str, Any]
DEFERRED_AGAIN = "a human deferred the question again"


def _context(runtime: Ran) -> AmplifyContext:
    return listening(runtime.context, runtime.stream_writer)


def begin(question: str, question_id: str, context: AmplifyContext) -> AmplifyState:
    """The state of a root question before its first step.

    Raises:
        UsageError: no answer could meet the context's settings.
    """
    validate_context(context)
    limits, question = context.limits, redact(question)
    retries = context.asked_before("", question)
    return _fresh(question, question_id, "", 0, [], limits.calls, limits.tokens, retries)


def _fresh(
    question: str,
    question_id: str,
    path: str,
    depth: int,
    ancestors: list[str],
    calls: int,
    tokens: int,
    retries: int,
) -> AmplifyState:
    return {
        "question": question,
        "question_id": question_id,
        "path": path,
        "depth": depth,
        "ancestors": ancestors,
        "calls": calls,
        "tokens": tokens,
        "retries": retries,
        "spent": NOTHING_SPENT,
        "attempt": 0,
        "step": 0,
        "transcript": [],
        "first_step": None,
        "batch": [],
        "results": [],
        "proposal": None,
        "truncated": False,
        "error": None,
        "proposals": [],
        "passed": [],
        "outcome": None,
    }


def screened(state: AmplifyState, context: AmplifyContext) -> str | None:
    """Why the question must not be asked; None where it may be."""
    question = state["question"]
    if (reason := question_problem(question, context.limits.question_chars)) is not None:
        return reason
    if context.canonical(question) in map(context.canonical, state["ancestors"]):
        return f"CycleError: {question!r} repeats one of its ancestors"
    return None


def check_askable(question: str, context: AmplifyContext) -> None:
    """Validate a root question before anything is asked or recorded.

    Raises:
        UsageError: it cannot be asked, or nothing could answer it in this context.
    """
    if (reason := screened(begin(question, "", context), context)) is not None:
        raise UsageError(f"{reason}; ask another")


async def screen(state: AmplifyState, runtime: Ran) -> Update:
    """End a question that must not be asked with a failed outcome."""
    if (reason := screened(state, runtime.context)) is None:
        return {}
    return {"outcome": failed_outcome(reason)}


async def oversee(state: AmplifyState, runtime: Ran) -> Update:
    """Let the overseer take its next step."""
    context = _context(runtime)
    if state["step"] >= context.limits.steps:
        return {"error": f"no answer after {context.limits.steps} steps"}
    first = state["first_step"]
    taken = StepResult(step_from_json(first)) if first else await take_step(state, context)
    spent = plus(state["spent"], taken.spent)
    if taken.step is None:
        return {"error": taken.error, "spent": spent}
    step = taken.step
    advance: Update = {"step": state["step"] + 1, "first_step": None, "spent": spent}
    if isinstance(step, Answer):
        return {**advance, "proposal": context.normalise(step.text)}
    if isinstance(step, Defer):
        return {**advance, "error": DEFERRED_AGAIN}
    state = {**state, "spent": spent}
    if state["depth"] >= context.limits.depth:
        return {**advance, **await leave_to_agent(state, context)}
    if isinstance(step, Chain):
        return {**advance, **await _chained(state, context, step)}
    if not step.subquestions:
        return {**advance, **await leave_to_agent(state, context)}
    return {**advance, **ask_batch(state, context, step)}


async def _chained(state: AmplifyState, context: AmplifyContext, chain: Chain) -> Update:
    """Walk a chain within this graph node; its end is the overseer's answer."""
    number = retry_index(state, context)
    node = NodeRef(state["question"], state["question_id"], state["path"], state["step"], number)
    overseer = overseer_of(state, context)
    result = await walk_chain(context, node, overseer, chain, left_of(state))
    outcome, spent = result.outcome, plus(state["spent"], result.outcome["spent"])
    return {
        "proposal": outcome["answer"] if is_accepted(outcome["status"]) else None,
        "error": outcome["error"],
        "spent": spent,
        "outcome": {**outcome, "spent": spent} if result.interrupted else None,
    }


async def leave_to_agent(state: AmplifyState, context: AmplifyContext) -> Update:
    """Let the agent answer the question undivided."""
    left = left_of(state)
    outcome = await answer_directly(
        context,
        question=state["question"],
        question_id=state["question_id"],
        path=state["path"],
        retries=retry_index(state, context),
        step=state["step"],
        calls=left.calls,
        tokens=left.tokens,
    )
    return {
        "proposal": outcome["answer"],
        "truncated": outcome["status"] == "truncated",
        "error": outcome["error"],
        "spent": plus(state["spent"], outcome["spent"]),
    }


async def subtask(task: SubTask, runtime: Ran) -> Update:
    """Answer one sub-question: as a primitive, by the agent, or one level deeper."""
    spans, model = runtime.context.recorded_client.spans, runtime.context.model
    async with runtime.context.concurrency.at(task["depth"]):
        context = _context(runtime)
        again = context.asked_before(task["path"], task["text"])
        task = {**task, "retries": task["retries"] + again}
        context.emit(
            {"event": "asked", "path": task["path"], "question": task["text"], "to": task["to"]}
        )
        state = _fresh(
            task["text"],
            task["question_id"],
            task["path"],
            task["depth"],
            task["ancestors"],
            task["calls"],
            task["tokens"],
            task["retries"],
        )
        with spans.node(task["path"], task["to"], model) as span:
            outcome = await _resolve(state, task, context)
            span.ended(outcome["status"])
    result: SubResult = {"index": task["index"], "question": task["text"], "outcome": outcome}
    return {"results": [result]}


async def _resolve(state: AmplifyState, task: SubTask, context: AmplifyContext) -> Outcome:
    override = context.override(state["path"], state["question"])
    if override is not None and override.answer is not None:
        return await _overridden(state, context, override.answer, override)
    reason = task["blocked"] or screened(state, context)
    if reason is not None:
        return await _refuse(state, context, reason)
    if task["to"]:
        return await _answered(task, context, NOTHING_SPENT)
    taken = await take_step(state, context)
    step, spent = taken.step, taken.spent
    if step is None:
        return await _refuse(state, context, taken.error or "no step", spent)
    if isinstance(step, Answer):
        answer = context.normalise(step.text)
        return {"answer": answer, "status": "unchecked", "error": None, "spent": spent}
    if isinstance(step, Defer):
        return await _refuse(state, context, DEFERRED_AGAIN, spent)
    divided = isinstance(step, Chain) or bool(step.subquestions)
    if divided and state["depth"] < context.limits.depth:
        deeper = await _level().ainvoke(
            {**state, "first_step": step_to_json(step), "spent": spent}, context=context
        )
        return deeper["outcome"]
    return await _answered(task, context, spent)


async def _answered(task: SubTask, context: AmplifyContext, spent: Spent) -> Outcome:
    """Answer directly, with what the overseer left of the sub-question's share."""
    outcome = await answer_directly(
        context,
        question=task["text"],
        question_id=task["question_id"],
        path=task["path"],
        calls=max(0, task["calls"] - spent["calls"]),
        tokens=max(0, task["tokens"] - spent["tokens"]),
        retries=task["retries"],
        to=task["to"],
    )
    return {**outcome, "spent": plus(spent, outcome["spent"])}


async def _overridden(
    state: AmplifyState, context: AmplifyContext, answer: str, override: Override
) -> Outcome:
    """A sub-question that a human answered; what it cost before stays charged."""
    spent: Spent = {"calls": override.calls, "cached": override.calls, "tokens": override.tokens}
    outcome: Outcome = {
        "answer": context.normalise(answer),
        "status": "ok",
        "error": None,
        "spent": spent,
    }
    await _record(state, context, outcome, by="human")
    return outcome


async def _refuse(
    state: AmplifyState, context: AmplifyContext, reason: str, spent: Spent = NOTHING_SPENT
) -> Outcome:
    """Record a sub-question that failed before any copy was asked."""
    outcome: Outcome = {**failed_outcome(reason), "spent": spent}
    await _record(state, context, outcome)
    return outcome


async def record(state: AmplifyState, runtime: Ran) -> Update:
    """Record how the question ended."""
    outcome = state["outcome"]
    if outcome is None:
        raise RefluxError("the graph reached its end without an outcome; please report this")
    await _record(state, _context(runtime), outcome)
    return {}


async def _record(
    state: AmplifyState, context: AmplifyContext, outcome: Outcome, **more: str
) -> None:
    await context.recorded_client.store.add_judgement(
        state["question_id"],
        state["path"],
        "outcome",
        is_accepted(outcome["status"]),
        {"question": state["question"], "attempts": state["attempt"] + 1, **more, **outcome},
        key="0",
    )
    context.emit(answered(state["path"], False, outcome))


async def _onward(state: AmplifyState) -> str:
    return "record" if state["outcome"] else "oversee"


async def _after_aggregate(state: AmplifyState) -> str | list[Send]:
    return await dispatch(state) if state["batch"] else "oversee"


def build_graph() -> StateGraph[AmplifyState, AmplifyContext, AmplifyState, AmplifyState]:
    """The amplification graph, uncompiled."""
    graph = StateGraph(AmplifyState, context_schema=AmplifyContext)
    for node in (screen, oversee, subtask, aggregate, check, record):
        graph.add_node(node.__name__, node)  # type: ignore[arg-type]
    graph.add_edge(START, "screen")
    graph.add_conditional_edges("screen", _onward, ["record", "oversee"])
    graph.add_conditional_edges("oversee", dispatch, ["subtask", "check"])
    graph.add_edge("subtask", "aggregate")
    graph.add_conditional_edges("aggregate", _after_aggregate, ["oversee", "subtask"])
    graph.add_conditional_edges("check", _onward, ["record", "oversee"])
    graph.add_edge("record", END)
    return graph


@cache
def _level() -> Any:
    """The graph of one level; it inherits the caller's checkpointer."""
    return cast(Any, build_graph()).compile()
