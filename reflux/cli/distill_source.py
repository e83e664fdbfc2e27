"""The rows and settings of `reflux distill`."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from reflux.agents.errors import UsageError
from reflux.finetune.config import config_from, problems, read_yaml
from reflux.finetune.row_files import read_jsonl
from reflux.finetune.rows import Row, rows_digest, run_rows, training_order
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.traces.store import TraceStore
from reflux.tasks import DEFAULT_TASK, task_named


class DistillConfig(BaseModel):
    """Settings of one distillation; `sft` and `lora` go unchanged to TRL and PEFT."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sft: dict[str, Any] = {}
    lora: dict[str, Any] = {}
    seed: int = 0

    @staticmethod
    def read(path: Path | None) -> "DistillConfig":
        """The settings of a YAML file, or the defaults.

        Raises:
            UsageError: no such file, or unknown keys.
        """
        if path is None:
            return DistillConfig()
        try:
            return DistillConfig.model_validate(read_yaml(path) or {})
        except ValidationError as error:
            raise UsageError(f"{path}: {problems(error)}") from error


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
    recorded = training_order(logged_rows(folder), seed)
    if not recorded:
        raise UsageError(
            f"{folder.path} has no accepted trajectories: run `reflux run` first, or correct an "
            "answer with `reflux review`; what was only asked is not learned"
        )
    return [row.train() for row in recorded], rows_digest(recorded)


def logged_rows(folder: RunFolder) -> list[Row]:
    """Every row of a run folder, checked for leaks; without a run, the corrections in it.

    Raises:
        UsageError: the folder holds no trajectories.
    """
    task = DEFAULT_TASK  # `ask` and `chat` write no config.
    if folder.exists or not folder.traces_path.is_file():
        task = config_from(folder.load_config(), str(folder.config_path)).task
    store = TraceStore(folder.traces_path)
    try:
        primitives, others = run_rows(store, task_named(task))
    finally:
        store.close()
    return [*primitives, *others]
