"""Where `reflux distill` takes its rows and settings from."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from reflux.agents.errors import UsageError
from reflux.finetune.config import config_from, problems, read_yaml
from reflux.finetune.data.corrections import edited
from reflux.finetune.data.rows import Row, accepted, check_leaks, read_jsonl, rows_digest
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
        """From a YAML file, or the defaults.

        Raises:
            UsageError: no such file, or unknown keys.
        """
        if path is None:
            return DistillConfig()
        try:
            return DistillConfig.model_validate(read_yaml(path) or {})
        except ValidationError as error:
            raise UsageError(f"{path}: {problems(error)}") from error


def rows_for(folder: RunFolder, data: Path | None) -> tuple[list[dict[str, Any]], str]:
    """(rows, their digest): of a JSONL file, or of all accepted trajectories of a run.

    Raises:
        UsageError: neither is there.
    """
    if data is not None:
        rows = read_jsonl(data)
        body = json.dumps(rows, sort_keys=True).encode()
        return rows, hashlib.sha256(body).hexdigest()[:32]
    found = logged_rows(folder)
    if not found:
        raise UsageError(
            f"{folder.path} has no accepted trajectories: run `reflux run` first, or put an answer "
            "right with `reflux review`; what was only asked is not learned"
        )
    return [row.train() for row in found], rows_digest(found)


def logged_rows(folder: RunFolder) -> list[Row]:
    """Every accepted row of a run, checked for leaks; where people only asked, of what they edited.

    Raises:
        UsageError: the folder holds no run.
    """
    name = DEFAULT_TASK  # Of a folder in which people only asked, there is no config.
    if folder.exists or not folder.traces_path.is_file():
        name = config_from(folder.load_config(), str(folder.config_path)).task
    task = task_named(name)
    store = TraceStore(folder.traces_path)
    try:
        rows = [
            *accepted(store, "primitive", "overseer", 0, task.system_prompt),
            *accepted(store, "train", "amplified", 10**6, task.system_prompt),
            *accepted(store, "train", "anchor", 0, ""),
            *edited(store, task),
        ]
    finally:
        store.close()
    check_leaks(rows, task)
    return rows
