"""Soft targets in training: examples per second and memory, ours and TRL's, each in a process.

`trl on-policy` is TRL's `DistillationTrainer`: the student samples, and a second model in memory
grades. `ours on-policy` does the same with one model of two adapters; teacher and student read the
same prompts there, since TRL's do. `ours tokens` grades recorded texts.
"""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.measured import peak_mib
from benchmarks.report import Claim, Report, middle, spread
from benchmarks.training_rows import Rows, figure

ARMS = ("ours on-policy", "trl on-policy", "ours tokens", "ours hard")
MAX_TOKENS = 24
"""Of a sample, for both."""


def soft_speeds(
    base: Path, rows: Rows, sft: Mapping[str, Any], repeats: int, fresh: bool, report: Report
) -> None:
    """Add every arm's speed and memory, measured in turns; the claims are on ours over TRL's."""
    speeds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    memory: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for repeat in range(repeats):
        for arm in ARMS if repeat % 2 == 0 else ARMS[::-1]:
            if fresh:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    seconds, peak = pool.submit(measure, arm, base, rows, dict(sft)).result()
            else:
                seconds, peak = measure(arm, base, rows, dict(sft))
            speeds[arm].append(len(rows) / seconds)
            memory[arm].append(peak)
    for arm in ARMS:
        rates, peaks = speeds[arm], memory[arm]
        report.rows.append(
            figure("soft", arm, middle(rates), "examples/s", len(rates), spread(rates))
        )
        report.rows.append(figure("soft", arm, middle(peaks), "peak MiB", len(peaks)))
    ratios = [a / b for a, b in zip(speeds[ARMS[0]], speeds[ARMS[1]], strict=True)]
    what = "examples/s over TRL's DistillationTrainer, on-policy"
    report.claims.append(Claim(what, middle(ratios), ">=", 1.0, len(ratios), spread(ratios)))
    ratios = [a / b for a, b in zip(memory[ARMS[0]], memory[ARMS[1]], strict=True)]
    what = "peak memory over that of TRL's DistillationTrainer"
    report.claims.append(Claim(what, middle(ratios), "<=", 1.0, len(ratios), spread(ratios)))


def measure(arm: str, base: Path, rows: Rows, sft: dict[str, Any]) -> tuple[float, float]:
    """(seconds of the training loop, peak MiB of the process) of one arm."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    trains = _trl if arm.startswith("trl") else _ours
    return trains(arm, base, rows, sft), peak_mib()


def _ours(arm: str, base: Path, rows: Rows, sft: dict[str, Any]) -> float:
    from reflux.finetune.configs.targets import TargetConfig
    from reflux.finetune.targets.training import trainer_for
    from reflux.finetune.train.sft import train

    kinds = {
        "ours on-policy": TargetConfig(kind="on_policy", cold_start=0, max_tokens=MAX_TOKENS),
        "ours tokens": TargetConfig(kind="tokens"),
        "ours hard": TargetConfig(),
    }
    taught = [{**row, "teacher": row["prompt"]} for row in rows]
    with tempfile.TemporaryDirectory() as out:
        make = trainer_for(kinds[arm])
        return train(taught, base, Path(out), sft=sft, make_trainer=make).seconds


def _trl(arm: str, base: Path, rows: Sequence[Mapping[str, Any]], sft: dict[str, Any]) -> float:
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from trl.trainer.distillation_config import DistillationConfig
    from trl.trainer.distillation_trainer import DistillationTrainer

    from reflux.finetune.base_model import quiet_libraries
    from reflux.finetune.train.sft import LORA_DEFAULTS, SFT_DEFAULTS

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)

    shared = {key: value for key, value in SFT_DEFAULTS.items() if key != "save_total_limit"}
    given = {**shared, **sft}
    if given.get("max_steps", -1) < 1:  # Its data loader does not tell how long it is.
        passes = given["num_train_epochs"] * len(rows) / given["per_device_train_batch_size"]
        given["max_steps"] = max(1, round(passes))
    with tempfile.TemporaryDirectory() as out, quiet_libraries():
        trainer = DistillationTrainer(
            model=load(),
            teacher_model=load(),
            args=DistillationConfig(
                output_dir=out,
                use_cpu=not torch.cuda.is_available(),
                dataloader_pin_memory=False,
                max_completion_length=MAX_TOKENS,
                **given,
            ),
            train_dataset=datasets.Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
            processing_class=AutoTokenizer.from_pretrained(base, padding_side="left"),
            peft_config=LoraConfig(**LORA_DEFAULTS),
        )
        trainer.remove_callback(PrinterCallback)
        begun = time.perf_counter()
        trainer.train()
        return time.perf_counter() - begun
