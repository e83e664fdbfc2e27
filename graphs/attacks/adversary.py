"""A seeded adversary that adapts: it keeps to techniques that had an effect, and changes its best.

Techniques are chosen by Thompson sampling over what they achieved so far against one system; half
of the attempts on a goal change the best one of it, or the best of another case. The same seed and
the same replies give the same attempts.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from reflux.graphs.attacks.cases import Case, Goal
from reflux.graphs.attacks.techniques import (
    TECHNIQUES,
    Attack,
    first_attack,
    mutated,
    written,
)

EXPLOIT = 0.5
"""Share of attempts that change an attack which had an effect."""


@dataclass
class Adversary:
    """What one adversary has learned of one system."""

    seed: int
    techniques: Sequence[str] = TECHNIQUES
    known: Sequence[Attack] = ()
    """Attacks found elsewhere, which are tried first, written for each case."""
    _odds: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    """By technique: effects, and what they lacked to success, each added to 1."""
    _best: dict[tuple[str, ...], tuple[float, Attack]] = field(
        default_factory=dict[tuple[str, ...], tuple[float, Attack]]
    )
    """The greatest effect so far, by case and goal, and by kind of goal in any case."""

    def attack(self, case: Case, goal: Goal, number: int) -> Attack:
        """The next attempt, the `number`th on this goal, from 0."""
        if number < len(self.known):
            known = self.known[number]
            return written(known.technique, case, goal, known.wording, known.form, known.suffix)
        number -= len(self.known)
        draw = random.Random(f"attack:{self.seed}:{case.id}:{goal.name}:{number}")
        bests = [self._best.get((case.id, goal.name)), self._best.get((goal.kind,))]
        useful = [attack for effect, attack in filter(None, bests) if effect > 0]
        if useful and draw.random() < EXPLOIT:
            return mutated(draw.choice(useful), case, goal, draw)
        usable = [each for each in self.techniques if each != "split" or len(case.open) > 1]
        if number < len(usable):  # Each is tried once on every goal, in another order.
            order = random.Random(f"order:{self.seed}:{case.id}:{goal.name}")
            technique = order.sample(usable, len(usable))[number]
        else:
            technique = max(
                usable, key=lambda each: draw.betavariate(*self._odds.get(each, (1.0, 1.0)))
            )
        return first_attack(technique, case, goal, draw)

    def learn(self, case: Case, goal: Goal, attack: Attack, effect: float) -> None:
        """Take in what an attempt achieved, 0 for nothing to 1 for success."""
        gained, lacking = self._odds.get(attack.technique, (1.0, 1.0))
        self._odds[attack.technique] = (gained + effect, lacking + 1 - effect)
        for key in ((case.id, goal.name), (goal.kind,)):
            if key not in self._best or effect >= self._best[key][0]:
                self._best[key] = (effect, attack)
