"""The docs' page of measurements, made of the committed results alone: no figure is typed by hand.

python -m benchmarks.measurements      # writes docs/measurements.md
"""

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "measurements.md"
RUNS = ("demo", "long")
"""Reports of whole runs, by their names in `docs/`."""
ROWS = 60
"""Rows of one benchmark that are shown; the file has all."""

HEAD = """# Measurements

Every figure on this page comes from a file that a run has written, and is put here by
[`benchmarks/measurements.py`](../benchmarks/measurements.py). A claim that does not hold stays and
is marked **NO**. Figures of other machines are not comparable; measure on yours with
`python -m benchmarks.NAME`, which takes minutes, or see in a few seconds that a script works with
`--quick`, whose figures mean nothing.

"95%" is an interval of the value; where no model of the repeats' distribution is at hand, it is the
least and the most of them.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## The rounds of a run\n"]
    parts += [rounds_section(name) for name in RUNS]
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    parts += [benchmark_section(result) for result in found]
    return "\n".join(parts)


def rounds_section(name: str) -> str:
    """The table of one run's rounds."""
    report = json.loads((ROOT / "docs" / f"{name}.json").read_text())
    rounds = report["rounds"]
    reached = [
        {
            "round": f"{found['round']} (level {found['level']})",
            "n": (found.get("student") or {}).get("n"),
            **{shown: _scored(found.get(key)) for key, shown in SYSTEMS.items()},
        }
        for found in rounds
    ]
    cost = [
        {
            "round": found["round"],
            "calls of an amplified answer": _each(found.get("amplified"), "calls"),
            "rows trained": found["trained_rows"],
            "seconds of training": found["train_seconds"],
            "promoted": found["promoted"],
        }
        for found in rounds
    ]
    return (
        f"### {name}\n\nTask {report['task']}, seed {report['seed']}, accuracy on held-out "
        f"questions with Wilson's 95% interval; the stages took {report['seconds'] / 60:.0f} "
        f"minutes. The whole report: [`{name}.json`]({name}.json).\n\n"
        f"{table(reached)}\n\n{table(cost)}\n"
    )


SYSTEMS = {
    "direct": "base, one call",
    "amplified": "H with copies of X",
    "student": "student, one call",
}


def benchmark_section(result: Mapping[str, Any]) -> str:
    """One benchmark: what it asks, its claims, its rows."""
    name, machine = result["benchmark"], result["machine"]
    script, file = f"benchmarks/{name}.py", f"benchmarks/results/{name}.json"
    claims = [
        {
            "claim": claim["name"],
            "value": claim["value"],
            "target": f"{claim['op']} {cell(claim['target'])}",
            "n": claim["n"],
            "95%": claim["ci95"],
            "holds": "yes" if claim["holds"] else "**NO**",
        }
        for claim in result["claims"]
    ]
    rows = result["rows"][:ROWS]
    left = len(result["rows"]) - len(rows)
    rest = f"\n{left} further rows are in the file.\n" if left else ""
    return (
        f"## {name}\n\n{question(ROOT / script)}\n\n"
        f"[`{script}`](../{script}), seed {result['seed']}, {result['seconds'] / 60:.0f} minutes "
        f"on {machine['cores']} cores ({machine['processor']}, {machine['memory_gib']} GiB), "
        f"commit `{result['commit']}`; all rows: [`{file}`](../{file}).\n\n"
        f"{table(claims)}\n\n<details markdown>\n<summary>What was measured</summary>\n\n"
        f"{table(rows)}\n{rest}\n</details>\n"
    )


def question(script: Path) -> str:
    """The first paragraph of a script's docstring: what it measures."""
    told = ast.get_docstring(ast.parse(script.read_text())) or ""
    return " ".join(told.split("\n\n")[0].split())


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table of Markdown, one column for each key in order of appearance."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [keys, ["---"] * len(keys), *([cell(row.get(key)) for key in keys] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: Any) -> str:
    """A value as text of a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " to ".join(cell(part) for part in value)
    return str(value).replace("|", "\\|")


def _scored(score: Mapping[str, Any] | None) -> str:
    if not score:
        return "–"
    low, high = score["ci95"]
    return f"{score['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def _each(score: Mapping[str, Any] | None, what: str) -> float | None:
    return round(score[what] / score["n"], 2) if score else None


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"written: {PAGE}")
