"""The share of the machine's matrix rate that a training reaches."""

from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.matrix_rate import layer_shapes, matrix_rate, work
from benchmarks.report import middle, spread
from benchmarks.training_rows import Figure, Rows, batches, figure
from reflux.agents.errors import RefluxError
from reflux.finetune.base_model import load_base
from reflux.finetune.train.packing import IGNORED, pack
from reflux.finetune.train.sft import LORA_DEFAULTS, SFT_DEFAULTS


def shares(base: Path, rows: Rows, rates: dict[str, float], seconds: float) -> Iterator[Figure]:
    """The machine's matrix rate, and each arm's share of it at `rates` examples per second.

    Only necessary operations count: no padding, no logits of unlabeled tokens in the plain arm;
    a shared prefix counts once in ours.
    """
    model, tokenizer = load_base(base)
    n, size = len(rows), SFT_DEFAULTS["per_device_train_batch_size"]
    sums = {"plain": [0, 0, 0], "ours": [0, 0, 0]}
    for batch in batches(tokenizer, rows, size):
        lengths = batch["attention_mask"].sum(1).tolist()
        counted = int((batch["labels"] != IGNORED).sum())
        add(sums["plain"], sum(lengths), sum(length**2 for length in lengths), counted)
        line = pack(batch, model.config, model.dtype)
        if line is None:
            raise RefluxError("a batch of the benchmark cannot be packed: nothing was measured")
        pairs = sum(group.queries.numel() * group.keys.shape[1] for group in line.groups)
        add(sums["ours"], line.ids.shape[1], pairs, counted)
    example = {arm: work(model.config, LORA_DEFAULTS["r"], *of) for arm, of in sums.items()}
    tokens = round(sums["ours"][0] / n * size)
    machine: dict[str, float] = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        shapes = layer_shapes(model.config)
        found = [r / 1e9 for r in matrix_rate(shapes, tokens, dtype, seconds)]
        machine[name] = middle(found)
        what = f"machine, {name} products of {tokens} tokens"
        yield figure("matrix rate", what, middle(found), "GFLOP/s", len(found), spread(found))
    for arm, rate in rates.items():
        bf16, fp32 = (part / n / 1e9 for part in (example[arm].base, example[arm].lora))
        needed = bf16 / machine["bf16"] + fp32 / machine["fp32"]
        figures = {
            "tokens an example": sums[arm][0] / n,
            "GFLOP an example": bf16 + fp32,
            "of them LoRA's, in fp32": fp32 / (bf16 + fp32),
            "GFLOP/s": (bf16 + fp32) * rate,
            "of the machine's bf16 rate": (bf16 + fp32) * rate / machine["bf16"],
            "of the time, were products at both rates": needed * rate,
        }
        for unit, value in figures.items():
            yield figure("matrix rate", arm, value, unit, n)


def add(sums: list[int], *more: int) -> None:
    """Add in place."""
    sums[:] = [one + other for one, other in zip(sums, more, strict=True)]
