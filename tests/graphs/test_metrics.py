"""The statistics of an evaluation, against brute force, closed forms and the literature."""

from itertools import product
from math import comb, erfc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflux.agents.errors import UsageError
from reflux.graphs.evals.metrics import bootstrap, difference, mcnemar, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # The first from Newcombe 1998, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
     (1, 29, 0.0061, 0.1718), (20, 20, 0.8389, 1.0), (1, 2, 0.0945, 0.9055)],
)  # fmt: skip
def test_the_interval_has_the_values_of_the_literature(
    right: int, n: int, low: float, high: float
) -> None:
    assert wilson(right, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_rates_that_the_count_does_not_refute(
    counted: tuple[int, int],
) -> None:
    right, n = counted
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1
    z = 1.959963984540054
    for step in range(201):  # By brute force: |right/n - p| within z standard errors at p.
        p = step / 200
        distance = (right / n - p) ** 2 - z * z * p * (1 - p) / n
        if abs(distance) > 1e-9:
            assert (distance < 0) == (low < p < high)


def test_no_questions_have_no_interval() -> None:
    with pytest.raises(UsageError, match="--limit"):
        wilson(0, 0)


@pytest.mark.parametrize(
    "clusters",
    [
        [(1, 1), (0, 1), (0, 1), (-1, 1), (1, 1)],
        [(1, 1), (1, 1), (1, 1), (0, 1), (0, 1)],
        [(2, 3), (0, 1), (-1, 2), (1, 1), (0, 3)],
    ],
)
def test_the_bootstrap_has_the_quantiles_of_all_the_samples_that_there_are(
    clusters: list[tuple[float, int]],
) -> None:
    means = sorted(
        sum(value for value, _ in drawn) / sum(size for _, size in drawn)
        for drawn in product(clusters, repeat=len(clusters))
    )

    def below(x: float, equal: bool) -> float:
        return sum(m < x - 1e-9 or (equal and m < x + 1e-9) for m in means) / len(means)

    low, high = bootstrap(clusters, seed=0)
    # 10,000 draws know a tail of 0.025 to about 0.0016.
    assert below(low, equal=False) <= 0.025 + 0.005
    assert below(low, equal=True) >= 0.025 - 0.005
    assert below(high, equal=False) <= 0.975 + 0.005
    assert below(high, equal=True) >= 0.975 - 0.005


def test_the_bootstrap_depends_on_nothing_but_values_and_seed() -> None:
    clusters = [(float(k % 3 - 1), 1) for k in range(40)]
    assert bootstrap(clusters, 1) == bootstrap(clusters[::-1], 1)
    few = [(0.1, 1), (0.27, 1), (0.9, 1)]
    assert bootstrap(few, 1) == bootstrap(few, 1)
    many = [(k**0.5, 1) for k in range(40)]
    assert bootstrap(many, 1) == bootstrap(many, 1) != bootstrap(many, 2)


def test_answers_to_one_question_are_drawn_together() -> None:
    once = [(float(k % 2), 1) for k in range(30)]
    three_times = [(3 * value, 3 * size) for value, size in once]
    assert bootstrap(three_times, 5) == bootstrap(once, 5)


def test_the_interval_of_a_difference_covers_the_truth_about_as_often_as_it_says() -> None:
    luck = np.random.default_rng(0)
    truth, covered = 0.7 - 0.55, 0
    for number in range(400):
        right = luck.random(150) < 0.7, luck.random(150) < 0.55
        clusters = [(float(a) - float(b), 1) for a, b in zip(*right, strict=True)]
        low, high = bootstrap(clusters, number, resamples=1_000)
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_no_questions_have_no_bootstrap() -> None:
    with pytest.raises(UsageError, match="--limit"):
        bootstrap([], 0)


@pytest.mark.parametrize("n", range(13))
def test_mcnemars_test_counts_the_ways_that_are_as_far_from_even(n: int) -> None:
    for first in range(n + 1):
        far = abs(2 * first - n)
        ways = sum(abs(2 * sum(coins) - n) >= far for coins in product((0, 1), repeat=n))
        assert mcnemar(first, n - first) == pytest.approx(ways / 2**n)


def test_mcnemars_test_has_a_known_value_and_no_overflow() -> None:
    assert mcnemar(1, 9) == pytest.approx(2 * (comb(10, 0) + comb(10, 1)) / 1024)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(2_500, 2_500) == 1.0
    assert 0 < mcnemar(2_400, 2_600) < 0.01
    assert mcnemar(9, 1) == mcnemar(1, 9)


def test_a_difference_pairs_what_two_systems_did_on_the_same_question() -> None:
    right = {
        **{f"both{k}": [(True, True)] for k in range(20)},
        **{f"first{k}": [(True, False)] for k in range(9)},
        "second": [(False, True)],
    }
    found = difference("b", "a", right, seed=0)
    assert found.value == pytest.approx(8 / 30)
    assert (found.first, found.second) == ("b", "a")
    assert (found.only_first, found.only_second, found.n) == (9, 1, 30)
    assert found.p == mcnemar(9, 1)
    assert found.ci95[0] <= found.value <= found.ci95[1]


def test_the_interval_of_a_difference_is_the_bootstrap_of_its_questions() -> None:
    sizes = {f"q{k}": 1 + k % 7 for k in range(40)}
    right = {q: [(True, k % 3 == 0) for k in range(n)] for q, n in sizes.items()}
    clusters = [(sum(k % 3 != 0 for k in range(n)), n) for n in sizes.values()]
    assert (
        difference("b", "a", right, seed=3).ci95 == bootstrap(clusters, 3) != bootstrap(clusters, 4)
    )


def test_a_question_of_several_seeds_counts_once_in_the_test() -> None:
    right = {
        "twice": [(True, False), (True, False), (False, True)],
        "even": [(True, False), (False, True)],
    }
    found = difference("b", "a", right, seed=0)
    assert (found.only_first, found.only_second, found.n) == (1, 0, 2)
    assert found.value == pytest.approx(1 / 5)


def test_the_test_of_very_many_questions_ends() -> None:
    n = 60_000
    assert mcnemar(n // 2, n // 2) == 1.0
    # By the normal distribution, with the correction for continuity.
    z = (1_000 - 1) / n**0.5
    assert mcnemar(n // 2 - 500, n // 2 + 500) == pytest.approx(erfc(z / 2**0.5), rel=1e-3)
