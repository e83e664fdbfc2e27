"""`reflux review`: the queue of what waits for a person, is in dispute, or was drawn by chance."""

from collections.abc import Iterable, Iterator
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table

from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.overseers.human_reply import step_text
from reflux.cli.contract import (
    ERR,
    MOST,
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
from reflux.report.terminal import begun_hint, escape, plain, tree_view
from reflux.review_actions import Acted, approve, comment_on, edit, put, reject

KEYS = "a approve · e edit · g ask again · r reject · c comment · s skip · q quit"


def review(
    item: Annotated[
        str | None, typer.Argument(help="`list`, or the id of a node: TRAJECTORY/PATH.")
    ] = None,
    run: RunDir = RUNS / "demo",
    approved: Annotated[bool, typer.Option("--approve", help="It is right.")] = False,
    rejected: Annotated[
        bool, typer.Option("--reject", help="It is wrong: no row is made of its trajectory.")
    ] = False,
    answer: Annotated[
        str | None, typer.Option("--edit", help="The right answer; what depends on it recomputes.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Ask it again from here.")] = False,
    comment: Annotated[str, typer.Option("--comment", help="A word with it.")] = "",
    why: Annotated[
        str | None, typer.Option("--why", help="Only escalated, disputed or audit.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Items of the list.", min=1, max=MOST)] = 20,
    as_json: Json = False,
) -> None:
    """Judge what waits for a person, is in dispute, or was drawn by chance."""
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
                _tell_cut_off(folder, store)
            return
        chosen = {"a": approved, "r": rejected, "e": answer is not None, "g": again}
        keys = [key for key, is_chosen in chosen.items() if is_chosen]
        found = find_item(store, item)
        if not (keys or comment or as_json):
            _one_by_one(folder, store, [found])
            return
        if len(keys) > 1 or not (keys or comment):
            raise UsageError("say one of --approve, --reject, --edit TEXT, --again, or --comment")
        work = _act(folder, store, found, keys[0] if keys else "c", answer or "", comment)
        _tell(run_async(work), found, as_json)
    finally:
        store.close()


def _whys(why: str | None) -> tuple[Why, ...]:
    if why is None:
        return WHYS
    found: tuple[Why, ...] = tuple(each for each in WHYS if each == why)
    if not found:
        raise UsageError(f"there is no {why!r} in the queue; there are: {', '.join(WHYS)}")
    return found


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


def _tell(acted: Acted, item: Item, as_json: bool) -> None:
    if as_json:
        emit({"item": item.id, "did": acted.did, "trajectory": acted.trajectory}
             | {"outcome": acted.outcome})  # fmt: skip
        return
    OUT.print(_line(acted, item), soft_wrap=True, highlight=False)


def _line(acted: Acted, item: Item) -> str:
    line = f"{acted.did}: {item.id}"
    if acted.outcome is not None and acted.trajectory != item.trajectory:
        answer = acted.outcome["answer"]
        said = "no answer" if answer is None else escape(answer)
        line += f"; {acted.trajectory} now answers [bold]{said}[/] ({acted.outcome['status']})"
    return line


def _list(items: list[Item], as_json: bool) -> None:
    if as_json:
        emit([item.to_json() for item in items])
        return
    table = Table()
    for heading in ("item", "why", "reason", "question", "answer"):
        table.add_column(heading, no_wrap=heading == "item", overflow="fold")
    for item in items:
        shown = (item.reason, item.question, "–" if item.answer is None else item.answer)
        table.add_row(item.id, item.why, *map(escape, shown))
    OUT.print(table if items else "nothing waits for a review")


def _one_by_one(folder: RunFolder, store: TraceStore, items: Iterable[Item]) -> None:
    """Show one item at a time and do what the person's key says, to the end of the queue."""
    judged = 0
    for item in items:
        OUT.print(item_view(store, item))
        shown = state_of(store, item)
        while True:
            key = read_key(KEYS)
            if key == "q":
                ERR.print(f"{judged} judged")
                return
            if key == "s":
                break
            if key not in "aegrc":
                continue
            text = {"e": "the right answer", "c": "comment"}.get(key)
            words = read_line(text) if text else ""
            if text and not words.strip():
                continue
            answer, comment = (words, "") if key == "e" else ("", words)
            try:
                if (now := state_of(store, item)) != shown:
                    item, shown = find_item(store, f"{first_of(item.trajectory)}{item.path}"), now
                    ERR.print("somebody was here meanwhile; it is now as follows", highlight=False)
                    OUT.print(item_view(store, item))
                    continue
                acted = run_async(_act(folder, store, item, key, answer, comment))
            except RefluxError as error:
                ERR.print(plain(str(error)), highlight=False)
                continue
            OUT.print(_line(acted, item), highlight=False)
            judged += key != "c"
            if key != "c":
                break
    OUT.print(f"nothing else waits for a review; {judged} judged")
    _tell_cut_off(folder, store)


def _tell_cut_off(folder: RunFolder, store: TraceStore) -> None:
    """Edits whose trees were not recomputed to the end: they count for nothing until then."""
    rows = store.select(f"SELECT id FROM questions q WHERE revises IS NOT NULL AND {NEWEST}")  # noqa: S608
    for row in list(rows):
        if (hint := begun_hint(store, row["id"], folder.path)) is not None:
            OUT.print(hint, soft_wrap=True, highlight=False)


def _all(store: TraceStore, whys: tuple[Why, ...]) -> Iterator[Item]:
    seen: set[str] = set()
    for why in whys:
        start: int | None = None
        while True:
            # One at a time: others may judge meanwhile what would come next.
            items, start = page(store, why, 1, start)
            for item in items:
                if item.id not in seen:
                    seen.add(item.id)
                    yield item
            if start is None:
                break


def item_view(store: TraceStore, item: Item) -> RenderableType:
    """What a person needs to judge a node."""
    tree = load_tree(store, item.trajectory)
    node = next((node for node in tree.walk() if node.path == item.path), tree)
    parts: list[RenderableType] = [plain(item.question)]
    if item.form is not None:
        for said in item.form.get("transcript", ()):
            parts.append(plain(f"  {said['question']} → {said['answer']}"))
        if (proposal := item.form.get("proposal")) is not None:
            parts.append(plain(f"proposed: {step_text(proposal)}"))
    parts += [f"[dim]{escape(item.reason)}[/]", tree_view(node, why=True)]
    if item.path:
        parts.append(f"[dim]for:[/] {escape(tree.question)} → {escape(str(tree.answer))}")
    title = f"{item.why} · {escape(item.run)} round {item.round} · {escape(item.system)}"
    return Panel(Group(*parts), title=title, title_align="left", subtitle=item.id)
