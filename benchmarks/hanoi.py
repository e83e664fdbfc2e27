"""A simulated copy for the Tower of Hanoi that errs at a given rate."""

from dataclasses import dataclass
from hashlib import blake2b

from reflux.agents.types import ChatRequest, Completion
from reflux.tasks.tower import best, moves, read


@dataclass(frozen=True)
class NoisyAgent:
    """Makes the best move with probability `accuracy`, otherwise another legal move, which no check
    catches. Seed, question and vote determine the move."""

    accuracy: float
    seed: int = 0

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer at once."""
        asked = request.messages[-1][1]
        return Completion(self.move(asked, request.vote), 1, 1)

    def move(self, asked: str, vote: int) -> str:
        """One vote on one question."""
        position = read(asked)
        right = best(position)
        drawn = blake2b(f"{self.seed}:{vote}:{asked}".encode(), digest_size=16).digest()
        if int.from_bytes(drawn[:8]) < self.accuracy * 2**64:
            return right
        others = [move for move in moves(position.pegs) if move != right]
        return others[int.from_bytes(drawn[8:]) % len(others)]

    async def model_digest(self, model: str) -> str:
        """Accuracy and seed, which determine the answers."""
        return f"noisy:{self.accuracy}:{self.seed}"
