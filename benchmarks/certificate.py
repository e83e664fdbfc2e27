"""Whether a student's certificate tells a wrong export from rounding.

Students of the default model are trained on sums, one for each seed. Each is certified as it is,
and with an adapter for llama.cpp that is wrong on purpose: the rows of q and k in the order of
transformers, half the scale, twice the scale. The gate `parity` must let the first pass and hold
back the others.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Claim, Report
from benchmarks.training_rows import rows_of
from reflux.finetune.bases import Base, find_base
from reflux.finetune.configs.run import BaseConfig, GateConfig
from reflux.finetune.export import gguf, parity
from reflux.finetune.export.parity import certify
from reflux.finetune.registry import ADAPTER_GGUF
from reflux.finetune.train.sft import train

LEVELS = (1, 2)
Rows = NDArray[np.float32]
Change = Callable[[str, Rows, Any], Rows]


def in_order(module: str, rows: Rows, base: Any) -> Rows:
    """The rows as PEFT has them."""
    return rows


def scaled(factor: float) -> Change:
    """Right rows of a wrong size."""
    right = gguf.gguf_rows
    return lambda module, rows, base: factor * right(module, rows, base)


CHANGES: dict[str, Change] = {
    "as it is": gguf.gguf_rows,
    "q and k in another order": in_order,
    "half the scale": scaled(0.5),
    "twice the scale": scaled(2.0),
}


@dataclass(frozen=True)
class Config:
    """How many students, and how long they train."""

    seeds: Sequence[int] = (0, 1, 2)
    rows: int = 128
    steps: int = 60
    sft: Mapping[str, Any] = field(default_factory=dict[str, Any])
    quick: bool = False


def certificate(base: Base, student: Path, change: Change, rows: Any) -> dict[str, Any]:
    """The certificate of a student whose export is changed."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "student"
        shutil.copytree(student, copy)
        with mock.patch.object(gguf, "gguf_rows", change):
            gguf.export_adapter(copy, base.folder, copy / ADAPTER_GGUF)
        return certify(base, copy, rows)


def main(config: Config) -> None:
    """Train, certify and report."""
    report = Report("certificate", seed=0, quick=config.quick)
    base, limit = find_base(BaseConfig()), GateConfig().parity
    changes = dict(list(CHANGES.items())[: 2 if config.quick else None])
    found: dict[str, list[float]] = {name: [] for name in changes}
    for seed in config.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            rows = rows_of(base.folder, LEVELS, config.rows // len(LEVELS), 0, seed)
            student = Path(scratch) / "student"
            train(rows, base, student, sft={"max_steps": config.steps, **config.sft}, seed=seed)
            for name, change in changes.items():
                made = certificate(base, student, change, rows)
                found[name].append(made["agreement"])
                counts = made["engines"]["llama.cpp"]
                report.rows.append(
                    {"seed": seed, "export": name, "n": made["n"], "agreement": made["agreement"],
                     "same": counts["same"], "nearly": counts["near"]}
                )  # fmt: skip
                print(report.rows[-1], flush=True)
    n = len(config.seeds)
    (_, right), *wrong = found.items()
    report.claims.append(Claim("as it is, lowest agreement", min(right), ">=", limit, n))
    report.claims += [
        Claim(f"{name}, highest agreement", max(values), "<=", limit - 1e-9, n)
        for name, values in wrong
    ]
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of one short training")
    if parser.parse_args().quick:
        with mock.patch.multiple(parity, ROW_PROMPTS=2, FIXED_PROMPTS=1, TOKENS=2):
            main(Config((0,), 16, 2, {"per_device_train_batch_size": 2}, quick=True))
    else:
        main(Config())
