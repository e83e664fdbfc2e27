"""The one way to ask a question: check it, record it with its options, run it, report its end.

Every command, server and API calls `ask`; evaluations and rounds call `answer_every`.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol, cast

from langchain_core.runnables.config import var_child_runnable_config
from langgraph.checkpoint.base import BaseCheckpointSaver

from reflux.agents.budget import SpendLimit
from reflux.agents.errors import EndpointError, RefluxError, UsageError
from reflux.agents.redaction import redact
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.graph import begin, build_graph, check_askable
from reflux.graphs.amplify.interrupts import (
    InterruptibleRun,
    Pending,
    RunProgress,
    recursion_limit,
    with_spend_limit,
)
from reflux.graphs.amplify.self_consistency import answer_directly
from reflux.graphs.amplify.state import Outcome, exchange_error
from reflux.graphs.ask_options import AskOptions, Origin, save_options
from reflux.graphs.evals.task import Task
from reflux.graphs.garbage_collection import rare_collections
from reflux.graphs.traces.review import marked_when_stopped
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import CallFailure, find_failure, last_call_id
from reflux.graphs.voting.voting import VotePolicy


class System(Protocol):
    """Anything that answers a question under an id and says what that cost."""

    context: AmplifyContext

    async def answer(self, question: str, question_id: str) -> Outcome:
        """Answer one question that the store holds already."""
        ...


class Amplified:
    """Amplify^H(X): the amplification graph."""

    def __init__(self, context: AmplifyContext, *, nested: Any = None) -> None:
        """`nested` is the compiled graph to run as part of the graph that calls it: interrupts and
        checkpoints are that graph's. Without it the run is separate, whichever graph calls it."""
        self.context = context
        self._nested = nested

    async def answer(self, question: str, question_id: str) -> Outcome:
        """Run the graph on one question.

        Raises:
            UsageError: the overseer deferred to a human, which needs a checkpointer.
        """
        outer = None if self._nested is not None else var_child_runnable_config.set(None)
        context = with_spend_limit(self.context)
        try:
            with rare_collections():
                state = await (self._nested or _compiled()).ainvoke(
                    begin(question, question_id, context),
                    {"recursion_limit": recursion_limit(context)},
                    context=context,
                )
        finally:
            if outer is not None:
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
        """Ask the agent."""
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


@cache
def _compiled() -> Any:
    return cast(Any, build_graph()).compile()


def task_context(context: AmplifyContext, task: Task) -> AmplifyContext:
    """The context with the task's overseers, checker and texts.

    A tool of the context replaces the task's tool of the same name.
    """
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


@dataclass(frozen=True)
class Answered:
    """How far a question came."""

    trajectory: str
    outcome: Outcome | None
    """None while a human has to reply first."""
    pending: Sequence[Pending] = ()
    failure: CallFailure | None = None
    """Of a question without an accepted answer: the call that got no reply this time."""

    def check_endpoint(self) -> "Answered":
        """Return self; an endpoint that is down must not look like an agent that fails.

        Raises:
            EndpointError: the question failed with its last call.
        """
        failed = self.outcome is not None and self.outcome["status"] == "failed"
        if failed and self.failure is not None and self.failure.is_last:
            raise self.failure.error()
        return self


WaitForHumans = Callable[[InterruptibleRun, str, RunProgress], Awaitable[RunProgress]]
"""(run, question id, progress) → later progress: shows what is pending and passes replies on."""


async def ask(
    context: AmplifyContext,
    question: str,
    origin: Origin,
    *,
    options: AskOptions | None = None,
    system: System | None = None,
    checkpoints: BaseCheckpointSaver[Any] | None = None,
    wait: WaitForHumans | None = None,
) -> Answered:
    """Ask one question. Its options are recorded, so its tree can go on, and be edited, later.

    Args:
        options: what the context was made of; by default what it tells of itself.
        system: what answers; the amplification graph by default.
        checkpoints: keep a question that waits for a human, who may reply after a restart.
        wait: gets the replies of humans while this call lasts.

    Raises:
        UsageError: the question cannot be asked in this context, or a human would have to be
            waited for without `checkpoints`.
    """
    question = redact(question)
    check_askable(question, context)
    question_id = origin.question_id(question)
    store = context.recorded_client.store
    async with recorded(store, question, origin, options or AskOptions.of(context)):
        if checkpoints is None:
            return await _answered(system or Amplified(context), question, origin)
        run, after = InterruptibleRun(context, checkpoints), last_call_id(store)
        progress = await run.ask(question, question_id)
        if wait is not None:
            progress = await wait(run, question_id, progress)
        return _answer_of(store, question_id, progress, after)


async def go_on(
    context: AmplifyContext,
    question_id: str,
    checkpoints: BaseCheckpointSaver[Any],
    *,
    reply: Callable[[Sequence[Pending]], Mapping[str, Any]] | None = None,
    wait: WaitForHumans | None = None,
) -> Answered:
    """Go on with a question that waits for a human, or that a crash stopped.

    Args:
        context: the one it was asked in.
        reply: chooses what to reply to what is pending, by id; may raise.

    Raises:
        UsageError: the question has not begun, or the reply is not possible.
    """
    store = context.recorded_client.store
    run, after = InterruptibleRun(context, checkpoints), last_call_id(store)
    progress = await run.look(question_id)
    if reply is not None:
        progress = await run.reply(question_id, reply(progress.pending))
    if wait is not None:
        progress = await wait(run, question_id, progress)
    return _answer_of(store, question_id, progress, after)


@asynccontextmanager
async def recorded(
    store: TraceStore, question: str, origin: Origin, options: AskOptions | None = None
) -> AsyncGenerator[None]:
    """Record a root question and its options in one commit; a cancelled block marks it stopped."""
    question_id = origin.question_id(question)
    rows = [store.add_question({"id": question_id, "text": question, **vars(origin)})]
    if options is not None:
        rows.append(save_options(store, question_id, options))
    await asyncio.gather(*rows)
    async with marked_when_stopped(store, question_id):
        yield


async def _answered(system: System, question: str, origin: Origin) -> Answered:
    """Run a system on a question that is on record."""
    question_id, recorded_client = origin.question_id(question), system.context.recorded_client
    after = last_call_id(recorded_client.store)
    with recorded_client.spans.run(question_id, vars(origin)) as span:
        outcome = await system.answer(question, question_id)
        span.ended(outcome["status"])
    return _answer_of(recorded_client.store, question_id, RunProgress(outcome), after)


def _answer_of(store: TraceStore, question_id: str, progress: RunProgress, after: int) -> Answered:
    outcome = progress.outcome
    is_unusable = outcome is not None and exchange_error(outcome) is not None
    failure = find_failure(store, question_id, after) if is_unusable else None
    return Answered(question_id, outcome, progress.pending, failure)


async def answer_all(
    system: System,
    origin: Origin,
    questions: Sequence[str],
    *,
    max_concurrency: int = 32,
    on_done: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """Answer many questions, `max_concurrency` at a time; outcomes have the order of `questions`.

    Recorded answers of the same origin are replayed and cost no call; equal questions are answered
    once. The first exception ends all; what was recorded until then stays.
    """
    answers = await _answer_batch(system, origin, questions, max_concurrency, on_done)
    return [cast(Outcome, answer.outcome) for answer in answers]


async def answer_every(
    system: System,
    origin: Origin,
    questions: Sequence[str],
    *,
    max_concurrency: int = 32,
    on_done: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """`answer_all` for scoring: a question that lost a call, or ran out of money, is an error.

    Raises:
        EndpointError: the endpoint failed, if only for a moment; what it answered is recorded.
        RefluxError: the run's spend limit is reached.
    """
    answers = await _answer_batch(system, origin, questions, max_concurrency, on_done)
    check_lost_calls(answers)
    outcomes = [cast(Outcome, answer.outcome) for answer in answers]
    check_spend_limit(outcomes, system.context.spend_limit)
    return outcomes


async def _answer_batch(
    system: System,
    origin: Origin,
    questions: Sequence[str],
    max_concurrency: int,
    on_done: Callable[[int], None] | None,
) -> list[Answered]:
    questions = [redact(question) for question in questions]
    gate = asyncio.Semaphore(max_concurrency)
    store = system.context.recorded_client.store
    done = 0

    async def answer(question: str) -> Answered:
        nonlocal done
        async with gate:
            row = {"id": origin.question_id(question), "text": question, **vars(origin)}
            await store.add_question(row)
            answered = await _answered(system, question, origin)
        done += 1
        if on_done is not None:
            on_done(done)
        return answered

    try:
        with rare_collections():
            async with asyncio.TaskGroup() as group:
                tasks = {q: group.create_task(answer(q)) for q in dict.fromkeys(questions)}
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [tasks[question].result() for question in questions]


def check_spend_limit(outcomes: Sequence[Outcome], spend_limit: SpendLimit) -> None:
    """A run whose spend limit is reached must not look like an agent that fails.

    Raises:
        RefluxError: a limit is reached, and some question was not answered because of it.
    """
    cut = any(outcome["status"] in ("over_budget", "failed") for outcome in outcomes)
    if cut and (lacking := spend_limit.lacks) is not None:
        raise RefluxError(
            f"the run has no {lacking} left: raise spend_limit.{lacking}. What was answered is "
            "kept, the same command goes on with it and pays nothing twice"
        )


def check_lost_calls(answers: Sequence[Answered]) -> None:
    """A question whose call failed must not look like a wrong answer, whatever was answered later.

    A refusal alone counts as the question's own failure, unless every question was refused.

    Raises:
        EndpointError: there are such questions without an accepted answer.
    """
    failures = [answer.failure for answer in answers if answer.failure is not None]
    lost = [failure for failure in failures if not failure.refused]
    if all(answer.outcome and answer.outcome["status"] == "failed" for answer in answers):
        lost = lost or [failure for failure in failures if failure.is_last]
    if lost:
        which = f"{len(lost)} of {len(answers)} questions" if len(answers) > 1 else "the question"
        raise EndpointError(
            f"{which} failed: {lost[-1].message}. What was answered is kept, the same command "
            "goes on with it"
        )
