"""Each family of models against plain TRL and transformers: training, answering, parity.

The families are random models of some million parameters, made here, with a byte-level tokenizer
and a template in their manner; `--base` adds real ones. On each, in one run and in turns:

    training   examples/s of `reflux distill` against TRL's `SFTTrainer` with the same rows, rank
               and batch, on the faster of its two attentions
    answering  requests/s of the batched engine against transformers' greedy `generate`, 64 a batch,
               sorted by length
    parity     the certificate of the student that was just trained

A model that packs is held to 1.5 times TRL's rate. For real bases the share of the machine's matrix
rate says what limits training. `benchmarks.training` tunes TRL further, on the default model.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.default_model import model_name
from benchmarks.plain_sft import Setting, train_plain
from benchmarks.report import Claim, Report, middle, spread
from benchmarks.training_rows import Rows, generate_greedy, rows_of
from benchmarks.training_share import shares
from reflux.agents.types import ChatRequest, Sampling
from reflux.finetune.base_model import load_base
from reflux.finetune.bases import Base, find_base
from reflux.finetune.chat_template import fit_template
from reflux.finetune.configs.run import BaseConfig, GateConfig
from reflux.finetune.engine.client import BatchedClient
from reflux.finetune.export.gguf import can_export, export_adapter
from reflux.finetune.export.parity import certify
from reflux.finetune.registry import ADAPTER_GGUF
from reflux.finetune.train.packing import packable
from reflux.finetune.train.sft import LORA_DEFAULTS, SFT_DEFAULTS, train
from tests.support.families import FAMILIES, make_family, tokenizer_of

MEDIUM: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "vocab_size": 16_384,
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,
}
"""Some 30 million parameters; the tokenizer knows the first few hundred tokens."""
WINDOW = 512
LEVELS = (2, 4)
BATCH = 64
QUICK = ("mistral-window", "gemma2", "gpt2")
"""With a window, without sdpa, not packed: every branch below."""


@dataclass(frozen=True)
class Config:
    """How much is measured."""

    families: Sequence[str] = tuple(FAMILIES)
    bases: Sequence[str] = ()
    rows: int = 128
    requests: int = 128
    repeats: int = 3
    max_tokens: int = 8
    seed: int = 0
    sizes: dict[str, Any] = field(default_factory=lambda: dict(MEDIUM))
    quick: bool = False


def main(config: Config) -> None:
    """Measure every base and report."""
    report = Report("bases", seed=config.seed, quick=config.quick)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in config.families:
            measure(config, name, family(name, folder / name, config), folder / "students", report)
        for name in config.bases:
            base = find_base(BaseConfig(model=name))
            measure(config, model_name(base), base, folder / "students", report)
            report.rows.extend(limits(config, base, report))
    report.finish()


def family(name: str, folder: Path, config: Config) -> Base:
    """A random model of a family, whose tokenizer has the fitted template for both arms."""
    window = {"sliding_window": WINDOW} if FAMILIES[name].options.get("sliding_window") else {}
    make_family(name, folder, **config.sizes, **window)
    tokenizer = tokenizer_of(FAMILIES[name])
    fit_template(tokenizer, BaseConfig())
    tokenizer.save_pretrained(folder)
    return find_base(BaseConfig(model=str(folder)))


def measure(config: Config, name: str, base: Base, students: Path, report: Report) -> None:
    """One row and its claims."""
    n = config.rows // len(LEVELS)
    rows = rows_of(base.folder, LEVELS, n, 0, config.seed)
    model, _ = load_base(base.folder)
    packs = packable(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    del model
    student = students / name
    trained = training(config, base, rows, student)
    answered = answering(config, base, rows)
    if base.gguf is not None and can_export(base.folder):
        export_adapter(student, base.folder, student / ADAPTER_GGUF)
    parity = certify(base, student, rows)
    report.rows.append(
        {
            "base": name,
            "parameters, M": round(parameters / 1e6, 1),
            "packed": "yes" if packs else "no",
            **{f"{arm}, examples/s": round(middle(rates), 2) for arm, rates in trained.items()},
            **{f"{arm}, requests/s": round(middle(rates), 2) for arm, rates in answered.items()},
            "parity": parity["agreement"],
            **{
                f"same, {engine}": f"{counts['same']}/{parity['n']}"
                for engine, counts in parity["engines"].items()
            },
        }
    )
    for what, found, target in (
        ("examples/s over plain TRL", trained, 1.5 if packs else 1.0),
        ("requests/s over generate", answered, 1.0),
    ):
        ours, theirs = found.values()
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        report.claims.append(
            Claim(f"{name}: {what}", middle(ratios), ">=", target, len(ratios), spread(ratios))
        )
    limit = GateConfig().parity
    report.claims.append(Claim(f"{name}: parity", parity["agreement"], ">=", limit, parity["n"]))
    print(report.rows[-1], flush=True)


def training(config: Config, base: Base, rows: Rows, out: Path) -> dict[str, list[float]]:
    """Examples per second of both arms by repeat."""
    sft = {**SFT_DEFAULTS, "max_steps": -1}

    def ours(some: Rows) -> float:
        return train(some, base, out, sft=sft, seed=config.seed).seconds

    def plain(some: Rows) -> float:
        return min(plain_with(some, attention) for attention in ("eager", "sdpa"))

    def plain_with(some: Rows, attention: str) -> float:
        setting = Setting(attention=attention, threads=torch.get_num_threads())
        with tempfile.TemporaryDirectory() as unused:
            try:
                return train_plain(
                    some, base.folder, Path(unused), setting, sft=sft, lora=LORA_DEFAULTS,
                    seed=config.seed,
                )  # fmt: skip
            except ValueError:  # Gemma 2 has no sdpa.
                return float("inf")

    few = rows[: len(rows) // 4]
    _ = ours(few), plain(few)  # The first training also pays for what is made once.
    rates: dict[str, list[float]] = {"ours": [], "TRL": []}
    for repeat in range(config.repeats):
        arms = [("ours", ours), ("TRL", plain)]
        for arm, seconds in arms if repeat % 2 == 0 else arms[::-1]:
            rates[arm].append(len(rows) / seconds(rows))
    return rates


def answering(config: Config, base: Base, rows: Rows) -> dict[str, list[float]]:
    """Requests per second of both arms by repeat."""
    prompts = [row["prompt"] for row in rows]
    prompts = (prompts * (config.requests // len(prompts) + 1))[: config.requests]
    model, tokenizer = load_base(base.folder)
    tokenizer.padding_side = "left"
    model.generation_config.repetition_penalty = None
    client = BatchedClient(lambda _: base.files())

    async def engine() -> float:
        sampling = Sampling(max_tokens=config.max_tokens)
        chats = [tuple((m["role"], m["content"]) for m in prompt) for prompt in prompts]
        begun = time.perf_counter()
        await asyncio.gather(
            *(client.complete(ChatRequest("base", chat, sampling)) for chat in chats)
        )
        return time.perf_counter() - begun

    def generate() -> float:
        begun = time.perf_counter()
        ordered = sorted(prompts, key=lambda prompt: len(prompt[-1]["content"]))
        for start in range(0, len(ordered), BATCH):
            batch = ordered[start : start + BATCH]
            generate_greedy(model, tokenizer, batch, config.max_tokens)
        return time.perf_counter() - begun

    async def both() -> dict[str, list[float]]:
        rates: dict[str, list[float]] = {"engine": [], "generate": []}
        await engine()
        generate_greedy(model, tokenizer, prompts[:BATCH], config.max_tokens)
        for _ in range(config.repeats):
            rates["engine"].append(len(prompts) / await engine())
            rates["generate"].append(len(prompts) / generate())
        await client.close()
        return rates

    return asyncio.run(both())


def limits(config: Config, base: Base, report: Report) -> list[dict[str, Any]]:
    """The share of the machine's matrix rate that training reaches, of the last base measured."""
    rows = rows_of(base.folder, LEVELS, config.rows // len(LEVELS), 0, config.seed)
    last = report.rows[-1]
    rates = {"ours": last["ours, examples/s"], "plain": last["TRL, examples/s"]}
    seconds = 0.01 if config.quick else 1.0
    return [
        {"base": last["base"], **figure} for figure in shares(base.folder, rows, rates, seconds)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds")
    parser.add_argument("--base", action="append", default=[], help="a folder or GGUF to add")
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="these only")
    asked = parser.parse_args()
    every = QUICK if asked.quick else FAMILIES
    families = tuple(asked.family if asked.family is not None else every)
    if asked.quick:
        torch.set_num_threads(1)
        small = {"max_position_embeddings": 512}
        main(Config(families, asked.base, 16, 8, 1, 2, sizes=small, quick=True))
    else:
        main(Config(families, asked.base))
