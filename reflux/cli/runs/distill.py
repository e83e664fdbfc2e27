"""`reflux distill` makes one student: an agent that answers, or an overseer that divides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from reflux import cli
from reflux.cli.contract import DEFAULT_RUN, BaseName, Json, RunDir, folder_of, run_async
from reflux.cli.runs.distill_rows import (
    columns_help,
    pairs_for,
    prepared_rows,
    report_of,
    write_report,
)
from reflux.cli.runs.row_options import (
    Against,
    BalanceBy,
    By,
    DryRun,
    MarkersAre,
    Near,
    Reasoning,
    Redact,
    ReportFile,
    RowChoice,
    Unfinished,
    Where,
)

if TYPE_CHECKING or not cli.SHOWS_HELP:
    from contextlib import closing

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
    from reflux.finetune.data.rows import rows_digest, training_order
    from reflux.finetune.roles.rows import RoleRows, TreeRole, rows_of_role
    from reflux.finetune.run_folder import RunFolder
    from reflux.graphs.evals.task import Task
    from reflux.report.terminal import ERR, OUT, command, counted, emit, plain, print_result, say
    from reflux.tasks import run_task

    if TYPE_CHECKING:
        from reflux.finetune.distillation import StudentPlan


def distill(
    run: RunDir = DEFAULT_RUN,
    data: Annotated[
        Path | None, typer.Option("--data", help="Prompt/completion JSONL instead of traces.")
    ] = None,
    student: Annotated[
        str, typer.Option("--student", help="Name of the new student.")
    ] = "student-custom",
    role: Annotated[
        Literal["agent", "overseer", "answerer", "aggregator", "verifier"],
        typer.Option(
            help="What it learns: to answer questions, to divide them; or of a tree to answer its "
            "sub-questions, to combine sub-answers, to judge answers."
        ),
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
    where: Where = "",
    by: By = None,
    reasoning: Reasoning = "drop",
    unfinished: Unfinished = False,
    near: Near = None,
    balance: BalanceBy = "",
    against: Against = None,
    redact: Redact = False,
    markers: MarkersAre = "escape",
    dry_run: DryRun = False,
    report: ReportFile = None,
    as_json: Json = False,
) -> None:
    """Train one student from the accepted trajectories of a run, from recorded calls of any agent,
    or from a JSONL file.

    With --where or --rows it learns recorded calls: those that went through `reflux record`, a
    callback or an import, and those of Reflux's trees. --dry-run and --report show what it would
    learn.

    With --role overseer it learns to divide, from the accepted trees or from demonstrations, and is
    called STUDENT:overseer. An aggregator and a verifier, STUDENT:aggregator and STUDENT:verifier,
    learn from the same trees.
    """
    if data is not None and role != "agent":
        raise UsageError(
            "--data is for an agent: give an overseer --demos, or leave both out"
            if role == "overseer"
            else f"--data is for an agent: {role}s learn from trees, leave it out"
        )
    if demos is not None and role != "overseer":
        raise UsageError("--demos is for an overseer: add --role overseer, or give --data")
    if where == "help":
        say(columns_help())
        return
    choice = RowChoice(
        data, where, by, reasoning == "keep", unfinished, near, balance, against, redact,
        None if markers == "escape" else markers,
    )  # fmt: skip
    if data is not None and choice.selects:
        raise UsageError(
            "--data is a file of rows: leave out --where, --rows, --reasoning and "
            "--unfinished, which choose recorded calls"
        )
    shows = dry_run or report is not None
    if role != "agent" and (choice.selects or choice.curates or shows):
        who = f"an {role}" if role[0] in "ao" else f"a {role}"
        raise UsageError(
            f"{who} learns from whole trees: leave out what chooses rows, and --dry-run and "
            "--report"
        )
    check_training_packages()
    settings = read_distill_config(config)
    folder = folder_of(run, base)
    if base or settings.base == BaseConfig():
        own = settings.base.model_dump(exclude_unset=True, exclude={"model", "revision"})
        settings = settings.model_copy(update={"base": folder.base.config.model_copy(update=own)})

    def plan_of(id: str, rows: Sequence[Any], digest: str, **more: Any) -> StudentPlan:
        from reflux.finetune.distillation import StudentPlan  # With torch: once there are rows.

        return StudentPlan(id, rows, digest, settings, **more)

    if role == "overseer":
        student = student.removesuffix(OVERSEER) + OVERSEER
        made = run_async(overseer_rows_for(folder, demos))
        rows = training_order(made.rows, settings.seed)
        plan = plan_of(student, [row.train() for row in rows], rows_digest(rows), style=made.style)
        _train(folder, plan, run, role, as_json)
        return
    if role != "agent":
        found = run_async(role_rows_for(folder, role, settings.seed))
        name = student if role == "answerer" else f"{student.removesuffix(f':{role}')}:{role}"
        rows = found.rows
        plan = plan_of(name, [row.train() for row in rows], rows_digest(rows), style=found.style)
        _train(folder, plan, run, role, as_json)
        return
    given = (settings.base, settings.seed, settings.targets)
    with prepared_rows(folder, choice, *given) as prepared:
        if shows:
            from reflux.report.data_page import data_view  # With packages of the extra `train`.

            shown = report_of(prepared, settings.base)
            if report is not None:
                write_report(shown, report)
            if dry_run:
                print_result(shown.to_json(), data_view(shown, OUT), as_json)
                return
            ERR.print(data_view(shown, ERR))
        elif prepared.counts.left_out.counts:
            ERR.print(plain(f"left out: {prepared.counts.left_out.note}"), soft_wrap=True)
        pairs = pairs_for(folder, choice, settings)
        plan = plan_of(student, prepared.rows, prepared.digest, pairs=pairs)
        _train(folder, plan, run, role, as_json)


def _train(folder: RunFolder, plan: StudentPlan, run: Path, role: str, as_json: bool) -> None:
    """Make the student, and say how to go on."""
    from reflux.finetune.cancelling import cancellable
    from reflux.finetune.distillation import distill as train_student

    folder.lock()

    async def work() -> None:
        with ProgressView() as view:
            await cancellable(lambda stop: train_student(folder.registry, plan, view, stop))

    run_async(work())
    trained = folder.registry.get(plan.id)
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


async def role_rows_for(folder: RunFolder, role: TreeRole, seed: int) -> RoleRows:
    """The rows of a role from the accepted trees of a run.

    Raises:
        UsageError: there is no run, or no row.
    """
    if not folder.exists:
        raise UsageError(
            f"{folder.path} holds no run, whose trees {role}s learn from: `reflux run`"
        )
    task = run_task(folder.config())
    async with open_tools(task.tool_names) as grants:
        tools = {*task.tools(), *(tool.spec.name for tool in grants.get("answer", ()))}
    with closing(folder.store()) as store:
        made = rows_of_role(role, store, task, tools, seed=seed)
    note = f"; left out: {made.left_out.note}" if made.left_out.note else ""
    ERR.print(plain(f"{len(made.rows)} rows of {folder.path}{note}"), soft_wrap=True)
    return made


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
