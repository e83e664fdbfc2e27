"""Recorded calls by an expression: what it selects, and that it reads nothing else."""

from pathlib import Path

import pytest

from reflux.agents.errors import UsageError
from reflux.graphs.traces.selection import COLUMNS, selecting
from tests.support.recorded import record


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trajectories of two calls each: 0 failed, 1 has no end, 2 has a score of 1."""
    path = tmp_path_factory.mktemp("selection") / "traces.db"
    record(path, n=3, statuses=("failed", None, "unchecked"))
    return path


@pytest.mark.parametrize(
    ("where", "calls"),
    [
        ("1", 6),
        ("score >= 0.5", 4),
        ("node = 'plan' AND score > 0", 2),
        ("tools = 'find'", 3),
        ("tools IS NULL AND reply LIKE '%2'", 1),
        ("status = 'unchecked'", 2),
        ("status IN ('unfinished', 'failed')", 4),
        ("metadata ->> 'user' = 'u2'", 2),
        ("outcome = 'on shelf 2' -- the last", 2),
        ("created < unixepoch('2001-09-09')", 6),
        ("\"source\" = 'url' AND approved IS NULL AND tokens = 7", 6),
        ("trajectory IN (SELECT trajectory FROM recorded_calls WHERE score = 1)", 2),
    ],
)
def test_an_expression_selects(traces: Path, where: str, calls: int) -> None:
    with selecting(traces, where) as selection:
        assert sum(len(each.calls) for each in selection.trajectories()) == calls


@pytest.mark.parametrize(
    ("where", "match"),
    [
        ("scor > 1", r"no column scor; there are trajectory, source, node"),
        ('node = "plan"', r"single quotes: 'plan'"),
        ("1; DROP TABLE calls", "syntax error; it takes one expression"),
        ("score >=", "syntax error|incomplete input"),
        ("EXISTS (SELECT 1 FROM calls)", "may read the columns of a call only"),
        ("(SELECT count(*) FROM sqlite_master) > 0", "may read the columns of a call only"),
        ("'a' IN (SELECT name FROM pragma_table_info('calls'))", "columns of a call only"),
        ("load_extension('x')", "columns of a call only"),
        ("1 IN (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i FROM n)",
         "columns of a call only"),
    ],
)  # fmt: skip
def test_what_is_no_expression_of_columns_is_refused(traces: Path, where: str, match: str) -> None:
    with pytest.raises(UsageError, match=match), selecting(traces, where):
        pass


def test_every_column_has_a_value_somewhere(traces: Path) -> None:
    for name in COLUMNS:
        with selecting(traces, f"{name} IS NOT NULL") as selection:
            found = next(selection.trajectories(), None)
        assert (found is None) == (name in ("approved", "tags", "name"))


def test_what_is_selected_can_be_counted(traces: Path) -> None:
    with selecting(traces, "status != 'failed'") as selection:
        assert sorted(selection.count("node", "status")) == [
            ("answer", "unchecked", 1, 1),
            ("answer", "unfinished", 1, 1),
            ("plan", "unchecked", 1, 1),
            ("plan", "unfinished", 1, 1),
        ]
