"""The teacher of soft targets: another adapter, or none, over the student's own base.

The base is in memory once. The teacher's adapter is frozen, and switched on for its own pass.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from reflux.agents.errors import UsageError
from reflux.finetune.base_model import load_tokenizer
from reflux.finetune.bases import Base
from reflux.finetune.configs.targets import BASE, PARENT, TargetConfig
from reflux.finetune.registry import Registry

STUDENT, TEACHER = "default", "teacher"
"""Names of the adapters in the model."""


def teacher_folder(
    targets: TargetConfig, registry: Registry, parent: str | None, base: Base
) -> Path | None:
    """The folder of the teacher's adapter; None where the base teaches, or nobody.

    Raises:
        UsageError: there is no such student, or it is of another base or tokenizer.
    """
    if not targets.needs_teacher or targets.teacher == BASE:
        return None
    name = targets.teacher
    if name == PARENT:
        current = registry.current()
        name = parent or (current.id if current else None)
    if name is None:
        return None
    student = registry.get(name)
    if student.base.weights != base.weights_digest:
        raise UsageError(
            f"targets.teacher {name} is an adapter of {student.base.model_id} (weights "
            f"{student.base.weights[:12]}…), and the student's base is {base.name} "
            f"({base.weights_digest[:12]}…): name a student of the same base, or base"
        )
    theirs = load_tokenizer(student.path, base.config)
    ours = load_tokenizer(base.folder, base.config)
    if tokenizer_digest(theirs) != tokenizer_digest(ours):
        raise UsageError(
            f"targets.teacher {name} has another tokenizer than {base.name}, so its distributions "
            "are of other tokens: name a student that was trained with the base's, or base"
        )
    return student.path


def tokenizer_digest(tokenizer: Any) -> str:
    """Hash of which token is which text (hex, 32)."""
    body = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    return hashlib.sha256(body).hexdigest()[:32]


def add_teacher(model: Any, adapter: Path) -> None:
    """Load the teacher's adapter beside the student's, frozen.

    Raises:
        UsageError: it does not fit the base.
    """
    try:
        model.load_adapter(str(adapter), TEACHER, is_trainable=False)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(
            f"the teacher's adapter {adapter} does not fit the base: {why}; name a student of the "
            "same base, or base"
        ) from error
    model.set_adapter(STUDENT)


@contextmanager
def teaching(model: Any, has_adapter: bool) -> Iterator[None]:
    """Let a PEFT model be the teacher for a block, without gradients and dropout."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if not has_adapter:
                with model.disable_adapter():
                    yield
                return
            model.set_adapter(TEACHER, inference_mode=True)
            try:
                yield
            finally:
                model.set_adapter(STUDENT)
    finally:
        model.train(was_training)
