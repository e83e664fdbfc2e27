"""A human approves, edits, rejects, comments on a node or asks it again, in terminal or browser.

Verdicts and comments are rows. An edit is an override (`reflux.graphs.recompute`): the tree
runs again in the context in which it was asked, and only what depends on the node is asked again.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.prompts import is_unicode
from reflux.agents.types import Answer
from reflux.ask_context import OVERSEERS, open_context
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.amplify.context import AmplifyContext, silent
from reflux.graphs.amplify.interrupts import Pending, open_checkpoints, open_interruptible_run
from reflux.graphs.amplify.state import Outcome, is_accepted
from reflux.graphs.amplify.steps import digest_of
from reflux.graphs.ask import Amplified, Direct, System, go_on
from reflux.graphs.ask_options import ALONE, OF_A_PROGRAM, options_of
from reflux.graphs.evals.task import task_context
from reflux.graphs.recompute import (
    check_editable,
    revise,
    revised_context,
    root_answer,
)
from reflux.graphs.traces.events import Event
from reflux.graphs.traces.review import Item, judge, remark
from reflux.graphs.traces.revisions import first_of, newest
from reflux.graphs.traces.store import CallKey, TraceStore
from reflux.graphs.traces.tree import find_question
from reflux.models import BASE
from reflux.tasks import TASKS, task_named

Emit = Callable[[Event], None]
Open = Callable[[str], AbstractAsyncContextManager[OpenRun]]
"""Opens the run for a model's name: only questions that are asked again need an engine."""


@dataclass(frozen=True)
class Acted:
    """The result of an action."""

    did: str
    trajectory: str
    """The revision that holds it."""
    outcome: Outcome | None = None
    """Of the root, if it was recomputed and waits for no human."""
    recomputes: bool = False
    """The revision has begun, and its root is still to be answered."""


async def approve(store: TraceStore, item: Item, open_run: Open, comment: str = "") -> Acted:
    """Judge a node right: a proposal is taken, a rejected answer is accepted.

    Raises:
        UsageError: there is nothing to approve.
    """
    if item.why == "escalated":
        if item.form is None or "proposal" not in item.form:
            raise UsageError("nothing is proposed here to approve: answer it with an edit")
        return await _reply(store, item, {"kind": "approve"}, open_run, comment)
    if (answer := approvable(item)) is not None:
        return await put(store, item.trajectory, item.path, answer, open_run, comment)
    await judge(store, item, True, comment)
    return Acted("approved", item.trajectory)


def approvable(item: Item) -> str | None:
    """The rejected answer that an approval accepts; None if the node's answer was accepted already.

    Raises:
        UsageError: there is no answer to approve.
    """
    if item.answer is None:
        raise UsageError("there is no answer to approve: put one in with an edit")
    return None if is_accepted(item.status) else item.answer


def check_not_empty(answer: str) -> None:
    """Check the answer of an edit.

    Raises:
        UsageError: it is empty, or not Unicode text.
    """
    if not answer.strip():
        raise UsageError("the answer is empty: reject the node instead")
    if not is_unicode(answer):
        raise UsageError("the answer is not Unicode text; write it in UTF-8")


async def reject(store: TraceStore, item: Item, comment: str = "") -> Acted:
    """Judge a node wrong: its trajectory leaves the training rows."""
    await judge(store, item, False, comment)
    return Acted("rejected", item.trajectory)


async def comment_on(store: TraceStore, item: Item, comment: str) -> Acted:
    """Comment on a node, which stays in the queue."""
    await remark(store, item, comment)
    return Acted("commented", item.trajectory)


async def edit(
    store: TraceStore, item: Item, answer: str, open_run: Open, comment: str = ""
) -> Acted:
    """Answer for the human that a node waits for, or else replace the node's answer.

    Raises:
        UsageError: the answer is empty.
    """
    check_not_empty(answer)
    if item.why == "escalated":
        step = {"kind": "answer", "text": answer}
        return await _reply(store, item, step, open_run, comment)
    return await put(store, item.trajectory, item.path, answer, open_run, comment)


async def put(
    store: TraceStore,
    trajectory: str,
    path: str,
    answer: str | None,
    open_run: Open,
    comment: str = "",
    emit: Emit = silent,
) -> Acted:
    """Override a node's answer, or ask it again if `answer` is None; then recompute the root.

    An engine is opened only if there is something to recompute.

    Raises:
        UsageError: there is no such node, or it cannot be asked again the same way.
    """
    begun = await begin_override(store, trajectory, path, answer, comment)
    if not begun.recomputes:
        return begun
    revision = begun.trajectory
    async with open_run(_model(store, revision)) as opened:
        return Acted(begun.did, revision, await recompute(opened, revision, emit))


async def begin_override(
    store: TraceStore, trajectory: str, path: str, answer: str | None, comment: str = ""
) -> Acted:
    """Record a human's override as a revision, which `recompute` answers.

    Raises:
        UsageError: there is no such node, or it cannot be asked again the same way.
    """
    if path or answer is None:
        check_known(store, trajectory)
    revision = await revise(store, trajectory, path, answer)
    latest = revision or newest(store, trajectory)
    if comment.strip():
        detail = {"comment": comment}
        await store.add_judgement(latest, path, "comment", None, detail, author="human")
    if revision is None:
        return Acted("unchanged", latest)
    outcome = root_answer(store, revision)
    did = "edited" if answer is not None else "asked again"
    return Acted(did, revision, outcome, recomputes=outcome is None)


async def recompute(
    opened: OpenRun,
    revision: str,
    emit: Emit = silent,
    overseers: Mapping[str, Overseer] = OVERSEERS,
) -> Outcome | None:
    """Answer the root of a revision; None while a human has to reply first."""
    _, text = find_question(opened.store, revision)
    async with asked_in(opened, revision, emit, overseers) as (context, system):
        context = revised_context(context, revision)
        if options_of(opened.store, revision) is None:
            outcome = await system(context).answer(text, revision)
        else:
            async with open_interruptible_run(context, opened.folder.checkpoints_path) as run:
                outcome = (await run.ask(text, revision)).outcome
    if outcome is not None:
        check_editable(opened.store, revision)
    return outcome


@asynccontextmanager
async def asked_in(
    opened: OpenRun,
    question_id: str,
    emit: Emit = silent,
    overseers: Mapping[str, Overseer] = OVERSEERS,
) -> AsyncGenerator[tuple[AmplifyContext, Callable[[AmplifyContext], System]]]:
    """The context in which a root was asked, from its options or the run's config.

    Raises:
        UsageError: neither is recorded.
    """
    options = options_of(opened.store, question_id)
    if options is not None:
        async with open_context(opened.recorded_client, options, emit, overseers) as context:
            yield context, Amplified
        return
    task = check_known(opened.store, question_id)
    config = opened.folder.config()
    context = config.context(opened.recorded_client, _model(opened.store, question_id), emit=emit)
    yield task_context(context, task_named(task)), _system(opened.store, question_id)


def check_known(store: TraceStore, question_id: str) -> str:
    """The task of a root that can be asked again the same way; empty if it has none.

    Raises:
        UsageError: it cannot.
    """
    options = options_of(store, question_id)
    if options is not None and options.overseer == ALONE:
        raise UsageError("the agent answered alone: edit its answer, or ask again in a chat")
    if options is not None and options.overseer.endswith(OF_A_PROGRAM):
        raise UsageError(
            f"{first_of(question_id)} was asked by {options.overseer}, with parts that only the "
            "program has, so only its root can be edited"
        )
    if options is not None:
        return options.task
    (row,) = store.select("SELECT task FROM questions WHERE id=?", (question_id,))
    if row["task"] not in TASKS or not RunFolder(store.path.parent).exists:
        raise UsageError(
            f"it is not recorded how {first_of(question_id)} was asked, so only its root can be "
            "edited"
        )
    return row["task"]


def _system(store: TraceStore, question_id: str) -> Callable[[AmplifyContext], System]:
    """The amplified system if an overseer took a step at the root, else the agent alone."""
    steps = store.select(
        "SELECT 1 FROM calls WHERE question=? AND path='' AND role='overseer' LIMIT 1",
        (first_of(question_id),),
    )
    return Amplified if any(steps) else Direct


def _model(store: TraceStore, question_id: str) -> str:
    if (options := options_of(store, question_id)) is not None:
        return options.model
    rows = store.select(
        "SELECT model FROM calls WHERE question=? AND kind='model' AND role='answer' LIMIT 1",
        (first_of(question_id),),
    )
    row = next(rows, None)
    return row["model"] if row else BASE


async def _reply(
    store: TraceStore, item: Item, step: dict[str, str], open_run: Open, comment: str
) -> Acted:
    """Take the step that waits for a human; a question that can go on at once does so."""
    if comment:
        await remark(store, item, comment)
    options = options_of(store, item.trajectory)
    if options is None or not options.overseer:
        # A run that stopped here takes the step from the log when it goes on.
        form = item.form or {}
        step = form["proposal"] if step["kind"] == "approve" else step
        if step["kind"] != "answer":
            raise UsageError("this run can only be answered: use an edit")
        key = CallKey(item.trajectory, item.path, "overseer", item.step, item.attempt)
        async with open_run(_model(store, item.trajectory)) as opened:
            await opened.recorded_client.step(key, "human", Answer(step["text"]), digest_of(form))
        return Acted("answered: go on with `reflux run --resume`", item.trajectory)

    def choose(pending: Sequence[Pending]) -> Mapping[str, Any]:
        ids = [each.id for each in pending if each.path == item.path]
        if not ids:
            raise UsageError(f"{item.id} waits for nobody any more")
        return {ids[0]: step}

    async with (
        open_run(options.model) as opened,
        open_context(opened.recorded_client, options) as context,
        open_checkpoints(opened.folder.checkpoints_path) as saver,
    ):
        context = revised_context(context, item.trajectory)
        answered = await go_on(context, item.trajectory, saver, reply=choose)
    return Acted("answered", item.trajectory, answered.outcome)
