"""`reflux distill` makes one student: an agent that answers, or an overseer that divides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from reflux import cli
from reflux.cli.contract import DEFAULT_RUN, BaseName, Json, RunDir, folder_of, run_async

if TYPE_CHECKING or not cli.SHOWS_HELP:
    import hashlib
    import json
    from contextlib import closing
    from functools import partial

    from reflux.agents.errors import UsageError
    from reflux.agents.overseers.demonstration_file import read_demonstrations
    from reflux.agents.overseers.step_forms import OVERSEER
    from reflux.ask_context import open_tools
    from reflux.cli.progress import ProgressView
    from reflux.finetune import check_training_packages
    from reflux.finetune.configs.run import BaseConfig, read_distill_config
    from reflux.finetune.data.demonstrations import (
        MAX_TREES,
        check_demonstrations,
        from_record,
        withheld_by,
    )
    from reflux.finetune.data.overseer_rows import OverseerRows, overseer_rows
    from reflux.finetune.data.rows import (
        Row,
        read_jsonl,
        rows_digest,
        run_rows,
        training_order,
    )
    from reflux.finetune.run_folder import RunFolder
    from reflux.graphs.evals.task import Task
    from reflux.report.terminal import ERR, command, counted, emit, plain, say
    from reflux.tasks import DEFAULT_TASK, run_task, task_named


def distill(
    run: RunDir = DEFAULT_RUN,
    data: Annotated[
        Path | None, typer.Option("--data", help="Prompt/completion JSONL instead of traces.")
    ] = None,
    student: Annotated[
        str, typer.Option("--student", help="Name of the new student.")
    ] = "student-custom",
    role: Annotated[
        Literal["agent", "overseer"],
        typer.Option(help="What it learns: to answer questions, or to divide them."),
    ] = "agent",
    demos: Annotated[
        Path | None,
        typer.Option(
            "--demos", help="What an overseer learns, instead of traces: `reflux demos make`."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML: `sft:`, `lora:`, `evaluation:`, …"),
    ] = None,
    base: BaseName = "",
    as_json: Json = False,
) -> None:
    """Train one student from the accepted trajectories of a run or from a JSONL file.

    With --role overseer it learns to divide, from the accepted trees or from demonstrations, and is
    called STUDENT:overseer.
    """
    if data is not None and role == "overseer":
        raise UsageError("--data is for an agent: give an overseer --demos, or leave both out")
    if demos is not None and role == "agent":
        raise UsageError("--demos is for an overseer: add --role overseer, or give --data")
    check_training_packages()
    from reflux.finetune.cancelling import cancellable
    from reflux.finetune.distillation import StudentPlan
    from reflux.finetune.distillation import distill as train_student

    settings = read_distill_config(config)
    folder = folder_of(run, base)
    if base or settings.base == BaseConfig():
        settings = settings.model_copy(update={"base": folder.base.config})
    plan_of = partial(StudentPlan, config=settings)
    if role == "overseer":
        student = student.removesuffix(OVERSEER) + OVERSEER
        made = run_async(overseer_rows_for(folder, demos))
        rows = training_order(made.rows, settings.seed)
        plan = plan_of(student, [row.train() for row in rows], rows_digest(rows), style=made.style)
    else:
        plan = plan_of(student, *rows_for(folder, data, settings.seed))
    folder.lock()

    async def work() -> None:
        with ProgressView() as view:
            await cancellable(lambda stop: train_student(folder.registry, plan, view, stop))

    run_async(work())
    trained = folder.registry.get(student)
    report = trained.config["report"]
    if as_json:
        emit({"student": trained.id, "path": str(trained.path), "report": report})
        return
    how = f"promote it with: {command('reflux', 'students', 'promote', trained.id, '--run', run)}"
    if role == "overseer":
        asking = command("reflux", "ask", "QUESTION", "--overseer", trained.id, "--run", run)
        how = f"let it divide: {asking}"
    say(
        f"{trained.id}: {report['rows']} rows, {report['seconds']:.0f} s, final loss "
        f"{report['final_loss']:.3f}\n{trained.path}\n{how}"
    )


def rows_for(
    folder: RunFolder, data: Path | None, seed: int = 0
) -> tuple[list[dict[str, Any]], str]:
    """(rows, their digest) of a JSONL file in its order, or of all accepted trajectories of a run.

    Raises:
        UsageError: there are no rows.
    """
    if data is not None:
        rows = read_jsonl(data)
        body = json.dumps(rows, sort_keys=True).encode()
        return rows, hashlib.sha256(body).hexdigest()[:32]
    recorded = training_order(recorded_rows(folder), seed)
    if not recorded:
        raise UsageError(
            f"{folder.path} has no accepted trajectories: run `reflux run` first, or correct an "
            "answer with `reflux review`; what was only asked is not learned"
        )
    return [row.train() for row in recorded], rows_digest(recorded)


def recorded_rows(folder: RunFolder) -> list[Row]:
    """Every row of a run folder, checked for leaks; without a run, the corrections in it.

    Raises:
        UsageError: the folder holds no trajectories.
    """
    only_asked = not folder.exists and folder.traces_path.is_file()
    task = task_named(DEFAULT_TASK) if only_asked else run_task(folder.config())
    with closing(folder.store()) as store:  # `reflux ask` writes no config.
        primitives, others = run_rows(store, task)
    return [*primitives, *others]


async def overseer_rows_for(folder: RunFolder, demos: Path | None) -> OverseerRows:
    """The rows of an overseer, from a file of demonstrations or from the accepted trees of a run.

    Raises:
        UsageError: there are none, or one of the file is of a held-out question.
    """
    task: Task | None = run_task(folder.config()) if folder.exists else None
    name = task.name if task else ""
    withheld = withheld_by(task)
    async with open_tools(task.tool_names if task else ()) as grants:
        tools = {tool.spec.name for tool in grants.get("answer", ())}
    tools |= set(task.tools() if task else ())
    if demos is not None:
        read = read_demonstrations(demos)
        if task is not None:
            check_demonstrations(read, task, str(demos))
        return _told(overseer_rows(read.items, (), withheld, name, tools), str(demos))
    if not folder.traces_path.is_file():
        raise UsageError(
            f"{folder.path} has no accepted trees: run `reflux run` first, or give --demos"
        )
    with closing(folder.store()) as store:
        made = from_record(store, MAX_TREES, False, withheld)
    if not made.items:
        why = ", ".join(f"{number} {name}" for name, number in made.left_out.most_common())
        raise UsageError(
            f"{folder.path} has no accepted trees ({why or 'no question is on record'}): give "
            "--demos, or approve trees with `reflux review`"
        )
    return _told(overseer_rows(made.items, made.direct, withheld, name, tools), str(folder.path))


def _told(made: OverseerRows, source: str) -> OverseerRows:
    """The rows, after a line on what they are made of."""
    text = f"{len(made.rows)} rows of {counted(made.demonstrations, 'demonstration')} in {source}"
    left_out = ", ".join(f"{number} {name}" for name, number in made.left_out.most_common())
    ERR.print(plain(f"{text}; left out: {left_out}" if left_out else text), soft_wrap=True)
    return made
