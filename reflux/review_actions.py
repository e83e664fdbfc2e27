"""What a person does to a node, in the terminal or on the page: approve, edit, ask again, reject,
comment.

Verdicts and comments are rows. An edit is an override (`reflux.graphs.amplify.recompute`): the tree
is run once more in the context in which it was asked, and asks only for what depended on the node.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import AnyOverseer
from reflux.agents.redaction import is_unicode
from reflux.agents.types import Answer
from reflux.ask_options import ALONE, open_context, options_of
from reflux.finetune.config import config_from
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.amplify.context import AmplifyContext, silent
from reflux.graphs.amplify.interrupts import open_interruptible_run
from reflux.graphs.amplify.recompute import (
    check_editable,
    override,
    revise,
    revised_context,
    root_answer,
    text_of,
)
from reflux.graphs.amplify.state import Outcome, is_accepted
from reflux.graphs.amplify.steps import digest_of
from reflux.graphs.ask import Amplified, Direct, System, task_context
from reflux.graphs.traces.events import Event
from reflux.graphs.traces.review import Item, judge, remark
from reflux.graphs.traces.revisions import first_of, newest
from reflux.graphs.traces.store import CallKey, TraceStore
from reflux.overseers import OVERSEERS
from reflux.tasks import TASKS, task_named

Emit = Callable[[Event], None]
Open = Callable[[str], AbstractAsyncContextManager[OpenRun]]
"""Opens the run for a model's name: an engine or endpoint is only needed to ask anew."""


@dataclass(frozen=True)
class Acted:
    """What an action came to."""

    did: str
    trajectory: str
    """The revision that holds it."""
    outcome: Outcome | None = None
    """Of the root, where it was recomputed; None where nothing was, or a person is waited for."""
    recomputes: bool = False
    """The revision is begun, and its root still to be answered."""


async def approve(store: TraceStore, item: Item, open_run: Open, comment: str = "") -> Acted:
    """Say that a node is right: a proposal is taken, a refused answer accepted after all.

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
    """The refused answer that an approval puts in; None where the node's stands, and is approved.

    Raises:
        UsageError: there is no answer to approve.
    """
    if item.answer is None:
        raise UsageError("there is no answer to approve: put one in with an edit")
    return None if is_accepted(item.status) else item.answer


def check_not_empty(answer: str) -> None:
    """Refuse an edit that puts nothing in, or what is no text.

    Raises:
        UsageError: it does.
    """
    if not answer.strip():
        raise UsageError("an empty answer is none: reject the node instead")
    if not is_unicode(answer):
        raise UsageError("the answer is no Unicode text; write it in UTF-8")


async def reject(store: TraceStore, item: Item, comment: str = "") -> Acted:
    """Say that a node is wrong: its trajectory leaves the training rows."""
    await judge(store, item, False, comment)
    return Acted("rejected", item.trajectory)


async def comment_on(store: TraceStore, item: Item, comment: str) -> Acted:
    """Say something of a node, which stays in the queue."""
    await remark(store, item, comment)
    return Acted("commented", item.trajectory)


async def edit(
    store: TraceStore, item: Item, answer: str, open_run: Open, comment: str = ""
) -> Acted:
    """Put an answer in: where a person is waited for as H's, elsewhere in the place of the node's.

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
    """Override a node's answer, or ask it again where that is None; then recompute the root.

    An engine is opened only where there is something to recompute.

    Raises:
        UsageError: there is no such node, or it is not known how to recompute.
    """
    begun = await begin_override(store, trajectory, path, answer, comment)
    if not begun.recomputes:
        return begun
    made = begun.trajectory
    async with open_run(_model(store, made)) as opened:
        return Acted(begun.did, made, await recompute(opened, made, path, answer, emit))


async def begin_override(
    store: TraceStore, trajectory: str, path: str, answer: str | None, comment: str = ""
) -> Acted:
    """Put a person's word on the record as a revision, which `recompute` answers.

    Raises:
        UsageError: there is no such node, or it is not known how to recompute.
    """
    if path or answer is None:
        check_known(store, trajectory)
    made = await revise(store, trajectory, path, answer)
    last = made or newest(store, trajectory)
    if comment.strip():
        detail = {"comment": comment}
        await store.add_judgement(last, path, "comment", None, detail, author="person")
    if made is None:
        return Acted("unchanged", last)
    outcome = root_answer(store, made)
    did = "edited" if answer is not None else "asked again"
    return Acted(did, made, outcome, recomputes=outcome is None)


async def recompute(
    opened: OpenRun,
    made: str,
    path: str,
    answer: str | None,
    emit: Emit = silent,
    overseers: Mapping[str, AnyOverseer] = OVERSEERS,
) -> Outcome | None:
    """Answer a revision; None where a person is waited for."""
    async with asked_in(opened, made, emit, overseers) as (context, system):
        if options_of(opened.store, made) is None:
            return (await override(context, made, path, answer, system)).outcome
        context = revised_context(context, made)
        async with open_interruptible_run(
            context, opened.folder.checkpoints_path
        ) as interruptible_run:
            progress = await interruptible_run.ask(text_of(opened.store, made), made)
    if progress.outcome is not None:
        check_editable(opened.store, made)
    return progress.outcome


@asynccontextmanager
async def asked_in(
    opened: OpenRun,
    question_id: str,
    emit: Emit = silent,
    overseers: Mapping[str, AnyOverseer] = OVERSEERS,
) -> AsyncGenerator[tuple[AmplifyContext, Callable[[AmplifyContext], System]]]:
    """The context in which a root was asked, as far as the record and the run's config tell.

    Raises:
        UsageError: they do not tell.
    """
    options = options_of(opened.store, question_id)
    if options is not None:
        async with open_context(opened, options, emit, overseers) as context:
            yield context, Amplified
        return
    task = check_known(opened.store, question_id)
    folder = opened.folder
    config = config_from(folder.load_config(), str(folder.config_path))
    context = config.context(opened.recorded_client, _model(opened.store, question_id), emit=emit)
    yield task_context(context, task_named(task)), _system(opened.store, question_id)


def check_known(store: TraceStore, question_id: str) -> str:
    """The task of a root that can be answered once more as it was asked; empty where it has none.

    Raises:
        UsageError: it cannot.
    """
    options = options_of(store, question_id)
    if options is not None and options.overseer == ALONE:
        raise UsageError("X answered alone: edit its answer, or ask again in a chat")
    if options is not None:
        return options.task
    (asked,) = store.select("SELECT task FROM questions WHERE id=?", (question_id,))
    if asked["task"] not in TASKS or not RunFolder(store.path.parent).exists:
        raise UsageError(
            f"it is not recorded how {first_of(question_id)} was asked, so only its root can be "
            "edited"
        )
    return asked["task"]


def _system(store: TraceStore, question_id: str) -> Callable[[AmplifyContext], System]:
    """Whether H took a step at the root."""
    steps = store.select(
        "SELECT 1 FROM calls WHERE question=? AND path='' AND role='overseer' LIMIT 1",
        (first_of(question_id),),
    )
    return Amplified if next(steps, None) is not None else Direct


def _model(store: TraceStore, question_id: str) -> str:
    """X, as it was then."""
    if (options := options_of(store, question_id)) is not None:
        return options.model
    found = store.select(
        "SELECT model FROM calls WHERE question=? AND kind='model' AND role='answer' LIMIT 1",
        (first_of(question_id),),
    )
    row = next(found, None)
    return row["model"] if row else "base"


async def _reply(
    store: TraceStore, item: Item, step: dict[str, str], open_run: Open, comment: str
) -> Acted:
    """Take the step that a person is waited for; a question that can go on at once does so."""
    if comment:
        await remark(store, item, comment)
    options = options_of(store, item.trajectory)
    if options is None or not options.overseer:
        # A run that stopped here takes the step from the log when it goes on.
        form = item.form or {}
        said = form["proposal"] if step["kind"] == "approve" else step
        if said["kind"] != "answer":
            raise UsageError("this run can only be answered: use an edit")
        key = CallKey(item.trajectory, item.path, "overseer", item.step, item.attempt)
        async with open_run(_model(store, item.trajectory)) as opened:
            await opened.recorded_client.step(key, "person", Answer(said["text"]), digest_of(form))
        return Acted("answered: go on with `reflux run --resume`", item.trajectory)
    async with open_run(options.model) as opened, open_context(opened, options) as context:
        context = revised_context(context, item.trajectory)
        async with open_interruptible_run(
            context, opened.folder.checkpoints_path
        ) as interruptible_run:
            waiting = (await interruptible_run.look(item.trajectory)).pending
            ids = [each.id for each in waiting if each.path == item.path]
            if not ids:
                raise UsageError(f"{item.id} waits for nobody any more")
            progress = await interruptible_run.reply(item.trajectory, {ids[0]: step})
    return Acted("answered", item.trajectory, progress.outcome)
