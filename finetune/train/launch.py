"""Training in several processes, by `accelerate launch`.

    this process ── job.json ──► launcher (accelerate) ──► worker 0 … worker n: `train`
                 ◄── events.jsonl, adapter ── worker 0

`launch: {num_processes: 8, use_fsdp: true}` names options of `accelerate launch`; `launch: FILE`
names a config file of accelerate's. The launcher and its workers end with this process.
"""

import argparse
import contextlib
import difflib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.commands.launch import launch_command, launch_command_parser

from reflux.agents.errors import MissingError, RefluxError, UsageError
from reflux.finetune.bases import Base
from reflux.finetune.configs.run import BaseConfig, read_yaml

if TYPE_CHECKING:
    from reflux.finetune.train.progress import TrainingStep

Launch = str | Mapping[str, Any]
MODULE = "reflux.finetune.train.launch"
STRATEGIES = ("multi_gpu", "use_fsdp", "use_deepspeed", "use_megatron_lm", "tpu")
"""Options of accelerate that start several processes."""
POLL_SECONDS = 0.1
STOP_SECONDS = 30.0
"""Time between the request to stop and the kill."""
ERRORS = {kind.__name__: kind for kind in (RefluxError, UsageError, MissingError)}


def check_launch(launch: Launch) -> argparse.Namespace:
    """The arguments of `accelerate launch` for a config's `launch`.

    Raises:
        UsageError: an unknown option, an invalid value, a missing file, or more GPUs than there
            are.
    """
    options: dict[str, Any] = {"config_file": launch} if isinstance(launch, str) else dict(launch)
    parser = launch_command_parser()
    known = {action.dest: action for action in parser._actions if action.option_strings}
    for key in options:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {close[0]}?" if close else "see `accelerate launch --help`"
            raise UsageError(f"launch.{key} is unknown to accelerate launch: {hint}")
    file, gpus = options.get("config_file"), torch.cuda.device_count()
    if file is not None and not Path(file).is_file():
        raise UsageError(f"launch: there is no config file of accelerate's at {file}")
    if file is not None and not isinstance(read_yaml(Path(file)), dict):
        raise UsageError(f"launch: {file} is no config of accelerate's: write it with its keys")
    if file is None and not (gpus or options.get("num_processes")):
        raise UsageError("launch.num_processes is missing, and this machine has no GPU to count")
    processes_of_cpus = bool(options.pop("cpu", False)) or not gpus
    if processes_of_cpus and options.get("num_processes") != 1:
        # accelerate starts several processes for GPUs only; they then find none to use.
        options.setdefault("multi_gpu", not any(options.get(name) for name in STRATEGIES))
    if file is None:  # By default every training would take the same port.
        options.setdefault("main_process_port", 0)
    flags: list[str] = []
    for key, value in options.items():
        if known[key].nargs == 0:
            flags += [f"--{key}"] if value else []
        elif value is not None:
            flags += [f"--{key}", str(value).lower() if isinstance(value, bool) else str(value)]
    refused = io.StringIO()
    try:
        with contextlib.redirect_stderr(refused):
            arguments = parser.parse_args([*flags, "--module", MODULE])
    except SystemExit as error:
        reason = refused.getvalue().strip().rpartition("error: ")[2]
        raise UsageError(f"launch: accelerate refuses {options}: {reason}") from error
    wanted = arguments.num_processes
    limit = gpus * (arguments.num_machines or 1) if not processes_of_cpus else wanted
    if wanted is not None and not 1 <= wanted <= (limit or 1):
        raise UsageError(f"launch.num_processes is {wanted}, and this machine has {gpus} GPUs")
    return arguments


def train_in_processes(
    rows: Sequence[Mapping[str, Any]],
    base: Base,
    out: Path,
    launch: Launch,
    check_stop: Callable[[], None],
    *,
    on_progress: "Callable[[TrainingStep], None]",
    on_note: Callable[[str], None],
    checkpoints: Path,
    **settings: Any,
) -> dict[str, Any]:
    """`train` in the processes that accelerate launches; the fields of its report.

    Raises:
        RefluxError: as `train`, or a process failed; what it said last.
    """
    from reflux.finetune.train.progress import TrainingStep

    check_launch(launch)
    with tempfile.TemporaryDirectory(prefix="reflux-launch-") as scratch:
        folder = Path(scratch)
        job = {
            "rows": list(rows),
            "base": base.config.model_dump(),
            "folder": str(base.folder),
            "out": str(out),
            "launch": launch,
            "parent": os.getpid(),
            "settings": {"checkpoints": str(checkpoints), **settings},
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process, which stops the others.
            )
        try:
            for event in _events(folder / "events.jsonl", process, check_stop):
                if "step" in event:
                    on_progress(TrainingStep(**event["step"]))
                elif "note" in event:
                    on_note(event["note"])
                elif "report" in event:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(STOP_SECONDS)
                    return event["report"]
                else:
                    raise ERRORS[event["error"]](event["text"])
        finally:
            _stop(process)
        lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        raise RefluxError(
            f"the processes of launch: ended with code {process.returncode}: {last[:400]}"
        )


def _events(
    file: Path, process: subprocess.Popen[bytes], check_stop: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """The events that the workers write, until the launcher has ended."""
    file.touch()
    with file.open(encoding="utf-8") as lines:
        running = True
        rest = ""
        while running:
            running = process.poll() is None
            check_stop()
            while line := lines.readline():
                rest += line
                if rest.endswith("\n"):
                    yield json.loads(rest)
                    rest = ""
            if running:
                time.sleep(POLL_SECONDS)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the launcher, which ends its workers; workers without a launcher end themselves."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_with(parent: int) -> None:
    """End this process once its parent is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(folder: Path, is_worker: bool) -> None:
    """The launcher, or one of its workers."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    if is_worker:
        _end_with(os.getppid())
        work(folder, job)
        return
    _end_with(job["parent"])
    arguments = check_launch(job["launch"])
    arguments.training_script_args = [str(folder), "worker"]
    launch_command(arguments)


def work(folder: Path, job: Mapping[str, Any]) -> None:
    """Train in one of the processes, and tell of it in `events.jsonl`."""
    from reflux.finetune.train.sft import train

    # One write a line, which the system appends whole.
    events = os.open(folder / "events.jsonl", os.O_WRONLY | os.O_APPEND)

    def tell(**event: Any) -> None:
        os.write(events, (json.dumps(event) + "\n").encode())

    is_first = os.environ.get("RANK", "0") == "0"
    base = Base(BaseConfig(**job["base"]), given=Path(job["folder"]))
    settings = {**job["settings"], "checkpoints": Path(job["settings"]["checkpoints"])}
    if isinstance(job["launch"], dict) and job["launch"].get("cpu"):
        settings["sft"] = {"use_cpu": True, **settings["sft"]}
    try:
        report = train(
            job["rows"],
            base,
            Path(job["out"]),
            on_progress=lambda step: tell(step=asdict(step)),
            on_note=lambda note: tell(note=note) if is_first else None,
            **settings,
        )
    except RefluxError as error:
        kind = next(name for name, kind in reversed(ERRORS.items()) if isinstance(error, kind))
        tell(error=kind, text=str(error))
        os._exit(error.exit_code)  # The others may wait for this one in vain.
    except Exception as error:
        text = f"training process {os.environ.get('RANK', '0')} failed: {type(error).__name__}"
        tell(error="RefluxError", text=f"{text}: {' '.join(str(error).split())[:400]}")
        raise
    if is_first:
        tell(report=asdict(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), is_worker=sys.argv[2:] == ["worker"])
