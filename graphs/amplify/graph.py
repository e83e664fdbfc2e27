"""Amplify^H(X) as a LangGraph state machine.

    START → screen → oversee ──Ask── Send×n ─► subtask ─► aggregate ──┐
                      │   ▲ ◄─────────────────────────────────────────┘
                      │   └────── retry: other seed, other decomposition ◄──┐
                      ├─Defer─► interrupt: a human ─► oversee               │
                      └─Answer─────────────────────► check ──fails──────────┘
                                                       └─accepted─► record → END

Implements section 8.4.1 of the AI Safety Atlas (task decomposition, error checking) and Christiano
et al. 2018, section 2. A sub-question runs this graph one level deeper only where the overseer
decomposes it further. Failures are values: a failed subtask returns an error record and its
siblings continue.
"""

# pyright: reportMissingTypeStubs=false

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, cast

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Send

from reflux.agents.overseers.protocol import reserve_of
from reflux.agents.policy.policy import joined
from reflux.agents.types import Answer, Ask, Chain, Step, SubQuestion, step_from_json, step_to_json
from reflux.graphs.amplify.chain import chained
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.direct_answer import answer_directly
from reflux.graphs.amplify.flow import (
    entry_of,
    filling,
    labelled,
    labels_on,
    proposal,
    question_problem,
    step_labels,
    to_combine,
)
from reflux.graphs.amplify.screening import screened
from reflux.graphs.amplify.state import (
    AmplifyState,
    Outcome,
    SubResult,
    SubTask,
    exchange_error,
    failed_outcome,
    fresh_state,
    human_outcome,
    is_accepted,
    left_of,
    plus,
)
from reflux.graphs.amplify.steps import (
    StepResult,
    decompositions_before,
    listening,
    node_of,
    overseer_at,
    retry_index,
    take_step,
)
from reflux.graphs.amplify.verify import NOT_DIVIDED, check
from reflux.graphs.traces.events import answered

Ran = Runtime[AmplifyContext]
Update = dict[str, Any]


async def screen(state: AmplifyState, runtime: Ran) -> Update:
    """End a question that must not be asked with a failed outcome."""
    reason = screened(state, runtime.context)
    return {} if reason is None else {"outcome": failed_outcome(reason)}


async def oversee(state: AmplifyState, runtime: Ran) -> Update:
    """Let the overseer take its next step."""
    context = listening(runtime)
    if state["step"] >= context.limits.steps:
        return {"error": f"no answer after {context.limits.steps} steps"}
    alone: Update | None = None
    if state["depth"] == state["attempt"] == state["step"] == 0 and context.agent_first:
        outcome, cascade = await _by_agent(state, context), context.cascade
        alone = {"step": 1, **_proposed(state, context, outcome)}
        if cascade is not None:
            alone["weighed"] = cascade.judged(outcome.get("confidence"))
        if context.weighs(0) or alone["weighed"]["cascade"]["sure"]:
            return alone
        state = {**state, "spent": alone["spent"], "weighed": alone["weighed"]}
    first = state["first_step"]
    result = StepResult(step_from_json(first)) if first else await take_step(state, context)
    step, spent = result.step, plus(state["spent"], result.spent)
    overseer = overseer_at(context, decompositions_before(state, context))
    labels = joined(result.labels, step_labels(state, context, overseer))
    if step is None:
        return {"error": result.error, "spent": spent, "weighed": state["weighed"]}
    advance: Update = {"step": state["step"] + 1, "first_step": None, "spent": spent}
    advance["weighed"] = state["weighed"]
    if isinstance(step, Answer):
        if (question := to_combine(state, context, overseer, labels)) is not None:
            node, left = replace(node_of(state, context), question=question), left_of(state)
            outcome = await answer_directly(context, node, left)
            return {**advance, **_proposed({**state, "spent": spent}, context, outcome)}
        return {**advance, **proposal(state, context, context.normalise(step.text), labels)}
    state = {**state, "spent": spent}
    if not _divides(step, state, context):
        if context.weighs(state["depth"]):  # The agent has answered already.
            return {**advance, "error": NOT_DIVIDED}
        if alone is not None:
            return {**alone, **advance}
        return {**advance, **_proposed(state, context, await _by_agent(state, context))}
    if isinstance(step, Chain):
        return {**advance, **await chained(state, context, step, labels)}
    return {**advance, **_ask_batch(state, context, cast(Ask, step), labels)}


def _divides(step: Step, state: AmplifyState, context: AmplifyContext) -> bool:
    has_parts = isinstance(step, Chain) or (isinstance(step, Ask) and bool(step.subquestions))
    return has_parts and state["depth"] < context.limits.depth


async def _by_agent(state: AmplifyState, context: AmplifyContext) -> Outcome:
    """The agent's answer to the question undivided."""
    return await answer_directly(context, node_of(state, context), left_of(state))


def _proposed(state: AmplifyState, context: AmplifyContext, outcome: Outcome) -> Update:
    return {
        "truncated": outcome["status"] == "truncated",
        "error": outcome["error"],
        **proposal(state, context, outcome["answer"], outcome.get("labels", ())),
        "spent": plus(state["spent"], outcome["spent"]),
    }


def _ask_batch(
    state: AmplifyState, context: AmplifyContext, ask: Ask, labels: Sequence[str]
) -> Update:
    """Split what is left of the budget among the sub-questions, in order."""
    batch = ask.subquestions
    if len(batch) > context.limits.fanout:
        return {
            "error": f"the overseer asked {len(batch)} sub-questions at once: raise limits.fanout "
            f"from {context.limits.fanout}"
        }
    if any(not 0 <= need < index for index, s in enumerate(batch) for need in s.needs):
        return {"error": "a sub-question may need only those before it in its batch"}
    reserve = reserve_of(overseer_at(context, state["attempt"]))
    left = left_of(state).minus(reserve.calls, reserve.tokens)
    # No decomposition that is weighed spends what the next one needs.
    left = left.split(context.decompositions_left(state["depth"], state["attempt"]))[0]
    shares = left.split(len(batch))
    return {
        "batch": [
            {
                "text": sub.text,
                "needs": list(sub.needs),
                "to": sub.to,
                **vars(share),
                "retries": retry_index(state, context),
                **({"labels": list(labels)} if labels else {}),
            }
            for sub, share in zip(batch, shares, strict=True)
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
        failed = [need for need in entry["needs"] if done[need]["answer"] is None]
        answers = {need: filling(done[need]) for need in entry["needs"]}
        task: SubTask = {
            "index": index,
            "question": SubQuestion(entry["text"]).filled(answers),
            # `step` counts the step that asked already; its children carry that step's number.
            "path": f"{state['path']}/{state['attempt']}.{state['step'] - 1}.{index}",
            "depth": state["depth"] + 1,
            "ancestors": [*state["ancestors"], state["question"]],
            "asked": [*state.get("asked", []), state["question"], *_elder(state, index)],
            "question_id": state["question_id"],
            "retries": entry["retries"],
            "calls": entry["calls"],
            "tokens": entry["tokens"],
            "to": entry["to"],
            "blocked": f"needs sub-question {failed[-1]}, which failed" if failed else None,
        }
        if labels := labels_on(entry, [done[need] for need in entry["needs"]]):
            task["labels"] = labels
        ready.append(Send("subtask", task))
    return ready


def _elder(state: AmplifyState, index: int) -> list[str]:
    """What was asked before a sub-question, on the same question; whatever its answers were."""
    texts = [each["question"] for each in state["transcript"]]
    texts += [entry["text"] for entry in state["batch"][:index] if not entry["needs"]]
    return texts


async def aggregate(state: AmplifyState) -> Update:
    """Join the batch: append one transcript entry per sub-question, in the order of the batch."""
    results = sorted(state["results"], key=lambda result: result["index"])
    if len(results) < len(state["batch"]):
        return {}  # Some still wait for what they need.
    entries = [
        entry_of(result["question"], result["outcome"], exchange_error(result["outcome"]))
        for result in results
    ]
    return {
        "transcript": [*state["transcript"], *entries],
        "spent": plus(state["spent"], *(result["outcome"]["spent"] for result in results)),
        "batch": [],
        "results": None,  # Tells the reducer to clear.
    }


async def subtask(task: SubTask, runtime: Ran) -> Update:
    """Answer one sub-question: as a primitive, by the agent, or one level deeper."""
    spans, model = runtime.context.recorded_client.spans, runtime.context.model
    async with runtime.context.concurrency.at(task["depth"]):
        context, state = listening(runtime), fresh_state(task)
        path, question = task["path"], task["question"]
        context.emit({"event": "asked", "path": path, "question": question, "to": task["to"]})
        state["retries"] += context.asked_before(path, question)
        with spans.node(path, task["to"], model) as span:
            outcome = await _resolve(state, task, context)
            span.ended(outcome["status"])
    result: SubResult = {"index": task["index"], "question": question, "outcome": outcome}
    return {"results": [result]}


async def _resolve(state: AmplifyState, task: SubTask, context: AmplifyContext) -> Outcome:
    override = context.override(state["path"], state["question"])
    if override is not None and override.answer is not None:
        answer = context.normalise(override.answer)
        outcome = human_outcome(answer, override.calls, override.tokens)
        return await _recorded(state, context, outcome, by="human")
    reason = task["blocked"] or screened(state, context) or question_problem(task, context)
    if reason is not None:
        return await _recorded(state, context, failed_outcome(reason))
    if task["to"]:
        return await answer_directly(context, node_of(state, context), left_of(state), task["to"])
    result = await take_step(state, context)
    step = result.step
    if step is None:
        outcome: Outcome = {**failed_outcome(result.error or ""), "spent": result.spent}
        return await _recorded(state, context, outcome)
    if isinstance(step, Answer):
        answer = context.normalise(step.text)
        ended: Outcome = {
            "answer": answer,
            "status": "unchecked",
            "error": None,
            "spent": result.spent,
        }
        return labelled(ended, result.labels)
    state = {**state, "spent": result.spent}
    if _divides(step, state, context):
        state = {**state, "first_step": step_to_json(step)}
        if result.labels:
            state["labels"] = [*joined(state.get("labels", ()), result.labels)]
        return (await compiled_graph().ainvoke(state, context=context))["outcome"]
    # The agent gets what the overseer left of the sub-question's share.
    outcome = await answer_directly(context, node_of(state, context), left_of(state))
    return {**outcome, "spent": plus(result.spent, outcome["spent"])}


async def record(state: AmplifyState, runtime: Ran) -> Update:
    """Record how the question ended."""
    labels = state.get("answer_labels", ())
    outcome = labelled(cast(Outcome, state["outcome"]), labels)
    await _recorded(state, listening(runtime), outcome, **state["weighed"])
    return {"outcome": outcome} if labels else {}


async def _recorded(
    state: AmplifyState, context: AmplifyContext, outcome: Outcome, **more: Any
) -> Outcome:
    await context.recorded_client.store.add_judgement(
        state["question_id"],
        state["path"],
        "outcome",
        is_accepted(outcome["status"]),
        {"question": state["question"], "attempts": state["attempt"] + 1, **more, **outcome},
        key="0",
    )
    context.emit(answered(state["path"], False, {**outcome, **more}))
    return outcome


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
def compiled_graph() -> Any:
    """The graph, compiled; within another graph it inherits that graph's checkpointer."""
    return cast(Any, build_graph()).compile()
