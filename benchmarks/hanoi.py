"""The Tower of Hanoi as a chain: H applies legal moves, copies choose them.

A question is the whole state and the disk that was moved last, for example
`A 1 2 3 | B | C | last 0` with the top disk first; an answer names two pegs, `AC`. On the shortest
way every other move is the smallest disk's, always round in the same direction; the moves between
are the only legal ones of another disk. H and check know what is legal, not what is best.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from agents.types import Answer, Chain, ChatRequest, Completion, Exchange, Step

PEGS = "ABC"
State = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""Disks of each peg, the top one first, and the disk that was moved last (0 at the start)."""


def written(state: State) -> str:
    """A state as a question."""
    pegs = (" ".join((name, *map(str, disks))) for name, disks in zip(PEGS, state[:3], strict=True))
    return " | ".join((*pegs, f"last {state[3]}"))


def read(question: str) -> State:
    """The inverse of `written`."""
    a, b, c, last = question.split(" | ")
    one, two, three = (tuple(map(int, peg.split()[1:])) for peg in (a, b, c))
    return one, two, three, int(last[5:])


def start(disks: int) -> State:
    """All disks on the first peg."""
    return tuple(range(1, disks + 1)), (), (), 0


def legal(state: State) -> list[str]:
    """All moves that may be made, as answers."""
    tops = [peg[0] if peg else 10**9 for peg in state[:3]]
    return [
        PEGS[one] + PEGS[other] for one in range(3) for other in range(3) if tops[one] < tops[other]
    ]


def best(state: State) -> str:
    """The move on the shortest way to the third peg, of any state that has come about on it."""
    pegs = state[:3]
    disks = sum(map(len, pegs))
    smallest = next(at for at, peg in enumerate(pegs) if peg[:1] == (1,))
    if state[3] != 1:
        step = 2 if disks % 2 else 1
        return PEGS[smallest] + PEGS[(smallest + step) % 3]
    return next(move for move in legal(state) if move[0] != PEGS[smallest])


def moved(state: State, move: str) -> State:
    """The state after a legal move."""
    one, other = PEGS.index(move[0]), PEGS.index(move[1])
    pegs = list(state[:3])
    disk = pegs[one][0]
    pegs[one], pegs[other] = pegs[one][1:], (disk, *pegs[other])
    return pegs[0], pegs[1], pegs[2], disk


def is_legal(question: str, answer: str) -> bool:
    """The check: a move that may be made. Of the whole tower it knows nothing."""
    return question.endswith("disks") or answer in legal(read(question))


class Mover:
    """H: asks for one move after the other, and makes them, until all are on the third peg."""

    name = "script:hanoi"

    async def act(self, question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        """`N disks` becomes a chain of moves."""
        return Chain(written(start(int(question.split()[0]))))

    def follow(self, asked: str, answer: str) -> str | Answer:
        """Make the move, and ask for the next one."""
        state = moved(read(asked), answer)
        return written(state) if state[0] or state[1] else Answer("all on C")


@dataclass(frozen=True)
class NoisyAgent:
    """A copy that makes the best move with probability `accuracy`, and otherwise another legal one:
    decided by seed, question and vote alone."""

    accuracy: float
    seed: int = 0

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer at once."""
        asked = request.messages[-1][1]
        return Completion(self.move(asked, request.vote), 1, 1)

    def move(self, asked: str, vote: int) -> str:
        """One vote on one question."""
        state = read(asked)
        right = best(state)
        drawn = blake2b(f"{self.seed}:{vote}:{asked}".encode(), digest_size=16).digest()
        if int.from_bytes(drawn[:8]) < self.accuracy * 2**64:
            return right
        others = [move for move in legal(state) if move != right]
        return others[int.from_bytes(drawn[8:]) % len(others)]

    async def model_digest(self, model: str) -> str:
        """What decides its answers."""
        return f"noisy:{self.accuracy}:{self.seed}"
