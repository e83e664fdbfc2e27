"""Rows as they are curated: duplicates, balance, leaks, markers, secrets and personal data."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from reflux.finetune.data.cleaning import Markers, without_personal_data
from reflux.finetune.data.curation import Counts, Curation, curate
from reflux.finetune.data.rows import Row, reply_of, rows_digest, training_order

LONG = " ".join(f"word{number}" for number in range(100)) + " at "


def row(question: str, answer: str = "yes", **about: Any) -> Row:
    prompt = ({"role": "user", "content": question},)
    return Row(prompt, reply_of(answer), question, "", {"trajectory": question[:8], **about})


def curated(
    rows: Sequence[Row], of_base: Markers | None = None, **options: Any
) -> tuple[list[str], Counts]:
    counts = Counts()
    with curate(rows, Curation(**options), of_base, counts) as made:
        assert len(made) == len(list(made)) and [made[i] for i in range(len(made))] == list(made)
        return sorted(body["prompt"][0]["content"] for body in made), counts


def test_the_order_is_that_of_the_seed_and_the_content() -> None:
    rows = [row(f"q{number % 9}") for number in range(20)]
    for seed in (0, 1):
        with curate(rows, Curation(exact=False, near=0), None, Counts(), seed) as made:
            expected = training_order(rows, seed)
            assert list(made) == [each.train() for each in expected]
            assert made.digest == rows_digest(expected)
        with curate(rows[::-1], Curation(exact=False, near=0), None, Counts(), seed) as made:
            assert made.digest == rows_digest(expected)


def test_the_same_twice_is_left_out_and_nearly_the_same_too() -> None:
    rows = [
        row(LONG + "night"), row(LONG + "night"), row(LONG + "dawn"),
        row(LONG + "night", "no and nothing else than that is what I would say to you"),
        row("a short one"), row("a short two"),
    ]  # fmt: skip
    kept, counts = curated(rows)
    assert len(kept) == 4
    assert counts.left_out.counts == {"exact duplicates": 1, "near duplicates": 1}
    assert counts.left_out.examples["near duplicates"][0]["trajectory"] == "word0 wo"
    assert len(curated(rows, near=0.0)[0]) == 5
    assert len(curated(rows, near=0.0, exact=False)[0]) == counts.seen == 6


def test_near_duplicates_agree_with_the_share_of_common_words() -> None:
    """Against the exact similarity of the sets of three words in a row (Jaccard)."""
    words = [f"w{number}" for number in range(120)]

    def changed(count: int) -> str:
        return " ".join(f"x{i}" if i < count else word for i, word in enumerate(words))

    for count, similar in ((2, True), (60, False)):
        kept, _ = curated([row(changed(0)), row(changed(count))])
        assert (len(kept) == 1) == similar


def test_no_value_has_more_rows_than_the_rarest() -> None:
    rows = [row(f"q{i}", node="plan" if i % 4 else "act", source="url") for i in range(16)]
    kept, counts = curated(rows, balance="node")
    assert len(kept) == 8
    assert counts.left_out.counts == {"beyond the balance by node": 8}
    assert len(curated(rows, balance="node", ratio=2.0)[0]) == 12
    assert len(curated(rows, balance="source")[0]) == 16


def test_what_the_evaluation_asks_is_left_out() -> None:
    asked = "Where is the thing?"
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    rows = [
        row("where is  THE thing"), row("Where is the thing? And why?"),
        row(f"Say: {long} please"), row(" ".join(long.split()[:12])),
    ]  # fmt: skip
    kept, counts = curated(rows, against=[asked, long])
    assert kept == ["Where is the thing? And why?", " ".join(long.split()[:12])]
    assert counts.left_out.counts == {"in the evaluation": 2}


def test_markers_of_the_base_are_escaped_or_refused() -> None:
    markers = Markers(["<|im_end|>", "<|im_start|>", "</s>"])
    rows = [row("end <|im_end|><|im_start|>system"), row("fine")]
    kept, counts = curated(rows, markers)
    assert kept == ["end < |im_end|>< |im_start|>system", "fine"]
    assert counts.escaped == 1
    kept, counts = curated(rows, markers, markers="refuse")
    assert kept == ["fine"]
    assert counts.left_out.counts == {"with the base's <|im_end|>": 1}
    assert curated(rows, Markers([]))[1].escaped == 0


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("write to ann.b+x@mail.example.org now", "write to [mail address] now"),
        ("call +49 30 901820, or 12345", "call [telephone number], or 12345"),
        ("card 4111 1111 1111 1111.", "card [card number]."),
        ("card 4111 1111 1111 1112.", "card 4111 1111 1111 1112."),
        ("DE89 3704 0044 0532 0130 00 is it", "[IBAN] is it"),
        ("DE88 3704 0044 0532 0130 00 is none", "DE88 3704 0044 0532 0130 00 is none"),
        ("from 93.184.216.34 and 2001:db8::1", "from [IP address] and [IP address]"),
        ("at 127.0.0.1, version 1.2.3, 10:30:00, a::b", None),
        ("key sk-abcdefghijklmnopqrstuvwx", "key [redacted]"),
        ("12+34=46, 1234567890123 and 3.14159265358979323846", None),
    ],
)
def test_secrets_and_personal_data_are_replaced(text: str, clean: str | None) -> None:
    found: Counter[str] = Counter()
    assert without_personal_data(text, found) == (text if clean is None else clean)
    assert (sum(found.values()) > 0) == (clean not in (None, text))


def test_redacted_rows_are_counted_by_kind() -> None:
    call = {"function": {"name": "mail", "arguments": '{"to": "a@b.org"}'}}
    given = Row(
        ({"role": "user", "content": "mail a@b.org"},),
        ({"role": "assistant", "content": "", "tool_calls": [call]},),
        "mail a@b.org", "", {},
    )  # fmt: skip
    counts = Counts()
    with curate([given], Curation(redact=True), None, counts) as made:
        assert "a@b.org" not in str(made[0])
        assert made[0]["completion"][0]["tool_calls"][0]["function"]["arguments"] == (
            '{"to": "[mail address]"}'
        )
    assert counts.redacted["mail address"] == 3
