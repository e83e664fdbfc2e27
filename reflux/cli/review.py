"""`reflux review`: judge what waits for a human, is disputed, or is in the random audit."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.panel import Panel

from reflux.agents.errors import RefluxError, UsageError
from reflux.cli.contract import (
    ERR,
    MAX_LIMIT,
    OUT,
    RUNS,
    Json,
    RunDir,
    open_existing,
    print_result,
    run_async,
    table_of,
)
from reflux.cli.human_input import form_lines, read_key, read_line
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.traces.review import WHYS, Item, Why, find_item, page, queue, state_of
from reflux.graphs.traces.revisions import NEWEST, first_of
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree
from reflux.models import open_run
from reflux.report.terminal import escape, plain, resume_hint, tree_view
from reflux.review_actions import Acted, approve, comment_on, edit, put, reject

KEYS = "a approve · e edit · g ask again · r reject · c comment · s skip · q quit"
PROMPTS = {"e": "the right answer", "c": "comment"}
"""Keys that need a line of text."""


def review(
    item: Annotated[
        str | None, typer.Argument(help="`list`, or the id of an item: TRAJECTORY/PATH.")
    ] = None,
    run: RunDir = RUNS / "demo",
    approved: Annotated[bool, typer.Option("--approve", help="Mark the answer as right.")] = False,
    rejected: Annotated[
        bool,
        typer.Option("--reject", help="Mark it as wrong: the trajectory yields no training row."),
    ] = False,
    answer: Annotated[
        str | None,
        typer.Option("--edit", help="Replace the answer and recompute what depends on it."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Ask the question again.")] = False,
    comment: Annotated[str, typer.Option("--comment", help="Add a comment.")] = "",
    why: Annotated[
        Why | None, typer.Option("--why", help="Only this reason: escalated, disputed or audit.")
    ] = None,
    limit: Annotated[
        int, typer.Option(help="Maximum items in the list.", min=1, max=MAX_LIMIT)
    ] = 20,
    as_json: Json = False,
) -> None:
    """Judge what waits for a human, is disputed, or is in the random audit."""
    folder = open_existing(run)
    whys: tuple[Why, ...] = (why,) if why else WHYS
    with closing(folder.store()) as store:
        if item is None and not as_json:
            _one_by_one(folder, store, _all(store, whys))
            return
        if item is None or item == "list":
            items = queue(store, limit, whys)
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
            _one_by_one(folder, store, [chosen_item])
            return
        if len(keys) > 1 or not (keys or comment):
            raise UsageError("choose one of --approve, --reject, --edit, --again, or --comment")
        key = keys[0] if keys else "c"
        acted = run_async(_act(folder, store, chosen_item, key, answer or "", comment))
        body = {"item": chosen_item.id, "did": acted.did}
        body |= {"trajectory": acted.trajectory, "outcome": acted.outcome}
        print_result(body, _line(acted, chosen_item), as_json)


async def _act(
    folder: RunFolder, store: TraceStore, item: Item, key: str, answer: str, comment: str
) -> Acted:
    def opened(model: str) -> OpenRun:
        return open_run(folder, model)[0]

    if key == "a":
        return await approve(store, item, opened, comment)
    if key == "e":
        return await edit(store, item, answer, opened, comment)
    if key == "r":
        return await reject(store, item, comment)
    if key == "g":
        return await put(store, item.trajectory, item.path, None, opened, comment)
    return await comment_on(store, item, comment)


def _line(acted: Acted, item: Item) -> str:
    line = f"{acted.did}: {item.id}"
    if acted.outcome is not None and acted.trajectory != item.trajectory:
        answer = acted.outcome["answer"]
        text = "no answer" if answer is None else escape(answer)
        line += f"; {acted.trajectory} now answers [bold]{text}[/] ({acted.outcome['status']})"
    return line


def _one_by_one(folder: RunFolder, store: TraceStore, items: Iterable[Item]) -> None:
    """Show one item at a time and act on the user's key, to the end of the queue."""
    judged = 0
    for item in items:
        key = _review_item(folder, store, item)
        if key == "q":
            ERR.print(f"{judged} judged")
            return
        judged += key != "s"
    OUT.print(f"nothing else to review; {judged} judged")
    _print_resume_hints(folder, store)


def _review_item(folder: RunFolder, store: TraceStore, item: Item) -> str:
    """Ask for keys until the item is judged, skipped or left; the last key."""
    OUT.print(item_view(store, item))
    state = state_of(store, item)
    while (key := read_key(KEYS)) not in ("q", "s"):
        if key not in "aegrc":
            continue
        text = read_line(PROMPTS[key]) if key in PROMPTS else ""
        if key in PROMPTS and not text.strip():
            continue
        answer, comment = (text, "") if key == "e" else ("", text)
        try:
            if (now := state_of(store, item)) != state:
                item, state = find_item(store, f"{first_of(item.trajectory)}{item.path}"), now
                ERR.print("another user changed this item; it is now:", highlight=False)
                OUT.print(item_view(store, item))
                continue
            acted = run_async(_act(folder, store, item, key, answer, comment))
        except RefluxError as error:
            ERR.print(plain(str(error)), highlight=False)
            continue
        OUT.print(_line(acted, item), highlight=False)
        if key != "c":
            break
    return key


def _print_resume_hints(folder: RunFolder, store: TraceStore) -> None:
    """Name the edits whose trees are not recomputed to the end; until then they do not count."""
    rows = store.select(f"SELECT id FROM questions q WHERE revises IS NOT NULL AND {NEWEST}")  # noqa: S608
    for row in list(rows):
        if (hint := resume_hint(store, row["id"], folder.path)) is not None:
            OUT.print(hint, soft_wrap=True, highlight=False)


def _all(store: TraceStore, whys: tuple[Why, ...]) -> Iterator[Item]:
    """Each item once, read one at a time: other users may judge the next ones meanwhile."""
    seen: set[str] = set()
    for why in whys:
        items, start = page(store, why, 1, None)
        while items or start is not None:
            yield from (item for item in items if item.id not in seen)
            seen.update(item.id for item in items)
            items, start = page(store, why, 1, start) if start is not None else ([], None)


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
