"""The one way to ask a question: check it, record it with its options, run it, report its end.

Every command, server and API calls `ask`; evaluations and rounds call `answer_all`.
"""

import asyncio
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, TypeVar, cast

from langchain_core.runnables.config import var_child_runnable_config
from langgraph.checkpoint.base import BaseCheckpointSaver

from reflux.agents.budget import Budget, SpendLimit
from reflux.agents.errors import Deferred, EndpointError, RefluxError
from reflux.agents.redaction import redact
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.direct_answer import NodeRef, answer_directly
from reflux.graphs.amplify.graph import compiled_graph
from reflux.graphs.amplify.interrupts import (
    Answered,
    InterruptibleRun,
    Pending,
    how_far,
    recursion_limit,
    with_spend_limit,
)
from reflux.graphs.amplify.screening import begin, check_askable
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask_options import AskOptions, Origin
from reflux.graphs.garbage import rare_collections
from reflux.graphs.recorded_confidence import confidence
from reflux.graphs.traces.losses import ending_at_a_loss
from reflux.graphs.traces.review import marked_when_stopped
from reflux.graphs.traces.store import TraceStore, last_call_id
from reflux.graphs.traces.tree import load_tree
from reflux.graphs.voting.voting import VotePolicy

T = TypeVar("T")
LOST_IN_ROW = 16
"""Questions one after the other that lost a call: after them no other is asked."""
KEPT = "What was answered is kept; the same command, of a run with --resume, goes on with it"


class System(Protocol):
    """Anything that answers a question under an id and says what that cost."""

    context: AmplifyContext

    async def answer(self, question: str, question_id: str) -> Outcome:
        """Answer one question that the store holds already."""
        ...


class Amplified:
    """Amplify^H(X): the amplification graph."""

    def __init__(self, context: AmplifyContext, *, nested: Any = None) -> None:
        """`nested`: the compiled graph to run within the graph that calls it, which then keeps its
        interrupts and checkpoints. Without it the run is separate, whichever graph calls it."""
        self.context = context
        self._nested = nested

    async def answer(self, question: str, question_id: str) -> Outcome:
        """Run the graph on one question.

        Raises:
            Deferred: to a human. Only a checkpointer lets this call wait; a recorded reply does for
                the next call.
        """
        outer = None if self._nested is not None else var_child_runnable_config.set(None)
        context = with_spend_limit(self.context)
        try:
            with rare_collections():
                state = await (self._nested or compiled_graph()).ainvoke(
                    begin(question, question_id, context),
                    {"recursion_limit": recursion_limit(context)},
                    context=context,
                )
        finally:
            if outer is not None:
                var_child_runnable_config.reset(outer)
        if state["outcome"] is None:
            raise Deferred(
                f"{question!r} was deferred to a human, and only a run with a checkpointer can "
                "wait: compile build_graph() with one and answer its interrupts"
            )
        return state["outcome"]


class Direct:
    """The agent itself: one greedy copy, or as many as `votes` says."""

    def __init__(self, context: AmplifyContext, votes: VotePolicy | None = None) -> None:
        # Not a `replace` of the policy: its rule or its variants would ask more, or another.
        self.context = replace(context, votes=votes or VotePolicy(max_votes=1), everyone=False)

    async def answer(self, question: str, question_id: str) -> Outcome:
        context, limits = with_spend_limit(self.context), self.context.limits
        node = NodeRef(question, question_id, "", retries=context.asked_before("", question))
        return await answer_directly(context, node, Budget(limits.calls, limits.tokens))


WaitForHumans = Callable[[InterruptibleRun, str, Answered], Awaitable[Answered]]
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
    """Ask one question. Its options are recorded, so that its tree can be resumed and edited later.

    Args:
        options: what the context was made of; by default what it tells of itself.
        system: the amplification graph by default.
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
            answered = await _answered(system or Amplified(context), question, origin)
        else:
            run = InterruptibleRun(context, checkpoints)
            answered = await run.ask(question, question_id)
            answered = answered if wait is None else await wait(run, question_id, answered)
        return _with_confidence(store, answered)


async def go_on(
    context: AmplifyContext,
    question_id: str,
    checkpoints: BaseCheckpointSaver[Any],
    *,
    reply: Callable[[Sequence[Pending]], Mapping[str, Any]] | None = None,
    wait: WaitForHumans | None = None,
) -> Answered:
    """Resume a question that waits for a human, or that a crash stopped.

    Args:
        context: the one it was asked in.
        reply: chooses what to reply to what is pending, by id; may raise.

    Raises:
        UsageError: the question has not begun, or the reply is not possible.
    """
    run = InterruptibleRun(context, checkpoints)
    answered = await run.look(question_id)
    if reply is not None:
        answered = await run.reply(question_id, reply(answered.pending))
    answered = answered if wait is None else await wait(run, question_id, answered)
    return _with_confidence(context.recorded_client.store, answered)


def _with_confidence(store: TraceStore, answered: Answered) -> Answered:
    """The same, where it has an answer with how sure that is."""
    if (outcome := answered.outcome) is None or outcome["answer"] is None:
        return answered
    id = answered.trajectory
    return replace(
        answered, outcome={**outcome, "confidence": confidence(store, id, load_tree(store, id))}
    )


@asynccontextmanager
async def recorded(
    store: TraceStore, question: str, origin: Origin, options: AskOptions | None = None
) -> AsyncGenerator[None]:
    """Record a root question and its options in one commit; a cancelled block marks it stopped."""
    question_id = origin.question_id(question)
    rows = [store.add_question(origin.row(question))]
    if options is not None:
        rows.append(store.add_judgement(question_id, "", "how", None, asdict(options), key="0"))
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
    return how_far(recorded_client.store, question_id, outcome, after)


async def answer_all(
    system: System,
    origin: Origin,
    questions: Sequence[str],
    *,
    max_concurrency: int = 32,
    on_done: Callable[[int], None] | None = None,
    complete: bool = False,
) -> list[Outcome]:
    """Answer many questions as `answer_each` does; outcomes have the order of `questions`, and
    equal questions are answered once.

    Raises: as for `answer_each`.
    """
    outcomes: dict[str, Outcome] = {}

    def add(question: str, answered: Answered) -> None:
        outcomes[question] = cast(Outcome, answered.outcome)
        if on_done is not None:
            on_done(len(outcomes))

    different = list(dict.fromkeys(map(redact, questions)))
    await answer_each(
        system, origin, different, add, max_concurrency=max_concurrency, complete=complete
    )
    return [outcomes[redact(question)] for question in questions]


async def answer_each(
    system: System,
    origin: Origin,
    questions: Iterable[str],
    on_answer: Callable[[str, Answered], None],
    *,
    max_concurrency: int = 32,
    complete: bool = False,
) -> None:
    """Answer different questions, `max_concurrency` at a time, in constant memory; recorded answers
    of the same origin are replayed. The first exception ends all; what was recorded stays.

    Args:
        on_answer: receives each question and its answer, in the order of their ends.
        complete: all answers are needed: a question that lost a call, ran out of money or waits for
            a human is an error, after all others are asked, or `LOST_IN_ROW` lost one.

    Raises:
        EndpointError: the endpoint refuses the model altogether; or `complete`, and it failed, if
            only for a moment.
        Deferred: a question waits for a human, of an overseer that defers.
        RefluxError: `complete`, and the run's spend limit is reached.
    """
    store, waiting, losses = system.context.recorded_client.store, iter(questions), _Losses()

    async def work() -> None:
        for text in waiting:
            if complete and losses.in_row >= LOST_IN_ROW:
                return
            question = redact(text)
            await store.add_question(origin.row(question))
            try:
                with ending_at_a_loss() if complete else nullcontext():
                    answered = await _answered(system, question, origin)
            except Deferred:
                if not complete:
                    raise
                losses.add(None)
                continue
            if answered.failure is not None and answered.failure.is_final:
                raise EndpointError(f"{answered.failure}. {KEPT}")
            losses.add(answered)
            on_answer(question, answered)

    with rare_collections():
        await join([work() for _ in range(max_concurrency)])
    if complete:
        losses.check(system.context.spend_limit)


async def join(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; the first exception stops the other calls and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]


@dataclass
class _Losses:
    """Questions whose call failed, or that ran out of money, must not look like wrong answers. A
    refusal alone counts as the question's own failure, unless every question was refused."""

    questions: int = 0
    statuses: set[str] = field(default_factory=set[str])
    lost: list[EndpointError] = field(default_factory=list[EndpointError])
    refused: list[EndpointError] = field(default_factory=list[EndpointError])
    """Refusals that were a question's last call."""

    in_row: int = 0
    """Questions that lost a call since one lost none."""
    waiting: int = 0

    def add(self, answered: Answered | None) -> None:
        """Count one question; None waits for a human."""
        self.questions += 1
        if answered is None:
            self.waiting += 1
            return
        if answered.outcome is not None:
            self.statuses.add(answered.outcome["status"])
        failure = answered.failure
        self.in_row = 0 if failure is None or failure.refused else self.in_row + 1
        if self.in_row and failure is not None:
            self.lost.append(failure)
        elif failure is not None and failure.is_last:
            self.refused.append(failure)

    def check(self, spend_limit: SpendLimit) -> None:
        """Raise what answers that are to be complete lack."""
        lost = self.lost or (self.refused if self.statuses <= {"failed"} else [])
        if lost:
            which = f"{len(lost)} of {self.questions} questions"
            raise EndpointError(
                f"{which if self.questions > 1 else 'the question'} failed: {lost[-1]}. {KEPT}"
            )
        has_cut = not {"over_budget", "failed"}.isdisjoint(self.statuses)
        if has_cut and (lacking := spend_limit.lacks) is not None:
            raise RefluxError(
                f"the run has no {lacking} left: raise spend_limit.{lacking}. {KEPT} and pays "
                "nothing twice"
            )
        if self.waiting:
            raise Deferred(f"{self.waiting} of {self.questions} questions wait for a human")
