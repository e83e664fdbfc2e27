"""Python's cyclic garbage collector kept out of the way while a tree grows.

A tree makes many objects that live until its end, and few cycles. Each full collection walks them
all, and every library beside them: about a fifth of the processor time of a call, and the tree
stands still meanwhile (`benchmarks.tree`).

Systems that answer questions: X alone, or X amplified by H. Each answer is a trajectory.
"""

import asyncio
import gc
import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from threading import Lock
from typing import Any, Protocol, cast

from langchain_core.runnables.config import var_child_runnable_config

from reflux.agents.budget import SpendLimit
from reflux.agents.errors import EndpointError, RefluxError, UsageError
from reflux.agents.redaction import redact
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.graph import begin, build_graph
from reflux.graphs.amplify.self_consistency import answer_directly
from reflux.graphs.amplify.state import Outcome, exchange_error
from reflux.graphs.evals.task import Task
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.voting.voting import VotePolicy

THRESHOLDS = (50_000, 20, 20)
"""Objects before a young collection, and younger ones before an older: cycles are still freed."""

_lock = Lock()
_inside = 0
_before = gc.get_threshold()


@contextmanager
def rare_collections() -> Generator[None]:
    """Collect rarely; as before once the last of the blocks that overlap ends.

    Thresholds alone are changed: a collector that the user has switched off stays off.
    """
    global _inside, _before
    with _lock:
        _inside += 1
        if _inside == 1:
            _before = gc.get_threshold()
            gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                gc.set_threshold(*_before)


@contextmanager
def settled() -> Generator[None]:
    """For a process that serves: what lives at its start, libraries above all, is walked no more,
    and the rest rarely. A full collection would let every answer under way wait for it."""
    gc.collect()
    gc.freeze()
    try:
        with rare_collections():
            yield
    finally:
        gc.unfreeze()


@dataclass(frozen=True)
class Asked:
    """Where a question comes from; part of its id, so the same text may be asked anew."""

    run: str
    round: int
    system: str
    task: str
    split: str

    def question_id(self, text: str) -> str:
        """Id of one root question, the same whenever the run asks it again (hex, 16)."""
        body = "\x1f".join([self.run, str(self.round), self.system, self.task, self.split, text])
        return hashlib.sha256(body.encode()).hexdigest()[:16]


class System(Protocol):
    """Anything that answers a question under an id and says what that cost."""

    context: AmplifyContext

    async def answer(self, question: str, question_id: str) -> Outcome:
        """Answer one question that the store knows already."""
        ...


class Amplified:
    """Amplify^H(X): the amplification graph."""

    def __init__(self, context: AmplifyContext) -> None:
        self.context = context

    async def answer(self, question: str, question_id: str) -> Outcome:
        """Run the graph on one question.

        It is a run of its own, whatever graph it is called from: nested, each of its steps would
        be written to that graph's checkpointer, beside the call log that holds them already.

        Raises:
            UsageError: H deferred to a person, for whom this run cannot wait.
        """
        outer = var_child_runnable_config.set(None)
        context = with_spend_limit(self.context)
        try:
            with rare_collections():
                state = await _compiled().ainvoke(
                    begin(question, question_id, context),
                    {"recursion_limit": recursion_limit(context)},
                    context=context,
                )
        finally:
            var_child_runnable_config.reset(outer)
        if state["outcome"] is None:
            raise UsageError(
                f"{question!r} was deferred to a person, who can only be waited for with a "
                "checkpointer: compile build_graph() with one and answer its interrupts"
            )
        return state["outcome"]


class Direct:
    """X itself: one copy, asked once, greedily, or as often as `votes` says."""

    def __init__(self, context: AmplifyContext, votes: VotePolicy | None = None) -> None:
        # Not a `replace` of the policy: its rule or its variants would ask more, or another.
        self.context = replace(context, votes=votes or VotePolicy(max_votes=1), everyone=False)

    async def answer(self, question: str, question_id: str) -> Outcome:
        """Ask X."""
        limits = self.context.limits
        return await answer_directly(
            with_spend_limit(self.context),
            question=question,
            question_id=question_id,
            path="",
            calls=limits.calls,
            tokens=limits.tokens,
            retries=self.context.asked_before("", question),
        )


def with_spend_limit(context: AmplifyContext) -> AmplifyContext:
    """The context of one root question: its seconds count from now, the run's purse pays, too."""
    limits = context.limits
    if limits.seconds is None and limits.money is None:
        return context
    spend_limit = context.spend_limit.for_question(limits.seconds, limits.money)
    return replace(context, spend_limit=spend_limit)


@cache
def _compiled() -> Any:
    return cast(Any, build_graph()).compile()


def recursion_limit(context: AmplifyContext) -> int:
    """Super-steps that one question can take: LangGraph's own limit must not end it first."""
    limits = context.limits
    batches = limits.fanout  # Sub-questions that need one another run one after the other.
    # Of an attempt's last two, one finds that no step is left, the other checks.
    return max(1, limits.attempts) * (limits.steps * (1 + 2 * batches) + 2) + 10


def task_context(context: AmplifyContext, task: Task) -> AmplifyContext:
    """A context whose overseers, checker and texts are the task's; where it holds a tool of the
    same name as one of the task's, H asks its own."""
    return replace(
        context,
        overseers=task.overseers(),
        tools={**task.tools(), **context.tools},
        checker=task.checker(),
        max_tokens=task.answer_tokens,
        system_prompt=task.system_prompt,
        normalise=task.normalise,
        canonical=task.canonical,
    )


async def answer_all(
    system: System,
    asked: Asked,
    questions: Sequence[str],
    *,
    max_concurrency: int = 32,
    on_done: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """Answer many questions, `max_concurrency` at a time; outcomes come in the order of
    `questions`.

    What was recorded under the same run before is replayed and costs no call. A question that
    is there twice is answered once. The first error that is no outcome ends all; what was
    recorded until then stays.
    """
    questions = [redact(question) for question in questions]
    gate = asyncio.Semaphore(max_concurrency)
    store = system.context.recorded_client.store
    done = 0

    async def one(question: str) -> Outcome:
        nonlocal done
        async with gate:
            question_id = asked.question_id(question)
            system.context.recorded_client.left_open.pop(question_id, None)
            await store.add_question({"id": question_id, "text": question, **vars(asked)})
            with system.context.recorded_client.spans.run(question_id, vars(asked)) as span:
                outcome = await system.answer(question, question_id)
                span.ended(outcome["status"])
        done += 1
        if on_done is not None:
            on_done(done)
        return outcome

    try:
        with rare_collections():
            async with asyncio.TaskGroup() as group:
                tasks = {q: group.create_task(one(q)) for q in dict.fromkeys(questions)}
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [tasks[question].result() for question in questions]


async def answer_every(
    system: System,
    asked: Asked,
    questions: Sequence[str],
    *,
    max_concurrency: int = 32,
    on_done: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """`answer_all` for those who score the answers: none is missing for want of an endpoint or
    of money.

    Raises:
        EndpointError: the endpoint is down, or was for a moment that cost an answer; what it did
            answer is recorded.
        RefluxError: the run's purse is empty.
    """
    outcomes = await answer_all(
        system, asked, questions, max_concurrency=max_concurrency, on_done=on_done
    )
    check_outage(outcomes, system.context.recorded_client)
    check_lost_calls(asked, questions, outcomes, system.context.recorded_client)
    check_spend_limit(outcomes, system.context.spend_limit)
    return outcomes


def check_spend_limit(outcomes: Sequence[Outcome], spend_limit: SpendLimit) -> None:
    """A run whose purse is empty must not look like a model that fails.

    Raises:
        RefluxError: one of its limits is used up, and some question was not answered for it.
    """
    cut = any(outcome["status"] in ("over_budget", "failed") for outcome in outcomes)
    if cut and (lacking := spend_limit.lacks) is not None:
        raise RefluxError(
            f"the run has no {lacking} left: raise purse.{lacking}. What was answered is kept, the "
            "same command goes on with it and pays nothing twice"
        )


def check_lost_calls(
    asked: Asked,
    questions: Sequence[str],
    outcomes: Sequence[Outcome],
    recorded_client: RecordedClient,
) -> None:
    """A question whose call failed for a while must not look like a wrong answer, whatever was
    answered after it.

    Raises:
        EndpointError: there are such questions, without an accepted answer.
    """
    lost = [
        recorded_client.left_open[id]
        for question, outcome in zip(questions, outcomes, strict=True)
        if exchange_error(outcome) is not None
        and (id := asked.question_id(redact(question))) in recorded_client.left_open
    ]
    if lost:
        raise EndpointError(
            f"{len(lost)} of {len(outcomes)} questions failed: {lost[-1]}. What was answered is "
            "kept, the same command goes on with it"
        )


def check_outage(outcomes: Sequence[Outcome], recorded_client: RecordedClient) -> None:
    """An endpoint that is down must not look like a model that fails.

    Raises:
        EndpointError: the last call failed at its endpoint, and with it every question, or some
            that it would answer another time.
    """
    failed = sum(outcome["status"] == "failed" for outcome in outcomes)
    outage = recorded_client.outage
    if outage is None or not failed or (outage.refused and failed < len(outcomes)):
        return
    which = f"{failed} of {len(outcomes)} questions" if len(outcomes) > 1 else "the question"
    raise EndpointError(
        f"{which} failed: {outage}. What was answered is kept, the same command goes on with it"
    )
