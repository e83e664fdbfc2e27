"""Commands that run rounds: demo, init, run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reflux import cli
from reflux.cli.contract import DEFAULT_RUN, BaseName, Json, RunDir, run_async

if TYPE_CHECKING or not cli.SHOWS_HELP:
    import shutil
    from importlib.resources import files

    from reflux.agents.errors import Deferred, UsageError
    from reflux.ask_context import open_tools
    from reflux.cli.progress import ProgressView
    from reflux.cli.runs.ends import check_promoted, show_reports, show_waiting
    from reflux.finetune import check_training_packages
    from reflux.finetune.bases import find_base
    from reflux.finetune.configs.engine import EngineSpec
    from reflux.finetune.configs.run import (
        RoundsConfig,
        read_config,
    )
    from reflux.finetune.data.questions import check_questions, question_lines
    from reflux.finetune.engine.client import NO_TOOLS
    from reflux.finetune.run_folder import RunFolder
    from reflux.models import open_rounds
    from reflux.report.terminal import ERR, emit
    from reflux.tasks import run_task

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML config of the run; required to begin one.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run of this folder.")]

DATABASES = ("traces.db", "checkpoints.db")
RUN_PARTS = (
    "config.yaml",
    "run.json",
    *(f"{name}{end}" for name in DATABASES for end in ("", "-wal", "-shm", "-journal")),
    "students",
    "report.json",
    "report.png",
    "vllm.log",
    "loss.png",
    "lock",
)
"""Files and folders that a run creates."""


def shipped_config(name: str) -> Path:
    """A config that Reflux ships: `demo`, `long` or `multiplication`."""
    return Path(str(files("reflux") / "configs" / f"{name}.yaml"))


def demo(
    run: RunDir = DEFAULT_RUN,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete the demo in the run folder and start again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the whole loop on the embedded default model: three rounds, a table and a chart.

    An unfinished demo resumes; a finished one shows its report.
    """
    check_training_packages()
    folder = RunFolder(run)
    config = shipped_config("demo")
    if fresh and run.exists():
        clear(folder, read_config(config))
    elif folder.exists and folder.config() != read_config(config):
        raise UsageError(f"{run} holds another run than the demo; name another --run")
    if not as_json:
        ERR.print(
            "Reflux demo: a 135M model learns to add. The overseer knows sums of one digit only; "
            "each round amplifies the last student on longer numbers, and distills the answers "
            "into the next.\nDigits are written in reverse: [bold]403+715=[/] asks for 304 + 517."
        )
    climb(folder, config, resume=folder.exists, as_json=as_json)


def clear(folder: RunFolder, config: RoundsConfig | None = None) -> None:
    """Delete what a run created, and nothing else in its folder.

    Raises:
        UsageError: the folder holds other files and no run, or a run of another config than
            `config`, or another process works in it.
    """
    if folder.path.is_dir():  # Checked before the lock creates a file in a foreign folder.
        names = {path.name for path in folder.path.iterdir()}
        if folder.exists:
            folder.load_config()
        elif foreign := sorted(names - set(RUN_PARTS)):
            raise UsageError(
                f"{folder.path} holds {foreign[0]!r} and no run, so --fresh leaves it alone; name "
                "another --run"
            )
    with folder.lock():
        if config is not None and folder.exists and folder.config() != config:
            raise UsageError(
                f"{folder.path} holds another run than the demo, so --fresh leaves it alone; name "
                "another --run"
            )
        for path in (folder.path / name for name in RUN_PARTS):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def init(
    run: RunDir = DEFAULT_RUN,
    config: ConfigFile = None,
    base: BaseName = "",
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Run the first round of a config alone: round 0, where a student imitates the overseer of a
    task with primitives; round 1 of a file of questions."""
    climb(RunFolder(run), config, base, resume=resume, as_json=as_json, rounds=1)


def run(
    run: RunDir = DEFAULT_RUN,
    config: ConfigFile = None,
    base: BaseName = "",
    resume: Resume = False,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Stop after this many rounds in all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run all rounds of a config: amplify, distill, evaluate, promote."""
    climb(RunFolder(run), config, base, resume=resume, as_json=as_json, rounds=rounds)


def climb(
    folder: RunFolder,
    config_file: Path | None,
    base: str = "",
    *,
    resume: bool,
    as_json: bool,
    rounds: int | None = None,
) -> None:
    """Run rounds in a folder and show the report."""
    check_training_packages()
    config = settle_config(folder, config_file, resume, base)
    if rounds is not None and not 1 <= rounds <= len(config.rounds):
        raise UsageError(f"the config has {len(config.rounds)} rounds, not {rounds}")
    if not folder.exists:  # An invalid config begins no run.
        from reflux.finetune.distillation import check_options

        for spec in config.rounds:
            check_options(config.distillation(spec))
        check_questions(config, task := run_task(config))
        here = not isinstance(config.engine_settings, EngineSpec)
        if task.tool_names and here and find_base(config.base).gguf is None:
            raise UsageError(NO_TOOLS)
        for line in () if as_json else question_lines(config, task):
            ERR.print(line, soft_wrap=True, highlight=False, markup=False)
    try:
        with folder.lock():
            reports = run_async(_climb(folder, config, rounds))
    except Deferred as deferred:
        show_waiting(folder, str(deferred), as_json)
        return
    if as_json:
        emit({"run": str(folder.path), "rounds": reports})
    else:
        show_reports(folder, config.task, reports)
    check_promoted(folder, reports)


async def _climb(
    folder: RunFolder, config: RoundsConfig, rounds: int | None
) -> list[dict[str, Any]]:
    from reflux.finetune.rounds import run_rounds

    task = run_task(config)
    async with open_tools(task.tool_names) as grants:  # Before a run begins: one may be missing.
        if not folder.exists or folder.config() != config:
            folder.save_config(config.model_dump(mode="json"))
        run = open_rounds(folder, config)
        with ProgressView() as view:
            async with run:
                await run.check_engine()
                return await run_rounds(run, config, task, view, rounds, grants)


def settle_config(
    folder: RunFolder, config_file: Path | None, resume: bool, base: str = ""
) -> RoundsConfig:
    """The config of the folder on resume, otherwise that of the file, with the base of the command
    line where it names one.

    Raises:
        UsageError: there is no config, or the folder holds a run without --resume, or a run of
            another config.
    """
    config = read_config(config_file) if config_file else None
    if config is not None and base:
        # A revision is of one model; how weights are loaded holds for any.
        renamed = config.base.model_copy(update={"model": base, "revision": None})
        config = config.model_copy(update={"base": renamed})
    if not folder.exists:
        if resume and folder.traces_path.exists():
            raise UsageError(f"{folder.path} has no config.yaml; it cannot be resumed")
        if config is None:
            raise UsageError(
                f"{folder.path} holds no run, and no --config says what to run: name one, for "
                f"example a changed copy of {shipped_config('demo')}; `reflux demo` runs that one"
            )
        return config
    if not resume:
        raise UsageError(
            f"{folder.path} holds a run; continue it with --resume, or name another --run"
        )
    saved = folder.config()
    if base and saved.base.model != base:
        raise UsageError(
            f"{folder.path} was begun with the base {saved.base.model or 'in the wheel'}; leave "
            "--base out, or name another --run"
        )
    if config is None or config_file is None:
        return saved
    folder.check_config(config, config_file)
    return config
