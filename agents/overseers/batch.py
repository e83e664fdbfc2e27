"""A proposed batch of sub-questions becomes a valid one: ordered, without repeats, within its
limit."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from reflux.agents.types import REFERENCE, Ask, SubQuestion


def alike(text: str) -> str:
    """A key that equal questions or answers share, whatever their case and white space."""
    return " ".join(text.split()).casefold()


def asks_nothing_new(batch: Sequence[SubQuestion], asked: Collection[str]) -> bool:
    """True where every sub-question was asked before, whatever its case, white space and
    punctuation."""
    known = {_bare(text) for text in asked}
    return bool(batch) and all(_bare(sub.text) in known for sub in batch)


def _bare(text: str) -> str:
    return re.sub(r"[\s.,:;?!\"'“”]+", "", text).casefold()


def settle(proposal: Sequence[SubQuestion], known: Collection[str], limit: int) -> Ask:
    """The largest valid part of a proposal, with at most `limit` sub-questions; its note says what
    was left out.

    Left out are empty sub-questions, repeats (a need of a repeat becomes a need of the first),
    `known` texts (the question itself, for example), and those with a `{i}` that nothing can fill:
    it refers to no other sub-question, to one that is left out, or back to itself. A `{i}` that
    `needs` lacks is added to it; a need without its `{i}` is dropped if it would close a cycle.
    Sub-questions keep their order, except that each follows all that it needs. References that
    count from 1 are understood if counting from 0 makes no sense.
    """
    barred = {alike(text) for text in known}
    valid, before = _valid_part(_from_zero(proposal), barred), len(proposal)
    while len(valid) < before:  # What needs a repeat may itself repeat what needs the first.
        valid, before = _valid_part(valid, barred), len(valid)
    notes: list[str] = []
    if len(valid) < len(proposal):
        notes.append(f"{len(proposal) - len(valid)} of {len(proposal)} sub-questions left out")
    if len(valid) > limit:
        notes.append(f"cut from {len(valid)} to {limit} sub-questions")
    return Ask(valid[: max(0, limit)], "; ".join(notes))


def merge(proposals: Sequence[Sequence[SubQuestion]]) -> tuple[SubQuestion, ...]:
    """All sub-questions of several proposals one after the other, with their needs renumbered."""
    merged: list[SubQuestion] = []
    for proposal in proposals:
        shift = {index: index + len(merged) for index in range(len(proposal))}
        merged += [_renumbered(sub, shift) for sub in proposal]
    return tuple(merged)


def _valid_part(
    proposal: Sequence[SubQuestion], barred: Collection[str]
) -> tuple[SubQuestion, ...]:
    """What of a proposal can be asked, in order; renumbering may have made some of it alike."""
    first_of: dict[int, int] = {}
    """Each index, and the index of the first sub-question that it repeats."""
    first: dict[str, int] = {}
    for index, sub in enumerate(proposal):
        key = alike(sub.text)
        if key and key not in barred:
            first_of[index] = first.setdefault(key, index)
    position = {index: number for number, index in enumerate(_in_order(proposal, first_of))}
    moves = {index: position[other] for index, other in first_of.items() if other in position}
    valid: list[SubQuestion] = []
    for index, number in position.items():
        sub = proposal[index]
        needs = {moves[need] for need in (*_references(sub.text), *sub.needs) if need in moves}
        earlier = tuple(sorted(need for need in needs if need < number))
        valid.append(replace(_renumbered(sub, moves), needs=earlier))
    return tuple(valid)


def _in_order(proposal: Sequence[SubQuestion], first_of: Mapping[int, int]) -> list[int]:
    """Indices of what can be asked, each after all that it needs."""
    indices = sorted(set(first_of.values()))
    references = {
        i: {first_of.get(other, -1) for other in _references(proposal[i].text)} for i in indices
    }
    needs = {
        i: {first_of[need] for need in proposal[i].needs if need in first_of} - {i} for i in indices
    }
    order: dict[int, None] = {}
    # First with all needs; then, where these form a cycle, with the references alone.
    for requirements in ({i: references[i] | needs[i] for i in indices}, references):
        moved = True
        while moved:
            moved = False
            for index in indices:
                if index not in order and requirements[index] <= order.keys():
                    order[index] = None
                    moved = True
    return list(order)


def _renumbered(sub: SubQuestion, moves: Mapping[int, int]) -> SubQuestion:
    text = REFERENCE.sub(lambda match: f"{{{moves.get(int(match[1]), int(match[1]))}}}", sub.text)
    return replace(sub, text=text, needs=tuple(moves.get(need, need) for need in sub.needs))


def _from_zero(proposal: Sequence[SubQuestion]) -> Sequence[SubQuestion]:
    """The same proposal with references from 0, if only counting from 1 makes sense."""
    pairs = [(i, n) for i, sub in enumerate(proposal) for n in (*_references(sub.text), *sub.needs)]
    from_zero = all(0 <= number < index for index, number in pairs)
    from_one = all(1 <= number <= index for index, number in pairs)
    if from_zero or not from_one:
        return proposal
    moves = {number: number - 1 for _, number in pairs}
    return [_renumbered(sub, moves) for sub in proposal]


def _references(text: str) -> list[int]:
    return [int(match[1]) for match in REFERENCE.finditer(text)]
