"""Votes: when they decide, who wins, and how many a reliability takes."""

from reflux.graphs.voting.combiners import PluralityVote as Vote

__all__ = ["Vote"]  # The public name, `reflux.Vote`.
