"""How many small faults in the code that decides things the tests notice.

mutmut changes one operator, number, name or argument at a time in voting, budgets, limits, gates,
statistics, rows and scorers, and runs these parts' tests on each changed copy. A fault that no
test notices survives; its difference is listed in the rows. Lines that hold nothing but the text
of a message are left alone. mutmut changes the bodies of functions; the defaults of dataclasses
are held by `tests/finetune/test_defaults.py` instead.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report import Claim, Report

ROOT = Path(__file__).resolve().parent.parent
PARTS = {
    "budgets": (
        ["reflux/agents/budget.py"],
        ["tests/agents/test_budget.py", "tests/agents/test_types.py", "tests/graphs/test_limits.py"],
    ),
    "voting": (
        ["reflux/graphs/voting/*.py"],
        [f"tests/graphs/test_{name}.py" for name in ("voting", "stopping", "planner")],
    ),
    "statistics": (["reflux/graphs/evals/metrics.py"], ["tests/graphs/test_metrics.py"]),
    "scorers": (["reflux/graphs/evals/scorers.py"], ["tests/graphs/test_scorers.py"]),
    "gates": (
        ["reflux/finetune/gates.py"],
        ["tests/finetune/test_gates.py", "tests/finetune/test_config.py"],
    ),
    "rows": (["reflux/finetune/data/rows.py"], ["tests/finetune/test_rows.py"]),
}
MESSAGE = r"""^\s*f?r?["'].*["'],?$"""
"""A line that is the text of a message, or a part of it."""


@dataclass(frozen=True)
class Config:
    """What is changed, and by how many processes it is tested."""

    parts: tuple[str, ...] = field(default_factory=lambda: tuple(PARTS))
    children: int = 2
    quick: bool = False


def settings(sources: list[str], tests: list[str]) -> str:
    """mutmut's section of a pyproject.toml."""
    values = {
        "source_paths": ["reflux"],
        "only_mutate": sources,
        "do_not_mutate_patterns": [MESSAGE],
        "also_copy": ["docs", "examples", "benchmarks", "README.md"],
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-n", "0", "-x"],
        "pytest_add_cli_args_test_selection": [test for test in tests if (ROOT / test).exists()],
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(["", "[tool.mutmut]", *lines, ""])


def mutate(sources: list[str], tests: list[str], children: int) -> list[tuple[str, str]]:
    """Every mutant with its end: `killed`, `survived`, `timeout`, …; and what a survivor changes."""
    with tempfile.TemporaryDirectory(prefix="reflux-mutants-") as scratch:
        copy = Path(scratch) / "reflux"
        copy.mkdir()
        skipped = shutil.ignore_patterns("__pycache__", "results", "node_modules")
        for name in ("reflux", "tests", "docs", "examples", "benchmarks"):
            # Links become folders: mutmut copies what it finds, and follows none.
            shutil.copytree(ROOT / name, copy / name, ignore=skipped)
        shutil.copy(ROOT / "README.md", copy)
        project = (ROOT / "pyproject.toml").read_text() + settings(sources, tests)
        (copy / "pyproject.toml").write_text(project)
        mutmut = [sys.executable, "-m", "mutmut"]
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [*mutmut, "run", "--max-children", str(children)],
            cwd=copy, env=env, capture_output=True, text=True,
        )  # fmt: skip
        listed = subprocess.run(
            [*mutmut, "results", "--all", "true"], cwd=copy, env=env, capture_output=True, text=True
        )
        ends: list[tuple[str, str]] = []
        for line in listed.stdout.splitlines():
            name, _, end = line.strip().rpartition(": ")
            if name:
                ends.append((name, end))
        if not ends or any(end == "not checked" for _, end in ends):
            said = done.stdout.replace("\r", "\n")[-3000:]
            raise SystemExit(f"mutmut did not run to its end:\n{said}\n{done.stderr[-3000:]}")
        for name, end in ends:
            if end == "survived":
                shown = subprocess.run(
                    [*mutmut, "show", name], cwd=copy, env=env, capture_output=True, text=True
                )
                print(shown.stdout, file=sys.stderr)
        return ends


def main(config: Config) -> None:
    """Change each part, and count what its tests notice."""
    report = Report("mutants", seed=0, quick=config.quick)
    total = killed = 0
    for part in config.parts:
        sources, tests = PARTS[part]
        ends = mutate(sources, tests, config.children)
        noticed = sum(end in ("killed", "timeout", "segfault") for _, end in ends)
        total, killed = total + len(ends), killed + noticed
        left = [name for name, end in ends if end not in ("killed", "timeout", "segfault")]
        report.rows.append(
            {
                "part": part,
                "mutants": len(ends),
                "killed": noticed,
                "share": noticed / len(ends),
                "survivors": ", ".join(left),
            }
        )
    report.claims.append(Claim("share of mutants killed", killed / total, ">=", 0.9, total))
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="budgets alone")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    arguments = parser.parse_args()
    main(
        Config(("budgets",), quick=True)
        if arguments.quick
        else Config(tuple(arguments.parts))
    )
