"""`reflux traces import`: trajectories out of files that other programs wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reflux import cli
from reflux.cli.contract import DEFAULT_RUN, Json, RunDir

if TYPE_CHECKING or not cli.SHOWS_HELP:
    from contextlib import closing

    from rich.console import Group, RenderableType

    from reflux.finetune.run_folder import RunFolder
    from reflux.graphs.traces.database import reading
    from reflux.graphs.traces.importing.importer import Import, import_files
    from reflux.graphs.traces.trajectory_writer import TrajectoryWriter
    from reflux.report.terminal import command, plain, print_result, table_of


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


def _view(report: Import, run: Path, dry_run: bool) -> Group:
    """What came in, what did not, and why."""
    verb = "would come into" if dry_run else "came into"
    forms = ", ".join(f"{count} {form}" for form, count in report.forms.most_common())
    lines = [
        f"{report.trajectories} trajectories with {report.calls} calls {verb} {run}"
        + (f": {forms}" if forms else "")
    ]
    if report.known:
        lines.append(f"{report.known} were on the record already")
    lines += [f"{count}: {remark}" for remark, count in report.remarks.most_common()]
    parts: list[RenderableType] = [plain(line) for line in lines]
    if report.left_out:
        rows = [(str(count), why, first) for why, (count, first) in report.left_out.items()]
        parts.append(table_of(("left out", "why", "the first one"), rows))
    if report.trajectories and not dry_run:
        parts.append(plain(f"see them: {command('reflux', 'traces', 'list', '--run', run)}"))
    return Group(*parts)
