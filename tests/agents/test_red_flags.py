"""Red flags: each rule by what it discards and what it lets pass."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflux.agents.errors import UsageError
from reflux.agents.types import Completion
from reflux.agents.verifiers import RedFlags, repetitions


def test_no_rule_flags_nothing() -> None:
    assert RedFlags().of(Completion("I think so, so, so, so", finish_reason="length")) == ""


@pytest.mark.parametrize(
    ("flags", "text", "name"),
    [
        (RedFlags(longest=5), "123456", "longest"),
        (RedFlags(longest=5), " 12345 ", ""),
        (RedFlags(pattern=r"\d+"), "12 or 13", "pattern"),
        (RedFlags(pattern=r"\d+"), "12\n", ""),
        (RedFlags(hedges=("not sure",)), "I am Not Sure: 4", "hedges"),
        (RedFlags(hedges=("not sure",)), "sure: 4", ""),
        (RedFlags(repeats=3), "no no no no", "repeats"),
        (RedFlags(repeats=3), "a b a b a b", ""),
        (RedFlags(repeats=3), "a b a b a b a b", "repeats"),
        (RedFlags(longest=3, pattern="x"), "yyyy", "longest"),
    ],
)
def test_each_rule_flags_what_breaks_it(flags: RedFlags, text: str, name: str) -> None:
    assert flags.of(Completion(text)) == name


def test_a_reply_that_ended_at_its_limit_is_cut_off() -> None:
    assert RedFlags(cut_off=True).of(Completion("4", finish_reason="length")) == "cut_off"
    assert RedFlags(cut_off=True).of(Completion("4")) == ""


def by_hand(words: list[str]) -> int:
    max_votes = min(1, len(words))
    for start in range(len(words)):
        for length in range(1, 9):
            run, times = words[start : start + length], 1
            if len(run) < length:
                break
            while words[start + times * length : start + (times + 1) * length] == run:
                times += 1
            max_votes = max(max_votes, times)
    return max_votes


@given(st.lists(st.sampled_from("ab"), max_size=20))
def test_repetitions_are_counted_as_by_hand(words: list[str]) -> None:
    assert repetitions(" ".join(words)) == by_hand(words)


def test_a_pattern_that_is_no_regular_expression_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match=r"the pattern '\(' is not a regular expression"):
        RedFlags(pattern="(")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"longest": 0}, "flags.longest is 0; it must be at least 1"),
        ({"repeats": 0}, "flags.repeats is 0; it must be at least 1"),
        ({"hedges": ("not sure", " ")}, "an empty phrase, which every reply has"),
    ],
)
def test_a_rule_that_every_reply_breaks_is_refused(settings: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        RedFlags(**settings)


def test_a_pattern_that_would_take_for_ever_is_an_error_and_no_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("reflux.agents.verifiers.MATCH_SECONDS", 0.2)
    flags = RedFlags(pattern=r"(a|aa)+b", longest=100)
    with pytest.raises(UsageError, match=r"'\(a\|aa\)\+b' has not matched a reply of 60 char"):
        flags.of(Completion("a" * 60))
    assert flags.of(Completion("a" * 200)) == "longest"  # The pattern is not even looked at.
    assert flags.of(Completion("aaab")) == ""


def test_replies_of_a_megabyte_are_looked_at() -> None:
    flags = RedFlags(pattern=r"\w+( \w+)*", hedges=("not sure",), repeats=3)
    assert flags.of(Completion("word " * 200_000)) == "repeats"
