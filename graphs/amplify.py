"""Amplify^H(X) as a LangGraph state machine.

    START → screen → oversee ──Ask── Send×n ─► subtask ─► aggregate ──┐
                      │   ▲ ◄─────────────────────────────────────────┘
                      │   └────── retry: other seed, other decomposition ◄──┐
                      ├─Defer─► interrupt: a person ─► oversee              │
                      └─Answer─────────────────────► check ──fails──────────┘
                                                       └─accepted─► record → END

Implements the seed's 8.4.1 (task decomposition, error checking) and Christiano et al. 2018,
section 2. A sub-question runs this graph one level deeper only where H decomposes it further.
Failures are values: a failed subtask returns an error record and its siblings go on.
"""

# pyright: reportMissingTypeStubs=false

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, cast

from langgraph.errors import GraphBubbleUp
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Send, interrupt

from agents.budget import Budget
from agents.errors import EndpointError, RefluxError
from agents.overseer import AnyOverseer, reserve_of, seated
from agents.screen import redact
from agents.types import (
    Answer,
    Ask,
    Defer,
    Exchange,
    Step,
    SubQuestion,
    step_from_json,
    step_to_json,
)
from graphs.desk import StepDesk
from graphs.leaf import answer_directly
from graphs.state import (
    NOTHING_SPENT,
    AmplifyContext,
    AmplifyState,
    Outcome,
    Spent,
    SubResult,
    SubTask,
    best_proposal,
    failed_outcome,
    plus,
    silent,
    tries,
)
from graphs.traces import CallKey

Ran = Runtime[AmplifyContext]
Update = dict[str, Any]
DEFERRED_AGAIN = "a person deferred the question again"


def _context(runtime: Ran) -> AmplifyContext:
    context = runtime.context
    return context if context.emit is not silent else replace(context, emit=runtime.stream_writer)


def begin(question: str, question_id: str, context: AmplifyContext) -> AmplifyState:
    """The state of a root question before its first step."""
    limits = context.limits
    return _fresh(redact(question), question_id, "", 0, [], limits.calls, limits.tokens, 0)


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
        "error": None,
        "proposals": [],
        "outcome": None,
    }


def screened(state: AmplifyState, context: AmplifyContext) -> str | None:
    """Why a question is refused before anything is asked; None where it is not."""
    question = state["question"]
    if not question.strip():
        return "the question is empty"
    if len(question) > context.limits.question_chars:
        return (
            f"the question has {len(question)} characters, the limit is "
            f"{context.limits.question_chars}"
        )
    if any("\ud800" <= char <= "\udfff" for char in question):
        return "the question is no Unicode text: it holds half a surrogate pair"
    if context.canonical(question) in map(context.canonical, state["ancestors"]):
        return f"CycleError: {question!r} repeats one of its ancestors"
    return None


async def screen(state: AmplifyState, runtime: Ran) -> Update:
    """Refuse what must not be asked, as a failed outcome."""
    if (reason := screened(state, runtime.context)) is None:
        return {}
    return {"outcome": failed_outcome(reason)}


async def oversee(state: AmplifyState, runtime: Ran) -> Update:
    """Let H take its next step."""
    context = _context(runtime)
    if state["step"] >= context.limits.steps:
        return {"error": f"no answer after {context.limits.steps} steps"}
    given = state["first_step"]
    taken = Taken(step_from_json(given)) if given else await take_step(state, context)
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
    if not step.subquestions or state["depth"] >= context.limits.depth:
        return {**advance, **await leave_to_x(state, context)}
    return {**advance, **ask_batch(state, context, step)}


@dataclass(frozen=True)
class Taken:
    """A step of H, or why there is none, and what it cost."""

    step: Step | None
    spent: Spent = field(default_factory=lambda: NOTHING_SPENT)
    error: str | None = None


async def take_step(state: AmplifyState, context: AmplifyContext) -> Taken:
    """H's next step, recorded; a person's where H defers. What H's code raises is a value."""
    overseer = overseer_of(state, context)
    key = CallKey(state["question_id"], state["path"], "overseer", state["step"], state["attempt"])
    given = Budget(state["calls"], state["tokens"])
    left = given.minus(state["spent"]["calls"], state["spent"]["tokens"])
    desk = StepDesk(context, key, _tries(state, context), left)
    transcript = [Exchange(**said) for said in state["transcript"]]
    may_ask = state["depth"] < context.limits.depth
    try:
        step = await seated(overseer, desk).act(state["question"], transcript, may_ask)
        if isinstance(step, Defer):
            row = context.caller.store.find_call(key)
            form = {"path": state["path"], "form": dict(step.form)}
            said = json.loads(row["completion"]) if row else interrupt(form)
            step = step_from_json(approved(said, step.form))
        step = await context.caller.step(key, overseer.name, step)
    except GraphBubbleUp:
        raise
    except EndpointError as failure:
        return Taken(None, desk.spent, str(failure))
    except RefluxError:
        raise
    except Exception as failure:  # noqa: BLE001 - H is the user's code: its failures are values
        reason = f"the overseer failed: {type(failure).__name__}: {failure}"
        return Taken(None, desk.spent, reason)
    context.emit({"event": "step", "path": state["path"], "step": step_to_json(step)})
    return Taken(step, desk.spent)


def overseer_of(state: AmplifyState, context: AmplifyContext) -> AnyOverseer:
    """H of this attempt."""
    return context.overseers[state["attempt"] % len(context.overseers)]


def approved(said: Mapping[str, Any], form: Mapping[str, Any]) -> Mapping[str, Any]:
    """A person's step: the proposal of the form where it is approved as it stands."""
    return form["proposal"] if said["kind"] == "approve" else said


def _tries(state: AmplifyState, context: AmplifyContext) -> int:
    """A number of its own for every way of retries that leads here, so that none draws the votes
    of another; see `tries`."""
    return tries(state["retries"], state["attempt"], state["depth"], context.limits)


async def leave_to_x(state: AmplifyState, context: AmplifyContext) -> Update:
    """X answers the question undivided."""
    outcome = await answer_directly(
        context,
        question=state["question"],
        question_id=state["question_id"],
        path=state["path"],
        retries=_tries(state, context),
        step=state["step"],
        calls=max(0, state["calls"] - state["spent"]["calls"]),
        tokens=max(0, state["tokens"] - state["spent"]["tokens"]),
    )
    return {
        "proposal": outcome["answer"],
        "error": outcome["error"],
        "spent": plus(state["spent"], outcome["spent"]),
    }


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
    left = Budget(state["calls"], state["tokens"]).minus(
        state["spent"]["calls"] + reserve.calls, state["spent"]["tokens"] + reserve.tokens
    )
    shares = left.split(len(asked))
    tried = _tries(state, context)
    return {
        "batch": [
            {
                "text": s.text,
                "needs": list(s.needs),
                "to": s.to,
                "calls": share.calls,
                "tokens": share.tokens,
                "retries": tried,
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


async def subtask(task: SubTask, runtime: Ran) -> Update:
    """One copy's work on one sub-question: H's primitive, X's answer, or a level deeper."""
    async with runtime.context.branches.at(task["depth"]):
        context = _context(runtime)
        context.emit({"event": "asked", "path": task["path"], "question": task["text"]})
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
        outcome = await _resolve(state, task, context)
    result: SubResult = {"index": task["index"], "question": task["text"], "outcome": outcome}
    return {"results": [result]}


async def _resolve(state: AmplifyState, task: SubTask, context: AmplifyContext) -> Outcome:
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
        return {"answer": answer, "status": "ok", "error": None, "spent": spent}
    if isinstance(step, Defer):
        return await _refuse(state, context, DEFERRED_AGAIN, spent)
    if step.subquestions and state["depth"] < context.limits.depth:
        deeper = await _level().ainvoke(
            {**state, "first_step": step_to_json(step), "spent": spent}, context=context
        )
        return deeper["outcome"]
    return await _answered(task, context, spent)


async def _answered(task: SubTask, context: AmplifyContext, spent: Spent) -> Outcome:
    """Whoever is to answer answers, with what H has left of the share."""
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


async def _refuse(
    state: AmplifyState, context: AmplifyContext, reason: str, spent: Spent = NOTHING_SPENT
) -> Outcome:
    """A sub-question that failed before a copy was asked; it is recorded all the same."""
    outcome: Outcome = {**failed_outcome(reason), "spent": spent}
    await _record(state, context, outcome)
    return outcome


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


async def check(state: AmplifyState, runtime: Ran) -> Update:
    """Test the proposal; a failure leads to another attempt while attempts and budget last."""
    context = _context(runtime)
    proposal = state["proposal"]
    spent = state["spent"]
    rule = "no_answer"
    if proposal is not None:
        verdict = context.checker.check(state["question"], proposal)
        rule = verdict.rule
        await context.caller.store.add_judgement(
            state["question_id"],
            state["path"],
            "check",
            verdict.ok,
            {"answer": proposal, "rule": rule},
            key=str(_tries(state, context)),
        )
        if verdict.ok:
            return {"outcome": {"answer": proposal, "status": "ok", "error": None, "spent": spent}}
    proposals = state["proposals"] + ([proposal] if proposal is not None else [])
    used_up = spent["calls"] >= state["calls"] or spent["tokens"] >= state["tokens"]
    broke = used_up or context.purse.lacks is not None
    if broke or state["attempt"] + 1 >= context.limits.attempts:
        best = best_proposal(proposals)
        status = "over_budget" if broke else "rejected" if best is not None else "failed"
        error = state["error"] or f"the check {rule!r} failed"
        return {"outcome": {"answer": best, "status": status, "error": error, "spent": spent}}
    context.emit({"event": "retry", "path": state["path"], "rule": rule, "error": state["error"]})
    return {
        "attempt": state["attempt"] + 1,
        "step": 0,
        "transcript": [],
        "proposal": None,
        "error": None,
        "proposals": proposals,
    }


async def record(state: AmplifyState, runtime: Ran) -> Update:
    """Write how the question ended."""
    outcome = state["outcome"]
    if outcome is None:
        raise RefluxError("the graph reached its end without an outcome; please report this")
    await _record(state, _context(runtime), outcome)
    return {}


async def _record(state: AmplifyState, context: AmplifyContext, outcome: Outcome) -> None:
    await context.caller.store.add_judgement(
        state["question_id"],
        state["path"],
        "outcome",
        outcome["status"] == "ok",
        {"question": state["question"], "attempts": state["attempt"] + 1, **outcome},
        key="0",
    )
    context.emit({"event": "answered", "path": state["path"], "leaf": False, **outcome})


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
    """The graph of one level; its checkpointer, if there is one, is the caller's."""
    return cast(Any, build_graph()).compile()
