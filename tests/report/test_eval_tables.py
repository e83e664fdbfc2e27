"""Tables of an evaluation: no more is said than its number of questions supports."""

import pytest

from reflux.graphs.evals.decisions import Differences, decide
from reflux.report.eval_tables import share, verdict_text


@pytest.mark.parametrize(
    ("gained", "lost", "n", "words"),
    [
        (0, 0, 2, "undecided; nothing tells them apart so far"),
        (3, 3, 20, "undecided; nothing tells them apart so far"),
        (4, 2, 20, "undecided; some 260 questions would decide it"),
        (9, 1, 20, "a is better"),
    ],
)
def test_a_pair_is_told_its_verdict_and_what_would_decide_it(
    gained: int, lost: int, n: int, words: str
) -> None:
    differences = Differences({1.0: gained, -1.0: lost, 0.0: n - gained - lost})
    (found,) = decide({("a", "b"): (differences, 0)}, 0.02, anytime=False)
    assert verdict_text(found) == words


@pytest.mark.parametrize(
    ("value", "n", "sign", "text"),
    [(0.5, 2, "", "0.50"), (1 / 3, 99, "+", "+0.33"), (0.125, 100, "", "0.125")],
)
def test_a_share_has_no_more_decimals_than_its_number_supports(
    value: float, n: int, sign: str, text: str
) -> None:
    assert share(value, n, sign) == text
