"""The output of every benchmark: rows, and claims that hold or do not."""

import json
import operator
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("results")
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
}


@dataclass(frozen=True)
class Claim:
    """One figure and its target."""

    name: str
    value: float
    op: str
    """`>=`, `<=` or `==`."""
    target: float
    n: int
    """Number of repeats, questions or other units behind the figure."""
    ci95: tuple[float, float] | None = None
    """Interval of the value, or minimum and maximum of the repeats if their distribution has no
    model."""

    @property
    def holds(self) -> bool:
        """True if the value meets the target."""
        return OPERATORS[self.op](self.value, self.target)


class Report:
    """Collects the rows and claims of one benchmark run; with `more`, beside those of the last."""

    def __init__(self, benchmark: str, *, seed: int, quick: bool, more: bool = False) -> None:
        self.benchmark = benchmark
        self.rows: list[dict[str, Any]] = []
        self.claims: list[Claim] = []
        self._seed = seed
        self._quick = quick
        self._begun = time.perf_counter()
        if more:
            self._take_up()

    def finish(self) -> None:
        """Print the tables; a full run also writes its JSON, including claims that do not hold."""
        console = Console(width=None if Console().is_terminal else 140)
        console.print(table_of(self.benchmark, self.rows))
        claims = Table(title="claims", title_justify="left")
        for heading in ("claim", "value", "target", "n", "95% / spread", "holds"):
            claims.add_column(heading)
        for claim in self.claims:
            spread = "" if claim.ci95 is None else f"{claim.ci95[0]:.4g} to {claim.ci95[1]:.4g}"
            target = f"{claim.op} {claim.target:g}"
            held = "yes" if claim.holds else "NO"
            claims.add_row(claim.name, f"{claim.value:.4g}", target, str(claim.n), spread, held)
        console.print(claims)
        if self._quick:
            console.print("--quick: a smoke run; its figures mean nothing, and nothing was written")
            return
        console.print(f"wrote {self.write()}")

    def write(self) -> Path:
        """Write the JSON of what there is so far."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.benchmark}.json"
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        return path

    def _take_up(self) -> None:
        """Begin with the rows and claims of the last run, whose figures and seconds stay."""
        path = RESULTS / f"{self.benchmark}.json"
        if path.is_file():
            last = json.loads(path.read_bytes())
            self.rows += last["rows"]
            self.claims += [
                Claim(**{key: value for key, value in claim.items() if key != "holds"})
                for claim in last["claims"]
            ]
            self._begun -= last["seconds"]

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return {
            "benchmark": self.benchmark,
            "commit": commit(),
            "machine": machine(),
            "seed": self._seed,
            "seconds": round(time.perf_counter() - self._begun, 1),
            "claims": [asdict(claim) | {"holds": claim.holds} for claim in self.claims],
            "rows": self.rows,
        }


def table_of(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows as a table, one column for each key in order of appearance."""
    table = Table(title=title, title_justify="left")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    for key in keys:
        table.add_column(key, justify="right" if _is_number(rows, key) else "left")
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in keys))
    return table


def _is_number(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    return all(isinstance(row.get(key, 0), int | float) for row in rows)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " to ".join(_cell(part) for part in value)
    return str(value)


def middle(samples: Sequence[float]) -> float:
    """The median."""
    return statistics.median(samples)


def spread(samples: Sequence[float]) -> tuple[float, float]:
    """Minimum and maximum."""
    return min(samples), max(samples)


def commit() -> str:
    """The measured commit, with `+` if tracked files differ from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    where = Path(__file__).parent
    done = subprocess.run(["git", *words], cwd=where, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """Cores, memory, processor and Python version: figures compare on the same machine only."""
    found = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        found = models[0].split(":", 1)[1].strip() if models else found
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "processor": found,
        "python": platform.python_version(),
    }
