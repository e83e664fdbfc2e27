"""Do other people's clients work with `reflux serve`, and other people's endpoints with commands?

A cell is `works`, `refused` (one sentence with a remedy, and the right exit code or status) or
`broken`. Clients are asked for features; endpoints are every behavior that the tests know, with
what it expects (`tests/support/endpoint_behaviors.py`), under each command. A client whose packages
are not installed (`make clients`) has no cells.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import compat_clients, compat_endpoints
from benchmarks.report import Claim, Report
from tests.support.endpoint_behaviors import BEHAVIORS

VERDICTS = ("works", "refused", "broken")


@dataclass(frozen=True)
class Config:
    """One run."""

    step: int = 1
    """Every how many behaviors one is tried."""
    quick: bool = False


def add(report: Report, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add a table, its counts before it, and its claim."""
    values = [value for row in rows for value in list(row.values())[1:] if value is not None]
    cells = Counter(str(value).partition(":")[0] for value in values)
    counts = {verdict: cells[verdict] for verdict in (*VERDICTS, "not installed")}
    report.rows += [{"table": name, **counts}, *rows]
    tried = sum(cells[verdict] for verdict in VERDICTS)
    report.claims.append(Claim(f"broken cells of {name}", cells["broken"], "==", 0, tried))


def main(config: Config) -> None:
    """Fill both tables."""
    report = Report("compat", seed=0, quick=config.quick)
    add(report, "clients × features", compat_clients.rows_of(others=not config.quick))
    behaviors = list(BEHAVIORS.values())[:: config.step]
    add(report, "endpoints × commands", compat_endpoints.rows_of(behaviors))
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    main(Config(40, True) if parser.parse_args().quick else Config())
