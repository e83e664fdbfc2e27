"""Commands that make students: demo, init, run, distill."""

import asyncio
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from reflux.agents.errors import RefluxError, UsageError
from reflux.cli.contract import ERR, OUT, RUNS, Json, RunDir, emit, run_async
from reflux.cli.progress import ProgressView
from reflux.finetune.config import RoundsConfig, config_from, read_config
from reflux.finetune.gates import failed_gates
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.report.terminal import hard_lines, rounds_tables
from reflux.tasks import task_named

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML config of the run.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run of this folder.")]


DATABASES = ("traces.db", "checkpoints.db")
RUN_PARTS = (
    "config.yaml",
    *(f"{name}{end}" for name in DATABASES for end in ("", "-wal", "-shm", "-journal")),
    "students",
    "report.json",
    "report.png",
    "lock",
)
"""What a run makes in its folder."""


def shipped_config(name: str) -> Path:
    """A config that comes with Reflux: `demo` or `long`."""
    return Path(str(files("reflux") / "configs" / f"{name}.yaml"))


def demo(
    run: RunDir = RUNS / "demo",
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin again, from nothing.")] = False,
    as_json: Json = False,
) -> None:
    """The whole loop on the embedded default model: three rounds, a table and a chart.

    An unfinished demo is resumed; a finished one is shown.
    """
    folder = RunFolder(run)
    if fresh and run.exists():
        clear(folder)
    if not as_json:
        ERR.print(
            "Reflux demo: a 135M model learns to add. H knows sums of one digit only; each round "
            "amplifies the last student on longer numbers, and distills the answers into the "
            "next.\nDigits are written in reverse: [bold]403+715=[/] asks for 304 + 517.",
            highlight=False,
        )
    climb(folder, shipped_config("demo"), resume=folder.exists, as_json=as_json)


def clear(folder: RunFolder) -> None:
    """Delete what a run has made, and nothing else that lies beside it.

    Raises:
        UsageError: the folder holds other things and no run, or another process works in it.
    """
    if folder.path.is_dir():  # Before the lock makes a file in a folder that is none of ours.
        made = {path for path in folder.path.iterdir() if path.name in RUN_PARTS}
        if folder.exists:
            folder.load_config()
        elif strange := sorted({path.name for path in folder.path.iterdir() if path not in made}):
            raise UsageError(
                f"{folder.path} holds {strange[0]!r} and no run, so --fresh leaves it alone; name "
                "another --run"
            )
    with folder.locked():
        for path in (folder.path / name for name in RUN_PARTS):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def init(
    run: RunDir = RUNS / "main",
    config: ConfigFile = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Round 0: a student that imitates H."""
    climb(RunFolder(run), config, resume=resume, as_json=as_json, rounds=1)


def run(
    run: RunDir = RUNS / "main",
    config: ConfigFile = None,
    resume: Resume = False,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Stop after so many rounds in all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """All rounds of a config: amplify, distill, evaluate, promote."""
    climb(RunFolder(run), config, resume=resume, as_json=as_json, rounds=rounds)


def climb(
    folder: RunFolder,
    config_file: Path | None,
    *,
    resume: bool,
    as_json: bool,
    rounds: int | None = None,
) -> None:
    """Run rounds in a folder and show the report."""
    config = settle_config(folder, config_file, resume)
    if rounds is not None and not 1 <= rounds <= len(config.rounds):  # Before a run is begun here.
        raise UsageError(f"the config has {len(config.rounds)} rounds, not {rounds}")
    folder.lock()
    if not folder.exists:
        folder.save_config(config.model_dump(mode="json"))
    reports = run_async(_climb(folder, config, rounds))
    if as_json:
        emit({"run": str(folder.path), "rounds": reports})
        check_promoted(folder, reports)
        return
    for table in rounds_tables(reports):
        OUT.print(table)
        OUT.print()
    for line in hard_lines(reports):
        OUT.print(line, highlight=False)
    OUT.print(f"chart: {folder.chart_path}   report: {folder.report_path}", soft_wrap=True)
    if twin := reports[-1].get("twin"):
        OUT.print(
            f"The last student in PEFT and in llama.cpp give the same answer to "
            f"{twin['agreement']:.1%} of {twin['n']} held-out questions."
        )
    if folder.registry.current() is not None:
        OUT.print(f'Try: reflux ask "304+517" --run {folder.path}', soft_wrap=True)
    check_promoted(folder, reports)


def check_promoted(folder: RunFolder, reports: list[dict[str, Any]]) -> None:
    """A run that ended at a gate has failed, whatever it reports.

    Raises:
        RefluxError: the last student was not promoted.
    """
    last = reports[-1]
    if last["promoted"]:
        return
    failed = ", ".join(
        f"{gate['name']} is {gate['value']:.3f}, at least {gate['limit']:.3f} is asked"
        for gate in failed_gates(last["gates"])
    )
    raise RefluxError(
        f"round {last['round']}: student-r{last['round']} was not promoted ({failed}). Give it "
        "more rows (questions, primitive_repeats) or another sft: in a new run; "
        f"`reflux run --resume --run {folder.path}` goes on with {last['agent']} all the same"
    )


async def _climb(
    folder: RunFolder, config: RoundsConfig, rounds: int | None
) -> list[dict[str, Any]]:
    from reflux.finetune.rounds import run_rounds

    with ProgressView() as view:
        run = OpenRun(folder, config.engine_settings, llama_cpp=config.llama_cpp)
        async with run as opened:
            return await run_rounds(opened, config, task_named(config.task), view, rounds)


def settle_config(folder: RunFolder, config_file: Path | None, resume: bool) -> RoundsConfig:
    """The config of the folder on resume, otherwise the one given.

    Raises:
        UsageError: a run is there and is not to be resumed, or was begun with another config.
    """
    given = read_config(config_file) if config_file else None
    if not folder.exists:
        if resume and folder.traces_path.exists():
            raise UsageError(f"{folder.path} has no config.yaml; it cannot be resumed")
        return given or read_config(shipped_config("demo"))
    if not resume:
        raise UsageError(
            f"{folder.path} holds a run already; go on with --resume, or name another --run"
        )
    begun = config_from(folder.load_config(), str(folder.config_path))
    if given is not None and _as_begun(given, begun) != begun:
        raise UsageError(
            f"{folder.path} was begun with another config than {config_file}; leave --config out, "
            "or name another --run"
        )
    return begun


def _as_begun(given: RoundsConfig, begun: RoundsConfig) -> RoundsConfig:
    """How a run was begun stands where the file leaves it open: defaults of it have
    changed."""
    options = {"engine", "batched", "llama_cpp", "max_concurrency"} - given.model_fields_set
    return given.model_copy(update={name: getattr(begun, name) for name in options})


def distill(
    run: RunDir = RUNS / "main",
    data: Annotated[
        Path | None, typer.Option("--data", help="Prompt/completion JSONL instead of traces.")
    ] = None,
    student: Annotated[
        str, typer.Option("--student", help="Name of the new student.")
    ] = "student-custom",
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML with `sft:`, `lora:` and `seed:`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """One student, from the accepted trajectories of a run or from any JSONL file."""
    from reflux.cli.distill_source import DistillConfig, rows_for
    from reflux.finetune.distill import StudentPlan
    from reflux.finetune.distill import distill as make_student

    settings = DistillConfig.read(config)
    folder = RunFolder(run)
    rows, digest = rows_for(folder, data)
    folder.lock()
    plan = StudentPlan(
        id=student,
        rows=rows,
        rows_digest=digest,
        sft=settings.sft,
        lora=settings.lora,
        seed=settings.seed,
    )

    async def work() -> None:
        from reflux.finetune.stages import cancellable

        with ProgressView() as view:
            await cancellable(lambda stop: make_student(folder.registry, plan, view, stop))

    asyncio.run(work())
    made = folder.registry.get(student)
    if as_json:
        emit({"student": made.id, "path": str(made.path), "report": made.config["report"]})
        return
    report = made.config["report"]
    OUT.print(
        f"{made.id}: {report['rows']} rows, {report['seconds']:.0f} s, final loss "
        f"{report['final_loss']:.3f}\n{made.path}\n"
        f"promote it with: reflux students promote {made.id} --run {run}",
        soft_wrap=True,
    )
