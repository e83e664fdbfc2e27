"""Do other people's clients work with `reflux serve`, and other people's endpoints with commands?

A cell is `works`, `refused` (one sentence with a remedy, and the right exit code or status) or
`broken`. Clients are asked for features; endpoints are every behavior that the tests know, with
what it expects (`tests/support/endpoint_behaviors.py`), under each command. A client whose packages
are not installed (`make clients`) has no cells.
"""

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks import compat_clients, compat_endpoints
from benchmarks.report import Claim, Report
from tests.support.endpoint_behaviors import BEHAVIORS

VERDICTS = ("works", "refused", "broken", "not installed")


@dataclass(frozen=True)
class Config:
    """One run."""

    step: int = 1
    """Every how many behaviors one is tried."""
    quick: bool = False


def add(report: Report, name: str, table: Mapping[str, Mapping[str, str]]) -> None:
    """Add a table, its counts before it, and its claim."""
    cells = Counter(cell.partition(":")[0] for row in table.values() for cell in row.values())
    report.rows.append({"of": name, **{verdict: cells[verdict] for verdict in VERDICTS}})
    for of, row in table.items():
        told = {verdict: listed(row, verdict) for verdict in VERDICTS}
        report.rows.append({"of": of, **told})
    tried = cells.total() - cells["not installed"]
    report.claims.append(Claim(f"broken cells of {name}", cells["broken"], "==", 0, tried))


def listed(row: Mapping[str, str], verdict: str) -> str:
    """The columns of a row that have a verdict, with what is told of it."""
    cells = [(name, cell) for name, cell in row.items() if cell.partition(":")[0] == verdict]
    return ", ".join(name + cell.removeprefix(verdict) for name, cell in cells)


def main(config: Config) -> None:
    """Fill both tables."""
    report = Report("compat", seed=0, quick=config.quick)
    add(report, "clients × features", compat_clients.cells_of(others=not config.quick))
    behaviors = list(BEHAVIORS.values())[:: config.step]
    add(report, "endpoints × commands", compat_endpoints.cells_of(behaviors))
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    main(Config(100, True) if parser.parse_args().quick else Config())
