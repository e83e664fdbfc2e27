"""Voting against brute force: when to stop, and who has won."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from reflux.graphs.voting.voting import Vote, VotePolicy, is_truncated, next_votes, tally, winner


def _decided(votes: list[Vote], policy: VotePolicy) -> bool:
    return next_votes(votes, policy) == 0


votes_drawn = st.lists(
    st.builds(
        Vote, st.sampled_from("abc"), st.booleans(), st.none() | st.floats(-5, 0, allow_nan=False)
    ),
    max_size=9,
)
policies = st.builds(
    lambda margin, more, min_logprob: VotePolicy(
        margin=margin, max_votes=margin + more, min_logprob=min_logprob
    ),
    st.integers(1, 4),
    st.integers(0, 5),
    st.floats(-5, 0.1),
) | st.builds(
    lambda min_logprob: VotePolicy(max_votes=1, min_logprob=min_logprob), st.floats(-5, 0.1)
)


def yes(*texts: str) -> list[Vote]:
    """Accepted votes whose model was not sure of any."""
    return [Vote(text, True, -1.0) for text in texts]


@given(votes_drawn)
def test_the_tally_counts_the_accepted_votes_most_first(votes: list[Vote]) -> None:
    accepted = [vote.text for vote in votes if vote.ok]
    ranking = tally(votes)
    assert dict(ranking) == Counter(accepted)
    # Among equals the one that appeared first.
    assert ranking == sorted(ranking, key=lambda item: (-item[1], accepted.index(item[0])))


@given(votes_drawn, policies)
def test_voting_ends_by_number_by_lead_or_with_a_sure_first_vote(
    votes: list[Vote], policy: VotePolicy
) -> None:
    counts = {text: sum(v.ok and v.text == text for v in votes) for text in "abc"}
    ahead = any(
        all(counts[a] - counts[b] >= policy.margin for b in counts if b != a) for a in counts
    )
    alone = len(votes) == 1 and votes[0].ok
    min_logprob = alone and (votes[0].logprob is None or votes[0].logprob >= policy.min_logprob)
    assert _decided(votes, policy) == (len(votes) >= policy.max_votes or ahead or min_logprob)


@given(votes_drawn)
def test_the_winner_is_the_first_vote_for_the_most_frequent_accepted_answer(
    votes: list[Vote],
) -> None:
    accepted = [vote for vote in votes if vote.ok]
    won = winner(votes)
    if accepted:
        max_votes = max(sum(v.text == w.text for v in accepted) for w in accepted)
        leaders = [v for v in accepted if sum(v.text == w.text for w in accepted) == max_votes]
        assert won is leaders[0]
    else:
        assert won is (votes[0] if votes else None)


def test_no_votes_settle_nothing_and_nobody_wins() -> None:
    assert not _decided([], VotePolicy())
    assert winner([]) is None


def test_a_single_vote_is_all_where_voting_is_off() -> None:
    assert _decided([Vote("a", False, -9.0)], VotePolicy(max_votes=1))


def test_a_first_vote_stands_alone_only_if_sure_and_accepted() -> None:
    policy = VotePolicy(min_logprob=-0.05)
    assert _decided([Vote("a", True, -0.01)], policy)
    assert _decided([Vote("a", True, None)], policy)
    assert not _decided([Vote("a", True, -0.06)], policy)
    assert not _decided([Vote("a", False, -0.01)], policy)


def test_a_lead_of_one_takes_the_first_accepted_vote() -> None:
    assert _decided(yes("a"), VotePolicy(margin=1))
    assert not _decided(yes("a", "b"), VotePolicy(margin=1))


def test_two_that_lead_together_vote_on_to_the_limit() -> None:
    policy = VotePolicy(margin=2, max_votes=6)
    assert not _decided(yes("a", "b", "a", "b", "a"), policy)
    assert _decided(yes("a", "b", "a", "b", "a", "b"), policy)
    winning = winner(yes("b", "a", "a", "b"))
    assert winning is not None and winning.text == "b"


def test_refused_votes_use_up_the_limit_and_do_not_count() -> None:
    refused = Vote("a", False, -1.0)
    assert not _decided([refused, refused], VotePolicy(margin=2, max_votes=3))
    assert _decided([refused] * 3, VotePolicy(margin=2, max_votes=3))
    assert winner([refused] * 3) is not None
    assert tally([refused] * 3) == []


def test_an_answer_is_truncated_unless_one_complete_vote_gave_it() -> None:
    cut, whole = Vote("a", True, truncated=True), Vote("a", True)
    assert is_truncated([cut, cut, Vote("b", True)], "a")
    assert not is_truncated([cut, whole], "a")
    assert is_truncated([cut, Vote("a", False)], "a")
    assert not is_truncated([], "a")
