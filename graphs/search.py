"""Trajectories by question, answer, origin and ending: pages of a list of any length.

A page costs the same in any store: it reads from the newest backwards, in the order of the rows
themselves, and looks at no more than `LOOKED_AT` of them. Each reader has a connection of its own,
so a search blocks neither the writer nor whoever else reads.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graphs.database import reading
from graphs.schema import ROOT_ENDED, STOPPED

LOOKED_AT = 25_000
"""Most questions that one page looks at; see `benchmarks/page.py` for what that costs."""

STATUS = f"coalesce(j.detail ->> 'status', CASE WHEN {STOPPED} THEN 'stopped' ELSE 'running' END)"
SHOWN = 1_000
"""Characters of a question and of an answer in the list; the tree has the whole."""
CUT = f"substr({{0}}, 1, {SHOWN}) || iif(length({{0}}) > {SHOWN}, '…', '')"
PAGE = f"""
SELECT q.rowid AS at, q.id, q.run, q.round, q.system, q.task, q.split, q.created,
  {CUT.format("q.text")} AS text, {STATUS} AS status,
  {CUT.format("(j.detail ->> 'answer')")} AS answer
FROM questions q LEFT JOIN judgements j ON j.id = {ROOT_ENDED}
WHERE q.rowid < :before AND q.rowid >= :first
  AND (:system = '' OR q.system = :system) AND (:split = '' OR q.split = :split)
  AND (:text = '' OR q.text LIKE :text ESCAPE '\\' OR q.id LIKE :start ESCAPE '\\'
    OR j.detail ->> 'answer' LIKE :text ESCAPE '\\')
  AND (:status = '' OR {STATUS} = :status)
ORDER BY q.rowid DESC LIMIT :limit
"""  # noqa: S608 - every part is a constant of ours


@dataclass(frozen=True)
class Wanted:
    """What a trajectory has to be; an empty field admits all."""

    text: str = ""
    """Part of the question or of the answer, in any case of its ASCII letters; or the beginning of
    the id."""
    system: str = ""
    split: str = ""
    status: str = ""
    """`ok`, `rejected`, `over_budget`, `failed`, `stopped` or `running`."""


def search(
    path: Path, wanted: Wanted, before: int | None = None, limit: int = 100
) -> tuple[list[dict[str, Any]], int | None]:
    """(trajectories, the newest first; where the next page begins, None at the end).

    Args:
        path: the trace file.
        before: what an earlier page gave.

    Raises:
        UsageError: the file is damaged.
    """
    part = _escaped(wanted.text)
    with reading(path) as database:
        (last,) = database.execute("SELECT coalesce(max(rowid), 0) + 1 FROM questions").fetchone()
        start = min(last, before or last)
        first = max(0, start - LOOKED_AT)
        asked = asdict(wanted) | {
            "text": f"%{part}%" if part else "",
            "start": f"{part}%",
            "before": start,
            "first": first,
            "limit": limit,
        }
        found = [dict(row) for row in database.execute(PAGE, asked)]
    if len(found) == limit:
        return found, found[-1]["at"]
    return found, first if first > 1 else None


def facets(path: Path) -> dict[str, Any]:
    """`count` of all trajectories, and the `systems` and `splits` there are.

    Raises:
        UsageError: the file is damaged.
    """
    with reading(path) as database:
        rows = list(
            database.execute(
                "SELECT coalesce(system, '') AS system, coalesce(split, '') AS split,"
                " count(*) AS number FROM questions GROUP BY 1, 2"
            )
        )
    return {
        "count": sum(row["number"] for row in rows),
        "systems": sorted({row["system"] for row in rows if row["system"]}),
        "splits": sorted({row["split"] for row in rows if row["split"]}),
    }


def _escaped(text: str) -> str:
    for special in ("\\", "%", "_"):
        text = text.replace(special, f"\\{special}")
    return text
