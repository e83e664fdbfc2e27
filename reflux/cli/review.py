"""`reflux review`: judge what waits for a human, is disputed, or is in the random audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from reflux import cli
from reflux.cli.contract import DEFAULT_RUN, MAX_LIMIT, Json, RunDir, open_existing, run_async

if TYPE_CHECKING or not cli.SHOWS_HELP:
    import time
    from collections.abc import Iterable, Iterator
    from contextlib import closing
    from dataclasses import replace
    from functools import partial

    from rich.console import Group, RenderableType
    from rich.panel import Panel

    from reflux.agents.errors import RefluxError, UsageError
    from reflux.cli.human_input import form_lines, read_key, read_line
    from reflux.finetune.run_folder import OpenRun, RunFolder
    from reflux.graphs.ask_options import options_of
    from reflux.graphs.traces.review import WHYS, Item, Why, find_item, page, queue, state_of
    from reflux.graphs.traces.reviewers.agreement import review_report
    from reflux.graphs.traces.reviewers.opinions import Reviewer, check_name, require
    from reflux.graphs.traces.revisions import NEWEST, first_of
    from reflux.graphs.traces.store import TraceStore
    from reflux.graphs.traces.tree import load_tree
    from reflux.models import as_asked, open_rounds, open_run
    from reflux.report.terminal import (
        ERR,
        OUT,
        counted,
        escape,
        plain,
        print_result,
        resume_hint,
        say,
        table_of,
        tree_view,
    )
    from reflux.review_actions import Acted, Action, judge_item, model_of, recompute, reply_to

KEYS = "a approve · e edit · g ask again · r reject · c comment · s skip · q quit"
ACTIONS: dict[str, Action] = {
    "a": "approve", "e": "edit", "g": "again", "r": "reject", "c": "comment"
}  # fmt: skip
PROMPTS = {"e": "the right answer", "c": "comment"}
"""Keys that need a line of text."""


def review(
    item: Annotated[
        str | None,
        typer.Argument(
            help="`list`, `report`, or the id of an item: TRAJECTORY/PATH.", metavar="ITEM"
        ),
    ] = None,
    run: RunDir = DEFAULT_RUN,
    approved: Annotated[bool, typer.Option("--approve", help="Mark the answer as right.")] = False,
    rejected: Annotated[
        bool,
        typer.Option("--reject", help="Mark it as wrong: the trajectory yields no training row."),
    ] = False,
    answer: Annotated[
        str | None,
        typer.Option(
            "--edit", help="Replace the answer and recompute what depends on it.", metavar="ANSWER"
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Ask the question again.")] = False,
    comment: Annotated[str, typer.Option("--comment", help="Add a comment.", metavar="TEXT")] = "",
    why: Annotated[
        Literal["escalated", "disputed", "audit"] | None,
        typer.Option("--why", help="List only items that are here for this reason."),
    ] = None,
    limit: Annotated[
        int, typer.Option(help="Maximum items in the list.", min=1, max=MAX_LIMIT)
    ] = 20,
    reviewer: Annotated[
        str,
        typer.Option(help="Your name, where several review.", envvar="REFLUX_REVIEWER"),
    ] = "",
    reviewers: Annotated[
        int | None,
        typer.Option(help="From now on, each item of this run needs so many reviewers.", min=1),
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge what waits for a human, is disputed, or is in the random audit.

    Without an item, the queue is shown one item at a time, and keys judge it. `report` tells how
    far several reviewers agree, and what reviewing costs in decisions and minutes.
    """
    folder = open_existing(run)
    whys: tuple[Why, ...] = (why,) if why else WHYS
    check_name(reviewer)
    with closing(folder.store()) as store:
        if reviewers is not None:
            run_async(require(store, reviewers))
        if item == "report":
            report = review_report(store)
            print_result(report, report_view(report), as_json)
            return
        if item is None and not as_json:
            _one_by_one(folder, store, _all(store, whys, reviewer), reviewer)
            return
        if item is None or item == "list":
            items = queue(store, limit, whys, reviewer)
            rows = [each.to_json() for each in items]
            columns = ("id", "why", "reason", "question", "answer")
            table = table_of(
                ("item", *columns[1:]),
                ([row[name] if row[name] is not None else "–" for name in columns] for row in rows),
            )
            print_result(rows, table if rows else "nothing to review", as_json)
            if not as_json:
                _print_resume_hints(folder, store)
            return
        chosen = {"a": approved, "r": rejected, "e": answer is not None, "g": again}
        keys = [key for key, is_chosen in chosen.items() if is_chosen]
        chosen_item = find_item(store, item)
        if not (keys or comment or as_json):
            _one_by_one(folder, store, [chosen_item], reviewer)
            return
        if len(keys) > 1 or not (keys or comment):
            raise UsageError("choose one of --approve, --reject, --edit, --again, or --comment")
        key = keys[0] if keys else "c"
        by = Reviewer(reviewer)
        acted = run_async(_act(folder, store, chosen_item, key, answer or "", comment, by))
        body = {"item": chosen_item.id, "did": acted.did}
        body |= {"trajectory": acted.trajectory, "outcome": acted.outcome}
        print_result(body, _line(acted, chosen_item), as_json)


async def _act(
    folder: RunFolder,
    store: TraceStore,
    item: Item,
    key: str,
    answer: str,
    comment: str,
    reviewer: Reviewer,
) -> Acted:
    def opened(model: str) -> OpenRun:
        options, config = options_of(store, item.trajectory), folder.rounds_config()
        if options is None and config is not None:
            return open_rounds(folder, config)
        with as_asked(options):
            return open_run(folder, model)[0]

    reply = partial(reply_to, opened, store)
    acted = await judge_item(store, item, ACTIONS[key], opened, reply, answer, comment, reviewer)
    if acted.recomputes:
        async with opened(model_of(store, acted.trajectory)) as run:
            acted = replace(acted, outcome=await recompute(run, acted.trajectory))
    return acted


def _line(acted: Acted, item: Item) -> str:
    line = f"{acted.did}: {item.id}"
    if acted.outcome is not None and acted.trajectory != item.trajectory:
        answer = acted.outcome["answer"]
        text = "no answer" if answer is None else escape(answer)
        line += f"; {acted.trajectory} now answers [bold]{text}[/] ({acted.outcome['status']})"
    return line


def _one_by_one(folder: RunFolder, store: TraceStore, items: Iterable[Item], reviewer: str) -> None:
    """Show one item at a time and act on the user's key, to the end of the queue."""
    judged = 0
    for item in items:
        key = _review_item(folder, store, item, reviewer)
        if key == "q":
            ERR.print(f"{judged} judged")
            return
        judged += key != "s"
    OUT.print(f"nothing else to review; {judged} judged")
    _print_resume_hints(folder, store)


def _review_item(folder: RunFolder, store: TraceStore, item: Item, reviewer: str) -> str:
    """Ask for keys until the item is judged, skipped or left; the last key."""
    OUT.print(item_view(store, item))
    state, shown = state_of(store, item), time.monotonic()
    while (key := read_key(KEYS)) not in ("q", "s"):
        if key not in ACTIONS:
            continue
        text = read_line(PROMPTS[key]) if key in PROMPTS else ""
        if key in PROMPTS and not text.strip():
            continue
        answer, comment = (text, "") if key == "e" else ("", text)
        try:
            if (now := state_of(store, item)) != state:
                item, state = find_item(store, f"{first_of(item.trajectory)}{item.path}"), now
                ERR.print("another user changed this item; it is now:")
                OUT.print(item_view(store, item))
                continue
            by = Reviewer(reviewer, time.monotonic() - shown)
            acted = run_async(_act(folder, store, item, key, answer, comment, by))
        except RefluxError as error:
            say(str(error), ERR)
            continue
        OUT.print(_line(acted, item))
        if key != "c":
            break
    return key


def _print_resume_hints(folder: RunFolder, store: TraceStore) -> None:
    """Name the edits whose trees are not recomputed to the end; until then they do not count."""
    rows = store.select(f"SELECT id FROM questions q WHERE revises IS NOT NULL AND {NEWEST}")  # noqa: S608
    for row in list(rows):
        if (hint := resume_hint(store, row["id"], folder.path)) is not None:
            say(hint)


def _all(store: TraceStore, whys: tuple[Why, ...], reviewer: str) -> Iterator[Item]:
    """Each item once, read one at a time: other users may judge the next ones meanwhile."""
    seen: set[str] = set()
    for why in whys:
        items, start = page(store, why, 1, None, reviewer)
        while items or start is not None:
            yield from (item for item in items if item.id not in seen)
            seen.update(item.id for item in items)
            items, start = page(store, why, 1, start, reviewer) if start is not None else ([], None)


def report_view(report: dict[str, Any]) -> RenderableType:
    """What `report` tells, as tables."""
    parts: list[RenderableType] = [
        f"{counted(report['items'], 'item')} judged by several: they disagreed on "
        f"{report['disagreed']}, {report['open']} open; Fleiss' kappa "
        f"{_two(report['fleiss_kappa'])}"
    ]
    pairs = report["pairs"]
    if pairs:
        rows = (
            (" and ".join(p["reviewers"]), str(p["n"]), f"{p['same']:.0%}", _two(p["cohen_kappa"]))
            for p in pairs
        )
        parts.append(table_of(("reviewers", "items", "the same", "Cohen's kappa"), rows))
    if report["burden"]:
        columns = ("round", "reviewer", "decisions", "minutes", "timed")
        rows = (
            ["–" if row[name] is None else str(row[name]) for name in columns]
            for row in report["burden"]
        )
        parts.append(table_of(columns, rows))
    return Group(*parts)


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def item_view(store: TraceStore, item: Item) -> RenderableType:
    """What a human needs to judge a node."""
    tree = load_tree(store, item.trajectory)
    node = next((node for node in tree.walk() if node.path == item.path), tree)
    parts: list[RenderableType] = [plain(item.question)]
    parts += map(plain, form_lines(item.form or {}))
    parts += [f"[dim]{escape(item.reason)}[/]", tree_view(node, why=True)]
    if item.path:
        parts.append(f"[dim]for:[/] {escape(tree.question)} → {escape(str(tree.answer))}")
    title = f"{item.why} · {escape(item.run)} round {item.round} · {escape(item.system)}"
    return Panel(Group(*parts), title=title, title_align="left", subtitle=item.id)
