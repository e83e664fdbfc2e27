"""The batched engine at its defaults, compared with its other settings, llama.cpp and transformers.

Short questions share a system message and are answered greedily with at most 8 tokens. Each
measurement runs in a separate process, after a warm-up that also computes the shared prefix. The
arms of one repeat answer the same questions; the next repeat uses others. All arms use the same
weights: llama.cpp as 4-bit blocks, the others unpacked to bf16. transformers' `generate` returns no
log-probabilities and knows all questions in advance; the engines return log-probabilities and
receive questions one by one.

Not covered: long prompts, long answers, other models, GPUs.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.batched_arm import BatchedArm
from benchmarks.engine_arm import EngineArm
from benchmarks.generate_arm import GenerateArm
from benchmarks.measured import Arm, Measured, in_own_process
from benchmarks.report import Claim, Report, middle, spread
from benchmarks.subquestions import subquestions
from benchmarks.weights import random_adapter, requantised
from reflux.agents.clients.llama_cpp import EngineConfig, default_gguf
from reflux.finetune.configs.run import BatchedConfig

Found = list[tuple[Arm, list[Measured]]]
"""Each arm with its repeats."""

DEFAULT = BatchedArm("default")
AGAIN = BatchedArm("default, again")
BACKWARDS = BatchedArm("default, asked backwards", backwards=True)
LLAMA = EngineArm("llama.cpp")
FEWER = 64
"""Questions for llama.cpp's settings, which are compared with each other."""
AWAKE = {"GOMP_SPINCOUNT": "300000"}
"""libgomp's default."""


@dataclass(frozen=True)
class Config:
    """How much is measured."""

    questions: int = 256
    repeats: int = 3
    max_tokens: int = 8
    seed: int = 0
    whole: bool = False
    """Also measure more llama.cpp settings, busy neighbors, HTTP, and other weights."""
    quick: bool = False


def settings() -> list[BatchedArm]:
    """The default with one factor changed: candidates for a better default."""
    rows = BatchedConfig().rows
    return [
        *(BatchedArm(f"{n} rows", BatchedConfig(rows=n)) for n in (32, 64, 128, 256) if n != rows),
        BatchedArm("nothing kept", BatchedConfig(prefix_cache=False)),
    ]


def llama_settings() -> list[EngineArm]:
    """llama.cpp at its defaults, and with one factor changed."""
    parallel = EngineConfig().parallel
    arms = [
        EngineArm(f"llama.cpp, {FEWER} questions"),
        *(
            EngineArm(f"llama.cpp, {n} in parallel", EngineConfig(parallel=n))
            for n in (8, 16, 32)
            if n != parallel
        ),
    ]
    return [replace(arm, max_requests=FEWER) for arm in arms]


def prices() -> list[Arm]:
    """The cost of log-probabilities, HTTP, busy neighbors, small batches and busy waiting."""
    return [
        BatchedArm("threads wait awake", environ=AWAKE),
        EngineArm("llama.cpp, threads wait awake", environ=AWAKE, max_requests=FEWER),
        EngineArm(
            "llama.cpp, flash attention off", params={"flash_attn_type": 0}, max_requests=FEWER
        ),
        GenerateArm("generate, 256 a batch", 256),
        BatchedArm("default, one at a time", max_concurrency=1, max_requests=16),
        EngineArm("llama.cpp, one at a time", EngineConfig(parallel=1), max_requests=16),
        BatchedArm("default, 16 at a time", max_concurrency=16, max_requests=FEWER),
        BatchedArm("default, no log-probabilities", top_logprobs=0),
        EngineArm("llama.cpp, no HTTP", http=False, max_requests=FEWER),
        BatchedArm("default, beside 2 busy processes", beside=2, max_requests=FEWER),
        BatchedArm("the same, threads wait awake", environ=AWAKE, beside=2, max_requests=16),
        EngineArm("llama.cpp, beside 2 busy processes", beside=2, max_requests=16),
    ]


def generates() -> list[GenerateArm]:
    """transformers, from the plainest use to its fastest."""
    return [
        GenerateArm("generate, one by one", 1, max_requests=16),
        GenerateArm("generate, 16 a batch", 16, max_requests=FEWER),
        GenerateArm("generate, 64 a batch", 64),
        GenerateArm("generate, 64 a batch, prefix kept", 64, keep_prefix=True),
    ]


def others(folder: Path) -> list[Arm]:
    """Other weights: their answers differ, so they are not candidates for the default."""
    adapter = random_adapter(folder / "student")
    given = default_gguf()
    plain = requantised(given, "Q8_0", folder / "q8_0.gguf")
    merged = requantised(given, "Q8_0", folder / "merged.gguf", adapter)
    return [
        BatchedArm("adapter, merged", adapter=adapter.parent),
        BatchedArm("adapter, beside the base", adapter=adapter.parent, merge=False),
        EngineArm("llama.cpp, adapter", adapter=adapter, max_requests=FEWER),
        EngineArm("llama.cpp, weights as Q8_0", gguf=plain, max_requests=FEWER),
        EngineArm("llama.cpp, adapter merged, as Q8_0", gguf=merged, max_requests=FEWER),
    ]


def main(config: Config) -> None:
    """Measure all arms, interleaved, and report."""
    report = Report("engine", seed=config.seed, quick=config.quick)
    with tempfile.TemporaryDirectory() as scratch:
        if config.quick:
            arms: list[Arm] = [DEFAULT, LLAMA, GenerateArm("generate, 4 a batch", 4)]
        else:
            arms = [DEFAULT, AGAIN, LLAMA, *generates(), *settings(), *llama_settings()]
            if config.whole:
                arms += [BACKWARDS, *prices(), *others(Path(scratch))]
        found: Found = [(arm, []) for arm in arms]
        for repeat in range(config.repeats):
            questions = subquestions(config.questions, config.seed + repeat)
            # Alternate the order, so that a machine that slows down favors no arm.
            for arm, runs in found if repeat % 2 == 0 else reversed(found):
                runs.append(in_own_process(arm, questions, config.max_tokens, not config.quick))
                print(f"{repeat} {arm.name}: {rate(runs[-1]):.1f} requests/s", flush=True)
    report.rows = [row(arm, runs, found[0][1]) for arm, runs in found]
    report.claims = claims(config, found)
    report.finish()


def rate(run: Measured) -> float:
    """Requests per second."""
    return len(run.texts) / run.seconds


def same(runs: Sequence[Measured], others: Sequence[Measured]) -> float:
    """Share of the commonly answered questions with equal text."""
    pairs = [
        pair
        for run, other in zip(runs, others, strict=True)
        for pair in zip(run.texts, other.texts, strict=False)
    ]
    return sum(one == other for one, other in pairs) / len(pairs)


def row(arm: Arm, runs: Sequence[Measured], default: Sequence[Measured]) -> dict[str, Any]:
    """Medians over the repeats; tokens per request."""
    requests = sum(len(run.texts) for run in runs)
    return {
        "arm": arm.name,
        "requests/s": round(middle([rate(run) for run in runs]), 2),
        "spread": [round(edge, 2) for edge in spread([rate(run) for run in runs])],
        "tokens out/s": round(middle([run.completion_tokens / run.seconds for run in runs]), 1),
        "prompt": round(sum(run.prompt_tokens for run in runs) / requests, 1),
        "computed": round(sum(run.computed_tokens for run in runs) / requests, 1),
        "out": round(sum(run.completion_tokens for run in runs) / requests, 2),
        "same as default": round(same(runs, default), 3),
        "CPU ms": round(1000 * sum(run.cpu_seconds for run in runs) / requests),
        "peak MiB": round(max(run.peak_mib for run in runs)),
        "others' CPU": round(max(run.others_cpu for run in runs), 2),
        "n": requests,
    }


def ratios(ours: Sequence[Measured], theirs: Sequence[Measured]) -> list[float]:
    """Our rate divided by theirs, for each repeat."""
    return [rate(one) / rate(other) for one, other in zip(ours, theirs, strict=True)]


def claims(config: Config, found: Found) -> list[Claim]:
    """Compare the default with transformers, llama.cpp and its other settings."""
    runs = {arm.name: measured for arm, measured in found}
    default, n = runs[DEFAULT.name], config.questions * config.repeats
    generating = [pair for pair in found if isinstance(pair[0], GenerateArm)]
    there = best(generating)
    compared = [
        ("transformers' plainest", *generating[0], 1.0),
        ("transformers' best", *there, 1.0),
        ("llama.cpp's default", LLAMA, runs[LLAMA.name], 1.0),
    ]
    for label, arms, target in (
        ("llama.cpp's best", llama_settings(), 1.0),
        ("the best setting", settings(), 0.95),
    ):
        names = [arm.name for arm in arms]
        if rivals := [pair for pair in found if pair[0].name in names]:
            compared.append((label, *best(rivals), target))
    made: list[Claim] = []
    for label, arm, theirs, target in compared:
        ratio = ratios(default, theirs)
        name = f"requests/s, default over {label} ({arm.name})"
        made.append(Claim(name, middle(ratio), ">=", target, len(ratio), spread(ratio)))
    empty = sum(not text.strip() for run in default for text in run.texts)
    made.append(Claim("default: empty answers", float(empty), "<=", 0.0, n))
    for label, name, least in (
        ("in a second run", AGAIN.name, 0.9),
        ("asked backwards", BACKWARDS.name, 0.9),
        (f"as {there[0].name}", there[0].name, 0.5),
        (f"as {LLAMA.name}", LLAMA.name, 0.5),
    ):
        if name in runs:
            share = same(runs[name], default)
            made.append(Claim(f"default: same answers {label}", share, ">=", least, n))
    return made


def best(among: Found) -> tuple[Arm, list[Measured]]:
    """The arm with the highest median rate."""
    return max(among, key=lambda pair: middle([rate(run) for run in pair[1]]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds")
    parser.add_argument("--whole", action="store_true", help="also measure what each feature costs")
    asked = parser.parse_args()
    small = Config(questions=2, repeats=1, max_tokens=2, quick=True)
    main(small if asked.quick else Config(whole=asked.whole))
