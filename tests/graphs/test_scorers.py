"""When an answer is right: a table of what models write, and the rules' edges."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reflux.graphs.evals.scoring.math_worker import MathWorker
from reflux.graphs.evals.scoring.scorers import FORMS, can_compare, fitting_rule, same

OUTPUTS: list[list[Any]] = yaml.safe_load(
    (Path(__file__).parent.parent / "support" / "outputs.yaml").read_text(encoding="utf-8")
)
TEXT_RULES = sorted(set(FORMS) - {"math"})


def verdicts() -> Iterator[tuple[str, str, str, list[str], bool]]:
    """(rule, output, truth, choices, right) of each entry of the table."""
    for truth, output, right, wrong, *choices in OUTPUTS:
        for rule in f"{right} {wrong}".split():
            yield rule, output, truth, choices[0] if choices else [], rule in right.split()


@pytest.mark.parametrize("rule", sorted(FORMS))
def test_every_rule_calls_right_what_is_right_of_what_models_write(rule: str) -> None:
    if rule == "math":
        pytest.importorskip("math_verify")
    assert len(OUTPUTS) >= 150
    cases = [case for case in verdicts() if case[0] == rule]
    wrong = [case for case in cases if same(rule, *case[1:4]) != case[4]]
    assert cases
    assert wrong == []


@given(st.sampled_from(TEXT_RULES), st.text(), st.text(), st.lists(st.text(), max_size=4))
def test_no_text_makes_a_rule_raise(rule: str, one: str, other: str, choices: list[str]) -> None:
    assert same(rule, one, other, choices) in (True, False)
    assert can_compare(rule, one, choices) in (True, False)


MARKUP = st.text(st.sampled_from("aA1 .,:-/%$*_`#\\{}()[]^+=<>\n") | st.characters(), max_size=60)


@given(st.sampled_from(TEXT_RULES), MARKUP)
def test_no_markup_makes_a_rule_raise(rule: str, text: str) -> None:
    assert same(rule, f"The answer is {text}", text) in (True, False)
    assert same(rule, f"\\boxed{{{text}}}", text, ["a", text]) in (True, False)


@pytest.mark.slow
def test_mathematics_is_compared_in_time_whatever_a_model_wrote() -> None:
    pytest.importorskip("math_verify")
    worker = MathWorker(seconds=60.0)
    assert worker.same("$\\frac{1}{2}$", "0.5")
    worker.seconds = 1.0
    begun = time.monotonic()
    assert not worker.same("$9^{9^{9^{9}}}$", "1")
    assert time.monotonic() - begun < 60
    worker.seconds = 60.0
    assert not worker.same("\ud800 \x00 \n $\\frac{$", "1")
    assert worker.same("\\boxed{x^2}", "x^2")  # Another process, where the first was stopped.


def test_the_rule_that_fits_is_found() -> None:
    wrong = [("It is Paris.", ["Paris"], []), ("In Rome, Italy", ["Rome"], []), ("?", ["Lima"], [])]
    assert fitting_rule(wrong) == ("contains", 2)


@pytest.mark.parametrize(
    ("rule", "truth", "can"),
    [
        ("number", "2024-05-01", False),
        ("number", "(9, 4)", False),
        ("number", "10:30", False),
        ("number", "5-7", False),
        ("number", "x^2", False),
        ("number", "two", False),
        ("number", "5 km", True),
        ("number", "\\frac{3}{4}", True),
        ("number", "-1.5e3", True),
        ("choice", "E", False),
        ("choice", "B", True),
        ("choice", "Paris", True),
        ("normalised", " ", False),
    ],
)
def test_a_true_answer_that_a_rule_cannot_compare_is_known(
    rule: str, truth: str, can: bool
) -> None:
    assert can_compare(rule, truth, ["Rome", "Paris"] if rule == "choice" else []) == can


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
        ("normalised", "7-5", "7 - 5"),
        ("normalised", "1,234 km", "1234 km"),
        ("normalised", "U.S.", "US"),
        ("normalised", "$x^2$", "x^2"),
        ("normalised", "the the", "The"),
        ("number", "The total is $1,234.50.", "1234.5"),
        ("number", "2^10 = 1024", "1,024"),
        ("number", "so x = −7", "-7"),
        ("number", "1/2", "0.5"),
        ("number", "½", ".50"),
        ("number", "3e2", "300"),
        ("number", "42.", "42"),
        ("number", "first 3, then 4", "4"),
        ("number", "take 1 or 2 of them, so 42", "42"),
        ("number", "1/2 or 0.5", "0.5"),
        ("number", "50% or 0.5", "0.5"),
        ("number", "42 or so", "42"),
        ("number", "5 km or 5000 m", "5000"),
        ("number", "The answer is 42, not 40 or 41.", "42"),
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
        ("number", "41 or 42", "42"),
        ("number", "The answer is 41 or 42.", "41"),
        ("number", "It is 41, or maybe 42 apples.", "42"),
        ("number", "41 apples or 42 apples", "42"),
        ("number", "5 or 6 or 7", "7"),
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
        ("normalised", "7-5", "7 5"),
        ("normalised", "$5", "€5"),
        ("contains", "50% of it", "50"),
        ("number", "between 50% and 60%", "5000%"),
        ("contains", "tower Eiffel", "Eiffel tower"),
    ],
)
def test_answers_that_say_something_else_are_not(rule: str, answer: str, truth: str) -> None:
    assert not same(rule, answer, truth)


@given(st.sampled_from(sorted(set(FORMS) - {"math", "choice", "number", "contains"})), st.text())
def test_a_form_has_itself_as_form_and_any_text_is_equal_to_itself(rule: str, text: str) -> None:
    form = FORMS[rule](text)
    assert same(rule, text, text) == (form is not None)
    if form is not None and rule == "exact":
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
    assert FORMS["number"]("9^999999") is None


@pytest.mark.slow
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
