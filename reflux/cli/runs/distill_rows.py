"""The rows of `reflux distill`: of a run's rounds, recorded calls, or a file; and their report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reflux import cli
from reflux.cli.runs.row_options import RowChoice

if TYPE_CHECKING or not cli.SHOWS_HELP:
    import hashlib
    import json
    import re

    from reflux.agents.errors import UsageError
    from reflux.agents.files import write_whole
    from reflux.finetune.configs.run import BaseConfig, DistillConfig
    from reflux.finetune.configs.targets import TargetConfig
    from reflux.finetune.data.conversations import read_rows
    from reflux.finetune.data.preferences import training_pairs
    from reflux.finetune.data.recorded import LeftOut, RowOptions, recorded_rows
    from reflux.finetune.data.rows import Row, rows_digest, run_rows, training_order, why_no_rows
    from reflux.finetune.run_folder import RunFolder
    from reflux.finetune.targets.evidence import with_evidence
    from reflux.graphs.traces.database import reading
    from reflux.graphs.traces.selection import COLUMNS, selecting
    from reflux.tasks import DEFAULT_TASK, run_task, task_named

    if TYPE_CHECKING:
        from reflux.finetune.data.curation import Counts, CuratedRows
        from reflux.finetune.data.report import DataReport
        from reflux.graphs.evals.task import Task


@dataclass
class Prepared:
    """Rows that are ready, with what is known of them."""

    rows: Sequence[Mapping[str, Any]]
    digest: str
    counts: Counts
    about: Sequence[Mapping[str, Any]] | None = None
    """The provenance of each; None where the rows hold it."""
    curated: CuratedRows | None = None

    def labelled(self) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """(row, provenance) of each, in order."""
        if self.curated is not None:
            return iter(self.curated.with_provenance())
        return zip(self.rows, self.about or [{}] * len(self.rows), strict=True)


def columns_help() -> str:
    """The columns of --where, one a line."""
    return "\n".join(f"{name:18} {meaning}" for name, (_, meaning) in COLUMNS.items())


@contextmanager
def prepared_rows(
    folder: RunFolder, choice: RowChoice, base: BaseConfig, seed: int, targets: TargetConfig
) -> Iterator[Prepared]:
    """The rows of a choice: of a file in its order, of a run's rounds, or curated; with what the
    targets need of the record.

    Raises:
        UsageError: there are no rows.
    """
    from reflux.finetune.data.curation import Counts

    if choice.selects or choice.curates:
        with _curated_rows(folder, choice, base, seed, targets) as prepared:
            yield prepared
    elif choice.data is not None:
        rows, digest = rows_for(folder, choice.data)
        about = [{"source": choice.data.name, "node": "file"}] * len(rows)
        yield Prepared(rows, digest, Counts(seen=len(rows)), about)
    else:
        recorded = _in_order(folder, seed, targets)
        about = [_about(row) for row in recorded]
        trained = [row.train() for row in recorded]
        yield Prepared(trained, rows_digest(recorded), Counts(seen=len(trained)), about)


def rows_for(
    folder: RunFolder, data: Path | None, seed: int = 0
) -> tuple[list[dict[str, Any]], str]:
    """(rows, their digest) of a JSONL file in its order, or of all accepted trajectories of a run.

    Raises:
        UsageError: there are no rows.
    """
    if data is not None:
        rows = list(read_rows(data))
        body = json.dumps(rows, sort_keys=True).encode()
        return rows, hashlib.sha256(body).hexdigest()[:32]
    recorded = _in_order(folder, seed)
    return [row.train() for row in recorded], rows_digest(recorded)


def _in_order(folder: RunFolder, seed: int, targets: TargetConfig | None = None) -> list[Row]:
    recorded = training_order(rows_of_run(folder, targets), seed)
    if not recorded:
        with closing(folder.store()) as store:
            why = why_no_rows(store)
        raise UsageError(
            f"{folder.path} has no accepted trajectories ({why}): run `reflux run` first, correct "
            "or approve an answer with `reflux review`, or name recorded calls with --where; what "
            "was only asked is not learned"
        )
    return recorded


def _about(row: Row) -> dict[str, Any]:
    """The provenance of a row of a run, as a report groups it."""
    node = "part" if row.provenance.get("path") else row.provenance.get("system")
    return {"source": "reflux", "node": node, **row.provenance}


@contextmanager
def _curated_rows(
    folder: RunFolder, choice: RowChoice, base: BaseConfig, seed: int, targets: TargetConfig
) -> Iterator[Prepared]:
    """The rows of a choice, curated, for the length of a block.

    Raises:
        UsageError: there are none; `where` is wrong.
    """
    from reflux.finetune.base_model import load_tokenizer
    from reflux.finetune.bases import find_base
    from reflux.finetune.data.cleaning import markers_of
    from reflux.finetune.data.curation import Counts, curate

    counts = Counts()
    curation = choice.curation()
    markers = markers_of(load_tokenizer(find_base(base).folder, base))
    with ExitStack() as stack:
        rows = stack.enter_context(rows_source(folder, choice, counts.left_out, targets))
        curated = stack.enter_context(curate(rows, curation, markers, counts, seed))
        if not len(curated):
            raise UsageError(_nothing(folder, choice, counts.left_out))
        yield Prepared(curated, curated.digest, counts, curated=curated)


@contextmanager
def rows_source(
    folder: RunFolder, choice: RowChoice, left_out: LeftOut, targets: TargetConfig | None = None
) -> Iterator[Iterator[Row]]:
    """The rows of a choice, one at a time, for the length of a block; with what the targets need.

    Raises:
        UsageError: the folder has no record; the expression is wrong.
    """
    if choice.data is not None:
        yield _of_file(choice.data)
    elif choice.selects:
        if not folder.traces_path.is_file():
            raise UsageError(f"{folder.path} has no record: name the --run that calls went to")
        options = RowOptions(
            by=choice.by or "calls",
            reasoning=choice.reasoning,
            unfinished=choice.unfinished,
            any_status=bool(re.search(r"\bstatus\b", choice.where)),
        )
        task = run_task(folder.config()) if folder.exists else None
        from reflux.finetune.data.demonstrations import withheld_by
        from reflux.finetune.data.overseer_rows import step_rows

        with closing(folder.store()):  # Adds what an older file lacks.
            pass
        with (
            reading(folder.traces_path) as store,
            selecting(folder.traces_path, choice.where or "1") as selection,
        ):
            withheld = withheld_by(task)
            rows = recorded_rows(store, selection, options, left_out, withheld)
            if options.by == "roles":
                rows = chain(rows, step_rows(store, selection, options, withheld))
            yield with_evidence(store, rows, targets, task) if targets is not None else rows
    else:
        yield iter(rows_of_run(folder, targets))


def _of_file(path: Path) -> Iterator[Row]:
    """The rows of a file, with their line as provenance."""
    for number, row in enumerate(read_rows(path), start=1):
        users = [turn["content"] for turn in row["prompt"] if turn["role"] == "user"]
        yield Row(
            prompt=tuple(row["prompt"]),
            completion=tuple(row["completion"]),
            question=users[-1] if users else "",
            task="",
            provenance={"trajectory": f"{path.name}:{number}", "source": path.name, "node": "file"},
            tools=tuple(row.get("tools", ())),
            weight=row.get("weight", 1.0),
            teacher=tuple(row.get("teacher", ())),
        )


def rows_of_run(folder: RunFolder, targets: TargetConfig | None = None) -> list[Row]:
    """Every row of a run folder, checked for leaks; without a run, the corrections in it. With what
    the targets need of the record.

    Raises:
        UsageError: the folder holds no trajectories.
    """
    task = _task_of(folder)
    with closing(folder.store()) as store:
        primitives, others = run_rows(store, task)
        if targets is not None:
            others = list(with_evidence(store, others, targets, task))
    return [*primitives, *others]


def _task_of(folder: RunFolder) -> Task:
    """The task of a run folder; the default one where something was only asked, which writes no
    config."""
    only_asked = not folder.exists and folder.traces_path.is_file()
    return task_named(DEFAULT_TASK) if only_asked else run_task(folder.config())


def pairs_for(folder: RunFolder, choice: RowChoice, config: DistillConfig) -> list[dict[str, Any]]:
    """Pairs of an accepted and a rejected answer, where the config trains on some.

    Raises:
        UsageError: the rows are not those of a run.
    """
    if config.preferences is None:
        return []
    if choice.data is not None or choice.selects:
        raise UsageError(
            "preferences are pairs of answers in the trees of a run: leave them out of --config, "
            "or --data, --where and --rows"
        )
    task, rows = _task_of(folder), rows_of_run(folder)
    with closing(folder.store()) as store:
        return training_pairs(store, rows, task, 10**6, config)


def _nothing(folder: RunFolder, choice: RowChoice, left_out: LeftOut) -> str:
    if left_out.counts:
        remedy = "add --unfinished" if "unfinished" in left_out.counts else "widen --where"
        return f"no rows are left of {folder.path}: left out {left_out.note}; {remedy}"
    what = (
        f"no call is selected by --where {choice.where!r}" if choice.where else "no call is there"
    )
    return f"{what} in {folder.path}: `reflux traces list --run {folder.path}` shows what is"


def report_of(prepared: Prepared, base: BaseConfig) -> DataReport:
    """The report of rows on a base.

    Raises:
        UsageError: the base's template cannot render a row.
    """
    from transformers import AutoConfig

    from reflux.finetune.base_model import load_tokenizer
    from reflux.finetune.bases import find_base
    from reflux.finetune.data.report import data_report

    found = find_base(base)
    tokenizer = load_tokenizer(found.folder, base)
    config: Any = AutoConfig.from_pretrained(
        found.folder, local_files_only=True, trust_remote_code=False
    )
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return data_report(
        prepared.labelled(), len(prepared.rows), tokenizer, found.name, context, prepared.counts
    )


def write_report(report: DataReport, path: Path) -> None:
    """The report as a page."""
    from reflux.report.data_page import data_page

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data_page(report))
