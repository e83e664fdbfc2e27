"""Any question, not only a task's: `reflux ask --overseer …`, and `reflux reply` for those that
wait for a person."""

import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from reflux.agents.errors import RefluxError, UsageError
from reflux.ask_options import AskOptions, open_context, options_of, save_options
from reflux.cli.contract import ERR, OUT, RUNS, Json, RunDir, emit, open_existing, run_async
from reflux.cli.human_input import CHOICES, converse, form_view, step_of
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.amplify.graph import check_askable
from reflux.graphs.amplify.interrupts import InterruptibleRun, RunProgress, open_interruptible_run
from reflux.graphs.amplify.recompute import revised_context
from reflux.graphs.amplify.state import is_accepted
from reflux.graphs.ask import Asked, check_outage
from reflux.graphs.traces.events import Event
from reflux.graphs.traces.review import marked_when_stopped
from reflux.graphs.traces.tree import Node, find_question, load_tree
from reflux.report.terminal import answer_line, counted, ended, tree_view


class Meter:
    """Shows what is spent while the tree grows."""

    def __init__(self, options: AskOptions, show: Callable[[str], None]) -> None:
        self._how = options
        self._show = show
        self._count: Counter[str] = Counter()

    def __call__(self, event: Event) -> None:
        """Listener of one event."""
        self._count[event["event"]] += 1
        if event["event"] != "called":
            return
        self._count["tokens"] += event["tokens"]
        left = "".join(f", {value:.0f} {name} left" for name, value in event["left"].items())
        self._show(
            f"{self._count['called']}/{self._how.calls} calls, {self._count['tokens']}"
            f"/{self._how.tokens} tokens, {self._count['asked']} sub-questions{left}"
        )


@dataclass(frozen=True)
class Told:
    """How far a question came, and how it was asked."""

    trajectory: str
    options: AskOptions
    progress: RunProgress
    tree: Node

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        outcome = self.progress.outcome
        waiting = [asdict(pending) for pending in self.progress.pending]
        return {
            "trajectory": self.trajectory,
            "overseer": self.options.overseer,
            "model": self.options.model,
            "answer": outcome["answer"] if outcome else None,
            "status": outcome["status"] if outcome else "waiting",
            "error": outcome["error"] if outcome else None,
            "spent": outcome["spent"] if outcome else None,
            "pending": waiting,
            "tree": self.tree.to_json(),
        }


async def ask_freely(folder: RunFolder, opened: OpenRun, text: str, options: AskOptions) -> Told:
    """Ask, and let persons in the terminal reply where H defers to them."""
    asked = Asked(folder.name, -1, f"ask-{uuid.uuid4().hex[:12]}", "", "asked")
    question_id = asked.question_id(text)
    async with opened:
        store = opened.store
        await store.add_question({"id": question_id, "text": text, **vars(asked)})
        await save_options(store, question_id, options)
        async with marked_when_stopped(store, question_id):
            return await go_on(
                folder, opened, question_id, text, options, lambda to: to.ask(text, question_id)
            )


async def go_on(
    folder: RunFolder,
    opened: OpenRun,
    question_id: str,
    text: str,
    options: AskOptions,
    first: Callable[[InterruptibleRun], Awaitable[RunProgress]],
) -> Told:
    """Do what comes `first`, then hear persons, and tell how far the question came."""
    async with AsyncExitStack() as stack:
        with ERR.status("asking") as status:
            meter = Meter(options, status.update)
            context = await stack.enter_async_context(open_context(opened, options, meter))
            context = revised_context(context, question_id)
            check_askable(text, context)
            path = folder.checkpoints_path
            interruptible_run = await stack.enter_async_context(
                open_interruptible_run(context, path)
            )
            progress = await first(interruptible_run)
        progress = await converse(interruptible_run, question_id, progress)
    if progress.outcome is not None:
        check_outage([progress.outcome], opened.recorded_client)
    return Told(question_id, options, progress, load_tree(opened.store, question_id))


def tell(folder: RunFolder, told: Told, as_json: bool) -> None:
    """Print the tree and the answer, or what still waits.

    Raises:
        RefluxError: it ended without an accepted answer.
    """
    outcome = told.progress.outcome
    if as_json:
        emit(told.to_json())
    elif outcome is None:
        OUT.print(tree_view(told.tree))
        for pending in told.progress.pending:
            OUT.print(form_view(pending))
        many = len(told.progress.pending)
        OUT.print(
            f"{many} {'waits' if many == 1 else 'wait'} for a person: reflux reply "
            f'{told.trajectory} "{CHOICES}" --run {folder.path}',
            soft_wrap=True,
            highlight=False,
        )
    else:
        OUT.print(tree_view(told.tree))
        spent, answer = outcome["spent"], outcome["answer"]
        about = (
            f"{outcome['status']}, H = {told.options.overseer}, X = {told.options.model}, "
            f"{counted(spent['calls'], 'call')}, {spent['tokens']} tokens, "
            f"trajectory {told.trajectory}"
        )
        OUT.print(answer_line(answer, about), soft_wrap=True, highlight=False)
    if outcome is not None and outcome["status"] == "truncated":
        raise RefluxError(
            f"the token limit cut the answer: raise --max-tokens from {told.options.max_tokens}"
        )
    if outcome is not None and not is_accepted(outcome["status"]):
        raise RefluxError(
            f"no accepted answer ({ended(outcome)}); allow more --calls, --tokens or --seconds, or "
            "take a --model that can answer it"
        )


def reply(
    trajectory: Annotated[str, typer.Argument(help="Id of the question that waits.")],
    words: Annotated[
        str, typer.Argument(help="`answer: TEXT`, `approve`, `pass`, or sub-questions.")
    ] = "",
    to: Annotated[
        str | None, typer.Option("--to", help="Which of those that wait; the first by default.")
    ] = None,
    run: RunDir = RUNS / "demo",
    as_json: Json = False,
) -> None:
    """Answer for a person where a question waits for one, today or days later."""
    folder = open_existing(run)
    tell(folder, run_async(_reply(folder, trajectory, words, to)), as_json)


async def _reply(folder: RunFolder, trajectory: str, words: str, to: str | None) -> Told:
    from reflux.cli.ask import open_run

    store = folder.store()
    try:
        question_id, text = find_question(store, trajectory)
        options = options_of(store, question_id)
    finally:
        store.close()
    if options is None or not options.overseer:
        raise UsageError(f"{question_id} was not asked with --overseer, so it waits for nobody")
    opened, _ = open_run(folder, options.model)

    async def first(interruptible_run: InterruptibleRun) -> RunProgress:
        progress = await interruptible_run.look(question_id)
        if not words:
            return progress
        if not progress.pending:
            raise UsageError(
                f"{question_id} waits for nobody; see `reflux traces show {question_id}`"
            )
        return await interruptible_run.reply(
            question_id, {to or progress.pending[0].id: step_of(words)}
        )

    async with opened:
        return await go_on(folder, opened, question_id, text, options, first)
