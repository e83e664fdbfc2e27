"""Distillation: rows in, a finished student out."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from reflux.agents.clients.llama_cpp import DEFAULT_MODEL_ID, default_gguf, file_sha256
from reflux.agents.errors import RefluxError
from reflux.finetune.base_model import base_digest, dequantised_base
from reflux.finetune.export.gguf import export_adapter
from reflux.finetune.registry import Registry, Student


@dataclass(frozen=True)
class StudentPlan:
    """What a student is made from."""

    id: str
    rows: Sequence[Mapping[str, Any]]
    """TRL's conversational prompt-completion rows, in the form that `Row.train` gives."""
    rows_digest: str
    round: int | None = None
    parent: str | None = None
    sft: Mapping[str, Any] = field(default_factory=dict)
    lora: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


def distill(
    registry: Registry,
    plan: StudentPlan,
    progress: Callable[[str, int, int, str], None],
    stop: threading.Event | None = None,
) -> Student:
    """Train on the pristine base, export the GGUF twin, and write the student whole or not at all.

    Raises:
        RefluxError: `stop` was set, or the loss is not finite.
        UsageError: no rows, an unknown key in `sft` or `lora`, or the id is taken.
    """
    from reflux.finetune.train.sft import Progress, train

    def go_on() -> None:
        if stop is not None and stop.is_set():
            raise RefluxError("training was interrupted; --resume starts this student again")

    gguf = default_gguf()
    progress("load the base", 0, 1, "")
    base = dequantised_base(gguf)
    go_on()

    def heard(at: Progress) -> None:
        go_on()
        progress(
            f"distill {plan.id}",
            at.step,
            at.steps,
            f"loss {at.loss:.3f}, {at.examples_per_second:.1f} examples/s",
        )

    with registry.staging(plan.id) as folder:
        report = train(
            plan.rows,
            base,
            folder,
            sft=plan.sft,
            lora=plan.lora,
            seed=plan.seed,
            model_id=DEFAULT_MODEL_ID,
            on_progress=heard,
        )
        export_adapter(folder, base, folder / "adapter.gguf")
        registry.write(
            folder,
            id=plan.id,
            parent=plan.parent,
            round=plan.round,
            base={
                "model_id": DEFAULT_MODEL_ID,
                "gguf_sha256": file_sha256(gguf),
                "dequantised_sha256": base_digest(base),
            },
            rows_digest=plan.rows_digest,
            config={
                "sft": dict(plan.sft),
                "lora": dict(plan.lora),
                "seed": plan.seed,
                "report": {k: v for k, v in asdict(report).items() if k != "losses"},
            },
        )
    return registry.get(plan.id)
