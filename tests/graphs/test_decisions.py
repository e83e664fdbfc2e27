"""Verdicts on pairs of systems: what they say, and how often they are wrong."""

import math
import random

import numpy as np
import pytest

from reflux.graphs.evals.decisions import (
    ALPHA,
    Decision,
    Differences,
    anytime_p_differ,
    anytime_p_equal,
    decide,
    holm,
    log_wealth,
    p_differ,
    p_equal,
    questions_needed,
    score_z,
)


def counted(gained: int, lost: int, n: int) -> Differences:
    return Differences({1.0: gained, -1.0: lost, 0.0: n - gained - lost})


def verdict(gained: int, lost: int, n: int, margin: float = 0.02, anytime: bool = False) -> str:
    (found,) = decide({("a", "b"): (counted(gained, lost, n), 0)}, margin, anytime=anytime)
    assert found.n == n
    assert found.difference == pytest.approx((gained - lost) / n)
    return found.verdict


@pytest.mark.parametrize(
    ("gained", "lost", "n", "margin", "says"),
    [
        (20, 2, 100, 0.02, "better"),
        (2, 20, 100, 0.02, "worse"),
        (6, 0, 20, 0.02, "better"),
        (5, 0, 20, 0.02, "undecided"),
        (0, 0, 5, 0.02, "undecided"),
        (0, 0, 100, 0.02, "undecided"),
        (0, 0, 250, 0.02, "equal"),
        (0, 0, 250, 0.0, "undecided"),
        (30, 30, 10_000, 0.02, "equal"),
        (160, 100, 10_000, 0.02, "equal"),  # Better, too, but by less than the margin.
        (30, 30, 100, 0.02, "undecided"),
    ],
)
def test_a_verdict_says_what_the_differences_prove(
    gained: int, lost: int, n: int, margin: float, says: str
) -> None:
    assert verdict(gained, lost, n, margin) == says


def test_the_score_statistic_is_tangos() -> None:
    # At 0 it is McNemar's, but for half a question; elsewhere q solves the equation of the paper.
    assert score_z(counted(12, 5, 100), 0.0) == pytest.approx((12 - 5 - 0.5) / math.sqrt(17))
    n, b, c, d = 44, 1, 9, -0.1
    q = np.roots([2 * n, -b - c + (2 * n - b + c) * d, -c * d * (1 - d)]).max()
    variance = n * (2 * q + d * (1 - d))
    distance = b - c - n * d
    expected = math.copysign(abs(distance) - 0.5, distance) / math.sqrt(variance)
    assert score_z(counted(b, c, n), d) == pytest.approx(expected)
    assert score_z(counted(0, 0, 10), 0.0) == 0.0


def test_several_pairs_are_corrected() -> None:
    assert holm([0.01, 0.04, 0.03], 3) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, 0.04, 0.03, 0.9], 2) == pytest.approx([0.02, 0.08, 0.06, 0.9])
    assert holm([0.7, 0.9], 2) == pytest.approx([1.0, 1.0])
    assert holm([], 0) == []
    alone = {("a", "b"): (counted(8, 1, 60), 0)}
    more = {**alone, ("a", "c"): (counted(5, 4, 60), 0), ("b", "c"): (counted(3, 3, 60), 2)}
    assert [d.verdict for d in decide(alone, 0.02, anytime=False)] == ["better"]
    found = decide(more, 0.02, anytime=False)
    assert [d.verdict for d in found] == ["undecided"] * 3
    assert found[0].p_differ == pytest.approx(3 * p_differ(counted(8, 1, 60)))
    assert [d.unscored for d in found] == [0, 0, 2]
    assert all(d.needed is None or d.needed > 60 for d in found)


def test_differences_of_several_seeds_count_once_a_question() -> None:
    half = Differences.of([0.5, 0.5, -0.5, 0.0])
    assert (half.n, half.gained, half.lost, half.mean) == (4, 1.0, 0.5, 0.125)
    assert p_differ(half) == p_differ(counted(2, 1, 4))
    assert p_equal(Differences({0.5: 4, -0.5: 4, 0.0: 992}), 0.02) <= p_equal(
        counted(4, 4, 1000), 0.02
    )


@pytest.mark.parametrize(
    ("gained", "lost", "least"), [(200, 100, 0.7), (60, 20, 0.7), (50, 50, 0.7), (5, 5, 0.7)]
)
def test_the_number_of_questions_that_is_named_decides_as_often_as_it_says(
    gained: int, lost: int, least: float
) -> None:
    n = questions_needed(Differences({1.0: gained, -1.0: lost, 0.0: 1000 - gained - lost}), 0.02)
    assert n is not None
    shares = [gained / 1000, lost / 1000]
    draws = np.random.default_rng(7).multinomial(n, [*shares, 1 - sum(shares)], size=400)
    decided = sum(verdict(int(a), int(b), n) != "undecided" for a, b, _ in draws)
    assert decided / 400 >= least


@pytest.mark.parametrize(
    ("gained", "lost", "n", "margin", "pairs", "needed"),
    [
        (4, 2, 20, 0.02, 1, 260),  # By hand, from Connor's formula.
        (4, 2, 20, 0.02, 3, 347),
        (3, 3, 20, 0.1, 1, 286),
        (3, 3, 20, 0.1, 2, 351),
        (3, 2, 20, 0.1, 1, 895),
        (3, 2, 20, 0.2, 1, 108),
        (0, 0, 20, 0.1, 1, 41),
        (200, 100, 1000, 0.02, 1, 1001),
    ],
)
def test_the_questions_needed_are_those_of_the_formula(
    gained: int, lost: int, n: int, margin: float, pairs: int, needed: int
) -> None:
    assert questions_needed(counted(gained, lost, n), margin, pairs) == needed


def test_a_decision_says_all_that_is_known_of_a_pair() -> None:
    differences = counted(4, 2, 20)
    (found,) = decide({("a", "b"): (differences, 3)}, 0.02, anytime=False)
    p = p_equal(differences, 0.02)
    assert found == Decision("a", "b", "undecided", 0.1, 0.02, p_differ(differences), p, 20, 260, 3)
    (found,) = decide({("a", "b"): (counted(9, 1, 20), 0)}, 0.02, anytime=False)
    assert (found.verdict, found.needed) == ("better", None)
    pairs = {("a", "b"): (counted(60, 0, 90), 0), ("a", "c"): (differences, 0)}
    first, second = decide(pairs, 0.02, anytime=True)
    assert (first.verdict, second.verdict) == ("better", "undecided")
    assert first.p_differ == pytest.approx(2 * anytime_p_differ(counted(60, 0, 90)))
    assert second.needed == questions_needed(differences, 0.02, 2)


def test_nothing_is_known_without_differences_or_a_margin() -> None:
    none, some = counted(0, 0, 0), counted(3, 1, 50)
    assert p_equal(none, 0.02) == p_equal(some, 0.0) == 1.0
    assert anytime_p_equal(none, 0.02) == anytime_p_equal(some, 0.0) == 1.0
    assert anytime_p_differ(none) == p_differ(none) == 1.0
    assert score_z(counted(0, 0, 10), 0.1) == pytest.approx(-0.5 / math.sqrt(0.9))


def test_half_of_the_wealth_is_bet_on_each_system() -> None:
    differences = counted(20, 4, 60)
    wealth = [math.exp(log_wealth(differences, 0.0, direction)) for direction in (1, -1)]
    assert anytime_p_differ(differences) == pytest.approx(2 / sum(wealth))


def test_what_no_number_of_questions_decides_is_said() -> None:
    assert questions_needed(counted(20, 0, 1000), 0.02) is not None
    # No difference, and no margin within which it could be equal.
    assert questions_needed(counted(10, 10, 1000), 0.0) is None


def test_wealth_is_what_bets_on_each_question_win() -> None:
    """Against brute force, a bet at a time."""
    from reflux.graphs.evals.decisions import STAKES

    values, bound = [1.0, 0.0, -1.0, 0.5, 1.0], 0.1
    for direction in (1, -1):
        wealth = [1.0] * len(STAKES)
        for value in values:
            odds = (1 + direction * value) / (1 + direction * bound)
            wealth = [w * (1 - s + s * odds) for w, s in zip(wealth, STAKES, strict=True)]
        expected = math.log(sum(wealth) / len(wealth))
        assert log_wealth(Differences.of(values), bound, direction) == pytest.approx(expected)


def looked_at(draws: np.ndarray, margin: float) -> tuple[bool, bool]:
    """Whether one run was called different, and equal, at any look; all of its looks are taken."""
    looks = [20]
    while looks[-1] < len(draws):
        looks.append(min(len(draws), math.ceil(looks[-1] * 1.25)))
    gained, lost = np.cumsum(draws > 0), np.cumsum(draws < 0)
    different = equal = False
    for n in looks:
        differences = counted(int(gained[n - 1]), int(lost[n - 1]), n)
        different |= anytime_p_differ(differences) <= ALPHA
        equal |= anytime_p_equal(differences, margin) <= ALPHA
    return different, equal


@pytest.mark.slow
def test_stopping_as_soon_as_it_is_decided_is_wrong_in_one_of_twenty_runs_at_most() -> None:
    rng = np.random.default_rng(1)
    runs, n, margin = 2_000, 2_000, 0.05
    null = rng.choice([1, -1, 0], p=[0.15, 0.15, 0.7], size=(runs, n))
    wrong = sum(looked_at(run, margin)[0] for run in null) / runs
    assert wrong <= ALPHA
    # Systems that differ by exactly the margin must not be called equal.
    apart = rng.choice([1, -1, 0], p=[0.1, 0.05, 0.85], size=(runs, n))
    assert sum(looked_at(run, margin)[1] for run in apart) / runs <= ALPHA


def test_stopping_early_finds_a_difference_with_fewer_questions() -> None:
    rng = np.random.default_rng(2)
    found = [
        looked_at(rng.choice([1, -1, 0], p=[0.25, 0.05, 0.7], size=600), 0.02)[0]
        for _ in range(100)
    ]
    assert sum(found) >= 95
    assert verdict(60, 0, 100, anytime=True) == "better"
    assert verdict(0, 0, 4_000, 0.02, anytime=True) == "equal"
    assert anytime_p_differ(counted(5_000, 0, 5_000)) >= 0.0  # Its wealth overflows no float.


def test_a_verdict_does_not_depend_on_the_order_of_the_pair() -> None:
    rng = random.Random(3)
    for _ in range(50):
        a, b, n = rng.randint(0, 30), rng.randint(0, 30), rng.randint(60, 500)
        for anytime in (False, True):
            one, other = verdict(a, b, n, 0.03, anytime), verdict(b, a, n, 0.03, anytime)
            assert {"better": "worse", "worse": "better"}.get(one, one) == other
