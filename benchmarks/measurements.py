"""Writes the page of measurements from the committed results and `benchmarks/summary.md`.

    python -m benchmarks.measurements      # writes docs/measurements.md

Every table comes from a result file. The summary quotes these figures in words.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "measurements.md"
SUMMARY = Path(__file__).with_name("summary.md")
RUNS = ("demo", "long")
"""Reports of whole runs, by their names in `docs/`."""
ROWS = 60
"""Maximum rows shown of one benchmark; the result file has all."""

HEAD = """# Measurements

[`benchmarks/measurements.py`](../benchmarks/measurements.py) writes this page from result files. A
claim that does not hold stays and is marked **NO**. Do not compare figures across machines; measure
on yours with `python -m benchmarks.NAME`, which takes minutes. `--quick` is a smoke run of a few
seconds, and its figures mean nothing.

"95%" is an interval of the value, or the range from minimum to maximum of the repeats where their
distribution has no model. Claims and columns keep the names of the version that measured them: a
*leaf* is a direct answer, *H* the overseer, *X* the agent.

## In short

"""


def page() -> str:
    """The whole page."""
    parts = [HEAD + SUMMARY.read_text(), "## The rounds of a run\n"]
    parts += [rounds_section(name) for name in RUNS]
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    parts += [benchmark_section(result) for result in results]
    return "\n".join(parts)


def rounds_section(name: str) -> str:
    """The table of one run's rounds."""
    report = json.loads((ROOT / "docs" / f"{name}.json").read_text())
    rounds = report["rounds"]
    accuracy = [
        {
            "round": f"{row['round']} (level {row['level']})",
            "n": (row.get("student") or {}).get("n"),
            **{label: _scored(row.get(key)) for key, label in SYSTEMS.items()},
        }
        for row in rounds
    ]
    cost = [
        {
            "round": row["round"],
            "calls per amplified answer": _each(row.get("amplified"), "calls"),
            "rows trained": row["trained_rows"],
            "seconds of training": row["train_seconds"],
            "promoted": row["promoted"],
        }
        for row in rounds
    ]
    return (
        f"### {name}\n\nTask {report['task']}, seed {report['seed']}, accuracy on held-out "
        f"questions with Wilson's 95% interval; the stages took {report['seconds'] / 60:.0f} "
        f"minutes. The whole report: [`{name}.json`]({name}.json).\n\n"
        f"![Accuracy of the run {name}]({name}.png)\n\n{table(accuracy)}\n\n{table(cost)}\n"
    )


SYSTEMS = {
    "direct": "base, one call",
    "amplified": "amplified system",
    "student": "student, one call",
}


def benchmark_section(result: Mapping[str, Any]) -> str:
    """One benchmark: its question, its claims and its rows."""
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
    omitted = len(result["rows"]) - len(rows)
    rest = f"\nThe file has {omitted} more rows.\n" if omitted else ""
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
    docstring = ast.get_docstring(ast.parse(script.read_text())) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table, one column for each key in order of appearance."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [keys, ["---"] * len(keys), *([cell(row.get(key)) for key in keys] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: Any) -> str:
    """A value as the text of a table cell."""
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
    print(f"wrote {PAGE}")
