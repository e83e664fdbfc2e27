"""Reflux's training against plain TRL at its best: examples per second, and accuracy in equal time.

The plain arm is TRL's `SFTTrainer` with PEFT's LoRA on the same bf16 base, without gradient
checkpointing, at the fastest of its settings, which the same run finds first. Both arms train the
same rows with the same rank, peak learning rate and schedule. The rows are sums of two to four
digits with true answers, and the demo's share of longer general replies of the base (its anchor).

Soft targets are measured beside TRL's `DistillationTrainer` (`benchmarks.soft_training`), with the
memory of each.

Not covered: GPUs, packing, and any model but the default one.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from benchmarks.plain_sft import Setting, train_plain
from benchmarks.report import Claim, Report, middle, spread
from benchmarks.soft_training import soft_speeds
from benchmarks.tiny_model import tiny_model
from benchmarks.training_rows import Rows, figure, generate_greedy, row, rows_of
from benchmarks.training_share import shares
from reflux.agents.clients.llama_cpp import default_gguf
from reflux.finetune.base_model import dequantised_base, load_base
from reflux.finetune.train.sft import LORA_DEFAULTS, SFT_DEFAULTS, train
from reflux.graphs.evals.metrics import wilson
from reflux.tasks.addition import Addition


@dataclass(frozen=True)
class Config:
    """What is measured, and for how long."""

    seed: int = 0
    levels: tuple[int, ...] = (2, 3, 4)
    """Digits of the sums, with equally many rows of each."""
    sums: int = 1200
    """Rows for each level."""
    anchor: int = 84
    """Longer rows; the demo has 64 for 2,800 others."""
    tuned_rows: int = 64
    """Rows that time each setting of the plain arm."""
    batches: tuple[int, ...] = (8, 32)
    """Batch sizes of the plain arm, in addition to ours."""
    timed_rows: int = 192
    """Rows of a timed repeat."""
    repeats: int = 5
    soft_rows: int = 96
    """Rows of a timed repeat with soft targets."""
    soft_repeats: int = 3
    budget: float = 75.0
    """Training seconds of each arm in the accuracy comparison."""
    seeds: int = 2
    """Trainings of each arm in the accuracy comparison."""
    held_out: int = 80
    """Questions for each level."""
    rate_seconds: float = 3.0
    """Seconds for each type in the matrix-rate measurement."""
    learning_rate: float = 2e-3
    quick: bool = False


QUICK = Config(
    sums=16,
    anchor=2,
    tuned_rows=4,
    batches=(8,),
    timed_rows=16,
    repeats=1,
    soft_rows=4,
    soft_repeats=1,
    budget=0.2,
    seeds=1,
    held_out=2,
    rate_seconds=0.01,
    quick=True,
)


@dataclass(frozen=True)
class Bench:
    """Inputs that every part of the benchmark shares."""

    config: Config
    base: Path
    rows: Rows
    scratch: Path

    @property
    def sft(self) -> dict[str, Any]:
        """Options that both arms share."""
        return {**SFT_DEFAULTS, "learning_rate": self.config.learning_rate}

    def seconds(
        self, setting: Setting | None, rows: Rows, out: Path | None = None, steps: int = -1
    ) -> float:
        """Train an arm (ours if `setting` is None); return the seconds of its training loop."""
        seed, sft = self.config.seed, {**self.sft, "max_steps": steps}
        kept = out or self.scratch / "unused"
        if setting is None:
            return train(rows, self.base, kept, sft=sft, seed=seed).seconds
        return train_plain(rows, self.base, kept, setting, sft=sft, lora=LORA_DEFAULTS, seed=seed)


def main(config: Config) -> None:
    """Run every part and report."""
    report = Report("training", seed=config.seed, quick=config.quick)
    if config.quick:
        torch.set_num_threads(1)  # On a busy machine, threads of tiny products wait for each other.
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base = tiny_model(folder / "base") if config.quick else dequantised_base(default_gguf())
        rows = rows_of(base, config.levels, config.sums, config.anchor, config.seed)
        bench = Bench(config, base, rows, folder)
        best = fastest_plain(bench, report)
        note_load(report, "after tuning")
        ours, plain = speeds(bench, best, report)
        timed = bench.rows[: config.timed_rows]
        rates = {"ours": ours, "plain": plain}
        report.rows.extend(shares(base, timed, rates, config.rate_seconds))
        note_load(report, "after the speeds")
        soft = bench.rows[: config.soft_rows]
        soft_speeds(base, soft, bench.sft, config.soft_repeats, not config.quick, report)
        note_load(report, "after the soft targets")
        equal_time(bench, best, ours, plain, report)
        note_load(report, "at the end")
    report.finish()


def fastest_plain(bench: Bench, report: Report) -> Setting:
    """The plain arm's best setting: change one option at a time and keep what is faster."""
    rows = bench.rows[: bench.config.tuned_rows]
    threads = torch.get_num_threads()

    def rate(setting: Setting) -> float:
        found = len(rows) / bench.seconds(setting, rows)
        report.rows.append(figure("tune plain", str(setting), found, "examples/s", len(rows)))
        return found

    best = Setting(threads=threads)
    rate(best)  # The process's first training also pays for what is made once.
    report.rows.clear()
    fastest = rate(best)
    options: list[dict[str, Any]] = [
        {"attention": "eager"},
        {"sampling": "group_by_length"},
        {"autocast": True},
        {"workers": 1},
        {"threads": 1 if threads > 1 else 2},
        *({"batch": batch} for batch in bench.config.batches),
    ]
    for option in options:
        setting = replace(best, **option)
        found = rate(setting)
        if found > fastest:
            best, fastest = setting, found
    return best


def note_load(report: Report, when: str) -> None:
    """Report the load of the last minute: if other processes compete for cores, threads wait for
    each other and the figures are not valid."""
    report.rows.append(figure("load", when, os.getloadavg()[0], "processes", 1))


def speeds(bench: Bench, best: Setting, report: Report) -> tuple[float, float]:
    """Median examples per second of both arms, measured in turns; the claim is on their ratio."""
    rows = bench.rows[: bench.config.timed_rows]
    bench.seconds(None, rows[: bench.config.tuned_rows])  # Our first training, not counted.
    found: dict[str, list[float]] = {"ours": [], "plain": []}
    for repeat in range(bench.config.repeats):
        arms = [("ours", None), ("plain", best)]
        for arm, setting in arms if repeat % 2 == 0 else arms[::-1]:
            found[arm].append(len(rows) / bench.seconds(setting, rows))
    for arm, rates in found.items():
        report.rows.append(
            figure("speed", arm, middle(rates), "examples/s", len(rates), spread(rates))
        )
    ratios = [ours / plain for ours, plain in zip(found["ours"], found["plain"], strict=True)]
    report.claims.append(
        Claim(
            "examples/s over the best plain TRL",
            middle(ratios),
            ">=",
            1.5,
            len(ratios),
            spread(ratios),
        )
    )
    return middle(found["ours"]), middle(found["plain"])


def equal_time(bench: Bench, best: Setting, ours: float, plain: float, report: Report) -> None:
    """Exact match on held-out sums after equal seconds, with the schedule fitted to each arm."""
    config = bench.config
    task = Addition()
    questions = [
        question
        for level in config.levels
        for question in task.sample(config.held_out, level, "held_out", config.seed + 1)
    ]
    right: dict[str, list[int]] = {"ours": [], "plain": []}
    for seed in range(config.seed, config.seed + config.seeds):
        seeded = replace(bench, config=replace(config, seed=seed))
        for arm, setting, rate in (("ours", None, ours), ("plain", best, plain)):
            batch = setting.batch if setting else SFT_DEFAULTS["per_device_train_batch_size"]
            steps = max(1, int(config.budget * rate / batch))
            out = bench.scratch / f"{arm}-{seed}"
            seconds = seeded.seconds(setting, bench.rows, out, steps)
            right[arm].append(matches(bench.base, out, questions))
            what = f"{arm}, seed {seed}: {steps * batch} examples in {seconds:.1f} s"
            known = right[arm][-1]
            interval = wilson(known, len(questions))
            share = known / len(questions)
            report.rows.append(
                figure("equal time", what, share, "exact match", len(questions), interval)
            )
    n = config.seeds * len(questions)
    gain, interval = difference(sum(right["ours"]), sum(right["plain"]), n)
    report.claims.append(Claim("accuracy gained at equal time", gain, ">=", 0, n, interval))


def difference(one: int, other: int, n: int) -> tuple[float, tuple[float, float]]:
    """Difference of two proportions of n, with Newcombe's interval (1998, method 10)."""
    a, b = one / n, other / n
    (a_low, a_high), (b_low, b_high) = wilson(one, n), wilson(other, n)
    low = ((a - a_low) ** 2 + (b_high - b) ** 2) ** 0.5
    high = ((a_high - a) ** 2 + (b - b_low) ** 2) ** 0.5
    return a - b, (a - b - low, a - b + high)


def matches(base: Path, adapter: Path, questions: Sequence[str]) -> int:
    """Number of held-out questions that the adapter answers exactly, greedily."""
    task = Addition()
    model, tokenizer = load_base(base)
    student = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    right = 0
    for at in range(0, len(questions), 80):
        some = questions[at : at + 80]
        prompts = [row(question, "", task.system_prompt)["prompt"] for question in some]
        replies = generate_greedy(student, tokenizer, prompts, max(map(task.answer_tokens, some)))
        answers = [task.normalise(reply) for reply in replies]
        right += sum(map(task.score, some, answers))
    return right


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds")
    main(QUICK if parser.parse_args().quick else Config())
