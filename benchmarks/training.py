"""Reflux's training against the best plain TRL: examples a second, and accuracy after equal time.

The plain arm is TRL's `SFTTrainer` with PEFT's LoRA on the same bf16 base, without gradient
checkpointing, at the fastest of its settings, found first and in the same run. Both arms train the
same rows with the same rank, peak learning rate and schedule. Rows are sums of two to four digits,
with true answers, and the demo's share of longer general replies of the base (its anchor).

Not covered: GPUs, packing, and any model but the default one.
"""

import argparse
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from agents.embedded import default_gguf
from agents.prompts import answer_prompt
from benchmarks.matrix_rate import layer_shapes, matrix_rate, work
from benchmarks.plain_sft import Setting, train_plain
from benchmarks.report import Claim, Report, middle, spread
from benchmarks.tiny_model import tiny_model
from finetune.anchor import anchor_prompts
from finetune.base_model import dequantised_base, load_base
from finetune.sft import LORA_DEFAULTS, SFT_DEFAULTS, generate_greedy, train
from graphs.evaluate import wilson
from reflux.tasks.addition import Addition, read

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Config:
    """What is measured, and for how long."""

    seed: int = 0
    levels: tuple[int, ...] = (2, 3, 4)
    """Digits of the sums; as many rows of each."""
    sums: int = 1200
    """Rows a level."""
    anchor: int = 84
    """Longer rows; in the demo they are 64 to 2800 others."""
    tuned_rows: int = 64
    """Rows that each setting of the plain arm is timed on."""
    batches: tuple[int, ...] = (8, 32)
    """Batch sizes of the plain arm, besides ours."""
    timed_rows: int = 192
    """Rows of a timed repeat."""
    repeats: int = 5
    budget: float = 75.0
    """Seconds that each arm trains for accuracy."""
    seeds: int = 2
    """Trainings of each arm for accuracy."""
    held_out: int = 80
    """Questions a level."""
    rate_seconds: float = 3.0
    """For each type of the machine's matrix rate."""
    learning_rate: float = 2e-3
    quick: bool = False


QUICK = Config(
    sums=16,
    anchor=2,
    tuned_rows=4,
    batches=(8,),
    timed_rows=16,
    repeats=2,
    budget=0.2,
    seeds=1,
    held_out=2,
    rate_seconds=0.01,
    quick=True,
)


@dataclass(frozen=True)
class Bench:
    """What every part of the benchmark needs."""

    config: Config
    base: Path
    rows: Rows
    scratch: Path

    @property
    def sft(self) -> dict[str, Any]:
        """The options that both arms share."""
        return {**SFT_DEFAULTS, "learning_rate": self.config.learning_rate}

    def seconds(
        self, setting: Setting | None, rows: Rows, out: Path | None = None, steps: int = -1
    ) -> float:
        """Train an arm, ours where `setting` is None; seconds of its training loop."""
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
        bench = Bench(config, base, rows_of(config, base), folder)
        best = fastest_plain(bench, report)
        ours, plain = speeds(bench, best, report)
        reached(bench, {"ours": ours, "plain": plain}, report)
        equal_time(bench, best, ours, plain, report)
    report.finish()


def rows_of(config: Config, base: Path) -> Rows:
    """Sums with their true answers, and the base's own replies to general prompts, shuffled."""
    task = Addition()
    rows = [
        row(question, true_sum(question), task.system_prompt)
        for level in config.levels
        for question in task.sample(config.sums, level, "train", config.seed)
    ]
    prompts = anchor_prompts(config.anchor, config.seed)
    model, tokenizer = load_base(base)
    asked = [row(prompt, "", "")["prompt"] for prompt in prompts]
    for prompt, reply in zip(prompts, generate_greedy(model, tokenizer, asked, 24), strict=True):
        rows.append(row(prompt, reply, ""))
    random.Random(config.seed).shuffle(rows)
    return rows


def row(question: str, answer: str, system: str) -> dict[str, Any]:
    """A row as `finetune.datasets` makes it."""
    prompt = [{"role": role, "content": text} for role, text in answer_prompt(question, system)]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]}


def true_sum(question: str) -> str:
    """The answer; a benchmark may know it."""
    a, b, carry = read(question)
    return str(int(a[::-1]) + int(b[::-1]) + carry).zfill(len(a) + 1)[::-1]


def fastest_plain(bench: Bench, report: Report) -> Setting:
    """The plain arm's best setting: one option at a time, each kept where it is faster."""
    rows = bench.rows[: bench.config.tuned_rows]
    threads = torch.get_num_threads()

    def rate(setting: Setting) -> float:
        found = len(rows) / bench.seconds(setting, rows)
        report.rows.append({"part": "tune plain", "arm": str(setting), "examples/s": found})
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


def speeds(bench: Bench, best: Setting, report: Report) -> tuple[float, float]:
    """Median examples a second of ours and of plain, in turns; the claim is on their ratio."""
    rows = bench.rows[: bench.config.timed_rows]
    bench.seconds(None, rows[: bench.config.tuned_rows])  # Our first training, not counted.
    found: dict[str, list[float]] = {"ours": [], "plain": []}
    for repeat in range(bench.config.repeats):
        arms = [("ours", None), ("plain", best)]
        for arm, setting in arms if repeat % 2 == 0 else arms[::-1]:
            found[arm].append(len(rows) / bench.seconds(setting, rows))
    for arm, rates in found.items():
        report.rows.append(
            {
                "part": "speed",
                "arm": arm,
                "examples/s": middle(rates),
                "spread": spread(rates),
                "n": len(rates),
            }
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


def reached(bench: Bench, rates: dict[str, float], report: Report) -> None:
    """The share of the machine's matrix rate that each arm reaches, without its padding."""
    model, tokenizer = load_base(bench.base)
    timed = bench.rows[: bench.config.timed_rows]
    lengths, counted = token_counts(tokenizer, timed)
    done = work(model.config, LORA_DEFAULTS["r"], lengths, counted)
    tokens = round(sum(lengths) / len(timed) * SFT_DEFAULTS["per_device_train_batch_size"])
    shapes = layer_shapes(model.config)
    machine: dict[torch.dtype, float] = {}
    for dtype in (torch.bfloat16, torch.float32):
        found = matrix_rate(shapes, tokens, dtype, bench.config.rate_seconds)
        machine[dtype] = middle(found)
        name = f"machine, {str(dtype).removeprefix('torch.')} at {tokens} tokens"
        low, high = spread(found)
        report.rows.append(
            {
                "part": "matrix rate",
                "arm": name,
                "GFLOP/s": middle(found) / 1e9,
                "spread": (low / 1e9, high / 1e9),
                "n": len(found),
            }
        )
    for arm, rate in rates.items():
        report.rows.append(
            {
                "part": "matrix rate",
                "arm": arm,
                "GFLOP/s": done.total / len(timed) * rate / 1e9,
                "share of bf16 rate": done.total / len(timed) * rate / machine[torch.bfloat16],
                "GFLOP/example": done.total / len(timed) / 1e9,
                "of it LoRA": done.lora / done.total,
                "n": len(timed),
            }
        )


def token_counts(tokenizer: Any, rows: Sequence[dict[str, Any]]) -> tuple[list[int], int]:
    """Tokens of each row, and the tokens of all completions together."""
    lengths: list[int] = []
    counted = 0
    for one in rows:
        whole = tokenizer.apply_chat_template(one["prompt"] + one["completion"], tokenize=False)
        asked = tokenizer.apply_chat_template(
            one["prompt"], tokenize=False, add_generation_prompt=True
        )
        lengths.append(len(tokenizer(whole)["input_ids"]))
        counted += lengths[-1] - len(tokenizer(asked)["input_ids"])
    return lengths, counted


def equal_time(bench: Bench, best: Setting, ours: float, plain: float, report: Report) -> None:
    """Exact match on held-out sums after the same seconds, the schedule fitted to each arm."""
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
            report.rows.append(
                {
                    "part": "equal time",
                    "arm": f"{arm}, seed {seed}",
                    "seconds": seconds,
                    "examples": steps * batch,
                    "accuracy": right[arm][-1] / len(questions),
                    "spread": wilson(right[arm][-1], len(questions)),
                    "n": len(questions),
                }
            )
    n = config.seeds * len(questions)
    gain, interval = difference(sum(right["ours"]), sum(right["plain"]), n)
    report.claims.append(Claim("accuracy gained at equal time", gain, ">=", 0, n, interval))


def difference(one: int, other: int, n: int) -> tuple[float, tuple[float, float]]:
    """Difference of two proportions of n, with Newcombe's interval of 1998 (method 10)."""
    a, b = one / n, other / n
    (a_low, a_high), (b_low, b_high) = wilson(one, n), wilson(other, n)
    low = ((a - a_low) ** 2 + (b_high - b) ** 2) ** 0.5
    high = ((a_high - a) ** 2 + (b - b_low) ** 2) ** 0.5
    return a - b, (a - b - low, a - b + high)


def matches(base: Path, adapter: Path, questions: Sequence[str]) -> int:
    """How many held-out questions the adapter answers exactly, greedily."""
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
