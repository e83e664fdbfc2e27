"""The planner and the correlation it lives on: against closed forms and simulation."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.voting import wald_bound
from reflux.agents.errors import UsageError
from reflux.graphs.evals.vote_log import correlation
from reflux.graphs.voting.planner import (
    expected_votes,
    limited_vote,
    plan,
    shared_floor,
    step_error,
    votes_needed,
)

accuracies = st.floats(0.55, 0.999)


@given(accuracies, st.integers(1, 8))
def test_without_correlation_the_formulas_are_those_of_the_gamblers_ruin(p: float, k: int) -> None:
    ratio = (p / (1 - p)) ** k
    error = 1 / (1 + ratio)
    assert step_error(k, p) == pytest.approx(error)
    assert expected_votes(k, p) == pytest.approx(k * (1 - 2 * error) / (2 * p - 1))


@given(accuracies, st.integers(1, 5))
def test_ahead_by_k_needs_exactly_walds_bound(p: float, k: int) -> None:
    assert expected_votes(k, p) == pytest.approx(wald_bound(step_error(k, p), p), rel=1e-6)


@pytest.mark.slow
@given(accuracies, st.integers(1, 4))
def test_the_walk_with_many_votes_is_the_walk_without_a_limit(p: float, k: int) -> None:
    whole = limited_vote(k, 3_000, p)
    assert whole.wrong == pytest.approx(step_error(k, p), abs=1e-9)
    assert whole.votes == pytest.approx(expected_votes(k, p), rel=1e-6)


def test_a_limit_of_votes_leaves_some_undecided() -> None:
    # Two votes, ahead by two: both right, both wrong, or one of each.
    found = limited_vote(2, 2, 0.9)
    assert (found.correct, found.wrong) == pytest.approx((0.81, 0.01))
    assert found.undecided == pytest.approx(0.18)
    assert found.votes == 2


@given(st.floats(0.6, 0.99), st.integers(1, 10**7), st.floats(0.5, 0.999))
def test_the_lead_is_the_least_that_meets_the_target(p: float, steps: int, target: float) -> None:
    k = votes_needed(target, steps, p)

    def success(margin: int) -> float:
        return math.exp(steps * math.log1p(-step_error(margin, p)))

    assert success(k) >= target - 1e-9
    assert k == 1 or success(k - 1) < target


def test_the_figures_of_the_million_step_paper() -> None:
    assert votes_needed(0.9, 2**20 - 1, 1 - 0.0022) == 3


@pytest.mark.parametrize("shared", [0.02, 0.2, 0.6])
def test_shared_errors_are_averaged_over_questions(shared: float) -> None:
    draw, p, k, n = random.Random(1), 0.85, 3, 40_000
    spread = (1 - shared) / shared
    drawn = [draw.betavariate(p * spread, (1 - p) * spread) for _ in range(n)]
    means = [1 / (1 + (x / (1 - x)) ** k) if x < 1 else 0.0 for x in drawn]
    assert step_error(k, p, shared) == pytest.approx(sum(means) / n, abs=0.006)
    assert shared_floor(p, shared) == pytest.approx(sum(x < 0.5 for x in drawn) / n, abs=0.006)


@pytest.mark.parametrize(("right", "wrong"), [(8, 2), (50, 49), (3, 40), (200, 20), (1, 1)])
def test_the_floor_of_shared_errors_is_exact(right: int, wrong: int) -> None:
    flips = right + wrong - 1  # Of a whole-numbered Beta, the share below 1/2 is a binomial's tail.
    tail = sum(math.comb(flips, heads) for heads in range(right, flips + 1)) / 2**flips
    p, shared = right / (right + wrong), 1 / (right + wrong + 1)
    assert shared_floor(p, shared) == pytest.approx(tail, rel=1e-9)


@pytest.mark.parametrize(("right", "wrong", "k"), [(8, 2, 3), (50, 49, 1000), (3, 40, 2)])
def test_averages_over_questions_are_exact(right: int, wrong: int, k: int) -> None:
    x = (np.arange(2_000_000) + 0.5) / 2_000_000  # (points,): the accuracy on one question.
    logit = np.log(x) - np.log1p(-x)
    weights = np.exp((right - 1) * np.log(x) + (wrong - 1) * np.log1p(-x))
    wrong_end = np.exp(-np.logaddexp(0, k * logit))
    p, shared = right / (right + wrong), 1 / (right + wrong + 1)
    error = np.average(wrong_end, weights=weights)
    votes = np.average(k * (1 - 2 * wrong_end) / (2 * x - 1), weights=weights)
    assert step_error(k, p, shared) == pytest.approx(error, rel=1e-6)
    assert expected_votes(k, p, shared) == pytest.approx(votes, rel=1e-6)


def test_a_correlation_of_one_is_worth_one_vote() -> None:
    assert step_error(9, 0.8, 1.0) == pytest.approx(0.2)
    assert shared_floor(0.8, 1.0) == pytest.approx(0.2)


def test_tiny_correlations_meet_none() -> None:
    assert step_error(3, 0.9, 1e-6) == pytest.approx(step_error(3, 0.9), rel=1e-3)
    assert votes_needed(0.99, 1000, 0.9, 1e-6) == votes_needed(0.99, 1000, 0.9)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0.99, 10, 0.5), "voting does not converge"),
        ((0.99, 10, 0.3), "voting does not converge"),
        ((0.99, 10, 1.0), "measure more"),
        ((1.0, 10, 0.9), "^the target is 1; it must be between 0 and 1, say 0.99$"),
        ((0.0, 10, 0.9), "^the target is 0; it must be between 0 and 1, say 0.99$"),
        ((0.99, 0, 0.9), "^the number of steps is 0; it must be at least 1$"),
        ((0.99, 10, 0.9, 1.5), "^the correlation is 1.5; it must be 0 to 1$"),
        ((0.99, 10, 0.9, -0.1), "^the correlation is -0.1; it must be 0 to 1$"),
        ((0.99, 10, 1.5), "^the accuracy is 1.5; it must be 0 to 1$"),
        ((0.99, 10, -0.1), "^the accuracy is -0.1; it must be 0 to 1$"),
        ((0.99, 10**18 + 1, 0.9), r"19 digits: 1e\+18 is the limit"),
        ((0.99, 10**400, 0.9), "401 digits"),
        ((0.99, 100, 0.9, 0.3), "voting cannot help"),
        ((0.99, 100, 0.9, 1.0), "voting cannot help"),
    ],
)
def test_what_no_vote_can_reach_is_said(arguments: tuple[float, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [0.0, 0.3, 0.8])
def test_the_correlation_of_drawn_votes_is_found_again(shared: float) -> None:
    draw, p = random.Random(2), 0.8
    spread = (1 - shared) / shared if shared else 0
    votes: list[list[bool]] = []
    for _ in range(2_000):
        x = draw.betavariate(p * spread, (1 - p) * spread) if shared else p
        votes.append([draw.random() < x for _ in range(3)])
    found = correlation(votes)
    assert found.ci95[0] <= shared <= found.ci95[1]
    assert found.accuracy == pytest.approx(p, abs=0.03)


def test_later_votes_of_questions_that_have_more_do_not_count() -> None:
    votes = [[True, True], [False, False, True, True, True, True, True], [True]]
    found = correlation(votes)
    assert (found.questions, found.votes, found.left_out) == (2, 2, 1)
    assert found.accuracy == 0.5
    assert found.correlation == 1.0


def test_one_vote_each_tells_of_no_correlation() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        correlation([[True], [False]])


@given(
    st.floats(0, 1), st.integers(1, 10**18), st.floats(0.5, 1),
    st.sampled_from([0.0, 5e-324, 1e-308, 1e-100, 1e-13, 1e-9, 0.01, 0.5, 1 - 1e-16, 1.0]),
)  # fmt: skip
def test_whatever_is_given_there_is_a_plan_or_a_reason(
    target: float, steps: int, p: float, shared: float
) -> None:
    try:
        made = plan(target, steps, p, shared)
    except UsageError:
        return
    assert made.margin >= 1
    assert made.p_all_correct >= target - 1e-9
    assert made.votes_per_step >= 1 - 1e-9


def test_a_target_below_what_one_vote_reaches_takes_one_vote() -> None:
    assert votes_needed(1e-20, 1, 0.9) == 1
    assert votes_needed(0.5, 1, 0.9) == 1


def test_near_an_even_chance_a_long_walk_is_not_taken_for_a_fair_one() -> None:
    p, k = 0.5000001, 10_000_000
    assert expected_votes(k, p) == pytest.approx(k * (1 - 2 * step_error(k, p)) / (2 * p - 1))
    assert expected_votes(3, 0.5) == 9


def test_a_plan_holds_what_it_was_made_for_and_what_it_expects() -> None:
    made = plan(0.99, 10, 0.99)
    error = 1 / (1 + 99**2)
    assert (made.target, made.steps, made.accuracy, made.correlation) == (0.99, 10, 0.99, 0.0)
    assert made.margin == votes_needed(0.99, 10, 0.99) == 2
    assert made.step_error == pytest.approx(error)
    assert made.votes_per_step == pytest.approx(2 * (1 - 2 * error) / 0.98)
    assert made.votes == 10 * made.votes_per_step
    assert made.p_all_correct == pytest.approx((1 - error) ** 10)
    shared = plan(0.9, 2, 0.9, 0.05)
    assert shared.correlation == 0.05
    assert shared.step_error == step_error(shared.margin, 0.9, 0.05)
    assert shared.votes_per_step == expected_votes(shared.margin, 0.9, 0.05)


@given(st.floats(0.7, 0.95), st.integers(1, 20), st.floats(0.01, 0.1))
def test_with_shared_errors_the_margin_is_the_least_as_well(
    p: float, steps: int, shared: float
) -> None:
    target = math.exp(steps * math.log1p(-1.2 * shared_floor(p, shared) - 1e-3))
    k = votes_needed(target, steps, p, shared)

    def success(margin: int) -> float:
        return math.exp(steps * math.log1p(-step_error(margin, p, shared)))

    assert success(k) >= target - 1e-9
    assert k == 1 or success(k - 1) < target


def test_a_target_just_above_what_shared_errors_allow_takes_too_many_votes() -> None:
    floor = shared_floor(0.501, 0.001)
    with pytest.raises(UsageError, match="a margin of 1000 is not enough"):
        votes_needed(1 - 1.00001 * floor, 1, 0.501, 0.001)


def test_copies_that_are_always_or_never_right_agree_at_once() -> None:
    assert step_error(3, 1.0) == pytest.approx(0)
    assert step_error(3, 0.0) == pytest.approx(1)
    assert expected_votes(3, 1.0) == pytest.approx(3)
    assert expected_votes(3, 0.0, 0.5) == pytest.approx(3)
    assert expected_votes(4, 0.8, 1.0) == pytest.approx(4)
    assert (shared_floor(0.5, 0.0), shared_floor(0.5, 0.3)) == pytest.approx((0.5, 0.5))
    assert (shared_floor(0.8, 0.0), shared_floor(0.3, 0.0)) == (0, 1)


def test_no_error_and_no_accuracy_have_no_bound() -> None:
    assert wald_bound(0, 0.9) == wald_bound(1, 0.9) == wald_bound(0.1, 0.5) == 0
    # Wald 1945 at an error of 0.1 and an accuracy of 0.8: 0.8 ln 9 over 0.6 ln 4.
    assert wald_bound(0.1, 0.8) == pytest.approx(0.8 * math.log(9) / (0.6 * math.log(4)))
