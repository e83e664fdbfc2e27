"""Sets a training with soft targets up: its features, its teacher, and its trainer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from reflux.finetune.configs.targets import TargetConfig
from reflux.finetune.targets.dataset import SoftCollator, SoftRows
from reflux.finetune.targets.on_policy import sampler_for
from reflux.finetune.targets.teacher import add_teacher
from reflux.finetune.targets.trainer import SoftTrainer
from reflux.finetune.train.sft import MakeTrainer, Rows, text_trainer


def trainer_for(targets: TargetConfig, teacher: Path | None = None) -> MakeTrainer:
    """What makes the trainer of these targets.

    Args:
        teacher: folder of the teacher's adapter; None where the base teaches, or nobody.
    """
    return text_trainer if targets.kind == "hard" else partial(_soft_trainer, targets, teacher)


def _soft_trainer(
    targets: TargetConfig,
    teacher: Path | None,
    rows: tuple[Rows, Rows],
    scratch: Path,
    on_note: Callable[[str], None],
    *,
    model: Any,
    args: Any,
    processing_class: Any,
    peft_config: Any,
) -> SoftTrainer:
    """As `MakeTrainer`.

    Raises:
        UsageError: the rows lack what the targets need, or the teacher does not fit the base.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    features = SoftRows(processing_class, targets, args.max_length, context)
    training = features.dataset(rows[0], scratch)
    on_note(features.note)
    held_out = SoftRows(processing_class, TargetConfig(kind="votes"), args.max_length, context)
    padding = processing_class.pad_token_id
    collate = SoftCollator(padding if padding is not None else processing_class.eos_token_id)
    trainer = SoftTrainer(
        targets=targets,
        model=model,
        args=args,
        train_dataset=training,
        eval_dataset=held_out.dataset(rows[1], scratch) if rows[1] else None,
        data_collator=collate,
        processing_class=processing_class,
        peft_config=peft_config,
    )
    if teacher is not None:
        add_teacher(trainer.model, teacher)
    if targets.kind == "on_policy":
        own = model.generation_config.eos_token_id
        ends = {processing_class.eos_token_id, *(own if isinstance(own, list) else [own])}
        known = sorted(end for end in ends if end is not None)
        seen: Any = list(training)
        trainer.sampler = sampler_for(targets, collate, seen, known, context, on_note)
    return trainer
