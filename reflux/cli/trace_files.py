"""`reflux traces import` and `export`: trajectories out of files, and rows for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reflux import cli
from reflux.cli.contract import DEFAULT_RUN, Json, RunDir, open_existing
from reflux.cli.runs.row_options import By, Reasoning, RowChoice, Unfinished, Where

if TYPE_CHECKING or not cli.SHOWS_HELP:
    from contextlib import closing

    from rich.console import Group, RenderableType

    from reflux.agents.errors import UsageError
    from reflux.cli.runs.distill_rows import rows_source
    from reflux.finetune.data.export import export
    from reflux.finetune.data.recorded import LeftOut, with_rejected
    from reflux.finetune.run_folder import RunFolder
    from reflux.graphs.traces.database import reading
    from reflux.graphs.traces.importing.importer import Import, import_files
    from reflux.graphs.traces.trajectory_writer import TrajectoryWriter
    from reflux.report.terminal import ERR, command, counted, plain, print_result, say, table_of


def import_traces(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Files of OpenAI, Langfuse, LangSmith, OpenTelemetry, Inspect, ShareGPT, Alpaca "
            "or TRL; known by their content."
        ),
    ],
    run: RunDir = DEFAULT_RUN,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would come in, and store nothing.")
    ] = False,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out lines that are no JSON objects.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Import conversations and traces of other programs as trajectories.

    What is on the record already is not imported again.
    """
    folder = RunFolder(run)
    if dry_run and not folder.traces_path.is_file():
        report = import_files(files, None, skip_broken=skip_broken)
    elif dry_run:
        with reading(folder.traces_path) as rows:
            report = import_files(files, rows, skip_broken=skip_broken)
    else:
        import_files(files, None, skip_broken=skip_broken)  # Before a run folder is made.
        with closing(folder.store()) as store:
            report = import_files(files, store, TrajectoryWriter(store), skip_broken)
    body = {**report.to_json(), "run": str(run), "dry_run": dry_run}
    print_result(body, _view(report, run, dry_run), as_json)
    if not report.trajectories and not report.known:
        raise typer.Exit(1)


def _view(report: Import, run: Path, dry_run: bool) -> Group:
    """What came in, what did not, and why."""
    verb = "would come into" if dry_run else "came into"
    forms = ", ".join(f"{count} {form}" for form, count in report.forms.most_common())
    trajectories = counted(report.trajectories, "trajectory")
    lines = [
        f"{trajectories} with {counted(report.calls, 'call')} {verb} {run}"
        + (f": {forms}" if forms else "")
    ]
    if report.known:
        verb = "was" if report.known == 1 else "were"
        lines.append(f"{report.known:,} {verb} on the record already")
    lines += [f"{count}: {remark}" for remark, count in report.remarks.most_common()]
    parts: list[RenderableType] = [plain(line) for line in lines]
    if report.left_out:
        rows = [(str(count), why, first) for why, (count, first) in report.left_out.items()]
        parts.append(table_of(("left out", "why", "the first one"), rows))
    if report.trajectories and not dry_run:
        parts.append(plain(f"see them: {command('reflux', 'traces', 'list', '--run', run)}"))
    return Group(*parts)


def export_traces(
    out: Annotated[
        str,
        typer.Argument(
            help="A .jsonl or .parquet file, or a folder for `load_dataset`: a name without ending."
        ),
    ],
    run: RunDir = DEFAULT_RUN,
    where: Where = "",
    by: By = None,
    form: Annotated[
        Literal["prompt-completion", "messages", "preference", "openai", "sharegpt"],
        typer.Option(help="The form of a row: three of TRL's, OpenAI's, or ShareGPT's."),
    ] = "prompt-completion",
    format: Annotated[
        Literal["jsonl", "parquet"] | None,
        typer.Option(help="Default: the ending of the file's name; in a folder jsonl."),
    ] = None,
    reasoning: Reasoning = "drop",
    unfinished: Unfinished = False,
    as_json: Json = False,
) -> None:
    """Export rows for training, with their provenance beside them.

    Without --where, the rows of a run's rounds; of a folder that holds recorded calls alone, each
    conversation.
    """
    folder = open_existing(run)
    choice = RowChoice(where=where, by=by, reasoning=reasoning == "keep", unfinished=unfinished)
    if not choice.selects and not folder.exists and _is_recorded(folder):
        choice = RowChoice(by="trajectories")
    if out == "-":
        raise UsageError("- is no file: name one, or /dev/stdout")
    path, left_out = Path(out), LeftOut()
    is_folder = path.is_dir() or out.endswith("/") or (format is None and not path.suffix)
    with rows_source(folder, choice, left_out) as rows, reading(folder.traces_path) as store:
        rows = with_rejected(store, rows) if choice.selects else rows
        done = export(rows, path, form, format, is_folder and not _is_device(path))
    if not done.rows:
        say(
            "no rows: export takes accepted trajectories of `reflux run`, edits of `reflux "
            f"review`, and with --where recorded calls; {run} holds none of them",
            ERR,
        )
    lines = [f"{counted(done.rows, 'row')} in {out}"]
    lines += [f"left out: {left_out.note}"] if left_out.counts else []
    lines += [f"{done.without_pair} without a rejected answer"] if done.without_pair else []
    body = {"rows": done.rows, "file": out, "left_out": dict(left_out.counts)}
    print_result(body, Group(*(plain(line) for line in lines)), as_json)


def _is_recorded(folder: RunFolder) -> bool:
    """Whether a folder holds trajectories of other programs."""
    with reading(folder.traces_path) as store:
        sql = "SELECT 1 FROM questions WHERE source IS NOT NULL LIMIT 1"
        return next(store.select(sql), None) is not None


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()
