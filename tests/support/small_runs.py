"""Whole runs in seconds: a tiny random base, two steps of training, and a scripted agent."""

from pathlib import Path
from typing import Any

from reflux.agents.clients.scripted import ScriptedClient
from reflux.ask_context import open_tools
from reflux.finetune.configs.canaries import CanaryConfig
from reflux.finetune.configs.run import BaseConfig, RoundsConfig
from reflux.finetune.data.questions import check_questions
from reflux.finetune.gates import GateConfig
from reflux.finetune.rounds import run_rounds
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.finetune.stages import Progress
from reflux.tasks import run_task


def silent(what: str, done: int, total: int, detail: str) -> None:
    """Shows no progress."""


async def run_small(
    config: RoundsConfig,
    folder: Path,
    base: Path,
    client: ScriptedClient,
    progress: Progress = silent,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Run all rounds of a config with the least training, and save the config with the run."""
    small = {
        "base": BaseConfig(model=str(base)),
        "anchor": 2,
        "canaries": CanaryConfig(prompts=0, probes=0),
        "gates": GateConfig(),
        "sft": {"max_steps": 2, "per_device_train_batch_size": 2},
    }
    config = config.model_copy(update=small | changes)
    task, run_folder = run_task(config), RunFolder(folder)
    check_questions(config, task)
    run_folder.save_config(config.model_dump(mode="json"))
    async with (
        OpenRun(run_folder, client=client) as run,
        open_tools(task.tool_names) as grants,
    ):
        return await run_rounds(run, config, task, progress, grants=grants)
