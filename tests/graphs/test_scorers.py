"""When two answers are the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflux.graphs.evals.eval_task import FORMS, same


@pytest.mark.parametrize(
    ("rule", "answer", "truth"),
    [
        ("exact", " Paris\n", "Paris"),
        ("normalised", "The Eiffel Tower!", "eiffel tower"),
        ("normalised", "ＰＡＲＩＳ", "paris"),
        ("normalised", "don’t", "Don't"),
        ("normalised", "don't", "dont"),
        ("normalised", "A", "a."),
        ("normalised", "(-5)", "−5"),
        ("normalised", "it is -$5.50", "it is -5.50"),
        ("normalised", ".5", "0.5"),
        ("normalised", "$5", "5"),
        ("normalised", "7-5", "7 5"),
        ("number", "The total is $1,234.50.", "1234.5"),
        ("number", "2^10 = 1024", "1,024"),
        ("number", "so x = −7", "-7"),
        ("number", "1/2", "0.5"),
        ("number", "½", ".50"),
        ("number", "3e2", "300"),
        ("number", "42.", "42"),
        ("number", "first 3, then 4", "4"),
        ("set", "b, a and c", "[a; b; c]"),
        ("set", "- x\n- y\n- x", "y, x"),
        ("set", "['Rome', 'Paris']", "paris, rome"),
        ("set", "  1. x \n\n\t2) y  and   z", "x, y, z"),
        ("contains", "It is the city of Paris, France.", "Paris"),
    ],
)
def test_answers_that_say_the_same_are_equal(rule: str, answer: str, truth: str) -> None:
    assert same(rule, answer, truth)


@pytest.mark.parametrize(
    ("rule", "answer", "truth"),
    [
        ("exact", "paris", "Paris"),
        ("normalised", "Paris, France", "Paris"),
        ("normalised", "3.5", "35"),
        ("normalised", "", ""),
        ("normalised", "-5", "5"),
        ("normalised", "−0.5", "0.5"),
        ("normalised", ".5", "5"),
        ("number", "1e1000", "1"),
        ("number", "7, or 1/0", "7"),
        ("number", f"7, or {'9' * 5_000}", "7"),
        ("contains", "it is -5", "5"),
        ("set", "-1, 2", "1, 2"),
        ("number", "none", "0"),
        ("number", "first 4, then 3", "4"),
        ("number", "1/0", "0"),
        ("set", "a, b", "a, b, c"),
        ("set", "X, b", "b"),
        ("set", "1,200, 3", "1, 200, 3"),
        ("contains", "Parisian", "Paris"),
        ("contains", "tower Eiffel", "Eiffel tower"),
    ],
)
def test_answers_that_say_something_else_are_not(rule: str, answer: str, truth: str) -> None:
    assert not same(rule, answer, truth)


@given(st.sampled_from(sorted(FORMS)), st.text())
def test_a_form_has_itself_as_form_and_any_text_is_equal_to_itself(rule: str, text: str) -> None:
    form = FORMS[rule](text)
    assert same(rule, text, text) == (form is not None)
    if form is not None and rule in ("exact", "number"):
        assert FORMS[rule](form) == form


@given(
    st.integers(-(10**9), 10**9), st.integers(1, 999),
    st.sampled_from(["{}", "= {}", "it is {}.", "{} km", "${}"]),
)  # fmt: skip
def test_a_number_is_read_whatever_stands_around_it(top: int, bottom: int, words: str) -> None:
    for written in (f"{top}", f"{top:,}", f"{top}.0", f"{top}/{bottom}"):
        plain = written.replace(",", "")
        assert same("number", words.format(written), plain)
        assert not same("number", words.format(written), f"{top + 1}/{bottom + 1_000_003}")


def test_a_form_is_the_text_that_equal_answers_share() -> None:
    assert FORMS["exact"](" Paris\n") == "Paris"
    assert FORMS["normalised"]("The Eiffel Tower!") == "eiffel tower"
    assert FORMS["number"]("so it is 6/4") == "3/2"
    assert FORMS["set"]("the b; a and b") == "a | b"


def test_a_number_of_more_than_a_thousand_characters_is_equal_to_none() -> None:
    assert FORMS["number"]("1" * 1_000) == "1" * 1_000
    assert FORMS["number"]("1" * 1_001) is None


def test_a_text_of_any_length_is_read() -> None:
    blanks = ("a" + " " * 400_000 + "b", "a" + "\n" * 400_000 + "b")
    for text in (
        *blanks,
        "1" * 100_000,
        "1,111" * 20_000,
        "-" * 100_000,
        "1e" * 50_000,
        "a, " * 50_000,
    ):
        for form in FORMS.values():
            form(text)
