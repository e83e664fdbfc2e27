"""The Tower of Hanoi, one move at a time: a chain of 2^n - 1 questions that all must be right.

A copy is asked for one move, `move 5 ; X Z Y X ; b X Y ; X c ; Y b ; Z a`: how many were made so
far, the round that the smallest disk makes, the last move, and what lies on each peg, the top
first. Disks are letters, `a` the smallest. The answer `a Z Y` moves disk a from peg Z to peg Y.

The rule, which H knows and copies have to learn, is that of MAKER (arXiv 2511.09030): the smallest
disk moves every second time, always on to the next peg of its round; in between there is one legal
move of another disk. H makes each move that was voted for, so a wrong one leads astray. The check
knows the form of an answer and what is legal, not what is best.

The puzzle itself is `solve to Z ; - ; X a b c ; Y ; Z`, with the last move where there was one; its
answer is the number of moves. Puzzles lie on the shortest ways from one peg to another, and no
single move to be learned does: neither H's primitives nor any other training question shows disks
as they lie on such a way, whatever its pegs are called.
"""

import random
from collections.abc import Sequence
from functools import cache

from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import PASS, Overseer, OverseerContext
from reflux.agents.types import Answer, Chain, Step
from reflux.agents.verifiers import Checker, RuleChecker
from reflux.graphs.evals.task import Split, Task, draw_questions, read_by
from reflux.tasks import tower

SIZES = range(4, 14)
"""Disks of H's primitives: more than the towers that they prepare for, because a tower's largest
disks move only on its shortest way."""
EACH = 300
"""Number of primitives of each size."""


class Mover:
    """H: starts a puzzle, makes every move that the copies choose, and counts them."""

    name = "script:hanoi"

    async def act(self, context: OverseerContext) -> Step:
        """A puzzle is a chain of moves; a single move is a primitive."""
        position = tower.read(context.question)
        if not position.goal:
            return Answer(tower.best(position))
        return Chain(tower.first_move(position).text) if context.may_ask else PASS

    def follow(self, question: str, answer: str) -> str | Answer:
        """Make the move; when all disks lie on one peg, answer with the number of moves."""
        position = tower.read(question).after(answer)
        return Answer(str(position.moves)) if tower.cleared(position.pegs) else position.text


class Hanoi(Task):
    """Puzzles and their moves; the level is the number of disks."""

    name = "hanoi"

    def overseers(self) -> Sequence[Overseer]:
        return (Mover(),)

    def answer_tokens(self, question: str) -> int:
        """A move or a number, its end, and some to spare."""
        return 12

    def checker(self) -> Checker:
        return RuleChecker({"form": has_form, "legal": is_legal})

    def primitives(self) -> Sequence[str]:
        """Single moves of towers from 4 to 13 disks."""
        return _primitives()

    def sample(self, n: int, level: int, split: Split, seed: int) -> Sequence[str]:
        """Training: single moves. Held out: puzzles that begin anywhere on a shortest way.

        Raises:
            UsageError: a tower of no such number of disks.
        """
        _check_disks(level)

        def draw(generator: random.Random) -> str:
            if split == "train":
                return single_move(level, generator)
            start, end = generator.choice(tower.WAYS)
            return tower.on_the_way(level, start, end, generator.randrange(2**level - 1)).text

        return draw_questions(self, n, level, split, seed, draw, max_draws=50)

    def canonical(self, question: str) -> str:
        """The question without the number of moves made so far."""
        head, _, rest = question.strip().partition(" ; ")
        return f"move ; {rest}" if head.startswith("move ") else question.strip()

    def normalise(self, answer: str) -> str:
        return " ".join(answer.split())

    def from_user(self, text: str) -> str:
        """Reads `hanoi 10`, from peg X to peg Z, or the task's own form.

        Raises:
            UsageError: the text has another form.
        """
        words = text.split()
        if len(words) == 2 and words[0].lower() == "hanoi" and words[1].isdecimal():
            _check_disks(int(words[1]))
            return tower.on_the_way(int(words[1]), "X", "Z", 0).text
        return read_by(tower.read_user_text, text, 'write a puzzle as "hanoi 10"')

    def to_user(self, question: str, answer: str) -> str:
        return f"solved in {answer} moves" if answer.isdecimal() else answer

    def score(self, question: str, answer: str) -> bool:
        """True for the length of a puzzle's shortest way, or for the rule's move."""
        position = tower.read(question)
        if not position.goal:
            return answer == tower.best(position)
        ways = (
            tower.left(position.pegs, peg, position.goal)
            for peg in tower.PEGS
            if peg != position.goal
        )
        return answer in {str(way) for way in ways if way is not None}


@cache
def _primitives() -> tuple[str, ...]:
    generator = random.Random("hanoi:primitives")
    questions: dict[str, None] = {}
    for size in SIZES:
        due = len(questions) + EACH
        while len(questions) < due:
            if question := single_move(size, generator):
                questions[question] = None
    return tuple(questions)


def _check_disks(disks: int) -> None:
    if not 2 <= disks <= len(tower.DISKS):
        raise UsageError(f"a tower of {disks} disks: choose 2 to {len(tower.DISKS)}")


def single_move(disks: int, generator: random.Random) -> str:
    """The question for one move of a random tower that lies on no shortest way; empty where it
    does.

    In two of three the smallest disks lie together, so that moves of large disks, which are few on
    a way but all needed, are not as rare in training.
    """
    together = generator.randrange(1, disks) if generator.random() < 2 / 3 else 1
    home = generator.choice(tower.PEGS)
    on = dict.fromkeys(tower.PEGS, "")
    for size in range(disks):
        on[home if size < together else generator.choice(tower.PEGS)] += tower.DISKS[size]
    pegs = on["X"], on["Y"], on["Z"]
    if tower.on_a_way(pegs):
        return ""
    start, first, second = generator.choice(tower.WAYS_ROUND)
    cycle = f"{start} {first} {second} {start}"
    # What can have moved last: the smallest disk, or the smaller of the other two on top.
    small, large = sorted((peg for peg in tower.PEGS if peg != home), key=lambda p: on[p] or "~")
    last = f"{tower.DISKS[0]} {cycle[cycle.rindex(home) - 2]} {home}"
    if on[small] and generator.random() < (0.5 if together == 1 else 0.25):
        last = f"{on[small][0]} {large} {small}"
    if generator.random() < 0.03:
        last = tower.NO_MOVE
    return tower.Position(pegs, last, cycle, generator.randrange(2**disks)).text


def has_form(question: str, answer: str) -> bool:
    """True for a number as a puzzle's answer, and for three symbols as a move."""
    if question.startswith("solve "):
        return answer.isdecimal()
    return len(answer) == 5 and answer[1] == answer[3] == " "


def is_legal(question: str, answer: str) -> bool:
    """True for a legal move, and for every answer to a puzzle."""
    return question.startswith("solve ") or tower.legal(tower.read(question).pegs, answer)
