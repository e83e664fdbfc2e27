"""A whole `reflux run` without any script: a model divides its own questions, an adapter learns to
divide from it, and a student learns to answer at once.

Of each task eight demonstrations were written by hand (`benchmarks/demonstrations`). With them as
examples the base divides training questions, with its direct answers as candidates; what the ways
agree on trains H', a learned overseer. Two rounds of amplify, distill, evaluate and promote follow,
in which H' learns from its own trees. Nobody tells the run a true answer: those of held-out
questions score it.

Claims, each round on held-out questions: the amplified system and the student of the last round are
above the base, asked directly.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import Claim, Report
from reflux.finetune.configs.run import read_config
from reflux.finetune.data.demonstrations import learned_from
from reflux.finetune.data.overseer_rows import overseer_rows
from reflux.tasks import run_task

HERE = Path(__file__).parent
TASKS = {
    "Sums": {"demos": "sums.jsonl", "form": "lines", "plan": True},
    "Cities": {"demos": "cities.jsonl", "form": "lines"},
}
"""How the base is asked to divide the questions of each task."""


@dataclass(frozen=True)
class Config:
    """One run of each task."""

    base: str
    questions: int = 300
    """Training questions of each round."""
    learn: int = 150
    """Training questions that the base divides before the first round."""
    held_out: int = 200
    rounds: int = 2
    seed: int = 0
    quick: bool = False


def run_config(config: Config, task: str) -> dict[str, Any]:
    """The config of a task's run."""
    setup = TASKS[task]
    demos = HERE / "demonstrations" / str(setup["demos"])
    spec: dict[str, Any] = {
        "level": 1,
        "questions": config.questions,
        "held_out": config.held_out,
    }
    return {
        "base": config.base,
        "task": f"{HERE / 'unscripted_tasks.py'}:{task}",
        "seed": config.seed,
        "overseer": {**setup, "demos": str(demos), "learn": config.learn},
        "rounds": [spec] * config.rounds,
        "anchor": 64,
        "anchor_tokens": 24,
        "canaries": 16,
        "batched": {"context": 2048},
    }


def config_file(config: Config, task: str, folder: Path) -> Path:
    """The file with the config of a task's run."""
    path = folder / f"{task}.yaml"
    path.write_text(yaml.safe_dump(run_config(config, task)), encoding="utf-8")
    return path


def checked(config: Config, task: str, folder: Path) -> dict[str, int]:
    """What a smoke run can tell: that config and demonstrations are sound, without a run."""
    settings = read_config(config_file(config, task, folder))
    demos = learned_from(settings.overseer.demos, run_task(settings))
    return {"demonstrations": len(demos), "rows": len(overseer_rows(demos).rows)}


def finished_run(config: Config, task: str, folder: Path) -> dict[str, Any]:
    """The report of a task's run.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    path = config_file(config, task, folder)
    command = [sys.executable, "-m", "reflux", "run", "--config", str(path), "--json"]
    subprocess.run([*command, "--run", str(folder / task)], check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / task / "report.json").read_bytes())


def rows_of(task: str, report: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each round and system."""
    rows: list[dict[str, Any]] = []
    for entry in report["rounds"]:
        for name in ("direct", "amplified", "student"):
            if (score := entry[name]) is not None:
                row = {"task": task, "round": entry["round"], "system": name}
                calls, tokens = (round(score[key] / score["n"], 2) for key in ("calls", "tokens"))
                row |= {"n": score["n"], "accuracy": score["accuracy"], "95%": score["ci95"]}
                rows.append(row | {"calls": calls, "tokens": tokens})
        rows[-1]["promoted"] = entry["promoted"]
        rows += [
            {"task": task, "round": each["round"], "system": each["id"], "n": each["rows"],
             "gates": {gate["name"]: round(gate["value"], 3) for gate in each["gates"]},
             "promoted": each["promoted"]}
            for each in entry["overseers"]
        ]  # fmt: skip
    return rows


def claims_of(task: str, report: dict[str, Any]) -> list[Claim]:
    """What the last round has to show against the first one's direct answers."""
    direct = report["rounds"][0]["direct"]["accuracy"]
    last = report["rounds"][-1]
    return [
        Claim(f"{task}: {name}, lower end, against the base asked directly",
              last[name]["ci95"][0], ">=", direct, last[name]["n"], tuple(last[name]["ci95"]))
        for name in ("amplified", "student") if last[name] is not None
    ]  # fmt: skip


def main(config: Config) -> None:
    """Run both tasks and report."""
    report = Report("second_base", seed=config.seed, quick=config.quick)
    with tempfile.TemporaryDirectory() as scratch:
        for task in TASKS:
            if config.quick:
                report.rows.append({"task": task, **checked(config, task, Path(scratch))})
                continue
            done = finished_run(config, task, Path(scratch))
            rows = rows_of(task, done)
            report.rows += rows
            report.rows += [{"task": task, **calls} for calls in done["overseer_calls"]]
            report.claims += claims_of(task, done)
            print(*rows, sep="\n", flush=True)
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run without a model")
    parser.add_argument("--base", default="", help="a GGUF, a folder or an id of the Hub")
    given = parser.parse_args()
    main(Config(given.base, quick=given.quick))
