"""The share of small faults in the deciding code that its tests detect.

mutmut changes one operator, number, name or argument at a time in budgets, gates, statistics,
scorers, rows and voting, and runs that part's tests on each changed copy. A fault that no test
detects survives; its name is in the rows, and its difference is printed. Lines that are only the
text of a message are not changed. mutmut changes the bodies of functions; the defaults of configs
are tested in `tests/finetune/test_defaults.py`. `--share .2` tests a random fifth of each part's
mutants, and the interval says what that tells of all.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.report import Claim, Report
from reflux.graphs.evals.metrics import wilson

ROOT = Path(__file__).resolve().parent.parent
PARTS = {
    "budgets": (
        ["reflux/agents/budget.py"],
        [
            "tests/agents/test_budget.py",
            "tests/agents/test_types.py",
            "tests/graphs/test_limits.py",
        ],
    ),
    "voting": (
        ["reflux/graphs/voting/*.py"],
        [f"tests/graphs/test_{name}.py" for name in ("voting", "stopping", "planner", "experts")],
    ),
    "statistics": (
        ["reflux/graphs/evals/metrics.py", "reflux/graphs/evals/decisions.py"],
        ["tests/graphs/test_metrics.py", "tests/graphs/test_decisions.py"],
    ),
    "scorers": (
        [
            f"reflux/graphs/evals/{name}.py"
            for name in (
                "scoring/scorers",
                "scoring/mathematics",
                "scoring/math_worker",
                "eval_task",
            )
        ],
        ["tests/graphs/test_scorers.py", "tests/graphs/test_eval_task.py"],
    ),
    "gates": (
        ["reflux/finetune/gates.py"],
        ["tests/finetune/test_gates.py", "tests/finetune/test_config.py"],
    ),
    "rows": (
        ["reflux/finetune/data/rows.py"],
        [f"tests/finetune/test_{name}.py" for name in ("rows", "corrections")],
    ),
}
MESSAGE = r"""^\s*f?r?["'].*["'],?$"""
"""A line that is only the text of a message, or a part of it."""
NO_MUTANT = "no such mutant"
DETECTED = ("killed", "timeout", "segfault")


@dataclass(frozen=True)
class Config:
    """What is changed, and by how many processes it is tested."""

    parts: tuple[str, ...] = tuple(PARTS)
    only: str = "*"
    """Pattern of the mutants' names."""
    children: int = 2
    share: float = 1.0
    """Part of the mutants that are tested, drawn with `seed`."""
    seed: int = 0

    @property
    def whole(self) -> bool:
        """True if the run covers every part, so that its result may be written."""
        return self.parts == tuple(PARTS) and self.only == "*"


def mutmut_section(sources: list[str], tests: list[str]) -> str:
    """mutmut's section of a pyproject.toml.

    Raises:
        SystemExit: a file of the part was moved or deleted.
    """
    for path in (*sources, *tests):
        if not list(ROOT.glob(path)):
            raise SystemExit(f"there is no {path}: correct PARTS in benchmarks/mutants.py")
    values = {
        "source_paths": ["reflux"],
        "only_mutate": sources,
        "do_not_mutate_patterns": [MESSAGE],
        "also_copy": ["docs", "examples", "benchmarks", "README.md"],
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-n", "0", "-x"],
        "pytest_add_cli_args_test_selection": tests,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(["", "[tool.mutmut]", *lines, ""])


def mutate(config: Config, part: str) -> dict[str, str]:
    """The result of every mutant by its name: `killed`, `survived`, `timeout`, …

    Raises:
        SystemExit: mutmut failed.
    """
    sources, tests = PARTS[part]
    with tempfile.TemporaryDirectory(prefix="reflux-mutants-") as scratch:
        copy = Path(scratch) / "reflux"
        copy.mkdir()
        skipped = shutil.ignore_patterns("__pycache__", "results", "node_modules")
        for name in ("reflux", "tests", "docs", "examples", "benchmarks"):
            # Links become folders: mutmut follows none.
            shutil.copytree(ROOT / name, copy / name, ignore=skipped)
        shutil.copy(ROOT / "README.md", copy)
        project = (ROOT / "pyproject.toml").read_text() + mutmut_section(sources, tests)
        (copy / "pyproject.toml").write_text(project)

        def mutmut(*arguments: str) -> subprocess.CompletedProcess[str]:
            # The tests must import the copy.
            env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            command = [sys.executable, "-m", "mutmut", *arguments]
            return subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)

        def ends() -> dict[str, str]:
            lines = mutmut("results", "--all", "true").stdout.splitlines()
            pairs = [line.strip().rpartition(": ") for line in lines]
            return {name: end for name, _, end in pairs if fnmatch(name, config.only)}

        chosen = [config.only]
        if config.share < 1:
            mutmut("run", "--max-children", "1", NO_MUTANT)  # Makes them all.
            names = sorted(ends())
            chosen = random.Random(config.seed).sample(
                names, max(1, round(config.share * len(names)))
            )
        run = mutmut("run", "--max-children", str(config.children), *chosen)
        tested = ends()
        results = {name: tested[name] for name in (tested if config.share == 1 else chosen)}
        if not results or "not checked" in results.values():
            output = run.stdout.replace("\r", "\n")[-3000:]
            raise SystemExit(f"mutmut failed:\n{output}\n{run.stderr[-3000:]}")
        for name, end in results.items():
            if end not in DETECTED:
                print(mutmut("show", name).stdout, file=sys.stderr)
        return results


def main(config: Config) -> None:
    """Change each part, and count the faults that its tests detect."""
    report = Report("mutants", seed=config.seed, quick=not config.whole)
    for part in config.parts:
        results = mutate(config, part)
        survivors = [name for name, end in results.items() if end not in DETECTED]
        report.rows.append(
            {
                "part": part,
                "mutants": len(results),
                "killed": len(results) - len(survivors),
                "share": 1 - len(survivors) / len(results),
                "survivors": ", ".join(name.removeprefix("reflux.") for name in survivors),
            }
        )
    total = sum(row["mutants"] for row in report.rows)
    killed = sum(row["killed"] for row in report.rows)
    interval = None if config.share == 1 else wilson(killed, total)
    report.claims.append(
        Claim("share of mutants killed", killed / total, ">=", 0.9, total, interval)
    )
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one function")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--share", type=float, default=1.0, help="random part of the mutants")
    parser.add_argument("--children", type=int, default=2, help="test processes at once")
    arguments = parser.parse_args()
    quick = Config(("gates",), only="*.x_failed_gates__*")
    chosen = Config(tuple(arguments.parts), children=arguments.children, share=arguments.share)
    main(quick if arguments.quick else chosen)
