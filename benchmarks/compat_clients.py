"""Other people's clients against a server of Reflux, a feature each.

The endpoint behind the server says a question's words in capitals, one a chunk, after it has
thought "hm"; it calls the first tool that it gets. The clients in Python of this environment are
asked here, those of other environments by the scripts that the tests run.
"""

import subprocess
import tempfile
from pathlib import Path

from benchmarks.compat_probes import HERE, Probe, same
from tests.support.other_clients import CLIENTS, Feature, Found, missing, run, served_models


def verdict(feature: str, probe: Probe) -> str:
    """`works`, `refused`, or `broken: ` and what came instead."""
    try:
        found = probe()
    except Exception as error:  # noqa: BLE001 - whatever a client raises is its verdict
        return f"broken: {type(error).__name__}: {str(error)[:200]}"
    if found is True:
        return "refused" if feature.startswith("tree refuses") else "works"
    return "refused" if found == "refused" else f"broken: {found!r:.200}"


def cells_of(others: bool) -> dict[str, dict[str, str]]:
    """By client and feature, the verdict; `others` runs the scripts of other environments, too.

    Each has its own server, whose cache no other has filled.
    """
    table: dict[str, dict[str, str]] = {}
    for name, probes in HERE.items():
        with tempfile.TemporaryDirectory() as folder, served_models(Path(folder)) as (url, _):
            table[name] = {each: verdict(each, probe) for each, probe in probes(url).items()}
    for script in dict.fromkeys(script for script, _ in CLIENTS.values()):
        with tempfile.TemporaryDirectory() as folder, served_models(Path(folder)) as (url, _):
            found = printed(script, url) if others else "not installed"
        for name, (of, features) in CLIENTS.items():
            if of == script:
                table[name] = {
                    each: read_verdict(each, found, how) for each, how in features.items()
                }
    return table


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
