"""`reflux traces`: what was asked, as a list, as trees, as pages, as rows for training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from reflux.agents.errors import UsageError
from reflux.agents.files import write_whole
from reflux.agents.prompts import cut
from reflux.cli.ask import prices_of
from reflux.cli.contract import ERR, MOST, OUT, RUNS, Json, RunDir, emit, open_existing
from reflux.cli.distill_source import logged_rows
from reflux.conversation import last_question
from reflux.finetune.row_files import Form, export
from reflux.graphs.traces.database import ROOT_ENDED, STOPPED
from reflux.graphs.traces.review import WAITING
from reflux.graphs.traces.revisions import NEWEST, newest
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import find_question, load_tree
from reflux.report.terminal import begun_hint, escape, total_line, tree_view
from reflux.report.tree_page import tree_page

CHARS = 120
"""Of a question or an answer in the list."""

traces = typer.Typer(help="Trajectories: list, show, page, export.", no_args_is_help=True)

LISTED = f"""
SELECT q.id, q.round, q.system, q.split, q.text,
  coalesce(j.detail ->> 'status', CASE WHEN {STOPPED} THEN 'stopped' END) AS status,
  j.detail ->> 'answer' AS answer,
  EXISTS (SELECT 1 FROM judgements j WHERE j.question = q.id AND {WAITING}) AS waits,
  (SELECT count(*) FROM calls c WHERE c.question = q.id AND c.kind = 'model')
    + (SELECT coalesce(sum(l.calls), 0) FROM links l WHERE l.question = q.id) AS calls
FROM questions q LEFT JOIN judgements j ON j.id = {ROOT_ENDED}
WHERE (:system IS NULL OR q.system = :system) AND (:status IS NULL OR status = :status)
  AND {NEWEST}
ORDER BY q.created DESC LIMIT :limit
"""  # noqa: S608 - the part is a constant of ours


@traces.command("list")
def list_traces(
    run: RunDir = RUNS / "demo",
    system: Annotated[str | None, typer.Option(help="direct, amplified, student, …")] = None,
    status: Annotated[
        str | None, typer.Option(help="ok, rejected, over_budget, failed, stopped")
    ] = None,
    limit: Annotated[int, typer.Option(help="The newest so many.", min=1, max=MOST)] = 20,
    as_json: Json = False,
) -> None:
    """The newest trajectories."""
    store = TraceStore(open_existing(run).traces_path)
    asked = {"system": system, "status": status, "limit": limit}
    found = [dict(row) for row in store.select(LISTED, asked)]
    store.close()
    if as_json:
        emit(found)
        return
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("trajectory", "by", "question", "answer", "status"):
        table.add_column(heading, no_wrap=heading == "trajectory", overflow="fold")
    table.add_column("calls", justify="right", no_wrap=True)
    for row in found:
        table.add_row(
            escape(row["id"]),
            escape(_by(row)),
            escape(cut(last_question(row["text"]), CHARS)),
            escape(cut(row["answer"] or "–", CHARS)),
            _status(row),
            str(row["calls"]),
        )
    OUT.print(table)


def _by(row: Mapping[str, Any]) -> str:
    """`amplified, round 1, held_out`; what a person asked or evaluated has no round."""
    if row["split"] == "asked":
        return "asked"  # Its system is a name of its own, made up for each asking.
    of_round = f", round {row['round']}" if row["round"] is not None and row["round"] >= 0 else ""
    return f"{row['system']}{of_round}, {row['split']}"


def _status(row: Mapping[str, Any]) -> str:
    if row["status"]:
        return row["status"]
    if row["waits"]:
        return "waits for a person"
    return "recomputing" if "~" in row["id"] else "running"


@traces.command("show")
def show_trace(
    trajectory: Annotated[str, typer.Argument(help="Id, or the beginning of one.")],
    run: RunDir = RUNS / "demo",
    as_json: Json = False,
) -> None:
    """The tree of one trajectory: votes, checks, persons' words and costs."""
    folder = open_existing(run)
    store = TraceStore(folder.traces_path)
    try:
        shown, _ = find_question(store, trajectory)
        tree = load_tree(store, shown, prices_of(folder))
        last = newest(store, shown)
        begun = begun_hint(store, shown, run)
    finally:
        store.close()
    if as_json:
        emit(tree.to_json())
        return
    OUT.print(tree_view(tree, why=True))
    OUT.print(total_line(tree), highlight=False)
    if last != shown:
        OUT.print(f"edited since: reflux traces show {last}", highlight=False)
    elif begun is not None:
        OUT.print(begun, soft_wrap=True, highlight=False)


@traces.command("page")
def page_of_trace(
    trajectory: Annotated[str, typer.Argument(help="Id, or the beginning of one.")],
    out: Annotated[Path, typer.Option("--out", help="The file.")] = Path("tree.html"),
    run: RunDir = RUNS / "demo",
    as_json: Json = False,
) -> None:
    """One tree as a page of its own, to send to a colleague: one file, no outside address."""
    folder = open_existing(run)
    store = TraceStore(folder.traces_path)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, tree_page(store, trajectory, prices_of(folder)))
    finally:
        store.close()
    if as_json:
        emit({"file": str(out)})
        return
    OUT.print(f"{out} is written", soft_wrap=True)


@traces.command("export")
def export_traces(
    out: Annotated[Path, typer.Argument(help="A .jsonl or .parquet file.")],
    run: RunDir = RUNS / "demo",
    form: Annotated[
        str, typer.Option(help="prompt-completion, messages or preference, as TRL takes them.")
    ] = "prompt-completion",
    format: Annotated[
        str | None, typer.Option(help="jsonl or parquet; by default what the file ends in.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Accepted trajectories as rows for TRL, with their provenance in a sidecar."""
    forms: dict[str, Form] = {
        "prompt-completion": "prompt-completion",
        "messages": "messages",
        "preference": "preference",
    }
    if form not in forms:
        raise UsageError(f"there is no form {form!r}; there are: {', '.join(forms)}")
    rows = logged_rows(open_existing(run))
    written = export(rows, out, forms[form], format)
    if not written:
        ERR.print(
            f"no rows: export takes the accepted trajectories of `reflux run`, and what was edited "
            f"with `reflux review`; what was only asked is not learned ({escape(str(run))} holds "
            "none of the others)",
            highlight=False,
            soft_wrap=True,
        )
    if as_json:
        emit({"rows": written, "file": str(out)})
        return
    OUT.print(f"{written} rows in {out}", soft_wrap=True)
