"""What a student keeps, as figures with intervals and one sentence, out of counts of right answers.

Pure functions. Intervals treat the two samples as independent; they share their questions, so the
true ones are narrower.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reflux.graphs.evals.metrics import Z95, wilson


@dataclass(frozen=True)
class Share:
    """Right answers among so many."""

    right: float
    n: int

    @property
    def value(self) -> float:
        return self.right / self.n

    def to_json(self) -> dict[str, Any]:
        return {"accuracy": self.value, "n": self.n, "ci95": list(wilson(self.right, self.n))}


@dataclass(frozen=True)
class Figure:
    """One figure with its 95% interval."""

    value: float
    ci95: tuple[float, float]
    n: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"ci95": list(self.ci95)}


def ratio(one: Share, other: Share) -> Figure | None:
    """The first accuracy as a share of the second, with the interval of Katz et al. (1978); None
    where the second is 0."""
    if other.right == 0:
        return None
    value = one.value / other.value
    # Half an answer is added where a share is 0 or 1, which would have no spread.
    spread = 0.0
    for share in (one, other):
        p = min(share.n - 0.5, max(0.5, share.right)) / share.n
        spread += (1 - p) / (p * share.n)
    far = math.exp(Z95 * math.sqrt(spread))
    return Figure(value, (value / far, value * far), min(one.n, other.n))


def gain(one: Share, other: Share) -> Figure:
    """How much more often the first is right, with the hybrid score interval (Newcombe 1998, method
    10)."""
    value = one.value - other.value
    (low, high), (low_other, high_other) = wilson(one.right, one.n), wilson(other.right, other.n)
    below = math.hypot(one.value - low, high_other - other.value)
    above = math.hypot(high - one.value, other.value - low_other)
    return Figure(value, (value - below, value + above), min(one.n, other.n))


def variety(answers: Sequence[str]) -> dict[str, float]:
    """How many answers differ, and the entropy of their distribution in bits: a student that has
    collapsed gives few answers to many questions."""
    counts = Counter(answers)
    shares = [count / len(answers) for count in counts.values()]
    entropy = -sum(share * math.log2(share) for share in shares)
    return {"n": len(answers), "distinct": len(counts), "entropy": abs(entropy)}


def losses(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What was measured of earlier levels and of general abilities, by name: gains of the student,
    which are negative where it lost."""
    found = {f"level {row['level']}": row["gain"] for row in report["earlier_levels"]}
    if (general := report["general"]) is not None:
        found["general tasks"] = general["gain"]
    return found


def forgotten(report: Mapping[str, Any]) -> float | None:
    """The largest loss that is certain: the upper end of the interval of the worst gain, at most 0;
    None where nothing was measured."""
    ends = [row["ci95"][1] for row in losses(report).values()]
    return min(0.0, *ends) if ends else None


def verdict(student: str, report: Mapping[str, Any]) -> str:
    """One sentence on what the student keeps and what it lost."""
    said: list[str] = []
    if (kept := report["of_amplified"]) is not None:
        low, high = (f"{end:.0%}" for end in kept["ci95"])
        said.append(
            f"keeps {kept['value']:.0%} of the amplified system's accuracy (95%: {low} to {high}, "
            f"n = {kept['n']})"
        )
    measured = losses(report)
    lost = {name: row for name, row in measured.items() if row["ci95"][1] < 0}
    if lost:
        told = (f"{-row['value']:.2f} of {name} (n = {row['n']})" for name, row in lost.items())
        said.append(f"has lost {' and '.join(told)}")
    elif measured:
        told = (f"{row['value']:+.2f} of {name}" for name, row in measured.items())
        said.append(f"has lost nothing certain ({', '.join(told)})")
    for row in report["out_of_distribution"]:
        said.append(f"is right in {row['accuracy']:.0%} {row['where']} (n = {row['n']})")
    own, theirs = (report["variety"].get(key) for key in ("student", "amplified"))
    if own and theirs and own["distinct"] < theirs["distinct"] / 2:
        said.append(
            f"gives {own['distinct']} different answers where the amplified system gives "
            f"{theirs['distinct']}"
        )
    if not said:
        return f"Nothing of what {student} keeps can be measured without true answers."
    *first, last = said
    return f"{student} {', '.join(first)}{', and ' * bool(first)}{last}."
