"""garak's report on a model that `reflux serve` answers for, as rates with intervals.

garak is no dependency: it wants older versions of what Reflux stands on, so it runs in an
environment of its own, against the server's address (docs, "Known suites"). Its report is a JSONL
file; tested with the form of 0.17. Its probes are fixed texts: what they miss says little.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from reflux.agents.errors import UsageError
from reflux.agents.files import read_text
from reflux.graphs.evals.metrics import wilson


@dataclass(frozen=True)
class ProbeRate:
    """How often one detector found that one probe had got through."""

    probe: str
    detector: str
    hits: int
    n: int
    """Replies that the detector could judge."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, with the interval of the rate."""
        return vars(self) | {"rate": self.hits / self.n, "rate_95": list(wilson(self.hits, self.n))}


def read_report(path: Path) -> tuple[str, list[ProbeRate]]:
    """The name of the model in a report of garak's, and the rates of its probes.

    Raises:
        UsageError: the file is no such report, or holds no finished probe.
    """
    model, rates = "", list[ProbeRate]()
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            entry = cast(dict[str, Any], json.loads(line))
            kind = entry["entry_type"]
            if kind == "start_run setup":
                model = str(entry.get("plugins.target_name") or entry.get("plugins.model_name", ""))
            elif kind == "eval":
                passed, fails = int(entry["passed"]), int(entry.get("fails", 0))
                # Before 0.13 the failed ones were what `total` had more.
                n = int(entry.get("total_evaluated", entry.get("total", passed + fails)))
                if n:
                    names = str(entry["probe"]), str(entry["detector"])
                    rates.append(ProbeRate(*names, n - passed, n))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path}, line {number} is no line of garak's report ({error!r}): name its "
                "….report.jsonl"
            ) from error
    if not rates:
        raise UsageError(f"{path} holds no finished probe: let garak run to its end")
    return model, rates
