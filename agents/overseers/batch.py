"""A batch of sub-questions made fit to be asked: in order, without repeats, within its cap."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from reflux.agents.types import SubQuestion

PLACE = re.compile(r"\{(\d{1,9})\}")
"""Where an answer is put; as in `SubQuestion.filled`."""


@dataclass(frozen=True)
class Batch:
    """What can be asked of a proposal, and what could not."""

    subquestions: tuple[SubQuestion, ...]
    note: str = ""
    """What was left out, and why; empty where nothing was."""


def alike(text: str) -> str:
    """What equal questions or answers share: case and white space make no difference."""
    return " ".join(text.split()).casefold()


def settle(asked: Sequence[SubQuestion], barred: Collection[str], most: int) -> Batch:
    """The largest part of a proposal that can be asked, at most `most` sub-questions.

    Left out are empty sub-questions, repeats (those that need a repeat get the first), `barred`
    texts (the question itself, for one), and those with a `{i}` that nothing can fill: it names
    no other sub-question, or one that is left out, or a circle. A `{i}` that `needs` lacks is
    added to it; a need without its `{i}` is dropped where it would close a circle. Sub-questions
    come in their order but for those that need later ones. Numbers from 1 are understood where
    numbers from 0 make no sense.
    """
    bars = {alike(text) for text in barred}
    kept, before = _passed(_from_zero(asked), bars), len(asked)
    while len(kept) < before:  # What needs a repeat may itself repeat what needs the first.
        kept, before = _passed(kept, bars), len(kept)
    notes: list[str] = []
    if len(kept) < len(asked):
        notes.append(f"{len(asked) - len(kept)} of {len(asked)} sub-questions left out")
    if len(kept) > most:
        notes.append(f"cut from {len(kept)} to {most} sub-questions")
    return Batch(kept[: max(0, most)], "; ".join(notes))


def merge(proposals: Sequence[Sequence[SubQuestion]]) -> tuple[SubQuestion, ...]:
    """All sub-questions of several proposals one after the other, with their needs kept."""
    merged: list[SubQuestion] = []
    for proposal in proposals:
        shift = {index: index + len(merged) for index in range(len(proposal))}
        merged += [_moved(sub, shift) for sub in proposal]
    return tuple(merged)


def _passed(asked: Sequence[SubQuestion], bars: Collection[str]) -> tuple[SubQuestion, ...]:
    """What of a proposal can be asked, in order; some of it may have become alike by now."""
    stands: dict[int, int] = {}
    first: dict[str, int] = {}
    for index, sub in enumerate(asked):
        like = alike(sub.text)
        if like and like not in bars:
            stands[index] = first.setdefault(like, index)
    order = _in_order(asked, stands)
    position = {index: at for at, index in enumerate(order)}
    return tuple(_renumbered(asked[index], index, stands, position) for index in order)


def _in_order(asked: Sequence[SubQuestion], stands: Mapping[int, int]) -> list[int]:
    """Positions of what can be asked, each after all that it needs."""
    waiting = sorted(set(stands.values()))
    places = {i: {stands.get(p, -1) for p in _places(asked[i].text)} for i in waiting}
    wishes = {i: {stands[n] for n in asked[i].needs if n in stands} - {i} for i in waiting}
    order: dict[int, None] = {}
    for needs in ({i: places[i] | wishes[i] for i in waiting}, places):
        moved = True
        while moved:
            moved = False
            for index in waiting:
                if index not in order and needs[index] <= order.keys():
                    order[index] = None
                    moved = True
    return list(order)


def _renumbered(
    sub: SubQuestion, index: int, stands: Mapping[int, int], position: Mapping[int, int]
) -> SubQuestion:
    moved = {old: position[new] for old, new in stands.items() if new in position}
    needs = {moved[n] for n in (*_places(sub.text), *sub.needs) if n in moved}
    before = sorted(n for n in needs if n < position[index])
    return replace(_moved(sub, moved), needs=tuple(before))


def _moved(sub: SubQuestion, moved: Mapping[int, int]) -> SubQuestion:
    text = PLACE.sub(lambda m: f"{{{moved.get(int(m[1]), int(m[1]))}}}", sub.text)
    return replace(sub, text=text, needs=tuple(moved.get(n, n) for n in sub.needs))


def _from_zero(asked: Sequence[SubQuestion]) -> Sequence[SubQuestion]:
    """The same, numbered from 0, where only numbers from 1 make sense."""
    named = [(i, n) for i, s in enumerate(asked) for n in (*_places(s.text), *s.needs)]
    from_zero = all(0 <= n < i for i, n in named)
    from_one = all(1 <= n <= i for i, n in named)
    if from_zero or not from_one:
        return asked
    less = {number: number - 1 for _, number in named}
    return [_moved(sub, less) for sub in asked]


def _places(text: str) -> list[int]:
    return [int(place[1]) for place in PLACE.finditer(text)]
