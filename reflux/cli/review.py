"""`reflux review`: judge what waits for a human, is disputed, or is in the random audit."""

from collections.abc import Iterable, Iterator
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table

from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.overseers.scripted import step_text
from reflux.cli.contract import (
    ERR,
    MAX_LIMIT,
    OUT,
    RUNS,
    Json,
    RunDir,
    emit,
    open_existing,
    run_async,
)
from reflux.cli.human_input import read_key, read_line
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
        str | None, typer.Option("--why", help="Only this reason: escalated, disputed or audit.")
    ] = None,
    limit: Annotated[
        int, typer.Option(help="Maximum items in the list.", min=1, max=MAX_LIMIT)
    ] = 20,
    as_json: Json = False,
) -> None:
    """Judge what waits for a human, is disputed, or is in the random audit."""
    folder = open_existing(run)
    whys = _whys(why)
    store = TraceStore(folder.traces_path)
    try:
        if item is None and not as_json:
            _one_by_one(folder, store, _all(store, whys))
            return
        if item is None or item == "list":
            _list(queue(store, limit, whys), as_json)
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
        _print_acted(acted, chosen_item, as_json)
    finally:
        store.close()


def _whys(why: str | None) -> tuple[Why, ...]:
    if why is None:
        return WHYS
    whys: tuple[Why, ...] = tuple(each for each in WHYS if each == why)
    if not whys:
        raise UsageError(f"unknown --why {why!r}; use one of: {', '.join(WHYS)}")
    return whys


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


def _print_acted(acted: Acted, item: Item, as_json: bool) -> None:
    if as_json:
        emit(
            {
                "item": item.id,
                "did": acted.did,
                "trajectory": acted.trajectory,
                "outcome": acted.outcome,
            }
        )
        return
    OUT.print(_line(acted, item), soft_wrap=True, highlight=False)


def _line(acted: Acted, item: Item) -> str:
    line = f"{acted.did}: {item.id}"
    if acted.outcome is not None and acted.trajectory != item.trajectory:
        answer = acted.outcome["answer"]
        text = "no answer" if answer is None else escape(answer)
        line += f"; {acted.trajectory} now answers [bold]{text}[/] ({acted.outcome['status']})"
    return line


def _list(items: list[Item], as_json: bool) -> None:
    if as_json:
        emit([item.to_json() for item in items])
        return
    table = Table()
    for heading in ("item", "why", "reason", "question", "answer"):
        table.add_column(heading, no_wrap=heading == "item", overflow="fold")
    for item in items:
        texts = (item.reason, item.question, "–" if item.answer is None else item.answer)
        table.add_row(item.id, item.why, *map(escape, texts))
    OUT.print(table if items else "nothing to review")


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
    seen: set[str] = set()
    for why in whys:
        start: int | None = None
        while True:
            # One item a page: other users may judge the next ones meanwhile.
            items, start = page(store, why, 1, start)
            for item in items:
                if item.id not in seen:
                    seen.add(item.id)
                    yield item
            if start is None:
                break


def item_view(store: TraceStore, item: Item) -> RenderableType:
    """What a human needs to judge a node."""
    tree = load_tree(store, item.trajectory)
    node = next((node for node in tree.walk() if node.path == item.path), tree)
    parts: list[RenderableType] = [plain(item.question)]
    if item.form is not None:
        for exchange in item.form.get("transcript", ()):
            parts.append(plain(f"  {exchange['question']} → {exchange['answer']}"))
        if (proposal := item.form.get("proposal")) is not None:
            parts.append(plain(f"proposed: {step_text(proposal)}"))
    parts += [f"[dim]{escape(item.reason)}[/]", tree_view(node, why=True)]
    if item.path:
        parts.append(f"[dim]for:[/] {escape(tree.question)} → {escape(str(tree.answer))}")
    title = f"{item.why} · {escape(item.run)} round {item.round} · {escape(item.system)}"
    return Panel(Group(*parts), title=title, title_align="left", subtitle=item.id)
