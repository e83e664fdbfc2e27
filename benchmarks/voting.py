"""Observed votes and errors against predictions: the real voting code on simulated copies.

A copy is right with a given probability for its question, and otherwise gives the single wrong
answer, the worst case for a vote. All rules see the same kind of copies; no rule knows the accuracy
of a question unless the table says so.

Not covered: how well the accuracy is known in advance (`benchmarks.million_steps` and
`benchmarks.multiplication` use real copies), and differing wrong answers, which make voting easier.
"""

import argparse
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.report import Claim, Report
from reflux.agents.errors import UsageError
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.voting.planner import expected_votes, plan, step_error
from reflux.graphs.voting.stopping import AheadBy, AnyRule, Majority, Posterior, Sprt
from reflux.graphs.voting.voting import Vote, VotePolicy, next_votes, winner

UNBOUNDED = 10**6
RIGHT, WRONG = "right", "wrong"


def wald_bound(error: float, accuracy: float) -> float:
    """Lower bound on the mean votes of any test between two answers with this error and a known
    accuracy (Wald 1945, section 4.7)."""
    if not 0 < error < 1:
        return 0.0
    drift = (2 * accuracy - 1) * _logit(accuracy)
    # At an accuracy of 0.5 the answers cannot be told apart.
    return (2 * error - 1) * _logit(error) / drift if drift else 0.0


def _logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


@dataclass(frozen=True)
class Config:
    """What is simulated."""

    questions: int = 2_000
    beta: tuple[float, float] = (8.0, 2.0)
    """Beta distribution of a copy's accuracy over questions."""
    repeats: int = 20
    """Repeats of each question, which reduce the noise of the means."""
    leads: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8)
    trials: int = 200_000
    """Questions behind each observed failure."""
    named_trials: int = 1_000_000
    """Trials of the cases with a separate claim: the rarest error is one in 10,000."""
    seed: int = 0
    quick: bool = False


@dataclass
class Tally:
    """Counts over many votes."""

    wrong: int = 0
    votes: int = 0
    waves: int = 0
    n: int = 0

    @property
    def error(self) -> float:
        """Share of questions with a wrong result."""
        return self.wrong / self.n

    @property
    def mean_votes(self) -> float:
        """Mean votes for each question."""
        return self.votes / self.n

    def add(self, policy: VotePolicy, accuracy: float, draw: random.Random) -> None:
        """Vote on one question."""
        votes: list[Vote] = []
        while more := next_votes(votes, policy):
            votes += [Vote(RIGHT if draw.random() < accuracy else WRONG, True) for _ in range(more)]
            self.waves += 1
        found = winner(votes)
        self.wrong += found is None or found.text != RIGHT
        self.votes += len(votes)
        self.n += 1


def policy(rule: AnyRule) -> VotePolicy:
    """Vote by a rule only: a first vote never decides alone."""
    return VotePolicy(min_logprob=None, rule=rule)


def by_question(config: Config, report: Report) -> None:
    """Votes at equal error over questions of all accuracies."""
    draw = random.Random(config.seed)
    accuracies = [draw.betavariate(*config.beta) for _ in range(config.questions)]
    n = config.questions * config.repeats
    rules: list[tuple[str, AnyRule]] = [
        *((f"ahead by {k}", AheadBy(k, UNBOUNDED)) for k in config.leads),
        *(
            (f"posterior, {c:g}", Posterior("posterior", c, *config.beta))
            for c in (0.9, 0.95, 0.97)
        ),
        ("sprt, 0.8 against 0.5", Sprt(error=0.05)),
        ("majority of 40", Majority(max_votes=40)),
        ("fixed 40", Majority(max_votes=40)),
    ]
    found: dict[str, Tally] = {}
    for name, rule in rules:
        found[name] = one = Tally()
        for accuracy in accuracies:
            for _ in range(config.repeats):
                one.add(policy(rule), accuracy, draw)
        if name == "fixed 40":  # All are asked, whatever the first ones say.
            one.votes, one.waves = 40 * n, n
        row = {"rule": name, "error": one.error, "votes": one.mean_votes}
        row |= {"waves": one.waves / n, "n": n}
        if isinstance(rule, AheadBy):
            k = rule.margin
            bound = sum(wald_bound(step_error(k, p), p) for p in accuracies) / len(accuracies)
            row |= {"Wald's bound": bound, "votes / bound": one.mean_votes / bound}
            report.claims.append(
                Claim(
                    f"votes, times Wald's bound at the same error of every question: ahead by {k}",
                    one.mean_votes / bound, "<=", 1.1, n,
                )
            )  # fmt: skip
        report.rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    against_fixed(found, report, n)


def against_fixed(found: dict[str, Tally], report: Report, n: int) -> None:
    """The cheapest rule whose error does not exceed that of 40 votes, within noise."""
    fixed = found["fixed 40"]
    low, high = wilson(fixed.wrong, fixed.n)
    good = {k: v for k, v in found.items() if v.error <= high and k != "fixed 40"}
    if not good:
        return
    name = min(good, key=lambda k: good[k].votes)
    report.claims.append(
        Claim(
            f"fixed-40's votes, times those of {name}, whose error is {good[name].error:.4f} "
            f"(fixed-40: {fixed.error:.4f}, {low:.4f} to {high:.4f})",
            fixed.votes / good[name].votes, ">=", 1.0, n,
        )
    )  # fmt: skip


def drawn(accuracy: float, correlation: float, draw: random.Random) -> Iterator[float]:
    """Sample the accuracy of one question after another."""
    while True:
        if correlation == 0:
            yield accuracy
        elif correlation == 1:
            yield float(draw.random() < accuracy)
        else:
            spread = (1 - correlation) / correlation
            yield draw.betavariate(accuracy * spread, (1 - accuracy) * spread)


NAMED = ((0.7, 0.0, 3), (0.9, 0.0, 3), (0.99, 0.0, 2))
"""For each accuracy, the largest margin whose errors this many trials can observe."""


def predictions(config: Config, report: Report) -> None:
    """Observed failures and votes against the planner's predictions."""
    draw = random.Random(config.seed + 1)
    cases = [(p, 0.0, k) for p in (0.7, 0.9, 0.99) for k in (1, 2, 3)]
    cases += [(0.9, r, 3) for r in (0.05, 0.2, 0.5)] + [(0.7, r, 3) for r in (0.05, 0.2, 0.5)]
    inside: list[bool] = []
    off: list[float] = []
    for accuracy, shared, k in cases:
        one = Tally()
        asked = drawn(accuracy, shared, draw)
        named = (accuracy, shared, k) in NAMED
        for _ in range(config.named_trials if named else config.trials):
            one.add(policy(AheadBy(k, UNBOUNDED)), next(asked), draw)
        predicted = step_error(k, accuracy, shared)
        interval = wilson(one.wrong, one.n)
        votes = expected_votes(k, accuracy, shared)
        report.rows.append(
            {
                "rule": f"ahead by {k}",
                "accuracy": accuracy,
                "correlation": shared,
                "error": round(one.error, 6),
                "error predicted": round(predicted, 6),
                "votes": round(one.mean_votes, 4),
                "votes predicted": round(votes, 4),
                "n": one.n,
            }
        )
        inside.append(interval[0] <= predicted <= interval[1])
        off.append(abs(one.mean_votes / votes - 1))
        if named:
            report.claims.append(
                Claim(
                    f"the predicted error {predicted:.3g} lies in the 95% interval of the "
                    f"observed: accuracy {accuracy:g}, ahead by {k}",
                    float(inside[-1]), "==", 1.0, one.n, interval,
                )
            )  # fmt: skip
    report.claims += [
        Claim(
            f"predicted errors outside the 95% interval of the observed, of {len(cases)} (by "
            "chance alone 3 or more in 4% of such runs)",
            float(inside.count(False)), "<=", 2.0, config.trials,
        ),
        Claim("votes off their prediction, largest share", max(off), "<=", 0.05, config.trials),
    ]  # fmt: skip


def shared_errors(config: Config, report: Report) -> None:
    """If copies share all errors, voting is as accurate as one copy."""
    draw = random.Random(config.seed + 2)
    single, voted = Tally(), Tally()
    asked = drawn(0.9, 1.0, draw)
    for _ in range(config.trials):
        accuracy = next(asked)
        single.add(policy(AheadBy(1, 1)), accuracy, draw)
        voted.add(policy(AheadBy(3, UNBOUNDED)), accuracy, draw)
    report.claims.append(
        Claim(
            "gain of voting where errors are fully shared (accuracy 0.9, ahead by 3)",
            single.error - voted.error, "==", 0.0, config.trials,
        )
    )  # fmt: skip
    try:
        plan(0.99, 100, 0.9, 1.0)
        refused = 0.0
    except UsageError:
        refused = 1.0
    report.claims.append(
        Claim("the planner says that voting cannot help there", refused, "==", 1.0, 1)
    )


def main(config: Config) -> None:
    """Simulate and report."""
    report = Report("voting", seed=config.seed, quick=config.quick)
    by_question(config, report)
    predictions(config, report)
    shared_errors(config, report)
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds")
    small = Config(questions=50, repeats=1, trials=200, named_trials=200, quick=True)
    main(small if parser.parse_args().quick else Config())
