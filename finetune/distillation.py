"""A student from its rows: trained, exported, compared in every engine, and registered whole.

A training that was interrupted, even killed, goes on at its last checkpoint.
"""

import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

from reflux.agents.errors import RefluxError
from reflux.agents.files import write_json
from reflux.agents.overseers.step_forms import StepStyle
from reflux.finetune.base_model import quiet_libraries
from reflux.finetune.bases import Base, find_base, folder_digest
from reflux.finetune.configs.run import DistillConfig
from reflux.finetune.configs.targets import TargetConfig
from reflux.finetune.export.gguf import can_export, export_adapter
from reflux.finetune.export.parity import certify
from reflux.finetune.registry import ADAPTER_GGUF, Registry, StudentBase, role_of
from reflux.finetune.targets.teacher import teacher_folder
from reflux.finetune.targets.training import trainer_for
from reflux.finetune.train.launch import check_launch, train_in_processes
from reflux.finetune.train.options import lora_config, sft_arguments
from reflux.finetune.train.progress import TrainingStep, newest_checkpoint
from reflux.finetune.train.sft import TrainReport, train
from reflux.finetune.train.trainer import GOOD

OVERSEER_ROWS = 500
"""Rows that the training of an overseer takes, repeats included, at least."""


@dataclass(frozen=True)
class StudentPlan:
    """The rows and settings of a new student."""

    id: str
    rows: Sequence[Mapping[str, Any]]
    """In the form that `Row.train` gives."""
    rows_digest: str
    config: DistillConfig
    round: int | None = None
    parent: str | None = None
    style: StepStyle | None = None
    """Of the rows of an overseer."""
    pairs: Sequence[Mapping[str, Any]] | None = None
    """Of an accepted and a rejected answer, as TRL takes them; None where it learns none."""


def distill(
    registry: Registry,
    plan: StudentPlan,
    progress: Callable[[str, int, int, str], None],
    stop: threading.Event,
) -> None:
    """Train on the pristine base, export the adapter as GGUF, and register the whole student.

    A training of the same plan that was interrupted, even killed, goes on at its last checkpoint.

    Raises:
        RefluxError: `stop` was set, or the loss is not finite.
        UsageError: no rows, an unknown key in `sft` or `lora`, or the id exists.
    """

    def check_stop() -> None:
        if stop.is_set():
            raise RefluxError(
                "training was interrupted; the same command (of a run: with --resume) goes on at "
                "its last checkpoint"
            )

    def on_progress(state: TrainingStep) -> None:
        check_stop()
        progress(f"distill {plan.id}", state.step, state.steps, state.detail)

    def on_note(note: str) -> None:
        progress(f"distill {plan.id}", 0, 0, note)

    registry.check_new(plan.id)
    base = find_base(plan.config.base)
    # Demonstrations, primitives and verdicts have no votes and no sub-answers.
    is_imitation = role_of(plan.id) != "agent" or plan.round == 0
    targets = TargetConfig() if is_imitation else plan.config.targets
    teacher = teacher_folder(targets, registry, plan.parent, base)
    progress("load the base", 0, 1, "")
    base.folder  # noqa: B018 - a GGUF is unpacked here
    check_stop()
    with (
        _checkpoints(
            registry.root / f".{plan.id}.training".replace(":", "."), plan, base
        ) as checkpoints,
        registry.staging(plan.id) as (folder, card),
    ):
        settings = plan.config.model_dump(exclude={"base", "targets"})
        if plan.style is not None:
            settings["sft"] = overseer_sft(settings["sft"], len(plan.rows))
        options = {**settings, "checkpoints": checkpoints, "on_progress": on_progress}
        launch, _ = options.pop("launch"), options.pop("preferences")
        if launch:
            report = train_in_processes(
                plan.rows, base, folder, launch, check_stop, on_note=on_note, **options
            )
            trained = TrainReport(**report)
        else:
            make = trainer_for(targets, teacher)
            trained = train(plan.rows, base, folder, make_trainer=make, on_note=on_note, **options)
        preferred = _prefer(plan, base, folder, on_progress, on_note)
        if can_export(base.folder):
            export_adapter(folder, base.folder, folder / ADAPTER_GGUF)
        progress(f"compare the engines on {plan.id}", 0, 1, "")
        card["parity"] = certify(base, folder, plan.rows)
        card.update(
            parent=plan.parent,
            round=plan.round,
            style=plan.style,
            base=StudentBase(
                base.name,
                "" if base.gguf is None else base.weights_digest,
                folder_digest(base.folder),
                base.config,
            ),
            rows_digest=plan.rows_digest,
            config={
                **settings,
                "targets": targets.model_dump(),
                "report": asdict(trained) | preferred,
            },
        )


def _prefer(
    plan: StudentPlan,
    base: Base,
    folder: Path,
    on_progress: Callable[[TrainingStep], None],
    on_note: Callable[[str], None],
) -> dict[str, Any]:
    """Train the adapter in a folder on the plan's pairs, where it has enough; what to report."""
    config = plan.config.preferences
    if config is None or plan.pairs is None:
        return {}
    if (n := len(plan.pairs)) < config.min_pairs:
        on_note(f"{n} pairs are fewer than preferences.min_pairs {config.min_pairs}: not trained")
        return {"preferences": {"pairs": n, "steps": 0}}
    from reflux.finetune.train.preferences import prefer

    on_note(f"{n} pairs of an accepted and a rejected answer")
    report = prefer(
        plan.pairs, base, folder, dpo=config.dpo, seed=plan.config.seed, on_progress=on_progress
    )
    return {"preferences": asdict(report)}


def overseer_sft(sft: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The `sft` of an overseer, which sees few rows several times unless it says how often: one
    epoch of 100 demonstrations would end before the warm-up does."""
    if {"num_train_epochs", "max_steps"} & sft.keys():
        return dict(sft)
    return {"num_train_epochs": max(1, ceil(OVERSEER_ROWS / max(1, rows))), **sft}


@contextmanager
def _checkpoints(folder: Path, plan: StudentPlan, base: Base) -> Iterator[Path]:
    """A folder of a plan's checkpoints, which stays if the block fails after the first of them, or
    leaves the last good adapter.

    Checkpoints of another plan, base or settings are deleted first.
    """
    settings = plan.config.model_dump(mode="json")
    text = json.dumps([plan.rows_digest, base.digest, settings], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    owner = folder / "training.json"
    if not owner.is_file() or json.loads(owner.read_text(encoding="utf-8")) != digest:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(owner, digest)
    try:
        yield folder
    except BaseException:
        if newest_checkpoint(folder) is None and not any(folder.glob(f"{GOOD}*")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def check_options(config: DistillConfig) -> None:
    """Check the options of a training before the work that leads to it.

    Raises:
        UsageError: one is unknown or invalid.
    """
    if config.launch:
        check_launch(config.launch)
    with tempfile.TemporaryDirectory(prefix="reflux-sft-") as scratch, quiet_libraries():
        sft_arguments(config.sft, scratch, config.seed, config.evaluation)
        lora_config(config.lora)
        if config.preferences is not None:
            from reflux.finetune.train.preferences import dpo_arguments

            dpo_arguments(config.preferences.dpo, scratch, config.seed)
