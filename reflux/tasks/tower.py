"""The game of the Tower of Hanoi: positions as text, legal moves, shortest ways."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

DISKS = "abcdefghijklmnopqrst"
PEGS: tuple[str, ...] = ("X", "Y", "Z")
WAYS = tuple(permutations(PEGS, 2))
WAYS_ROUND = tuple(permutations(PEGS, 3))
NO_MOVE = "-"
Pegs = tuple[str, str, str]
"""The disks on each peg, the smallest first."""


@dataclass(frozen=True)
class Position:
    """A puzzle, or the question for one of its moves."""

    pegs: Pegs
    last: str
    """The last move, `a X Z`; `-` before the first."""
    cycle: str = ""
    """The round of the smallest disk, `X Z Y X`; empty in a puzzle."""
    moves: int = 0
    """Moves made so far; not part of a puzzle's text."""
    goal: str = ""
    """The peg on which all disks must end; empty in the question for a move."""

    @property
    def text(self) -> str:
        x, y, z = self.pegs
        lying = f"{' '.join('X' + x)} ; {' '.join('Y' + y)} ; {' '.join('Z' + z)}"
        if self.goal:
            return f"solve to {self.goal} ; {self.last} ; {lying}"
        return f"move {self.moves} ; {self.cycle} ; {self.last} ; {lying}"

    def after(self, move: str) -> "Position":
        """The position after a legal move.

        Raises:
            ValueError: the move is not legal.
        """
        if not legal(self.pegs, move):
            raise ValueError(f"{move!r} is not legal in {self.text!r}")
        return Position(moved(self.pegs, move), move, self.cycle, self.moves + 1)


def read(question: str) -> Position:
    """The inverse of `Position.text`.

    Raises:
        ValueError: the text has another form.
    """
    head, *parts = question.split(" ; ")
    kind, _, detail = head.partition(" ")
    if kind == "move" and detail.isdecimal() and len(parts) == 5:
        return Position(_pegs(parts[2:]), parts[1], parts[0], int(detail))
    if kind == "solve" and detail[:3] == "to " and len(parts) == 4:
        return Position(_pegs(parts[1:]), parts[0], goal=detail[3:])
    raise ValueError(f"{question[:80]!r} is not a position of a tower")


def read_user_text(question: str) -> Position:
    """The position that a user wrote.

    Raises:
        ValueError: the text has another form, or the position is impossible.
    """
    position = read(question)
    disks = sorted("".join(position.pegs))
    possible = (
        position.text == question
        and disks == list(DISKS[: len(disks)])
        and len(disks) > 1
        and all(list(peg) == sorted(peg) for peg in position.pegs)
        and (position.goal in PEGS or tuple(sorted(position.cycle.split()[:3])) == PEGS)
    )
    if not possible:
        raise ValueError(f"{question[:80]!r} is not a position of a tower")
    return position


def _pegs(parts: Sequence[str]) -> Pegs:
    x, y, z = (part[2:].replace(" ", "") for part in parts)
    return x, y, z


def legal(pegs: Pegs, move: str) -> bool:
    """The disk lies on top of its peg, and the other peg is empty or shows a larger one."""
    return move in moves(pegs)


def moved(pegs: Pegs, move: str) -> Pegs:
    disk, start, end = move.split(" ")
    lying = dict(zip(PEGS, pegs, strict=True))
    lying[start], lying[end] = lying[start][1:], disk + lying[end]
    return lying["X"], lying["Y"], lying["Z"]


def moves(pegs: Pegs) -> list[str]:
    """All legal moves: three, or two where all disks lie on one peg."""
    lying = dict(zip(PEGS, pegs, strict=True))
    return [
        f"{lying[start][0]} {start} {end}"
        for start, end in WAYS
        if lying[start] and (not lying[end] or lying[start][0] < lying[end][0])
    ]


def best(position: Position) -> str:
    """The move that the rule asks for.

    Raises:
        ValueError: there is none.
    """
    legal_moves = moves(position.pegs)
    if position.last[:1] == DISKS[0]:
        for move in legal_moves:
            if move[0] != DISKS[0]:
                return move
        raise ValueError(f"no other disk can move in {position.text!r}")
    peg = next(move[2] for move in legal_moves if move[0] == DISKS[0])
    return f"{DISKS[0]} {peg} {position.cycle[position.cycle.index(peg) + 2]}"


def cleared(pegs: Pegs) -> bool:
    return pegs.count("") == 2


def left(pegs: Pegs, start: str, end: str) -> int | None:
    """Moves left on the shortest way between two pegs; None where `pegs` is not on it."""
    count = 0
    for size in reversed(range(sum(map(len, pegs)))):
        peg = next(peg for peg, disks in zip(PEGS, pegs, strict=True) if DISKS[size] in disks)
        if peg == start:
            count, end = count + 2**size, _third(start, end)
        elif peg == end:
            start = _third(start, end)
        else:
            return None
    return count


def _third(one: str, other: str) -> str:
    return next(peg for peg in PEGS if peg not in (one, other))


def on_a_way(pegs: Pegs) -> bool:
    """True where `pegs` lies on the shortest way between any two pegs."""
    return any(left(pegs, start, end) is not None for start, end in WAYS)


def on_the_way(disks: int, start: str, end: str, made: int) -> Position:
    """The puzzle after `made` moves of its shortest way."""
    pegs = _lying(disks, start, end, made)
    last = NO_MOVE
    if made:
        before = _lying(disks, start, end, made - 1)
        last = next(move for move in moves(before) if moved(before, move) == pegs)
    return Position(pegs, last, goal=end)


def _lying(disks: int, start: str, end: str, made: int) -> Pegs:
    pegs = dict.fromkeys(PEGS, "")
    for size in reversed(range(disks)):
        if made < 2**size:
            pegs[start] = DISKS[size] + pegs[start]
            end = _third(start, end)
        else:
            pegs[end] = DISKS[size] + pegs[end]
            made, start = made - 2**size, _third(start, end)
    return pegs["X"], pegs["Y"], pegs["Z"]


def first_move(puzzle: Position) -> Position:
    """The question for a puzzle's first move.

    Raises:
        ValueError: it lies on no shortest way to its goal, or is solved.
    """
    for start in PEGS:
        if start != puzzle.goal and left(puzzle.pegs, start, puzzle.goal):
            other = _third(start, puzzle.goal)
            # With an odd number of disks the smallest goes to the goal first.
            odd = sum(map(len, puzzle.pegs)) % 2
            first, second = (puzzle.goal, other) if odd else (other, puzzle.goal)
            return Position(puzzle.pegs, puzzle.last, f"{start} {first} {second} {start}")
    raise ValueError(f"{puzzle.text!r} lies on no shortest way to its goal")
