"""Calibration and the scaling that mends it, against brute force and made-up models."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflux.agents.errors import UsageError
from reflux.graphs.evals.confidence.calibration import (
    MIN_ANSWERS,
    brier,
    calibration,
    calibration_error,
    fit_scaling,
    reliability,
    scaled,
)
from reflux.graphs.evals.confidence.curve import Both, best_threshold, cost_curve
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.voting.confidence import Cascade, Scaling, confidence_of, log_odds

answers = st.lists(
    st.tuples(st.integers(0, 12).map(lambda k: k / 12), st.booleans()), min_size=1, max_size=60
)
"""(confidence, right), with many of equal confidence."""


def test_the_brier_score_is_a_mean_of_squares() -> None:
    assert brier([(1.0, True), (0.0, False)]) == 0.0
    assert brier([(0.5, True), (0.5, False)]) == 0.25
    assert brier([(0.8, True), (0.8, False)]) == pytest.approx((0.04 + 0.64) / 2)


def test_the_calibration_error_is_the_weighted_distance_of_the_bins() -> None:
    min_logprob = [(0.9, True)] * 9 + [(0.9, False)]
    assert calibration_error(reliability(min_logprob)) == pytest.approx(0.0)
    too_sure = [(1.0, k < 6) for k in range(10)] + [(0.5, k < 5) for k in range(30)]
    # By hand: 10 of 40 answers are 0.4 away, 30 are (0.5 - 5/30) away.
    assert calibration_error(reliability(too_sure, bins=2)) == pytest.approx(
        (10 * 0.4 + 30 * (0.5 - 5 / 30)) / 40
    )


def test_bins_hold_equally_many_answers_where_confidences_differ() -> None:
    bins = reliability([(k / 100, True) for k in range(97)], bins=10)
    assert len(bins) == 10
    assert {each.n for each in bins} == {9, 10}
    even = reliability([(k / 100, k % 4 == 0) for k in range(40)], bins=10)
    assert [each.n for each in even] == [4] * 10
    assert [each.accuracy for each in even] == [0.25] * 10
    assert [each.ci95 for each in even] == [wilson(1, 4)] * 10


@given(answers, st.randoms())
def test_bins_hold_every_answer_once_whatever_the_order(
    found: list[tuple[float, bool]], luck: object
) -> None:
    bins = reliability(found)
    assert sum(each.n for each in bins) == len(found)
    assert 1 <= len(bins) <= 10
    mean = sum(each.n * each.accuracy for each in bins) / len(found)
    assert mean == pytest.approx(sum(right for _, right in found) / len(found))
    confidences = [each.confidence for each in bins]
    assert confidences == sorted(set(confidences))
    shuffled = list(found)
    luck.shuffle(shuffled)  # type: ignore[attr-defined]
    again = reliability(shuffled)
    assert [(b.n, b.accuracy) for b in again] == [(b.n, b.accuracy) for b in bins]


@given(answers)
def test_answers_of_equal_confidence_share_a_bin(found: list[tuple[float, bool]]) -> None:
    sizes = Counter(confidence for confidence, _ in found)
    edges = {0}
    for _, size in sorted(sizes.items()):
        edges.add(max(edges) + size)
    at = 0
    for each in reliability(found):
        at += each.n
        assert at in edges


def test_answers_of_unknown_confidence_are_counted_and_left_out() -> None:
    found = calibration([(None, True), (1.0, True), (None, False)])
    assert found is not None
    assert (found.n, found.unknown, found.brier, found.ece) == (1, 2, 0.0, 0.0)
    assert found.bins == reliability([(1.0, True)])
    assert calibration([(None, True)]) is None


def made(n: int, scaling: Scaling, seed: int) -> list[tuple[float, bool]]:
    """Answers of a model whose confidence this scaling makes a probability."""
    luck = random.Random(seed)
    found = [luck.random() ** 0.2 for _ in range(n)]
    return [(c, luck.random() < scaling.probability(c)) for c in found]


@pytest.mark.parametrize("truth", [Scaling(1.0, 0.0), Scaling(3.0, -0.5), Scaling(0.7, 1.0)])
def test_a_fitted_scaling_is_that_of_the_model(truth: Scaling) -> None:
    found = fit_scaling(made(20_000, truth, 1))
    assert found.temperature == pytest.approx(truth.temperature, rel=0.1)
    assert found.offset == pytest.approx(truth.offset, abs=0.1)
    fresh = made(4_000, truth, 2)
    after = calibration([(found.probability(c), right) for c, right in fresh])
    assert after is not None
    assert after.ece < 0.03


def test_no_other_scaling_makes_the_answers_more_likely() -> None:
    answers = made(400, Scaling(2.5, -1.0), 3)

    def loss(scaling: Scaling) -> float:
        chances = [(scaling.probability(c), right) for c, right in answers]
        return -sum(math.log(p if right else 1 - p) for p, right in chances)

    best = fit_scaling(answers)
    grid = [Scaling(t / 10, b / 10) for t in range(5, 80) for b in range(-30, 30)]
    assert loss(best) <= min(map(loss, grid)) + 0.5  # The penalty and Platt's targets.


@pytest.mark.parametrize(
    ("answers", "share"),
    [
        ([(0.9, True)] * 30 + [(0.8, True)] * 30, 1.0),
        ([(0.9, False)] * 40, 0.0),
        ([(0.9, False), (0.1, True)] * 30, 0.5),  # The less sure, the righter.
        ([(0.99, k % 4 == 0) for k in range(80)], 0.25),
    ],
)
def test_a_confidence_that_tells_nothing_becomes_the_share_of_right_answers(
    answers: list[tuple[float, bool]], share: float
) -> None:
    scaling = fit_scaling(answers)
    for confidence, _ in answers:
        assert scaling.probability(confidence) == pytest.approx(share, abs=0.04)


def test_a_scaling_is_judged_by_answers_that_it_was_not_fitted_on() -> None:
    found = scaled(made(1_000, Scaling(4.0, -1.0), 4))
    assert found is not None
    assert found.after.ece < 0.06 < 0.15 < found.before.ece
    assert found.after.brier < found.before.brier
    luck = random.Random(0)
    noise = [(luck.random(), luck.random() < 0.5) for _ in range(40)]
    of_noise = scaled(noise)
    assert of_noise is not None
    own = [(of_noise.scaling.probability(c), right) for c, right in noise]
    assert brier(own) < of_noise.after.brier
    body = of_noise.to_json()
    assert body["brier"] == [of_noise.before.brier, of_noise.after.brier]
    assert body["temperature"] == of_noise.scaling.temperature


def test_few_answers_or_none_of_known_confidence_are_not_scaled() -> None:
    few = [(0.5, True)] * (2 * MIN_ANSWERS - 1)
    assert scaled(few) is None
    assert scaled([*few, (None, True)]) is None
    assert scaled([*few, (0.5, False)]) is not None
    with pytest.raises(UsageError, match="20 held-out answers or more, there are 19"):
        fit_scaling(few[: MIN_ANSWERS - 1])


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 100), st.floats(-20, 20))
def test_a_scaling_keeps_the_order(one: float, other: float, t: float, offset: float) -> None:
    low, high = sorted((one, other))
    scaling = Scaling(t, offset)
    assert 0 < scaling.probability(low) <= scaling.probability(high) < 1
    assert Scaling().probability(one) == pytest.approx(one, abs=2e-6)
    assert log_odds(low) <= log_odds(high)


@pytest.mark.parametrize(
    ("detail", "logprob", "confidence"),
    [
        ({"votes": 1}, math.log(0.4), 0.4),
        ({"votes": 1}, 1e-9, 1.0),
        ({"votes": 1}, None, None),
        ({"votes": 4, "tally": [["a", 3], ["b", 1]], "answer": "a"}, -5.0, 0.75),
        ({"votes": 2, "tally": [["a", 2]], "answer": "b"}, -5.0, 0.0),
        ({"disagreement": 0.25}, None, 0.75),
        ({"votes": 0}, None, math.inf),
    ],
)
def test_the_confidence_of_a_question_that_was_not_divided(
    detail: dict[str, object], logprob: float | None, confidence: float | None
) -> None:
    found = confidence_of(detail, logprob)
    assert found == (confidence if confidence is None else pytest.approx(confidence))


def test_a_cascade_is_sure_at_its_threshold_and_never_of_the_unknown() -> None:
    plain = Cascade(0.8)
    assert plain.is_sure(0.8 + 1e-9)
    assert not plain.is_sure(0.79)
    assert not plain.is_sure(None)
    assert plain.is_sure(math.inf)
    too_sure = Cascade(0.8, Scaling(2.0, 0.0))
    assert not too_sure.is_sure(0.9)
    assert too_sure.is_sure(0.95)
    assert Cascade.of(too_sure.to_json()) == too_sure
    assert Cascade.of({}) is None
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match=r"cascade is .*at least 0 and at most 1"):
            Cascade(wrong)


questions = st.lists(
    st.builds(
        Both,
        st.none() | st.sampled_from([0.1, 0.4, 0.5, 0.9, 1.0]),
        st.booleans(), st.booleans(), st.integers(1, 9), st.integers(1, 99),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@given(questions)
def test_each_point_of_a_curve_is_what_its_threshold_would_do(found: list[Both]) -> None:
    points = cost_curve(found, len(found))
    for point in points:
        least = 2.0 if point.threshold is None else point.threshold
        sure = [least == 0 or (each.confidence or -1.0) >= least for each in found]
        pairs = list(zip(found, sure, strict=True))
        right = sum(each.alone if ok else each.amplified for each, ok in pairs)
        cost = sum(e.tokens_alone + (0 if ok else e.tokens_amplified) for e, ok in pairs)
        assert point.accuracy == pytest.approx(right / len(found))
        assert point.tokens == pytest.approx(cost / len(found))
        assert point.deferred == pytest.approx(1 - sum(sure) / len(found))
    assert points[0].deferred == 0
    assert points[-1].deferred == 1
    known = {each.confidence for each in found}
    assert len(points) == len(known) + 1
    best = best_threshold(found)
    chosen = next(p for p in points if (2.0 if p.threshold is None else p.threshold) >= best)
    assert chosen.accuracy == max(p.accuracy for p in points)


def test_a_curve_of_many_questions_has_few_points() -> None:
    found = [Both(k / 999, k > 500, True, 1, 5) for k in range(1_000)]
    points = cost_curve(found)
    assert 20 <= len(points) <= 22
    assert (points[0].accuracy, points[-1].accuracy) == (499 / 1_000, 1.0)
    assert best_threshold(found) == pytest.approx(501 / 999)
