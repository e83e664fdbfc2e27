"""The direct answer is a candidate beside the answers of several decompositions, so that
amplification by a weak overseer does not make an answer worse.

The agent answers the root question undivided first. Then decompositions, each another one, are
answered until no further one could change which answer weighs most: a direct answer that the first
decomposition confirms costs one tree, and only two decompositions that agree with each other
outvote it. This is self-consistency (Wang et al. 2022) over ways of answering rather than over
samples. Where a router knows like questions, each way weighs the log-odds of what it got right.
"""

import math
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from reflux.agents.errors import check_range
from reflux.agents.overseers.particulars import MARKS
from reflux.agents.overseers.router import Router

NOTE_CHARS = 60
MIN_WEIGHT, MAX_WEIGHT = 0.05, 4.0
WORD = re.compile(rf"(?:(?<![\w)])[-+])?\d(?:[\d.,]*\d)?%?|(?:[^\W_]|[{MARKS}])+(?:[+#]+(?!\w))?")
"""A number, or a word; the signs after it are part of a name such as C++."""

NUMBER = re.compile(r"[-+]?\d[\d.]*%?")


class Candidate(TypedDict):
    """One complete answer to the root question that no check refused."""

    answer: str
    divided: bool
    """False for the agent's direct answer."""
    truncated: bool
    means: NotRequired[str]
    """An earlier candidate's answer that says the same, as the context's `same` found."""


@dataclass(frozen=True)
class Choice:
    """The answer that weighs most so far."""

    candidate: Candidate
    settled: bool
    """True where no further decomposition could change the answer."""
    detail: dict[str, Any]
    """For the record: each answer with its weight."""


DECOMPOSITIONS = 2
"""Default of a model as overseer: the fewest that can outvote the direct answer."""


def candidates_by_default(
    is_model: bool, asked: int | None = None, attempts: int = DECOMPOSITIONS + 1
) -> int:
    """Decompositions that are weighed against the direct answer: as many as were `asked` for, else
    those of a model as overseer, if the limits leave attempts for them, and 0 for every other."""
    if asked is not None:
        return asked
    return DECOMPOSITIONS if is_model and attempts > DECOMPOSITIONS else 0


@dataclass(frozen=True)
class Weighing:
    """What the direct answer and each decomposition's answer weigh."""

    decompositions: int = DECOMPOSITIONS
    """Maximum decompositions of the root question."""
    direct: float = 1.5
    """More than one decomposition's answer and less than two: only two that agree outvote it."""
    divided: float = 1.0
    router: Router | None = None
    """Gives the weights where it knows enough like questions."""

    def __post_init__(self) -> None:
        check_range("candidates", self.decompositions, least=DECOMPOSITIONS)

    @classmethod
    def of(cls, decompositions: int) -> "Weighing | None":
        """So many decompositions; None for 0, where the overseer's answer stands."""
        return cls(decompositions) if decompositions else None

    def weights(self, question: str) -> tuple[float, float]:
        """The weight of the direct answer, and of one decomposition's answer."""
        if self.router is not None:
            n, direct, divided = self.router.similar(question)
            if n >= self.router.neighbours:
                return _log_odds(direct), _log_odds(divided)
        return self.direct, self.divided

    def choose(self, question: str, candidates: Sequence[Candidate], left: int) -> Choice | None:
        """The choice among candidates while `left` decompositions may follow; None without any.

        Of answers that weigh the same the first wins, which is the direct one.
        """
        direct, divided = self.weights(question)
        groups: list[list[Candidate]] = []
        for candidate in candidates:
            means = candidate.get("means", candidate["answer"])
            group = next((g for g in groups if agree(g[0]["answer"], means)), None)
            if group is None:
                groups.append([candidate])
            else:
                group.append(candidate)
        if not groups:
            return None
        totals = [
            sum((divided if c["divided"] else direct) * (not c["truncated"]) for c in group)
            for group in groups
        ]
        best = max(range(len(groups)), key=totals.__getitem__)
        others = [total for index, total in enumerate(totals) if index != best]
        settled = totals[best] >= max(others, default=0.0) + left * divided
        weighed = [
            {
                "answer": min(group, key=_is_cut)["answer"],
                "weight": round(total, 3),
                "votes": len(group),
                "direct": not group[0]["divided"],
                "cut": all(candidate["truncated"] for candidate in group),
            }
            for group, total in zip(groups, totals, strict=True)
        ]
        note = _told(weighed, best) if len(candidates) > 1 else ""
        chosen = min(groups[best], key=_is_cut)  # The first that is whole.
        return Choice(chosen, settled, {"candidates": weighed, "note": note})


def _is_cut(candidate: Candidate) -> bool:
    return candidate["truncated"]


def _told(groups: Sequence[dict[str, Any]], best: int) -> str:
    """Why the answer of one group stands, for somebody who knows nothing of weights."""
    chosen, others = groups[best], [g for index, g in enumerate(groups) if index != best]
    agreeing, total = (sum(g["votes"] - g["direct"] for g in gs) for gs in ([chosen], groups))
    said = [_quoted(group) for group in others if not group["direct"]]
    cut = ", which the token limit cut" if chosen["cut"] else ""
    how = _how_many(agreeing, total)
    if not chosen["direct"]:
        against = "the agent gave no direct answer"
        for direct in others:
            if direct["direct"]:
                against = f"the direct answer was {_quoted(direct)}"
                against += ", cut by the token limit" if direct["cut"] else ""
                cut += "" if agreeing > 1 or direct["cut"] else _compared(chosen, direct)
        verb = "says" if agreeing == 1 else "say"
        says = f"{how} {verb} {_quoted(chosen)}"
        return f"a decomposition's answer was taken{cut}: {says}, {against}"
    kept = f"kept the direct answer{cut}"
    if agreeing:
        rest = f", not {' or '.join(said)}" if said else ""
        return f"{kept}: {how if total > 1 else 'the decomposition'} gave the same one{rest}"
    if total == 1:
        return f"{kept}: one decomposition, which said {said[0]}, is not enough"
    if len(others) > 1:
        return f"{kept}: {total} decompositions did not agree with each other ({', '.join(said)})"
    return f"{kept}{_compared(chosen, others[0])}: {_how_many(total, total)} say {said[0]}"


def _how_many(count: int, total: int) -> str:
    if count == total:
        return {1: "the only decomposition", 2: "both decompositions"}.get(
            total, f"all {total} decompositions"
        )
    return f"{count} of {total} decompositions"


def _compared(one: dict[str, Any], other: dict[str, Any]) -> str:
    return f", which weighs {one['weight']:g} against {other['weight']:g} on questions like this"


def _quoted(group: dict[str, Any]) -> str:
    """A group's answer; a long one ends between two words."""
    line = " ".join(group["answer"].split())
    short = textwrap.shorten(line, NOTE_CHARS, placeholder=" …")
    return f'"{line[:NOTE_CHARS] + " …" if short.strip() == "…" else short}"'


def agree(one: str, other: str) -> bool:
    """True where two answers say the same in words that differ at most in case, punctuation and
    what surrounds the shorter one: `Paris` and `It is Paris.`; of signs alone, the same ones. Of
    several numbers in a text the last is its result: `86 + 61 = 147` says 147, not 61."""
    a, b = sorted((_words(one), _words(other)), key=len)
    if not a:
        return not b and _signs(one) == _signs(other)
    if len(a) == 1 and a[0][-1:].isdigit():
        return a[0] == next((word for word in reversed(b) if NUMBER.fullmatch(word)), "")
    return any(b[i : i + len(a)] == a for i in range(len(b) - len(a) + 1))


def _words(text: str) -> list[str]:
    return [word.casefold().replace(",", "") for word in WORD.findall(text)]


def _signs(text: str) -> str:
    """The signs of a text without words that say something: `<`, an emoji; a full stop does not."""
    return "".join(c for c in text if unicodedata.category(c) in ("Sm", "So", "Sk", "Sc"))


def _log_odds(share: float) -> float:
    return min(MAX_WEIGHT, max(MIN_WEIGHT, math.log(share / (1 - share))))
