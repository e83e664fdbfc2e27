"""Stopping rules and batches: against brute force, closed forms and simulation."""

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflux.agents.errors import UsageError
from reflux.graphs.voting.stopping import AheadBy, AnyRule, Majority, Posterior, Sprt, Weighted
from reflux.graphs.voting.voting import Variant, Vote, VotePolicy, next_votes, tally, winner

RULES: list[AnyRule] = [
    Majority(max_votes=9),
    AheadBy(2, 9),
    AheadBy(3, 12),
    Sprt(share=0.75, error=0.1, max_votes=12),
    Posterior(confidence=0.9, max_votes=12),
    Weighted(error=0.05, max_votes=12),
]
rules = st.sampled_from(RULES)


def one_by_one(rule: AnyRule, texts: str) -> list[Vote]:
    """Votes as they would be asked singly, a rule being looked at after each."""
    votes: list[Vote] = []
    for text in texts[: rule.max_votes]:
        votes.append(Vote(text, True))
        ranking = [*(count for _, count in tally(votes)), 0]
        if rule.decided(ranking[0], ranking[1], rule.max_votes - len(votes)):
            break
    return votes


def in_waves(rule: AnyRule, texts: str) -> list[Vote]:
    policy, votes = VotePolicy(min_logprob=None, rule=rule), []
    while more := next_votes(votes, policy):
        votes += [Vote(text, True) for text in texts[len(votes) : len(votes) + more]]
    return votes


@given(rules, st.text("ab", min_size=12, max_size=12))
def test_waves_ask_exactly_the_votes_that_would_be_asked_one_by_one(
    rule: AnyRule, texts: str
) -> None:
    assert in_waves(rule, texts) == one_by_one(rule, texts)


def test_votes_that_stay_split_are_not_asked_beyond_the_point_where_a_rule_gives_up() -> None:
    votes = [Vote(text, True) for text in "ab" * 6]
    policy = VotePolicy(min_logprob=None, rule=Sprt())
    assert next_votes(votes, policy) == 2
    assert next_votes([*votes, *votes[:2]], policy) == 0


WEIGHTS = (1.0, 3.0, 2.0)
UNEQUAL = tuple(Variant(weight=weight) for weight in WEIGHTS)


def weighed(text: str) -> list[Vote]:
    """Votes of copies that count for more or less, in turn."""
    return [Vote(each, True, weight=WEIGHTS[at % 3]) for at, each in enumerate(text)]


@given(rules, st.text("ab", min_size=12, max_size=12))
def test_no_fewer_votes_of_unequal_copies_could_decide_than_a_wave_asks(
    rule: AnyRule, texts: str
) -> None:
    policy, votes = VotePolicy(min_logprob=None, rule=rule, variants=UNEQUAL), weighed(texts)
    asked = 0
    while more := next_votes(votes[:asked], policy):
        for fewer in range(1, min(more, 6)):
            outcomes = itertools.product("abc", repeat=fewer)
            ends = [weighed(texts[:asked] + "".join(outcome)) for outcome in outcomes]
            assert all(next_votes(end, policy) for end in ends)
        asked += more


@given(st.text("abc", min_size=9, max_size=9))
def test_a_majority_of_unequal_copies_stops_only_where_the_rest_cannot_change_it(
    texts: str,
) -> None:
    policy = VotePolicy(min_logprob=None, rule=Majority(max_votes=9), variants=UNEQUAL)
    votes, asked = weighed(texts), 0
    while more := next_votes(votes[:asked], policy):
        asked += more
    early, whole = tally(votes[:asked]), dict(tally(votes))
    assert whole[early[0][0]] == max(whole.values())


@given(st.text("abc", min_size=9, max_size=9))
def test_a_majority_that_stops_early_chooses_as_all_its_votes_would(texts: str) -> None:
    early = winner(in_waves(Majority(max_votes=9), texts))
    whole = winner([Vote(text, True) for text in texts])
    counts = {text: texts.count(text) for text in texts}
    assert early is not None and whole is not None
    assert counts[early.text] == max(counts.values()) == counts[whole.text]


@given(st.floats(0.55, 0.99), st.integers(1, 6))
def test_ahead_by_k_is_the_sprt_of_a_known_accuracy(accuracy: float, margin: int) -> None:
    error = 1 / (1 + (accuracy / (1 - accuracy)) ** margin)
    sprt = Sprt(share=accuracy, against=1 - accuracy, error=error * (1 + 1e-9), max_votes=99)
    for first in range(12):
        for second in range(first + 1):
            assert sprt.decided(first, second, 50) == AheadBy(margin, 99).decided(first, second, 50)


def test_a_posterior_is_bayes_rule_over_the_prior_of_accuracies() -> None:
    # By simulation: accuracies from Beta(8, 2), votes 4 to 1; how often is the leader right?
    draw, right, seen = random.Random(0), 0, 0
    for _ in range(200_000):
        accuracy = draw.betavariate(8, 2)
        ayes = sum(draw.random() < accuracy for _ in range(5))
        if ayes in (1, 4):
            seen, right = seen + 1, right + (ayes == 4)
    assert Posterior().belief(4, 1) == pytest.approx(right / seen, abs=0.005)


def test_a_sprt_gives_up_where_the_votes_stay_split() -> None:
    rule = Sprt(share=0.8, error=0.05, max_votes=100)
    split = next(n for n in range(50) if rule.decided(n, n, 100 - 2 * n))
    assert 0 < 2 * split < 20


def test_weighted_votes_add_up_their_log_odds() -> None:
    votes = [Vote("a", True, weight=3.0), Vote("b", True, weight=1.0), Vote("b", True, weight=1.0)]
    assert tally(votes) == [("a", 3.0), ("b", 2.0)]
    chosen = winner(votes)
    assert chosen is not None and chosen.text == "a"
    assert Weighted(error=0.01).decided(math.log(99), 0, 5)
    assert not Weighted(error=0.01).decided(math.log(98), 0, 5)


def test_a_first_vote_is_asked_alone_only_where_it_may_stand_alone() -> None:
    assert next_votes([], VotePolicy(margin=3, min_logprob=-0.05)) == 1
    assert next_votes([], VotePolicy(margin=3, min_logprob=None)) == 3
    assert next_votes([Vote("a", True, None)], VotePolicy(margin=3, min_logprob=None)) == 2


def test_refused_votes_are_asked_again() -> None:
    refused = Vote("a", False, flag="cut_off")
    assert next_votes([refused, refused], VotePolicy(margin=2, max_votes=7, min_logprob=None)) == 2


def test_variants_take_turns_and_the_first_vote_stays_greedy() -> None:
    policy = VotePolicy(variants=(Variant(), Variant(model="other", temperature=0.2)))
    assert [policy.variant(n).model for n in range(4)] == ["", "other", "", "other"]
    assert [policy.warmth(n) for n in range(4)] == [0.0, 0.2, 0.7, 0.2]


def test_votes_weigh_what_their_copies_do_however_many_there_are() -> None:
    policy = VotePolicy(variants=UNEQUAL)
    for begin, end in itertools.combinations(range(9), 2):
        weights = [policy.variant(number).weight for number in range(begin, end)]
        assert policy.weight_between(begin, end) == sum(weights)
        assert VotePolicy().weight_between(begin, end) == end - begin


def test_a_belief_is_even_where_the_votes_are_and_grows_with_the_lead() -> None:
    rule = Posterior(right=3, wrong=1)
    assert rule.belief(2, 2) == pytest.approx(0.5)
    # After one vote the leader is right with the prior's mean accuracy.
    assert rule.belief(1, 0) == pytest.approx(3 / 4)
    assert rule.belief(1, 0) + rule.belief(0, 1) == pytest.approx(1)
    certain = Posterior(right=300, wrong=1)
    assert (certain.belief(0, 10_000), certain.belief(10_000, 0)) == (0.0, 1.0)


def test_a_majority_votes_on_while_the_rest_could_draw_level() -> None:
    assert not Majority(max_votes=7).decided(4, 1, 3)
    assert Majority(max_votes=7).decided(4, 1, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Majority(max_votes=0), "max_votes is 0; it must be at least 1"),
        (lambda: AheadBy(margin=0), "margin is 0; it must be at least 1"),
        (lambda: AheadBy(1, max_votes=0), "max_votes is 0; it must be at least 1"),
        (lambda: AheadBy(3, 2), "margin is 3 and max_votes only 2: allow 3 votes or more, or one "
                                "to switch voting off"),
        (lambda: Sprt(against=0), "against is 0; it must be more than 0 and less than 1"),
        (lambda: Sprt(against=1), "against is 1; it must be more than 0 and less than 1"),
        (lambda: Sprt(share=0.5), "share is 0.5; it must be more than 0.5 and less than 1"),
        (lambda: Sprt(share=1), "share is 1; it must be more than 0.5 and less than 1"),
        (lambda: Sprt(error=0), "error is 0; it must be more than 0 and less than 0.5"),
        (lambda: Sprt(error=0.5), "error is 0.5; it must be more than 0 and less than 0.5"),
        (lambda: Sprt(max_votes=0), "max_votes is 0; it must be at least 1"),
        (lambda: Posterior(confidence=0), "confidence is 0; it must be more than 0 and "
"less than 1"),
        (lambda: Posterior(confidence=1), "confidence is 1; it must be more than 0 and "
"less than 1"),
        (lambda: Posterior(right=0), "right is 0; it must be more than 0"),
        (lambda: Posterior(wrong=0), "wrong is 0; it must be more than 0"),
        (lambda: Posterior(max_votes=0), "max_votes is 0; it must be at least 1"),
        (lambda: Weighted(error=0), "error is 0; it must be more than 0 and less than 0.5"),
        (lambda: Weighted(error=0.5), "error is 0.5; it must be more than 0 and less than 0.5"),
        (lambda: Weighted(max_votes=0), "max_votes is 0; it must be at least 1"),
    ],
)  # fmt: skip
def test_a_rule_out_of_range_is_named_with_its_range(
    make: Callable[[], AnyRule], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert str(error.value) == f"votes.rule.{message}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VotePolicy(margin=0), "margin is 0; it must be at least 1"),
        (lambda: VotePolicy(max_votes=0), "max_votes is 0; it must be at least 1"),
        (lambda: VotePolicy(temperature=-1), "temperature is -1; it must be at least 0"),
        (lambda: VotePolicy(min_logprob=math.nan), "min_logprob is nan; it must be a number"),
        (lambda: VotePolicy(margin=3, max_votes=2), "rule.margin is 3 and max_votes only 2: allow "
                                                    "3 votes or more, or one to switch voting off"),
        (lambda: Variant(weight=0), "variants.weight is 0; it must be more than 0"),
        (lambda: Variant(temperature=-1), "variants.temperature is -1; it must be at least 0"),
        (lambda: Variant(wording="?"), "variants.wording is '?', which does not show the question: "
                                       "write {question} where the question goes"),
    ],
)  # fmt: skip
def test_a_policy_out_of_range_is_named_with_its_range(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert str(error.value) == f"votes.{message}"


def test_the_ends_of_the_ranges_are_allowed() -> None:
    assert Majority(max_votes=1).max_votes == Sprt(max_votes=1).max_votes == 1
    assert Posterior(max_votes=1).max_votes == Weighted(max_votes=1).max_votes == 1
    assert (AheadBy(3, 3).margin, AheadBy(3, 1).margin, AheadBy(1, 1).margin) == (3, 3, 1)
    assert VotePolicy(margin=1, max_votes=1, temperature=0).warmth(1) == 0
    assert VotePolicy(variants=(Variant(temperature=0),)).warmth(1) == 0
