"""How far reviewers agree beyond chance, and what reviewing costs in decisions and minutes.

Cohen's kappa is of two reviewers (`reflux.graphs.traces.scoring`), Fleiss' of any number (Fleiss
1971, "Measuring nominal scale agreement among many raters"). Both count only the opinions that an
item needed to begin with: one more reviewer is asked only where the first ones disagree, and
counting that opinion would make them look worse than they are.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from reflux.graphs.traces.database import Rows
from reflux.graphs.traces.reviewers.opinions import Opinion, decision, opinion_of, required
from reflux.graphs.traces.revisions import first_of
from reflux.graphs.traces.scoring import Agreement

ALL = """
SELECT question, path, author, detail FROM judgements
WHERE kind = 'opinion' AND ok IS NOT NULL ORDER BY +id
"""
WORK = """
SELECT q.round AS round, j.author AS author, 1 AS decisions, j.detail ->> 'seconds' AS seconds
FROM judgements j JOIN questions q ON q.id = j.question WHERE j.kind = 'opinion'
UNION ALL
SELECT q.round, c.model, 1, NULL FROM calls c JOIN questions q ON q.id = c.question
WHERE c.role = 'overseer' AND c.kind = 'script' AND c.model = 'human' AND c.error IS NULL
"""
"""Judgements of reviewers, and the steps that a human took as overseer."""


def fleiss_kappa(items: Sequence[Mapping[str, int]]) -> float | None:
    """Fleiss' kappa of items, each with how many reviewers chose which category.

    Items may differ in their number of reviewers; those with fewer than two say nothing. None
    where chance alone would agree always, as where all choose the same.
    """
    rated = [item for item in items if sum(item.values()) > 1]
    if not rated:
        return None
    same, totals = 0.0, Counter[str]()
    for item in rated:
        n = sum(item.values())
        same += sum(count * (count - 1) for count in item.values()) / (n * (n - 1))
        totals.update(item)
    everything = totals.total()
    expected = sum((count / everything) ** 2 for count in totals.values())
    return None if expected == 1 else (same / len(rated) - expected) / (1 - expected)


def review_report(store: Rows) -> dict[str, Any]:
    """The agreement of a run's reviewers, and their burden by round.

    `reviewers`: how many an item needs. `items`: those that several judged; of them `disagreed`
    before one more was asked, and `open` are undecided. `pairs`: each two reviewers.
    """
    needed = required(store)
    items = list(_by_item(store).values())
    first = [(given[:of], given) for of, given in items if of > 1 and len(given) >= of]
    disagreed = [given for begun, given in first if len({_label(each) for each in begun}) > 1]
    counts = [Counter(each.decision for each in begun) for begun, _ in first]
    return {
        "reviewers": needed,
        "items": len(first),
        "disagreed": len(disagreed),
        "open": sum(decision(given, 1) is None for _, given in first),
        "fleiss_kappa": fleiss_kappa(counts),
        "pairs": _pairs([begun for begun, _ in first]),
        "burden": burden(store),
    }


def burden(store: Rows) -> list[dict[str, Any]]:
    """Decisions and minutes of each reviewer in each round; `timed` of the decisions have a time,
    and the minutes are theirs alone."""
    work: defaultdict[tuple[int | None, str], list[float | None]] = defaultdict(list)
    for row in store.select(WORK):
        work[row["round"], row["author"]].append(row["seconds"])
    rows: list[dict[str, Any]] = []
    for (number, author), seconds in sorted(work.items(), key=lambda each: str(each[0])):
        timed = [each for each in seconds if each is not None]
        minutes = round(sum(timed) / 60, 2)
        rows.append({"round": number, "reviewer": author, "decisions": len(seconds)})
        rows[-1] |= {"minutes": minutes, "timed": len(timed)}
    return rows


def _by_item(store: Rows) -> dict[tuple[str, str, str | None], tuple[int, list[Opinion]]]:
    """By answer of a node: how many reviewers it needed, and the last opinion of each."""
    found: dict[tuple[str, str, str | None], tuple[int, dict[str, Opinion]]] = {}
    for row in store.select(ALL):
        detail = json.loads(row["detail"])
        key = first_of(row["question"]), row["path"], detail["answer"]
        found.setdefault(key, (detail["of"], {}))[1][row["author"]] = opinion_of(
            row["author"], detail
        )
    return {key: (of, list(given.values())) for key, (of, given) in found.items()}


def _label(opinion: Opinion) -> tuple[str, str | None]:
    return opinion.decision, opinion.put


def _pairs(items: Sequence[Sequence[Opinion]]) -> list[dict[str, Any]]:
    """Cohen's kappa of each two reviewers over the items that both judged: approved, or not."""
    counts: defaultdict[tuple[str, str], Counter[tuple[bool, bool]]] = defaultdict(Counter)
    for given in items:
        for one, other in combinations(sorted(given, key=lambda each: each.reviewer), 2):
            said = one.decision == "approve", other.decision == "approve"
            counts[one.reviewer, other.reviewer][said] += 1
    rows: list[dict[str, Any]] = []
    for pair, said in sorted(counts.items()):
        both, none, only, rest = (said[key] for key in ORDER)
        found = Agreement(said.total(), both, none, only, rest)
        rows.append({"reviewers": list(pair), "n": found.n, "same": found.rate})
        rows[-1]["cohen_kappa"] = found.kappa
    return rows


ORDER = ((True, True), (False, False), (True, False), (False, True))
"""(whether the first approves, whether the second does), as `Agreement` counts them."""
