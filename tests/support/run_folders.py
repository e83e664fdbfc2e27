"""Run folders as rounds leave them, without the hours that they take."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reflux.agents.clients.llama_cpp import DEFAULT_MODEL_ID, DEFAULT_SHA256
from reflux.finetune.run_folder import RunFolder

REPORT = Path(__file__).parents[2] / "docs" / "demo.json"


def make_run(path: Path, students: Sequence[str] = ("student-r0", "student-r1")) -> RunFolder:
    """A folder with the report of the demo and its students, the last of which is promoted.

    Their adapters are text: enough for the registry, which verifies what it wrote, and for nobody
    who would load them.
    """
    folder = RunFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    shutil.copy(REPORT, folder.report_path)
    parent: str | None = None
    for number, id in enumerate(students):
        with folder.registry.staging(id) as (made, card):
            for name in ("adapter_config.json", "adapter_model.safetensors", "adapter.gguf"):
                (made / name).write_text(json.dumps({"of": f"{id} {name}"}))
            card.update(
                parent=parent,
                round=number,
                base={
                    "model_id": DEFAULT_MODEL_ID,
                    "gguf_sha256": DEFAULT_SHA256,
                    "dequantised_sha256": "0",
                },
                rows_digest=f"rows of {id}",
                config={
                    "report": {
                        "rows": 264 * (number + 1),
                        "seconds": 41.5,
                        "final_loss": 0.02,
                        "curve": {
                            "loss": [(1, 3.1), (2, 0.4), (3, 0.02)],
                            "eval_loss": [(2, 0.5), (3, 0.1)],
                        },
                    }
                },
            )
        folder.registry.record_evaluation(
            id,
            {"student": {"accuracy": 0.995}, "direct": {"accuracy": 0.0}},
            [{"name": "retention", "value": 0.99, "limit": 0.9, "passed": True}],
        )
        folder.registry.promote(id)
        parent = id
    return folder


def put_base(base: Path, put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have this process train and run a small base wherever it would the default model."""
    from reflux.finetune import bases, distillation, run_folder

    for module in (bases, run_folder, distillation):
        put(module, "find_base", lambda config: bases.Base(config, given=base))
