"""`reflux traces`: trajectories as a list, a tree or a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from reflux import cli
from reflux.cli.contract import DEFAULT_RUN, MAX_LIMIT, Json, RunDir, Trajectory, open_existing

if TYPE_CHECKING or not cli.SHOWS_HELP:
    import re
    from collections.abc import Mapping
    from contextlib import closing

    from reflux.agents.files import write_whole
    from reflux.agents.prompts import last_question
    from reflux.graphs.traces.database import ROOT_ENDED, STOPPED
    from reflux.graphs.traces.review import WAITING
    from reflux.graphs.traces.revisions import CALLS_OF, NEWEST, newest
    from reflux.graphs.traces.search import find_question
    from reflux.graphs.traces.trajectories import UNFINISHED
    from reflux.graphs.traces.tree import load_tree
    from reflux.report.terminal import (
        ERR,
        OUT,
        command,
        emit,
        plain,
        print_result,
        resume_hint,
        say,
        table_of,
        total_line,
        tree_view,
    )
    from reflux.report.tree_page import tree_page

    LIST_QUERY = f"""
    SELECT q.id, q.round, q.system, q.split, q.text,
      q.source, coalesce(j.detail ->> 'status', CASE WHEN {STOPPED} THEN 'stopped'
        WHEN q.source IS NOT NULL THEN '{UNFINISHED}' END) AS status,
      j.detail ->> 'answer' AS answer,
      EXISTS (SELECT 1 FROM judgements j WHERE j.question = q.id AND {WAITING}) AS waits,
      (SELECT count(*) FROM calls c WHERE c.question = {CALLS_OF} AND c.kind = 'model')
        + (SELECT coalesce(sum(l.calls), 0) FROM links l WHERE l.question = q.id) AS calls
    FROM questions q LEFT JOIN judgements j ON j.id = {ROOT_ENDED}
    WHERE (:system IS NULL OR q.system = :system OR :system = q.split
        OR substr(q.system, 1, length(:system) + 6) = 'eval-' || :system || '-')
      AND (:status IS NULL OR status = :status)
      AND {NEWEST}
    ORDER BY q.created DESC LIMIT :limit
    """  # noqa: S608 - only constants are formatted in

Status = Literal[
    "ok", "unchecked", "truncated", "rejected", "failed", "over_budget", "stopped", "unfinished"
]
MAX_CHARS = 60
"""Characters of a question or an answer in the list."""


def list_traces(
    run: RunDir = DEFAULT_RUN,
    system: Annotated[
        str | None,
        typer.Option(help="Only this system of rounds and evaluations, or asked.", metavar="NAME"),
    ] = None,
    status: Annotated[Status | None, typer.Option(help="Only answers of this status.")] = None,
    limit: Annotated[int, typer.Option(help="Maximum trajectories.", min=1, max=MAX_LIMIT)] = 20,
    as_json: Json = False,
) -> None:
    """List the newest trajectories."""
    filters = {"system": system, "status": status, "limit": limit}
    with closing(open_existing(run).store()) as store:
        rows = [dict(row) for row in store.select(LIST_QUERY, filters)]
        if not rows and (system or status):
            found = store.select(
                "SELECT DISTINCT system, split, round, source FROM questions LIMIT 1000"
            )
            known = dict.fromkeys(_system(dict(row)).split(", ")[0] for row in found)
            say(f"no such trajectory in {run}; its systems: {', '.join(known) or 'none'}", ERR)
    headings = ("trajectory", "system", "question", "answer", "status", "calls")
    cells = (
        (
            row["id"],
            _system(row),
            _short(last_question(row["text"])),
            _short(row["answer"] or "–"),
            row["status"] or _unfinished(row),
            str(row["calls"]),
        )
        for row in rows
    )
    print_result(rows, table_of(headings, cells), as_json)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_CHARS else line[: MAX_CHARS - 1] + "…"


def _system(row: Mapping[str, Any]) -> str:
    """`amplified, round 1, held_out`; questions outside a run of rounds have no round."""
    if row["source"] is not None:
        return f"recorded, {row['source']}"
    if row["split"] == "asked":
        return "asked"  # Its system is a generated id.
    if match := re.fullmatch(r"eval-(.+)-[0-9a-f]{12}-(\d+)(\+\d+)?", row["system"]):
        return f"{match[1]} of eval, seed {match[2]}{match[3] or ''}"
    in_round = f", round {row['round']}" if row["round"] is not None and row["round"] >= 0 else ""
    return f"{row['system']}{in_round}, {row['split']}"


def _unfinished(row: Mapping[str, Any]) -> str:
    if row["waits"]:
        return "waits for a human"
    return "recomputing" if "~" in row["id"] else "running"


def show_trace(trajectory: Trajectory, run: RunDir = DEFAULT_RUN, as_json: Json = False) -> None:
    """Show the tree of one trajectory with votes, checks, verdicts, comments and costs."""
    folder = open_existing(run)
    with closing(folder.store()) as store:
        id, _ = find_question(store, trajectory)
        tree = load_tree(store, id, folder.prices())
        last = newest(store, id)
        hint = resume_hint(store, id, run)
    if as_json:
        emit(tree.to_json())
        return
    OUT.print(tree_view(tree, why=True))
    OUT.print(total_line(tree))
    if last != id:
        hint = f"edited since: {command('reflux', 'traces', 'show', last, '--run', run)}"
        say(hint)
    elif hint is not None:
        say(hint)


def page_of_trace(
    trajectory: Trajectory,
    out: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("tree.html"),
    run: RunDir = DEFAULT_RUN,
    as_json: Json = False,
) -> None:
    """Write one tree as a web page: a single file that loads nothing from a network."""
    folder = open_existing(run)
    with closing(folder.store()) as store:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, tree_page(store, trajectory, folder.prices()))
    print_result({"file": str(out)}, plain(f"wrote {out}"), as_json)
