"""Every benchmark has a smoke run, and every committed result is consistent."""

import json
import os
from functools import partial
from pathlib import Path

import pytest

from tests.support.commanding import begin_module

ROOT = Path(__file__).parents[2] / "benchmarks"
NAMES = sorted(path.stem for path in ROOT.glob("*.py") if "def main(" in path.read_text())
OPERATORS = {">=": float.__ge__, "<=": float.__le__, "==": float.__eq__}


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("name", NAMES)
def test_the_quick_run_prints_its_claims_and_writes_nothing(name: str) -> None:
    before = {path: path.read_bytes() for path in (ROOT / "results").glob("*")}
    ended = begin_module(f"benchmarks.{name}", ["--quick"], partial(os.chdir, ROOT.parent)).wait()
    assert ended.code == 0, ended.stderr
    assert "claims" in ended.stdout
    assert {path: path.read_bytes() for path in (ROOT / "results").glob("*")} == before


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda p: p.stem)
def test_a_result_is_complete_and_its_verdicts_follow_from_its_figures(path: Path) -> None:
    result = json.loads(path.read_text())
    assert result.keys() == {
        "benchmark", "commit", "machine", "seed", "seconds", "claims", "rows",
    }  # fmt: skip
    assert result["benchmark"] == path.stem
    assert result["rows"]
    for claim in result["claims"]:
        holds = OPERATORS[claim["op"]](float(claim["value"]), float(claim["target"]))
        assert claim["holds"] is holds
