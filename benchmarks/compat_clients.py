"""Other people's clients against a server of Reflux, a feature each.

The endpoint behind the server says a question's words in capitals, one a chunk, after it has
thought "hm"; it calls the first tool that it gets. The clients in Python of this environment are
asked here, those of other environments by the scripts that the tests run.
"""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.compat_probes import HERE, Probe, same
from tests.support.other_clients import CLIENTS, Feature, Found, missing, run, served_models

FEATURES = (
    "models", "whole", "streamed", "pieces", "next turn", "tools", "tools streamed", "tool choice",
    "schema", "by function calling", "by JSON mode", "reasoning", "finish reason", "usage",
    "log-probabilities", "tree", "tree refuses tools", "tree refuses a schema", "unknown model",
)  # fmt: skip
"""The columns. An empty cell is a feature that the client, or its script, does not ask for."""


def verdict(feature: str, probe: Probe) -> str:
    """`works`, `refused`, or `broken: ` and what came instead."""
    try:
        found = probe()
    except Exception as error:  # noqa: BLE001 - whatever a client raises is its verdict
        return f"broken: {type(error).__name__}: {str(error)[:200]}"
    if found is True:
        return "refused" if feature.startswith("tree refuses") else "works"
    return "refused" if found == "refused" else f"broken: {found!r:.200}"


def rows_of(others: bool) -> list[dict[str, Any]]:
    """The table: a row for each client, a verdict for each feature; `others` runs scripts, too."""
    table: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder, served_models(Path(folder)) as (url, _):
        for name, probes in HERE.items():
            table[name] = {
                feature: verdict(feature, probe) for feature, probe in probes(url).items()
            }
        for script in dict.fromkeys(script for script, _ in CLIENTS.values()):
            found = printed(script, url) if others else "not installed"
            for name, (of, features) in CLIENTS.items():
                if of == script:
                    table[name] = {
                        feature: read_verdict(feature, found, each)
                        for feature, each in features.items()
                    }
    unknown = {feature for cells in table.values() for feature in cells} - set(FEATURES)
    if unknown:
        raise LookupError(f"features without a column: {unknown}")
    return [
        {"client": name, **{feature: cells.get(feature) for feature in FEATURES}}
        for name, cells in table.items()
    ]


def printed(script: str, url: str) -> Found | str:
    """What a script prints, or why it printed nothing."""
    if missing(script):
        return "not installed"
    try:
        return run(script, url)
    except (AssertionError, ValueError, OSError, subprocess.SubprocessError) as error:
        return f"broken: {error}"[:200]


def read_verdict(feature: str, found: Found | str, wanted: Feature) -> str:
    """The verdict on a feature that a script has tried."""
    if isinstance(found, str):
        return found
    return verdict(feature, lambda: same(wanted[0](found), wanted[1]))
