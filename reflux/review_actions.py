"""A human approves, edits, rejects, comments on a node or asks it again, in terminal or browser.

Verdicts and comments are rows. An edit is an override (`reflux.graphs.recompute`): the tree
runs again in the context in which it was asked, and only what depends on the node is asked again.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from reflux.agents.errors import Deferred, UsageError
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.overseers.scripted import parse_reply
from reflux.agents.prompts import is_unicode
from reflux.agents.types import step_from_json
from reflux.ask_context import open_context, open_tools
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs import recompute as revisions
from reflux.graphs.amplify.context import AmplifyContext, silent
from reflux.graphs.amplify.interrupts import (
    Pending,
    check_reply,
    open_checkpoints,
    open_interruptible_run,
)
from reflux.graphs.amplify.state import Outcome, is_accepted
from reflux.graphs.amplify.steps import approved, digest_of
from reflux.graphs.ask import Amplified, Direct, System, go_on
from reflux.graphs.ask_options import ALONE, OF_A_PROGRAM, AskOptions, options_of
from reflux.graphs.evals.task import task_context
from reflux.graphs.traces.events import Event
from reflux.graphs.traces.review import Item, judge, remark
from reflux.graphs.traces.reviewers.opinions import (
    Reviewer,
    add_opinion,
    check_name,
    decision,
    opinions,
    required,
)
from reflux.graphs.traces.revisions import first_of, newest
from reflux.graphs.traces.search import find_question
from reflux.graphs.traces.store import CallKey, TraceStore
from reflux.models import BASE
from reflux.overseers import OVERSEERS, demos_of
from reflux.tasks import TASKS, run_task, task_named

Action = Literal["approve", "edit", "again", "reject", "comment"]
Open = Callable[[str], AbstractAsyncContextManager[OpenRun]]
"""Opens the run for a model's name: only questions that are asked again need an engine."""
Reply = Callable[[Item, str], Awaitable[Outcome | None]]


@dataclass(frozen=True)
class Acted:
    """The result of a judgement."""

    did: str
    trajectory: str
    """The revision that holds it."""
    outcome: Outcome | None = None
    """Of the root, if it was recomputed and waits for no human."""
    recomputes: bool = False
    """The revision has begun, and `recompute` is to answer its root."""


async def judge_item(
    store: TraceStore,
    item: Item,
    action: Action,
    open_run: Open,
    reply: Reply,
    answer: str = "",
    comment: str = "",
    reviewer: Reviewer | None = None,
) -> Acted:
    """Record a human's judgement: a proposal is taken, a rejected answer accepted, an answer
    replaced, a question asked again.

    Where an item needs several reviewers, nothing of this happens before most of them say the same.

    Args:
        open_run: opens the run of a stopped question, for its answer.
        reply: answers what waits for a human, with words as of `reflux reply`.

    Raises:
        UsageError: there is nothing to approve, no answer, or the node cannot be asked again; or
            several reviewers judge, and this one has no name.
    """
    if action == "edit":
        check_not_empty(answer)
    if action == "comment":
        await remark(store, item, comment)
        return Acted("commented", item.trajectory)
    reviewer, put = reviewer or Reviewer(), answer if action == "edit" else None
    work = "again" if action == "again" else "reply" if item.why == "escalated" else ""
    needed = required(store)
    if work or needed == 1:
        check_name(reviewer.name)
        acted = await _carry_out(store, item, action, open_run, reply, answer, comment)
        await add_opinion(store, item.subject, reviewer, work or action, put)
        return acted
    if action == "edit" and item.path:
        check_known(store, item.trajectory)
    await add_opinion(store, item.subject, reviewer, action, put, comment)
    given = opinions(store, item.subject)
    if (decided := decision(given, needed)) is None:
        return Acted(f"noted; {max(needed - len(given), 1)} more to judge", item.trajectory)
    action, answer = cast(Action, decided.decision), decided.put or ""
    return await _carry_out(store, item, action, open_run, reply, answer, decided.comment)


async def _carry_out(
    store: TraceStore,
    item: Item,
    action: Action,
    open_run: Open,
    reply: Reply,
    answer: str,
    comment: str,
) -> Acted:
    """What a decision changes."""
    if action == "reject":
        await judge(store, item, False, comment)
        return Acted("rejected", item.trajectory)
    if item.why == "escalated" and action != "again":
        proposal: Any = (item.form or {}).get("proposal")
        if action == "approve" and proposal is None:
            raise UsageError("nothing is proposed here to approve: answer it with an edit")
        if comment.strip():
            await remark(store, item, comment)
        options = options_of(store, item.trajectory)
        words = "approve" if action == "approve" else f"answer: {answer}"
        if options is not None and options.overseer:
            return Acted("answered", item.trajectory, await reply(item, words))
        await reply_in_run(store, item, words, open_run)
        again = item.trajectory != first_of(item.trajectory)  # The run knows no revisions.
        did = "answered" if again else "answered: continue with `reflux run --resume`"
        return Acted(did, item.trajectory, recomputes=again)
    # An approval of a rejected answer puts the answer in.
    rejected = None if is_accepted(item.status) else item.answer
    text = {"edit": answer, "approve": rejected}.get(action)
    if action == "approve" and text is None:
        await judge(store, item, True, comment)
        return Acted("approved", item.trajectory)
    return await _begin_override(store, item, text, comment)


def check_not_empty(answer: str) -> None:
    """Check the answer of an edit.

    Raises:
        UsageError: it is empty, or not Unicode text.
    """
    if not answer.strip():
        raise UsageError("the answer is empty: reject the node instead")
    if not is_unicode(answer):
        raise UsageError("the answer is not Unicode text; write it in UTF-8")


async def _begin_override(store: TraceStore, item: Item, answer: str | None, comment: str) -> Acted:
    """Record an override as a revision, which `recompute` answers; None asks again."""
    if item.path or answer is None:
        check_known(store, item.trajectory)
    revision = await revisions.revise(store, item.trajectory, item.path, answer)
    latest = revision or newest(store, item.trajectory)
    if comment.strip():
        await remark(store, replace(item, trajectory=latest), comment)
    if revision is None:
        return Acted("unchanged", latest)
    outcome = revisions.root_answer(store, revision)
    did = "edited" if answer is not None else "asked again"
    return Acted(did, revision, outcome, recomputes=outcome is None)


async def recompute(
    opened: OpenRun,
    revision: str,
    emit: Callable[[Event], None] = silent,
    overseers: Mapping[str, Overseer] = OVERSEERS,
) -> Outcome | None:
    """Answer the root of a revision in the context in which it was asked, from its options or the
    run's config; None while a human has to reply first.

    Raises:
        UsageError: neither is recorded.
    """
    store = opened.store
    _, text = find_question(store, revision)
    if (options := options_of(store, revision)) is None:
        task = task_named(check_known(store, revision), opened.folder)
        config, model = opened.folder.config(), model_of(store, revision)
        context = task_context(config.context(opened.recorded_client, model, emit=emit), task)
        async with open_tools(task.tool_names) as grants:
            context = revisions.revised_context(context.granting(grants), revision)
            try:
                outcome = await _system(store, revision)(context).answer(text, revision)
            except Deferred:
                return None
    else:
        async with open_context(opened, options, emit, overseers) as context:
            context = revisions.revised_context(context, revision)
            async with open_interruptible_run(context, opened.folder.checkpoints_path) as run:
                outcome = (await run.ask(text, revision)).outcome
    if outcome is not None:
        revisions.check_editable(store, revision)
    return outcome


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
        demos_of(options.demos)  # Raises where its demonstrations were changed.
        return options.task
    (row,) = store.select("SELECT task FROM questions WHERE id=?", (question_id,))
    config = RunFolder(store.path.parent).rounds_config()
    if config is None or row["task"] not in (*TASKS, run_task(config).name):
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


def model_of(store: TraceStore, question_id: str) -> str:
    """The name of the agent that answered a root."""
    if (options := options_of(store, question_id)) is not None:
        return options.model
    rows = store.select(
        "SELECT model FROM calls WHERE question=? AND kind='model' AND role='answer' LIMIT 1",
        (first_of(question_id),),
    )
    row = next(rows, None)
    return row["model"] if row else BASE


async def reply_in_run(store: TraceStore, item: Item, words: str, open_run: Open) -> None:
    """Record a human's reply to a run that ended here; it takes the step from the log on resume.

    Raises:
        UsageError: the words are no step that is possible here.
    """
    reply, form = parse_reply(words), item.form or {}
    check_reply(Pending(item.id, item.path, form), reply)
    key = CallKey(item.trajectory, item.path, "overseer", item.step, item.attempt)
    async with open_run(model_of(store, item.trajectory)) as opened:
        step = step_from_json(approved(reply, form))
        await opened.recorded_client.step(key, "human", step, digest_of(form))


async def reply_to(open_run: Open, store: TraceStore, item: Item, words: str) -> Outcome | None:
    """Reply to a question that waits for a human; it continues as far as it can.

    Raises:
        UsageError: it no longer waits.
    """
    options = cast(AskOptions, options_of(store, item.trajectory))

    def choose(pending: Sequence[Pending]) -> Mapping[str, Any]:
        ids = [each.id for each in pending if each.path == item.path]
        if not ids:
            raise UsageError(f"{item.id} no longer waits for a reply")
        return {ids[0]: parse_reply(words)}

    async with (
        open_run(options.model) as opened,
        open_context(opened, options) as context,
        open_checkpoints(opened.folder.checkpoints_path) as saver,
    ):
        context = revisions.revised_context(context, item.trajectory)
        return (await go_on(context, item.trajectory, saver, reply=choose)).outcome
